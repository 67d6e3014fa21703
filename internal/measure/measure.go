// Package measure turns traces into numbers: one table of columns that every
// report follows, and nothing else decides what a number means.
//
// It is stage 4 of the pipeline plan → runner → results → measure → report.
package measure

import (
	"cmp"
	"fmt"
	"math"
	"slices"

	"github.com/nativebench/nativebench/internal/bench"
	"github.com/nativebench/nativebench/internal/stats"
)

// Modes, as plan writes them.
const (
	Sync   = "sync"
	Stream = "stream"
)

// Request is one measured request.
type Request struct {
	*bench.Trace
	// Index is the place in the cell's sequence: the same index in other
	// repeats, and of other backends under the same load, is the same request.
	Index  int
	Worker int
	Class  bench.Class // "" is success
	Error  string      // of a failed one
}

// Cell is one repeat of a group. Warm-up requests are not in it.
type Cell struct {
	Requests []Request
	Window   [2]int64 // first start and last end, ns; zero: taken from Requests
	// LoadNS and FirstConnNS are 0 where there is none; PeakRSS and PeakPSS, in
	// bytes, are 0 or below where they are not known.
	LoadNS, FirstConnNS int64
	PeakRSS, PeakPSS    int64
}

// Group is everything that was measured of one backend under one load.
type Group struct {
	Mode        string
	Concurrency int
	Expect      [2]int // range of output tokens that the task expects; zero: none
	Cells       []Cell // one per repeat that has results
}

// Summary is a group in numbers.
type Summary struct {
	Requests int // measured, failures included
	OK       int
	Failures map[bench.Class]int   // by class
	Warnings map[bench.Warning]int // requests by class of warning, of successful ones
	Counted  map[bench.TokenSource]int
	// Estimates has one entry per column, in the order of Columns.
	Estimates []Estimate
	// Notes are sentences about the whole group that must stand beside its
	// numbers.
	Notes []string
}

// Estimate is one column of one group. Values are in the column's unit.
type Estimate struct {
	Column Column
	stats.Summary
	// Missing says why there is no value; "" if there is one.
	Missing string
	// Repeats are the medians (of a count: the counts) by repeat. Spread is the
	// largest over the smallest, NaN when there is no such thing.
	Repeats []float64
	Spread  float64
	// Count is how many of N requests have what the column counts.
	Count int

	// items are what comparisons are made of: one value per repeat of each
	// request, by Index; of a per-cell column, all values under 0.
	items map[int][]float64
}

// Known tells whether there is a value.
func (e Estimate) Known() bool { return e.Missing == "" }

// Get returns the estimate of a column by key. It panics for a key that is not
// in the table.
func (s Summary) Get(key string) Estimate {
	i := slices.IndexFunc(s.Estimates, func(e Estimate) bool { return e.Column.Key == key })
	if i < 0 {
		panic("measure: no column " + key)
	}
	return s.Estimates[i]
}

// Summarize computes every column of a group. Failed requests are counted by
// class; nothing of them goes into any other number, except that a worker is
// busy while it waits for one.
func Summarize(g Group) Summary {
	s := Summary{
		Failures: map[bench.Class]int{},
		Warnings: map[bench.Warning]int{},
		Counted:  map[bench.TokenSource]int{},
	}
	for _, c := range g.Cells {
		for _, r := range c.Requests {
			s.Requests++
			if r.Class != bench.OK {
				s.Failures[r.Class]++
				continue
			}
			s.OK++
			s.Counted[r.Counted]++
			for _, w := range r.Warnings {
				s.Warnings[w]++
			}
		}
	}
	for _, c := range Columns() {
		s.Estimates = append(s.Estimates, c.estimate(&g))
	}
	s.Notes = notes(&g, &s)
	return s
}

func (c Column) estimate(g *Group) Estimate {
	e := Estimate{Column: c, Spread: math.NaN(), Summary: stats.Summarize(nil)}
	if c.Absent != nil {
		if e.Missing = c.Absent(g); e.Missing != "" {
			return e
		}
	}
	if c.Count != nil {
		return c.count(g, e)
	}
	var pooled []float64
	var repeats [][]float64
	e.items = map[int][]float64{}
	for i := range g.Cells {
		from := len(pooled)
		pooled = c.values(g, &g.Cells[i], pooled, e.items)
		if v := pooled[from:]; len(v) > 0 {
			repeats = append(repeats, v)
			e.Repeats = append(e.Repeats, stats.Median(stats.Sorted(v)))
		}
	}
	if len(pooled) == 0 {
		if e.Missing = "no request that succeeded has it"; c.Cell != nil {
			e.Missing = "not known for this cell"
		}
		return e
	}
	e.Summary = stats.Summarize(pooled)
	if c.Gaps != nil {
		// Gaps of one request are not independent, so the formula for the
		// interval would promise far too much.
		e.Lo, e.Hi = math.NaN(), math.NaN()
	}
	if c.Better != Neither {
		var warning string
		if e.Spread, warning = stats.Spread(repeats); warning != "" {
			e.Warnings = append(e.Warnings, warning)
		}
	}
	return e
}

