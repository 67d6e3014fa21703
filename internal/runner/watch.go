package runner

import (
	"context"
	"fmt"

	"github.com/nativebench/nativebench/internal/bench"
	"github.com/nativebench/nativebench/internal/results"
	"github.com/nativebench/nativebench/internal/telemetry"
)

// busyCores is the mean number of cores at work for others from which on a
// machine is called busy: timings of a few milliseconds no longer repeat.
const busyCores = 0.25

// Watcher samples the machine while a cell runs. It runs in the parent, beside
// the process that is measured, not in it.
type Watcher struct {
	cancel context.CancelFunc
	ended  chan struct{}

	// Of the sampling goroutine until ended is closed:
	log     telemetry.Log
	cost    telemetry.Cost
	keepErr error
}

// Watch starts to sample the process trees of the backend (its roots are what
// backend returns) and the host. Each sample of cell goes to keep, which must
// not keep its Values.
func Watch(cell string, backend func() []int, keep func(*results.Sample) error) *Watcher {
	ctx, cancel := context.WithCancel(context.Background())
	w := &Watcher{cancel: cancel, ended: make(chan struct{})}
	s := telemetry.Sampler{Now: bench.Now, Probes: []telemetry.Probe{
		telemetry.Tree(backend, telemetry.TreeOptions{}),
		telemetry.Host(backend),
	}}
	go func() {
		defer close(w.ended)
		w.cost = s.Run(ctx, func(t int64, subject string, values map[string]float64) {
			w.log.Add(t, subject, values)
			if w.keepErr == nil {
				w.keepErr = keep(&results.Sample{T: t, Cell: cell, Subject: subject, Values: values})
			}
		})
	}()
	return w
}

// Stop ends the sampling and sums it over the cell's window; the warnings are
// what a reader of the cell's numbers must know. cores is how many the machine
// has. The error is the first one of keep.
func (w *Watcher) Stop(window [2]int64, cores int) (*results.HostUse, []string, error) {
	w.cancel()
	<-w.ended
	if window[1] <= window[0] {
		return nil, nil, w.keepErr
	}
	use := results.HostUse(w.log.Use(telemetry.BackendSubject, window))
	var warnings []string
	if use.OtherCores >= busyCores {
		warnings = append(warnings, fmt.Sprintf("busy machine: other programs used %.1f of its %d cores meanwhile", use.OtherCores, cores))
	}
	for _, e := range w.cost.Errors {
		warnings = append(warnings, "telemetry: "+e)
	}
	return &use, warnings, w.keepErr
}
