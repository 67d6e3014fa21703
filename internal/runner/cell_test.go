package runner

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/nativebench/nativebench/internal/bench"
	"github.com/nativebench/nativebench/internal/bench/benchtest"
	"github.com/nativebench/nativebench/internal/plan"
	"github.com/nativebench/nativebench/internal/results"
)

func testJob(requests, concurrency, warmup int) Job {
	c := plan.Cell{
		Backend: "fake", Model: "gpt2", Task: "chat", Mode: plan.Stream, Concurrency: concurrency,
		Requests: requests, Warmup: warmup, Seed: 7,
		Sampling:       bench.Sampling{Temperature: 0.9, TopP: 0.95, MaxTokens: 5},
		RequestTimeout: time.Minute, CellTimeout: time.Minute,
	}
	job := Job{ID: c.ID(), Attempt: 2, Cell: c}
	for i := range Measured(c) {
		job.Prompts = append(job.Prompts, Prompt{ID: fmt.Sprintf("p%d", i), Text: fmt.Sprintf("prompt %d", i)})
	}
	for i := range 3 {
		job.Warmups = append(job.Warmups, Prompt{ID: fmt.Sprintf("w%d", i), Text: fmt.Sprintf("warm-up %d", i)})
	}
	return job
}

// keeper is a sink that copies what it is given.
type keeper struct {
	mu   sync.Mutex
	recs []results.Record
}

func (k *keeper) keep(r *results.Record) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	c := *r
	c.Marks, c.Tokens = slices.Clone(r.Marks), slices.Clone(r.Tokens)
	k.recs = append(k.recs, c)
	return nil
}

func (k *keeper) split() (measured, warm []results.Record) {
	for _, r := range k.recs {
		if r.Warmup {
			warm = append(warm, r)
		} else {
			measured = append(measured, r)
		}
	}
	byIndex := func(a, b results.Record) int { return a.Index - b.Index }
	slices.SortFunc(measured, byIndex)
	slices.SortFunc(warm, byIndex)
	return measured, warm
}

// sent is what a backend was asked, in any order.
type sent struct {
	mu   sync.Mutex
	list []bench.Request
}

func (s *sent) add(_ int, req *bench.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.list = append(s.list, *req)
}

func TestEveryRequestOnce(t *testing.T) {
	for _, tc := range []struct{ requests, concurrency, warmup int }{
		{1, 1, 0}, {10, 1, 1}, {10, 3, 2}, {7, 7, 1}, {2, 5, 1}, {200, 16, 3},
	} {
		t.Run(fmt.Sprintf("%d requests, %d workers, %d warm-up", tc.requests, tc.concurrency, tc.warmup), func(t *testing.T) {
			defer goleak.VerifyNone(t)
			job := testJob(tc.requests, tc.concurrency, tc.warmup)
			var asked sent
			fake := benchtest.NewFake(benchtest.FakeConfig{OnGenerate: asked.add})
			var k keeper
			ev := RunCell(context.Background(), nil, job, fake, k.keep)
			if ev.State != results.CellDone || ev.Reason != "" || ev.Cell != job.ID || ev.Attempt != 2 {
				t.Fatalf("event %+v", ev)
			}
			measured, warm := k.split()
			want := max(tc.requests, tc.concurrency)
			if len(measured) != want || len(warm) != tc.warmup*tc.concurrency {
				t.Fatalf("%d measured and %d warm-up records, want %d and %d", len(measured), len(warm), want, tc.warmup*tc.concurrency)
			}
			for i, r := range measured {
				if r.Index != i || r.Prompt != job.Prompts[i].ID || r.Seed != plan.RequestSeed(7, i) {
					t.Fatalf("record %d: index %d, prompt %s, seed %d", i, r.Index, r.Prompt, r.Seed)
				}
				if r.Class != bench.OK || len(r.Marks) == 0 || r.OutputTokens == 0 || r.Text == "" || r.End < r.Start {
					t.Fatalf("record %d is not whole: %+v", i, r)
				}
				if r.Start < ev.WindowNS[0] || r.End > ev.WindowNS[1] {
					t.Fatalf("record %d [%d, %d] lies outside the window %v", i, r.Start, r.End, ev.WindowNS)
				}
			}
			for i, r := range warm {
				if r.Index != i-len(warm) || r.Seed != plan.RequestSeed(7, r.Index) {
					t.Fatalf("warm-up record %d has index %d, seed %d", i, r.Index, r.Seed)
				}
				for _, m := range measured {
					if r.End > m.Start {
						t.Fatalf("warm-up request %d ended after measured request %d began", r.Index, m.Index)
					}
				}
			}
			var gotPrompts, wantPrompts []string
			for _, r := range asked.list {
				if !r.Stream || r.Sampling.MaxTokens != 5 || r.Sampling.TopP != 0.95 {
					t.Fatalf("asked %+v", r)
				}
				if strings.HasPrefix(r.Prompt, "prompt") {
					gotPrompts = append(gotPrompts, r.Prompt)
				}
			}
			for _, p := range job.Prompts {
				wantPrompts = append(wantPrompts, p.Text)
			}
			slices.Sort(gotPrompts)
			slices.Sort(wantPrompts)
			if !slices.Equal(gotPrompts, wantPrompts) {
				t.Fatalf("prompts sent %q, want %q", gotPrompts, wantPrompts)
			}
			if n := fake.OpenSessions(); n != 0 {
				t.Fatalf("%d sessions left open", n)
			}
		})
	}
}

