package benchtest

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nativebench/nativebench/internal/bench"
)

// Options fits the suite to a backend. The zero value asks for everything.
type Options struct {
	Prompts   []string // at least 2, different; default: three English ones
	MaxTokens int      // of an ordinary request; default 16
	Long      int      // tokens of a request to be cancelled; default 256
	Sessions  int      // at once; default 4

	NoIgnoreEOS bool // the backend cannot go on past end-of-sequence
	NoSeed      bool // the backend does not promise to repeat a seeded run
	// Invariant says that other sessions' requests do not change a greedy
	// answer. Engines that batch compute in another order then.
	Invariant bool
}

// Run checks that the backend which open gives keeps the promises of
// bench.Backend. open is called several times; the suite closes what it gives.
func Run(t *testing.T, open func(t *testing.T) bench.Backend, opt Options) {
	if len(opt.Prompts) == 0 {
		opt.Prompts = []string{
			"The quick brown fox jumps over the lazy dog, and then",
			"In the beginning there was",
			"A list of three things that a ship needs:",
		}
	}
	if opt.MaxTokens == 0 {
		opt.MaxTokens = 16
	}
	if opt.Long == 0 {
		opt.Long = 256
	}
	if opt.Sessions == 0 {
		opt.Sessions = 4
	}
	s := &suite{opt: opt, open: open}
	for _, c := range []struct {
		name string
		test func(*testing.T, *suite)
	}{
		{"info", testInfo},
		{"sync and stream agree", testModesAgree},
		{"greedy repeats", testGreedyRepeats},
		{"ignore EOS", testIgnoreEOS},
		{"one token", testOneToken},
		{"seed", testSeed},
		{"trace reuse", testTraceReuse},
		{"refusals", testRefusals},
		{"prompt too long", testTooLong},
		{"misuse", testMisuse},
		{"cancel", testCancel},
		{"cancelled before", testCancelledBefore},
		{"deadline", testDeadline},
		{"concurrent sessions", testConcurrent},
		{"sessions come and go", testSessions},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, s) })
	}
}

type suite struct {
	opt  Options
	open func(t *testing.T) bench.Backend
}

// backend opens one that the test's end closes.
func (s *suite) backend(t *testing.T) bench.Backend {
	t.Helper()
	b := s.open(t)
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return b
}

func (s *suite) session(t *testing.T, b bench.Backend) bench.Session {
	t.Helper()
	se, err := b.NewSession(s.limits())
	if err != nil {
		t.Fatalf("NewSession: %v", err)
	}
	t.Cleanup(func() {
		if err := se.Close(); err != nil {
			t.Errorf("Session.Close: %v", err)
		}
	})
	return se
}

func (s *suite) limits() bench.Limits {
	longest := 0
	for _, p := range s.opt.Prompts {
		longest = max(longest, len(p))
	}
	return bench.Limits{PromptBytes: longest, PromptTokens: longest, OutputTokens: max(s.opt.MaxTokens, s.opt.Long)}
}

// request is a greedy one of MaxTokens tokens.
func (s *suite) request(prompt string, stream bool) *bench.Request {
	return &bench.Request{
		Prompt: prompt, Message: prompt, Stream: stream,
		Sampling: bench.Sampling{TopP: 1, MaxTokens: s.opt.MaxTokens, Seed: 1, IgnoreEOS: !s.opt.NoIgnoreEOS},
	}
}

// long is a request that takes as long as the suite may ask for.
func (s *suite) long() *bench.Request {
	req := s.request(s.opt.Prompts[0], true)
	req.Sampling.MaxTokens = s.opt.Long
	return req
}

// generate runs a request that must succeed and whose trace must be in order.
func generate(t *testing.T, se bench.Session, req *bench.Request) *bench.Trace {
	t.Helper()
	tr := bench.NewTrace(req.Sampling.MaxTokens)
	generateInto(t, se, req, tr)
	return tr
}

func generateInto(t *testing.T, se bench.Session, req *bench.Request, tr *bench.Trace) {
	t.Helper()
	if err := se.Prepare(req); err != nil {
		t.Fatalf("Prepare: %v", err)
	}
	before := bench.Now()
	if err := se.Generate(context.Background(), tr); err != nil {
		t.Fatalf("Generate: %v", err)
	}
	if err := Check(tr, req); err != nil {
		t.Fatal(err)
	}
	if tr.Start < before || tr.End > bench.Now() {
		t.Fatalf("stamps from %d to %d lie outside the call of Generate, %d to %d", tr.Start, tr.End, before, bench.Now())
	}
}

