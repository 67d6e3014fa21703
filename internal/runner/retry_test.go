package runner

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nativebench/nativebench/internal/bench"
	"github.com/nativebench/nativebench/internal/bench/benchtest"
	"github.com/nativebench/nativebench/internal/results"
)

// retryJob is one whose fakes fail before any token.
func retryJob(requests, retries int) Job {
	job := testJob(requests, 1, 0)
	job.Cell.Sampling.MaxTokens = 1
	job.Cell.Retries = retries
	return job
}

// A request is sent again as often as the plan says, only after failures that
// left nothing behind, and its record says so.
func TestRetries(t *testing.T) {
	var asked sent
	fake := benchtest.NewFake(benchtest.FakeConfig{
		// Request 0: calls 0 to 2. 1: calls 3 to 5, all in vain. 2: call 6. 3: call 7.
		Fail:       map[int]bench.Class{0: bench.Busy, 1: bench.Reset, 3: bench.Busy, 4: bench.Connect, 5: bench.Busy, 6: bench.Refused},
		OnGenerate: asked.add,
	})
	var k keeper
	ev := RunCell(context.Background(), nil, retryJob(4, 2), fake, k.keep)
	measured, _ := k.split()
	if ev.State != results.CellDone || len(measured) != 4 || fake.Calls() != 8 {
		t.Fatalf("%d records after %d calls: %+v", len(measured), fake.Calls(), ev)
	}
	for i, want := range []struct {
		class   bench.Class
		retries int
		earlier []bench.Class
		text    string // in the error
	}{
		{"", 2, []bench.Class{bench.Busy, bench.Reset}, ""},
		{bench.Busy, 2, []bench.Class{bench.Busy, bench.Connect}, "(sent 3 times)"},
		{bench.Refused, 0, nil, "as configured"},
		{"", 0, nil, ""},
	} {
		r := measured[i]
		if r.Class != want.class || r.Retries != want.retries || !slices.Equal(r.Earlier, want.earlier) || !strings.Contains(r.Error, want.text) {
			t.Errorf("request %d: class %q, %d retries after %v, %s; want %+v", i, r.Class, r.Retries, r.Earlier, r.Error, want)
		}
		if want.class == bench.OK && (r.Start == 0 || len(r.Marks) != 1 || r.Text == "") {
			t.Errorf("request %d: the answer was not kept: %+v", i, r)
		}
	}
	for _, again := range asked.list[1:3] {
		if again != asked.list[0] {
			t.Errorf("sent again as %+v, first as %+v", again, asked.list[0])
		}
	}
}

// What had begun to answer is not asked again, nor anything without the flag.
func TestNoRetry(t *testing.T) {
	begun := retryJob(2, 3)
	begun.Cell.Sampling.MaxTokens = 5
	for name, job := range map[string]Job{"none asked": retryJob(2, 0), "an answer begun": begun} {
		fake := benchtest.NewFake(benchtest.FakeConfig{Fail: map[int]bench.Class{0: bench.Busy}})
		var k keeper
		RunCell(context.Background(), nil, job, fake, k.keep)
		if r := k.recs[0]; fake.Calls() != 2 || r.Class != bench.Busy || r.Retries != 0 || r.Earlier != nil {
			t.Errorf("%s: %d calls, %+v", name, fake.Calls(), r)
		}
	}
	for class, byteCame := range map[bench.Class]bool{bench.Reset: true, bench.Connect: true, bench.Timeout: false, bench.Truncated: false, bench.ServerFail: false} {
		tr := bench.NewTrace(1)
		if byteCame {
			tr.FirstByte = 1
		}
		if again(bench.Fail(class, "x"), tr) {
			t.Errorf("%s is sent again, a byte of an answer: %v", class, byteCame)
		}
	}
}

