package report

import (
	"github.com/nativebench/nativebench/internal/measure"
	"github.com/nativebench/nativebench/internal/results"
)

// gpuOf adds up the GPUs that a cell's backend used.
func gpuOf(e *results.CellEvent) measure.GPU {
	g := measure.GPU{Missing: map[string]string{}}
	for i := range e.GPU {
		u := &e.GPU[i]
		if u.OwnPeak == 0 { // what it does is none of the backend's
			continue
		}
		if g.Devices++; g.Devices == 1 {
			g.PeakBytes, g.EnergyJ, g.MeanW, g.PeakW, g.Busy, g.SMMHz, g.MaxCelsius = u.OwnPeak, u.EnergyJ, u.MeanW, u.PeakW, u.Busy, u.SMMHz, u.MaxCelsius
		} else {
			g.PeakBytes = int64(sum(float64(g.PeakBytes), float64(u.OwnPeak)))
			g.EnergyJ, g.MeanW, g.PeakW = sum(g.EnergyJ, u.EnergyJ), sum(g.MeanW, u.MeanW), sum(g.PeakW, u.PeakW)
			g.Busy, g.SMMHz, g.MaxCelsius = sum(g.Busy, u.Busy), sum(g.SMMHz, u.SMMHz), hotter(g.MaxCelsius, u.MaxCelsius)
		}
		for _, of := range []struct {
			series  string
			columns []string
			without bool
		}{
			{"memory", []string{"gpu_peak_memory"}, u.OwnPeak < 0},
			{"energy", []string{"energy_per_request", "energy_per_token", "gpu_mean_power"}, u.EnergyJ < 0},
			{"power", []string{"gpu_peak_power"}, u.PeakW < 0},
			{"utilization", []string{"gpu_busy"}, u.Busy < 0},
			{"clocks", []string{"gpu_sm_clock"}, u.SMMHz < 0},
			{"temperature", []string{"gpu_temperature"}, u.MaxCelsius < 0},
		} {
			why := u.Missing[of.series]
			if why == "" && of.series == "memory" {
				why = u.Missing["processes"]
			}
			for _, key := range of.columns {
				if of.without && why != "" {
					g.Missing[key] = u.Device + ": " + why
				}
			}
		}
	}
	if g.Devices > 1 { // means
		g.Busy, g.SMMHz = mean(g.Busy, g.Devices), mean(g.SMMHz, g.Devices)
	}
	if len(e.GPU) > 0 && g.Devices == 0 {
		g.Missing = map[string]string{}
		for _, c := range measure.Columns() {
			g.Missing[c.Key] = "not measured: this backend held no memory on a GPU"
		}
	}
	return g
}

// sum adds two values of which either may be -1, not known.
func sum(a, b float64) float64 {
	if a < 0 || b < 0 {
		return -1
	}
	return a + b
}

func hotter(a, b float64) float64 {
	if a < 0 || b < 0 {
		return -1
	}
	return max(a, b)
}

func mean(total float64, n int) float64 {
	if total < 0 {
		return -1
	}
	return total / float64(n)
}
