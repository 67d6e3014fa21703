package timeline

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/nativebench/nativebench/internal/bench"
	"github.com/nativebench/nativebench/internal/results"
)

// lanes are threads of one process on which slices never overlap: a slice that
// would is put on one more.
type lanes struct {
	w     *writer
	pid   int
	tids  *int // the last one given out
	first int  // tid of the first lane; 0: the next one
	name  string
	all   []lane
}

type lane struct {
	tid int
	end int64
}

// take returns the thread for a slice and keeps its time.
func (l *lanes) take(from, to int64) (tid int) {
	i := slices.IndexFunc(l.all, func(have lane) bool { return have.end <= from })
	if i < 0 {
		i = len(l.all)
		name := l.name
		if i > 0 {
			name = fmt.Sprintf("%s (%d)", name, i+1)
		}
		if tid = l.first; tid == 0 || i > 0 {
			*l.tids++
			tid = *l.tids
		}
		l.w.name(l.pid, tid, name)
		l.all = append(l.all, lane{tid: tid})
	}
	l.all[i].end = to
	return l.all[i].tid
}

// request writes one request: its slice, the phases in it, its tokens.
func (tl *timeline) request(a *attempt, rec *results.Record) {
	name, about := requestName(rec), requestArgs(rec)
	if rec.Start == 0 {
		a.untold++
		tl.sum.Requests++
		tl.sum.Failed++
		about["time"] = "not known: it was never sent; shown where the cell begins"
		if at, ok := a.at(a.start); ok {
			tl.w.instant(a.pid, a.pid, at, "request", name, about)
		}
		return
	}
	from, ok := a.at(rec.Start)
	to, _ := a.at(rec.End)
	if !ok || to < from {
		tl.before++
		return
	}
	tl.sum.Requests++
	if rec.Class != bench.OK {
		tl.sum.Failed++
	}
	a.end = max(a.end, rec.End)
	connect := max(from-rec.Connect, 0)
	client := a.lanes[rec.Worker]
	if client == nil {
		client = &lanes{w: tl.w, pid: a.pid, tids: &tl.tids, name: fmt.Sprintf("client %d", rec.Worker)}
		if rec.Worker >= 0 && rec.Worker < a.Concurrency {
			client.first = a.tid + rec.Worker
		}
		a.lanes[rec.Worker] = client
	}
	tid := client.take(connect, to)
	if connect < from {
		tl.w.begin(a.pid, tid, connect, "phase", "connect", nil)
		tl.w.end(a.pid, tid, from)
	}
	tl.w.begin(a.pid, tid, from, "request", name, about)
	tokens := newArrivals(rec, a, from, to)
	for _, p := range phases(rec, a.Mode == "stream") {
		tokens.write(tl, a.pid, tid, p.from+a.offset)
		var told args
		if p.length {
			told = args{"measured": "its length, by the engine or the server; its place here is assumed"}
		}
		tl.w.begin(a.pid, tid, p.from+a.offset, "phase", p.name, told)
		tokens.write(tl, a.pid, tid, p.to+a.offset)
		tl.w.end(a.pid, tid, p.to+a.offset)
	}
	tokens.write(tl, a.pid, tid, to)
	tl.w.end(a.pid, tid, to)
	a.flight.add(rec, a.offset)
}

// requestName says first what must not be overlooked.
func requestName(rec *results.Record) string {
	name := fmt.Sprintf("request %d", rec.Index)
	switch {
	case rec.Class != bench.OK:
		name = fmt.Sprintf("FAILED (%s) %s", rec.Class, name)
	case len(rec.Warnings) > 0:
		name = fmt.Sprintf("WARNING (%s) %s", strings.Join(texts(rec.Warnings), ", "), name)
	case rec.Retries > 0:
		name = "RETRIED " + name
	}
	if rec.Warmup {
		name += ", warm-up"
	}
	return name
}

func texts(list []bench.Warning) []string {
	out := make([]string, len(list))
	for i, w := range list {
		out[i] = string(w)
	}
	return out
}

