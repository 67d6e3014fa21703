package telemetry

import (
	"fmt"
	"math"
	"math/bits"
	"os"
)

// GPUSubject begins the subjects of GPUs: gpu0, gpu1, and gpu0.1 for a part that
// MIG has cut off.
const GPUSubject = "gpu"

// GPUSamplerSubject is what sampling the GPUs cost.
const GPUSamplerSubject = "gpu_sampler"

// GPUUse sums one GPU over the window of a cell. Its fields are those of
// results.GPUUse, so that one converts to the other. -1: not known; Missing says
// why, by series.
type GPUUse struct {
	Device string // subject
	Engine string // the engine's name for it: CUDA0
	Name   string

	Reads         int     // of memory in use, within the window
	PeriodSeconds float64 // mean time between two of them
	GapSeconds    float64 // the longest

	// Memory of the whole device, bytes: before the backend was started, at the
	// mark "loaded", at most in its window, and after the backend had ended (-1
	// also while it goes on).
	Before, Loaded, Peak, Released int64
	// Of the backend alone, by Source.
	OwnContext int64 // what the process held before the weights came
	OwnLoaded  int64
	OwnPeak    int64
	Source     string // "processes", or "device": the rise above Before
	SourceWhy  string // why it is the device
	Foreign    int64  // most that other processes held
	ForeignN   int    // most of them at once

	EnergyJ      float64
	EnergySource string  // "counter", or "power": integrated
	EnergyStep   float64 // seconds between two steps of it: its grain
	MeanW, PeakW float64
	PowerMean    bool // PeakW is of means over a second

	SMMHz, SMMinMHz, MemoryMHz float64 // means, and the least
	MaxCelsius                 float64
	Throttled                  map[string]float64 // share of the samples by reason
	Busy                       float64            // mean share of time in which a kernel ran
	PCIeSent, PCIeReceived     float64            // bytes
	PCIeSource                 string             // "counter", or "rates": of moments, times the window

	CallSeconds  map[string]float64 // mean time of a call by series
	SamplerCores float64            // share of one core that sampling all GPUs took
	Missing      map[string]string  // by series: "not available: …"
}

// GPUAsked is what the log cannot know of a GPU.
type GPUAsked struct {
	Subject, Engine, Name string
	Before                int64             // bytes in use before the backend was started; -1: not known
	Missing               map[string]string // why series ended, by the probe's account
	CallSeconds           map[string]float64
	Reasons               func(mask uint64) []string // decodes clock reasons
}

// Marks are moments at which the backend stands still and used_bytes and tree_bytes
// of each GPU are read together, into series of these names with the mark before
// them (loaded_used_bytes).
const (
	ContextMark = "context" // an engine's process has its contexts and nothing else
	LoadedMark  = "loaded"  // all is made that is made before the cell's first request
)

// notSeen is how far the memory of a device may rise without a process of the
// backend being seen before it is taken to be the backend's: a driver's own
// bookkeeping is smaller.
const notSeen = 64 << 20