// The backend sees exactly the concurrency: it answers only when that many
// requests have come in, and counts how many there are at once.
// batched is a backend that counts passes: 10 before any, and one for each session.
type batched struct {
	bench.Backend
	n atomic.Int64
}

func (b *batched) NewSession(l bench.Limits) (bench.Session, error) {
	s, err := b.Backend.NewSession(l)
	return countedSession{s, b}, err
}

func (b *batched) Passes() (passes, filled int64) { return 10 + b.n.Load(), 2 * b.n.Load() }

type countedSession struct {
	bench.Session
	b *batched
}

func (s countedSession) Generate(ctx context.Context, tr *bench.Trace) error {
	defer s.b.n.Add(1)
	return s.Session.Generate(ctx, tr)
}

// What a backend counts is told of the measured window alone.
func TestPassesOfTheWindow(t *testing.T) {
	b := &batched{Backend: benchtest.NewFake(benchtest.FakeConfig{})}
	ev := RunCell(context.Background(), nil, testJob(6, 2, 1), b, new(keeper).keep)
	if ev.State != results.CellDone || ev.Passes != 6 || ev.FilledRows != 12 {
		t.Errorf("%s %s: %d passes, %d rows filled, want 6 and 12: the warm-up's 2 requests are not among them", ev.State, ev.Reason, ev.Passes, ev.FilledRows)
	}
	if ev = RunCell(context.Background(), nil, testJob(2, 1, 0), benchtest.NewFake(benchtest.FakeConfig{}), new(keeper).keep); ev.Passes != 0 {
		t.Errorf("%d passes of a backend that does not count", ev.Passes)
	}
}

