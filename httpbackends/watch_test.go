package httpbackends

import (
	"context"
	"testing"
	"time"

	"github.com/nativebench/nativebench/internal/bench"
)

// A limit that would have passed after the answer was whole does nothing to the
// connection, which serves the next request.
func TestLimitsEndWithTheRequest(t *testing.T) {
	srv := newTestServer(t)
	b := srv.open(t, func(c *Config) { c.Server.ClosesAfterStream = false })
	srv.set(func(c *call) { goodAnswer(c); c.close = false })
	before := srv.accepted()
	const limit = 150 * time.Millisecond
	opened, err := b.NewSession(bench.Limits{FirstToken: limit, Gap: limit})
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close()
	s := opened.(*session)
	for range 3 {
		ask(t, s, testRequest(true))
		time.Sleep(2 * limit)
		if !s.conn.fresh() {
			t.Error("the connection was not left open")
		}
	}
	if got := srv.accepted() - before; got != 1 {
		t.Errorf("%d connections for 3 requests, want 1", got)
	}
}

// The watch costs a request no memory once its timer is made.
func TestWatchAllocatesNothing(t *testing.T) {
	w := &watch{first: time.Hour, gap: time.Hour}
	conn := &wire{}
	n := testing.AllocsPerRun(100, func() {
		w.begin(conn)
		w.content.Store(bench.Now())
		w.end()
	})
	if n != 0 {
		t.Errorf("%v allocations per request", n)
	}
}

// wait never sleeps past a moment at which a limit can have passed.
func TestWatchWait(t *testing.T) {
	const sec = time.Second
	for _, tc := range []struct {
		first, gap time.Duration
		now        time.Duration // since the start
		content    time.Duration // when it came, 0: not yet
		want       time.Duration
	}{
		{5 * sec, 0, 0, 0, 5 * sec},
		{5 * sec, 0, 2 * sec, 0, 3 * sec},
		{5 * sec, sec, 0, 0, sec}, // content at once would be late then
		{5 * sec, sec, 4500 * time.Millisecond, 0, 500 * time.Millisecond},
		{sec, 5 * sec, 0, 0, sec},
		{0, sec, 3 * sec, 0, sec},
		{0, sec, 3 * sec, 2500 * time.Millisecond, 500 * time.Millisecond},
		{5 * sec, sec, 2 * sec, 2 * sec, sec},
	} {
		w := &watch{first: tc.first, gap: tc.gap, start: int64(time.Hour)}
		if tc.content > 0 {
			w.content.Store(w.start + int64(tc.content))
		}
		if got := w.wait(w.start + int64(tc.now)); got != tc.want {
			t.Errorf("%+v: waits %v", tc, got)
		}
	}
}

// A run that is stopped while a limit is watched is stopped, not too slow.
func TestStoppedUnderLimits(t *testing.T) {
	srv := newTestServer(t)
	srv.set(silent(streamHead + chunk(event(" w", 1))))
	s, err := srv.open(t, nil).NewSession(bench.Limits{FirstToken: time.Minute, Gap: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Prepare(testRequest(true)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	time.AfterFunc(20*time.Millisecond, cancel)
	if err := s.Generate(ctx, bench.NewTrace(8)); bench.ClassOf(err) != bench.Cancelled {
		t.Errorf("class %q: %v", bench.ClassOf(err), err)
	}
}
