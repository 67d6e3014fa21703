package benchtest

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nativebench/nativebench/internal/bench"
)

func TestFakeConforms(t *testing.T) {
	for name, cfg := range map[string]FakeConfig{
		"plain":     {FirstToken: time.Millisecond, Gap: 100 * time.Microsecond},
		"two slots": {FirstToken: time.Millisecond, Gap: 100 * time.Microsecond, Slots: 2},
		"own text":  {FirstToken: time.Millisecond, Gap: 100 * time.Microsecond, Text: strings.Repeat("자, once upon a time. ", 40)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			Run(t, func(*testing.T) bench.Backend { return NewFake(cfg) },
				Options{Long: 64, Invariant: true, NoSeed: cfg.Text != ""})
		})
	}
}

func TestFakeKeepsItsConfig(t *testing.T) {
	f := NewFake(FakeConfig{
		Virtual: true, Tokens: 5, FirstToken: time.Hour, Gap: time.Minute,
		Fail: map[int]bench.Class{1: bench.Busy},
		Warn: map[int][]bench.Warning{2: {bench.WarnHeldBack}},
	})
	se, err := f.NewSession(bench.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if f.Close() == nil {
		t.Error("Close with an open session: no error")
	}
	req := &bench.Request{Prompt: "hello", Stream: true, Sampling: bench.Sampling{TopP: 1, MaxTokens: 10}}
	tr := bench.NewTrace(10)
	run := func() error {
		tr.Reset()
		if err := se.Prepare(req); err != nil {
			t.Fatal(err)
		}
		return se.Generate(context.Background(), tr)
	}

	if err := run(); err != nil {
		t.Fatal(err)
	}
	if err := Check(tr, req); err != nil {
		t.Error(err)
	}
	if got := time.Duration(tr.FirstToken() - tr.Start); got != time.Hour {
		t.Errorf("first token after %v", got)
	}
	if got := time.Duration(tr.LastToken() - tr.FirstToken()); got != 4*time.Minute {
		t.Errorf("4 gaps take %v", got)
	}
	if tr.OutputTokens != 5 || tr.Finish != bench.FinishStop {
		t.Errorf("%d tokens, %q", tr.OutputTokens, tr.Finish)
	}

	if err := run(); bench.ClassOf(err) != bench.Busy {
		t.Errorf("second request: %v", err)
	}
	if len(tr.Marks) != 2 || tr.End != tr.LastToken() {
		t.Errorf("after the failure: %d marks, end %d, last %d", len(tr.Marks), tr.End, tr.LastToken())
	}

	if err := run(); err != nil || !slices.Equal(tr.Warnings, []bench.Warning{bench.WarnHeldBack}) {
		t.Errorf("third request: %v, warnings %v", err, tr.Warnings)
	}
	if f.Calls() != 3 || f.OpenSessions() != 1 {
		t.Errorf("%d calls, %d sessions", f.Calls(), f.OpenSessions())
	}
	if err := se.Close(); err != nil {
		t.Error(err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
}

// Check finds what is wrong.
func TestCheck(t *testing.T) {
	req := &bench.Request{Prompt: "p", Stream: true, Sampling: bench.Sampling{MaxTokens: 3, IgnoreEOS: true}}
	good := func() *bench.Trace {
		return &bench.Trace{
			Start: 10, Sent: 11, FirstByte: 20, FirstLine: 20, End: 50,
			Marks:        []bench.Mark{{T: 20, N: 1}, {T: 30, N: 2}, {T: 50, N: 3}},
			PromptTokens: 1, OutputTokens: 3, Counted: bench.CountUsage, Finish: bench.FinishLength,
			Text: []byte("abc"), Events: 3,
		}
	}
	if err := Check(good(), req); err != nil {
		t.Fatalf("a good trace: %v", err)
	}
	for name, spoil := range map[string]func(*bench.Trace){
		"no start":            func(tr *bench.Trace) { tr.Start = 0 },
		"end before start":    func(tr *bench.Trace) { tr.End = 5 },
		"first byte early":    func(tr *bench.Trace) { tr.FirstByte = 9 },
		"first line early":    func(tr *bench.Trace) { tr.FirstLine = 15 },
		"mark early":          func(tr *bench.Trace) { tr.Marks[0].T = 9 },
		"mark late":           func(tr *bench.Trace) { tr.Marks[2].T = 51 },
		"marks fall in time":  func(tr *bench.Trace) { tr.Marks[1].T = 19 },
		"marks fall in count": func(tr *bench.Trace) { tr.Marks[1].N = 0 },
		"last mark short":     func(tr *bench.Trace) { tr.Marks[2].N = 2 },
		"no marks":            func(tr *bench.Trace) { tr.Marks = nil },
		"marks lost":          func(tr *bench.Trace) { tr.MarksLost = 1 },
		"too many tokens":     func(tr *bench.Trace) { tr.OutputTokens = 4 },
		"too few tokens":      func(tr *bench.Trace) { tr.OutputTokens, tr.Marks[2].N = 2, 2 },
		"no prompt tokens":    func(tr *bench.Trace) { tr.PromptTokens = 0 },
		"no text":             func(tr *bench.Trace) { tr.Text = nil },
		"no finish":           func(tr *bench.Trace) { tr.Finish = bench.FinishNone },
		"not counted":         func(tr *bench.Trace) { tr.Counted = bench.CountNone },
		"ids missing":         func(tr *bench.Trace) { tr.Tokens = []int32{1} },
		"phases too long":     func(tr *bench.Trace) { tr.Phases.Decode = 41 },
		"negative phase":      func(tr *bench.Trace) { tr.Phases.Queue = -1 },
	} {
		tr := good()
		spoil(tr)
		if Check(tr, req) == nil {
			t.Errorf("%s: not found", name)
		}
	}
}
