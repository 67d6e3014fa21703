package runner

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	"github.com/nativebench/nativebench/internal/bench"
	"github.com/nativebench/nativebench/internal/results"
	"github.com/nativebench/nativebench/internal/telemetry"
)

// Spec is what the parent tells the child: the work, and how to open the
// backend, which this package does not look into.
type Spec struct {
	Job     Job             `json:"job"`
	Backend json.RawMessage `json:"backend"`
}

// Opening is how an Opener tells of its progress, from its own goroutine.
type Opening struct {
	// Loading takes which share of a model is loaded, 0 to 1. The time that opening
	// takes is then the cell's load time.
	Loading func(share float64)
	// Hold returns when the parent has read what this process holds on the GPUs,
	// which the opener must not change meanwhile; mark says what that is. That time
	// is no load time.
	Hold func(mark string)
}

// Opener opens the backend that spec describes.
type Opener func(ctx context.Context, spec json.RawMessage, o Opening) (bench.Backend, error)

// Serve is the child's side: it reads one Spec from in, opens the backend,
// runs the cell and writes messages to out. Whatever goes wrong is in the last
// message; an error means that messages could not be exchanged at all.
//
// held is where the parent answers to a mark, one byte each; when it ends before
// the cell, the parent is gone, and this process ends itself at once, whoever
// started it: a profiler may stand between the two. nil: nobody answers.
//
// The cell's time limit counts from here, so that a load that hangs is within
// it.
func Serve(ctx context.Context, drain <-chan struct{}, in, held io.Reader, out io.Writer, open Opener) error {
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
	ev := serve(ctx, drain, spec, tell, holder(ctx, tell, held), open)
	return tell.send(message{Done: &ev})
}

// holder makes Opening.Hold.
func holder(ctx context.Context, tell *sender, held io.Reader) func(mark string) {
	if held == nil {
		return func(string) {}
	}
	answers := make(chan struct{}, 1)
	go func() {
		for b := make([]byte, 1); ; {
			if _, err := held.Read(b); err != nil {
				syscall.Kill(os.Getpid(), syscall.SIGKILL)
			}
			answers <- struct{}{}
		}
	}()
	return func(mark string) {
		if tell.send(message{Hold: mark}) != nil {
			return // a broken pipe is noticed at the next record
		}
		select {
		case <-answers:
		case <-ctx.Done():
		}
	}
}

func serve(ctx context.Context, drain <-chan struct{}, spec Spec, tell *sender, wait func(mark string), open Opener) results.CellEvent {
	began, loads, held := bench.Now(), false, int64(0)
	hold := func(mark string) {
		since := bench.Now()
		wait(mark)
		held += bench.Now() - since
	}
	progress := loadMessages(tell)
	b, err := open(ctx, spec.Backend, Opening{Loading: func(share float64) { loads = true; progress(share) }, Hold: hold})
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
	took := bench.Now() - began - held
	hold(telemetry.LoadedMark)
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
