// Package benchtest holds the conformance suite that every backend must pass,
// and a Fake backend for the tests of everything that drives one.
package benchtest

import (
	"context"
	"fmt"
	"math"
	"sync/atomic"
	"time"

	"github.com/nativebench/nativebench/internal/bench"
)

// FakeConfig says how a Fake answers. The zero value answers at once, MaxTokens
// tokens to every request.
type FakeConfig struct {
	Name    string // Info.Backend; "fake" if empty
	Tokens  int    // tokens before end-of-sequence; 0: never ends by itself
	Context int    // tokens a request may hold, prompt and output; 0: 1024
	Slots   int    // requests served at once, others queue; 0: no limit

	FirstToken time.Duration // from the slot being free to the first token
	Gap        time.Duration // between two tokens

	// Virtual makes the stamps say that FirstToken and Gap passed, from the
	// true start on, while nobody waits. Queueing takes no virtual time.
	Virtual bool

	// Text is the answer, cut into pieces of about equal length, one a token;
	// if empty, the answer is made of words chosen by prompt and seed.
	Text string

	// Fail gives the class with which the i-th Generate on this backend fails,
	// counted from 0 over all sessions, warm-up included. Half of the tokens
	// are delivered before. Timeout and Cancelled wait for the context.
	Fail map[int]bench.Class

	// Warn gives the warnings of the i-th Generate.
	Warn map[int][]bench.Warning

	// OnGenerate, if not nil, is called at the start of each Generate with its
	// index and its request; it may block or panic. Several goroutines.
	OnGenerate func(i int, req *bench.Request)
}

// Fake is a backend without a model. It is honest about time: what it stamps
// did happen then (unless Virtual), whatever its sessions do at once.
type Fake struct {
	cfg   FakeConfig
	calls atomic.Int64
	open  atomic.Int64
	slots chan struct{}
}

var (
	_ bench.Backend = (*Fake)(nil)
	_ bench.Session = (*fakeSession)(nil)
)

// NewFake makes a Fake.
func NewFake(cfg FakeConfig) *Fake {
	if cfg.Name == "" {
		cfg.Name = "fake"
	}
	if cfg.Context == 0 {
		cfg.Context = 1024
	}
	f := &Fake{cfg: cfg}
	if cfg.Slots > 0 {
		f.slots = make(chan struct{}, cfg.Slots)
	}
	return f
}

// Calls returns how many times Generate was called.
func (f *Fake) Calls() int { return int(f.calls.Load()) }

// OpenSessions returns how many sessions are not closed yet.
func (f *Fake) OpenSessions() int { return int(f.open.Load()) }

// Info describes the fake.
func (f *Fake) Info() bench.Info {
	return bench.Info{
		Backend: f.cfg.Name, Engine: "fake", Version: "1", Build: "fake", Device: "none",
		Model: "fake", Weights: "none", Synthetic: true, DType: "none",
		Context: f.cfg.Context, Slots: f.cfg.Slots,
		Notes: []string{"answers are made up"},
	}
}

// NewSession makes a seat.
func (f *Fake) NewSession(bench.Limits) (bench.Session, error) {
	f.open.Add(1)
	return &fakeSession{f: f}, nil
}

// Close fails while a session is open, as the seam demands of its callers.
func (f *Fake) Close() error {
	if n := f.open.Load(); n != 0 {
		return fmt.Errorf("fake backend closed with %d sessions open: close them before", n)
	}
	return nil
}

// CountTokens counts as Generate does: one token per four bytes begun.
func (f *Fake) CountTokens(text string) (int, error) { return (len(text) + 3) / 4, nil }

type fakeSession struct {
	f      *Fake
	req    *bench.Request
	prompt int
	closed bool
}

func (s *fakeSession) Prepare(req *bench.Request) error {
	s.req = nil
	sp := req.Sampling
	switch {
	case s.closed:
		return bench.Fail(bench.Internal, "fake: Prepare on a closed session")
	case req.Prompt == "":
		return bench.Fail(bench.Refused, "fake: the prompt is empty")
	case sp.MaxTokens < 1:
		return bench.Fail(bench.Refused, "fake: max_tokens is %d, must be at least 1", sp.MaxTokens)
	case sp.Temperature < 0 || math.IsNaN(sp.Temperature):
		return bench.Fail(bench.Refused, "fake: temperature is %v, must be 0 or more", sp.Temperature)
	case !(sp.TopP > 0 && sp.TopP <= 1):
		return bench.Fail(bench.Refused, "fake: top_p is %v, must be in (0, 1]", sp.TopP)
	}
	n, _ := s.f.CountTokens(req.Prompt)
	if n+sp.MaxTokens > s.f.cfg.Context {
		return bench.Fail(bench.Refused, "fake: %d prompt tokens and %d output tokens do not fit the context of %d", n, sp.MaxTokens, s.f.cfg.Context)
	}
	s.req, s.prompt = req, n
	return nil
}

