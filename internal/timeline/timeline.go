// Package timeline writes a run as one trace that Perfetto and chrome://tracing
// open: requests as tracks, their phases as slices, tokens as instants, and the
// telemetry as counters. docs/trace.md says what is what.
//
// It writes Chrome's Trace Event Format ("Trace Event Format", Google, in its
// JSON object form), which is text that other tools read and change, too. Times
// are those of the run directory, moved to 0 at the run's begin, to the
// nanosecond.
package timeline

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/nativebench/nativebench/internal/results"
)

// Summary says what a trace holds.
type Summary struct {
	Requests int // slices of requests, warm-up and attempts that do not count included
	Failed   int // of them
	Tokens   int // that arrived; events with content, of requests whose marks count those
	Samples  int // values of counters
	// Notes say, one line each, what of the directory is not in the trace.
	Notes []string
}

// Write writes the run as a trace. It reads requests and telemetry from the
// directory line by line (run.Records is not used), so memory does not grow
// with the run's length. The error is that of w, or of reading.
func Write(w io.Writer, run *results.Run) (Summary, error) {
	tl := newTimeline(w, run)
	if err := tl.requests(); err != nil {
		return tl.sum, err
	}
	if err := tl.telemetry(); err != nil {
		return tl.sum, err
	}
	tl.cells()
	tl.endCounters()
	if n := tl.before; n > 0 {
		tl.note("%d requests and samples with stamps of before the run's begin, or that end before they begin, are left out", n)
	}
	if n := tl.strange; n > 0 {
		tl.note("%d lines of attempts that cells.jsonl does not name are left out", n)
	}
	return tl.sum, tl.w.close()
}

// Processes of the trace.
const (
	runPid   = 1
	hostPid  = 2
	gpuPid   = 10  // and on, one for each GPU
	cellPid  = 100 // and on, one for each attempt at a cell
	cellKind = "cell"
)

type attemptKey struct {
	cell    string
	attempt int
}

// attempt is one try at a cell: a process of the trace.
type attempt struct {
	results.Cell
	n          int
	pid        int
	counts     bool // it is the one whose requests count
	clock      results.Clock
	offset     int64 // of its stamps: the trace's time is the stamp plus offset
	start, end int64 // stamps; end: the last one that is known
	over       *results.CellEvent

	lanes   map[int]*lanes // by worker
	tid     int            // of the first worker; those of the others follow
	untold  int            // requests without a time
	open    []openCounter  // that have values of its samples
	sampled int64          // stamp of the last one
	flight  *flight
}

type timeline struct {
	w   *writer
	run *results.Run
	sum Summary

	attempts []*attempt // in the order they were started
	byKey    map[attemptKey]*attempt
	ofCell   map[string][]*attempt
	gpus     map[string]int // pids, by subject
	host     bool           // its process was named
	tids     int

	before, strange int
}

func (tl *timeline) note(format string, a ...any) {
	tl.sum.Notes = append(tl.sum.Notes, fmt.Sprintf(format, a...))
}

func newTimeline(w io.Writer, run *results.Run) *timeline {
	m := &run.Manifest
	tl := &timeline{run: run, byKey: map[attemptKey]*attempt{}, ofCell: map[string][]*attempt{}, gpus: map[string]int{}}
	tl.sum.Notes = slices.Clone(run.Damage)
	about := about(m)
	tl.w = newWriter(w, about)
	tl.w.name(runPid, 0, "run "+m.RunID)
	tl.w.instant(runPid, runPid, 0, "run", "about this run", about)
	planned := map[string]results.Cell{}
	for _, c := range m.Cells {
		planned[c.ID] = c
	}
	last := map[string]int{}
	for i := range run.Events {
		last[run.Events[i].Cell] = run.Events[i].Attempt
	}
	for i := range run.Events {
		e := &run.Events[i]
		cell, known := planned[e.Cell]
		if !known {
			tl.strange++
			continue
		}
		a := tl.byKey[attemptKey{e.Cell, e.Attempt}]
		if a == nil { // its first event, which is "started" unless that line was lost
			a = &attempt{
				Cell: cell, n: e.Attempt, pid: cellPid + len(tl.attempts), start: e.T, end: e.T,
				counts: e.Attempt == last[e.Cell], lanes: map[int]*lanes{}, flight: &flight{},
			}
			a.clock = sitting(m, i)
			a.offset = offset(m.Clock, a.clock)
			tl.byKey[attemptKey{e.Cell, e.Attempt}] = a
			tl.attempts = append(tl.attempts, a)
			tl.ofCell[e.Cell] = append(tl.ofCell[e.Cell], a)
			tl.w.name(a.pid, 0, a.title())
			tl.w.name(a.pid, a.pid, cellKind)
		}
		if e.State != results.CellStarted {
			a.over = e
		}
		a.end = max(a.end, e.T)
	}
	tl.tids = cellPid + len(tl.attempts) // no thread has the number of a process but its first
	for _, a := range tl.attempts {
		a.tid = tl.tids + 1
		tl.tids += a.Concurrency
	}
	return tl
}

// title names an attempt.
func (a *attempt) title() string {
	switch {
	case !a.counts:
		return fmt.Sprintf("%s (attempt %d, not used)", a.ID, a.n)
	case a.n > 1:
		return fmt.Sprintf("%s (attempt %d)", a.ID, a.n)
	}
	return a.ID
}

