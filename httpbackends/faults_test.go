package httpbackends

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nativebench/nativebench/internal/bench"
	"github.com/nativebench/nativebench/internal/bench/benchtest"
)

// Each fault has its class and message, keeps what was stamped, and does no
// harm to a request under way beside it nor to those after it. With -v the
// table is printed.
func TestFaults(t *testing.T) {
	lines := make([]string, len(faults))
	t.Run("each", func(t *testing.T) {
		for i, tc := range faults {
			t.Run(tc.name, func(t *testing.T) {
				t.Parallel()
				lines[i] = tc.run(t)
			})
		}
	})
	for _, line := range lines {
		t.Log(line)
	}
}

// run tries one fault and returns its line of the table.
func (tc *fault) run(t *testing.T) string {
	srv := newTestServer(t)
	b := srv.open(t, nil).(*backend)
	settle := besides(t, srv, b, tc.answer)
	limits := bench.Limits{PromptBytes: 100, OutputTokens: 100, FirstToken: tc.limits.FirstToken, Gap: tc.limits.Gap}
	opened, err := b.NewSession(limits)
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close()
	s := opened.(*session)
	srv.receive(tc.greet)
	good := *b
	if tc.greet != nil || tc.spoil != nil {
		s.drop()
	}
	if tc.spoil != nil {
		spoilt := *b
		tc.spoil(&spoilt)
		s.b = &spoilt
	}
	ctx := context.Background()
	if tc.timeout {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, 700*time.Millisecond)
		defer cancel()
	}
	req := testRequest(tc.stream)
	tr := bench.NewTrace(8)
	before := bench.Now()
	if err = s.Prepare(req); err == nil {
		err = s.Generate(ctx, tr)
		if tr.Start < before || tr.End < tr.Start || tr.End > bench.Now() || len(tr.Marks) != 0 && tr.Marks[0].T < tr.Start {
			t.Errorf("start %d, end %d, marks %v", tr.Start, tr.End, tr.Marks)
		}
	} else if tc.spoil == nil {
		t.Fatal(err)
	}
	class := bench.ClassOf(err)
	if class != tc.class || !strings.Contains(fmt.Sprint(err), tc.want) {
		t.Errorf("class %q: %v; want %q: …%s…", class, err, tc.class, tc.want)
	}
	if err != nil && strings.ContainsAny(err.Error(), "\r\n") || strings.Contains(fmt.Sprint(err), "secret") {
		t.Errorf("message %q is not one line, or has a secret in it", err)
	}
	if err == nil {
		if !slices.Equal(tr.Warnings, tc.warns) {
			t.Errorf("warnings %v, want %v", tr.Warnings, tc.warns)
		}
		if err := benchtest.Check(tr, req); err != nil {
			t.Error(err)
		}
	}
	var f *bench.Failure
	if errors.As(err, &f) && (f.RetryAfter < tc.after || f.RetryAfter > 0 != (tc.after > 0)) {
		t.Errorf("retry after %v, want %v", f.RetryAfter, tc.after)
	}
	if tc.events >= 0 && tr.Events != tc.events {
		t.Errorf("%d events were kept, want %d", tr.Events, tc.events)
	}

	settle()
	srv.set(nil)
	srv.receive(nil)
	s.b, s.watch.first, s.watch.gap = &good, 0, 0
	for _, stream := range []bool{true, false} {
		ask(t, s, testRequest(stream))
	}
	if err == nil {
		return fmt.Sprintf("%-40s %-9s %v", tc.name, "ok", tr.Warnings)
	}
	return fmt.Sprintf("%-40s %-9s %.150s", tc.name, class, strings.ReplaceAll(err.Error(), srv.Addr().String(), "…"))
}

// ask sends one request that must be answered well.
func ask(t *testing.T, s *session, req *bench.Request) {
	t.Helper()
	tr := bench.NewTrace(8)
	err := s.Prepare(req)
	if err == nil {
		err = s.Generate(context.Background(), tr)
	}
	if err == nil {
		err = benchtest.Check(tr, req)
	}
	if err != nil || len(tr.Warnings) > 0 {
		t.Errorf("another request: %v, warnings %v", err, tr.Warnings)
	}
}

// besides begins a request on a session of its own, whose answer is half sent
// when it returns; settle has the other half sent and checks it. All other
// requests get answer.
func besides(t *testing.T, srv *testServer, b *backend, answer func(*call)) (settle func()) {
	half, over := make(chan struct{}), make(chan struct{})
	end := sync.OnceFunc(func() { close(over) })
	t.Cleanup(end) // before the server waits for its answers
	srv.set(func(c *call) {
		if c.prompt != "besides" {
			answer(c)
			return
		}
		c.write("%s", streamHead+chunk(event(" a", 1)+event(" b", 2)))
		close(half)
		<-over
		c.write("%s0\r\n\r\n", chunk(event(" c", 3)+event(" d", 4)+last("length", 4)+doneMark))
		c.close = true
	})
	s := openSession(t, b)
	req := testRequest(true)
	req.Prompt = "besides"
	done := make(chan struct{})
	go func() {
		defer close(done)
		ask(t, s, req)
	}()
	<-half
	return func() {
		end()
		<-done
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for value, want := range map[string]time.Duration{
		"7": 7 * time.Second, "0": 0, "-1": 0, "1.5": 0, "soon": 0, "99999999999999": 0,
		"Fri, 02 Jan 2026 03:04:25 GMT": 20 * time.Second, "Fri, 02 Jan 2026 03:04:04 GMT": 0,
	} {
		if got := retryAfter(value, now); got != want {
			t.Errorf("%q: %v, want %v", value, got, want)
		}
	}
}