// The pause before a retry ends with the run, the drain or the cell's limit,
// and the request then counts as cut off.
func TestRetryPauseEnds(t *testing.T) {
	for name, tc := range map[string]struct {
		class bench.Class
		state results.CellState
		stop  func(cancel context.CancelFunc, drain chan struct{})
	}{
		"stopped":    {class: bench.Cancelled, state: results.CellInterrupted, stop: func(cancel context.CancelFunc, _ chan struct{}) { cancel() }},
		"drained":    {class: bench.Cancelled, state: results.CellInterrupted, stop: func(_ context.CancelFunc, drain chan struct{}) { close(drain) }},
		"cell limit": {class: bench.Timeout, state: results.CellFailed},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			expire := func() {}
			if tc.stop == nil {
				limited := &expiring{Context: ctx, done: make(chan struct{})}
				ctx, expire = limited, sync.OnceFunc(func() { close(limited.done) })
			}
			drain := make(chan struct{})
			fake := &busyFor{Fake: benchtest.NewFake(benchtest.FakeConfig{}), wait: time.Hour, called: func() {
				if expire(); tc.stop != nil {
					tc.stop(cancel, drain)
				}
			}}
			var k keeper
			ev := RunCell(ctx, drain, retryJob(3, 5), fake, k.keep)
			if ev.State != tc.state || len(k.recs) != 1 {
				t.Fatalf("%d records, %+v", len(k.recs), ev)
			}
			if r := k.recs[0]; r.Class != tc.class || !strings.Contains(r.Error, "busy for 1h0m0s") {
				t.Errorf("class %q, error %q", r.Class, r.Error)
			}
		})
	}
}

// expiring is a context whose deadline passes when done is closed: at a point of
// the test, not at a time.
type expiring struct {
	context.Context
	done chan struct{}
}

func (c *expiring) Done() <-chan struct{} { return c.done }

func (c *expiring) Err() error {
	select {
	case <-c.done:
		return context.DeadlineExceeded
	default:
		return nil
	}
}

// busyFor is a backend that asks to wait.
type busyFor struct {
	*benchtest.Fake
	wait   time.Duration
	called func()
}

func (b *busyFor) NewSession(l bench.Limits) (bench.Session, error) {
	s, err := b.Fake.NewSession(l)
	return &busySession{s, b}, err
}

type busySession struct {
	bench.Session
	b *busyFor
}

func (s *busySession) Generate(context.Context, *bench.Trace) error {
	s.b.called()
	f := bench.Fail(bench.Busy, "busy for %v", s.b.wait)
	f.RetryAfter = s.b.wait
	return f
}

// The server's word goes before ours, however long it is; ours is bounded.
func TestPauseLength(t *testing.T) {
	asked := bench.Fail(bench.Busy, "x")
	asked.RetryAfter = time.Hour
	for _, tc := range []struct {
		err  error
		n    int
		want time.Duration
	}{
		{errors.New("x"), 0, 100 * time.Millisecond},
		{errors.New("x"), 3, 800 * time.Millisecond},
		{errors.New("x"), 99, 30 * time.Second},
		{errors.New("x"), 9, 30 * time.Second},
		{asked, 0, time.Hour},
		{&bench.Failure{Class: bench.Busy, RetryAfter: 2 * time.Second}, 5, 2 * time.Second},
	} {
		if got := pauseLength(tc.err, tc.n); got != tc.want {
			t.Errorf("retry %d after %v: %v, want %v", tc.n, tc.err, got, tc.want)
		}
	}
}

// A server that wants to be asked again after the cell's end is not asked again,
// neither earlier than it said nor by waiting in vain.
func TestRetryAfterTheCellsEnd(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	calls := 0
	b := &busyFor{Fake: benchtest.NewFake(benchtest.FakeConfig{}), wait: time.Hour, called: func() { calls++ }}
	var k keeper
	ev := RunCell(ctx, nil, retryJob(1, 3), b, k.keep)
	measured, _ := k.split()
	if ev.State != results.CellDone || len(measured) != 1 || calls != 1 {
		t.Fatalf("%d records after %d calls: %+v", len(measured), calls, ev)
	}
	if r := measured[0]; r.Class != bench.Busy || r.Retries != 0 || r.Error != "busy for 1h0m0s; not sent again: that would be in 1h0m0s, after the time limit of the cell, 1m0s: raise --cell-timeout" {
		t.Errorf("class %q, %d retries, %s", r.Class, r.Retries, r.Error)
	}
}
