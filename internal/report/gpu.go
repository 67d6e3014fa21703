package report

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/nativebench/nativebench/internal/measure"
	"github.com/nativebench/nativebench/internal/results"
)

// gpuOf adds up the GPUs that a cell's backend used.
func gpuOf(e *results.CellEvent) measure.GPU {
	g := measure.GPU{Missing: map[string]string{}}
	for i := range e.GPU {
		u := &e.GPU[i]
		if unused(u) { // what it does is none of the backend's
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
			g.Missing[c.Key] = "not measured: this backend used no GPU"
		}
	}
	return g
}

// unused tells whether a backend left a GPU alone: it held no memory there, or,
// where that is not known, no kernel ran.
func unused(u *results.GPUUse) bool {
	return u.OwnPeak == 0 || u.OwnPeak < 0 && u.Busy >= 0 && u.Busy < 0.005
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

// gpuMetric is one thing of a backend's GPUs under a load.
type gpuMetric struct {
	head  string
	value func(*seat) float64 // below 0: not known
	print func(float64) field
}

func gpuMetrics() []gpuMetric {
	column := func(key string) func(*seat) float64 {
		return func(s *seat) float64 {
			if e := s.summary.Get(key); e.Known() {
				return e.Median
			}
			return -1
		}
	}
	unit := func(u string, factor float64) func(float64) field {
		return func(v float64) field { return field{main: fixed(v*factor, decimals([]float64{v * factor})), aside: u} }
	}
	whole := func(u string, factor float64) func(float64) field {
		return func(v float64) field { return field{main: fixed(v*factor, 0), aside: u} }
	}
	return []gpuMetric{
		{"per request", column("energy_per_request"), unit("J", 1)},
		{"per token", column("energy_per_token"), unit("J", 1)},
		{"mean power", column("gpu_mean_power"), whole("W", 1)},
		{"peak power", column("gpu_peak_power"), whole("W", 1)},
		{"busy", column("gpu_busy"), whole("%", 100)},
		{"SM clock", column("gpu_sm_clock"), whole("MHz", 1e-6)},
		{"at most", column("gpu_temperature"), whole("°C", 1)},
		{"PCIe to it", traffic(func(u *results.GPUUse) float64 { return u.PCIeReceived }), unit("MB/s", 1e-6)},
		{"from it", traffic(func(u *results.GPUUse) float64 { return u.PCIeSent }), unit("MB/s", 1e-6)},
	}
}

// traffic is the mean of bytes per second over the repeats, all GPUs used added
// up.
func traffic(of func(*results.GPUUse) float64) func(*seat) float64 {
	return func(s *seat) float64 {
		total, n := 0.0, 0
		for _, c := range s.cells {
			if c.Event == nil || c.Event.WindowNS[1] <= c.Event.WindowNS[0] {
				continue
			}
			rate, used := 0.0, false
			for i := range c.Event.GPU {
				u := &c.Event.GPU[i]
				if unused(u) {
					continue
				}
				if v := of(u); v < 0 {
					return -1
				} else {
					rate, used = rate+v/(float64(c.Event.WindowNS[1]-c.Event.WindowNS[0])/1e9), true
				}
			}
			if used {
				total, n = total+rate, n+1
			}
		}
		if n == 0 {
			return -1
		}
		return total / float64(n)
	}
}

// gpus says what the GPUs did under each load, and what watching them cost.
func (v *runView) gpus() []section {
	metrics := gpuMetrics()
	g := grid{columns: []column{{}}}
	for _, m := range metrics {
		g.columns = append(g.columns, column{head: m.head})
	}
	n := &notebook{}
	last := ""
	for _, l := range v.loads {
		for _, s := range l.seats {
			if !s.onGPU() {
				continue
			}
			if name := fmt.Sprintf("%s, %s ×%d", v.loadName(l), l.Mode, l.Concurrency); name != last {
				last = name
				g.rows = append(g.rows, row{group: true, cells: []field{{main: name}}})
			}
			r := row{cells: []field{{main: s.backend, aside: n.refs(s.gpuNotes())}}}
			for _, m := range metrics {
				if x := m.value(s); x >= 0 {
					r.cells = append(r.cells, m.print(x))
				} else {
					r.cells = append(r.cells, field{main: "—", tone: faint})
				}
			}
			g.rows = append(g.rows, r)
		}
	}
	if len(g.rows) == 0 {
		return nil
	}
	s := section{
		title: "Power, energy and clocks of the GPU", rank: 1,
		lead: []string{
			"By the driver's books (NVML), medians over the repeats, of the GPUs on which the backend held memory, added up (busy, clock: mean; temperature: the hottest). Energy and power are the whole board's, idle power included; busy is the share of time in which any kernel ran.",
		},
		facts: v.samplingCost(), grids: []grid{g}, notes: n.texts,
	}
	if v.label != "" {
		s.title = v.label + " · " + s.title
	}
	return []section{s}
}

// onGPU tells whether any GPU was used, as far as is known.
func (s *seat) onGPU() bool {
	return slices.ContainsFunc(s.group.Cells, func(c measure.Cell) bool { return c.GPU.Devices > 0 })
}

// coarse is the share of a window from which on the grain of its energy is told.
const coarse = 0.02

// gpuNotes are what must stand beside a seat's GPU numbers.
func (s *seat) gpuNotes() (texts []string) {
	note := func(format string, args ...any) {
		if t := s.name() + ": " + fmt.Sprintf(format, args...); !slices.Contains(texts, t) {
			texts = append(texts, t)
		}
	}
	for _, r := range s.remarks {
		if strings.HasPrefix(r, "throttled GPU") || strings.HasPrefix(r, "shared GPU") || strings.HasPrefix(r, "hot GPU") {
			note("%s", r)
		}
	}
	grain, part := 0.0, ""
	for _, c := range s.cells {
		if c.Event == nil {
			continue
		}
		for i := range c.Event.GPU {
			u := &c.Event.GPU[i]
			if unused(u) {
				continue
			}
			for _, series := range slices.Sorted(maps.Keys(u.Missing)) {
				if series != "processes" { // that is told where the memory is
					note("%s %s", u.Device, u.Missing[series])
				}
			}
			if u.EnergySource == "power" {
				note("%s has no energy counter: its power is integrated, between samples about %.0f ms apart", u.Device, 1e3*u.EnergyStep)
			}
			if u.PowerMean {
				note("%s tells means over a second only: peak power is the largest of these", u.Device)
			}
			if strings.Contains(u.Device, ".") {
				part = u.Device
			}
			if window := float64(c.Event.WindowNS[1]-c.Event.WindowNS[0]) / 1e9; u.EnergyJ >= 0 && window > 0 {
				grain = max(grain, u.EnergyStep/window)
			}
		}
	}
	if part != "" {
		note("%s is a part of a GPU: energy, power, clocks and temperature are the whole board's, other parts' work included", part)
	}
	if grain > coarse {
		note("the energy moves in steps of up to %.0f %% of the window: that far may it be off", 100*grain)
	}
	return texts
}

// samplingCost is what watching the GPUs cost.
func (v *runView) samplingCost() []fact {
	var periods, gaps, cores []float64
	calls := map[string][]float64{}
	for _, c := range v.cells {
		if c.Event == nil {
			continue
		}
		for i := range c.Event.GPU {
			u := &c.Event.GPU[i]
			if u.PeriodSeconds > 0 {
				periods, gaps = append(periods, u.PeriodSeconds), append(gaps, u.GapSeconds)
			}
			if u.SamplerCores >= 0 {
				cores = append(cores, u.SamplerCores)
			}
			for series, s := range u.CallSeconds {
				calls[series] = append(calls[series], s)
			}
		}
	}
	var facts []fact
	if len(periods) > 0 {
		facts = append(facts, fact{name: "memory", text: fmt.Sprintf("read every %.1f ms on average in the slowest cell; two readings were %.0f ms apart at most", 1e3*highest(periods), 1e3*highest(gaps))})
	}
	var parts []string
	for _, series := range slices.Sorted(maps.Keys(calls)) {
		parts = append(parts, fmt.Sprintf("%s %.0f µs", series, 1e6*average(calls[series])))
	}
	text := "a call takes, on average: " + strings.Join(parts, ", ")
	if len(cores) > 0 {
		text = fmt.Sprintf("%.1f %% of one core on average, %.1f %% in the worst cell; ", 100*average(cores), 100*highest(cores)) + text
	}
	if len(parts) > 0 {
		facts = append(facts, fact{name: "sampling", text: text})
	}
	return facts
}