// Check returns what is wrong with the trace of a request that succeeded.
func Check(tr *bench.Trace, req *bench.Request) error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	errs = append(errs, checkTimes(tr))

	n := tr.OutputTokens
	counts := tr.Counted != bench.CountNone && !slices.Contains(tr.Warnings, bench.WarnCount)
	switch {
	case tr.Counted == bench.CountNone:
		if !slices.Contains(tr.Warnings, bench.WarnTokenCount) {
			bad("nobody counted the tokens, and no warning says so")
		}
	case n < 1 || n > req.Sampling.MaxTokens:
		bad("%d output tokens, want 1 to %d", n, req.Sampling.MaxTokens)
	case req.Sampling.IgnoreEOS && n != req.Sampling.MaxTokens && !slices.Contains(tr.Warnings, bench.WarnShort) && !slices.Contains(tr.Warnings, bench.WarnCut):
		bad("%d output tokens with EOS ignored, want %d or a warning", n, req.Sampling.MaxTokens)
	case tr.Finish == bench.FinishLength && n != req.Sampling.MaxTokens && !slices.Contains(tr.Warnings, bench.WarnCut):
		bad("finish is length after %d of %d tokens, without a warning", n, req.Sampling.MaxTokens)
	}
	if tr.PromptTokens < 1 && tr.Counted != bench.CountNone {
		bad("%d prompt tokens", tr.PromptTokens)
	}
	if len(tr.Text) == 0 {
		bad("no text")
	}
	if tr.Finish == bench.FinishNone && !slices.Contains(tr.Warnings, bench.WarnNoFinish) {
		bad("no finish, and no warning says so")
	}
	if counts && len(tr.Tokens) > 0 && len(tr.Tokens) != n {
		bad("%d token ids for %d tokens", len(tr.Tokens), n)
	}
	switch last := len(tr.Marks) - 1; {
	case tr.MarksLost != 0:
		bad("%d marks lost: the trace was made for fewer tokens", tr.MarksLost)
	case last < 0:
		bad("no marks")
	case !req.Stream && (last != 0 || tr.Marks[0].T != tr.End || tr.Events != 1):
		bad("a sync answer has %d marks (first at %d) and %d events, want one at the end (%d)", last+1, tr.Marks[0].T, tr.Events, tr.End)
	case req.Stream && (tr.Events < 1 || tr.Marks[0].N < 1):
		bad("a stream with %d events whose first mark counts %d tokens", tr.Events, tr.Marks[0].N)
	case counts && int(tr.Marks[last].N) != n && int(tr.Marks[last].N) != tr.Events && !(tr.Finish == bench.FinishStop && int(tr.Marks[last].N) == n-1):
		bad("the last mark counts %d tokens of %d", tr.Marks[last].N, n)
	}
	return errors.Join(errs...)
}

// checkTimes returns what is wrong with the stamps of a request, failed or not.
func checkTimes(tr *bench.Trace) error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if tr.Start <= 0 || tr.End < tr.Start {
		bad("start %d and end %d are no interval", tr.Start, tr.End)
	}
	for _, s := range []struct {
		name string
		t    int64
	}{{"sent", tr.Sent}, {"first byte", tr.FirstByte}, {"first line", tr.FirstLine}} {
		if s.t != 0 && (s.t < tr.Start || s.name != "sent" && s.t > tr.End) {
			bad("%s at %d lies outside the request, %d to %d", s.name, s.t, tr.Start, tr.End)
		}
	}
	if tr.FirstLine != 0 && tr.FirstLine < tr.FirstByte {
		bad("first line at %d before the first byte at %d", tr.FirstLine, tr.FirstByte)
	}
	for i, m := range tr.Marks {
		if m.T < tr.Start || m.T > tr.End {
			bad("mark %d at %d lies outside the request, %d to %d", i, m.T, tr.Start, tr.End)
		}
		if i > 0 && (m.T < tr.Marks[i-1].T || m.N < tr.Marks[i-1].N) {
			bad("mark %d (%d tokens at %d) falls behind the one before (%d at %d)", i, m.N, m.T, tr.Marks[i-1].N, tr.Marks[i-1].T)
		}
	}
	p := tr.Phases
	for _, d := range []int64{p.Tokenize, p.Queue, p.Prefill, p.Decode, p.Sampling, p.Detokenize} {
		if d < 0 {
			bad("a phase of %d ns", d)
		}
	}
	if p.Sum() > tr.End-tr.Start {
		bad("the phases take %d ns of a request of %d ns", p.Sum(), tr.End-tr.Start)
	}
	return errors.Join(errs...)
}

