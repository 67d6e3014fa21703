package runner

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nativebench/nativebench/internal/bench"
	"github.com/nativebench/nativebench/internal/results"
	"github.com/nativebench/nativebench/internal/telemetry"
)

// GPU is a device to be watched while a cell runs.
type GPU struct {
	Probes []GPUProbe
	Level  telemetry.Probe // reads used_bytes and tree_bytes at one moment; nil: they are not
	// Asked is what is known of it before sampling: all but Missing and
	// CallSeconds.
	Asked telemetry.GPUAsked
}

// GPUProbe is a probe that accounts for each of its series when sampling is
// over.
type GPUProbe interface {
	telemetry.Probe
	Period() time.Duration           // how often it is to be sampled
	Missing() map[string]string      // why a series gave nothing
	CallSeconds() map[string]float64 // mean time of a call
}

// gpuLatePeriod is how often memory must be read at least.
const gpuLatePeriod = 10 * time.Millisecond

// gpuWatch samples the GPUs, all probes of one period in a goroutine of their own:
// a call that takes long delays only its like.
type gpuWatch struct {
	cell  string
	gpus  []GPU
	keep  func(*results.Sample) error
	marks []chan struct{} // one for each goroutine
	ended sync.WaitGroup

	mu      sync.Mutex // the rest has several writers
	log     telemetry.Log
	cost    map[time.Duration]float64 // CPU seconds of each goroutine, by its period
	said    int64                     // when the cost was last kept
	keepErr error
	errors  []string
}

func watchGPUs(ctx context.Context, cell string, gpus []GPU, keep func(*results.Sample) error) *gpuWatch {
	w := &gpuWatch{cell: cell, gpus: gpus, keep: keep, cost: map[time.Duration]float64{}}
	by := map[time.Duration][]telemetry.Probe{}
	for _, g := range gpus {
		for _, p := range g.Probes {
			by[p.Period()] = append(by[p.Period()], p)
		}
	}
	for period, probes := range by {
		mark := make(chan struct{}, 1)
		w.marks = append(w.marks, mark)
		w.ended.Go(func() {
			cost := telemetry.Sampler{Now: bench.Now, Mark: mark, Period: period, Probes: probes}.Run(ctx, func(t int64, subject string, values map[string]float64) {
				w.mu.Lock()
				defer w.mu.Unlock()
				if subject == telemetry.SamplerSubject {
					w.cost[period] = values["cpu_seconds"]
					w.addCost(t)
					return
				}
				w.add(t, subject, values)
			})
			w.mu.Lock()
			defer w.mu.Unlock()
			w.errors = append(w.errors, cost.Errors...)
		})
	}
	return w
}

// add keeps a sample; mu is held.
func (w *gpuWatch) add(t int64, subject string, values map[string]float64) {
	w.log.Add(t, subject, values)
	w.write(t, subject, values)
}

func (w *gpuWatch) write(t int64, subject string, values map[string]float64) {
	if w.keepErr == nil {
		w.keepErr = w.keep(&results.Sample{T: t, Cell: w.cell, Subject: subject, Values: values})
	}
}

// addCost keeps what all goroutines have cost so far; mu is held.
func (w *gpuWatch) addCost(t int64) {
	sum := 0.0
	for _, seconds := range w.cost {
		sum += seconds
	}
	values := map[string]float64{"cpu_seconds": sum}
	w.log.Add(t, telemetry.GPUSamplerSubject, values)
	if t-w.said >= time.Second.Nanoseconds() { // that is enough for a reader
		w.said = t
		w.write(t, telemetry.GPUSamplerSubject, values)
	}
}

// hold reads the levels of all GPUs, under the mark's name.
func (w *gpuWatch) hold(mark string) {
	for _, g := range w.gpus {
		if g.Level == nil {
			continue
		}
		read, values := map[string]float64{}, map[string]float64{}
		t := bench.Now()
		err := g.Level.Sample(read)
		for name, v := range read {
			values[mark+"_"+name] = v
		}
		w.mu.Lock()
		if err != nil {
			w.errors = append(w.errors, g.Level.Subject()+": "+err.Error())
		}
		if len(values) > 0 {
			w.add(t, g.Level.Subject(), values)
		}
		w.mu.Unlock()
	}
}

// GPUs sums what was seen of each GPU over the window into the event, after Stop.
// The warnings are what a reader of the cell's numbers must know.
func (w *Watcher) GPUs(ev *results.CellEvent) {
	if w.gpu == nil {
		return
	}
	for _, e := range w.gpu.errors {
		ev.Warnings = append(ev.Warnings, "telemetry: "+e)
	}
	if ev.WindowNS[1] <= ev.WindowNS[0] {
		return
	}
	for _, g := range w.gpu.gpus {
		ask := g.Asked
		ask.Missing, ask.CallSeconds = map[string]string{}, map[string]float64{}
		for _, p := range g.Probes {
			maps.Copy(ask.Missing, p.Missing())
			maps.Copy(ask.CallSeconds, p.CallSeconds())
		}
		use := results.GPUUse(w.gpu.log.GPU(ev.WindowNS, ask))
		ev.GPU = append(ev.GPU, use)
		warnOfGPU(ev, &use)
	}
}

// Shares and sizes from which on a reader is told.
const (
	throttledShare = 0.01    // of the samples
	heldBefore     = 1 << 30 // bytes in use by nobody knows whom
)

func warnOfGPU(ev *results.CellEvent, u *results.GPUUse) {
	if u.OwnPeak == 0 {
		return // not used by this backend: its state says nothing about it
	}
	var held []string
	for _, reason := range slices.Sorted(maps.Keys(u.Throttled)) {
		if share := u.Throttled[reason]; share >= throttledShare && reason != telemetry.ClocksByUser {
			held = append(held, fmt.Sprintf("%s in %.0f %% of the samples", reason, 100*share))
		}
	}
	if len(held) > 0 {
		text := fmt.Sprintf("throttled GPU: %s's clocks were held down: %s", u.Device, strings.Join(held, ", "))
		if u.SMMHz > 0 {
			text += fmt.Sprintf(" (SM clock %.0f MHz on average, %.0f at least)", u.SMMHz, u.SMMinMHz)
		}
		ev.Warnings = append(ev.Warnings, text)
	}
	switch {
	case u.ForeignN > 0:
		ev.Warn(results.DoubtBusy, fmt.Sprintf("shared GPU: other processes (%d at once) held up to %d MiB of %s meanwhile", u.ForeignN, u.Foreign>>20, u.Device))
	case u.ForeignN < 0 && u.Before > heldBefore:
		ev.Warn(results.DoubtBusy, fmt.Sprintf("shared GPU: %d MiB of %s were in use before the backend was started", u.Before>>20, u.Device))
	}
	if u.PeriodSeconds > gpuLatePeriod.Seconds() {
		ev.Warnings = append(ev.Warnings, fmt.Sprintf("memory of %s was read every %.1f ms only (up to %.0f ms apart): a short peak may be missed", u.Device, 1e3*u.PeriodSeconds, 1e3*u.GapSeconds))
	}
}