func TestConcurrencyIsKept(t *testing.T) {
	const workers, rounds = 6, 5
	var inside, most atomic.Int64
	var mu sync.Mutex
	gate := make(chan struct{})
	var waiting int
	cfg := benchtest.FakeConfig{OnGenerate: func(int, *bench.Request) {
		n := inside.Add(1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		mu.Lock()
		g := gate
		if waiting++; waiting == workers {
			waiting, gate = 0, make(chan struct{})
			inside.Add(-workers)
			close(g)
		}
		mu.Unlock()
		<-g
	}}
	var k keeper
	ev := RunCell(context.Background(), nil, testJob(workers*rounds, workers, 0), benchtest.NewFake(cfg), k.keep)
	if ev.State != results.CellDone || len(k.recs) != workers*rounds {
		t.Fatalf("%+v with %d records", ev, len(k.recs))
	}
	if most.Load() != workers {
		t.Fatalf("at most %d requests at once, want %d", most.Load(), workers)
	}
}

func TestFailuresAreKeptAndTheCellGoesOn(t *testing.T) {
	fail := map[int]bench.Class{1: bench.Busy, 3: bench.Truncated, 6: bench.Refused}
	var k keeper
	ev := RunCell(context.Background(), nil, testJob(10, 1, 0), benchtest.NewFake(benchtest.FakeConfig{Fail: fail}), k.keep)
	if ev.State != results.CellDone {
		t.Fatalf("%+v", ev)
	}
	measured, _ := k.split()
	for i, r := range measured {
		if r.Class != fail[i] || (r.Class != bench.OK) != (r.Error != "") {
			t.Errorf("request %d: class %q, error %q; want class %q", i, r.Class, r.Error, fail[i])
		}
	}
}

// A server that went during the warm-up leaves no result, so that a resumed run
// measures the cell.
func TestNobodyThereAfterTheWarmup(t *testing.T) {
	fail := map[int]bench.Class{}
	for i := 1; i <= 10; i++ {
		fail[i] = bench.Connect
	}
	var k keeper
	ev := RunCell(context.Background(), nil, testJob(10, 1, 1), benchtest.NewFake(benchtest.FakeConfig{Fail: fail}), k.keep)
	if ev.State != results.CellFailed || ev.Class != string(bench.Connect) || !strings.HasPrefix(ev.Reason, "none of 10 requests found anybody to connect to: ") || len(k.recs) != 11 {
		t.Errorf("%s, class %q, reason %q, %d records", ev.State, ev.Class, ev.Reason, len(k.recs))
	}
	delete(fail, 10)
	k = keeper{}
	if ev := RunCell(context.Background(), nil, testJob(10, 1, 1), benchtest.NewFake(benchtest.FakeConfig{Fail: fail}), k.keep); ev.State != results.CellDone {
		t.Errorf("one was answered: %s, %q", ev.State, ev.Reason)
	}
}

// deserted refuses connections to its calls from, from the nth on to before the
// back-th, as a server does that ended and was started again.
type deserted struct {
	bench.Backend
	from, back int
	calls      atomic.Int64
}

func (d *deserted) NewSession(l bench.Limits) (bench.Session, error) {
	s, err := d.Backend.NewSession(l)
	return desertedSession{s, d}, err
}

type desertedSession struct {
	bench.Session
	d *deserted
}

func (s desertedSession) Prepare(req *bench.Request) error {
	if n := int(s.d.calls.Add(1)); n >= s.d.from && n < s.d.back {
		return bench.Fail(bench.Connect, "is it running there? %w", &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)})
	}
	return s.Session.Prepare(req)
}

// A server that is gone leaves no cell that is done, however much it answered
// before, and also when another one came in its place.
func TestServerGoneAmidTheCell(t *testing.T) {
	for _, tc := range []struct {
		name       string
		from, back int
		answered   int
	}{
		{"after the first answer", 3, 1000, 1},
		{"before the last request", 11, 1000, 9},
		{"for one request", 5, 6, 3},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var k keeper
			b := &deserted{Backend: benchtest.NewFake(benchtest.FakeConfig{Virtual: true}), from: tc.from, back: tc.back}
			ev := RunCell(context.Background(), nil, testJob(10, 1, 1), b, k.keep)
			want := fmt.Sprintf("the server is gone: nobody listened any more when %d of 10 requests had been answered: is it running there?", tc.answered)
			if ev.State != results.CellFailed || ev.Class != string(bench.Connect) || !strings.HasPrefix(ev.Reason, want) {
				t.Errorf("%s, class %q, reason %q; want %q", ev.State, ev.Class, ev.Reason, want)
			}
		})
	}
}

func TestGivenUpWhenTheFirstFailAlike(t *testing.T) {
	all := func(class func(i int) bench.Class) map[int]bench.Class {
		m := map[int]bench.Class{}
		for i := range 100 {
			m[i] = class(i)
		}
		return m
	}
	for _, tc := range []struct {
		name   string
		fail   map[int]bench.Class
		state  results.CellState
		class  string
		atMost int
	}{
		{"alike", all(func(int) bench.Class { return bench.Connect }), results.CellFailed, "connect", sameFailures + 3},
		{"not alike", all(func(i int) bench.Class { return []bench.Class{bench.Connect, bench.Busy}[i%2] }), results.CellDone, "", 100},
		{"first ones succeed", all(func(i int) bench.Class {
			if i < 2 {
				return bench.OK
			}
			return bench.Connect
		}), results.CellDone, "", 100},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for i, c := range tc.fail {
				if c == bench.OK {
					delete(tc.fail, i)
				}
			}
			var k keeper
			ev := RunCell(context.Background(), nil, testJob(100, 3, 0), benchtest.NewFake(benchtest.FakeConfig{Fail: tc.fail}), k.keep)
			if ev.State != tc.state || ev.Class != tc.class {
				t.Fatalf("state %s, class %q, reason %q", ev.State, ev.Class, ev.Reason)
			}
			if tc.state == results.CellFailed {
				if !strings.Contains(ev.Reason, "first 5 requests all failed") {
					t.Errorf("reason %q", ev.Reason)
				}
				// Requests may go out until the writer has seen the fifth.
				if len(k.recs) < sameFailures || len(k.recs) == 100 {
					t.Errorf("%d records", len(k.recs))
				}
			} else if len(k.recs) != tc.atMost {
				t.Errorf("%d records, want %d", len(k.recs), tc.atMost)
			}
		})
	}
}