// requestArgs are the record's own fields, under their names there.
func requestArgs(rec *results.Record) args {
	a := args{
		"request": fmt.Sprintf("%s#%d", rec.Cell, rec.Index), "i": rec.Index, "attempt": rec.Attempt, "worker": rec.Worker, "prompt": rec.Prompt,
		"seed":     fmt.Sprint(rec.Seed), // as text: readers of JSON may keep 53 bits
		"start_ns": fmt.Sprint(rec.Start),
	}
	if rec.PromptTokens >= 0 {
		a["prompt_tokens"] = rec.PromptTokens
	}
	if rec.OutputTokens >= 0 {
		a["output_tokens"] = rec.OutputTokens
	}
	a.set("counted", string(rec.Counted))
	a.set("finish", string(rec.Finish))
	a.set("class", string(rec.Class))
	a.set("error", rec.Error)
	a.set("warnings", texts(rec.Warnings))
	a.set("retries", rec.Retries)
	for _, c := range rec.Earlier {
		earlier, _ := a["earlier"].([]string)
		a["earlier"] = append(earlier, string(c))
	}
	a.set("coalesced", rec.Coalesced)
	a.set("unstamped", rec.Unstamped)
	a.set("marks_lost", rec.MarksLost)
	if rec.Warmup {
		a["warmup"] = true
	}
	if rec.Phases != (bench.Phases{}) {
		a["phases_ns"] = rec.Phases
	}
	if rec.Server != (bench.Server{}) {
		a["server"] = rec.Server
	}
	return a
}

// phase is one part of a request; stamps. length: only its length was measured.
type phase struct {
	name     string
	from, to int64
	length   bool
}

// phases splits a request. They follow each other, without overlap, within it.
// What was not told apart bears the names of all that is in it.
func phases(rec *results.Record, stream bool) []phase {
	p := splitter{at: rec.Start, end: rec.End}
	sending := "send"
	if rec.Phases != (bench.Phases{}) {
		sending = "tokenize and submit" // in process, one call does both
	}
	p.stamped(sending, rec.Sent)
	tokenize, queue, prefill, decode, told := lengths(rec)
	if !stream {
		switch {
		case rec.Class != bench.OK:
			p.stamped("waiting for an answer", rec.End)
		case told:
			p.long("tokenize", tokenize)
			p.long("queue", queue)
			p.long("prefill", prefill)
			p.long("decode", decode)
			p.stamped("end of the answer", rec.End)
		default:
			if rec.FirstByte > 0 {
				p.stamped("queue, prefill and decode", rec.FirstByte)
				p.stamped("end of the answer", rec.End)
				break
			}
			p.stamped("queue, prefill and decode", rec.End)
		}
		return p.out
	}
	first, last := rec.FirstToken(), rec.LastToken()
	if first == 0 {
		p.stamped("waiting for a first token", rec.End)
		return p.out
	}
	if !told {
		p.stamped("queue, prefill to first token", first)
	} else {
		// The engine's queue holds waits of the decoding, too: only what the
		// time to the first token has room for lies here.
		first = min(max(first, p.at), p.end)
		p.long("tokenize", min(tokenize, first-p.at))
		p.long("queue", min(queue, first-p.at-prefill))
		p.stamped("prefill to first token", first)
	}
	p.stamped("decode", last)
	p.stamped("end of the answer", rec.End)
	return p.out
}

// lengths are the engine's own, or the server's, in nanoseconds; told: the
// queue and the prefill are among them.
func lengths(rec *results.Record) (tokenize, queue, prefill, decode int64, told bool) {
	if p := rec.Phases; p != (bench.Phases{}) {
		if rec.Sent > 0 {
			p.Tokenize = 0 // before that
		}
		return p.Tokenize, p.Queue, p.Prefill, p.Decode + p.Sampling + p.Detokenize, true
	}
	s := rec.Server
	return s.Tokenize, s.Queue, s.Prefill, s.Decode, s.Queue > 0 && s.Prefill > 0
}

// splitter cuts a request's time into phases, from its begin on.
type splitter struct {
	at, end int64
	out     []phase
}

// stamped is a phase that lasts until a stamp.
func (s *splitter) stamped(name string, to int64) { s.add(phase{name: name, to: to}) }

// long is a phase of a known length.
func (s *splitter) long(name string, length int64) {
	s.add(phase{name: name, to: s.at + length, length: true})
}

func (s *splitter) add(p phase) {
	p.from, p.to = s.at, min(p.to, s.end)
	if p.to > p.from {
		s.out, s.at = append(s.out, p), p.to
	}
}

// arrivals are the marks of a request that brought something, not yet written.
type arrivals struct {
	marks    []bench.Mark
	before   int32 // tokens until then
	what     string
	offset   int64
	from, to int64
}

// tokenArgs are the arguments of their instants.
type tokenArgs struct {
	N     int32 `json:"n"`
	Total int32 `json:"total"`
	Off   int64 `json:"stamp_off_ns,omitempty"` // how far its stamp is from where it is shown
}

