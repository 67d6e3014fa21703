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
	// Retries is how many times it was sent again; the trace is of the last.
	Retries int
}

// counts tells whether the request is in the numbers: it succeeded, at once, and
// its answer is what was asked for. One that was sent again had waited for the
// server before its clock started, and met another load than was asked for.
func (r *Request) counts() bool {
	return r.Class == bench.OK && r.Retries == 0 && Spoilt(r.Trace) == ""
}

// Spoilt is the first warning that keeps a successful request out of the numbers;
// "" if there is none.
func Spoilt(tr *bench.Trace) bench.Warning {
	for _, w := range tr.Warnings {
		if spoils(w) {
			return w
		}
	}
	return ""
}

// spoils tells whether an answer with that warning is other work than was asked
// for, or is not known to be that work: of a wrong length, of a length that is
// told in two ways, without a word on why it ended, or sent twice. The other warnings qualify
// a sound answer: bytes held back and tokens that nobody counted change no time,
// and prompt tokens from a cache take the verdict from what holds prefill.
func spoils(w bench.Warning) bool {
	switch w {
	case bench.WarnCut, bench.WarnShort, bench.WarnCount, bench.WarnNoFinish, bench.WarnRedialled:
		return true
	}
	return false
}

// Cell is one repeat of a group. Warm-up requests are not in it.
type Cell struct {
	Repeat   int // from 0; no two cells of a group have the same
	Requests []Request
	Window   [2]int64 // first start and last end, ns; zero: taken from Requests
	// LoadNS and FirstConnNS are 0 where there is none; PeakRSS and PeakPSS, in
	// bytes, are 0 or below where they are not known.
	LoadNS, FirstConnNS int64
	Passes, FilledRows  int64 // over the weights, and rows computed in them for nobody; 0 passes: not known
	PeakRSS, PeakPSS    int64
	CPUSeconds          float64 // of the backend's process tree; 0 or below: not known
	// GPU is what the GPUs that the backend used did, and GPUMissing why that is
	// not known.
	GPU        GPU
	GPUMissing string
	// Partial: the cell did not run to its end, so that what it has one value of
	// is not compared. Busy: other programs took of the machine, or of a GPU, meanwhile.
	// CacheHits: the server says of all its requests together that prompt tokens came
	// from a prefix cache that should be off.
	Partial, Busy, CacheHits bool
}

// GPU is what GPUs did in a cell's window, all that the backend used added up. A
// value that is not known is -1, and Missing says why by the key of its column.
type GPU struct {
	Devices      int
	PeakBytes    int64 // of the backend
	EnergyJ      float64
	MeanW, PeakW float64
	Busy         float64 // 0 to 1, mean over the devices
	SMMHz        float64 // mean
	MaxCelsius   float64 // the hottest
	Missing      map[string]string
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
	Requests int // measured, failures included; not those that were cut off
	OK       int
	Retried  int                   // of OK: only after it was sent again; in no other number
	LeftOut  map[bench.Warning]int // of OK: in no other number for this warning, the first such one; without the retried
	CutOff   int                   // stopped with the run: neither succeeded nor failed
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
	// request; of a per-cell column, one per whole cell, of index 0.
	items  map[place]float64
	busy   bool // in one of the repeats
	cached bool // the column holds prefill, some of which a prefix cache saved
	shared bool // it is of a whole window, of which requests that do not count took a part
}

