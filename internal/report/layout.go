package report

import (
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/nativebench/nativebench/internal/measure"
	"github.com/nativebench/nativebench/internal/results"
)

// sections lays runs out for people.
func (d *document) sections() (all []section) {
	for _, v := range d.runs {
		all = append(all, v.heading())
		all = append(all, v.glance()...)
		all = append(all, v.tasks()...)
		all = append(all, v.sweeps()...)
		all = append(all, v.taxes()...)
		all = append(all, v.phases()...)
		all = append(all, v.servers()...)
		all = append(all, v.memory()...)
		all = append(all, v.vram()...)
		all = append(all, v.gpus()...)
		all = append(all, v.about()...)
	}
	all = append(all, d.across()...)
	return append(all, d.legend())
}

// heading says what ran.
func (v *runView) heading() section {
	m := &v.Manifest
	s := section{title: "nativebench report", rank: 1}
	if v.label != "" {
		s.title = "Run " + v.label
	}
	say := func(name, format string, args ...any) {
		s.facts = append(s.facts, fact{name: name, text: fmt.Sprintf(format, args...)})
	}
	for _, key := range v.models() {
		model := v.model(key)
		text := []string{key}
		for _, t := range []string{model.HubID, model.DType} {
			if t != "" {
				text = append(text, t)
			}
		}
		if model.Bytes > 0 {
			text = append(text, bytesText(model.Bytes))
		}
		say("model", "%s", strings.Join(text, " · "))
		if v.synthetic(key) {
			seed := ""
			if model.Seed != 0 {
				seed = fmt.Sprintf(" (seed %d)", model.Seed)
			}
			text := ": random numbers in the real shape. Speed and memory are real, the text is noise"
			if model.Relative != "" {
				text = ": random numbers, the text is noise"
			}
			s.facts = append(s.facts, fact{"", "synthetic weights" + seed + text, alarm})
			if t := model.Tokenizer; t != "" && t != results.TokenizerInFile {
				s.facts = append(s.facts, fact{"", "vocabulary: " + t, plain})
			}
		}
		if model.Relative != "" {
			s.facts = append(s.facts, fact{"", fmt.Sprintf("not %s itself but a relative, %s: its speed and memory are not the model's", key, model.Relative), alarm})
		}
	}
	for _, key := range v.backends {
		say(key, "%s", v.backendText(key))
	}
	for _, c := range m.PromptCounts {
		say("prompts", "%s", countText(c))
	}
	for _, same := range m.SameModel {
		f := fact{name: "same model", text: sameModelText(same)}
		if !same.OK {
			f.name, f.tone = "WARNING", alarm
		}
		s.facts = append(s.facts, f)
	}
	say("machine", "%s", environment(m.Environment))
	if why := m.Environment.GPUsMissing; why != "" {
		say("gpu", "%s", why)
	}
	for _, g := range m.Environment.GPUs {
		say("gpu", "%s", gpuText(g, m.Environment.Versions))
	}
	say("plan", "%s", v.planText())
	say("when", "%s, nativebench %s", v.when(), toolText(m.Tool))
	say("run", "%s", v.Dir)
	v.progress(&s)
	for _, t := range alike(m.Environment.Warnings, "") {
		s.facts = append(s.facts, fact{"warning", t, alarm})
	}
	for _, t := range v.Damage {
		s.facts = append(s.facts, fact{"damage", t, alarm})
	}
	// One name is enough for facts of one kind.
	for i := len(s.facts) - 1; i > 0; i-- {
		if s.facts[i].name == s.facts[i-1].name {
			s.facts[i].name = ""
		}
	}
	return s
}

