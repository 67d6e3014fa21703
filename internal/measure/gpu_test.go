package measure

import (
	"math"
	"strings"
	"testing"

	"github.com/nativebench/nativebench/internal/bench"
)

// gpuCell is a cell of four answers of ten tokens, and one that failed.
func gpuCell(g GPU, missing string) Cell {
	c := Cell{GPU: g, GPUMissing: missing}
	for i := range 5 {
		tr := bench.NewTrace(10)
		tr.Start, tr.End, tr.OutputTokens, tr.Counted = int64(i+1)*1000, int64(i+1)*1000+500, 10, bench.CountEngine
		r := Request{Trace: tr, Index: i}
		if i == 4 {
			r.Class, tr.OutputTokens = bench.Reset, 3
		}
		c.Requests = append(c.Requests, r)
	}
	return c
}

func TestGPUColumns(t *testing.T) {
	known := GPU{Devices: 1, PeakBytes: 5 << 30, EnergyJ: 80, MeanW: 40, PeakW: 55, Busy: 0.9, SMMHz: 1410, MaxCelsius: 61}
	denied := known
	denied.EnergyJ, denied.MeanW = -1, -1
	denied.Missing = map[string]string{"energy_per_token": "gpu0: not available: this user may not ask"}
	for _, tt := range []struct {
		name string
		cell Cell
		want map[string]float64 // NaN: not known
		why  map[string]string
	}{
		{"all is known", gpuCell(known, ""), map[string]float64{
			"gpu_peak_memory": 5 << 30, "energy_per_request": 20, "energy_per_token": 2, "gpu_mean_power": 40, "gpu_peak_power": 55, "gpu_busy": 0.9, "gpu_sm_clock": 1410e6, "gpu_temperature": 61,
		}, nil},
		{"no energy", gpuCell(denied, ""), map[string]float64{"energy_per_token": math.NaN(), "energy_per_request": math.NaN(), "gpu_peak_power": 55}, map[string]string{"energy_per_token": "this user may not ask", "energy_per_request": "not known"}},
		{"no GPU", gpuCell(GPU{}, "not available: built without cgo"), map[string]float64{"gpu_peak_memory": math.NaN(), "gpu_temperature": math.NaN()}, map[string]string{"gpu_peak_memory": "not available: built without cgo", "gpu_temperature": "not available: built without cgo"}},
	} {
		s := Summarize(Group{Mode: Stream, Concurrency: 1, Cells: []Cell{tt.cell}})
		for key, want := range tt.want {
			e := s.Get(key)
			if math.IsNaN(want) {
				if e.Known() || !strings.Contains(e.Missing, tt.why[key]) {
					t.Errorf("%s: %s is %v (%q), want it missing: %q", tt.name, key, e.Median, e.Missing, tt.why[key])
				}
			} else if !e.Known() || math.Abs(e.Median-want) > 1e-9*want {
				t.Errorf("%s: %s is %v (%q), want %v", tt.name, key, e.Median, e.Missing, want)
			}
		}
	}
	// One token count that is not known leaves energy per token without a meaning.
	c := gpuCell(known, "")
	c.Requests[1].Counted = bench.CountNone
	if e := Summarize(Group{Mode: Stream, Concurrency: 1, Cells: []Cell{c}}).Get("energy_per_token"); e.Known() {
		t.Errorf("energy per token is %v though tokens were not counted", e.Median)
	}
}