// newArrivals takes the marks; from and to are the request's, in the trace's time.
func newArrivals(rec *results.Record, a *attempt, from, to int64) *arrivals {
	what := "event" // with content; how many tokens each brought is not known
	if n := len(rec.Marks); n > 0 && int(rec.Marks[n-1].N) == rec.OutputTokens {
		what = "token"
	}
	return &arrivals{marks: rec.Marks, what: what, offset: a.offset, from: from, to: to}
}

// write writes those that came until a time, that included: one instant for all
// that came at once.
func (ar *arrivals) write(tl *timeline, pid, tid int, until int64) {
	for len(ar.marks) > 0 {
		t, n := ar.time(), int32(0)
		if t > until {
			return
		}
		ar.from = t
		told := tokenArgs{}
		for len(ar.marks) > 0 && ar.time() == t {
			m := ar.marks[0]
			n += max(m.N-ar.before, 0)
			ar.before, ar.marks = max(m.N, ar.before), ar.marks[1:]
			if off := m.T + ar.offset - t; off != 0 {
				told.Off = off
			}
		}
		if n == 0 {
			continue // a mark without a new token is no arrival
		}
		name := ar.what
		if n > 1 {
			name = fmt.Sprintf("%d %ss", n, ar.what)
		}
		told.N, told.Total = n, ar.before
		tl.w.instant(pid, tid, t, ar.what, name, told)
		tl.sum.Tokens += int(n)
	}
}

// time is when the next mark is shown: never outside of the request or before
// another, whatever its stamp says.
func (ar *arrivals) time() int64 {
	return min(max(ar.marks[0].T+ar.offset, ar.from), ar.to)
}

// flight is what the requests of an attempt had in the air. It is known only
// when all of them were read, so it is kept in little: the tokens by steps of
// time, not one by one.
type flight struct {
	edges  []change
	steps  map[int64]float64 // tokens that came in each step
	landed bool
}

type change struct {
	t        int64
	requests int
	tokens   float64
}

// flightStep is how exact the arrivals of tokens are in the context in flight,
// in ns. They are written at the end of their step.
const flightStep = 5_000_000

func (f *flight) add(rec *results.Record, offset int64) {
	if f.landed {
		return
	}
	if f.steps == nil {
		f.steps = map[int64]float64{}
	}
	from, to := rec.Start+offset, rec.End+offset
	all := float64(max(rec.PromptTokens, 0))
	f.edges = append(f.edges, change{from, 1, all})
	if n := len(rec.Marks); n > 0 && rec.Marks[n-1].N > 0 {
		// Marks that count events are scaled so that they add up to the tokens.
		scale := float64(max(rec.OutputTokens, 0)) / float64(rec.Marks[n-1].N)
		before := int32(0)
		for _, m := range rec.Marks {
			more := float64(m.N-before) * scale
			before = m.N
			// What comes in the step of the request's end goes with it.
			if step := max(m.T+offset, from) / flightStep; more > 0 && step < to/flightStep {
				f.steps[step] += more
				all += more
			}
		}
	}
	f.edges = append(f.edges, change{to, -1, -all})
}

// land writes the counters of an attempt whose requests are all there.
func (a *attempt) land(tl *timeline) {
	if a == nil || a.flight.landed {
		return
	}
	changes := a.flight.edges
	for step, tokens := range a.flight.steps {
		changes = append(changes, change{(step + 1) * flightStep, 0, tokens})
	}
	a.flight = &flight{landed: true}
	slices.SortFunc(changes, func(x, y change) int { // whole, so that the same run gives the same sums
		return cmp.Or(cmp.Compare(x.t, y.t), cmp.Compare(x.requests, y.requests), cmp.Compare(x.tokens, y.tokens))
	})
	requests, tokens, edge := 0, 0.0, false
	for i, c := range changes {
		requests, tokens, edge = requests+c.requests, tokens+c.tokens, edge || c.requests != 0
		if i+1 < len(changes) && changes[i+1].t == c.t {
			continue // written with the last change of this moment
		}
		if edge {
			tl.w.counter(a.pid, c.t, "requests in flight", "count", float64(requests))
			tl.sum.Samples++
		}
		if requests == 0 {
			tokens = 0 // sums of shares may leave a remainder
		}
		tl.w.counter(a.pid, c.t, "context of requests in flight", "tokens", tokens)
		tl.sum.Samples++
		edge = false
	}
}
