package report

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"path/filepath"
	"slices"
	"strings"

	"github.com/nativebench/nativebench/internal/measure"
	"github.com/nativebench/nativebench/internal/results"
	"github.com/nativebench/nativebench/internal/stats"
)

// Whole is what a report over the runs of a whole experiment says besides what
// is in them.
type Whole struct {
	Command []string   // argv that made them
	Omitted []Omission // what was asked for and is in no run
}

// Omission is something that was not measured.
type Omission struct {
	What string `json:"what"` // a backend, a model, a run, a part of one
	Why  string `json:"why"`
}

// WholeMarkdown answers the experiment's questions from several runs, for
// GitHub: for which task is which stack fastest, at what memory, how it scales
// with requests at once and with context, and what the claims of the experiment
// look like. No number in it is an average over loads.
func WholeMarkdown(w io.Writer, runs []*results.Run, of Whole) error {
	d, err := newDocument(runs)
	if err != nil {
		return err
	}
	var b strings.Builder
	for i, s := range d.whole(of) {
		if i > 0 {
			b.WriteByte('\n')
		}
		markdownSection(&b, s)
	}
	_, err = io.WriteString(w, b.String())
	return err
}

// WholeTerminal is WholeMarkdown for a terminal.
func WholeTerminal(w io.Writer, runs []*results.Run, of Whole, opt Options) error {
	d, err := newDocument(runs)
	if err != nil {
		return err
	}
	p := newPrinter(w, opt)
	for i, s := range d.whole(of) {
		if i > 0 {
			p.blank()
		}
		p.section(s)
	}
	_, err = io.WriteString(w, p.out.String())
	return err
}

// wholeSchema is the version of WholeJSON's format.
const wholeSchema = 1

// WholeJSON is the answers for programs; the numbers are in JSON's.
func WholeJSON(w io.Writer, runs []*results.Run, of Whole) error {
	d, err := newDocument(runs)
	if err != nil {
		return err
	}
	type answer struct {
		Load    string             `json:"load"`
		Metric  string             `json:"metric"`
		Unit    string             `json:"unit"`
		Better  string             `json:"better"`
		Fastest string             `json:"first"`
		Tied    []string           `json:"not_told_apart,omitempty"` // from the first: no difference was found
		Open    []string           `json:"no_verdict,omitempty"`     // against the first
		Medians map[string]float64 `json:"medians"`
	}
	type jsonClaim struct {
		About   string   `json:"about"`
		Claim   string   `json:"claim"`
		Verdict string   `json:"verdict"`
		Why     string   `json:"why,omitempty"`
		Numbers []string `json:"numbers"`
	}
	out := struct {
		Schema  int         `json:"schema"`
		Kind    string      `json:"kind"`
		Command []string    `json:"command"`
		Runs    []string    `json:"runs"`
		Omitted []Omission  `json:"omitted"`
		Answers []answer    `json:"answers"`
		Claims  []jsonClaim `json:"claims"`
	}{Schema: wholeSchema, Kind: "nativebench answers", Command: unlimited(of.Command), Omitted: orEmpty(of.Omitted), Answers: []answer{}}
	for _, v := range d.runs {
		out.Runs = append(out.Runs, v.Dir)
		for _, l := range v.loads {
			for _, key := range wholeMetrics() {
				r, ok := l.rank(key, anyBackend)
				if !ok {
					continue
				}
				a := answer{Load: l.Load, Metric: key, Unit: r.column.Unit, Better: string(r.column.Better), Fastest: r.seats[0].backend, Medians: map[string]float64{}}
				for i, s := range r.seats {
					a.Medians[s.backend] = s.summary.Get(key).Median
					switch r.against[i].Verdict {
					case stats.NoneFound:
						a.Tied = append(a.Tied, s.backend)
					case stats.TooFew, stats.Withheld:
						if i > 0 {
							a.Open = append(a.Open, s.backend)
						}
					}
				}
				out.Answers = append(out.Answers, a)
			}
		}
	}
	for _, c := range d.claims(of) {
		out.Claims = append(out.Claims, jsonClaim{c.about, c.text, string(c.verdict), c.why, orEmpty(c.numbers)})
	}
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(out)
}