// GPU sums the window [from, to] for one GPU. Unlike those of the host, its
// series may end in mid-window (a GPU falls off the bus): one that does not
// reach both edges is not known.
func (l *Log) GPU(window [2]int64, ask GPUAsked) GPUUse {
	u := GPUUse{
		Device: ask.Subject, Engine: ask.Engine, Name: ask.Name, PeriodSeconds: -1, GapSeconds: -1,
		Before: ask.Before, Loaded: -1, Peak: -1, Released: -1, OwnContext: -1, OwnLoaded: -1, OwnPeak: -1, Foreign: -1, ForeignN: -1,
		EnergyJ: -1, EnergyStep: -1, MeanW: -1, PeakW: -1, SMMHz: -1, SMMinMHz: -1, MemoryMHz: -1, MaxCelsius: -1, Busy: -1, PCIeSent: -1, PCIeReceived: -1,
		CallSeconds: ask.CallSeconds, SamplerCores: -1, Missing: map[string]string{},
	}
	of := func(name string) []point { return l.series[seriesKey{ask.Subject, name}] }
	span := float64(window[1]-window[0]) / 1e9
	// known returns the series if it encloses the window, and notes why not.
	known := func(series, name string) []point {
		s := of(name)
		if len(s) > 0 && s[0].t <= window[0] && s[len(s)-1].t >= window[1] {
			return s
		}
		why := ask.Missing[series]
		switch {
		case why == "":
			why = "not available: it was not sampled from the beginning of the window to its end"
		case len(s) > 0:
			why += fmt.Sprintf(" (from %.1f s before the end of the window on)", float64(window[1]-s[len(s)-1].t)/1e9)
		}
		u.Missing[series] = why
		return nil
	}

	if used := known("memory", "used_bytes"); used != nil {
		u.Peak = int64(standing(used, window, math.Max))
		u.Loaded = last(of(LoadedMark + "_used_bytes"))
		if n, _, ok := rise(of("reads_total"), window); ok {
			u.Reads = int(math.Round(n))
			if n > 0 {
				u.PeriodSeconds = span / n
			}
		}
		if gaps := inside(of("gap_seconds"), window); len(gaps) > 0 {
			u.GapSeconds = 0
			for _, g := range gaps {
				u.GapSeconds = max(u.GapSeconds, g.v)
			}
		}
	}
	l.own(&u, window, ask, known)

	switch joules := of("energy_joules_total"); {
	case len(joules) > 1 && known("energy", "energy_joules_total") != nil:
		e, _, _ := rise(joules, window)
		u.EnergyJ, u.EnergySource, u.EnergyStep = e, "counter", stepOf(joules, window)
	default:
		known("energy", "energy_joules_total")
	}
	watts := of("power_watts")
	if len(watts) == 0 {
		if watts = of("power_mean_watts"); len(watts) > 0 {
			watts, u.PowerMean = known("power", "power_mean_watts"), true
		} else {
			known("power", "power_watts")
		}
	} else {
		watts = known("power", "power_watts")
	}
	if watts != nil {
		u.PeakW = standing(levels(watts, window), window, math.Max)
		if u.EnergyJ < 0 && len(watts) > 1 {
			u.EnergyJ, u.EnergySource, u.EnergyStep = integral(watts, window), "power", stepOf(watts, window)
		}
	}
	if u.EnergyJ >= 0 && span > 0 {
		u.MeanW = u.EnergyJ / span
	}
	if sm := known("clocks", "sm_mhz"); sm != nil {
		u.SMMHz, u.MemoryMHz = mean(sm, window), mean(of("memory_mhz"), window)
		u.SMMinMHz = standing(levels(sm, window), window, math.Min)
	}
	if c := known("temperature", "celsius"); c != nil {
		u.MaxCelsius = standing(c, window, math.Max)
	}
	if masks := known("reasons", "clock_reasons"); masks != nil {
		u.Throttled = map[string]float64{}
		in := levels(masks, window)
		for _, p := range in {
			for _, reason := range ask.Reasons(uint64(p.v)) {
				u.Throttled[reason] += 1 / float64(len(in))
			}
		}
	}
	if busy := known("utilization", "busy_ratio"); busy != nil {
		u.Busy = mean(busy, window)
	}
	switch {
	case len(of("pcie_sent_bytes_total")) > 1:
		if s := known("pcie", "pcie_sent_bytes_total"); s != nil {
			u.PCIeSent, _, _ = rise(s, window)
			u.PCIeReceived, _, _ = rise(of("pcie_received_bytes_total"), window)
			u.PCIeSource = "counter"
		}
	default:
		if s := known("pcie", "pcie_sent_bytes_per_second"); s != nil {
			u.PCIeSent, u.PCIeReceived, u.PCIeSource = mean(s, window)*span, mean(of("pcie_received_bytes_per_second"), window)*span, "rates"
		}
	}
	if cpu, over, ok := rise(l.series[seriesKey{GPUSamplerSubject, "cpu_seconds"}], window); ok {
		u.SamplerCores = cpu / over
	}
	return u
}

