package telemetry

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"
)

// userHZ is the unit of CPU times in /proc: 100 on every Linux ABI that Go
// runs on (USER_HZ; proc(5) says to ask sysconf, which needs the C library).
const userHZ = 100

// procFile reads small files of /proc and /sys into one buffer that is used
// again and again: os.ReadFile would allocate for each process at each sample.
type procFile struct{ buf []byte }

// maxProcFile bounds what is read, in bytes: far above any file read here.
const maxProcFile = 16 << 20

// read returns the content, valid until the next read.
func (p *procFile) read(path string) ([]byte, error) {
	fd, err := openRetry(path)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	if p.buf == nil {
		p.buf = make([]byte, 0, 8<<10)
	}
	p.buf = p.buf[:0]
	for {
		if len(p.buf) == cap(p.buf) {
			if len(p.buf) >= maxProcFile {
				return nil, fmt.Errorf("%s is longer than %d bytes", path, maxProcFile)
			}
			grown := make([]byte, len(p.buf), 2*cap(p.buf))
			copy(grown, p.buf)
			p.buf = grown
		}
		n, err := unix.Read(fd, p.buf[len(p.buf):cap(p.buf)])
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return nil, err
		case n == 0:
			return p.buf, nil
		default:
			p.buf = p.buf[:len(p.buf)+n]
		}
	}
}

func openRetry(path string) (int, error) {
	for {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}

// procStat is what is used of /proc/PID/stat (proc_pid_stat(5)).
type procStat struct {
	ppid     int
	zombie   bool
	cpuTicks uint64 // user and system, of this process
	deadCPU  uint64 // the same of its children that it has waited for
	threads  int64
	start    uint64 // ticks after boot; tells two processes of one PID apart
	rssPages int64
}

// parseStat parses a stat line. The command in it may hold spaces and
// parentheses: fields are counted from the last ')'.
func parseStat(b []byte) (procStat, error) {
	var s procStat
	end := bytes.LastIndexByte(b, ')')
	if end < 0 {
		return s, errors.New("a stat line without a command")
	}
	f := fields{rest: b[end+1:]}
	state, ok := f.next() // field 3
	if !ok || len(state) != 1 {
		return s, errors.New("a stat line without a state")
	}
	s.zombie = state[0] == 'Z' || state[0] == 'X'
	var num [22]int64 // fields 4 to 25
	for i := 4; i <= 24; i++ {
		word, ok := f.next()
		if !ok {
			return s, fmt.Errorf("a stat line with %d fields", i-1)
		}
		v, err := strconv.ParseInt(string(word), 10, 64)
		if err != nil {
			return s, fmt.Errorf("field %d of a stat line: %.40q is not a number", i, word)
		}
		num[i-4] = v
	}
	get := func(field int) int64 { return num[field-4] }
	for _, field := range []int{4, 14, 15, 16, 17, 20, 22, 24} {
		if get(field) < 0 {
			return s, fmt.Errorf("field %d of a stat line is negative", field)
		}
	}
	s.ppid = int(get(4))
	s.cpuTicks = uint64(get(14)) + uint64(get(15))
	s.deadCPU = uint64(get(16)) + uint64(get(17))
	s.threads = get(20)
	s.start = uint64(get(22))
	s.rssPages = get(24)
	return s, nil
}

// fields splits at white space without allocating.
type fields struct{ rest []byte }

func (f *fields) next() ([]byte, bool) {
	f.rest = bytes.TrimLeft(f.rest, " \t\n")
	if len(f.rest) == 0 {
		return nil, false
	}
	n := bytes.IndexAny(f.rest, " \t\n")
	if n < 0 {
		n = len(f.rest)
	}
	word := f.rest[:n]
	f.rest = f.rest[n:]
	return word, true
}

// parseKB returns the value in bytes of a "Name:   123 kB" line of meminfo,
// smaps_rollup or status.
func parseKB(b []byte, name string) (int64, bool) {
	for line := range bytes.Lines(b) {
		key, rest, ok := bytes.Cut(line, []byte(":"))
		if !ok || string(key) != name {
			continue
		}
		f := fields{rest: rest}
		word, ok := f.next()
		if !ok {
			return 0, false
		}
		kb, err := strconv.ParseInt(string(word), 10, 64)
		if err != nil || kb < 0 || kb > 1<<53 {
			return 0, false
		}
		return kb << 10, true
	}
	return 0, false
}

// cpuTimes is a line of /proc/stat (proc_stat(5)), or the sum of several, in
// ticks. Time given to guests is part of user and nice.
type cpuTimes struct {
	work  uint64 // user, nice, system: what processes and kernel threads did
	irq   uint64 // interrupts, hard and soft
	idle  uint64 // idle and iowait
	steal uint64 // taken by the hypervisor
}

// parseCPUTimes reads the times of the CPUs in the set; of all, if it is nil.
func parseCPUTimes(b []byte, of *unix.CPUSet) (sum cpuTimes, err error) {
	found := false
	for line := range bytes.Lines(b) {
		f := fields{rest: bytes.TrimSuffix(line, []byte("\n"))}
		word, _ := f.next()
		number, ok := bytes.CutPrefix(word, []byte("cpu"))
		if !ok {
			break
		}
		if (of == nil) != (len(number) == 0) {
			continue
		}
		if of != nil {
			cpu, err := strconv.ParseUint(string(number), 10, 16)
			if err != nil {
				return cpuTimes{}, fmt.Errorf("/proc/stat: %.40q is not a CPU", word)
			}
			if !of.IsSet(int(cpu)) {
				continue
			}
		}
		var num [8]uint64
		for i := range num {
			word, ok := f.next()
			if !ok {
				if i < 4 {
					return cpuTimes{}, fmt.Errorf("/proc/stat has %d CPU times", i)
				}
				break // kernels before 2.6 had fewer
			}
			if num[i], err = strconv.ParseUint(string(word), 10, 64); err != nil || num[i] > 1<<56 {
				return cpuTimes{}, fmt.Errorf("/proc/stat: %.40q is not a CPU time", word)
			}
		}
		found = true
		sum.work += num[0] + num[1] + num[2]
		sum.idle += num[3] + num[4]
		sum.irq += num[5] + num[6]
		sum.steal += num[7]
	}
	if !found {
		return cpuTimes{}, errors.New("/proc/stat tells no times of the CPUs that this process may use")
	}
	return sum, nil
}

// parseMHz returns the mean of the "cpu MHz" lines of /proc/cpuinfo.
func parseMHz(b []byte) (float64, bool) {
	sum, n := 0.0, 0
	for line := range bytes.Lines(b) {
		if !bytes.HasPrefix(line, []byte("cpu MHz")) {
			continue
		}
		_, rest, ok := bytes.Cut(line, []byte(":"))
		if !ok {
			continue
		}
		v, err := strconv.ParseFloat(string(bytes.TrimSpace(rest)), 64)
		if err != nil || !(v > 0 && v < 1e6) {
			continue
		}
		sum += v
		n++
	}
	if n == 0 {
		return 0, false
	}
	return sum / float64(n), true
}