// sameModelText says what was found of a backend before it was measured.
func sameModelText(m results.SameModel) string {
	text := fmt.Sprintf("%s = %s (%s): %s", m.Backend, m.Reference, m.Model, m.Verdict)
	switch {
	case m.OK:
		by := "the same number of prompt tokens"
		switch m.PromptsBy {
		case "ids":
			by = "the same prompt tokens"
		case "":
			by = "prompt tokens not told"
		}
		text += fmt.Sprintf(", %s, %s, %d of %d greedy answers equal", count(m.Prompts, "prompt"), by, m.AnswersEqual, m.Prompts)
		if m.Why != "" {
			text += "; " + m.Why
		}
		return text
	case m.Verdict == "different":
		text = fmt.Sprintf("%s does NOT run the same model as %s (%s), so that their numbers must not be compared", m.Backend, m.Reference, m.Model)
	default:
		text = fmt.Sprintf("whether %s runs the same model as %s (%s) could not be verified", m.Backend, m.Reference, m.Model)
	}
	return text + ": " + m.Why
}

// backendText is a backend as it described itself.
func (v *runView) backendText(key string) string {
	for _, b := range v.Manifest.Backends {
		if b.Backend != key {
			continue
		}
		var text []string
		for _, t := range []string{b.Engine + " " + b.Version, b.Device} {
			if t = strings.TrimSpace(t); t != "" {
				text = append(text, t)
			}
		}
		if b.Endpoint != "" && len(b.Command) == 0 && b.Model != "" {
			text = append(text, fmt.Sprintf("model %q", b.Model)) // as it calls it
		}
		if b.Slots > 0 {
			text = append(text, count(b.Slots, "slot"))
		}
		if b.StartNS > 0 {
			text = append(text, fmt.Sprintf("ready in %.1f s", float64(b.StartNS)/1e9))
		}
		return strings.Join(text, " · ")
	}
	return "never answered: nothing is known of it"
}

// about is what the backends said of themselves: builds, what they take in
// another form than was asked, what a reader of their numbers must know.
func (v *runView) about() []section {
	s := section{title: "About the backends", rank: 1}
	if v.label != "" {
		s.title = v.label + " · " + s.title
	}
	for _, key := range v.backends {
		for _, b := range v.Manifest.Backends {
			if b.Backend != key {
				continue
			}
			name := key
			if len(v.models()) > 1 {
				name += " " + b.Model
			}
			var texts []string
			if b.Build != "" {
				texts = append(texts, "build: "+b.Build)
			}
			if len(b.Command) > 0 {
				texts = append(texts, "command: "+strings.Join(b.Command, " "))
			}
			for _, t := range slices.Concat(texts, alike(b.Substitutions, ""), alike(b.Notes, "")) {
				t = strings.TrimPrefix(t, key+": ")
				s.facts = append(s.facts, fact{name: name, text: "· " + t})
				name = ""
			}
		}
	}
	if len(s.facts) == 0 {
		return nil
	}
	return []section{s}
}

func environment(e results.Environment) string {
	var text []string
	if e.CPU != "" {
		text = append(text, e.CPU)
	}
	if e.Cores > 0 {
		text = append(text, count(e.Cores, "core"))
	}
	if e.MemoryB > 0 {
		text = append(text, bytesText(e.MemoryB))
	}
	text = append(text, e.Devices...)
	if e.Kernel != "" || e.OS != "" {
		text = append(text, strings.TrimSpace(e.OS+" "+e.Kernel))
	}
	if e.Container != "" {
		text = append(text, e.Container)
	}
	if e.Governor != "" {
		text = append(text, "governor "+e.Governor)
	}
	return strings.Join(text, " · ")
}

// gpuText is a GPU in one line.
func gpuText(g results.GPU, versions map[string]string) string {
	text := []string{g.Device + ", " + g.Engine + " to the engine", g.Name}
	if g.MemoryB > 0 {
		text = append(text, bytesText(g.MemoryB))
	}
	if g.PowerLimitW > 0 {
		text = append(text, fmt.Sprintf("limit %.0f W", g.PowerLimitW))
	}
	for _, v := range []struct{ name, key string }{{"driver", "nvidia_driver"}, {"CUDA up to", "cuda_driver"}} {
		if versions[v.key] != "" {
			text = append(text, v.name+" "+versions[v.key])
		}
	}
	return strings.Join(append(text, "MIG "+g.MIG, "ECC "+g.ECC), " · ")
}

