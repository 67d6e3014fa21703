package telemetry

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/shirou/gopsutil/v3/cpu"
	"github.com/shirou/gopsutil/v3/host"
	"golang.org/x/sys/unix"
)

// Machine is what a run is measured on. Numbers that are not known are -1,
// texts begin with "not known: " and the reason.
type Machine struct {
	OS     string `json:"os"`     // distribution and its version
	Kernel string `json:"kernel"` // release

	CPU           string  `json:"cpu"`            // model
	Cores         int     `json:"cores"`          // that this process may use: affinity, and the quota rounded down, at least 1
	PhysicalCores int     `json:"physical_cores"` // of the machine, without hyper-threads
	LogicalCores  int     `json:"logical_cores"`  // of the machine
	QuotaCores    float64 `json:"quota_cores"`    // CPU time that the control group allows; -1: no limit
	NUMANodes     int     `json:"numa_nodes"`

	Governor string  `json:"governor"`
	MinMHz   float64 `json:"min_mhz"` // that the governor may choose; -1: not known
	MaxMHz   float64 `json:"max_mhz"`
	Turbo    string  `json:"turbo"` // on, off, or not known

	Memory          Memory `json:"memory"`
	PageBytes       int    `json:"page_bytes"`
	TransparentHuge string `json:"transparent_huge_pages"` // always, madvise, never
	Container       string `json:"container"`              // kind of container and hypervisor; "" on bare metal
	ThrottleEvents  int64  `json:"throttle_events"`        // thermal, since boot; -1: not known
	Throttled       int64  `json:"throttled_now"`          // the part of them while Inspect looked

	// LoadBefore is how many cores were busy with other work during the half
	// second that Inspect took; -1: not known.
	LoadBefore float64 `json:"load_before_cores"`

	// Warnings say what about the machine makes numbers vary or mislead.
	Warnings []string `json:"warnings"`
}

// loadWindow is how long Inspect watches: CPU times come in steps of 10 ms, so
// that it resolves 0.02 cores.
const loadWindow = 500 * time.Millisecond