// refused checks that a request is refused, in Prepare or in Generate.
func refused(t *testing.T, se bench.Session, req *bench.Request, what string) {
	t.Helper()
	err := se.Prepare(req)
	if err == nil {
		err = se.Generate(context.Background(), bench.NewTrace(max(req.Sampling.MaxTokens, 1)))
	}
	if got := bench.ClassOf(err); got != bench.Refused {
		t.Errorf("%s: class %q (%v), want %q", what, got, err, bench.Refused)
	}
	checkMessage(t, err)
}

func checkMessage(t *testing.T, err error) {
	t.Helper()
	if err != nil && (err.Error() == "" || strings.ContainsAny(err.Error(), "\r\n")) {
		t.Errorf("message %q is not one line", err.Error())
	}
}

func testInfo(t *testing.T, s *suite) {
	b := s.backend(t)
	info := b.Info()
	if info.Backend == "" || info.Engine == "" || info.Version == "" {
		t.Errorf("backend %q, engine %q, version %q: none may be empty", info.Backend, info.Engine, info.Version)
	}
	if info.Context < 0 || info.Slots < 0 {
		t.Errorf("context %d, slots %d", info.Context, info.Slots)
	}
}

func testModesAgree(t *testing.T, s *suite) {
	se := s.session(t, s.backend(t))
	for _, p := range s.opt.Prompts {
		whole := generate(t, se, s.request(p, false))
		stream := generate(t, se, s.request(p, true))
		if string(whole.Text) != string(stream.Text) {
			t.Errorf("%q: sync %q, stream %q", p, whole.Text, stream.Text)
		}
		if whole.OutputTokens != stream.OutputTokens || whole.PromptTokens != stream.PromptTokens || whole.Finish != stream.Finish {
			t.Errorf("%q: sync %d+%d tokens (%s), stream %d+%d (%s)", p,
				whole.PromptTokens, whole.OutputTokens, whole.Finish, stream.PromptTokens, stream.OutputTokens, stream.Finish)
		}
		if whole.FirstLine != 0 {
			t.Errorf("%q: a sync answer has a first line", p)
		}
	}
}

func testGreedyRepeats(t *testing.T, s *suite) {
	b := s.backend(t)
	want := generate(t, s.session(t, b), s.request(s.opt.Prompts[0], true))
	got := generate(t, s.session(t, b), s.request(s.opt.Prompts[0], true))
	if string(got.Text) != string(want.Text) {
		t.Errorf("greedy: first %q, then %q", want.Text, got.Text)
	}
}

func testIgnoreEOS(t *testing.T, s *suite) {
	if s.opt.NoIgnoreEOS {
		t.Skip("this backend cannot go on past end-of-sequence")
	}
	se := s.session(t, s.backend(t))
	for _, stream := range []bool{false, true} {
		tr := generate(t, se, s.request(s.opt.Prompts[0], stream))
		if tr.OutputTokens != s.opt.MaxTokens || tr.Finish != bench.FinishLength {
			t.Errorf("stream %v: %d tokens, finish %q; want %d, %q", stream, tr.OutputTokens, tr.Finish, s.opt.MaxTokens, bench.FinishLength)
		}
	}
}

func testOneToken(t *testing.T, s *suite) {
	se := s.session(t, s.backend(t))
	for _, stream := range []bool{false, true} {
		req := s.request(s.opt.Prompts[0], stream)
		req.Sampling.MaxTokens = 1
		if tr := generate(t, se, req); tr.OutputTokens != 1 {
			t.Errorf("stream %v: %d tokens, want 1", stream, tr.OutputTokens)
		}
	}
}

func testSeed(t *testing.T, s *suite) {
	if s.opt.NoSeed {
		t.Skip("this backend does not promise to repeat a seeded run")
	}
	se := s.session(t, s.backend(t))
	run := func(seed uint64) string {
		req := s.request(s.opt.Prompts[0], true)
		req.Sampling.Temperature, req.Sampling.TopP, req.Sampling.Seed = 0.9, 0.95, seed
		return string(generate(t, se, req).Text)
	}
	want, differs := run(7), false
	if got := run(7); got != want {
		t.Errorf("seed 7: first %q, then %q", want, got)
	}
	for seed := uint64(8); seed < 16 && !differs; seed++ {
		differs = run(seed) != want
	}
	if !differs {
		t.Errorf("seeds 7 to 15 all give %q: the seed does nothing", want)
	}
}

