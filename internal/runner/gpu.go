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
	Fast GPUProbe
	Slow GPUProbe // what takes long to read; nil: nothing does
	// Asked is what is known of it before sampling: all but Weights,
	// FirstRequest, Missing and CallSeconds.
	Asked telemetry.GPUAsked
}

// GPUProbe is a probe that accounts for each of its series when sampling is
// over.
type GPUProbe interface {
	telemetry.Probe
	Missing() map[string]string      // why a series gave nothing
	CallSeconds() map[string]float64 // mean time of a call
}

// Periods of the two GPU samplers: memory must be read at least every 10 ms.
const (
	gpuPeriod     = 8 * time.Millisecond
	gpuSlowPeriod = time.Second
	gpuLatePeriod = 10 * time.Millisecond
)

// gpuWatch samples the GPUs in goroutines of its own.
type gpuWatch struct {
	gpus  []GPU
	mark  chan struct{}
	ended sync.WaitGroup

	mu      sync.Mutex // the rest has two writers
	log     telemetry.Log
	keepErr error
	errors  []string
}

func watchGPUs(ctx context.Context, cell string, gpus []GPU, keep func(*results.Sample) error) *gpuWatch {
	w := &gpuWatch{gpus: gpus, mark: make(chan struct{}, 1)}
	var fast, slow []telemetry.Probe
	for _, g := range gpus {
		fast = append(fast, g.Fast)
		if g.Slow != nil {
			slow = append(slow, g.Slow)
		}
	}
	run := func(s telemetry.Sampler, costs bool) {
		w.ended.Go(func() {
			said := int64(0)
			cost := s.Run(ctx, func(t int64, subject string, values map[string]float64) {
				own := subject == telemetry.SamplerSubject
				if own && !costs {
					return
				}
				w.mu.Lock()
				defer w.mu.Unlock()
				if own {
					subject = telemetry.GPUSamplerSubject
				}
				w.log.Add(t, subject, values)
				if own && t-said < time.Second.Nanoseconds() {
					return // once a second is enough for a reader
				} else if own {
					said = t
				}
				if w.keepErr == nil {
					w.keepErr = keep(&results.Sample{T: t, Cell: cell, Subject: subject, Values: values})
				}
			})
			w.mu.Lock()
			defer w.mu.Unlock()
			w.errors = append(w.errors, cost.Errors...)
		})
	}
	run(telemetry.Sampler{Now: bench.Now, Mark: w.mark, Period: gpuPeriod, Probes: fast}, true)
	if len(slow) > 0 {
		run(telemetry.Sampler{Now: bench.Now, Period: gpuSlowPeriod, Probes: slow}, false)
	}
	return w
}

// GPUs sums what was seen of each GPU over the window, after Stop. memory is the
// engine's own account, firstRequest when the first request of the cell began.
// The warnings are what a reader of the cell's numbers must know.
func (w *Watcher) GPUs(window [2]int64, firstRequest int64, memory []bench.MemoryPart) (all []results.GPUUse, warnings []string) {
	if w.gpu == nil {
		return nil, nil
	}
	for _, e := range w.gpu.errors {
		warnings = append(warnings, "telemetry: "+e)
	}
	if window[1] <= window[0] {
		return nil, warnings
	}
	for _, g := range w.gpu.gpus {
		ask := g.Asked
		ask.FirstRequest, ask.Missing, ask.CallSeconds = firstRequest, g.Fast.Missing(), g.Fast.CallSeconds()
		if g.Slow != nil {
			maps.Copy(ask.Missing, g.Slow.Missing())
			maps.Copy(ask.CallSeconds, g.Slow.CallSeconds())
		}
		for _, m := range memory {
			if m.Device == ask.Engine && m.Part == "weights" {
				ask.Weights += m.Bytes
			}
		}
		use := results.GPUUse(w.gpu.log.GPU(window, ask))
		all = append(all, use)
		warnings = append(warnings, gpuWarnings(&use)...)
	}
	return all, warnings
}

// Shares and sizes from which on a reader is told.
const (
	throttledShare = 0.01    // of the samples
	heldBefore     = 1 << 30 // bytes in use by nobody knows whom
)

func gpuWarnings(u *results.GPUUse) (warnings []string) {
	if u.OwnPeak == 0 {
		return nil // not used by this backend: its state says nothing about it
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
		warnings = append(warnings, text)
	}
	switch {
	case u.ForeignN > 0:
		warnings = append(warnings, fmt.Sprintf("shared GPU: other processes (%d at once) held up to %d MiB of %s meanwhile", u.ForeignN, u.Foreign>>20, u.Device))
	case u.ForeignN < 0 && u.Before > heldBefore:
		warnings = append(warnings, fmt.Sprintf("shared GPU: %d MiB of %s were in use before the backend was started", u.Before>>20, u.Device))
	}
	if u.PeriodSeconds > gpuLatePeriod.Seconds() {
		warnings = append(warnings, fmt.Sprintf("memory of %s was read every %.1f ms only (up to %.0f ms apart): a short peak may be missed", u.Device, 1e3*u.PeriodSeconds, 1e3*u.GapSeconds))
	}
	return warnings
}
