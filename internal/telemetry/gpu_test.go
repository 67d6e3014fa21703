package telemetry

import (
	"maps"
	"math"
	"slices"
	"strings"
	"testing"
)

const (
	mib = 1 << 20
	sec = 1_000_000_000
)

// gpuLog is a GPU over 10 s: 500 MiB in use before, a context of 300 MiB from
// 0.5 s on, weights of 2000 MiB from 1 s on, caches of 700 MiB from 2 s on, and
// 100 MiB more from 5 to 6 s. The window is 4 to 8 s; the context is marked at
// 0.8 s, the end of the load at 3 s.
func gpuLog(change func(t int64, v map[string]float64)) (*Log, [2]int64) {
	l := &Log{}
	for t := int64(0); t <= 10*sec; t += sec / 100 {
		own := 0.0
		for _, step := range []struct {
			from, to int64
			mib      float64
		}{{sec / 2, 99 * sec, 300}, {sec, 99 * sec, 2000}, {2 * sec, 99 * sec, 700}, {5 * sec, 6 * sec, 100}} {
			if t >= step.from && t < step.to {
				own += step.mib * mib
			}
		}
		v := map[string]float64{
			"used_bytes": 500*mib + own, "reads_total": float64(t / (sec / 100)), "gap_seconds": 0.011,
			"tree_bytes": own, "tree_processes": min(own, 1), "foreign_bytes": 0, "foreign_processes": 0,
			"energy_joules_total": 5000 + 250*float64(t)/sec, "power_watts": 240, "sm_mhz": 1400, "memory_mhz": 1200, "celsius": 50, "clock_reasons": 0, "busy_ratio": 0.5,
			"pcie_sent_bytes_total": float64(t) / 1000, "pcie_received_bytes_total": float64(t) / 500,
		}
		switch {
		case t == 7*sec:
			v["power_watts"], v["celsius"], v["sm_mhz"] = 300, 61, 1100
		case t > 6*sec && t <= 7*sec:
			v["clock_reasons"] = 1 | 4
		}
		if change != nil {
			change(t, v)
		}
		l.Add(t, "gpu0", v)
		for at, mark := range map[int64]string{8 * sec / 10: ContextMark, 3 * sec: LoadedMark} {
			if used, has := v["used_bytes"]; t == at && has {
				read := map[string]float64{mark + "_used_bytes": used}
				if tree, has := v["tree_bytes"]; has {
					read[mark+"_tree_bytes"] = tree
				}
				l.Add(t+1, "gpu0", read)
			}
		}
		l.Add(t, GPUSamplerSubject, map[string]float64{"cpu_seconds": 0.01 * float64(t) / sec})
	}
	return l, [2]int64{4 * sec, 8 * sec}
}

func asked() GPUAsked {
	return GPUAsked{Subject: "gpu0", Engine: "CUDA0", Name: "A100", Before: 500 * mib, Reasons: ClockReasons}
}

func near(t *testing.T, what string, got, want float64) {
	t.Helper()
	if math.Abs(got-want) > 1e-6*math.Max(1, math.Abs(want)) {
		t.Errorf("%s is %v, want %v", what, got, want)
	}
}

func TestAGPUOverAWindow(t *testing.T) {
	l, window := gpuLog(nil)
	u := l.GPU(window, asked())
	if len(u.Missing) != 0 || u.Source != "processes" || u.SourceWhy != "" {
		t.Errorf("missing %v, source %q (%q)", u.Missing, u.Source, u.SourceWhy)
	}
	for _, c := range []struct {
		what      string
		got, want float64
	}{
		{"before", float64(u.Before), 500 * mib},
		{"loaded", float64(u.Loaded), 3500 * mib},
		{"peak", float64(u.Peak), 3600 * mib},
		{"released", float64(u.Released), -1},
		{"own context", float64(u.OwnContext), 300 * mib},
		{"own loaded", float64(u.OwnLoaded), 3000 * mib},
		{"own peak", float64(u.OwnPeak), 3100 * mib},
		{"foreign", float64(u.Foreign), 0},
		{"reads", float64(u.Reads), 400},
		{"period", u.PeriodSeconds, 0.01},
		{"gap", u.GapSeconds, 0.011},
		{"energy", u.EnergyJ, 1000},
		{"energy step", u.EnergyStep, 0.01},
		{"mean power", u.MeanW, 250},
		{"peak power", u.PeakW, 300},
		{"SM clock at least", u.SMMinMHz, 1100},
		{"memory clock", u.MemoryMHz, 1200},
		{"temperature", u.MaxCelsius, 61},
		{"busy", u.Busy, 0.5},
		{"sent", u.PCIeSent, 4e6},
		{"received", u.PCIeReceived, 8e6},
		{"sampler", u.SamplerCores, 0.01},
	} {
		near(t, c.what, c.got, c.want)
	}
	if want := map[string]float64{"power cap": 99.0 / 401}; len(u.Throttled) != 1 || math.Abs(u.Throttled["power cap"]-want["power cap"]) > 1e-9 {
		t.Errorf("throttled %v, want %v", u.Throttled, want)
	}
	if u.EnergySource != "counter" || u.PCIeSource != "counter" || u.PowerMean {
		t.Errorf("sources: %+v", u)
	}
}

