package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nativebench/nativebench/httpbackends"
	"github.com/nativebench/nativebench/internal/plan"
	"github.com/nativebench/nativebench/internal/results"
	"github.com/nativebench/nativebench/internal/verify"
)

// vetter is a run of fake beside servers, which counts their starts, before its
// first cell.
func vetter(t *testing.T, alone bool, budget time.Duration, servers ...string) (x *execution, starts map[string]int, said *bytes.Buffer) {
	t.Helper()
	t.Setenv(asProgram, "1")
	t.Setenv("GORACE", noSleep)
	starts = map[string]int{}
	known := testRegistry()
	for i, b := range known {
		if !slices.Contains(servers, b.name) {
			continue
		}
		known[i].server = &httpbackends.Server{Name: b.name}
		known[i].ready = func(ctx context.Context, p place) (*seat, error) {
			starts[b.name]++
			at, err := b.ready(ctx, p)
			if err == nil {
				at.stop = func(context.Context) error { return nil } // it was started here
			}
			return at, err
		}
	}
	s := &setup{known: known, plan: plan.Default(), budget: budget}
	s.plan.Backends, s.plan.Tasks = append([]string{"fake"}, servers...), []string{"chat"}
	if budget > 0 {
		s.plan.Modes, s.plan.Concurrency, s.plan.Repeats = []plan.Mode{plan.Stream}, []int{1}, 2
	}
	var err error
	if s.cells, err = s.plan.Cells(); err != nil {
		t.Fatal(err)
	}
	s.resolveThreads()
	if err := s.makePrompts(); err != nil {
		t.Fatal(err)
	}
	said = &bytes.Buffer{}
	x = &execution{setup: s, stop: listen(t.Context(), io.Discard), show: newProgress(said, s.cells), manifest: &results.Manifest{Schema: results.Schema}, costs: s.newCosts()}
	t.Cleanup(x.stop.close)
	if x.w, err = results.Create(filepath.Join(t.TempDir(), "run"), x.manifest); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { x.w.Close() })
	x.seats = newSeats(x.place)
	x.seats.alone = alone
	if err := x.newVetting(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { x.vetting.close() })
	return x, starts, said
}

// A server that was started to be asked has its cells, though not even its start
// was guessed to fit any more; one for which there is no time is not started.
func TestVettingIsPartOfTheTime(t *testing.T) {
	pretendGPU(t, filepath.Join(t.TempDir(), "no such device"))
	for _, tc := range []struct {
		budget time.Duration
		starts int
		cells  string
	}{
		{40 * sec, 1, "fake/0 twin/0 twin/1 fake/1"},
		{30 * sec, 0, "fake/0 fake/1"},
	} {
		x, starts, _ := vetter(t, false, tc.budget, "twin")
		x.costs = newCosts(func(served) time.Duration { return 30 * sec }, func(plan.Cell) time.Duration { return sec })
		now := time.Unix(0, 0)
		x.share = x.newShares(x.order(x.todo()), x.costs, func() time.Time { return now })
		var ran []string
		for i, ok := x.share.next(); ok; i, ok = x.share.next() {
			if err := x.vetModel("gpt2"); err != nil {
				t.Fatal(err)
			}
			if len(ran) == 0 {
				twin := slices.IndexFunc(x.cells, func(c plan.Cell) bool { return c.Backend == "twin" })
				if got := x.share.least(twin); tc.starts > 0 && got != sec {
					t.Errorf("of %s: the first cell of a server that is up is foreseen to take %s", tc.budget, got)
				}
				now = now.Add(12 * sec) // of all that and asking
			}
			now = now.Add(sec)
			ran = append(ran, fmt.Sprintf("%s/%d", x.cells[i].Backend, x.cells[i].Repeat))
		}
		if got := strings.Join(ran, " "); got != tc.cells || starts["twin"] != tc.starts {
			t.Errorf("of %s: %s, started %d times; want %s, %d", tc.budget, got, starts["twin"], tc.cells, tc.starts)
		}
		if took, noted := x.costs.starts[served{"twin", "gpt2"}]; noted != (tc.starts > 0) || noted && took <= 0 {
			t.Errorf("of %s: a start took %s, noted %t", tc.budget, took, noted)
		}
	}
}

// Where one server runs at a time, each is asked when it is started for its first
// cell: none is started for the check alone. Elsewhere all are asked before.
func TestVettingStartsNoServerTwice(t *testing.T) {
	for _, alone := range []bool{true, false} {
		x, starts, said := vetter(t, alone, 0, "twin", "crash")
		x.share = x.newShares(x.todo(), x.costs, time.Now)
		if err := x.vetModel("gpt2"); err != nil {
			t.Fatal(err)
		}
		if want := map[bool]int{true: 0, false: 2}[alone]; len(starts) != want || len(x.manifest.SameModel) != want {
			t.Errorf("alone %v: started %v before, found %+v", alone, starts, x.manifest.SameModel)
		}
		for _, name := range []string{"twin", "crash", "twin"} {
			b, err := x.known.find(name)
			if err != nil {
				t.Fatal(err)
			}
			seat, _, _, err := x.seats.get(t.Context(), b, "gpt2")
			if err != nil {
				t.Fatal(err)
			}
			if err := x.vet(b, seat, "gpt2"); err != nil {
				t.Fatal(err)
			}
		}
		found := x.manifest.SameModel
		if len(found) != 2 || found[0].Backend != "twin" || found[1].Backend != "crash" || found[1].Verdict != string(verify.Failed) {
			t.Fatalf("alone %v: %+v", alone, found)
		}
		if !strings.Contains(found[1].Why, "panic: the engine fell over") || !strings.Contains(said.String(), "WARNING: whether crash runs the same model as fake") {
			t.Errorf("%q\n%s", found[1].Why, said.String())
		}
		// Alone, the first one was stopped for the second, and started again.
		if want := map[bool]int{true: 2, false: 1}[alone]; starts["twin"] != want || starts["crash"] != 1 {
			t.Errorf("alone %v: started %v", alone, starts)
		}
	}
}

// Ctrl-C ends verify and what it started; no logs are left.
func TestVerifyIsStopped(t *testing.T) {
	dir := t.TempDir()
	cmd := program(t, []string{fakeGate + "=" + filepath.Join(dir, "never"), "TMPDIR=" + dir}, "verify", "--backends", "fake,twin", "--prompts", "5")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for len(childrenOf(cmd.Process.Pid)) == 0 { // its fourth answer never comes
		select {
		case <-ended:
			t.Fatalf("it ended before it had started anything:\n%s", out.String())
		case <-time.After(2 * time.Millisecond):
		}
	}
	cmd.Process.Signal(syscall.SIGINT)
	<-ended // its status is looked at
	if code := cmd.ProcessState.ExitCode(); code != exitInterrupted || strings.Contains(out.String(), "panic") {
		t.Errorf("status %d: %s", code, out.String())
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left are %v, %v", left, err)
	}
}
