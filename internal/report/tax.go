package report

import (
	"fmt"
	"slices"
	"strings"

	"github.com/nativebench/nativebench/internal/measure"
)

// partNames are the parts of a tax as people read them. In a stream "http" ends
// with the first token.
func partNames() map[string]string {
	return map[string]string{
		"send": "send", "tokenize": "tokenize", "queue": "queue", "http": "HTTP, transport", "prefill": "prefill", "decode": "decode",
		"sampling": "sampling", "detokenize": "detokenize", "hand_over": "hand-over", "http_after": "HTTP, transport after",
	}
}

// tax splits s's time against that of the reference, when the reference stamps
// its phases and s is a server of the same engine that gives an account of its
// own. Over another engine the difference would not be what serving costs.
func (s *seat) tax() (measure.Tax, bool) {
	ref := s.ref()
	if ref == nil || s.engine() == "" || s.engine() != ref.engine() {
		return measure.Tax{}, false
	}
	return measure.TaxOf(ref.group, s.group)
}

// engine is what computes behind the seat; "" if it never answered.
func (s *seat) engine() string {
	for _, b := range s.load.run.Manifest.Backends {
		if b.Backend == s.backend {
			return b.Engine
		}
	}
	return ""
}

// taxed tells whether the tables of taxes show the seat, so that its own account
// need not be printed by itself. Context sweeps are too long for them.
func (s *seat) taxed() bool {
	if s.load.sweep() {
		return false
	}
	for _, other := range s.load.seats {
		if _, ok := other.tax(); ok && (s == other || s == other.ref()) {
			return true
		}
	}
	return false
}

// taxes says, server by server, what each part of its requests costs more than
// the same part in process.
func (v *runView) taxes() (all []section) {
	for _, b := range v.backends {
		n := &notebook{}
		var grids []grid
		connect, pairs := int64(0), 0
		for _, model := range v.models() {
			g := grid{columns: []column{{}, {head: v.backends[0]}, {head: b}, {head: "difference"}, {head: "known by", left: true}}}
			if len(v.models()) > 1 {
				g.columns[0].head = model
			}
			for _, l := range v.loads {
				for _, s := range l.seats {
					if s.backend != b || l.Model != model || l.sweep() {
						continue
					}
					if t, ok := s.tax(); !ok && t.Of > 0 && s.summary.Get("server_decode").Known() && s.ref().summary.Get("phase_decode").Known() {
						n.ref(fmt.Sprintf("%s is not here: %s", s.loadText(), s.leftOut(t.Of, t.Of)))
					} else if ok {
						g.rows = append(g.rows, s.taxRows(&t, n)...)
						connect, pairs = connect+t.Connect, pairs+t.Pairs
					}
				}
			}
			if len(g.rows) > 0 {
				grids = append(grids, g)
			}
		}
		if len(grids) == 0 {
			continue
		}
		s := section{
			title: fmt.Sprintf("Where the milliseconds go: %s against %s", b, v.backends[0]), rank: 1,
			lead:  []string{fmt.Sprintf("Means in ms over the requests that both answered; they add up. Differences: in ms, and as a share of the total of %s. Not tested: the verdicts are those at a glance.", v.backends[0])},
			grids: grids, notes: n.texts,
		}
		if v.label != "" {
			s.title = v.label + " · " + s.title
		}
		say := func(name, format string, args ...any) {
			s.facts = append(s.facts, fact{name: name, text: fmt.Sprintf(format, args...)})
		}
		say(v.backends[0], "the engine's own stamps, part by part; hand-over = its total − all phases: waking whoever reads the tokens, and the engine's loop at work for other requests")
		say("┐ ├ ┘", "%s does not tell these parts apart: one number for all of them", b)
		say("prompt_ms", "by the server's clock, from taking up a prompt that is tokenized and out of the queue until the first token is chosen, sampling it included")
		say("predicted_ms", "from there until the last token is chosen: decode, sampling (the server's own sampler: other code than that of %s), detokenizing, handing tokens to the thread that writes HTTP", v.backends[0])
		say("rest", "total − send − prompt_ms − predicted_ms, by our stamps: tokenize, queue, reading the request, JSON, and the answer's way back. Of a stream, up to the first token's arrival, t1; after t1 it is what the rest of the stream took longer than predicted_ms: below 0 when the first token was longer on its way than the last")
		if connect > 0 {
			say("connections", "opening them took %.2f ms per request, before the clock starts: in no row", float64(connect)/1e6/float64(pairs))
		}
		all = append(all, s)
	}
	return all
}

