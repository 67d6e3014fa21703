package report

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"github.com/nativebench/nativebench/internal/measure"
	"github.com/nativebench/nativebench/internal/stats"
)

// line is one metric in the tables that set backends side by side.
type line struct {
	key string
	p99 bool // its 99th percentile instead of its median
	// when says whether the line is worth its place; nil: always.
	when func([]*seat) bool
}

// lines are the metrics of the tables, in order.
func lines() []line {
	return []line{
		{key: "e2e"},
		{key: "e2e", p99: true, when: anyP99("e2e")},
		{key: "last_token", when: departs("last_token", "e2e")},
		{key: "ttft"},
		{key: "ttft", p99: true, when: anyP99("ttft")},
		{key: "first_line", when: departs("first_line", "ttft")},
		{key: "tpot", when: streaming},
		{key: "itl", when: anyKnown("itl")},
		{key: "itl", p99: true, when: anyP99("itl")},
		{key: "chunk_gap", when: chunked},
		{key: "speed"},
		{key: "decode_speed", when: streaming},
		{key: "req_per_s"},
		{key: "steady_req_per_s", when: anyKnown("steady_req_per_s")},
		{key: "tok_per_s", when: parallel},
		{key: "steady_tok_per_s", when: anyKnown("steady_tok_per_s")},
		{key: "energy_per_request", when: anyKnown("energy_per_request")},
		{key: "energy_per_token", when: anyKnown("energy_per_token")},
		{key: "output_tokens"},
		{key: "outside_range", when: counted("outside_range")},
	}
}

func streaming(seats []*seat) bool { return seats[0].group.Mode == measure.Stream }
func parallel(seats []*seat) bool  { return seats[0].group.Concurrency > 1 }

func some(seats []*seat, has func(measure.Summary) bool) bool {
	return slices.ContainsFunc(seats, func(s *seat) bool { return has(s.summary) })
}

func anyKnown(key string) func([]*seat) bool {
	return func(seats []*seat) bool {
		return some(seats, func(s measure.Summary) bool { return s.Get(key).Known() })
	}
}

func anyP99(key string) func([]*seat) bool {
	return func(seats []*seat) bool {
		return some(seats, func(s measure.Summary) bool { return !math.IsNaN(s.Get(key).P99) })
	}
}

func counted(key string) func([]*seat) bool {
	return func(seats []*seat) bool {
		return some(seats, func(s measure.Summary) bool { return s.Get(key).Count > 0 })
	}
}

// departs: the metric differs from its sibling by more than 1 %, so that it
// says something of its own.
func departs(key, sibling string) func([]*seat) bool {
	return func(seats []*seat) bool {
		return some(seats, func(s measure.Summary) bool {
			return math.Abs(s.Get(key).Median/s.Get(sibling).Median-1) > 0.01
		})
	}
}

// chunked: a backend's events are not tokens, so that gaps between tokens are
// not known for it.
func chunked(seats []*seat) bool {
	return some(seats, func(s measure.Summary) bool {
		return s.Get("chunk_gap").Known() && !s.Get("itl").Known()
	})
}

// value is what the line shows of an estimate.
func (l line) value(e measure.Estimate) float64 {
	switch {
	case !e.Known():
		return math.NaN()
	case e.Column.Count != nil:
		return float64(e.Count)
	case l.p99:
		return e.P99
	}
	return e.Median
}

// side is how the backends of one table stand: who is compared with whom.
type side struct {
	seats []*seat // the first is the reference
	heads []string
	// wide: there is room for the interval of each ratio and the range of
	// throughputs.
	wide bool
}

// split cuts a row of backends into tables of the reference and two others, or
// one other if there is one only.
func split(seats []*seat, heads []string) (sides []side) {
	const others = 2
	if len(seats) <= others {
		return []side{{seats, heads, true}}
	}
	for from := 1; from < len(seats); from += others {
		to := min(from+others, len(seats))
		sides = append(sides, side{
			slices.Concat(seats[:1], seats[from:to]), slices.Concat(heads[:1], heads[from:to]), false,
		})
	}
	return sides
}

// columns are the heads of a table of that side.
func (s side) columns() []column {
	cols := []column{{}}
	for i, h := range s.heads {
		cols = append(cols, column{head: h})
		if i > 0 {
			cols = append(cols, column{head: "vs " + s.heads[0], joined: true, left: true})
		}
	}
	return cols
}

// head is the row above a load's lines: the load, and what came of its
// requests.
func (s side) head(title string, n *notebook) row {
	r := row{group: true, cells: []field{{main: title}}}
	for i, seat := range s.seats {
		r.cells = append(r.cells, seat.status(s.seats[0], n))
		if i > 0 {
			r.cells = append(r.cells, field{})
		}
	}
	return r
}