func toolText(t results.Tool) string {
	text := t.Version
	if t.Commit != "" && !strings.Contains(text, t.Commit) {
		text += " " + t.Commit[:min(12, len(t.Commit))]
	}
	if t.Modified {
		text += " (changed checkout)"
	}
	return text
}

// planText is the plan as its cells show it.
func (v *runView) planText() string {
	var tasks, modes, prompts []string
	var concurrency []int
	least, most, repeats := math.MaxInt, 0, 0
	for _, c := range v.cells {
		what := &tasks
		name := c.Task
		if c.Prompt > 0 {
			what, name = &prompts, fmt.Sprint(c.Prompt)
		}
		if !slices.Contains(*what, name) {
			*what = append(*what, name)
		}
		if !slices.Contains(modes, c.Mode) {
			modes = append(modes, c.Mode)
		}
		if !slices.Contains(concurrency, c.Concurrency) {
			concurrency = append(concurrency, c.Concurrency)
		}
		least, most, repeats = min(least, c.Requests), max(most, c.Requests), max(repeats, c.Repeat+1)
	}
	requests := count(most, "request")
	if least < most {
		requests = fmt.Sprintf("%d–%s", least, requests)
	}
	var text []string
	if len(tasks) > 0 {
		text = append(text, strings.Join(tasks, ", "))
	}
	if len(prompts) > 0 {
		text = append(text, "prompts of "+strings.Join(prompts, ", ")+" tokens")
	}
	return strings.Join(append(text, strings.Join(modes, ", "), "concurrency "+list(concurrency),
		fmt.Sprintf("%s × %s", requests, count(repeats, "repeat"))), " · ")
}

// countText says how a model's prompts were counted before they were sent.
func countText(c results.PromptCount) string {
	how := "not counted before they were sent"
	switch {
	case c.Exact && c.Vocabulary != "":
		how = "counted exactly, with the vocabulary in " + filepath.Base(c.Vocabulary)
	case c.Exact:
		how = "counted exactly, when they were written"
	case c.Vocabulary != "":
		how = "counted approximately, with the vocabulary in " + filepath.Base(c.Vocabulary)
	}
	return c.Model + ": " + how
}

// when is the wall-clock start and how long the cells took together, all attempts
// that came to an end: not what lay between them, nor between the sittings of a
// resumed run, whose clocks may be others.
func (v *runView) when() string {
	text := v.Manifest.Created.UTC().Format("2006-01-02 15:04 UTC")
	type attempt struct {
		cell string
		n    int
	}
	began := map[attempt]int64{}
	var sum time.Duration
	for _, e := range v.Events {
		k := attempt{e.Cell, e.Attempt}
		if e.State == results.CellStarted {
			began[k] = e.T
		} else if from, known := began[k]; known {
			sum += time.Duration(e.T - from)
			delete(began, k)
		}
	}
	if sum > 0 {
		text += ", cells took " + sum.Round(time.Second).String()
	}
	return text
}

// progress says how many cells have results, and lists those that have not.
func (v *runView) progress(s *section) {
	done := 0
	states := map[results.CellState]int{}
	for _, c := range v.cells {
		if c.Done() {
			done++
		} else {
			states[c.State]++
		}
	}
	f := fact{name: "cells", text: fmt.Sprintf("%d of %d done", done, len(v.cells))}
	for _, st := range []results.CellState{results.CellFailed, results.CellInterrupted, results.CellCutOff, results.CellNotRun} {
		if n := states[st]; n > 0 {
			f.text += fmt.Sprintf(", %d %s", n, strings.ReplaceAll(string(st), "_", " "))
			f.tone = alarm
		}
	}
	if done < len(v.cells) {
		f.text += fmt.Sprintf("; complete it: nativebench compare --resume %s", v.Dir)
	}
	s.facts = append(s.facts, f)
}

