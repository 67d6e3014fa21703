package measure

import "github.com/nativebench/nativebench/internal/bench"

// seconds turns a span of nanoseconds into seconds; not ok when an end of it
// was not stamped or it runs backwards.
func seconds(from, to int64) (float64, bool) {
	if from == 0 || to == 0 || to < from {
		return 0, false
	}
	return float64(to-from) / 1e9, true
}

// since makes a column's function of a stamp: the seconds from t0 to it.
func since(stamp func(*bench.Trace) int64) func(*bench.Trace) (float64, bool) {
	return func(tr *bench.Trace) (float64, bool) { return seconds(tr.Start, stamp(tr)) }
}

// afterFirst is how many tokens arrived after the first event, which may bring
// several itself, up to the last mark; not known where nobody counted, and where
// the marks count events that are no tokens. An end-of-sequence token that was
// counted but has no event of its own is after the last mark.
func afterFirst(tr *bench.Trace) (n int, known bool) {
	if tr.Counted == bench.CountNone || tr.MarksLost > 0 || len(tr.Marks) < 2 {
		return 0, false
	}
	first, last := int(tr.Marks[0].N), int(tr.Marks[len(tr.Marks)-1].N)
	unseen := tr.OutputTokens - last
	return last - first, last > first && (unseen == 0 || unseen == 1 && tr.Finish == bench.FinishStop)
}

// decodeSpan is the time from the first event with content to the last and the
// number n of tokens that came in it; not ok when it has no gap or not all of it
// was stamped.
func decodeSpan(tr *bench.Trace) (span float64, n int, ok bool) {
	n, known := afterFirst(tr)
	if !known {
		return 0, 0, false
	}
	span, ok = seconds(tr.FirstToken(), tr.LastToken())
	return span, n, ok && span > 0
}

func tpot(tr *bench.Trace) (float64, bool) {
	span, n, ok := decodeSpan(tr)
	return span / float64(n), ok
}

func decodeSpeed(tr *bench.Trace) (float64, bool) {
	span, n, ok := decodeSpan(tr)
	return float64(n) / span, ok
}

func outputRate(tr *bench.Trace) (float64, bool) {
	e2e, ok := seconds(tr.Start, tr.End)
	if !ok || e2e == 0 || tr.Counted == bench.CountNone {
		return 0, false
	}
	return float64(tr.OutputTokens) / e2e, true
}

// gaps appends the seconds between arrivals. A mark that brings no new token
// is no arrival.
func gaps(tr *bench.Trace, to []float64) []float64 {
	if tr.MarksLost > 0 {
		return to
	}
	for i := 1; i < len(tr.Marks); i++ {
		if a, b := tr.Marks[i-1], tr.Marks[i]; b.N > a.N {
			to = append(to, float64(b.T-a.T)/1e9)
		}
	}
	return to
}

// tokenGaps are the gaps of an answer whose tokens were counted, so that it is
// known whether an event is a token.
func tokenGaps(tr *bench.Trace, to []float64) []float64 {
	if tr.Counted == bench.CountNone {
		return to
	}
	return gaps(tr, to)
}

// perEvent is the output tokens per arrival of those requests of a group that
// count and whose tokens were counted; 0 when nobody counted any.
func perEvent(g *Group) float64 {
	var tokens, arrivals int
	for _, c := range g.Cells {
		for _, r := range c.Requests {
			if !r.counts() || r.MarksLost > 0 || r.Counted == bench.CountNone {
				continue
			}
			tokens += r.OutputTokens
			arrivals += len(r.Marks)
		}
	}
	if arrivals == 0 {
		return 0
	}
	return float64(tokens) / float64(arrivals)
}

// oneToken tells whether an event is a token, nearly: up to 1 token in 20 may
// come with another one, as the end-of-sequence token or the bytes of a
// character in two tokens do.
func oneToken(perEvent float64) bool { return perEvent > 0.95 && perEvent < 1.05 }

// phase makes a column's function of one phase.
func phase(of func(bench.Phases) int64) func(*bench.Trace) (float64, bool) {
	return func(tr *bench.Trace) (float64, bool) {
		return float64(of(tr.Phases)) / 1e9, tr.Phases != (bench.Phases{})
	}
}

func remainder(tr *bench.Trace) (float64, bool) {
	e2e, ok := seconds(tr.Start, tr.End)
	return e2e - float64(tr.Phases.Sum())/1e9, ok && tr.Phases != (bench.Phases{})
}

// accounted is all the time of which a server's account tells, in nanoseconds; 0:
// it gives none.
func accounted(s bench.Server) int64 {
	return s.Tokenize + s.Queue + s.Prefill + s.Decode + s.Inference
}

func serverPhase(of func(bench.Server) int64) func(*bench.Trace) (float64, bool) {
	return func(tr *bench.Trace) (float64, bool) {
		return float64(of(tr.Server)) / 1e9, accounted(tr.Server) > 0
	}
}

func serverRest(tr *bench.Trace) (float64, bool) {
	e2e, ok := seconds(tr.Start, tr.End)
	return e2e - float64(accounted(tr.Server))/1e9, ok && accounted(tr.Server) > 0
}

// outside tells whether an answer's length is not in the task's range.
func outside(g *Group, r *Request) bool {
	return r.OutputTokens < g.Expect[0] || r.OutputTokens > g.Expect[1]
}