// status is a backend's count of requests with the notes on them.
func (s *seat) status(ref *seat, n *notebook) field {
	if s.summary.Requests == 0 {
		return field{main: strings.TrimSpace("no result " + n.refs(s.prefixed(s.trouble))), tone: alarm}
	}
	f := field{tone: faint}
	ok := s.summary.OK
	for _, w := range slices.Sorted(maps.Keys(s.summary.LeftOut)) {
		ok -= s.summary.LeftOut[w]
		f.main += fmt.Sprintf(", %d %s", s.summary.LeftOut[w], w)
		f.tone = alarm
	}
	retried := ""
	if n := s.summary.Retried; n > 0 {
		retried = fmt.Sprintf(" (%d retried)", n)
	}
	f.main = fmt.Sprintf("%d ok%s", ok, retried) + f.main
	if bad := s.summary.Requests - s.summary.OK; bad > 0 {
		f.main += fmt.Sprintf(", %d failed", bad)
		f.tone = alarm
	}
	if n := s.summary.CutOff; n > 0 {
		f.main += fmt.Sprintf(", %d cut off", n)
	}
	if len(s.trouble) > 0 {
		f.tone = alarm
	}
	f.main = strings.TrimSpace(f.main + " " + n.refs(s.prefixed(s.trouble, s.summary.Notes, s.remarks, s.pairing(ref))))
	return f
}

// pairing says how much of the load ratios rest on, if that is not all of it.
func (s *seat) pairing(ref *seat) (texts []string) {
	if s == ref {
		return nil
	}
	var parts []string
	for _, of := range []struct{ metric, what string }{{"e2e", "requests"}, {"req_per_s", "repeats"}} {
		if c, ok := s.compared(ref, of.metric); ok && c.Used < c.Of {
			parts = append(parts, fmt.Sprintf("%d of %d %s", c.Used, c.Of, of.what))
		}
	}
	if len(parts) > 0 {
		texts = append(texts, "ratios are over what both sides have: "+strings.Join(parts, ", "))
	}
	return texts
}

// prefixed puts the backend's name before each text.
func (s *seat) prefixed(texts ...[]string) (out []string) {
	for _, t := range slices.Concat(texts...) {
		out = append(out, s.name()+": "+t)
	}
	return out
}

// row is one metric of all backends of the side.
func (s side) row(l line, label string, n *notebook) row {
	estimates := make([]measure.Estimate, len(s.seats))
	values := make([]float64, len(s.seats))
	for i, seat := range s.seats {
		estimates[i] = seat.summary.Get(l.key)
		values[i] = l.value(estimates[i])
	}
	col := estimates[0].Column
	sc := scaleFor(col.Unit, values)
	for i := range values {
		values[i] *= sc.factor
	}
	places := decimals(values)
	if col.Unit == "tokens" || col.Unit == "requests" {
		places = 0
	}
	r := row{cells: []field{{main: label, aside: strings.TrimSpace(sc.unit + " " + arrow(col.Better))}}}
	for i, e := range estimates {
		r.cells = append(r.cells, s.seats[i].value(l, e, values[i], places, s.wide, n))
		if i > 0 {
			r.cells = append(r.cells, s.ratio(l, s.seats[i], n))
		}
	}
	return r
}

// value is one number, with its interval.
func (s *seat) value(l line, e measure.Estimate, v float64, places int, wide bool, n *notebook) field {
	switch {
	case s.summary.OK == 0:
		return field{main: "—", tone: faint} // the head of the load says why
	case !e.Known():
		return field{main: "—", aside: n.ref(e.Missing), tone: faint}
	case e.Column.Count != nil:
		return field{main: fixed(v, 0), aside: fmt.Sprintf("of %d", e.N)}
	case l.p99:
		if math.IsNaN(v) {
			return field{main: "—", aside: n.ref(e.NoP99()), tone: faint}
		}
		return field{main: fixed(v, places)}
	}
	f := field{main: fixed(v, places)}
	switch {
	case e.Column.Gaps != nil:
	case e.Column.Unit == "tokens":
		if e.Min != e.Max {
			f.aside = fmt.Sprintf("%.0f–%.0f", e.Min, e.Max)
		}
		return f
	case e.Column.Cell != nil && math.IsNaN(e.Lo):
		// One value per repeat: the few there are say more than that there are
		// too few.
		if e.N > 1 && wide {
			factor := v / e.Median
			f.aside = fixed(e.Min*factor, places) + "–" + fixed(e.Max*factor, places)
		}
	default:
		f.aside = spread(e.Median, e.Lo, e.Hi)
	}
	if e.Spread > stats.Disagree {
		f.aside = strings.TrimSpace(f.aside + " " + n.ref(fmt.Sprintf("%s: repeats disagree by up to %.2f×; an interval over all of them is too narrow", s.name(), disagreement(s))))
	}
	return f
}

