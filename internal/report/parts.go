package report

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/nativebench/nativebench/internal/bench"
	"github.com/nativebench/nativebench/internal/measure"
	"github.com/nativebench/nativebench/internal/stats"
)

// sweepMetrics are what a context sweep is about.
func sweepMetrics() []string { return []string{"ttft", "e2e", "decode_speed"} }

// sweepLoads are the loads of each sweep, by model, mode and concurrency, short
// prompts first.
func (v *runView) sweepLoads() (all [][]*load) {
	type key struct {
		model, mode string
		concurrency int
	}
	at := map[key]int{}
	for _, l := range v.loads {
		if !l.sweep() {
			continue
		}
		k := key{l.Model, l.Mode, l.Concurrency}
		i, known := at[k]
		if !known {
			i = len(all)
			at[k], all = i, append(all, nil)
		}
		all[i] = append(all[i], l)
	}
	for _, loads := range all {
		slices.SortStableFunc(loads, func(a, b *load) int { return a.Prompt - b.Prompt })
	}
	return all
}

// fit is the line through a backend's medians over the prompt lengths.
func fit(loads []*load, backend, key string) (stats.Line, bool) {
	var x, y []float64
	for _, l := range loads {
		for _, s := range l.seats {
			if e := s.summary.Get(key); s.backend == backend && e.Known() {
				x, y = append(x, float64(l.Prompt)), append(y, e.Median)
			}
		}
	}
	return stats.Fit(x, y)
}

// sweeps are the context-scaling tables.
func (v *runView) sweeps() (all []section) {
	for _, loads := range v.sweepLoads() {
		n := &notebook{}
		s := section{
			title: v.title(fmt.Sprintf("context scaling, %s", loads[0].title()), loads[0].Model), rank: 2,
			lead: []string{fmt.Sprintf("%s per length and repeat · %s", count(loads[0].Requests, "request"), loadText(loads))},
		}
		for t := range split(loads[0].seats, loads[0].backends()) {
			s.grids = append(s.grids, sweep(loads, t, n))
		}
		s.notes = n.texts
		all = append(all, s)
	}
	return all
}

// sweep is the t-th table of one sweep: a group per metric, a line per length,
// and the slope of the fitted line.
func sweep(loads []*load, t int, n *notebook) (g grid) {
	sides := make([]side, 0, len(loads))
	for _, l := range loads {
		if s := split(l.seats, l.backends()); t < len(s) {
			sides = append(sides, s[t])
		}
	}
	g.columns = sides[0].columns()
	for _, key := range sweepMetrics() {
		if !slices.ContainsFunc(loads, func(l *load) bool { return anyKnown(key)(l.seats) }) {
			continue
		}
		g.rows = append(g.rows, row{group: true, cells: []field{{main: columnName(key)}}})
		for _, s := range sides {
			r := s.row(line{key: key}, fmt.Sprintf("%d tokens", s.seats[0].load.Prompt), n)
			for i, seat := range s.seats {
				// What came of the requests has no line of its own here.
				if marks := n.refs(seat.prefixed(seat.trouble, seat.summary.Notes, seat.remarks, seat.pairing(s.seats[0]))); marks != "" && key == "e2e" {
					f := &r.cells[max(2*i, 1)]
					f.aside = strings.TrimSpace(f.aside + " " + marks)
				}
			}
			g.rows = append(g.rows, r)
		}
		g.rows = append(g.rows, sides[0].slope(loads, key, n))
	}
	return g
}

// slope is the line of fitted slopes beneath a metric.
func (s side) slope(loads []*load, key string, n *notebook) row {
	col := s.seats[0].summary.Get(key).Column
	lines := make([]stats.Line, len(s.seats))
	known := make([]bool, len(s.seats))
	slopes := make([]float64, len(s.seats))
	for i, of := range s.seats {
		lines[i], known[i] = fit(loads, of.backend, key)
		slopes[i] = 1000 * lines[i].Slope
	}
	sc := scaleFor(col.Unit, slopes)
	for i := range slopes {
		slopes[i] *= sc.factor
	}
	places := decimals(slopes)
	r := row{cells: []field{{main: "per 1000 tokens", aside: sc.unit, tone: strong}}}
	for i := range s.seats {
		var f field
		if !known[i] {
			f = field{main: "—", aside: n.ref("a slope needs 3 prompt lengths with results"), tone: faint}
		} else {
			f = field{main: fmt.Sprintf("%+.*f", places, slopes[i]), aside: fmt.Sprintf("R² %.2f", lines[i].R2), tone: strong}
		}
		r.cells = append(r.cells, f)
		if i > 0 {
			ratio := field{}
			if known[0] && known[i] && samePrompts(loads, s.seats[i].backend, s.seats[0].backend, key) && slopes[0] > 0 && slopes[i] > 0 {
				ratio = field{main: times(slopes[i] / slopes[0]), tone: faint}
			}
			r.cells = append(r.cells, ratio)
		}
	}
	return r
}