func testTraceReuse(t *testing.T, s *suite) {
	se := s.session(t, s.backend(t))
	a, b := s.request(s.opt.Prompts[0], true), s.request(s.opt.Prompts[1], false)
	wantA, wantB := generate(t, se, a), generate(t, se, b)
	tr := bench.NewTrace(s.opt.MaxTokens)
	for range 3 {
		for _, c := range []struct {
			req  *bench.Request
			want *bench.Trace
		}{{a, wantA}, {b, wantB}} {
			tr.Reset()
			generateInto(t, se, c.req, tr)
			if string(tr.Text) != string(c.want.Text) || tr.OutputTokens != c.want.OutputTokens || !slices.Equal(tr.Tokens, c.want.Tokens) {
				t.Errorf("reused trace: %q, fresh trace: %q", tr.Text, c.want.Text)
			}
		}
	}
}

func testRefusals(t *testing.T, s *suite) {
	se := s.session(t, s.backend(t))
	for _, c := range []struct {
		name string
		edit func(*bench.Request)
	}{
		{"empty prompt", func(r *bench.Request) { r.Prompt = "" }},
		{"no tokens", func(r *bench.Request) { r.Sampling.MaxTokens = 0 }},
		{"negative temperature", func(r *bench.Request) { r.Sampling.Temperature = -1 }},
		{"temperature is no number", func(r *bench.Request) { r.Sampling.Temperature = math.NaN() }},
		{"top_p 0", func(r *bench.Request) { r.Sampling.TopP = 0 }},
		{"top_p over 1", func(r *bench.Request) { r.Sampling.TopP = 1.5 }},
	} {
		req := s.request(s.opt.Prompts[0], true)
		c.edit(req)
		refused(t, se, req, c.name)
		generate(t, se, s.request(s.opt.Prompts[0], true))
	}
}

func testTooLong(t *testing.T, s *suite) {
	b := s.backend(t)
	limit := b.Info().Context
	if limit == 0 {
		t.Skip("this backend does not tell its context")
	}
	se := s.session(t, b)
	req := s.request(strings.Repeat(s.opt.Prompts[0]+" ", limit), true)
	for _, stream := range []bool{true, false} {
		req.Stream = stream
		refused(t, se, req, "prompt over the context")
		generate(t, se, s.request(s.opt.Prompts[0], stream))
	}
}

func testMisuse(t *testing.T, s *suite) {
	b := s.backend(t)
	se := s.session(t, b)
	tr := bench.NewTrace(s.opt.MaxTokens)
	fails := func(what string) {
		t.Helper()
		tr.Reset()
		err := se.Generate(context.Background(), tr)
		if err == nil {
			t.Errorf("%s: no error", what)
		}
		checkMessage(t, err)
		if len(tr.Text) > 0 || len(tr.Marks) > 0 {
			t.Errorf("%s: the trace has an answer", what)
		}
	}
	fails("Generate without Prepare")
	req := s.request(s.opt.Prompts[0], true)
	want := generate(t, se, req)
	fails("a second Generate after one Prepare")

	bad := s.request("", true)
	if se.Prepare(bad) != nil {
		fails("Generate after a Prepare that failed")
	}
	// The last Prepare counts.
	if err := se.Prepare(s.request(s.opt.Prompts[1], true)); err != nil {
		t.Fatal(err)
	}
	if got := generate(t, se, req); string(got.Text) != string(want.Text) {
		t.Errorf("two Prepares: %q, want the answer to the last, %q", got.Text, want.Text)
	}

	closed, err := b.NewSession(s.limits())
	if err != nil {
		t.Fatal(err)
	}
	if err := closed.Close(); err != nil {
		t.Fatal(err)
	}
	if err := closed.Prepare(req); err == nil {
		t.Error("Prepare on a closed session: no error")
	}
}