// Inspect looks at the machine. It takes half a second, in which it watches
// what else is running.
func Inspect() Machine {
	probe := Host(nil)
	before := map[string]float64{}
	errBefore := probe.Sample(before)
	began := time.Now()

	m := describe()

	time.Sleep(loadWindow - time.Since(began))
	after := map[string]float64{}
	errAfter := probe.Sample(after)
	m.LoadBefore = -1
	a, okA := before["other_seconds"]
	b, okB := after["other_seconds"]
	if okA && okB {
		m.LoadBefore = (b - a) / time.Since(began).Seconds()
	} else {
		m.Warnings = append(m.Warnings, fmt.Sprintf("what else is running is not known: %v", firstError(errBefore, errAfter)))
	}
	if now := throttleEvents(&procFile{}); now >= 0 && m.ThrottleEvents >= 0 {
		m.Throttled = now - m.ThrottleEvents
	}
	m.Warnings = append(m.Warnings, warnings(m)...)
	return m
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func notKnown(reason string) string { return "not known: " + reason }

func describe() Machine {
	var file procFile
	group := findCgroup(&file)
	m := Machine{
		OS: osName(), Kernel: kernelRelease(),
		CPU: cpuModel(), LogicalCores: onlineCPUs(&file), PhysicalCores: physicalCores(),
		QuotaCores: group.quota(&file),
		NUMANodes:  numaNodes(&file),
		PageBytes:  os.Getpagesize(),
	}
	m.Cores = usableCores(m.QuotaCores, m.LogicalCores)
	m.Governor = governor(&file)
	m.MinMHz = kiloHertz(&file, "scaling_min_freq")
	m.MaxMHz = kiloHertz(&file, "scaling_max_freq")
	m.Turbo = turbo(&file)
	mem, err := ReadMemory()
	if err != nil {
		mem = Memory{TotalBytes: -1, AvailableBytes: -1, LimitBytes: -1, SwapTotalBytes: -1, SwapUsedBytes: -1}
		m.Warnings = append(m.Warnings, err.Error())
	}
	m.Memory = mem
	m.TransparentHuge = hugePages(&file)
	m.Container = container(&file, group.names)
	m.ThrottleEvents = throttleEvents(&file)
	return m
}

func osName() string {
	name, _, version, err := host.PlatformInformation()
	if err != nil || name == "" {
		return notKnown("no /etc/os-release")
	}
	return strings.TrimSpace(name + " " + version)
}

func kernelRelease() string {
	v, err := host.KernelVersion()
	if err != nil {
		return notKnown(err.Error())
	}
	return v
}

func cpuModel() string {
	all, err := cpu.Info()
	if err != nil {
		return notKnown(err.Error())
	}
	for _, c := range all {
		if name := strings.Join(strings.Fields(c.ModelName), " "); name != "" {
			return name
		}
	}
	return notKnown("/proc/cpuinfo names no model")
}

func onlineCPUs(file *procFile) int {
	b, err := file.read("/sys/devices/system/cpu/online")
	if err != nil {
		return -1
	}
	return countList(string(b))
}

func physicalCores() int {
	n, err := cpu.Counts(false)
	if err != nil || n < 1 {
		return -1
	}
	return n
}

func numaNodes(file *procFile) int {
	b, err := file.read("/sys/devices/system/node/online")
	if err != nil {
		return -1
	}
	return countList(string(b))
}

// countList counts a list such as "0-3,8,10-11"; -1 if it is none.
func countList(s string) int {
	n := 0
	for part := range strings.SplitSeq(strings.TrimSpace(s), ",") {
		lo, hi, isRange := strings.Cut(part, "-")
		a, err := strconv.Atoi(lo)
		b := a
		if err == nil && isRange {
			b, err = strconv.Atoi(hi)
		}
		if err != nil || a < 0 || b < a || b > 1<<20 {
			return -1
		}
		n += b - a + 1
	}
	return n
}

// usableCores is how many threads can run at once without waiting for each
// other.
func usableCores(quota float64, logical int) int {
	n := logical
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err == nil {
		n = set.Count()
	}
	if quota > 0 {
		n = min(n, int(math.Floor(quota)))
	}
	return max(1, n)
}

const cpuDir = "/sys/devices/system/cpu"

// governor names the frequency governor, all of them if CPUs differ.
func governor(file *procFile) string {
	paths, _ := filepath.Glob(cpuDir + "/cpu[0-9]*/cpufreq/scaling_governor")
	var found []string
	for _, path := range paths {
		if b, err := file.read(path); err == nil {
			if g := strings.TrimSpace(string(b)); g != "" && !slices.Contains(found, g) {
				found = append(found, g)
			}
		}
	}
	if len(found) == 0 {
		return notKnown("the kernel offers no frequency control (usual in a virtual machine)")
	}
	slices.Sort(found)
	return strings.Join(found, ", ")
}

func kiloHertz(file *procFile, name string) float64 {
	if khz, ok := readNumber(file, cpuDir+"/cpu0/cpufreq/"+name); ok && khz > 0 {
		return float64(khz) / 1000
	}
	return -1
}

func turbo(file *procFile) string {
	// intel_pstate says whether it is off, the other drivers whether it is on.
	if v, ok := readNumber(file, cpuDir+"/intel_pstate/no_turbo"); ok {
		return onOff(v == 0)
	}
	if v, ok := readNumber(file, cpuDir+"/cpufreq/boost"); ok {
		return onOff(v == 1)
	}
	return notKnown("the kernel does not say")
}

func onOff(on bool) string {
	if on {
		return "on"
	}
	return "off"
}

func hugePages(file *procFile) string {
	b, err := file.read("/sys/kernel/mm/transparent_hugepage/enabled")
	if err != nil {
		return notKnown("the kernel does not say")
	}
	_, rest, _ := strings.Cut(string(b), "[")
	if chosen, _, ok := strings.Cut(rest, "]"); ok {
		return chosen
	}
	return notKnown("the kernel does not say")
}

func throttleEvents(file *procFile) int64 {
	paths, _ := filepath.Glob(throttlePattern)
	n, ok := sumFiles(file, paths)
	if !ok {
		return -1
	}
	return int64(n)
}

// container names what stands between this process and the machine, the
// innermost first: "docker in a virtual machine (kvm)".
func container(file *procFile, groups []string) string {
	inner := ""
	switch {
	case exists("/.dockerenv"):
		inner = "docker"
	case exists("/run/.containerenv"):
		inner = "podman"
	default:
		for _, g := range groups {
			for _, kind := range []string{"kubepods", "docker", "libpod", "lxc", "containerd"} {
				if inner == "" && strings.Contains(g, kind) {
					inner = kind
				}
			}
		}
	}
	outer := ""
	if b, err := file.read("/proc/cpuinfo"); err == nil && hasFlag(string(b), "hypervisor") {
		outer = "virtual machine"
		if kind := hypervisor(file); kind != "" {
			outer += " (" + kind + ")"
		}
	}
	switch {
	case inner != "" && outer != "":
		return inner + " in a " + outer
	case inner != "":
		return inner
	}
	return outer
}

// hypervisor names the hypervisor if anything does.
func hypervisor(file *procFile) string {
	for _, path := range []string{"/sys/hypervisor/type", "/sys/class/dmi/id/sys_vendor"} {
		if b, err := file.read(path); err == nil {
			if name := strings.TrimSpace(string(b)); name != "" {
				return name
			}
		}
	}
	// It names containers too, which are told apart already.
	if name, role, err := host.Virtualization(); err == nil && role == "guest" &&
		slices.Contains([]string{"kvm", "xen", "hyperv", "vbox", "vmware"}, name) {
		return name
	}
	return ""
}

// hasFlag looks for a flag of the first CPU in /proc/cpuinfo.
func hasFlag(cpuinfo, flag string) bool {
	for line := range strings.Lines(cpuinfo) {
		name, rest, ok := strings.Cut(line, ":")
		if ok && strings.TrimSpace(name) == "flags" {
			return slices.Contains(strings.Fields(rest), flag)
		}
	}
	return false
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