// disagreement is the largest ratio between repeats over the metrics of a seat.
func disagreement(s *seat) float64 {
	worst := 1.0
	for _, l := range lines() {
		if e := s.summary.Get(l.key); e.Known() && e.Column.Better != measure.Neither && e.Spread > worst {
			worst = e.Spread
		}
	}
	return worst
}

// ratio is one number against the reference's.
func (s side) ratio(l line, seat *seat, n *notebook) field {
	c, ok := seat.compared(s.seats[0], l.key)
	if !ok {
		return field{}
	}
	e := seat.summary.Get(l.key)
	if l.p99 {
		if c.Ratio = e.P99 / s.seats[0].summary.Get(l.key).P99; math.IsNaN(c.Ratio) || math.IsInf(c.Ratio, 0) {
			return field{}
		}
		if c.Used < c.Of {
			return field{} // of different requests
		}
		return field{main: times(c.Ratio), tone: faint} // p99 is not tested
	}
	return verdict(c, e.Column.Better, s.wide, n)
}

// verdict is a ratio, with "~" when there is no significant difference and "?"
// when there is no verdict, with a note of why; wide: with its interval.
func verdict(c stats.Comparison, better measure.Direction, wide bool, n *notebook) field {
	if math.IsNaN(c.Ratio) {
		return field{main: "—", tone: faint}
	}
	var f field
	var interval, why string
	f.main, interval = ratioText(c.Ratio, c.Lo, c.Hi)
	switch c.Verdict {
	case stats.NoneFound:
		f.aside, f.tone = "~", faint
	case stats.TooFew, stats.Withheld:
		f.aside, f.tone, why = "?", faint, n.ref("no verdict: "+c.Why)
	case stats.Differs:
		switch {
		case c.Ratio == 1:
		case (c.Ratio > 1) == (better == measure.Higher):
			f.tone = good
		default:
			f.tone = bad
		}
	}
	if wide && interval != "" {
		f.aside = pad(f.aside, 2) + interval
	}
	if why != "" {
		f.aside += " " + why
	}
	return f
}

func arrow(d measure.Direction) string {
	switch d {
	case measure.Lower:
		return "↓"
	case measure.Higher:
		return "↑"
	}
	return ""
}

// backends are the names of the seats.
func (l *load) backends() (names []string) {
	for _, s := range l.seats {
		names = append(names, s.backend)
	}
	return names
}

// label is the line's name in a table.
func (l line) label() string {
	c, err := measure.ByKey(l.key)
	if err != nil {
		panic(err) // lines names a column that is not there
	}
	if l.p99 {
		return "  p99"
	}
	return c.Name
}

// shown are the lines worth showing for a load.
func shown(seats []*seat) (out []line) {
	var some []*seat
	for _, s := range seats {
		if s.summary.OK > 0 {
			some = append(some, s)
		}
	}
	if len(some) == 0 {
		return nil
	}
	for _, l := range lines() {
		if l.when == nil || l.when(some) {
			out = append(out, l)
		}
	}
	return out
}

// sideBySide sets the backends of several loads side by side, a group of lines per
// load, in as many grids as the backends need. What would be too wide does without
// intervals of ratios and ranges of throughputs.
func sideBySide(loads []*load, n *notebook) (grids []grid) {
	if len(loads) == 0 {
		return nil
	}
	for t, side := range split(loads[0].seats, loads[0].backends()) {
		g := beside(loads, t, side.wide, n)
		if side.wide && g.inAll(g.widths()) > maxWidth {
			g = beside(loads, t, false, n)
		}
		grids = append(grids, g)
	}
	return grids
}

// beside is the table of one of the sides.
func beside(loads []*load, t int, wide bool, n *notebook) (g grid) {
	for _, l := range loads {
		sides := split(l.seats, l.backends())
		if t >= len(sides) {
			continue
		}
		s := sides[t]
		s.wide = wide
		if g.columns == nil {
			g.columns = s.columns()
		}
		g.rows = append(g.rows, s.head(l.title(), n))
		for _, m := range shown(l.seats) {
			g.rows = append(g.rows, s.row(m, m.label(), n))
		}
	}
	return g
}