// samePrompts tells whether two backends answered the same requests throughout a
// sweep.
func samePrompts(loads []*load, backend, ref, key string) bool {
	for _, l := range loads {
		var a, b *seat
		for _, s := range l.seats {
			switch s.backend {
			case backend:
				a = s
			case ref:
				b = s
			}
		}
		if a == nil || b == nil {
			return false
		}
		if c, ok := a.compared(b, key); !ok || c.Used < c.Of {
			return false
		}
	}
	return true
}

// phases says where each backend's time goes, as far as it tells, where no table
// of taxes does.
func (v *runView) phases() (all []section) {
	type account struct {
		probe, title, lead string
		keys               []string
	}
	accounts := []account{
		{
			"phase_decode", "Where the milliseconds of %s go", "Means over requests in ms, since means add up, by the engine's own stamps; remainder = total latency − all phases.",
			[]string{"phase_tokenize", "phase_queue", "phase_prefill", "phase_decode", "phase_sampling", "phase_detokenize", "phase_remainder"},
		},
		{
			"server_rest", "Where the milliseconds of %s go", "Means over requests in ms, by the server's own account, as far as it gives one (decode with its sampling; inference: prefill and decode in one); the rest, total latency less all of that, is what serving adds.",
			[]string{"server_tokenize", "server_queue", "server_prefill", "server_decode", "server_inference", "server_rest"},
		},
	}
	for _, b := range v.backends {
		for _, a := range accounts {
			g := grid{columns: []column{{}, {head: "total"}}}
			var seats []*seat
			for _, l := range v.loads {
				for _, s := range l.seats {
					if s.backend == b && !s.taxed() && s.summary.Get(a.probe).Known() {
						seats = append(seats, s)
					}
				}
			}
			var keys []string // that it tells
			for _, k := range a.keys {
				if anyKnown(k)(seats) {
					_, name, _ := strings.Cut(k, "_")
					keys, g.columns = append(keys, k), append(g.columns, column{head: name})
				}
			}
			for _, s := range seats {
				g.rows = append(g.rows, s.phaseRows(v.loadName(s.load), keys)...)
			}
			if len(g.rows) > 0 {
				title := fmt.Sprintf(a.title, b)
				if v.label != "" {
					title = v.label + " · " + title
				}
				all = append(all, section{title: title, rank: 1, lead: []string{a.lead}, grids: []grid{g}})
			}
		}
	}
	return all
}

// phaseRows are a load's phases in milliseconds and, beneath, as shares that
// add up to 100 %.
func (s *seat) phaseRows(name string, keys []string) []row {
	parts := make([]float64, len(keys))
	total := 0.0
	for i, k := range keys {
		if e := s.summary.Get(k); e.Known() {
			parts[i] = 1e3 * e.Mean
		}
		total += parts[i]
	}
	ms := row{cells: []field{{main: name}, {main: fixed(total, decimals([]float64{total}))}}}
	share := row{cells: []field{{main: fmt.Sprintf("  %s ×%d", s.load.Mode, s.load.Concurrency), tone: faint}, {main: "100.0%", tone: faint}}}
	for i, text := range shares(parts) {
		places := 0 // three digits
		for limit := 100.0; places < 3 && math.Abs(parts[i]) < limit; limit /= 10 {
			places++
		}
		ms.cells = append(ms.cells, field{main: fixed(parts[i], places)})
		share.cells = append(share.cells, field{main: text, tone: faint})
	}
	return []row{ms, share}
}

// memory sets the engine's own account beside what the host saw.
func (v *runView) memory() []section {
	s := section{
		title: "Memory", rank: 1,
		lead: []string{"Weights, KV cache and compute buffers as the engine counts them; peak RSS and PSS of the backend's process tree while cells were measured, mapped weights included. PSS divides shared pages among the processes alive then (an idle server that maps the same weights file, too); RSS counts them whole."},
	}
	if v.label != "" {
		s.title = v.label + " · " + s.title
	}
	for _, model := range v.models() {
		if g, ok := v.memoryOf(model); ok {
			s.grids = append(s.grids, g)
		}
	}
	if len(s.grids) == 0 {
		return nil
	}
	return []section{s}
}

func (v *runView) memoryOf(model string) (grid, bool) {
	head := "MiB at peak"
	if len(v.models()) > 1 {
		head = model + ", MiB"
	}
	g := grid{columns: []column{{head: head}, {head: "weights"}, {head: "KV cache"}, {head: "compute"}, {head: "engine in all"}, {head: "peak RSS"}, {head: "peak PSS"}}}
	found := false
	for _, b := range v.backends {
		parts := v.engineMemory(model, b)
		rss, pss := v.peak(model, b, "peak_rss"), v.peak(model, b, "peak_pss")
		var devices []string
		for _, p := range parts {
			if !slices.Contains(devices, p.Device) {
				devices = append(devices, p.Device)
			}
		}
		if len(devices) == 0 {
			devices = []string{""}
		}
		found = found || len(parts) > 0 || rss > 0
		for i, d := range devices {
			r := row{cells: []field{{main: b, aside: d}}}
			if i > 0 {
				r.cells[0].main = ""
			}
			all := 0.0
			for _, part := range []string{"weights", "kv", "compute"} {
				size := 0.0
				for _, p := range parts {
					if p.Device == d && p.Part == part {
						size += float64(p.Bytes)
					}
				}
				all += size
				r.cells = append(r.cells, mebibytes(size, len(parts) > 0))
			}
			r.cells = append(r.cells, mebibytes(all, len(parts) > 0))
			if i == 0 {
				r.cells = append(r.cells, mebibytes(rss, rss > 0), mebibytes(pss, pss > 0))
			} else {
				r.cells = append(r.cells, field{}, field{})
			}
			g.rows = append(g.rows, r)
		}
	}
	return g, found
}