func TestDrainLetsRequestsInFlightEnd(t *testing.T) {
	defer goleak.VerifyNone(t)
	drain := make(chan struct{})
	cfg := benchtest.FakeConfig{OnGenerate: func(i int, _ *bench.Request) {
		if i == 4 {
			close(drain)
		}
	}}
	var k keeper
	ev := RunCell(context.Background(), drain, testJob(50, 1, 1), benchtest.NewFake(cfg), k.keep)
	if ev.State != results.CellInterrupted || ev.Class != "cancelled" || !strings.Contains(ev.Reason, "4 of 50") {
		t.Fatalf("%+v", ev)
	}
	measured, _ := k.split()
	if len(measured) != 4 { // one of the five calls was warm-up
		t.Fatalf("%d measured records", len(measured))
	}
	for _, r := range measured {
		if r.Class != bench.OK {
			t.Errorf("request %d in flight was cut: %s", r.Index, r.Error)
		}
	}
}

func TestCancelEndsRequestsInFlight(t *testing.T) {
	defer goleak.VerifyNone(t)
	ctx, cancel := context.WithCancel(context.Background())
	cfg := benchtest.FakeConfig{
		Fail: map[int]bench.Class{3: bench.Cancelled}, // waits for the context
		OnGenerate: func(i int, _ *bench.Request) {
			if i == 3 {
				cancel()
			}
		},
	}
	var k keeper
	ev := RunCell(ctx, nil, testJob(50, 1, 0), benchtest.NewFake(cfg), k.keep)
	if ev.State != results.CellInterrupted || !strings.Contains(ev.Reason, "3 of 50") {
		t.Fatalf("%+v", ev)
	}
	measured, _ := k.split()
	if len(measured) != 4 || measured[3].Class != bench.Cancelled {
		t.Fatalf("%d records, last %+v", len(measured), measured[len(measured)-1])
	}
}

func TestCancelDuringWarmUp(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cfg := benchtest.FakeConfig{OnGenerate: func(i int, _ *bench.Request) { cancel() }}
	var k keeper
	ev := RunCell(ctx, nil, testJob(5, 2, 4), benchtest.NewFake(cfg), k.keep)
	measured, _ := k.split()
	if ev.State != results.CellInterrupted || len(measured) != 0 {
		t.Fatalf("%+v with %d measured records", ev, len(measured))
	}
}

func TestRequestTimeLimit(t *testing.T) {
	job := testJob(4, 1, 0)
	job.Cell.RequestTimeout = 20 * time.Millisecond
	var k keeper
	ev := RunCell(context.Background(), nil, job, benchtest.NewFake(benchtest.FakeConfig{Fail: map[int]bench.Class{1: bench.Timeout}}), k.keep)
	measured, _ := k.split()
	if ev.State != results.CellDone || len(measured) != 4 {
		t.Fatalf("%+v", ev)
	}
	if r := measured[1]; r.Class != bench.Timeout || !strings.Contains(r.Error, "request time limit of 20ms") {
		t.Fatalf("class %q, error %q", r.Class, r.Error)
	}
	if measured[0].Class != bench.OK {
		t.Fatalf("an answer within the limit failed: %s", measured[0].Error)
	}
}

func TestCellTimeLimit(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
	defer cancel()
	var k keeper
	// All workers hang: every request is cut off, none counts as measured.
	fail := map[int]bench.Class{}
	for i := range 4 {
		fail[i] = bench.Timeout
	}
	ev := RunCell(ctx, nil, testJob(4, 4, 0), benchtest.NewFake(benchtest.FakeConfig{Fail: fail}), k.keep)
	if ev.State != results.CellFailed || ev.Class != "timeout" || !strings.Contains(ev.Reason, "0 of 4") {
		t.Fatalf("%+v", ev)
	}
	if len(k.recs) != 4 || k.recs[0].Class != bench.Timeout || !strings.Contains(k.recs[0].Error, "time limit of the cell") {
		t.Fatalf("records %+v", k.recs)
	}
}

