//go:build cgo

package nvml

import (
	"context"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nativebench/nativebench/internal/telemetry"
	"github.com/nativebench/nativebench/internal/telemetry/nvml/nvmltest"
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
	lookAtGPUs(t, l, 3*time.Second, 100)
}

// On an idle card 0 bytes are in use, and that is no fault.
func TestAnIdleCardIsNoFault(t *testing.T) {
	t.Setenv(visibleVar, "0")
	m, states := nvmltest.Machine(1)
	states[0].Used = 0
	lookAtGPUs(t, opened(t, m), 300*time.Millisecond, 1)
}

// lookAtGPUs samples each GPU for so long, of which the middle two thirds must have
// at least so many readings of memory.
func lookAtGPUs(t *testing.T, l *Library, long time.Duration, least int) {
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
		if n, err := l.Used(d); err != nil || n < 0 || n > d.MemoryBytes { // 0 while nothing uses it
			t.Errorf("%s has %d of %d bytes in use: %v", d.Subject, n, d.MemoryBytes, err)
		}
		c, err := l.card(d)
		if err != nil {
			t.Fatal(err)
		}
		logCalls(t, c)

		probes := probesOf(t, l, d, func() []int { return []int{os.Getpid()} })
		if len(probes) > 2 {
			t.Logf("%s: PCIe traffic is told by the slow call", d.Subject)
			sampled(t, probes[2])
		}
		var mu sync.Mutex // of the log and of joules
		var log telemetry.Log
		var joules []float64
		began := time.Now()
		now := func() int64 { return time.Since(began).Nanoseconds() + 1 }
		ctx, cancel := context.WithTimeout(t.Context(), long)
		var cost [2]telemetry.Cost
		var ended sync.WaitGroup
		for i, p := range probes[:2] {
			ended.Go(func() {
				cost[i] = telemetry.Sampler{Period: p.Period(), Now: now, Probes: []telemetry.Probe{p}}.Run(ctx, func(at int64, subject string, v map[string]float64) {
					mu.Lock()
					defer mu.Unlock()
					if subject == telemetry.SamplerSubject {
						return // of two goroutines: see cost
					}
					log.Add(at, subject, v)
					if j, has := v["energy_joules_total"]; has {
						joules = append(joules, j)
					}
				})
			})
		}
		ended.Wait()
		cancel()
		t.Logf("%s: not available: %v", d.Subject, missing(probes))
		before, _ := l.Used(d)
		calls := probes[0].CallSeconds()
		maps.Copy(calls, probes[1].CallSeconds())
		use := log.GPU([2]int64{long.Nanoseconds() / 6, 5 * long.Nanoseconds() / 6}, telemetry.GPUAsked{
			Subject: d.Subject, Before: before, Missing: missing(probes), CallSeconds: calls, Reasons: telemetry.ClockReasons,
		})
		t.Logf("%s over %v: %+v", d.Subject, 2*long/3, use)
		t.Logf("%s: %d rounds in %.0f s, %d late, %.4f s of CPU; slow calls in %d rounds of their own, %.4f s of CPU", d.Subject, cost[0].Samples, long.Seconds(), cost[0].Late, cost[0].CPUSeconds, cost[1].Samples, cost[1].CPUSeconds)
		if use.Reads < least || use.Peak < 0 || use.Peak > d.MemoryBytes {
			t.Errorf("%s: %d readings of memory in %v, peak %d of %d bytes", d.Subject, use.Reads, 2*long/3, use.Peak, d.MemoryBytes)
		}
		if !slices.IsSorted(joules) {
			t.Errorf("%s: the energy counter falls: %v", d.Subject, joules)
		}
		if use.EnergyJ >= 0 && d.PowerLimitW > 0 && (use.MeanW <= 0 || use.MeanW > 1.5*d.PowerLimitW) {
			t.Errorf("%s: %.0f W on average; the limit is %.0f", d.Subject, use.MeanW, d.PowerLimitW)
		}
	}
	if program := strings.Fields(os.Getenv(cudaProgram)); len(program) > 0 {
		seesMemory(t, l, used[0], program)
	} else {
		t.Logf("%s is not set: that readings see what a CUDA program allocates is not checked", cudaProgram)
	}
}

// cudaProgram is a command that takes memory on the first GPU.
const cudaProgram = "NATIVEBENCH_TEST_CUDA_PROGRAM"

// seesMemory checks that readings rise while a program holds memory.
func seesMemory(t *testing.T, l *Library, d Device, program []string) {
	idle, err := l.Used(d)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program[0], program[1:]...)
	if err := cmd.Start(); err != nil {
		t.Fatalf("%s: %v", cudaProgram, err)
	}
	level, err := l.Level(d, func() []int { return []int{cmd.Process.Pid} })
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	var used, tree float64
	for running := true; running; {
		select {
		case err := <-ended:
			if running = false; err != nil {
				t.Errorf("%v: %v", program, err)
			}
		case <-time.After(MemoryPeriod):
			v := map[string]float64{}
			if err := level.Sample(v); err != nil {
				t.Fatal(err)
			}
			used, tree = max(used, v["used_bytes"]), max(tree, v["tree_bytes"])
		}
	}
	t.Logf("%s: %d MiB in use when idle, at most %.0f while %s ran, %.0f of them under its process", d.Subject, idle>>20, used/(1<<20), program[0], tree/(1<<20))
	if used <= float64(idle) {
		t.Errorf("%s: the readings do not see what %v allocates", d.Subject, program)
	}
}

// sampled is one sample of each probe with every value.
func sampled(t *testing.T, probes ...*Probe) map[string]float64 {
	t.Helper()
	all := map[string]float64{}
	for _, p := range probes {
		v := map[string]float64{}
		p.All()
		if err := p.Sample(v); err != nil {
			t.Fatal(err)
		}
		maps.Copy(all, v)
	}
	return all
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
