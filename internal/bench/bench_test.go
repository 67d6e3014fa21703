package bench_test

import (
	"errors"
	"testing"
	"time"

	"github.com/nativebench/nativebench/internal/bench"
)

func TestNowIsMonotonicAndRuns(t *testing.T) {
	a := bench.Now()
	for range 1000 {
		b := bench.Now()
		if b < a {
			t.Fatalf("the clock went back by %d ns", a-b)
		}
		a = b
	}
	if before, at, after := bench.Now(), bench.At(time.Now()), bench.Now(); at < before || at > after {
		t.Errorf("At(now) is %d, not in [%d, %d]", at, before, after)
	}
	if u := bench.ClockUncertainty(); u <= 0 || u > int64(time.Second) {
		t.Errorf("offset known to ±%d ns", u)
	}
	if d := time.Since(bench.WallTime(bench.Now())); d < -time.Minute || d > time.Minute {
		t.Errorf("wall time of now is off by %v", d)
	}
}

func TestMarkNeverAllocates(t *testing.T) {
	tr := bench.NewTrace(16)
	n := testing.AllocsPerRun(100, func() {
		tr.Reset()
		for i := range 1000 {
			tr.Mark(int64(i), i)
		}
		tr.Warn(bench.WarnShort)
		tr.Warn(bench.WarnShort)
	})
	if n != 0 {
		t.Errorf("%g allocations per request", n)
	}
	if len(tr.Marks) != cap(tr.Marks) || tr.MarksLost != 1000-cap(tr.Marks) {
		t.Errorf("%d marks kept, %d lost", len(tr.Marks), tr.MarksLost)
	}
	if len(tr.Warnings) != 1 {
		t.Errorf("warnings %v", tr.Warnings)
	}
}

func TestClassOf(t *testing.T) {
	cause := errors.New("cause")
	err := error(bench.Fail(bench.Reset, "reading: %w", cause))
	if bench.ClassOf(err) != bench.Reset || !errors.Is(err, cause) || err.Error() != "reading: cause" {
		t.Errorf("%v: class %q", err, bench.ClassOf(err))
	}
	if bench.ClassOf(nil) != bench.OK || bench.ClassOf(cause) != bench.Internal {
		t.Error("nil must be OK and a stranger Internal")
	}
}
