package telemetry

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// Host watches the machine around the measurement. ours returns the roots of
// the processes that belong to the measurement but were not started by this
// process (an attached server); this process and its descendants belong to it
// anyway. It may be nil.
//
// Values: work_seconds (CPU time of all processes of the machine, a counter),
// other_seconds (the part of it that is not ours, a counter: load from
// elsewhere), irq_seconds and steal_seconds (counters), cpu_mhz (mean over the
// CPUs) and throttle_events (thermal, a counter), both at every tenth sample and
// where the machine tells them, and memory_available_bytes (see ReadMemory). Interrupt time is nobody's: our
// own network traffic makes it too, so it is not counted as load from
// elsewhere. In a container the CPU counters are those of the whole machine; where
// this process may use some of its CPUs only (taskset, a control group's cpuset),
// those of these: what runs on the others is not in the way. Where at the first
// sample a process of the measurement may use others (an attached server), those
// of the whole machine again.
func Host(ours func() []int) Probe {
	roots := func() []int {
		pids := []int{os.Getpid()}
		if ours != nil {
			pids = append(pids, ours()...)
		}
		return pids
	}
	return &hostProbe{tree: tree{roots: roots}, cpus: allowedCPUs()}
}

// allowedCPUs is nil where this process may use all of the machine's CPUs.
func allowedCPUs() *unix.CPUSet {
	var set unix.CPUSet
	b, err := os.ReadFile(cpuDir + "/online")
	if err != nil || unix.SchedGetaffinity(0, &set) != nil || set.Count() >= countList(string(b)) {
		return nil
	}
	return &set
}

type hostProbe struct {
	file  procFile
	tree  tree
	cpus  *unix.CPUSet // nil: all
	begun bool
	n     int

	firstWork, lastOther     uint64 // ticks
	freqPaths, throttlePaths []string
	memory                   memoryReader
}

// slowEvery is how many samples pass between two looks at every single CPU: on
// older kernels asking for the frequency interrupts them all.
const slowEvery = 10

const (
	freqPattern     = "/sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq"
	throttlePattern = "/sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/core_throttle_count"
)

func (p *hostProbe) Subject() string { return HostSubject }

func (p *hostProbe) Sample(into map[string]float64) error {
	var errs []error
	if err := p.cpu(into); err != nil {
		errs = append(errs, err)
	}
	if p.n == 0 {
		p.freqPaths, _ = filepath.Glob(freqPattern)
		p.throttlePaths, _ = filepath.Glob(throttlePattern)
	}
	if p.n%slowEvery == 0 {
		if mhz, ok := p.mhz(); ok {
			into["cpu_mhz"] = mhz
		}
		if n, ok := sumFiles(&p.file, p.throttlePaths); ok {
			into["throttle_events"] = float64(n)
		}
	}
	p.n++
	if m, err := p.memory.read(); err != nil {
		errs = append(errs, err)
	} else {
		into["memory_available_bytes"] = float64(m.AvailableBytes)
	}
	return errors.Join(errs...)
}

// stray tells whether a process of the measurement may run outside the set.
func (p *hostProbe) stray(set *unix.CPUSet) bool {
	for _, pid := range p.tree.roots() {
		var theirs unix.CPUSet
		if pid == os.Getpid() || unix.SchedGetaffinity(pid, &theirs) != nil {
			continue // it is this one, or has ended
		}
		for i := range theirs {
			if theirs[i]&^set[i] != 0 {
				return true
			}
		}
	}
	return false
}

func (p *hostProbe) cpu(into map[string]float64) error {
	err := p.tree.update()
	if !p.begun && p.cpus != nil && p.stray(p.cpus) {
		p.cpus = nil
	}
	b, readErr := p.file.read("/proc/stat")
	if readErr != nil {
		return errors.Join(err, readErr)
	}
	times, readErr := parseCPUTimes(b, p.cpus)
	if readErr != nil {
		return errors.Join(err, readErr)
	}
	into["work_seconds"] = float64(times.work) / userHZ
	into["irq_seconds"] = float64(times.irq) / userHZ
	into["steal_seconds"] = float64(times.steal) / userHZ
	if !p.begun {
		p.begun, p.firstWork = true, times.work
	}
	// The two clocks tick apart by a few ticks: the difference may fall for a
	// moment, the counter waits.
	work, ours := times.work-min(times.work, p.firstWork), p.tree.cpuTicks
	if work > ours {
		p.lastOther = max(p.lastOther, work-ours)
	}
	into["other_seconds"] = float64(p.lastOther) / userHZ
	return err
}

// mhz returns the mean frequency, as cpufreq says it or else /proc/cpuinfo.
func (p *hostProbe) mhz() (float64, bool) {
	sum, n := 0.0, 0
	for _, path := range p.freqPaths {
		b, err := p.file.read(path)
		if err != nil {
			continue // a CPU that went offline
		}
		f := fields{rest: b}
		word, _ := f.next()
		if khz, err := strconv.ParseUint(string(word), 10, 32); err == nil && khz > 0 {
			sum += float64(khz) / 1000
			n++
		}
	}
	if n > 0 {
		return sum / float64(n), true
	}
	b, err := p.file.read("/proc/cpuinfo")
	if err != nil {
		return 0, false
	}
	return parseMHz(b)
}

// sumFiles adds up files that hold one number each; not ok if none could be read.
func sumFiles(file *procFile, paths []string) (sum uint64, ok bool) {
	for _, path := range paths {
		b, err := file.read(path)
		if err != nil {
			continue
		}
		f := fields{rest: b}
		word, _ := f.next()
		if v, err := strconv.ParseUint(string(word), 10, 48); err == nil {
			sum += v
			ok = true
		}
	}
	return sum, ok
}
