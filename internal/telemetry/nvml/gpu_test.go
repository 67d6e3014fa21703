package nvml

import (
	"context"
	"maps"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/nativebench/nativebench/internal/telemetry"
)

// onGPU asks for the tests that need a real NVIDIA GPU.
const onGPU = "NATIVEBENCH_TEST_GPU"

// TestRealGPU looks at the GPUs of this machine as a run does, and logs what
// each call and the whole sampling cost.
func TestRealGPU(t *testing.T) {
	if os.Getenv(onGPU) == "" {
		t.Skipf("%s is not set: it needs a machine with an NVIDIA GPU", onGPU)
	}
	l, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	t.Logf("driver %+v", l.System())
	used, notes := l.Visible()
	t.Logf("CUDA programs find %d of %d devices; %q", len(used), len(l.Devices()), notes)
	if len(used) == 0 {
		t.Fatal("CUDA programs find no GPU")
	}
	for _, d := range used {
		t.Logf("%+v", d)
		if d.MemoryBytes <= 0 || d.Name == "" || d.UUID == "" {
			t.Errorf("%s is not described", d.Subject)
		}
		if n, err := l.Used(d); err != nil || n <= 0 || n > d.MemoryBytes {
			t.Errorf("%s has %d of %d bytes in use: %v", d.Subject, n, d.MemoryBytes, err)
		}
		c, err := l.card(d)
		if err != nil {
			t.Fatal(err)
		}
		logCalls(t, c)

		fast, slow, err := l.Probes(d, func() []int { return []int{os.Getpid()} })
		if err != nil {
			t.Fatal(err)
		}
		probes := []*Probe{fast}
		if slow != nil {
			t.Logf("%s: PCIe traffic is told by the slow call", d.Subject)
			sampled(t, slow)
			probes = append(probes, slow)
		}
		var log telemetry.Log
		var joules []float64
		began := time.Now()
		now := func() int64 { return time.Since(began).Nanoseconds() + 1 }
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		cost := telemetry.Sampler{Period: MemoryPeriod, Now: now, Probes: []telemetry.Probe{fast}}.Run(ctx, func(at int64, subject string, v map[string]float64) {
			if subject == telemetry.SamplerSubject {
				subject = telemetry.GPUSamplerSubject
			}
			log.Add(at, subject, v)
			if j, has := v["energy_joules_total"]; has {
				joules = append(joules, j)
			}
		})
		cancel()
		for _, p := range probes {
			t.Logf("%s: not available: %v", d.Subject, p.Missing())
		}
		before, _ := l.Used(d)
		use := log.GPU([2]int64{500e6, 2500e6}, telemetry.GPUAsked{
			Subject: d.Subject, Before: before, FirstRequest: 500e6, Missing: fast.Missing(), CallSeconds: fast.CallSeconds(), Reasons: telemetry.ClockReasons,
		})
		t.Logf("%s over 2 s: %+v", d.Subject, use)
		t.Logf("%s: %d rounds in 3 s, %d late, %.4f s of CPU", d.Subject, cost.Samples, cost.Late, cost.CPUSeconds)
		if use.Reads < 100 || use.Peak <= 0 {
			t.Errorf("%s: %d readings of memory in 2 s, peak %d", d.Subject, use.Reads, use.Peak)
		}
		if !slices.IsSorted(joules) {
			t.Errorf("%s: the energy counter falls: %v", d.Subject, joules)
		}
		if use.EnergyJ >= 0 && d.PowerLimitW > 0 && (use.MeanW <= 0 || use.MeanW > 1.5*d.PowerLimitW) {
			t.Errorf("%s: %.0f W on average; the limit is %.0f", d.Subject, use.MeanW, d.PowerLimitW)
		}
	}
}

// sampled is one sample with every value.
func sampled(t *testing.T, p *Probe) map[string]float64 {
	t.Helper()
	v := map[string]float64{}
	p.All()
	if err := p.Sample(v); err != nil {
		t.Fatal(err)
	}
	return v
}

// logCalls prints what each call answers and takes, the mean of several.
func logCalls(t *testing.T, c card) {
	calls := map[string]func() (any, error){
		"memory":      func() (any, error) { return c.memory() },
		"processes":   func() (any, error) { return c.processes() },
		"energy":      func() (any, error) { return c.energy() },
		"power":       func() (any, error) { w, moment, err := c.power(); return []any{w, moment}, err },
		"clocks":      func() (any, error) { sm, mem, err := c.clocks(); return []any{sm, mem}, err },
		"temperature": func() (any, error) { return c.temperature() },
		"slowdown":    func() (any, error) { return c.slowdown() },
		"reasons":     func() (any, error) { return c.reasons() },
		"utilization": func() (any, error) { gpu, mem, err := c.utilization(); return []any{gpu, mem}, err },
		"pcie":        func() (any, error) { tx, rx, bits, err := c.pcie(); return []any{tx, rx, bits}, err },
		"pcieRates":   func() (any, error) { tx, rx, err := c.pcieRates(); return []any{tx, rx}, err },
	}
	for _, name := range slices.Sorted(maps.Keys(calls)) {
		n := 200
		if name == "pcieRates" {
			n = 5
		}
		var longest time.Duration
		began := time.Now()
		var v any
		var err error
		for range n {
			at := time.Now()
			v, err = calls[name]()
			longest = max(longest, time.Since(at))
		}
		t.Logf("%-12s %8.1f µs a call, longest %8.1f µs: %v, %v", name, float64(time.Since(began).Microseconds())/float64(n), float64(longest.Nanoseconds())/1000, v, err)
	}
}