// glance is the answer in one table: what each backend costs over the
// reference, load by load.
func (v *runView) glance() []section {
	if len(v.backends) < 2 {
		return nil
	}
	keys := []string{"e2e", "ttft", "tpot", "req_per_s"}
	s := section{
		title: fmt.Sprintf("At a glance: against %s", v.backends[0]), rank: 1,
		lead: []string{fmt.Sprintf("Median over median of %s. ~ no significant difference; ? no verdict, and why.", v.backends[0])},
	}
	n := &notebook{}
	for _, b := range v.backends[1:] {
		g := grid{columns: []column{{head: b}}}
		for _, k := range keys {
			name, arrow := columnName(k), ""
			if i := strings.IndexByte(name, '('); i > 0 { // room for the name alone
				name, arrow = strings.TrimSpace(name[:i]), name[strings.IndexByte(name, ')')+1:]
			}
			g.columns = append(g.columns, column{head: name + arrow, left: true})
		}
		for _, l := range v.loads {
			var seat *seat
			for _, s := range l.seats {
				if s.backend == b {
					seat = s
				}
			}
			if seat == nil || seat == l.seats[0] {
				continue
			}
			r := row{cells: []field{{main: v.loadName(l), aside: fmt.Sprintf("%s ×%d", l.Mode, l.Concurrency)}}}
			for _, k := range keys {
				f := field{main: "—", tone: faint}
				if c, ok := seat.compared(l.seats[0], k); ok {
					f = verdict(c, seat.summary.Get(k).Column.Better, false, n)
				}
				r.cells = append(r.cells, f)
			}
			g.rows = append(g.rows, r)
		}
		s.grids = append(s.grids, g)
	}
	s.notes = n.texts
	return []section{s}
}

func columnName(key string) string {
	c, err := measure.ByKey(key)
	if err != nil {
		panic(err)
	}
	return strings.TrimSpace(c.Name + " " + arrow(c.Better))
}

// loadName is the task, with the model where there are several.
func (v *runView) loadName(l *load) string {
	name := l.Task
	if l.sweep() {
		name = fmt.Sprintf("%s %d", name, l.Prompt)
	}
	if len(v.models()) > 1 {
		name = l.Model + " " + name
	}
	return name
}

// tasks are one section per model and task.
func (v *runView) tasks() (all []section) {
	type key struct{ model, task string }
	var keys []key
	loads := map[key][]*load{}
	for _, l := range v.loads {
		if l.sweep() {
			continue
		}
		k := key{l.Model, l.Task}
		if loads[k] == nil {
			keys = append(keys, k)
		}
		loads[k] = append(loads[k], l)
	}
	for _, k := range keys {
		n := &notebook{}
		s := section{title: v.title(k.task, k.model), rank: 2, lead: []string{loadText(loads[k])}}
		s.grids = sideBySide(loads[k], n)
		s.notes = n.texts
		all = append(all, s)
	}
	return all
}

// title names a section within a run.
func (v *runView) title(what, model string) string {
	title := what + " · " + model
	if v.label != "" {
		title = v.label + " · " + title
	}
	if v.synthetic(model) {
		title += " · synthetic weights"
	}
	if r := v.model(model).Relative; r != "" {
		title += " · relative: " + r
	}
	return title
}

// loadText says what the requests of a task were.
func loadText(loads []*load) string {
	l := loads[0]
	var text []string
	lo, hi := math.Inf(1), math.Inf(-1)
	for _, l := range loads {
		for _, s := range l.seats {
			if e := s.summary.Get("prompt_tokens"); e.Known() {
				lo, hi = min(lo, e.Min), max(hi, e.Max)
			}
		}
	}
	switch {
	case lo == hi:
		text = append(text, fmt.Sprintf("prompts of %.0f tokens", lo))
	case lo < hi:
		text = append(text, fmt.Sprintf("prompts of %.0f–%.0f tokens", lo, hi))
	}
	answers := fmt.Sprintf("answers up to %d tokens", l.Sampling.MaxTokens)
	if l.Expect != [2]int{} {
		answers += fmt.Sprintf(" (the task expects %d–%d)", l.Expect[0], l.Expect[1])
	}
	if l.Sampling.IgnoreEOS {
		answers += ", end-of-sequence ignored"
	}
	text = append(text, answers)
	if l.Sampling.Temperature == 0 {
		text = append(text, "greedy")
	} else {
		text = append(text, fmt.Sprintf("temperature %g, top-p %g", l.Sampling.Temperature, l.Sampling.TopP))
	}
	return strings.Join(text, " · ")
}