// wholeMetrics are what "fastest" is asked of.
func wholeMetrics() []string { return []string{"e2e", "ttft", "tpot", "req_per_s"} }

// ranking is the backends of a load, the best first.
type ranking struct {
	column  measure.Column
	seats   []*seat
	against []stats.Comparison // each against the first; of the first itself nothing
}

func anyBackend(*seat) bool { return true }

// isServer leaves the bare model out.
func isServer(s *seat) bool { return s.backend != reference }

// failedMost is the share of a backend's requests that failed or are left out for
// a warning, from which its medians, which are of the others, rank it no more.
const failedMost = 0.1

// unranked says why a backend is in no ranking; "" if it is.
func (s *seat) unranked() string {
	if n, all := s.summary.Requests-s.summary.OK+s.spoilt(), s.summary.Requests; float64(n) > failedMost*float64(all) {
		return fmt.Sprintf("%s: %d of %d requests failed or are left out: not ranked", s.backend, n, all)
	}
	if s.otherModel() {
		return s.backend + " does not run the same model: not ranked"
	}
	return ""
}

// rank orders the backends of a load by the median of a metric. Those that do
// not run the same model, or that failed, are not in it.
func (l *load) rank(key string, among func(*seat) bool) (r ranking, ok bool) {
	for _, s := range l.seats {
		e := s.summary.Get(key)
		if among(s) && e.Known() && !math.IsNaN(e.Median) && s.unranked() == "" {
			r.seats = append(r.seats, s)
			r.column = e.Column
		}
	}
	if len(r.seats) == 0 {
		return r, false
	}
	slices.SortStableFunc(r.seats, func(a, b *seat) int {
		x, y := a.summary.Get(key).Median, b.summary.Get(key).Median
		if r.column.Better == measure.Higher {
			x, y = y, x
		}
		switch {
		case x < y:
			return -1
		case x > y:
			return 1
		}
		return 0
	})
	for i, s := range r.seats {
		var c stats.Comparison
		if i > 0 {
			c, _ = s.compared(r.seats[0], key)
		}
		r.against = append(r.against, c)
	}
	return r, true
}

// otherModel says that the backend was found not to run the reference's model.
func (s *seat) otherModel() bool {
	for _, m := range s.load.run.Manifest.SameModel {
		if m.Model == s.load.Model && m.Backend == s.backend && m.Verdict == "different" {
			return true
		}
	}
	return false
}

// whole lays out the answers.
func (d *document) whole(of Whole) (all []section) {
	all = append(all, d.wholeHeading(of), d.inShort())
	for _, v := range d.runs {
		all = append(all, v.fastest()...)
	}
	all = append(all, d.wholeMemory())
	for _, v := range d.runs {
		all = append(all, v.parallel()...)
	}
	for _, v := range d.runs {
		all = append(all, v.context()...)
	}
	all = append(all, d.claimSection(of), d.doubts())
	return slices.DeleteFunc(all, func(s section) bool { return s.title == "" })
}

