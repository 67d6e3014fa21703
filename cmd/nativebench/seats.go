package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/nativebench/nativebench/internal/bench"
	"github.com/nativebench/nativebench/internal/results"
)

// startTries is how often in a row a backend may fail to become ready before
// its further cells are failed without another try.
const startTries = 2

// seats keeps the backends that are ready, one for each name. Servers are
// started when first needed and stay, idle between their cells, except where
// there is a GPU: a server holds its memory, so the others are stopped first.
type seats struct {
	place  func(backendName, modelKey string) place
	taken  map[string]*keptSeat // by name
	alone  bool                 // only one server at a time: they would share a GPU
	failed map[served]int       // failures to become ready in a row
	why    map[served]error

	gpus    gpuSet
	stopped func(*keptSeat, []string) // told of each that was stopped, with warnings about its GPU memory; nil: nobody
}

// served is a backend with a model: one that cannot serve a model may well
// serve the next.
type served struct{ name, model string }

func newSeats(place func(backendName, modelKey string) place) *seats {
	return &seats{place: place, taken: map[string]*keptSeat{}, failed: map[served]int{}, why: map[served]error{}}
}

type keptSeat struct {
	*seat
	model string
	held  []results.GPUHeld // of a server that was started here
}

// get returns the backend ready to serve the model. started tells that it was
// made ready by this call; died that the one before had ended by itself since
// it was last used.
func (s *seats) get(ctx context.Context, b backend, model string) (kept *keptSeat, started bool, died string, err error) {
	if have := s.taken[b.name]; have != nil {
		if died = have.gone(); died == "" && have.model == model {
			return have, false, "", nil
		}
		if err := s.drop(ctx, b.name); err != nil {
			return nil, false, died, fmt.Errorf("the server of %s could not be stopped: %w", have.model, err)
		}
	}
	if s.alone {
		for name, other := range s.taken {
			if other.stop == nil {
				continue // not started here
			}
			if err := s.drop(ctx, name); err != nil {
				return nil, false, died, fmt.Errorf("%s would share the GPU with %s, which could not be stopped: %w", b.name, name, err)
			}
		}
	}
	what := served{b.name, model}
	if s.failed[what] >= startTries {
		return nil, false, died, fmt.Errorf("not tried again after %d failures in a row: %w", startTries, s.why[what])
	}
	before := s.gpus.memory()
	ready, err := b.ready(ctx, s.place(b.name, model))
	if err != nil {
		if ctx.Err() == nil {
			s.failed[what]++
			s.why[what] = err
		}
		return nil, false, died, err
	}
	s.failed[what] = 0
	kept = &keptSeat{seat: ready, model: model}
	if ready.stop != nil {
		kept.held = s.gpus.held(before)
		kept.entry.GPU = kept.held
	}
	s.taken[b.name] = kept
	return kept, true, died, nil
}

// first is get for looking at a backend before its cells: one that does not
// become ready is not counted, so that its cells try as often as without.
func (s *seats) first(ctx context.Context, b backend, model string) (kept *keptSeat, started bool, err error) {
	what := served{b.name, model}
	failures := s.failed[what]
	kept, started, _, err = s.get(ctx, b, model)
	if err != nil {
		s.failed[what] = failures
	}
	return kept, started, err
}

// gone says how a server ended by itself; "" while it runs.
func (k *keptSeat) gone() string {
	if k.died == nil {
		return ""
	}
	select {
	case <-k.died:
		text := "the server ended by itself"
		if k.exit != nil {
			text += " (" + k.exit() + ")"
		}
		if k.entry.Log != "" {
			text += "; its log is " + filepath.Join("logs", filepath.Base(k.entry.Log))
		}
		return text
	default:
		return ""
	}
}

// ended is gone, and where requests failed it waits a moment first: clients
// notice a crash before the process has been waited for.
func (k *keptSeat) ended(failures bool) string {
	if failures && k.died != nil {
		select {
		case <-k.died:
		case <-time.After(200 * time.Millisecond):
		}
	}
	return k.gone()
}

// silentLimit bounds asking a server whether it is still there.
const silentLimit = 30 * time.Second

// silent is why a server at an endpoint makes no token any more, after requests
// failed. One that answers is asked thrice, since a request may fail at any
// server. nil: it makes one, or that cannot be told: it is busy, slow or not asked.
func (k *keptSeat) silent(ctx context.Context) (err error) {
	if k.generates == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, silentLimit)
	defer cancel()
	for range 3 {
		err = k.generates(ctx)
		switch bench.ClassOf(err) {
		case bench.OK, bench.Busy, bench.Timeout, bench.Cancelled:
			return nil
		case bench.Connect:
			return err
		}
	}
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// drop stops a server. One that could not be stopped keeps its seat, so that it
// is tried again and nothing is started beside it.
func (s *seats) drop(ctx context.Context, name string) error {
	have := s.taken[name]
	if have == nil { // it never became ready
		return nil
	}
	if have.stop != nil {
		if err := have.stop(ctx); err != nil {
			return err
		}
	}
	if len(have.held) > 0 {
		warnings := s.gpus.waitFree(ctx, have.held)
		if s.stopped != nil {
			s.stopped(have, warnings)
		}
	}
	delete(s.taken, name)
	return nil
}

// close stops all servers, whatever happened before. Each has its own time to
// end (launch.Spec.Grace).
func (s *seats) close() error {
	var errs []error
	for name := range s.taken {
		if err := s.drop(context.Background(), name); err != nil {
			errs = append(errs, fmt.Errorf("stopping %s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

// classOf is the class of a backend that did not become ready.
func classOf(err error) string {
	var f *bench.Failure
	if errors.As(err, &f) {
		return string(f.Class)
	}
	return string(bench.Connect)
}