// own is the backend's own memory: that of its processes where the driver shows
// them, or else the rise of the device above what was in use before.
func (l *Log) own(u *GPUUse, window [2]int64, ask GPUAsked, known func(series, name string) []point) {
	of := func(name string) []point { return l.series[seriesKey{ask.Subject, name}] }
	tree := known("processes", "tree_bytes")
	u.SourceWhy = u.Missing["processes"]
	if tree != nil {
		u.Foreign = int64(standing(of("foreign_bytes"), window, math.Max))
		u.ForeignN = int(standing(of("foreign_processes"), window, math.Max))
		peak := int64(standing(tree, window, math.Max))
		rose := u.Peak - u.Before
		switch {
		case peak == 0 && u.Before < 0:
			u.SourceWhy = "the driver lists none of the backend's processes that are known here, and what was in use before the backend was started is not known"
		case u.Before < 0 || u.Peak < 0:
		case peak == 0 && rose > notSeen:
			u.SourceWhy = "the driver lists no process of this backend, though the device's memory rose: they are in another PID namespace, or the driver hides them"
		case peak > 0 && OwnPIDs() && math.Abs(float64(peak-rose)) > max(notSeen, 0.05*float64(rose)):
			u.SourceWhy = "this process has PIDs of its own namespace, and what the driver lists under the backend's does not fit the device's rise: they may be other processes' numbers"
		}
		if u.SourceWhy == "" {
			u.Source = "processes"
			u.OwnPeak = peak
			u.OwnContext, u.OwnLoaded = last(of(ContextMark+"_tree_bytes")), last(of(LoadedMark+"_tree_bytes"))
			return
		}
		u.Missing["processes"] = "not available: " + u.SourceWhy
		u.Foreign, u.ForeignN = -1, -1
	}
	if u.Before < 0 || u.Peak < 0 {
		return
	}
	u.Source = "device"
	u.OwnPeak = max(0, u.Peak-u.Before)
	if u.Loaded >= 0 {
		u.OwnLoaded = max(0, u.Loaded-u.Before)
	}
	if context := last(of(ContextMark + "_used_bytes")); context >= 0 {
		u.OwnContext = max(0, context-u.Before)
	}
}

// last is the last value of a series; -1: it has none.
func last(s []point) int64 {
	if len(s) == 0 {
		return -1
	}
	return int64(s[len(s)-1].v)
}

// pidNamespaceInode is the number of the machine's first PID namespace
// (PROC_PID_INIT_INO of include/linux/proc_ns.h).
const pidNamespaceInode = "pid:[4026531836]"

// OwnPIDs tells whether this process is in a PID namespace of its own, as in a
// container: the driver may then know its processes by other numbers.
func OwnPIDs() bool {
	name, err := os.Readlink("/proc/self/ns/pid")
	return err != nil || name != pidNamespaceInode
}

// standing folds a level over the window, the value that stood at its beginning
// included. s is not empty.
func standing(s []point, window [2]int64, fold func(a, b float64) float64) float64 {
	v := standingAt(s, window[0])
	for _, p := range inside(s, window) {
		v = fold(v, p.v)
	}
	return v
}

// standingAt is the last value of a level at t, or the first of all.
func standingAt(s []point, t int64) float64 {
	v := math.NaN()
	for i, p := range s {
		if i > 0 && p.t > t {
			break
		}
		v = p.v
	}
	return v
}

// stepOf is the mean time between two changes of a counter or level within the
// window, in seconds; the whole window if it changed less than twice.
func stepOf(s []point, window [2]int64) float64 {
	span := float64(window[1]-window[0]) / 1e9
	changes := 0
	in := inside(s, window)
	for i := 1; i < len(in); i++ {
		if in[i].v != in[i-1].v {
			changes++
		}
	}
	return span / float64(max(changes, 1))
}

// integral is the area under a level within the window, by trapezoids between
// its samples: W to J.
func integral(s []point, window [2]int64) float64 {
	sum := 0.0
	t, v := window[0], at(s, window[0])
	for _, p := range append(inside(s, window), point{window[1], at(s, window[1])}) {
		sum += (v + p.v) / 2 * float64(p.t-t) / 1e9
		t, v = p.t, p.v
	}
	return sum
}

// ClocksByUser is the reason of clocks that somebody chose, as is wise before a
// benchmark.
const ClocksByUser = "clocks set by the user"

// ClockReasons names the reasons for which a GPU's clocks are lower than they
// could be, in words; a GPU that idles is none.
// https://docs.nvidia.com/deploy/nvml-api/group__nvmlClocksEventReasons.html
func ClockReasons(mask uint64) (names []string) {
	words := map[uint64]string{
		1 << 1: ClocksByUser, 1 << 2: "power cap", 1 << 3: "hardware slowdown", 1 << 4: "sync boost group", 1 << 5: "software thermal slowdown",
		1 << 6: "hardware thermal slowdown", 1 << 7: "external power brake", 1 << 8: "display clocks", 1 << 9: "board limit", 1 << 10: "reliability limit",
	}
	for left := mask &^ 1; left != 0; left &= left - 1 {
		bit := uint64(1) << bits.TrailingZeros64(left)
		name := words[bit]
		if name == "" {
			name = fmt.Sprintf("reason %#x", bit)
		}
		names = append(names, name)
	}
	return names
}
