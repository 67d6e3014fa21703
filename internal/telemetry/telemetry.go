// Package telemetry watches the machine beside the measurement: the processes
// of a backend, the host around them, and what the watching itself costs.
//
// It serves stage 2 of the pipeline plan → runner → results → measure → report
// and imports nothing of the others. Values have their unit in their name
// (rss_bytes, cpu_seconds); counters only rise, so that a difference of two
// samples is exact; a value that is not known is absent, never 0.
package telemetry

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Probe reads one subject. It is used by one goroutine at a time.
type Probe interface {
	// Subject names what is watched: host, backend, …
	Subject() string
	// Sample puts the present values into a map, which is empty, under names
	// with base units. What it could not read it leaves out and tells in the
	// error; the other values are good.
	Sample(into map[string]float64) error
}

// Subjects of the samples that this package makes itself.
const (
	HostSubject    = "host"
	BackendSubject = "backend"
	SamplerSubject = "sampler"
)

// Emit takes one sample. values is the emitter's memory: valid until the call
// returns. t is on the clock of Sampler.Now.
type Emit func(t int64, subject string, values map[string]float64)

// Sampler reads probes at a fixed period.
type Sampler struct {
	Period time.Duration // between samples; 0: DefaultPeriod
	Now    func() int64  // the run's clock, nanoseconds (bench.Now)
	Probes []Probe
	// Mark, if not nil, asks for a round at once in which every probe takes its
	// costly values too, and takes them again in the round after it: so that a
	// moment that matters has them, however seldom they are taken otherwise.
	Mark <-chan struct{}
}

// costly is a probe that takes some values at some samples only.
type costly interface {
	// All makes the next sample have every value.
	All()
}

// DefaultPeriod resolves the memory peak of a cell of a second for about half a
// percent of one core (BenchmarkSample measures a round between two listings
// of /proc). What sampling really cost is in Cost and in the subject "sampler".
const DefaultPeriod = 100 * time.Millisecond

// Cost is what sampling cost and what it could not see.
type Cost struct {
	Samples    int     // rounds over all probes
	CPUSeconds float64 // of the sampling thread, emit included; -1: not known
	Late       int     // rounds that came more than a period late
	Errors     []string
}

// maxErrors bounds Cost.Errors; errors of the same text count once.
const maxErrors = 20

// Run samples at once, then every period, and a last time, with all values,
// when ctx is done, so that what happened while it ran lies between two samples. It blocks until
// then and calls emit from its own goroutine only. After each round it emits
// the subject "sampler" with cpu_seconds, the CPU time that sampling has cost
// so far.
func (s Sampler) Run(ctx context.Context, emit Emit) Cost {
	period := s.Period
	if period <= 0 {
		period = DefaultPeriod
	}
	// The thread's CPU clock then counts this goroutine and nothing else.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	began, known := threadCPU()
	cost := Cost{CPUSeconds: -1}
	values := map[string]float64{}
	round := func() {
		for _, p := range s.Probes {
			clear(values)
			t := s.Now()
			if err := p.Sample(values); err != nil {
				cost.note(p.Subject(), err)
			}
			if len(values) > 0 {
				emit(t, p.Subject(), values)
			}
		}
		cost.Samples++
		if now, ok := threadCPU(); ok && known {
			cost.CPUSeconds = now - began
			clear(values)
			values["cpu_seconds"] = cost.CPUSeconds
			emit(s.Now(), SamplerSubject, values)
		}
	}
	full := func() {
		for _, p := range s.Probes {
			if c, ok := p.(costly); ok {
				c.All()
			}
		}
		round()
	}
	round()
	again := false // the round before was asked for by Mark
	ticker := time.NewTicker(period)
	defer ticker.Stop()
	last := time.Now()
	for {
		select {
		case <-ctx.Done():
			full()
			return cost
		case <-s.Mark:
			again = true
			full()
		case <-ticker.C:
			if now := time.Now(); now.Sub(last) > 2*period {
				cost.Late++
				last = now
			} else {
				last = now
			}
			if again {
				again = false
				full()
			} else {
				round()
			}
		}
	}
}

func (c *Cost) note(subject string, err error) {
	text := subject + ": " + err.Error()
	if len(c.Errors) < maxErrors && !slices.Contains(c.Errors, text) {
		c.Errors = append(c.Errors, text)
	}
}

// threadCPU returns the CPU time of the calling thread in seconds.
func threadCPU() (float64, bool) {
	var ru unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_THREAD, &ru); err != nil {
		return 0, false
	}
	return seconds(ru.Utime) + seconds(ru.Stime), true
}

func seconds(tv unix.Timeval) float64 { return float64(tv.Sec) + float64(tv.Usec)/1e6 }

// gone says that err means: the process ended while it was looked at.
func gone(err error) bool { return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ESRCH) }