func (s *fakeSession) Generate(ctx context.Context, tr *bench.Trace) error {
	req := s.req
	s.req = nil
	if req == nil {
		return bench.Fail(bench.Internal, "fake: Generate without Prepare")
	}
	f := s.f
	call := int(f.calls.Add(1) - 1)
	if f.cfg.OnGenerate != nil {
		f.cfg.OnGenerate(call, req)
	}
	now := bench.Now()
	tr.Start = now
	if f.slots != nil {
		select {
		case f.slots <- struct{}{}:
			defer func() { <-f.slots }()
		case <-ctx.Done():
			return s.stop(ctx, tr, 0)
		}
		if !f.cfg.Virtual {
			now = bench.Now()
		}
		tr.Phases.Queue = now - tr.Start
	}
	tr.PromptTokens = s.prompt

	total := req.Sampling.MaxTokens
	tr.Finish = bench.FinishLength
	if f.cfg.Tokens > 0 && f.cfg.Tokens < total && !req.Sampling.IgnoreEOS {
		total, tr.Finish = f.cfg.Tokens, bench.FinishStop
	}
	class, fails := f.cfg.Fail[call]
	for i := range total {
		if fails && i == total/2 {
			return s.fail(ctx, tr, class, call, now)
		}
		step := f.cfg.Gap
		if i == 0 {
			step = f.cfg.FirstToken
		}
		if f.cfg.Virtual {
			now += int64(step)
		} else if !wait(ctx, now+int64(step)) {
			return s.stop(ctx, tr, 0)
		} else {
			now = bench.Now()
		}
		if ctx.Err() != nil {
			return s.stop(ctx, tr, now)
		}
		if i == 0 {
			tr.Phases.Prefill = now - tr.Start - tr.Phases.Queue
		}
		id := s.token(req, i)
		tr.Text = s.piece(tr.Text, id, i, total)
		tr.Tokens = append(tr.Tokens, id)
		tr.OutputTokens = i + 1
		if req.Stream {
			tr.Mark(now, i+1)
			tr.Events = i + 1
		}
	}
	tr.End = now
	if !req.Stream {
		tr.Mark(now, total)
		tr.Events = 1
	}
	tr.Counted = bench.CountEngine
	tr.Phases.Decode = tr.End - tr.Start - tr.Phases.Queue - tr.Phases.Prefill
	for _, w := range f.cfg.Warn[call] {
		tr.Warn(w)
	}
	return nil
}

// fail ends the request as the table asked for.
func (s *fakeSession) fail(ctx context.Context, tr *bench.Trace, class bench.Class, call int, now int64) error {
	tr.Finish = bench.FinishNone
	if class == bench.Timeout || class == bench.Cancelled {
		<-ctx.Done()
		return s.stop(ctx, tr, 0)
	}
	tr.End = now
	return bench.Fail(class, "fake: request %d fails as configured (%s)", call, class)
}

// stop ends the request because ctx is done; at 0 means now.
func (s *fakeSession) stop(ctx context.Context, tr *bench.Trace, at int64) error {
	tr.Finish = bench.FinishNone
	if at == 0 {
		at = bench.Now()
	}
	tr.End = max(at, tr.LastToken())
	if context.Cause(ctx) == context.DeadlineExceeded || ctx.Err() == context.DeadlineExceeded {
		return bench.Fail(bench.Timeout, "fake: the time limit passed after %d tokens", tr.OutputTokens)
	}
	return bench.Fail(bench.Cancelled, "fake: cancelled after %d tokens", tr.OutputTokens)
}

func (s *fakeSession) Close() error {
	if !s.closed {
		s.closed = true
		s.f.open.Add(-1)
	}
	return nil
}

// token picks the i-th token of the answer: by the prompt alone when greedy,
// by prompt and seed when sampling. (FNV-1a, then the SplitMix64 finisher.)
func (s *fakeSession) token(req *bench.Request, i int) int32 {
	z := uint64(14695981039346656037)
	for j := range len(req.Prompt) {
		z = (z ^ uint64(req.Prompt[j])) * 1099511628211
	}
	if req.Sampling.Temperature > 0 {
		z += req.Sampling.Seed * 0x9e3779b97f4a7c15
	}
	z += uint64(i+1) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return int32((z ^ z>>31) % 256)
}

// piece appends the i-th token's text.
func (s *fakeSession) piece(dst []byte, id int32, i, total int) []byte {
	if text := s.f.cfg.Text; text != "" {
		return append(dst, text[len(text)*i/total:len(text)*(i+1)/total]...)
	}
	const hex = "0123456789abcdef"
	return append(dst, ' ', 'w', hex[id>>4&15], hex[id&15])
}

// wait sleeps until the instant t of bench.Now; false if ctx ended before.
func wait(ctx context.Context, t int64) bool {
	d := time.Duration(t - bench.Now())
	if d <= 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
