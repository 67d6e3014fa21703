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
	mark   chan struct{}
	ended  chan struct{}
	server *serverWatch // nil: there is none, or it says nothing of itself
	gpu    *gpuWatch    // nil: there are none to be watched

	// Of the sampling goroutine until ended is closed:
	log     telemetry.Log
	cost    telemetry.Cost
	keepErr error
}

// Watch starts to sample the process trees of the backend (its roots are what
// backend returns) and the host. Each sample of cell goes to keep, which must
// not keep its Values. server, if not nil, asks the server about itself, once a
// second and at the edges of the window. keep is called from
// several goroutines.
func Watch(cell string, backend func() []int, server telemetry.Probe, keep func(*results.Sample) error, gpus ...GPU) *Watcher {
	ctx, cancel := context.WithCancel(context.Background())
	w := &Watcher{cancel: cancel, mark: make(chan struct{}, 1), ended: make(chan struct{})}
	s := telemetry.Sampler{Now: bench.Now, Mark: w.mark, Probes: []telemetry.Probe{
		telemetry.Tree(backend, telemetry.TreeOptions{}),
		telemetry.Host(backend),
	}}
	if server != nil {
		w.server = watchServer(ctx, cell, server, keep)
	}
	if len(gpus) > 0 {
		w.gpu = watchGPUs(ctx, cell, gpus, keep)
	}
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

// Mark samples at once, with the values that are costly and taken seldom
// otherwise: at the edges of the cell's window. It does not wait.
func (w *Watcher) Mark() {
	ask(w.mark)
	if w.server != nil {
		ask(w.server.mark)
	}
	if w.gpu != nil {
		for _, mark := range w.gpu.marks {
			ask(mark)
		}
	}
}

// Hold reads now, and returns when it has, what the GPUs and the backend on them
// hold, while the backend stands still: see Child.Hold.
func (w *Watcher) Hold(mark string) {
	if w.gpu != nil {
		w.gpu.hold(mark)
	}
}

func ask(mark chan<- struct{}) {
	select {
	case mark <- struct{}{}:
	default: // one is asked for already
	}
}

// Stop ends the sampling and sums it over the cell's window into the event, with
// warnings of what a reader of the cell's numbers must know. cores is how many
// the machine has; hidden says that the backend may be at work on it in processes
// that are not known, so that they cannot be told from others. The error is the
// first one of keep.
func (w *Watcher) Stop(ev *results.CellEvent, cores int, hidden bool) error {
	w.cancel()
	<-w.ended
	if w.server != nil {
		<-w.server.ended
		if w.keepErr == nil {
			w.keepErr = w.server.keepErr
		}
	}
	if w.gpu != nil {
		w.gpu.ended.Wait()
		if w.keepErr == nil {
			w.keepErr = w.gpu.keepErr
		}
	}
	if ev.WindowNS[1] <= ev.WindowNS[0] {
		return w.keepErr
	}
	use := results.HostUse(w.log.Use(telemetry.BackendSubject, ev.WindowNS))
	if hidden {
		use.OtherCores = -1
	}
	if busy := busyWarning(use.OtherCores, use.StealCores, cores); busy != "" {
		ev.Warn(results.DoubtBusy, busy)
	}
	for _, e := range w.cost.Errors {
		ev.Warnings = append(ev.Warnings, "telemetry: "+e)
	}
	ev.Host = &use
	return w.keepErr
}

// busyWarning says that other work ran meanwhile, on this machine or, under a
// hypervisor, on its neighbours', or "". In cores; -1: not known.
func busyWarning(other, steal float64, cores int) string {
	known := other >= 0
	other, steal = max(other, 0), max(steal, 0)
	if other+steal < busyCores {
		return ""
	}
	if !known {
		return fmt.Sprintf("busy machine: the hypervisor gave %.1f of its %d cores to other machines meanwhile", steal, cores)
	}
	text := fmt.Sprintf("busy machine: other programs used %.1f of its %d cores meanwhile", other, cores)
	if steal >= 0.05 {
		text += fmt.Sprintf(", and the hypervisor gave %.1f cores of them to other machines", steal)
	}
	return text
}
