package measure

import (
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/nativebench/nativebench/internal/bench"
	"github.com/nativebench/nativebench/internal/stats"
)

// repeated is a group of n requests in some repeats; request i takes
// (100+10·i)·scale ms. change may alter each.
func repeated(n, repeats int, scale float64, change func(*Cell, *Request)) Group {
	g := Group{Mode: Sync, Concurrency: 1}
	for r := range repeats {
		c := Cell{Repeat: r}
		at := int64(1000)
		for i := range n {
			took := int64(scale*float64(100+10*i)) + int64((i+r)%3)
			c.Requests = append(c.Requests, Request{Trace: whole(at, took, 10), Index: i})
			at += took
		}
		if change != nil {
			for i := range c.Requests {
				change(&c, &c.Requests[i])
			}
		}
		g.Cells = append(g.Cells, c)
	}
	return g
}

func compared(key string, g, ref Group) stats.Comparison {
	return Compare(Summarize(g).Get(key), Summarize(ref).Get(key))
}

// TestOnlyWhatBothAnsweredIsCompared: one side is slower by a tenth and fails at
// everything long; its median over what it answered is the smaller one.
func TestOnlyWhatBothAnsweredIsCompared(t *testing.T) {
	survivor := repeated(20, 2, 1.1, func(_ *Cell, r *Request) {
		if r.Index >= 8 {
			r.Class = bench.Timeout
		}
	})
	full := repeated(20, 2, 1, nil)
	if a, b := Summarize(survivor).Get("e2e").Median, Summarize(full).Get("e2e").Median; a >= b {
		t.Fatalf("medians %v and %v do not show the trap", a, b)
	}
	for _, c := range []stats.Comparison{compared("e2e", survivor, full), compared("e2e", full, survivor)} {
		if math.Abs(math.Abs(math.Log(c.Ratio))-math.Log(1.1)) > 0.02 || c.Used != 16 || c.Of != 40 {
			t.Errorf("%+v, want 1.1 or 1/1.1 over 16 of 40", c)
		}
	}
}

func TestOnlyWholeRepeatsAreCompared(t *testing.T) {
	g := repeated(8, 3, 2, func(c *Cell, _ *Request) { c.Partial = c.Repeat == 1 })
	c := compared("req_per_s", g, repeated(8, 3, 1, nil))
	if c.Used != 2 || c.Of != 3 || c.Verdict != stats.TooFew || !strings.Contains(c.Why, "per repeat") {
		t.Errorf("%+v", c)
	}
	g = repeated(8, 1, 2, func(c *Cell, _ *Request) { c.Partial = true })
	if c := compared("req_per_s", g, repeated(8, 1, 1, nil)); !math.IsNaN(c.Ratio) {
		t.Errorf("a cell that ended early is compared: %+v", c)
	}
}

func TestWhenThereIsNoVerdict(t *testing.T) {
	ref := repeated(12, 2, 1, nil)
	for _, c := range []struct {
		name string
		g    Group
		want stats.Verdict
		why  string
	}{
		{"two repeats that agree", repeated(12, 2, 1.5, nil), stats.Differs, ""},
		{"one repeat", repeated(12, 1, 1.5, nil), stats.TooFew, "one repeat"},
		{"one repeat, and busy", repeated(12, 1, 1.5, func(c *Cell, _ *Request) { c.Busy = true }), stats.TooFew, "cannot be seen; and the machine was busy"},
		{"busy", repeated(12, 2, 1.5, func(c *Cell, _ *Request) { c.Busy = c.Repeat == 1 }), stats.Withheld, "busy"},
		{"repeats disagree", repeated(12, 2, 1.5, func(c *Cell, r *Request) {
			if c.Repeat == 1 {
				r.End += (r.End - r.Start) / 5
			}
		}), stats.Withheld, "disagree"},
		{"cache hits", repeated(12, 2, 1.5, func(_ *Cell, r *Request) {
			if r.Index == 3 {
				r.Warn(bench.WarnCacheHit)
			}
		}), stats.Withheld, "prefix cache"},
		{"few requests", repeated(5, 2, 1.5, nil), stats.TooFew, "has 5"},
	} {
		if got := compared("e2e", c.g, ref); got.Verdict != c.want || !strings.Contains(got.Why, c.why) || (c.why == "") != (got.Why == "") {
			t.Errorf("%s: %+v", c.name, got)
		}
	}
}