// wholeHeading says what ran and what did not.
func (d *document) wholeHeading(of Whole) section {
	s := section{title: "nativebench: the whole experiment", rank: 1}
	say := func(name, format string, args ...any) {
		s.facts = append(s.facts, fact{name: name, text: fmt.Sprintf(format, args...)})
	}
	var machines, tools []string
	note := func(list *[]string, text string) {
		if !slices.Contains(*list, text) {
			*list = append(*list, text)
		}
	}
	for _, v := range d.runs {
		env := environment(v.Manifest.Environment)
		for _, g := range v.Manifest.Environment.GPUs {
			env += " · " + gpuText(g, v.Manifest.Environment.Versions)
		}
		if why := v.Manifest.Environment.GPUsMissing; why != "" {
			env += " · GPU " + why
		}
		note(&machines, env)
		note(&tools, toolText(v.Manifest.Tool))
	}
	for _, m := range machines {
		say("machine", "%s", m)
	}
	for _, t := range tools {
		say("tool", "nativebench %s", t)
	}
	for _, v := range d.runs {
		done := 0
		for _, c := range v.cells {
			if c.Done() {
				done++
			}
		}
		say(strings.TrimSpace("run "+v.label), "%s: %s, %d of %d cells done, %s", filepath.Base(v.Dir), strings.Join(v.models(), ", "), done, len(v.cells), v.when())
	}
	for _, v := range d.runs {
		for _, key := range v.models() {
			if v.synthetic(key) {
				text := key + ": synthetic weights (random numbers in the real shape): speed and memory are real, the text is noise"
				if r := v.model(key).Relative; r != "" {
					text = fmt.Sprintf("%s: synthetic weights of a relative, %s: its speed and memory are not the model's", key, r)
				}
				if !slices.ContainsFunc(s.facts, func(f fact) bool { return f.text == text }) {
					s.facts = append(s.facts, fact{"WARNING", text, alarm})
				}
			}
		}
		for _, same := range v.Manifest.SameModel {
			if !same.OK {
				s.facts = append(s.facts, fact{"WARNING", v.label + ": " + sameModelText(same), alarm})
			}
		}
	}
	for _, o := range of.Omitted {
		say("left out", "%s: %s", o.What, o.Why)
	}
	for _, v := range d.runs {
		var missing []results.CellResult
		for _, c := range v.cells {
			if c.State == results.CellNotRun {
				missing = append(missing, c)
			}
		}
		if len(missing) > 0 {
			say("left out", "%s: %s never started; complete it with the command below", filepath.Base(v.Dir), count(len(missing), "cell"))
		}
	}
	if len(of.Command) > 0 {
		say("made by", "%s", strings.Join(unlimited(of.Command), " "))
	}
	for _, v := range d.runs {
		if len(v.Manifest.Command) > 0 {
			say(strings.TrimSpace("run "+v.label+" alone"), "%s", strings.Join(unlimited(v.Manifest.Command), " "))
		}
	}
	for i := len(s.facts) - 1; i > 0; i-- {
		if s.facts[i].name == s.facts[i-1].name {
			s.facts[i].name = ""
		}
	}
	return s
}

// unlimited is a command line without the time budget of the call that began: it
// decides how far one call comes, not what is measured, and others went on.
func unlimited(command []string) []string {
	var args []string
	for i := 0; i < len(command); i++ {
		switch name, _, joined := strings.Cut(strings.TrimLeft(command[i], "-"), "="); {
		case name != "time-budget" || !strings.HasPrefix(command[i], "-"):
			args = append(args, command[i])
		case !joined:
			i++ // its value
		}
	}
	return args
}

// inShort counts, by model and task, in how many loads each backend came first.
func (d *document) inShort() section {
	s := section{title: "For which task is which stack fastest", rank: 1}
	alone := false // there is a row of servers alone
	g := grid{columns: []column{{head: "model · task"}, {head: "total latency", left: true}, {head: "first token", left: true}, {head: "requests/s", left: true}}}
	keys := []string{"e2e", "ttft", "req_per_s"}
	for _, v := range d.runs {
		var seen []string
		for _, l := range v.loads {
			name := l.Model + " · " + l.Task
			if l.sweep() || slices.Contains(seen, name) {
				continue
			}
			seen = append(seen, name)
			for _, of := range []struct {
				label string
				among func(*seat) bool
			}{{name, anyBackend}, {"  servers alone", isServer}} {
				r := row{cells: []field{{main: of.label}}}
				rivals := false
				for _, key := range keys {
					wins, sure, loads := map[string]int{}, map[string]int{}, 0
					for _, other := range v.loads {
						if other.Model != l.Model || other.Task != l.Task {
							continue
						}
						rank, ok := other.rank(key, of.among)
						if !ok || len(rank.seats) < 2 {
							continue
						}
						rivals = true
						loads++
						first := rank.seats[0].backend
						if wins[first]++; rank.against[1].Verdict == stats.Differs {
							sure[first]++
						}
					}
					r.cells = append(r.cells, field{main: winners(wins, sure, loads)})
				}
				if rivals {
					g.rows = append(g.rows, r)
					alone = alone || of.label != name
				}
			}
		}
	}
	if len(g.rows) == 0 {
		s.lead = []string{"Not answered: no load was measured of more than one backend."}
		return s
	}
	among := ""
	if alone {
		among = ", of all and of the servers alone"
	}
	s.lead = []string{
		"In how many loads (modes and numbers of requests at once) of a task a backend has the best median" + among + ". " +
			"In brackets: in how many of these the difference to the next one passes a test; without that it may be chance. The numbers follow by model.",
	}
	s.grids = []grid{g}
	return s
}