// mebibytes is sizeField without the unit, where the head has it.
func mebibytes(b float64, known bool) field {
	f := sizeField(b, known)
	f.aside = ""
	return f
}

// sizeField prints bytes in MiB, which is fine enough for buffers and still
// short for weights.
func sizeField(b float64, known bool) field {
	if !known {
		return field{main: "—", tone: faint}
	}
	return field{main: fixed(b/(1<<20), 1), aside: "MiB"}
}

// engineMemory is the engine's own account of its largest cell.
func (v *runView) engineMemory(model, backend string) (parts []bench.MemoryPart) {
	most := int64(-1)
	consider := func(m []bench.MemoryPart) {
		sum := int64(0)
		for _, p := range m {
			sum += p.Bytes
		}
		if len(m) > 0 && sum > most {
			parts, most = m, sum
		}
	}
	for _, c := range v.cells {
		if c.Model == model && c.Backend == backend && c.Event != nil {
			consider(c.Event.Memory)
		}
	}
	for _, b := range v.Manifest.Backends {
		if b.Backend == backend && (b.Model == model || len(v.models()) == 1) {
			consider(b.Memory)
		}
	}
	return parts
}

// peak is the largest of a memory column over all cells.
func (v *runView) peak(model, backend, key string) (top float64) {
	for _, l := range v.loads {
		for _, s := range l.seats {
			if e := s.summary.Get(key); l.Model == model && s.backend == backend && e.Known() {
				top = max(top, e.Max)
			}
		}
	}
	return top
}

// legend says how to read the tables and how to get at the rest.
func (d *document) legend() section {
	ref := d.runs[0].backends
	name := "the first backend"
	if len(ref) > 0 {
		name = ref[0]
	}
	if len(d.runs) > 1 {
		name = "the reference"
	}
	s := section{title: "How to read this", rank: 1}
	say := func(name, text string) { s.facts = append(s.facts, fact{name: name, text: text}) }
	say("12.3 ±4%", "median, and the larger half of its 95 % interval (order statistics over different requests, which are taken as independent; repeats of one are not); ±? fewer than 6")
	say("2.61 2.60–2.63", "median of the repeats, and their range: throughput has one value per repeat")
	ratios := len(ref) > 1 || len(d.runs) > 1
	if ratios {
		say("1.02× [a–b]", "median over median of "+name+", over the requests that both sides answered, with its 95 % bootstrap interval (draws repeats and requests); ~ no significant difference at 5 % (pairs of requests, Wilcoxon's signed-rank test; throughput: Mann-Whitney U); ? no verdict, the note says why: it takes two repeats that agree, on a quiet machine")
	}
	say("↓ ↑", "lower or higher is better")
	say("p99", "from 100 different requests on (between tokens: 20 requests, 100 gaps); exact, all values are kept. Its ratio is not tested")
	say("samples", "successful requests of all repeats, without warm-up and without answers whose warning (cut_short, short_output, count_mismatch, no_finish, redialled) leaves them out. Those and failed ones are counted and never averaged in; requests cut off when the run was stopped are neither")
	for _, l := range d.used() {
		c, err := measure.ByKey(l)
		if err != nil {
			panic(err)
		}
		text := firstSentence(c.Definition)
		if c.Gaps != nil {
			text += "; shown: the median of all gaps"
			if ratios {
				text += ". The ratio is of the requests' own median gaps, so it need not be the quotient of those shown"
			}
		}
		say(c.Name, text)
	}
	say("t0 t1 tL n", "t0 just before the request's first byte; t1, tL first and last token; n output tokens as the backend counts them, never chunks")
	dirs := make([]string, len(d.runs))
	for i, r := range d.runs {
		dirs[i] = r.Dir
	}
	say("more", "nativebench explain METRIC · nativebench explain")
	say("recompute", fmt.Sprintf("nativebench report %s --format csv (or json), from requests.jsonl: one line a request, every token's stamp", strings.Join(dirs, " ")))
	return s
}

// used are the keys of the metrics that the tables show, without the counts.
func (d *document) used() (keys []string) {
	for _, l := range lines() {
		if slices.Contains(keys, l.key) {
			continue
		}
		for _, v := range d.runs {
			for _, load := range v.loads {
				for _, m := range shown(load.seats) {
					if m.key == l.key && !slices.Contains(keys, l.key) && anyKnown(l.key)(load.seats) {
						keys = append(keys, l.key)
					}
				}
			}
		}
	}
	return keys
}

// firstSentence is a definition as far as its first full stop.
func firstSentence(s string) string {
	if i := strings.Index(s, ". "); i > 0 {
		return s[:i]
	}
	return s
}