func TestSinkErrorEndsTheCell(t *testing.T) {
	n := 0
	sink := func(*results.Record) error {
		if n++; n == 3 {
			return errors.New("no space left on device")
		}
		return nil
	}
	ev := RunCell(context.Background(), nil, testJob(500, 2, 0), benchtest.NewFake(benchtest.FakeConfig{}), sink)
	if ev.State != results.CellFailed || ev.Class != "internal" || !strings.Contains(ev.Reason, "no space left on device") {
		t.Fatalf("%+v", ev)
	}
	if n != 3 {
		t.Fatalf("the sink was called %d times after its error", n-3)
	}
}

// A sink that is slow only makes workers wait that are sparePerWorker ahead,
// and the event says that it happened.
func TestSlowSinkIsTold(t *testing.T) {
	release := make(chan struct{})
	var made atomic.Int64
	cfg := benchtest.FakeConfig{OnGenerate: func(int, *bench.Request) {
		if made.Add(1) == sparePerWorker {
			close(release) // reached only because the held sink does not hold the worker
		}
	}}
	var k keeper
	first := true
	ev := RunCell(context.Background(), nil, testJob(60, 1, 0), benchtest.NewFake(cfg), func(r *results.Record) error {
		if first {
			first = false
			<-release
			time.Sleep(30 * time.Millisecond) // long for a worker whose answers take none
		}
		return k.keep(r)
	})
	if ev.State != results.CellDone || len(k.recs) != 60 {
		t.Fatalf("%+v with %d records", ev, len(k.recs))
	}
	if !strings.Contains(strings.Join(ev.Warnings, "\n"), waitedFor) {
		t.Errorf("warnings %q", ev.Warnings)
	}
	for i, r := range k.recs {
		if r.Index != i {
			t.Fatalf("record %d has index %d", i, r.Index)
		}
	}
}

type noSeats struct{ *benchtest.Fake }

func (n noSeats) NewSession(l bench.Limits) (bench.Session, error) {
	if n.OpenSessions() == 2 {
		return nil, bench.Fail(bench.Connect, "fake: connection refused")
	}
	return n.Fake.NewSession(l)
}

func TestNoSessionIsTheCellsResult(t *testing.T) {
	b := noSeats{benchtest.NewFake(benchtest.FakeConfig{})}
	ev := RunCell(context.Background(), nil, testJob(5, 3, 0), b, func(*results.Record) error { return nil })
	if ev.State != results.CellFailed || ev.Class != "connect" || !strings.Contains(ev.Reason, "worker 3 of 3: fake: connection refused") {
		t.Fatalf("%+v", ev)
	}
	if n := b.OpenSessions(); n != 0 {
		t.Fatalf("%d sessions left open", n)
	}
}

func TestJobIsChecked(t *testing.T) {
	for name, spoil := range map[string]func(*Job){
		"concurrency": func(j *Job) { j.Cell.Concurrency = 0 },
		"prompts":     func(j *Job) { j.Prompts = j.Prompts[:2] },
		"warm-up":     func(j *Job) { j.Warmups = nil },
		"max_tokens":  func(j *Job) { j.Cell.Sampling.MaxTokens = 0 },
	} {
		job := testJob(3, 1, 1)
		spoil(&job)
		ev := RunCell(context.Background(), nil, job, benchtest.NewFake(benchtest.FakeConfig{}), func(*results.Record) error { return nil })
		if ev.State != results.CellFailed || !strings.Contains(ev.Reason, name) {
			t.Errorf("%s: %+v", name, ev)
		}
	}
}

func TestLimitsHoldEveryPrompt(t *testing.T) {
	job := testJob(3, 1, 1)
	job.Prompts[1].Text = strings.Repeat("x", 300)
	job.Warmups[0].Text = strings.Repeat("y", 400)
	job.Cell.FirstTokenTimeout, job.Cell.TokenTimeout = 2*time.Second, time.Second
	want := bench.Limits{PromptBytes: 400, PromptTokens: 401, OutputTokens: 5, FirstToken: 2 * time.Second, Gap: time.Second}
	if got := job.Limits(); got != want {
		t.Fatalf("got %+v, want %+v", got, want)
	}
}
