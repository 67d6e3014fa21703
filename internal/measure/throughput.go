package measure

import "github.com/nativebench/nativebench/internal/bench"

// window is the whole measured window of a cell: from the first start to the
// last end, ramp and drain included.
func (c *Cell) window() (from, to int64) {
	if c.Window[1] > c.Window[0] {
		return c.Window[0], c.Window[1]
	}
	for _, r := range c.Requests {
		if r.Class == bench.Cancelled {
			continue
		}
		if to == 0 || r.Start < from {
			from = r.Start
		}
		to = max(to, r.End)
	}
	return from, to
}

// steady is the part of a cell in which every worker was busy: from the moment
// the last worker started its first request until the first worker ended its
// last one. Failed requests keep a worker busy too. Not ok when a worker had
// none, or they were never all busy at once.
func (g *Group) steady(c *Cell) (from, to int64, ok bool) {
	type seat struct{ first, last int64 }
	seats := map[int]seat{}
	for _, r := range c.Requests {
		if r.Class == bench.Cancelled {
			continue
		}
		s, known := seats[r.Worker]
		if !known || r.Start < s.first {
			s.first = r.Start
		}
		s.last = max(s.last, r.End)
		seats[r.Worker] = s
	}
	if len(seats) == 0 || len(seats) < g.Concurrency {
		return 0, 0, false
	}
	first := true
	for _, s := range seats {
		if from = max(from, s.first); first || s.last < to {
			to, first = s.last, false
		}
	}
	return from, to, to > from
}

// wholeRequests is requests per second over the whole window.
func wholeRequests(_ *Group, c *Cell) (float64, bool) {
	n := 0
	for _, r := range c.Requests {
		if r.counts() {
			n++
		}
	}
	span, ok := seconds(c.window())
	return float64(n) / span, ok && span > 0 && n > 0
}

// wholeTokens is output tokens per second over the whole window.
func wholeTokens(_ *Group, c *Cell) (float64, bool) {
	n := 0
	for _, r := range c.Requests {
		if !r.counts() {
			continue
		}
		if r.Counted == bench.CountNone {
			return 0, false
		}
		n += r.OutputTokens
	}
	span, ok := seconds(c.window())
	return float64(n) / span, ok && span > 0 && n > 0
}

// inside is the share of a request's time that lies in [from, to].
func inside(r Request, from, to int64) float64 {
	if r.End <= r.Start {
		return 0
	}
	return float64(max(0, min(r.End, to)-max(r.Start, from))) / float64(r.End-r.Start)
}

// steadyRequests counts each request with the share of its time that lies in
// the steady part: counting the ends alone would be off by up to one request
// per worker, which is much of a short cell.
func steadyRequests(g *Group, c *Cell) (float64, bool) {
	from, to, ok := g.steady(c)
	if !ok {
		return 0, false
	}
	n := 0.0
	for _, r := range c.Requests {
		if r.counts() {
			n += inside(r, from, to)
		}
	}
	return n / (float64(to-from) / 1e9), n > 0
}

// steadyTokens counts, when streaming, the tokens that arrived in the steady
// part; of an answer that came whole, the share as in steadyRequests.
func steadyTokens(g *Group, c *Cell) (float64, bool) {
	from, to, ok := g.steady(c)
	if !ok {
		return 0, false
	}
	n := 0.0
	for _, r := range c.Requests {
		switch {
		case !r.counts():
		case r.Counted == bench.CountNone:
			return 0, false
		case len(r.Marks) < 2 || r.MarksLost > 0:
			n += inside(r, from, to) * float64(r.OutputTokens)
		default:
			n += tokensInside(r.Trace, from, to)
		}
	}
	return n / (float64(to-from) / 1e9), n > 0
}

// tokensInside is how many tokens arrived in (from, to]. Marks that count
// events are scaled so that they add up to the tokens.
func tokensInside(tr *bench.Trace, from, to int64) float64 {
	var n, before int32
	for _, m := range tr.Marks {
		if m.T > from && m.T <= to {
			n += m.N - before
		}
		before = m.N
	}
	if before == 0 {
		return 0
	}
	return float64(n) * float64(tr.OutputTokens) / float64(before)
}