// winners prints "native 5 of 8 (4), vllm 3 of 8 (0)".
func winners(wins, sure map[string]int, loads int) string {
	if loads == 0 {
		return "—"
	}
	names := make([]string, 0, len(wins))
	for name := range wins {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int {
		if wins[a] != wins[b] {
			return wins[b] - wins[a]
		}
		return strings.Compare(a, b)
	})
	for i, name := range names {
		names[i] = fmt.Sprintf("%s %d of %d (%d)", name, wins[name], loads, sure[name])
	}
	return strings.Join(names, ", ")
}

// fastest is a table per metric: the median of every backend under every load
// of a task, the best one marked.
func (v *runView) fastest() (all []section) {
	for _, key := range wholeMetrics() {
		n := &notebook{}
		g := v.medians(func(l *load) bool { return !l.sweep() }, key, func(l *load) string { return fmt.Sprintf("%s · %s ×%d", l.Task, l.Mode, l.Concurrency) }, n)
		if len(g.rows) == 0 {
			continue
		}
		lead := []string(nil)
		if key == wholeMetrics()[0] {
			lead = []string{"Medians. ◀ the best; behind the others their ratio to it: ~ no difference was found, ? no verdict, and why. Requests were made one at a time (×1) up to many at once."}
		}
		all = append(all, section{title: v.title(columnName(key), v.models()[0]), rank: 2, lead: lead, grids: []grid{g}, notes: n.texts})
	}
	return all
}

// medians is a grid of one metric: loads down, backends across.
func (v *runView) medians(take func(*load) bool, key string, label func(*load) string, n *notebook) grid {
	col, err := measure.ByKey(key)
	if err != nil {
		panic(err) // a key of this file
	}
	var values []float64
	var backends []string
	for _, l := range v.loads {
		for _, s := range l.seats {
			if e := s.summary.Get(key); take(l) && e.Known() {
				values = append(values, e.Median)
			}
			if take(l) && !slices.Contains(backends, s.backend) {
				backends = append(backends, s.backend)
			}
		}
	}
	if len(values) == 0 {
		return grid{}
	}
	sc := scaleFor(col.Unit, values)
	for i := range values {
		values[i] *= sc.factor
	}
	places := decimals(values)
	g := grid{columns: []column{{head: sc.unit}}}
	for _, b := range backends {
		g.columns = append(g.columns, column{head: b}, column{joined: true, left: true})
	}
	for _, l := range v.loads {
		if !take(l) {
			continue
		}
		rank, ranked := l.rank(key, anyBackend)
		r := row{cells: []field{{main: label(l)}}}
		some, noted := false, len(n.texts)
		for _, b := range backends {
			value, ratio := field{main: "—", tone: faint}, field{}
			for _, s := range l.seats {
				if s.backend != b {
					continue
				}
				e := s.summary.Get(key)
				if !e.Known() {
					// Known to all in this mode is no note for each of them.
					if s.summary.OK == 0 {
						value.aside = n.ref(s.backend + ": " + orText(strings.Join(s.trouble, "; "), "no request was answered"))
					}
					continue
				}
				some = true
				value = field{main: fixed(e.Median*sc.factor, places)}
				if e.Column.Request != nil {
					value.aside = spread(e.Median, e.Lo, e.Hi)
				}
				if marks := n.refs(s.prefixed(s.trouble)); marks != "" {
					value.aside = strings.TrimSpace(value.aside + " " + marks)
				}
				if i := slices.Index(rank.seats, s); ranked && i == 0 && len(rank.seats) > 1 {
					value.tone, ratio = strong, field{main: "◀"}
				} else if i > 0 {
					ratio = verdict(rank.against[i], col.Better, false, n)
				} else if why := s.unranked(); why != "" {
					ratio = field{main: n.ref(why)}
				}
			}
			r.cells = append(r.cells, value, ratio)
		}
		if !some {
			n.texts = n.texts[:noted] // no row refers to them
			continue
		}
		g.rows = append(g.rows, r)
	}
	return g
}

