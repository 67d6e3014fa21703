package report

import (
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/nativebench/nativebench/internal/bench"
	"github.com/nativebench/nativebench/internal/measure"
	"github.com/nativebench/nativebench/internal/results"
	"github.com/nativebench/nativebench/internal/stats"
)

// reference is the backend that ratios are against where a run has it: the
// bare model.
const reference = "native"

// document is runs in numbers, before any layout.
type document struct {
	runs []*runView
}

// runView is one run.
type runView struct {
	*results.Run
	label    string // "A", "B", …; "" when there is one run only
	cells    []results.CellResult
	backends []string // the reference first, then as planned
	loads    []*load
}

// load is one thing that was asked of all backends of a run.
type load struct {
	results.Cell // of its first cell; Backend and Repeat mean nothing
	run          *runView
	seats        []*seat // in the order of runView.backends
}

// seat is one backend under one load, over all repeats.
type seat struct {
	load    *load
	backend string
	cells   []results.CellResult // one per planned repeat
	group   measure.Group
	summary measure.Summary
	// trouble says which repeats have no whole result, and why; remarks are
	// the warnings of its cells.
	trouble, remarks []string
	whole            int // repeats that ran to their end

	comparisons map[comparisonKey]stats.Comparison // bootstraps are worth keeping
}

type comparisonKey struct {
	ref    *seat
	metric string
}

func newDocument(runs []*results.Run) (*document, error) {
	if len(runs) == 0 {
		return nil, errNoRuns
	}
	d := &document{}
	for i, r := range runs {
		v := &runView{Run: r, cells: r.Cells()}
		if len(runs) > 1 {
			v.label = runLabel(i)
		}
		v.build()
		d.runs = append(d.runs, v)
	}
	return d, nil
}

// runLabel is A … Z, A1 … Z1, A2 …
func runLabel(i int) string {
	l := string(rune('A' + i%26))
	if i >= 26 {
		l += fmt.Sprint(i / 26)
	}
	return l
}

func (v *runView) build() {
	byLoad := map[string]*load{}
	for _, c := range v.cells {
		if !slices.Contains(v.backends, c.Backend) {
			v.backends = append(v.backends, c.Backend)
		}
		if byLoad[c.Load] == nil {
			l := &load{Cell: c.Cell, run: v}
			byLoad[c.Load] = l
			v.loads = append(v.loads, l)
		}
	}
	if i := slices.Index(v.backends, reference); i > 0 {
		v.backends = slices.Insert(slices.Delete(v.backends, i, i+1), 0, reference)
	}
	for _, l := range v.loads {
		for _, b := range v.backends {
			s := &seat{load: l, backend: b}
			for _, c := range v.cells {
				if c.Load == l.Load && c.Backend == b {
					s.cells = append(s.cells, c)
				}
			}
			if len(s.cells) > 0 {
				s.build()
				l.seats = append(l.seats, s)
			}
		}
		for _, s := range l.seats {
			s.comparePrompts(l.seats[0])
			s.compareAnswers(l.seats[0])
			s.compareModel(l.Model, v.Manifest.SameModel)
		}
	}
}

func (s *seat) build() {
	first := s.cells[0]
	s.group = measure.Group{Mode: first.Mode, Concurrency: first.Concurrency, Expect: first.Expect}
	why := map[string][]int{}
	var reasons, remarks []string
	for _, c := range s.cells {
		if c.Done() {
			s.whole++
		}
		if !c.Done() {
			text := troubleText(c)
			if why[text] == nil {
				reasons = append(reasons, text)
			}
			why[text] = append(why[text], c.Repeat+1)
		} else if c.Missing > 0 {
			s.trouble = append(s.trouble, fmt.Sprintf("repeat %d: %d of %d requests are missing from the run directory", c.Repeat+1, c.Missing, c.Requests))
		}
		if m := cellOf(c); len(m.Requests) > 0 {
			s.group.Cells = append(s.group.Cells, m)
		}
		if c.Event != nil {
			remarks = append(remarks, c.Event.Warnings...)
		}
	}
	for _, text := range reasons {
		switch repeats := why[text]; {
		case len(s.cells) == 1:
			s.trouble = append(s.trouble, text)
		case len(repeats) == len(s.cells):
			s.trouble = append(s.trouble, fmt.Sprintf("all %d repeats: %s", len(repeats), text))
		case len(repeats) == 1:
			s.trouble = append(s.trouble, fmt.Sprintf("repeat %d of %d: %s", repeats[0], len(s.cells), text))
		default:
			s.trouble = append(s.trouble, fmt.Sprintf("repeats %s of %d: %s", list(repeats), len(s.cells), text))
		}
	}
	s.remarks = alike(remarks, "repeat")
	s.summary = measure.Summarize(s.group)
}

