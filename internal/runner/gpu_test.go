package runner

import (
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nativebench/nativebench/internal/bench"
	"github.com/nativebench/nativebench/internal/results"
	"github.com/nativebench/nativebench/internal/telemetry"
)

// meter stands in for a GPU, which tests cannot have.
type meter struct {
	subject string
	samples atomic.Int64
	watts   float64
}

func (m *meter) Subject() string { return m.subject }

func (m *meter) Sample(into map[string]float64) error {
	n := float64(m.samples.Add(1))
	into["used_bytes"], into["reads_total"], into["tree_bytes"], into["foreign_bytes"], into["foreign_processes"] = 3<<30, n, 2<<30, 1<<30, 2
	into["power_watts"] = m.watts
	into["clock_reasons"] = 4
	return nil
}

func (m *meter) Missing() map[string]string {
	return map[string]string{"energy": "not available: no counter"}
}
func (m *meter) CallSeconds() map[string]float64 { return map[string]float64{"memory": 1e-5} }

func TestGPUsAreWatchedBesideTheCell(t *testing.T) {
	var mu sync.Mutex
	kept := map[string]int{}
	keep := func(s *results.Sample) error {
		mu.Lock()
		defer mu.Unlock()
		kept[s.Subject]++
		return nil
	}
	gpus := []*meter{{subject: "gpu0", watts: 100}, {subject: "gpu1", watts: 200}}
	var watched []GPU
	for i, m := range gpus {
		watched = append(watched, GPU{Fast: m, Asked: telemetry.GPUAsked{Subject: m.subject, Engine: []string{"CUDA0", "CUDA1"}[i], Before: 1 << 30, Reasons: telemetry.ClockReasons}})
	}
	w := Watch("cell", func() []int { return nil }, nil, keep, watched...)
	first := bench.Now()
	for gpus[1].samples.Load() < 2 {
		time.Sleep(time.Millisecond)
	}
	window := [2]int64{bench.Now(), 0}
	for n := gpus[0].samples.Load(); gpus[0].samples.Load() < n+3; {
		time.Sleep(time.Millisecond)
	}
	window[1] = bench.Now()
	w.Mark()
	if _, _, err := w.Stop(window, 4, false); err != nil {
		t.Fatal(err)
	}
	uses, warnings := w.GPUs(window, first, nil)
	if len(uses) != 2 {
		t.Fatalf("%d GPUs, want 2", len(uses))
	}
	span := float64(window[1]-window[0]) / 1e9
	for i, u := range uses {
		if u.Device != gpus[i].subject || u.Peak != 3<<30 || u.OwnPeak != 2<<30 || u.Reads < 2 || u.Missing["energy"] != "not available: no counter" || u.CallSeconds["memory"] != 1e-5 {
			t.Errorf("GPU %d: %+v", i, u)
		}
		if want := gpus[i].watts * span; u.EnergySource != "power" || u.EnergyJ < 0.999*want || u.EnergyJ > 1.001*want {
			t.Errorf("GPU %d used %v J (by %s), want %v", i, u.EnergyJ, u.EnergySource, want)
		}
	}
	all := strings.Join(warnings, "\n")
	for _, want := range []string{
		"throttled GPU: gpu0's clocks were held down: power cap in 100 % of the samples",
		"shared GPU: other processes (2 at once) held up to 1024 MiB of gpu1 meanwhile",
	} {
		if !strings.Contains(all, want) {
			t.Errorf("no warning %q in:\n%s", want, all)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if kept["gpu0"] < 5 || kept["gpu1"] < 5 || kept["gpu_sampler"] < 1 || kept["gpu_sampler"] > 3 {
		t.Errorf("samples kept: %v", kept)
	}
}

func TestAGPUThatIsNotUsedWarnsOfNothing(t *testing.T) {
	u := results.GPUUse{Device: "gpu1", OwnPeak: 0, ForeignN: 3, Throttled: map[string]float64{"power cap": 1}}
	if w := gpuWarnings(&u); len(w) != 0 {
		t.Errorf("%q", w)
	}
	u = results.GPUUse{Device: "gpu1", OwnPeak: -1, ForeignN: -1, Before: 5 << 30, PeriodSeconds: 0.02, GapSeconds: 0.3}
	if w := gpuWarnings(&u); len(w) != 2 || !strings.Contains(w[0], "5120 MiB of gpu1 were in use before") || !strings.Contains(w[1], "every 20.0 ms only (up to 300 ms apart)") {
		t.Errorf("%q", w)
	}
}