// interrupt runs a long request whose context ends after a part of the time
// that it takes, and returns its trace and error. A machine that is busy with
// other things may finish before; then less of the time is tried.
func interrupt(t *testing.T, se bench.Session, req *bench.Request, with func(time.Duration) (context.Context, context.CancelFunc)) (*bench.Trace, error) {
	t.Helper()
	whole := generate(t, se, req)
	// Beyond the first token, so that there is something to keep.
	d := time.Duration(whole.FirstToken() - whole.Start + (whole.End-whole.FirstToken())/3)
	var tr *bench.Trace
	var err error
	for range 6 {
		tr = bench.NewTrace(req.Sampling.MaxTokens)
		if err := se.Prepare(req); err != nil {
			t.Fatalf("Prepare: %v", err)
		}
		ctx, cancel := with(d)
		err = se.Generate(ctx, tr)
		cancel()
		if err != nil {
			break
		}
		d /= 2
	}
	if err == nil {
		t.Fatalf("the request of %d tokens always finished before its context ended: give the suite a longer one", req.Sampling.MaxTokens)
	}
	checkMessage(t, err)
	if err := checkTimes(tr); err != nil {
		t.Errorf("after the failure: %v", err)
	}
	if n := len(tr.Marks); n > 0 && int(tr.Marks[n-1].N) >= whole.OutputTokens {
		t.Errorf("it was not ended at the next token: %d of %d came", tr.Marks[n-1].N, whole.OutputTokens)
	}
	if !strings.HasPrefix(string(whole.Text), string(tr.Text)) {
		t.Errorf("what was kept, %q, is no beginning of %q", tr.Text, whole.Text)
	}
	// The session is as good as before.
	if again := generate(t, se, req); string(again.Text) != string(whole.Text) {
		t.Errorf("after the failure: %q, before: %q", again.Text, whole.Text)
	}
	return tr, err
}

func testCancel(t *testing.T, s *suite) {
	se := s.session(t, s.backend(t))
	tr, err := interrupt(t, se, s.long(), func(d time.Duration) (context.Context, context.CancelFunc) {
		ctx, cancel := context.WithCancel(context.Background())
		timer := time.AfterFunc(d, cancel)
		return ctx, func() { timer.Stop(); cancel() }
	})
	if got := bench.ClassOf(err); got != bench.Cancelled {
		t.Errorf("class %q (%v), want %q", got, err, bench.Cancelled)
	}
	t.Logf("cancelled with %d marks: %v", len(tr.Marks), err)
}

func testCancelledBefore(t *testing.T, s *suite) {
	se := s.session(t, s.backend(t))
	req := s.request(s.opt.Prompts[0], true)
	if err := se.Prepare(req); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	tr := bench.NewTrace(req.Sampling.MaxTokens)
	if err := se.Generate(ctx, tr); bench.ClassOf(err) != bench.Cancelled {
		t.Errorf("class %q (%v), want %q", bench.ClassOf(err), err, bench.Cancelled)
	}
	generate(t, se, req)
}

func testDeadline(t *testing.T, s *suite) {
	se := s.session(t, s.backend(t))
	tr, err := interrupt(t, se, s.long(), func(d time.Duration) (context.Context, context.CancelFunc) {
		return context.WithTimeout(context.Background(), d)
	})
	if got := bench.ClassOf(err); got != bench.Timeout {
		t.Errorf("class %q (%v), want %q", got, err, bench.Timeout)
	}
	t.Logf("timed out with %d marks: %v", len(tr.Marks), err)
}

func testConcurrent(t *testing.T, s *suite) {
	b := s.backend(t)
	alone := make([]*bench.Trace, len(s.opt.Prompts))
	for i, p := range s.opt.Prompts {
		alone[i] = generate(t, s.session(t, b), s.request(p, true))
	}
	var wg sync.WaitGroup
	for i := range s.opt.Sessions {
		se := s.session(t, b)
		wg.Go(func() {
			which := i % len(s.opt.Prompts)
			req := s.request(s.opt.Prompts[which], i%2 == 0)
			tr := bench.NewTrace(req.Sampling.MaxTokens)
			for range 3 {
				tr.Reset()
				if err := se.Prepare(req); err != nil {
					t.Errorf("session %d: Prepare: %v", i, err)
					return
				}
				if err := se.Generate(context.Background(), tr); err != nil {
					t.Errorf("session %d: %v", i, err)
					return
				}
				if err := Check(tr, req); err != nil {
					t.Errorf("session %d: %v", i, err)
				}
				if tr.PromptTokens != alone[which].PromptTokens {
					t.Errorf("session %d: %d prompt tokens, alone %d", i, tr.PromptTokens, alone[which].PromptTokens)
				}
				if s.opt.Invariant && string(tr.Text) != string(alone[which].Text) {
					t.Errorf("session %d: %q, alone %q", i, tr.Text, alone[which].Text)
				}
			}
		})
	}
	wg.Wait()
}

func testSessions(t *testing.T, s *suite) {
	b := s.backend(t)
	req := s.request(s.opt.Prompts[0], true)
	for range 10 {
		se, err := b.NewSession(s.limits())
		if err != nil {
			t.Fatalf("NewSession: %v", err)
		}
		generate(t, se, req)
		for range 2 { // closing twice does no harm
			if err := se.Close(); err != nil {
				t.Fatalf("Session.Close: %v", err)
			}
		}
	}
}