// troubleText says why a cell has no whole result and what there is of it.
func troubleText(c results.CellResult) string {
	text := c.Why()
	if c.Event != nil {
		if line := lastWords(c.Event.Stderr); line != "" {
			text += fmt.Sprintf("; last line of its log: %q", line)
		}
	}
	if measured := c.Measured(); len(measured) > 0 {
		n := 0
		for _, r := range measured {
			if r.Class == bench.OK && r.Retries == 0 && measure.Spoilt(&r.Trace) == "" {
				n++
			}
		}
		text += fmt.Sprintf("; %d of %d requests were answered and count", n, c.Requests)
	}
	return text
}

// dump begins what a Go program prints when it dies: the goroutines and
// registers that follow say nothing to people, the line before often does.
var dump = regexp.MustCompile(`^(SIG[A-Z]+: |fatal error: unexpected signal|goroutine [0-9]+ |\[signal SIG|PC=0x|runtime: )`)

// lastWords is the last line of a log that says something: before a crash dump,
// if there is one; "" if there is none. A dump whose beginning was not kept is
// known by its end, the registers.
func lastWords(log []string) string {
	if i := slices.IndexFunc(log, func(l string) bool { return dump.MatchString(l) }); i >= 0 {
		log = log[:i]
	} else if slices.ContainsFunc(log, registers.MatchString) {
		return ""
	}
	for i := len(log) - 1; i >= 0; i-- {
		if l := strings.TrimSpace(log[i]); l != "" {
			return l
		}
	}
	return ""
}

var registers = regexp.MustCompile(`^(r[a-z0-9]{1,2}|rflags|[cfg]s|lr|sp|pc|fault)\s+0x[0-9a-f]+$`)

func cellOf(c results.CellResult) measure.Cell {
	m := measure.Cell{Repeat: c.Repeat, Partial: !c.Done()}
	for _, r := range c.Measured() {
		m.Requests = append(m.Requests, measure.Request{Trace: &r.Trace, Index: r.Index, Worker: r.Worker, Class: r.Class, Error: r.Error, Retries: r.Retries})
	}
	if e := c.Event; e != nil {
		m.Busy = slices.Contains(e.Doubts, results.DoubtBusy)
		m.CacheHits = slices.Contains(e.Doubts, results.DoubtCacheHits)
		m.Window, m.LoadNS, m.FirstConnNS = e.WindowNS, e.LoadNS, e.FirstConnNS
		m.Passes, m.FilledRows = e.Passes, e.FilledRows
		m.GPU, m.GPUMissing = gpuOf(e), e.GPUMissing
		if e.Host != nil {
			m.PeakRSS, m.PeakPSS, m.CPUSeconds = e.Host.PeakRSS, e.Host.PeakPSS, e.Host.CPUSeconds
		}
	}
	return m
}

var numbers = regexp.MustCompile(`[0-9]+(\.[0-9]+)?`)

// alike keeps of sentences that differ in numbers only the one with the largest
// numbers, and says how many more of what there were; "": it does not say.
func alike(texts []string, what string) []string {
	var order []string
	worst, n := map[string]string{}, map[string]int{}
	for _, t := range texts {
		key := numbers.ReplaceAllString(t, "#")
		if n[key]++; n[key] == 1 {
			worst[key] = t
			order = append(order, key)
		} else if slices.Compare(numbersOf(t), numbersOf(worst[key])) > 0 {
			worst[key] = t
		}
	}
	out := make([]string, len(order))
	for i, key := range order {
		if out[i] = worst[key]; n[key] > 1 && what != "" {
			out[i] += fmt.Sprintf(" (the most of %s)", count(n[key], what))
		}
	}
	return out
}

func numbersOf(text string) (v []float64) {
	for _, m := range numbers.FindAllString(text, -1) {
		x, _ := strconv.ParseFloat(m, 64) // the pattern is one of numbers
		v = append(v, x)
	}
	return v
}