// place is a request's place in its load.
type place struct{ index, repeat int }

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
		LeftOut:  map[bench.Warning]int{},
		Failures: map[bench.Class]int{},
		Warnings: map[bench.Warning]int{},
		Counted:  map[bench.TokenSource]int{},
	}
	for _, c := range g.Cells {
		for _, r := range c.Requests {
			if r.Class == bench.Cancelled {
				s.CutOff++
				continue
			}
			s.Requests++
			if r.Class != bench.OK {
				s.Failures[r.Class]++
				continue
			}
			s.OK++
			if w := Spoilt(r.Trace); r.Retries > 0 {
				s.Retried++
			} else if w != "" {
				s.LeftOut[w]++
			}
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
	byIndex := map[int][]float64{}
	var repeats [][]float64
	e.items = map[place]float64{}
	for i := range g.Cells {
		e.busy = e.busy || g.Cells[i].Busy
		e.cached = e.cached || c.Prefill && g.Cells[i].CacheHit()
		e.shared = e.shared || c.Prefill && c.Cell != nil && g.Cells[i].notCounted()
		if v := c.values(g, &g.Cells[i], byIndex, e.items); len(v) > 0 {
			repeats = append(repeats, v)
			e.Repeats = append(e.Repeats, stats.Median(stats.Sorted(v)))
		}
	}
	if len(repeats) == 0 {
		if e.Missing = "no request that succeeded has it"; c.Cell != nil {
			e.Missing = "not known for this cell"
		}
		if n := g.allLeftOut(); n > 0 {
			e.Missing = allLeftOut(n)
		}
		return e
	}
	if c.Cell != nil {
		e.Summary = stats.Summarize(slices.Concat(repeats...)) // each repeat is a sample of its own
	} else {
		// Repeats ask the same requests again, with the same seeds.
		var items [][]float64
		for _, i := range sortedKeys(byIndex) {
			items = append(items, byIndex[i])
		}
		e.Summary = stats.SummarizeItems(items)
	}
	if c.Gaps != nil {
		e.gapTails(byIndex)
	}
	if c.Better != Neither {
		var warning string
		if e.Spread, warning = stats.Spread(repeats); warning != "" {
			e.Warnings = append(e.Warnings, warning)
		}
	}
	return e
}

// gapRequests is how many different requests the tails of pooled gaps need, and
// p99 as many gaps as of anything: the gaps of one answer depend on each other.
const gapRequests = 20

// gapTails leaves of a summary of gaps what may be said. There is no interval:
// gaps of one request are not independent.
func (e *Estimate) gapTails(byIndex map[int][]float64) {
	e.Lo, e.Hi, e.P90, e.P99, e.Warnings = math.NaN(), math.NaN(), math.NaN(), math.NaN(), nil
	if e.Items >= gapRequests && e.N >= stats.Needs(0.99) {
		var all []float64
		for _, v := range byIndex {
			all = append(all, v...)
		}
		all = stats.Sorted(all)
		e.P90, e.P99 = stats.Quantile(all, 0.9), stats.Quantile(all, 0.99)
		return
	}
	e.Warnings = append(e.Warnings, e.NoP99())
}

// NoP99 says what a 99th percentile lacks.
func (e *Estimate) NoP99() string {
	if e.Column.Gaps != nil {
		return fmt.Sprintf("p99 of gaps needs %d different requests and %d gaps, has %d and %d", gapRequests, stats.Needs(0.99), e.Items, e.N)
	}
	return fmt.Sprintf("p99 needs %d different requests, has %d", stats.Needs(0.99), e.Items)
}

// values returns what one cell gives, adds it to byIndex, and adds to items what
// may be compared: of gaps, the median of each request.
func (c Column) values(g *Group, cell *Cell, byIndex map[int][]float64, items map[place]float64) (pooled []float64) {
	if c.Cell != nil {
		if v, ok := c.Cell(g, cell); ok {
			pooled = append(pooled, v)
			if !cell.Partial {
				items[place{0, cell.Repeat}] = v
			}
		}
		return pooled
	}
	for i := range cell.Requests {
		r := &cell.Requests[i]
		if !r.counts() {
			continue
		}
		from := len(pooled)
		if c.Request == nil {
			pooled = c.Gaps(r.Trace, pooled)
		} else if v, ok := c.Request(r.Trace); ok {
			pooled = append(pooled, v)
		}
		if v := pooled[from:]; len(v) > 0 {
			byIndex[r.Index] = append(byIndex[r.Index], v...)
			items[place{r.Index, cell.Repeat}] = stats.Median(stats.Sorted(v))
		}
	}
	return pooled
}

func (c Column) count(g *Group, e Estimate) Estimate {
	for i := range g.Cells {
		n := 0
		for j := range g.Cells[i].Requests {
			r := &g.Cells[i].Requests[j]
			if r.Class == bench.Cancelled || !r.counts() && !c.CountsFailed || c.TokenCount != "" && r.Counted == bench.CountNone {
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
		if n := g.allLeftOut(); n > 0 {
			e.Missing = allLeftOut(n)
		}
	}
	return e
}

// allLeftOut is how many requests succeeded where none of them counts, 0 where
// one does.
func (g *Group) allLeftOut() (n int) {
	for _, c := range g.Cells {
		for _, r := range c.Requests {
			if r.counts() {
				return 0
			}
			if r.Class == bench.OK {
				n++
			}
		}
	}
	return n
}

// counted is how many requests count.
func (g *Group) counted() (n int) {
	for _, c := range g.Cells {
		for _, r := range c.Requests {
			if r.counts() {
				n++
			}
		}
	}
	return n
}

func allLeftOut(n int) string {
	return fmt.Sprintf("none of the %d answers counts, see the warnings", n)
}

// notCounted tells whether there is a request, failed or not, that does not count
// and took its time.
func (c *Cell) notCounted() bool {
	return slices.ContainsFunc(c.Requests, func(r Request) bool { return r.Class != bench.Cancelled && !r.counts() })
}

// CacheHit tells whether prompt tokens came from a prefix cache that should be
// off, by the server's word of a request that counts or of all together.
func (c *Cell) CacheHit() bool {
	return c.CacheHits || slices.ContainsFunc(c.Requests, func(r Request) bool {
		return r.counts() && slices.Contains(r.Warnings, bench.WarnCacheHit)
	})
}

// Compare sets an estimate against that of the reference. Values of requests
// are paired by Index and repeat, values of cells are matched by repeat and then
// not paired; what the other side lacks is left out, and Used and Of say how
// much. Of gaps, each request's own median gap is compared. Counts are not
// compared: their Ratio is NaN.
//
// There is a verdict only with two repeats or more on both sides that agree with
// each other, on a quiet machine: what differs from process to process, and from
// one minute to the next, cannot be seen inside one cell.
func Compare(e, ref Estimate) stats.Comparison {
	if !e.Known() || !ref.Known() || e.Column.Count != nil {
		return stats.Compare(nil, nil)
	}
	repeats := map[int]bool{}
	indices := map[int]int{} // to rows
	last := 0
	for p := range e.items {
		if _, both := ref.items[p]; both {
			repeats[p.repeat] = true
		}
		last = max(last, p.repeat)
	}
	for p := range ref.items {
		last = max(last, p.repeat)
	}
	var c stats.Comparison
	if e.Column.Cell != nil {
		var xs, rs []float64
		for _, r := range sortedKeys(repeats) {
			xs, rs = append(xs, e.items[place{0, r}]), append(rs, ref.items[place{0, r}])
		}
		c = stats.Compare(xs, rs)
		c.Used, c.Of = len(xs), max(len(e.items), len(ref.items))
		if len(xs) == 0 {
			c.Why = "no repeat that both sides ran to its end"
		}
	} else {
		for p := range e.items {
			indices[p.index] = 0
		}
		for p := range ref.items {
			indices[p.index] = 0
		}
		for row, i := range sortedKeys(indices) {
			indices[i] = row
		}
		table := func(items map[place]float64) [][]float64 {
			rows := make([][]float64, len(indices))
			for i := range rows {
				rows[i] = slices.Repeat([]float64{math.NaN()}, last+1)
			}
			for p, v := range items {
				rows[indices[p.index]][p.repeat] = v
			}
			return rows
		}
		c = stats.ComparePaired(table(e.items), table(ref.items))
	}
	if len(repeats) == 1 { // before all else: that is the first thing to mend
		c.Verdict, c.Why = stats.TooFew, "one repeat: what differs from process to process cannot be seen"
	}
	for _, why := range doubts(e, ref) {
		c.Withhold(why)
	}
	if math.IsInf(c.Ratio, 0) {
		c.Ratio = math.NaN()
	}
	return c
}

// Doubts are the reasons for which an estimate is set against no other, the
// first to be mended first; none: it may be.
func (e Estimate) Doubts() []string { return doubts(e) }

// doubts are those of any of them.
func doubts(all ...Estimate) (why []string) {
	note := func(reason string, of func(Estimate) bool) {
		if slices.ContainsFunc(all, of) {
			why = append(why, reason)
		}
	}
	note("the machine was busy with something else", func(e Estimate) bool { return e.busy })
	note("prompt tokens came from a prefix cache that should be off", func(e Estimate) bool { return e.cached })
	note("requests that failed or are left out took part of the window", func(e Estimate) bool { return e.shared })
	note(fmt.Sprintf("repeats disagree by more than %.2f×", stats.Disagree), func(e Estimate) bool { return e.Spread > stats.Disagree })
	return why
}

// Lengths compares the output tokens of two groups over the requests that both
// answered: 1.05 is 5 % more than the reference. NaN where they are not known.
func Lengths(s, ref Summary) float64 {
	ours, theirs := 0.0, 0.0
	e, r := s.Get("output_tokens"), ref.Get("output_tokens")
	for p, n := range e.items {
		if m, both := r.items[p]; both {
			ours, theirs = ours+n, theirs+m
		}
	}
	if theirs <= 0 {
		return math.NaN()
	}
	return ours / theirs
}

// notes says what must be known about all numbers of the group.
func notes(g *Group, s *Summary) (notes []string) {
	say := func(format string, args ...any) { notes = append(notes, fmt.Sprintf(format, args...)) }
	if s.CutOff > 0 {
		say("%d more requests were cut off when the run was stopped; they count neither as answered nor as failed", s.CutOff)
	}
	for _, class := range sortedKeys(s.Failures) {
		say("%d of %d requests failed: %s%s", s.Failures[class], s.Requests, class, firstError(g, class))
	}
	if s.Retried > 0 {
		say("%d of %d requests succeeded only after a retry; they are left out of latencies, speeds and rates, so the load was lower than asked", s.Retried, s.Requests)
	}
	for _, w := range sortedKeys(s.Warnings) {
		text := warningText(w)
		if spoils(w) {
			text += ": left out of latencies, speeds, rates and comparisons"
		}
		say("%d of %d answers: %s", s.Warnings[w], s.OK, text)
	}
	if n := s.Requests - g.counted(); n > 0 && n < s.Requests {
		what, then := "rates", "they"
		energy := ""
		if s.Get("energy_per_request").Known() {
			what, then, energy = "rates and energy", "rates", ", and energy per request and token higher,"
		}
		say("%s are of the whole window, of which requests that do not count (%d of %d) took a part: %s are lower%s than without them", what, n, s.Requests, then, energy)
	}
	if n := s.Counted[bench.CountTokenizer]; n > 0 {
		say("%d of %d answers: output tokens were counted by a local tokenizer, approximately", n, s.OK)
	}
	var events, coalesced, unstamped, lost, unknown int
	for _, c := range g.Cells {
		for _, r := range c.Requests {
			if r.counts() {
				events += r.Events
				coalesced += r.Coalesced
				unstamped += r.Unstamped
				lost += min(r.MarksLost, 1)
				if _, known := afterFirst(r.Trace); !known && r.OutputTokens > 1 && len(r.Marks) > 1 && r.MarksLost == 0 {
					unknown++
				}
			}
		}
	}
	if g.Mode == Stream && coalesced > 0 && float64(coalesced) > coalescedShare*float64(events) {
		say("%.0f %% of events shared a receive stamp with the one before: gaps between tokens are coarser than they look", 100*float64(coalesced)/float64(events))
	}
	if unstamped > 0 {
		say("%d reads had no kernel receive stamp and were timed by the process, later by its scheduling delay", unstamped)
	}
	if g.Mode == Stream && unknown > 0 {
		say("%d answers do not tell how many tokens each event brought; %s", unknown, noFirst)
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
	case bench.WarnCut:
		return "ended for length with fewer tokens than were asked for: the server cut them to a limit of its own, such as its context (cut_short)"
	case bench.WarnCount:
		return "the server's token count and its events, ids or text disagree, or more events came than tokens were asked for (count_mismatch)"
	case bench.WarnCacheHit:
		return "prompt tokens came from a prefix cache that should be off (prefix_cache): what holds prefill is too fast and has no verdict"
	case bench.WarnNoFinish:
		return "no finish_reason was sent (no_finish)"
	case bench.WarnRedialled:
		return "sent again on a new connection, since the server had closed the old one without saying that it would (redialled)"
	case bench.WarnHeldBack:
		return "ended inside a UTF-8 sequence, whose bytes were held back (held_back): its tokens and times count"
	case bench.WarnTokenCount:
		return "the server did not say how many tokens it made (no_usage): its times count, whether its length is the asked one is not known"
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