// An answer that is left out took its part of the window, which rates are of; what
// is of single requests can be compared without it. A prefix cache changes nothing
// after prefill.
func TestWarnedAnswersAndVerdicts(t *testing.T) {
	warned := func(w bench.Warning) Group {
		return repeated(12, 6, 1.5, func(_ *Cell, r *Request) {
			if r.Index == 3 {
				r.Warn(w)
			}
		})
	}
	ref := repeated(12, 6, 1, nil)
	if c := compared("req_per_s", warned(bench.WarnCut), ref); c.Verdict != stats.Withheld || !strings.Contains(c.Why, "left out") {
		t.Errorf("%+v", c)
	}
	if c := compared("e2e", warned(bench.WarnCut), ref); c.Verdict != stats.Differs || c.Used != 66 || c.Of != 72 {
		t.Errorf("%+v", c)
	}
	for name, failed := range map[string]func(*Cell, *Request){
		"failed":  func(_ *Cell, r *Request) { r.Class = bench.Timeout },
		"retried": func(_ *Cell, r *Request) { r.Retries = 1 },
	} {
		g := repeated(12, 6, 1.5, func(c *Cell, r *Request) {
			if r.Index == 3 {
				failed(c, r)
			}
		})
		for _, key := range []string{"req_per_s", "tok_per_s"} {
			if c := compared(key, ref, g); c.Verdict != stats.Withheld || !strings.Contains(c.Why, "failed or are left out took part of the window") {
				t.Errorf("%s: %s: %+v", name, key, c)
			}
		}
		if c := compared("e2e", g, ref); c.Verdict != stats.Differs {
			t.Errorf("%s: %+v", name, c)
		}
		if notes := Summarize(g).Notes; !slices.ContainsFunc(notes, func(n string) bool {
			return strings.Contains(n, "of which requests that do not count (6 of 72) took a part")
		}) {
			t.Errorf("%s: notes %q", name, notes)
		}
	}
	told := repeated(12, 6, 1.5, func(c *Cell, _ *Request) { c.CacheHits = c.Repeat == 2 }) // by the server's metrics
	for _, key := range []string{"e2e", "req_per_s"} {
		if c := compared(key, told, ref); c.Verdict != stats.Withheld || !strings.Contains(c.Why, "prefix cache") {
			t.Errorf("%s: %+v", key, c)
		}
	}
	if c := compared("req_per_s", warned(bench.WarnHeldBack), ref); c.Verdict != stats.Differs {
		t.Errorf("%+v", c)
	}
	streams := func(scale int64, w bench.Warning) Group {
		g := Group{Mode: Stream, Concurrency: 1}
		for r := range int64(2) {
			c := Cell{Repeat: int(r)}
			for i := range int64(12) {
				tr := answer(10000*i, scale*(60+i), scale*(10+i), scale*(30+i), scale*(50+i)+r)
				tr.Warn(w)
				c.Requests = append(c.Requests, Request{Trace: tr, Index: int(i)})
			}
			g.Cells = append(g.Cells, c)
		}
		return g
	}
	g, ref := streams(2, bench.WarnCacheHit), streams(1, bench.WarnHeldBack)
	if c := compared("ttft", g, ref); c.Verdict != stats.Withheld || !strings.Contains(c.Why, "prefix cache") {
		t.Errorf("%+v", c)
	}
	if c := compared("tpot", g, ref); c.Verdict != stats.Differs {
		t.Errorf("%+v", c)
	}
}

func TestRepeatsAreNoNewRequests(t *testing.T) {
	e := Summarize(repeated(40, 3, 1, nil)).Get("e2e")
	if e.N != 120 || e.Items != 40 || !math.IsNaN(e.P99) || e.NoP99() != "p99 needs 100 different requests, has 40" {
		t.Errorf("%+v", e.Summary)
	}
	if e := Summarize(repeated(5, 3, 1, nil)).Get("e2e"); !math.IsNaN(e.Lo) {
		t.Errorf("15 values of five requests have an interval: %+v", e.Summary)
	}
}

func TestGapsOfOneAnswerHaveNoTail(t *testing.T) {
	at := make([]int64, 60)
	for i := range at {
		at[i] = int64(10 * (i + 1))
	}
	var traces []*bench.Trace
	for i := range int64(20) {
		traces = append(traces, answer(1000*i, 700, at...))
	}
	for n, want := range map[int]bool{1: false, 19: false, 20: true} {
		if e := Summarize(group(Stream, traces[:n]...)).Get("itl"); math.IsNaN(e.P99) == want || e.N != 59*n {
			t.Errorf("%d answers: %+v", n, e.Summary)
		}
	}
}

// TestCutOffIsNoFailure: a request that was stopped with the run is in no number
// and in no window.
func TestCutOffIsNoFailure(t *testing.T) {
	g := repeated(6, 1, 1, nil)
	want := Summarize(g)
	last := g.Cells[0].Requests[5].End / ms
	g.Cells[0].Requests = append(g.Cells[0].Requests, Request{Trace: whole(last, 60_000, 0), Index: 6, Class: bench.Cancelled, Error: "stopped"})
	got := Summarize(g)
	if got.CutOff != 1 || got.Requests != 6 || got.OK != 6 || len(got.Failures) != 0 || len(got.Notes) != 1 {
		t.Errorf("%d cut off, %d requests, failures %v, notes %q", got.CutOff, got.Requests, got.Failures, got.Notes)
	}
	if e := got.Get("failed"); e.Count != 0 || e.N != 6 {
		t.Errorf("failed: %+v", e)
	}
	near(t, "req_per_s", got.Get("req_per_s").Median, want.Get("req_per_s").Median)
}

func TestLengths(t *testing.T) {
	longer := repeated(6, 2, 1, func(_ *Cell, r *Request) { r.OutputTokens = 12 })
	near(t, "lengths", Lengths(Summarize(longer), Summarize(repeated(6, 2, 1, nil))), 1.2)
}
