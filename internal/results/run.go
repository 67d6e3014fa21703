package results

import (
	"fmt"
	"iter"
	"path/filepath"
)

// States that a reader finds, beside those that a writer writes.
const (
	CellNotRun CellState = "not_run" // planned, and nothing was ever written of it
	CellCutOff CellState = "cut_off" // started, and nativebench died before its end
)

// Run is a run directory as it was read. Its owner may change it freely.
type Run struct {
	Dir      string
	Manifest Manifest
	Events   []CellEvent // in the order they were written
	Records  []Record    // of all attempts, in the order they were written
	// Damage says, one line each, what was not as a writer leaves it, and what
	// was done about it: "requests.jsonl:17: …". Empty for a whole run; a run
	// that was killed has at most one line of it per file.
	Damage []string
}

// CellResult is one planned cell and what is known of it.
type CellResult struct {
	Cell
	State CellState
	// Attempt is the attempt that counts: that of the last event. 0: not run.
	Attempt int
	// Attempts is how many were started.
	Attempts int
	// Event is the last event; nil when not run.
	Event *CellEvent
	// NotRun is why it was not run, where the manifest tells.
	NotRun string
	// Records are those of the attempt that counts, warm-up included, in the
	// order they were written (which is the order of completion).
	Records []*Record
	// Missing is how many measured requests a cell that is done should have
	// and has not: more than 0 only in a damaged directory.
	Missing int
}

// Done says that the cell needs no further attempt.
func (c *CellResult) Done() bool { return c.State == CellDone }

// Measured returns the records that count as measurements: not the warm-up.
func (c *CellResult) Measured() []*Record {
	var out []*Record
	for _, r := range c.Records {
		if !r.Warmup {
			out = append(out, r)
		}
	}
	return out
}

// Why says in one line why a cell has no whole result: "" for one that is done.
func (c *CellResult) Why() string {
	switch c.State {
	case CellDone:
		return ""
	case CellNotRun:
		if c.NotRun != "" {
			return "not run: " + c.NotRun
		}
		return "not run"
	case CellCutOff:
		return "cut off: nativebench ended while it ran"
	}
	if c.Event != nil && c.Event.Reason != "" {
		return string(c.State) + ": " + c.Event.Reason
	}
	return string(c.State)
}

// Cells returns every planned cell, in the manifest's order, with its state
// and the records of the attempt that counts. They point into r.
func (r *Run) Cells() []CellResult {
	out := make([]CellResult, len(r.Manifest.Cells))
	at := make(map[string]*CellResult, len(out))
	for i, c := range r.Manifest.Cells {
		out[i] = CellResult{Cell: c, State: CellNotRun}
		at[c.ID] = &out[i]
	}
	for i := range r.Events {
		e := &r.Events[i]
		c := at[e.Cell]
		if c == nil {
			continue // read reports it
		}
		if e.State == CellStarted {
			c.Attempts++
		}
		c.Event, c.Attempt, c.State = e, e.Attempt, e.State
		if e.State == CellStarted {
			c.State = CellCutOff
		}
	}
	for i := range r.Records {
		rec := &r.Records[i]
		if c := at[rec.Cell]; c != nil && c.Attempt == rec.Attempt && c.Event != nil {
			c.Records = append(c.Records, rec)
		}
	}
	for i := range out {
		switch c := &out[i]; c.State {
		case CellDone:
			c.Missing = max(0, c.Requests-len(c.Measured()))
		case CellNotRun:
			for _, n := range r.Manifest.NotRun {
				if n.Backend == c.Backend && n.Model == c.Model && n.Repeat == c.Repeat {
					c.NotRun = n.Reason
				}
			}
		}
	}
	return out
}

// Remaining returns the ids of the cells that a resumed run has to run, in the
// manifest's order: all that are not done.
func (r *Run) Remaining() []string {
	var ids []string
	for _, c := range r.Cells() {
		if !c.Done() {
			ids = append(ids, c.ID)
		}
	}
	return ids
}

// NextAttempt returns the number of the next attempt at a cell; the first is 1.
func (r *Run) NextAttempt(cell string) int {
	last := 0
	for i := range r.Events {
		if r.Events[i].Cell == cell {
			last = max(last, r.Events[i].Attempt)
		}
	}
	// Records without an event cannot be unless lines were lost; their number
	// must not be used again.
	for i := range r.Records {
		if r.Records[i].Cell == cell {
			last = max(last, r.Records[i].Attempt)
		}
	}
	return last + 1
}

// Telemetry reads telemetry.jsonl line by line, so that a long run need not
// fit in memory. A line that cannot be read comes as an error that says so, and
// the next ones follow.
func (r *Run) Telemetry() iter.Seq2[Sample, error] {
	return func(yield func(Sample, error) bool) {
		path := filepath.Join(r.Dir, telemetryFile)
		stopped := false
		tail, err := readLines(path, decodeSample, func(s Sample, err error) bool {
			stopped = !yield(s, err)
			return !stopped
		})
		switch {
		case stopped:
		case err != nil:
			yield(Sample{}, err)
		case tail.torn > 0:
			yield(Sample{}, fmt.Errorf("%s: %s", telemetryFile, tail.describe()))
		}
	}
}
