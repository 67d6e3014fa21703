package timeline

import (
	"regexp"
	"slices"
	"strings"

	"github.com/nativebench/nativebench/internal/results"
)

// series is how one value of the telemetry is shown.
type series struct {
	name, unit string
	factor     float64 // from the telemetry's unit to this one
	// rate: the value is a counter, of which the rise per second is shown.
	rate bool
}

const mebi = 1.0 / (1 << 20)

// shown are the values by subject and key; those of all GPUs under gpu. A level
// without an entry is shown under its own name, a counter is not.
func shown() map[string]map[string]series {
	return map[string]map[string]series{
		"gpu": {
			"used_bytes":                     {"memory used", "MiB", mebi, false},
			"tree_bytes":                     {"memory of the backend", "MiB", mebi, false},
			"foreign_bytes":                  {"memory of other processes", "MiB", mebi, false},
			"context_used_bytes":             {"memory used, context only", "MiB", mebi, false},
			"context_tree_bytes":             {"memory of the backend, context only", "MiB", mebi, false},
			"loaded_used_bytes":              {"memory used, loaded", "MiB", mebi, false},
			"loaded_tree_bytes":              {"memory of the backend, loaded", "MiB", mebi, false},
			"tree_processes":                 {"processes of the backend", "count", 1, false},
			"foreign_processes":              {"other processes", "count", 1, false},
			"reads_total":                    {"readings of the memory", "1/s", 1, true},
			"gap_seconds":                    {"longest time between readings of the memory", "ms", 1e3, false},
			"energy_joules_total":            {"power by the energy counter", "W", 1, true},
			"power_watts":                    {"power", "W", 1, false},
			"power_mean_watts":               {"power, mean of up to a second", "W", 1, false},
			"sm_mhz":                         {"SM clock", "MHz", 1, false},
			"memory_mhz":                     {"memory clock", "MHz", 1, false},
			"celsius":                        {"temperature", "°C", 1, false},
			"clock_reasons":                  {"clock reasons", "NVML mask", 1, false},
			"busy_ratio":                     {"busy", "%", 100, false},
			"memory_busy_ratio":              {"memory busy", "%", 100, false},
			"pcie_sent_bytes_total":          {"PCIe sent", "MiB/s", mebi, true},
			"pcie_received_bytes_total":      {"PCIe received", "MiB/s", mebi, true},
			"pcie_sent_bytes_per_second":     {"PCIe sent", "MiB/s", mebi, false},
			"pcie_received_bytes_per_second": {"PCIe received", "MiB/s", mebi, false},
		},
		"backend": {
			"rss_bytes":   {"resident memory (RSS)", "MiB", mebi, false},
			"pss_bytes":   {"resident memory, shared pages divided (PSS)", "MiB", mebi, false},
			"cpu_seconds": {"CPU of the backend", "cores", 1, true},
			"threads":     {"threads", "count", 1, false},
			"processes":   {"processes", "count", 1, false},
		},
		"server": {
			"requests_running":           {"server: requests running", "count", 1, false},
			"requests_waiting":           {"server: requests waiting", "count", 1, false},
			"kv_cache_used_ratio":        {"server: KV cache used", "%", 100, false},
			"kv_pool_tokens":             {"server: KV cache room", "tokens", 1, false},
			"kv_held_tokens":             {"server: KV cache held", "tokens", 1, false},
			"prefix_cache_queries_total": {"server: prefix cache asked", "tokens/s", 1, true},
			"prefix_cache_hits_total":    {"server: prefix cache hit", "tokens/s", 1, true},
			"preemptions_total":          {"server: preemptions", "1/s", 1, true},
			"prompt_tokens_total":        {"server: prompt tokens", "tokens/s", 1, true},
			"output_tokens_total":        {"server: output tokens", "tokens/s", 1, true},
			"scrape_seconds":             {"server: time of one scrape", "ms", 1e3, false},
		},
		"host": {
			"work_seconds":           {"CPU of everything", "cores", 1, true},
			"other_seconds":          {"CPU of other work", "cores", 1, true},
			"irq_seconds":            {"CPU of interrupts", "cores", 1, true},
			"steal_seconds":          {"CPU taken by the hypervisor", "cores", 1, true},
			"throttle_events":        {"thermal throttling", "events/s", 1, true},
			"cpu_mhz":                {"CPU clock", "MHz", 1, false},
			"memory_available_bytes": {"memory available", "MiB", mebi, false},
		},
		"sampler":     {"cpu_seconds": {"CPU of the sampling", "cores", 1, true}},
		"gpu_sampler": {"cpu_seconds": {"CPU of the GPU sampling", "cores", 1, true}},
	}
}

// counterName tells values whose differences alone mean something, by the rule
// of docs/run-directory.md.
var counterName = regexp.MustCompile(`_(seconds|events|total|sum|count)$`)

var gpuSubject = regexp.MustCompile(`^gpu[0-9][0-9.]*$`)

// rateSpan is the least time that a rate is taken over, in ns: the CPU time of
// processes comes in steps of 10 ms, the GPU's energy of 20 to 100 ms.
const rateSpan = 500_000_000