// taxRows are one load. Rounded values add up, too, in rows and columns, and
// shares are those of the differences as printed: neither contradicts the other.
func (s *seat) taxRows(t *measure.Tax, n *notebook) []row {
	unit, decimals := 1e4, 2 // ns: hundredths of a ms
	if t.Native < int64(t.Pairs)*10_000_000 {
		unit, decimals = 1e3, 3 // a hundredth would be more than the last digit of a share
	}
	ms := func(units int) string { return fixed(float64(units)*unit/1e6, decimals) }
	units := func(ns int64) float64 { return float64(ns) / unit / float64(t.Pairs) }
	var native, server []float64
	for _, sp := range t.Spans {
		server = append(server, units(sp.Server))
		for _, p := range sp.Parts {
			native = append(native, units(p.Native))
		}
	}
	ours, theirs := apportion(native), apportion(server)
	differences := make([]float64, len(t.Spans)) // in thousandths of native's total
	part, whole := 0, 0
	for _, v := range ours {
		whole += v
	}
	for i, sp := range t.Spans {
		difference := theirs[i]
		for range sp.Parts {
			difference -= ours[part]
			part++
		}
		differences[i] = 1000 * float64(difference) / float64(max(whole, 1))
	}
	parts := apportion(differences)

	rows := []row{{group: true, cells: []field{{main: s.loadText()}, {}, {main: fmt.Sprintf("mean of %d %s", t.Pairs, n.refs(s.taxNotes(t))), tone: faint}}}}
	names := partNames()
	at, total := 0, [4]int{}
	for i, sp := range t.Spans {
		first, inProcess := at, 0
		for j, p := range sp.Parts {
			f := field{main: ms(ours[at])}
			if p.Served {
				f = field{main: "—", tone: faint}
			}
			inProcess += ours[at]
			rows = append(rows, row{cells: []field{{main: "  " + names[p.Key]}, f, {aside: bracket(j, len(sp.Parts))}}})
			at++
		}
		middle := &rows[len(rows)-len(sp.Parts)+(at-first-1)/2]
		middle.cells[2].main = ms(theirs[i])
		middle.cells = append(middle.cells, differenceField(ms(theirs[i]-inProcess), parts[i]), field{main: sp.Source, tone: faint})
		for k, v := range []int{inProcess, theirs[i], theirs[i] - inProcess, parts[i]} {
			total[k] += v
		}
	}
	sum := row{cells: []field{
		{main: "  total", tone: strong},
		{main: ms(total[0]), tone: strong},
		{main: ms(total[1]), tone: strong},
		differenceField(ms(total[2]), total[3]),
		{main: "our stamps", tone: faint},
	}}
	sum.cells[3].tone = strong
	return append(rows, sum)
}

// bracket is the i-th of n lines of a brace that holds rows together.
func bracket(i, n int) string {
	switch {
	case n == 1:
		return ""
	case i == 0:
		return "┐"
	case i == n-1:
		return "┘"
	case i == (n-1)/2:
		return "├"
	}
	return "│"
}

// differenceField prints ms and thousandths of the whole; what rounds to 0 has
// no sign.
func differenceField(ms string, thousandths int) field {
	if !strings.HasPrefix(ms, "-") && strings.Trim(ms, "0.") != "" {
		ms = "+" + ms
	}
	share := "0.0%"
	if thousandths != 0 {
		share = fmt.Sprintf("%+.1f%%", float64(thousandths)/10)
	}
	return field{main: ms, aside: share}
}

func (s *seat) loadText() string {
	return fmt.Sprintf("%s · %s ×%d", s.load.Task, s.load.Mode, s.load.Concurrency)
}

// leftOut says why requests are in no tax.
func (s *seat) leftOut(n, of int) string {
	return fmt.Sprintf("%d of %d requests that both answered are left out: a stamp or the account of %s is missing, or the first event held more than one token", n, of, s.backend)
}

