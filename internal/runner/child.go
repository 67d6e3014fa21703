package runner

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/nativebench/nativebench/internal/bench"
	"github.com/nativebench/nativebench/internal/results"
)

// Spec is what the parent tells the child: the work, and how to open the
// backend, which this package does not look into.
type Spec struct {
	Job     Job             `json:"job"`
	Backend json.RawMessage `json:"backend"`
}

// Opener opens the backend that spec describes. One that loads a model reports
// which share of it is loaded, 0 to 1, from its own goroutine; the time it takes
// is then the cell's load time.
type Opener func(ctx context.Context, spec json.RawMessage, loading func(float64)) (bench.Backend, error)

// Serve is the child's side: it reads one Spec from in, opens the backend,
// runs the cell and writes messages to out. Whatever goes wrong is in the last
// message; an error means that messages could not be exchanged at all.
//
// The cell's time limit counts from here, so that a load that hangs is within
// it.
func Serve(ctx context.Context, drain <-chan struct{}, in io.Reader, out io.Writer, open Opener) error {
	var spec Spec
	if err := json.NewDecoder(in).Decode(&spec); err != nil {
		return fmt.Errorf("cell: its description on standard input could not be read (this command is started by compare and run): %w", err)
	}
	if limit := spec.Job.Cell.CellTimeout; limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	tell := &sender{w: out}
	ev := serve(ctx, drain, spec, tell, open)
	return tell.send(message{Done: &ev})
}

func serve(ctx context.Context, drain <-chan struct{}, spec Spec, tell *sender, open Opener) results.CellEvent {
	began, loads := bench.Now(), false
	progress := loadMessages(tell)
	b, err := open(ctx, spec.Backend, func(share float64) { loads = true; progress(share) })
	if err != nil {
		ev := results.CellEvent{
			Cell: spec.Job.ID, Attempt: spec.Job.Attempt, State: results.CellFailed, T: bench.Now(),
			Class: string(bench.ClassOf(err)), Reason: err.Error(),
		}
		switch ctx.Err() {
		case context.DeadlineExceeded:
			ev.Class = string(bench.Timeout)
			ev.Reason = fmt.Sprintf("the time limit of the cell, %v, passed before the backend was ready: %v", spec.Job.Cell.CellTimeout, err)
		case context.Canceled:
			ev.State, ev.Class, ev.Reason = results.CellInterrupted, string(bench.Cancelled), "stopped by the user before the backend was ready"
		}
		return ev
	}
	took := bench.Now() - began
	info := b.Info()
	if err := tell.send(message{Info: &info}); err != nil {
		b.Close()
		return results.CellEvent{Cell: spec.Job.ID, Attempt: spec.Job.Attempt, State: results.CellFailed, T: bench.Now(), Class: string(bench.Internal), Reason: err.Error()}
	}
	ev := RunCell(ctx, drain, spec.Job, b, func(r *results.Record) error { return tell.send(message{Request: r}) })
	if loads { // a client of a server only connects
		ev.LoadNS = took
	}
	ev.Memory = b.Info().Memory
	if err := b.Close(); err != nil {
		ev.Warnings = append(ev.Warnings, fmt.Sprintf("the backend did not close cleanly: %v", err))
	}
	return ev
}

// loadMessages sends at most ten messages a second: loading is not measured
// against anything, but need not be slowed either.
func loadMessages(tell *sender) func(float64) {
	var last time.Time
	return func(share float64) {
		if now := time.Now(); now.Sub(last) >= 100*time.Millisecond {
			last = now
			tell.send(message{Load: &share}) // a broken pipe is noticed at the next record
		}
	}
}