type seriesKey struct {
	subject, key string
}

// seen is the last value of a series that was written, or that a rate counts from.
type seen struct {
	of    *attempt
	t     int64
	value float64
}

// telemetry writes the samples as counters: those of GPUs and the host under
// processes of their own, which go on from cell to cell, those of backends and
// servers under their cell. A level is written when it changes; a rate where
// the time begins that it is the mean of.
func (tl *timeline) telemetry() error {
	table := shown()
	last := map[seriesKey]seen{}
	place := placer{tl: tl, at: map[string]*placed{}}
	for s, err := range tl.run.Telemetry() {
		if err != nil {
			if lost := tl.lost(err); lost != nil {
				return lost
			}
			continue
		}
		a := place.sample(&s)
		if a == nil {
			tl.strange++
			continue
		}
		t, ok := a.at(s.T)
		if !ok {
			tl.before++
			continue
		}
		kind := s.Subject
		if gpuSubject.MatchString(kind) {
			kind = "gpu"
		}
		pid := tl.process(a, kind, s.Subject)
		a.sampled = max(a.sampled, s.T)
		for _, key := range sortedKeys(s.Values) {
			value := s.Values[key]
			how, known := table[kind][key]
			if !known {
				if counterName.MatchString(key) {
					continue
				}
				how = series{key, "value", 1, false}
			}
			k := seriesKey{s.Subject, key}
			was, begun := last[k]
			begun = begun && was.of == a
			switch {
			case how.rate && begun && t > was.t && value >= was.value && t-was.t < rateSpan:
				continue // goes on
			case how.rate && begun && t > was.t && value >= was.value:
				tl.sample(a, pid, was.t, how, (value-was.value)/(float64(t-was.t)/1e9))
			case !how.rate && begun && was.value == value:
				continue
			case !how.rate:
				tl.sample(a, pid, t, how, value)
			}
			last[k] = seen{of: a, t: t, value: value}
		}
		if tl.w.err != nil {
			return tl.w.err
		}
	}
	return tl.w.err
}

func (tl *timeline) sample(a *attempt, pid int, t int64, how series, value float64) {
	tl.w.counter(pid, t, how.name, how.unit, value*how.factor)
	tl.sum.Samples++
	if c := (openCounter{pid, how.name, how.unit}); !slices.Contains(a.open, c) {
		a.open = append(a.open, c)
	}
}

func sortedKeys(m map[string]float64) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// openCounter is a counter to be ended.
type openCounter struct {
	pid        int
	name, unit string
}

// endCounters ends the counters of each attempt, those of GPUs and the host too:
// until the next one nothing is measured, but a viewer would go on showing the
// last value.
func (tl *timeline) endCounters() {
	for _, a := range tl.attempts {
		if t, ok := a.at(max(a.end, a.sampled)); ok {
			for _, c := range a.open {
				tl.w.endCounter(c.pid, t, c.name, c.unit)
			}
		}
	}
}

// process is the process that a subject's counters belong to.
func (tl *timeline) process(a *attempt, kind, subject string) int {
	switch kind {
	case "gpu":
		pid := tl.gpus[subject]
		if pid == 0 {
			pid = gpuPid + len(tl.gpus)
			tl.gpus[subject] = pid
			name := "GPU " + strings.TrimPrefix(subject, "gpu")
			for _, g := range tl.run.Manifest.Environment.GPUs {
				if g.Device == subject {
					name += ": " + g.Name
				}
			}
			tl.w.name(pid, 0, name)
		}
		return pid
	case "backend", "server":
		return a.pid
	}
	if !tl.host {
		tl.host = true
		tl.w.name(hostPid, 0, "host")
	}
	return hostPid
}

// placer finds the attempt that a sample is of. Samples name their cell only,
// but were written in order.
type placer struct {
	tl   *timeline
	at   map[string]*placed
	last *attempt
}

// placed is how far the samples of one cell are.
type placed struct {
	i int   // of its attempts
	t int64 // the last stamp
}

// sample returns the attempt, nil for a cell that is not known. One without a
// cell is of the time of the sample before.
func (p *placer) sample(s *results.Sample) *attempt {
	if s.Cell == "" {
		return p.last
	}
	list := p.tl.ofCell[s.Cell]
	if len(list) == 0 {
		return nil
	}
	at := p.at[s.Cell]
	if at == nil {
		at = &placed{t: s.T}
		p.at[s.Cell] = at
	}
	// The next attempt's samples come after its begin, and, if the machine was
	// started anew, with a clock that fell or after the end of the one before.
	const jitter = 1_000_000_000 // samplers of one cell write side by side
	for at.i+1 < len(list) {
		now, next := list[at.i], list[at.i+1]
		same := sameClock(now.clock, next.clock)
		if !(same && s.T >= next.start || !same && (s.T < at.t-jitter || s.T > now.end+jitter && s.T >= next.start-jitter)) {
			break
		}
		at.i++
		at.t = s.T
	}
	at.t = max(at.t, s.T)
	p.last = list[at.i]
	return p.last
}