// across sets runs beside each other, backend by backend, where they were asked
// the same.
func (d *document) across() []section {
	if len(d.runs) < 2 {
		return nil
	}
	s := section{title: "Across runs: the same backend under the same load", rank: 1}
	n := &notebook{}
	n.texts = append(n.texts, d.differences()...)
	var g []grid
	compared := false
	for _, l := range d.runs[0].loads {
		for _, first := range l.seats {
			seats, heads := []*seat{first}, []string{d.runs[0].label}
			for _, other := range d.runs[1:] {
				if s := other.same(first, n); s != nil {
					seats, heads = append(seats, s), append(heads, other.label)
				}
			}
			if len(seats) < 2 {
				continue
			}
			compared = true
			for i, side := range split(seats, heads) {
				if i == len(g) {
					g = append(g, grid{})
				}
				// Where a run lacks a load the columns are other ones: a grid of
				// its own.
				at := &g[i]
				if at.columns != nil && !slices.Equal(at.columns, side.columns()) {
					g = append(g, grid{})
					at = &g[len(g)-1]
				}
				at.columns = side.columns()
				at.rows = append(at.rows, side.head(fmt.Sprintf("%s · %s, %s ×%d", first.backend, d.runs[0].loadName(l), l.Mode, l.Concurrency), n))
				for _, key := range []string{"e2e", "ttft", "tpot", "speed", "req_per_s"} {
					if slices.ContainsFunc(seats, func(s *seat) bool { return s.summary.Get(key).Known() }) {
						m := line{key: key}
						at.rows = append(at.rows, side.row(m, m.label(), n))
					}
				}
			}
		}
	}
	if !compared {
		s.lead = append(s.lead, "No backend was run under the same load in two of these runs.")
	}
	s.grids, s.notes = g, n.texts
	return []section{s}
}

// same finds the seat of another run that may be compared with s. Where the
// load has the same name but asks something else, a note says so.
func (v *runView) same(s *seat, n *notebook) *seat {
	for _, l := range v.loads {
		if l.Load != s.load.Load {
			continue
		}
		for _, other := range l.seats {
			if other.backend != s.backend {
				continue
			}
			a, b := s.load.Sampling, l.Sampling
			a.Seed, b.Seed = 0, 0 // another draw of the same
			if a != b {
				n.ref(fmt.Sprintf("%s is not compared: run %s asked temperature %g, top-p %g, %d tokens, and run %s %g, %g, %d",
					l.Load, s.load.run.label, a.Temperature, a.TopP, a.MaxTokens, v.label, b.Temperature, b.TopP, b.MaxTokens))
				return nil
			}
			return other
		}
	}
	return nil
}

// differences are what sets the runs themselves apart.
func (d *document) differences() (out []string) {
	a := d.runs[0]
	for _, b := range d.runs[1:] {
		differ := func(what, x, y string) {
			if x != y && x != "" && y != "" {
				out = append(out, fmt.Sprintf("runs %s and %s differ in %s: %s; %s", a.label, b.label, what, x, y))
			}
		}
		differ("machine", a.Manifest.Environment.CPU, b.Manifest.Environment.CPU)
		for _, key := range a.models() {
			differ("weights of "+key, short(a.model(key).SHA256), short(b.model(key).SHA256))
		}
		for _, x := range a.Manifest.Backends {
			for _, y := range b.Manifest.Backends {
				if x.Backend == y.Backend && x.Model == y.Model {
					differ("build of "+x.Backend, strings.TrimSpace(x.Version+" "+x.Build), strings.TrimSpace(y.Version+" "+y.Build))
				}
			}
		}
	}
	return out
}

func short(hash string) string { return hash[:min(12, len(hash))] }