func orText(text, other string) string {
	if text == "" {
		return other
	}
	return text
}

// wholeMemory is the most memory that each backend held, by requests at once.
func (d *document) wholeMemory() section {
	s := section{title: "At what memory", rank: 1, lead: []string{
		"The most that a backend held in any cell, by requests at once: GPU memory where a GPU was measured, and resident memory of the process tree on the host. " +
			"What a server reserves counts as held, used or not.",
	}}
	for _, key := range []string{"gpu_peak_memory", "peak_rss"} {
		g := grid{columns: []column{{head: columnName(key)}}}
		type at struct{ model, backend, what string }
		var order []at
		var parallel []string
		most := map[at]map[string]float64{}
		for _, v := range d.runs {
			for _, l := range v.loads {
				head := fmt.Sprintf("×%d", l.Concurrency)
				what := "tasks"
				if l.sweep() {
					what = "context"
				}
				for _, seat := range l.seats {
					e := seat.summary.Get(key)
					if !e.Known() {
						continue
					}
					k := at{l.Model, seat.backend, what}
					if most[k] == nil {
						most[k], order = map[string]float64{}, append(order, k)
					}
					if !slices.Contains(parallel, head) {
						parallel = append(parallel, head)
					}
					most[k][head] = max(most[k][head], e.Max)
				}
			}
		}
		if len(order) == 0 {
			continue
		}
		for _, head := range parallel {
			g.columns = append(g.columns, column{head: head})
		}
		for _, k := range order {
			r := row{cells: []field{{main: k.model + " · " + k.what, aside: k.backend}}}
			for _, head := range parallel {
				b, known := most[k][head]
				r.cells = append(r.cells, sizeField(b, known))
			}
			g.rows = append(g.rows, r)
		}
		s.grids = append(s.grids, g)
	}
	if len(s.grids) == 0 {
		s.lead = []string{"Not measured."}
	}
	return s
}

// parallel is how each backend scales with requests at once, task by task.
func (v *runView) parallel() (all []section) {
	type group struct{ task, mode string }
	var order []group
	at := map[group][]*load{}
	for _, l := range v.loads {
		if k := (group{l.Task, l.Mode}); !l.sweep() {
			if at[k] == nil {
				order = append(order, k)
			}
			at[k] = append(at[k], l)
		}
	}
	n := &notebook{}
	g := grid{columns: []column{{head: "output tok/s, and × of the fewest at once"}}}
	var steps []int
	for _, k := range order {
		for _, l := range at[k] {
			if !slices.Contains(steps, l.Concurrency) {
				steps = append(steps, l.Concurrency)
			}
		}
	}
	if slices.Sort(steps); len(steps) < 2 {
		return nil
	}
	for _, c := range steps {
		g.columns = append(g.columns, column{head: fmt.Sprintf("×%d", c)}, column{joined: true, left: true})
	}
	for _, k := range order {
		g.rows = append(g.rows, row{group: true, cells: []field{{main: k.task + " · " + k.mode}}})
		for _, b := range v.backends {
			r := row{cells: []field{{main: b}}}
			base := math.NaN()
			var few *seat
			for _, c := range steps {
				value, ratio := field{main: "—", tone: faint}, field{}
				for _, l := range at[k] {
					if s := l.of(b); s != nil && l.Concurrency == c {
						if e := s.summary.Get("tok_per_s"); e.Known() {
							if math.IsNaN(base) {
								base, few = e.Median, s
							} else {
								ratio = field{main: times(e.Median / base)}
								if why := shakyPair(few, s, "tok_per_s"); why != "" {
									ratio.aside, ratio.tone = "? "+n.ref("no verdict: "+why), faint
								}
							}
							value = field{main: fixed(e.Median, 1)}
							if t := s.summary.Get("failed"); t.Count > 0 {
								value.aside = n.ref(fmt.Sprintf("%s, %s ×%d: %d of %d requests failed", b, k.task, c, t.Count, t.N))
							}
						}
					}
				}
				r.cells = append(r.cells, value, ratio)
			}
			g.rows = append(g.rows, r)
		}
	}
	return []section{{
		title: v.title("how it scales with requests at once", v.models()[0]), rank: 2,
		lead:  []string{"Output tokens of all answers over the whole window; what that costs one request stands in the tables of latency above."},
		grids: []grid{g}, notes: n.texts,
	}}
}

