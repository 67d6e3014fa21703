package runner

import (
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nativebench/nativebench/internal/bench"
	"github.com/nativebench/nativebench/internal/results"
	"github.com/nativebench/nativebench/internal/telemetry"
)

// meter stands in for what tells a GPU's memory, which tests cannot have.
type meter struct {
	subject string
	samples atomic.Int64
	used    atomic.Int64 // bytes; 0: 3 GiB
}

func (m *meter) Subject() string { return m.subject }

func (m *meter) Period() time.Duration { return time.Millisecond }

func (m *meter) Sample(into map[string]float64) error {
	n := float64(m.samples.Add(1))
	used := float64(m.used.Load())
	if used == 0 {
		used = 3 << 30
	}
	into["used_bytes"], into["reads_total"], into["tree_bytes"], into["foreign_bytes"], into["foreign_processes"] = used, n, used-1<<30, 1<<30, 2
	return nil
}

func (m *meter) Missing() map[string]string      { return nil }
func (m *meter) CallSeconds() map[string]float64 { return map[string]float64{"memory": 1e-5} }

// board stands in for what tells its power: each of its readings but the first
// takes until memory was read five times more.
type board struct {
	beside *meter
	watts  float64
	n      atomic.Int64
}

func (b *board) Subject() string       { return b.beside.subject }
func (b *board) Period() time.Duration { return 2 * time.Millisecond }

func (b *board) Sample(into map[string]float64) error {
	if n := b.n.Add(1); n > 1 && n < 5 {
		for n := b.beside.samples.Load(); b.beside.samples.Load() < n+5; {
			time.Sleep(time.Millisecond)
		}
	}
	into["power_watts"] = b.watts
	into["clock_reasons"] = 4
	return nil
}

func (b *board) Missing() map[string]string {
	return map[string]string{"energy": "not available: no counter"}
}
func (b *board) CallSeconds() map[string]float64 { return map[string]float64{"power": 2e-2} }

// level reads the meter at a mark.
type level struct{ *meter }

func (l level) Sample(into map[string]float64) error {
	into["used_bytes"], into["tree_bytes"] = float64(l.used.Load()), float64(l.used.Load()-1<<30)
	return nil
}

func TestGPUsAreWatchedBesideTheCell(t *testing.T) {
	var mu sync.Mutex
	kept := map[string]int{}
	keep := func(s *results.Sample) error {
		mu.Lock()
		defer mu.Unlock()
		kept[s.Subject]++
		return nil
	}
	gpus, boards := []*meter{{subject: "gpu0"}, {subject: "gpu1"}}, []*board{}
	var watched []GPU
	for i, m := range gpus {
		boards = append(boards, &board{beside: m, watts: 100 * float64(i+1)})
		watched = append(watched, GPU{Probes: []GPUProbe{m, boards[i]}, Level: level{m}, Asked: telemetry.GPUAsked{Subject: m.subject, Engine: []string{"CUDA0", "CUDA1"}[i], Before: 1 << 30, Reasons: telemetry.ClockReasons}})
	}
	w := Watch("cell", func() []int { return nil }, nil, keep, watched...)
	for gpus[1].samples.Load() < 2 {
		time.Sleep(time.Millisecond)
	}
	for _, m := range gpus {
		m.used.Store(2 << 30)
	}
	w.Hold(telemetry.ContextMark)
	for _, m := range gpus {
		m.used.Store(5 << 29)
	}
	w.Hold(telemetry.LoadedMark)
	for _, m := range gpus {
		m.used.Store(3 << 30)
	}
	for n := gpus[1].samples.Load(); gpus[1].samples.Load() < n+2; {
		time.Sleep(time.Millisecond)
	}
	window := [2]int64{bench.Now(), 0}
	for boards[0].n.Load() < 5 || boards[1].n.Load() < 5 {
		time.Sleep(time.Millisecond)
	}
	window[1] = bench.Now()
	w.Mark()
	ev := results.CellEvent{WindowNS: window}
	if err := w.Stop(&ev, 4, false); err != nil {
		t.Fatal(err)
	}
	w.GPUs(&ev)
	uses := ev.GPU
	if len(uses) != 2 {
		t.Fatalf("%d GPUs, want 2", len(uses))
	}
	span := float64(window[1]-window[0]) / 1e9
	for i, u := range uses {
		if u.Device != gpus[i].subject || u.Peak != 3<<30 || u.OwnPeak != 2<<30 || u.OwnContext != 1<<30 || u.Loaded != 5<<29 || u.OwnLoaded != 3<<29 || u.Reads < 2 || u.Missing["energy"] != "not available: no counter" || u.CallSeconds["memory"] != 1e-5 || u.CallSeconds["power"] != 2e-2 {
			t.Errorf("GPU %d: %+v", i, u)
		}
		if want := boards[i].watts * span; u.EnergySource != "power" || u.EnergyJ < 0.999*want || u.EnergyJ > 1.001*want {
			t.Errorf("GPU %d used %v J (by %s), want %v", i, u.EnergyJ, u.EnergySource, want)
		}
	}
	all := strings.Join(ev.Warnings, "\n")
	if !slices.Contains(ev.Doubts, results.DoubtBusy) {
		t.Errorf("doubts %q of a GPU that others use", ev.Doubts)
	}
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
	var ev results.CellEvent
	if warnOfGPU(&ev, &u); len(ev.Warnings)+len(ev.Doubts) != 0 {
		t.Errorf("%q, %q", ev.Warnings, ev.Doubts)
	}
	u = results.GPUUse{Device: "gpu1", OwnPeak: -1, ForeignN: -1, Before: 5 << 30, PeriodSeconds: 0.02, GapSeconds: 0.3}
	warnOfGPU(&ev, &u)
	if w := ev.Warnings; len(w) != 2 || !slices.Equal(ev.Doubts, []results.Doubt{results.DoubtBusy}) || !strings.Contains(w[0], "5120 MiB of gpu1 were in use before") || !strings.Contains(w[1], "every 20.0 ms only (up to 300 ms apart)") {
		t.Errorf("%q", w)
	}
}