// taxNotes are what keeps the two sides of a tax from being alike.
func (s *seat) taxNotes(t *measure.Tax) (texts []string) {
	ref := s.ref()
	if left := t.Of - t.Pairs; left > 0 {
		texts = append(texts, s.leftOut(left, t.Of))
	}
	if t.Differ > 0 {
		texts = append(texts, fmt.Sprintf("%d of %d answers differ in length, %s has %.1f tokens on average and %s %.1f: decode, sampling, detokenize and the total hold different work; --ignore-eos makes them equal",
			t.Differ, t.Pairs, ref.backend, float64(t.NativeTokens)/float64(t.Pairs), s.backend, float64(t.ServerTokens)/float64(t.Pairs)))
	}
	busy := func(c measure.Cell) bool { return c.Busy }
	if slices.ContainsFunc(ref.group.Cells, busy) || slices.ContainsFunc(s.group.Cells, busy) {
		texts = append(texts, "the machine was busy with something else: a difference may be its doing")
	}
	hit := func(c measure.Cell) bool { return c.CacheHit() }
	if slices.ContainsFunc(s.group.Cells, hit) {
		texts = append(texts, "prompt tokens came from a prefix cache that should be off: prompt_ms and the total are less work than in process")
	}
	if s.load.Concurrency > 1 {
		texts = append(texts, fmt.Sprintf("beside other requests waiting is booked in different places: %s counts batches without tokens of this request as queue, the server has them in prompt_ms and predicted_ms. The totals compare like with like, the parts do not quite", ref.backend))
	}
	return texts
}

// jsonTax is where a server's time goes beside that of the reference: means in
// seconds over the pairs. The parts add up to the totals.
type jsonTax struct {
	Reference       string        `json:"reference"`
	Pairs           int           `json:"paired"`
	Of              int           `json:"paired_of"`
	Parts           []jsonTaxPart `json:"parts"`
	ReferenceTotal  float64       `json:"reference_total_s"`
	Total           float64       `json:"total_s"`
	Difference      float64       `json:"difference_s"`
	Share           float64       `json:"difference_of_reference"` // 0.1: a tenth more than the reference
	Connect         float64       `json:"connect_s"`               // before the clock starts: in no total
	ReferenceTokens float64       `json:"reference_output_tokens"`
	Tokens          float64       `json:"output_tokens"`
	Differ          int           `json:"pairs_of_different_length"`
	Notes           []string      `json:"notes"`
}

// jsonTaxPart is a part of the server's time, and what it is made of in the
// reference. What exists over a server only is null there.
type jsonTaxPart struct {
	Reference  map[string]*float64 `json:"reference_s"`
	Server     float64             `json:"server_s"`
	Difference float64             `json:"difference_s"`
	Share      float64             `json:"difference_of_reference"` // of the reference's total
	Source     string              `json:"source"`
}

func (s *seat) taxJSON() *jsonTax {
	t, ok := s.tax()
	if !ok {
		return nil
	}
	share := func(server, native int64) float64 { return float64(server-native) / float64(t.Native) }
	j := &jsonTax{
		Reference: s.ref().backend, Pairs: t.Pairs, Of: t.Of, ReferenceTotal: t.Mean(t.Native), Total: t.Mean(t.Server),
		Difference: t.Mean(t.Server - t.Native), Share: share(t.Server, t.Native), Connect: t.Mean(t.Connect),
		ReferenceTokens: float64(t.NativeTokens) / float64(t.Pairs), Tokens: float64(t.ServerTokens) / float64(t.Pairs),
		Differ: t.Differ, Notes: orEmpty(s.taxNotes(&t)),
	}
	for _, sp := range t.Spans {
		native := sp.Native()
		p := jsonTaxPart{Reference: map[string]*float64{}, Server: t.Mean(sp.Server), Difference: t.Mean(sp.Server - native), Share: share(sp.Server, native), Source: sp.Source}
		for _, part := range sp.Parts {
			p.Reference[part.Key] = nil
			if !part.Served {
				v := t.Mean(part.Native)
				p.Reference[part.Key] = &v
			}
		}
		j.Parts = append(j.Parts, p)
	}
	return j
}