func TestAGPUWhoseProcessesAreNotSeen(t *testing.T) {
	const peak, loaded, context = 3100 * mib, 3000 * mib, 300 * mib
	for _, tt := range []struct {
		name   string
		change func(t int64, v map[string]float64)
		ask    func(*GPUAsked)
		why    string
	}{
		{"none listed", func(_ int64, v map[string]float64) { v["tree_bytes"], v["tree_processes"] = 0, 0 }, nil, "lists no process of this backend"},
		{"not told", func(_ int64, v map[string]float64) {
			for _, name := range []string{"tree_bytes", "tree_processes", "foreign_bytes", "foreign_processes"} {
				delete(v, name)
			}
		}, func(a *GPUAsked) { a.Missing = map[string]string{"processes": "not available: this user may not ask"} }, "not available: this user may not ask"},
	} {
		l, window := gpuLog(tt.change)
		ask := asked()
		if tt.ask != nil {
			tt.ask(&ask)
		}
		u := l.GPU(window, ask)
		if u.Source != "device" || !strings.Contains(u.SourceWhy, tt.why) || !strings.HasPrefix(u.Missing["processes"], "not available: ") {
			t.Errorf("%s: source %q (%q), missing %v", tt.name, u.Source, u.SourceWhy, u.Missing)
		}
		if u.OwnPeak != peak || u.OwnLoaded != loaded || u.OwnContext != context || u.Foreign != -1 || u.ForeignN != -1 {
			t.Errorf("%s: own %d, %d, %d, foreign %d of %d", tt.name, u.OwnContext, u.OwnLoaded, u.OwnPeak, u.Foreign, u.ForeignN)
		}
		ask.Before = -1 // it ran already
		if u = l.GPU(window, ask); u.Source != "" || u.OwnPeak != -1 || u.SourceWhy == "" {
			t.Errorf("%s, and what was before is not known: source %q, peak %d", tt.name, u.Source, u.OwnPeak)
		}
	}
	// A backend that leaves the GPU alone has 0 bytes there, and that is known.
	l, window := gpuLog(func(_ int64, v map[string]float64) {
		v["tree_bytes"], v["tree_processes"], v["used_bytes"] = 0, 0, 500*mib
	})
	if u := l.GPU(window, asked()); u.Source != "processes" || u.OwnPeak != 0 || u.OwnContext != 0 {
		t.Errorf("a GPU that is not used: %+v", u)
	}
}

func TestEnergyIsIntegratedWhereThereIsNoCounter(t *testing.T) {
	l, window := gpuLog(func(at int64, v map[string]float64) {
		delete(v, "energy_joules_total")
		delete(v, "power_watts")
		v["power_mean_watts"] = 100 + 10*float64(at)/sec
	})
	ask := asked()
	ask.Missing = map[string]string{"energy": "not available: the energy counter: this GPU, or its mode, does not tell"}
	u := l.GPU(window, ask)
	near(t, "energy", u.EnergyJ, 4*160) // 140 W to 180 W over 4 s
	near(t, "mean power", u.MeanW, 160)
	near(t, "peak power", u.PeakW, 180)
	if u.EnergySource != "power" || !u.PowerMean || u.Missing["energy"] != ask.Missing["energy"] || len(u.Missing) != 1 {
		t.Errorf("source %q, means %v, missing %v", u.EnergySource, u.PowerMean, u.Missing)
	}
}

func TestASeriesThatEndsInTheWindowIsNotKnown(t *testing.T) {
	l, window := gpuLog(func(at int64, v map[string]float64) {
		if at > 6*sec {
			clear(v)
		}
	})
	ask := asked()
	ask.Missing = map[string]string{"energy": "not available: the GPU is lost"}
	u := l.GPU(window, ask)
	if u.EnergyJ != -1 || u.MeanW != -1 || u.Peak != -1 || u.OwnPeak != -1 || u.SMMHz != -1 || u.Throttled != nil {
		t.Errorf("half a window has numbers: %+v", u)
	}
	if u.Missing["energy"] != "not available: the GPU is lost (from 2.0 s before the end of the window on)" || u.Missing["clocks"] == "" {
		t.Errorf("missing: %v", u.Missing)
	}
	if want := []string{"clocks", "energy", "memory", "pcie", "power", "processes", "reasons", "temperature", "utilization"}; !slices.Equal(slices.Sorted(maps.Keys(u.Missing)), want) {
		t.Errorf("missing are %v, want %v", slices.Sorted(maps.Keys(u.Missing)), want)
	}
}

func TestClockReasons(t *testing.T) {
	for mask, want := range map[uint64][]string{
		0: nil, 1: nil, 4: {"power cap"}, 1<<5 | 1<<6 | 1: {"software thermal slowdown", "hardware thermal slowdown"}, 1 << 40: {"reason 0x10000000000"},
	} {
		if got := ClockReasons(mask); !slices.Equal(got, want) {
			t.Errorf("%#x is %q, want %q", mask, got, want)
		}
	}
}

// A server's process is not held at a mark of its context, and what was not read
// at a mark is not known: no older sample stands for it.
func TestWhatWasNotReadAtAMarkIsNotKnown(t *testing.T) {
	whole, window := gpuLog(nil)
	l := &Log{}
	for key, s := range whole.series {
		if !strings.HasPrefix(key.name, ContextMark) && !strings.HasPrefix(key.name, LoadedMark) {
			for _, p := range s {
				l.Add(p.t, key.subject, map[string]float64{key.name: p.v})
			}
		}
	}
	for _, source := range []string{"processes", "device"} {
		if source == "device" {
			delete(l.series, seriesKey{"gpu0", "tree_bytes"})
		}
		u := l.GPU(window, asked())
		if u.Source != source || u.OwnContext != -1 || u.OwnLoaded != -1 || u.Loaded != -1 || u.OwnPeak != 3100*mib {
			t.Errorf("%s: %+v", source, u)
		}
	}
}