// comparePrompts remarks when a backend counted other prompt tokens than native
// did for the same request, or where native was not asked, than our tokenizer
// does for the rendered prompt, or than the reference did: then it did not read
// the same.
func (s *seat) comparePrompts(ref *seat) {
	type key struct{ repeat, index int }
	tokens, whose := map[key]int{}, "those of "+ref.backend
	if own := s.load.run.Manifest.PromptTokens[s.load.Model]; ref.backend != reference && len(own) > 0 {
		whose = "those of our tokenizer"
		for _, c := range s.cells {
			for _, r := range c.Measured() {
				tokens[key{c.Repeat, r.Index}] = own[r.Prompt]
			}
		}
	} else if s == ref {
		return
	} else {
		for _, c := range ref.cells {
			for _, r := range c.Measured() {
				if r.Class == bench.OK {
					tokens[key{c.Repeat, r.Index}] = r.PromptTokens
				}
			}
		}
	}
	both := 0
	var more []int // by how many tokens they differ
	for _, c := range s.cells {
		for _, r := range c.Measured() {
			if want := tokens[key{c.Repeat, r.Index}]; want > 0 && r.Class == bench.OK && r.PromptTokens > 0 {
				if both++; want != r.PromptTokens {
					more = append(more, r.PromptTokens-want)
				}
			}
		}
	}
	if len(more) > 0 {
		slices.Sort(more)
		s.remarks = append(s.remarks, fmt.Sprintf("prompt tokens differ from %s in %d of %d requests, by %+d to %+d (median %+d): not the same prompts", whose, len(more), both, more[0], more[len(more)-1], more[len(more)/2]))
	}
}

// compareAnswers remarks when the backends made answers of different length to
// the same requests: latency and throughput then compare different work.
func (s *seat) compareAnswers(ref *seat) {
	if s == ref {
		return
	}
	if d := measure.Lengths(s.summary, ref.summary); math.Abs(d-1) > answersDiffer {
		s.remarks = append(s.remarks, fmt.Sprintf("answers to the same requests held %.2f× as many tokens as those of %s: total latency and requests/s compare different work; --ignore-eos makes them equal", d, ref.backend))
	}
}

// compareModel remarks what was found before measuring, where that is not the
// reference's model.
func (s *seat) compareModel(model string, found []results.SameModel) {
	for _, m := range found {
		if !m.OK && m.Model == model && m.Backend == s.backend {
			s.remarks = append(s.remarks, sameModelText(m))
		}
	}
}

// answersDiffer is the share by which output tokens may differ unremarked.
const answersDiffer = 0.02

// ref is the seat that s is compared with, nil for the reference itself.
func (s *seat) ref() *seat {
	if r := s.load.seats[0]; r != s {
		return r
	}
	return nil
}

// compared is a metric of s against that of ref. ok is false where there is
// nothing to compare: a value is missing, or neither is better.
func (s *seat) compared(ref *seat, metric string) (c stats.Comparison, ok bool) {
	e, r := s.summary.Get(metric), ref.summary.Get(metric)
	if !e.Known() || !r.Known() || e.Column.Better == measure.Neither {
		return c, false
	}
	key := comparisonKey{ref, metric}
	if c, ok = s.comparisons[key]; !ok {
		c = measure.Compare(e, r)
		if e.Column.ByLength {
			if d := measure.Lengths(s.summary, ref.summary); math.Abs(d-1) > answersDiffer {
				c.Withhold(fmt.Sprintf("answers differ in length by more than %.0f %%", 100*answersDiffer))
			}
		}
		if s.comparisons == nil {
			s.comparisons = map[comparisonKey]stats.Comparison{}
		}
		s.comparisons[key] = c
	}
	return c, true
}

// name is the backend's, with its run where there are several.
func (s *seat) name() string {
	if l := s.load.run.label; l != "" {
		return l + " " + s.backend
	}
	return s.backend
}

// sweep tells whether the load is part of a context sweep.
func (l *load) sweep() bool { return l.Prompt > 0 }

// title names the load within its task: "stream, 4 at a time".
func (l *load) title() string { return fmt.Sprintf("%s, %d at a time", l.Mode, l.Concurrency) }

// model returns the manifest's entry of a model, or one with the key alone.
func (v *runView) model(key string) results.Model {
	for _, m := range v.Manifest.Models {
		if m.Key == key {
			return m
		}
	}
	return results.Model{Key: key}
}

// synthetic tells whether random weights were behind the numbers of a model.
func (v *runView) synthetic(model string) bool {
	if v.model(model).Synthetic {
		return true
	}
	for _, b := range v.Manifest.Backends {
		if b.Synthetic && (b.Model == model || len(v.models()) == 1) {
			return true
		}
	}
	return false
}

// models returns the keys of the models of a run in the order of its cells.
func (v *runView) models() (keys []string) {
	for _, c := range v.cells {
		if !slices.Contains(keys, c.Model) {
			keys = append(keys, c.Model)
		}
	}
	return keys
}