// values appends what one cell gives to pooled, and adds to items what may be
// compared: of gaps, the median of each request.
func (c Column) values(g *Group, cell *Cell, pooled []float64, items map[int][]float64) []float64 {
	if c.Cell != nil {
		if v, ok := c.Cell(g, cell); ok {
			pooled, items[0] = append(pooled, v), append(items[0], v)
		}
		return pooled
	}
	for i := range cell.Requests {
		r := &cell.Requests[i]
		if r.Class != bench.OK {
			continue
		}
		if c.Request != nil {
			if v, ok := c.Request(r.Trace); ok {
				pooled, items[r.Index] = append(pooled, v), append(items[r.Index], v)
			}
			continue
		}
		from := len(pooled)
		pooled = c.Gaps(r.Trace, pooled)
		if gaps := pooled[from:]; len(gaps) > 0 {
			items[r.Index] = append(items[r.Index], stats.Median(stats.Sorted(gaps)))
		}
	}
	return pooled
}

func (c Column) count(g *Group, e Estimate) Estimate {
	for i := range g.Cells {
		n := 0
		for j := range g.Cells[i].Requests {
			r := &g.Cells[i].Requests[j]
			if r.Class != bench.OK && !c.CountsFailed {
				continue
			}
			e.N++
			if c.Count(g, r) {
				n++
			}
		}
		e.Count += n
		e.Repeats = append(e.Repeats, float64(n))
	}
	if e.N == 0 {
		e.Missing = "no request that succeeded has it"
	}
	return e
}

// Compare sets an estimate against that of the reference. Values of requests
// are paired by Index, and requests that one side did not answer are left out;
// values of cells are not paired. For pooled gaps the ratio is that of the
// pooled medians if both sides answered the same requests, and the test is made
// on each request's own median gap. Counts are not compared: their Ratio is NaN.
//
// There is a verdict only with two repeats or more on both sides that agree
// with each other: what differs from process to process, and from one minute to
// the next, cannot be seen inside one cell.
func Compare(e, ref Estimate) stats.Comparison {
	if !e.Known() || !ref.Known() || e.Column.Count != nil {
		return stats.Compare(nil, nil)
	}
	if e.Column.Cell != nil {
		return stats.Compare(e.items[0], ref.items[0])
	}
	var xs, rs [][]float64
	for _, i := range sortedKeys(e.items) {
		xs, rs = append(xs, e.items[i]), append(rs, ref.items[i])
	}
	for _, i := range sortedKeys(ref.items) {
		if e.items[i] == nil {
			xs, rs = append(xs, nil), append(rs, ref.items[i])
		}
	}
	c := stats.ComparePaired(xs, rs)
	if e.Column.Gaps != nil {
		if slices.Equal(sortedKeys(e.items), sortedKeys(ref.items)) {
			c.Ratio = e.Median / ref.Median
		}
		c.Lo, c.Hi = math.NaN(), math.NaN()
	}
	if !replicated(e) || !replicated(ref) {
		c.Verdict = stats.TooFew
	}
	if math.IsInf(c.Ratio, 0) {
		c.Ratio = math.NaN()
	}
	return c
}

// replicated reports whether an estimate comes from repeats that agree.
func replicated(e Estimate) bool {
	return len(e.Repeats) >= 2 && !(e.Spread > stats.Disagree)
}

// notes says what must be known about all numbers of the group.
func notes(g *Group, s *Summary) (notes []string) {
	say := func(format string, args ...any) { notes = append(notes, fmt.Sprintf(format, args...)) }
	for _, class := range sortedKeys(s.Failures) {
		say("%d of %d requests failed: %s%s", s.Failures[class], s.Requests, class, firstError(g, class))
	}
	for _, w := range sortedKeys(s.Warnings) {
		say("%d of %d answers: %s", s.Warnings[w], s.OK, warningText(w))
	}
	if n := s.Counted[bench.CountTokenizer]; n > 0 {
		say("%d of %d answers: output tokens were counted by a local tokenizer, approximately", n, s.OK)
	}
	var events, coalesced, unstamped, lost int
	for _, c := range g.Cells {
		for _, r := range c.Requests {
			if r.Class == bench.OK {
				events += r.Events
				coalesced += r.Coalesced
				unstamped += r.Unstamped
				lost += min(r.MarksLost, 1)
			}
		}
	}
	if g.Mode == Stream && coalesced > 0 && float64(coalesced) > coalescedShare*float64(events) {
		say("%.0f %% of events shared a receive stamp with the one before: gaps between tokens are coarser than they look", 100*float64(coalesced)/float64(events))
	}
	if unstamped > 0 {
		say("%d reads had no kernel receive stamp and were timed by the process, later by its scheduling delay", unstamped)
	}
	if lost > 0 {
		say("%d answers had more token stamps than fit; their token timings are left out", lost)
	}
	return notes
}

// coalescedShare is the share of events with a shared stamp from which the
// distribution of gaps is no longer the server's.
const coalescedShare = 0.05

func firstError(g *Group, class bench.Class) string {
	for _, c := range g.Cells {
		for _, r := range c.Requests {
			if r.Class == class && r.Error != "" {
				return " (" + r.Error + ")"
			}
		}
	}
	return ""
}

func warningText(w bench.Warning) string {
	switch w {
	case bench.WarnShort:
		return "fewer tokens than were asked for, with end-of-sequence ignored (short_output)"
	case bench.WarnCount:
		return "the server's token count and its events or ids disagree (count_mismatch)"
	case bench.WarnCacheHit:
		return "prompt tokens came from a prefix cache that should be off (prefix_cache)"
	case bench.WarnNoFinish:
		return "no finish_reason was sent (no_finish)"
	case bench.WarnHeldBack:
		return "ended inside a UTF-8 sequence, whose bytes were held back (held_back)"
	case bench.WarnTokenCount:
		return "the server did not say how many tokens it made (no_usage)"
	}
	return string(w)
}

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K {
	keys := make([]K, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