// at is the trace's time of a stamp; not ok before the run's begin.
func (a *attempt) at(stamp int64) (int64, bool) {
	t := stamp + a.offset
	return t, t >= 0
}

// sitting is the clock of an attempt whose first event is the nth of cells.jsonl.
func sitting(m *results.Manifest, n int) results.Clock {
	clock := m.Clock
	for _, c := range m.Clocks {
		if c.EventsBefore <= n {
			clock = c
		}
	}
	return clock
}

// sameClock tells whether stamps of two sittings compare.
func sameClock(a, b results.Clock) bool { return a == b || a.BootID != "" && a.BootID == b.BootID }

// offset turns stamps of a sitting into nanoseconds since the run's begin. The
// clock of another start of the machine is placed by the wall clock.
func offset(begin, c results.Clock) int64 {
	if sameClock(begin, c) {
		return -begin.MonotonicNS
	}
	return c.WallNS - begin.WallNS - c.MonotonicNS
}

// about is what the trace says of itself.
func about(m *results.Manifest) args {
	a := args{
		"run_id":      m.RunID,
		"nativebench": m.Tool.Version,
		"clock": fmt.Sprintf("%s; 0 is the run's begin, %d ns on that clock, as in the run directory; wall clock there: see begin, to %d ns",
			m.Clock.Source, m.Clock.MonotonicNS, m.Clock.UncertaintyNS),
		"begin":         time.Unix(0, m.Clock.WallNS).UTC().Format(time.RFC3339Nano),
		"begin_ns":      fmt.Sprint(m.Clock.MonotonicNS),
		"begin_unix_ns": fmt.Sprint(m.Clock.WallNS),
	}
	a.set("command", strings.Join(m.Command, " "))
	a.set("boot_id", m.Clock.BootID)
	for _, c := range m.Clocks {
		if !sameClock(m.Clock, c) {
			a["clocks"] = "the machine was started anew before the run was resumed: what came after is placed by the wall clock"
		}
	}
	a.set("cpu", m.Environment.CPU)
	a.set("gpus_missing", m.Environment.GPUsMissing)
	a.set("warnings", m.Environment.Warnings)
	return a
}

// requests writes every request of every attempt.
func (tl *timeline) requests() error {
	var current *attempt
	for rec, err := range tl.run.Requests() {
		if err != nil {
			if lost := tl.lost(err); lost != nil {
				return lost
			}
			continue
		}
		a := tl.byKey[attemptKey{rec.Cell, rec.Attempt}]
		if a == nil {
			tl.strange++
			continue
		}
		if a != current {
			current.land(tl)
			current = a
		}
		tl.request(a, &rec)
		if tl.w.err != nil {
			return tl.w.err
		}
	}
	current.land(tl)
	return tl.w.err
}

// lost notes a line that cannot be read; an error of the disk ends the trace. A
// file that is missing is noted already.
func (tl *timeline) lost(err error) error {
	var disk *fs.PathError
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if errors.As(err, &disk) {
		return err
	}
	tl.note("%v", err)
	return nil
}

// cells writes the slices of the attempts, whose ends are known by now.
func (tl *timeline) cells() {
	overview := lanes{w: tl.w, pid: runPid, tids: &tl.tids, name: "cells", first: runPid}
	for _, a := range tl.attempts {
		from, ok := a.at(a.start)
		if !ok {
			tl.before++
			continue
		}
		to := max(from, a.end+a.offset)
		name, about := a.describe()
		tid := overview.take(from, to)
		tl.w.begin(runPid, tid, from, cellKind, strings.TrimSpace(name+" "+a.title()), about)
		tl.w.end(runPid, tid, to)
		if name == "" {
			name = cellKind
		}
		tl.w.begin(a.pid, a.pid, from, cellKind, name, about)
		if a.over != nil && a.over.WindowNS[1] > a.over.WindowNS[0] {
			begin := min(max(a.over.WindowNS[0]+a.offset, from), to)
			tl.w.begin(a.pid, a.pid, begin, cellKind, "measured window", nil)
			tl.w.end(a.pid, a.pid, min(max(a.over.WindowNS[1]+a.offset, begin), to))
		}
		tl.w.end(a.pid, a.pid, to)
	}
}

// describe says how an attempt ended, "" for one that has nothing to say, and
// what is known of it.
func (a *attempt) describe() (state string, about args) {
	about = args{
		"cell": a.ID, "backend": a.Backend, "model": a.Model, "task": a.Task, "mode": a.Mode,
		"concurrency": a.Concurrency, "repeat": a.Repeat, "attempt": a.n, "planned_requests": a.Requests,
	}
	about.set("prompt_tokens", a.Prompt)
	about.set("requests_without_a_time", a.untold)
	e := a.over
	if e == nil {
		about["state"] = string(results.CellCutOff)
		return "CUT OFF", about
	}
	about["state"] = string(e.State)
	about.set("reason", e.Reason)
	about.set("class", e.Class)
	about.set("warnings", e.Warnings)
	about.set("gpu_missing", e.GPUMissing)
	if e.LoadNS > 0 {
		about["load_ms"] = float64(e.LoadNS) / 1e6
	}
	for _, part := range e.Memory {
		about["memory_"+part.Device+"_"+part.Part+"_MiB"] = float64(part.Bytes) / (1 << 20)
	}
	switch e.State {
	case results.CellFailed:
		return "FAILED", about
	case results.CellInterrupted:
		return "STOPPED", about
	}
	if len(e.Warnings) > 0 {
		return "WARNING", about
	}
	return "", about
}