// of is the seat of a backend; nil if it has none.
func (l *load) of(backend string) *seat {
	for _, s := range l.seats {
		if s.backend == backend {
			return s
		}
	}
	return nil
}

// context is how each backend scales with the prompt's length: time and speed,
// with slopes, and memory.
func (v *runView) context() (all []section) {
	all = v.sweeps()
	for _, key := range []string{"gpu_peak_memory", "peak_rss"} {
		n := &notebook{}
		g := v.medians((*load).sweep, key, func(l *load) string { return fmt.Sprintf("%d tokens · %s", l.Prompt, l.Mode) }, n)
		if len(g.rows) > 0 {
			all = append(all, section{title: v.title("context scaling, "+columnName(key), v.models()[0]), rank: 2, grids: []grid{g}, notes: n.texts})
		}
	}
	return all
}

// doubts are the reasons not to trust numbers of this report, counted.
func (d *document) doubts() section {
	s := section{title: "What to doubt", rank: 1}
	n := map[string]int{}
	var order []string
	note := func(text string) {
		key := numbers.ReplaceAllString(text, "#")
		if n[key]++; n[key] == 1 {
			order = append(order, text)
		}
	}
	open, tested := map[string]int{}, 0
	var reasons []string
	for _, v := range d.runs {
		for _, l := range v.loads {
			for _, key := range wholeMetrics() {
				r, ok := l.rank(key, anyBackend)
				for i := 1; ok && i < len(r.seats); i++ {
					tested++
					if c := r.against[i]; c.Verdict == stats.TooFew || c.Verdict == stats.Withheld {
						if open[c.Why]++; open[c.Why] == 1 {
							reasons = append(reasons, c.Why)
						}
					}
				}
			}
			for _, seat := range l.seats {
				for _, t := range slices.Concat(seat.trouble, seat.summary.Notes, seat.remarks) {
					note(seat.backend + ": " + t)
				}
			}
		}
		for _, t := range slices.Concat(v.Manifest.Environment.Warnings, v.Damage) {
			note(t)
		}
	}
	for _, why := range reasons {
		s.facts = append(s.facts, fact{name: "no verdict", text: fmt.Sprintf("%d of %d comparisons: %s", open[why], tested, why)})
	}
	for _, t := range order {
		if k := n[numbers.ReplaceAllString(t, "#")]; k > 1 {
			t += fmt.Sprintf(" (and %d more like it)", k-1)
		}
		s.facts = append(s.facts, fact{name: "remark", text: t})
	}
	for i := len(s.facts) - 1; i > 0; i-- {
		if s.facts[i].name == s.facts[i-1].name {
			s.facts[i].name = ""
		}
	}
	if len(s.facts) == 0 {
		s.lead = []string{"Nothing was remarked: all cells ran to their end, every comparison has a verdict."}
	}
	return s
}
