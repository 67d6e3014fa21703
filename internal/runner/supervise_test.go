package runner

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nativebench/nativebench/internal/bench"
	"github.com/nativebench/nativebench/internal/bench/benchtest"
	"github.com/nativebench/nativebench/internal/results"
	"github.com/nativebench/nativebench/internal/telemetry"
)

// The test binary is its own child: this variable says how it shall behave.
const childMode = "NATIVEBENCH_RUNNER_TEST_CHILD"

const (
	behind = "NATIVEBENCH_RUNNER_TEST_BEHIND" // a parent's child is a grandchild
	holds  = "NATIVEBENCH_RUNNER_TEST_HOLDS"  // file in which a child says what it holds
)

type writer func([]byte)

func (w writer) Write(b []byte) (int, error) { w(b); return len(b), nil }

func TestMain(m *testing.M) {
	if mode := os.Getenv(childMode); mode != "" {
		os.Exit(child(mode))
	}
	os.Exit(m.Run())
}

// child runs its cell until the third request, and there does what mode says.
func child(mode string) int {
	out, held, err := Messages()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Fprintln(os.Stderr, "child in mode", mode)
	switch mode {
	case "parent": // of a child that hangs; for the test of kill -9
		c := testChild("hang")
		if os.Getenv(behind) != "" { // as behind a profiler, which has the cell as its child
			c.Command = append([]string{"sh", "-c", `"$@"; exit 0`, "sh"}, c.Command...)
			c.Log = writer(func(b []byte) { // the cell says who it is
				for line := range strings.Lines(string(b)) {
					if pid, found := strings.CutPrefix(strings.TrimSpace(line), "child is "); found {
						fmt.Fprintln(out, pid)
					}
				}
			})
			Supervise(context.Background(), nil, c)
			return 0
		}
		c.Started = func(pid int) { fmt.Fprintln(out, pid) }
		Supervise(context.Background(), nil, c)
		return 0
	case "deaf": // signals come before it listens
		time.Sleep(time.Hour)
	}
	ctx, cancel := context.WithCancel(context.Background())
	drain := make(chan struct{})
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		for s := range signals {
			if s == syscall.SIGINT {
				close(drain)
			} else {
				cancel()
			}
		}
	}()
	written := &counted{w: out, two: make(chan struct{})}
	cfg := benchtest.FakeConfig{}
	cfg.OnGenerate = func(i int, _ *bench.Request) {
		if i != 2 {
			return
		}
		<-written.two
		switch mode {
		case "panic":
			panic("a fault in the backend")
		case "segv":
			syscall.Kill(os.Getpid(), syscall.SIGSEGV)
			time.Sleep(time.Hour)
		case "abort":
			fmt.Fprintln(os.Stderr, "GGML_ASSERT failed")
			syscall.Kill(os.Getpid(), syscall.SIGABRT)
			time.Sleep(time.Hour)
		case "crash": // no runtime gets to print anything
			debug.SetTraceback("crash")
			syscall.Kill(os.Getpid(), syscall.SIGILL)
			time.Sleep(time.Hour)
		case "kill":
			syscall.Kill(os.Getpid(), syscall.SIGKILL)
			time.Sleep(time.Hour)
		case "exit":
			fmt.Fprintln(os.Stderr, "a library called exit")
			os.Exit(3)
		case "hang", "drain", "cancel":
			fmt.Fprintln(os.Stderr, "in request 2")
			if mode == "hang" {
				fmt.Fprintln(os.Stderr, "child is", os.Getpid())
				signal.Ignore(syscall.SIGTERM, syscall.SIGINT)
				time.Sleep(time.Hour)
			}
			if mode == "cancel" {
				out.Write([]byte(`{"load":0.5}` + "\n"))
				<-ctx.Done()
				time.Sleep(200 * time.Millisecond) // a context closes its own channel before it cancels the request's
			} else {
				out.Write([]byte(`{"load":0.5}` + "\n"))
				<-drain
			}
		case "garbage":
			out.Write([]byte("not a message\n{\"load\":1,\"info\":{}}\n{}\n"))
		case "torn":
			out.Write([]byte(`{"request":{"cell":"x","i":`))
			os.Exit(0)
		case "silent":
			os.Exit(0)
		}
	}
	open := func(_ context.Context, _ json.RawMessage, o Opening) (bench.Backend, error) {
		if mode == "marks" {
			// What it holds changes right before a mark and right after it.
			hold := func(what string) { os.WriteFile(os.Getenv(holds), []byte(what), 0o600) }
			o.Loading(0)
			hold("a context")
			o.Hold(telemetry.ContextMark)
			hold("weights")
		}
		if mode == "unopened" {
			return nil, bench.Fail(bench.Engine, "fake: not a model")
		}
		return benchtest.NewFake(cfg), nil
	}
	if err := Serve(ctx, drain, os.Stdin, held, written, open); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if mode == "lingers" {
		time.Sleep(time.Hour)
	}
	return 0
}

// counted closes two when the records of two requests have been written: what
// was handed over before a crash is what must survive it.
type counted struct {
	w   io.Writer
	n   int
	two chan struct{}
}

func (c *counted) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	if bytes.HasPrefix(b, []byte(`{"request"`)) {
		if c.n++; c.n == 2 {
			close(c.two)
		}
	}
	return n, err
}

func testChild(mode string) Child {
	exe, err := os.Executable()
	if err != nil {
		panic(err)
	}
	return Child{
		Command: []string{exe},
		Env:     append(os.Environ(), childMode+"="+mode, "GORACE=atexit_sleep_ms=0"), // which spares a second per child
		Spec:    Spec{Job: testJob(6, 1, 0), Backend: json.RawMessage(`{}`)},
		Limit:   time.Minute,
		Grace:   10 * time.Second,
	}
}

// Whatever a child does is the result of its cell, with what it had measured,
// and the next cell runs.
func TestWhateverAChildDoesIsItsCellsResult(t *testing.T) {
	for _, tc := range []struct {
		mode    string
		state   results.CellState
		class   string
		reason  string // part of it
		warning string // part of one
		stderr  string // part of it
		records int
	}{
		{mode: "ok", state: results.CellDone, records: 6},
		{mode: "segv", state: results.CellFailed, class: "crash", reason: "crashed: SIGSEGV: segmentation violation (exit status 2)", stderr: "SIGSEGV", records: 2},
		{mode: "abort", state: results.CellFailed, class: "crash", reason: "crashed: SIGABRT: abort (exit status 2)", stderr: "GGML_ASSERT failed", records: 2},
		{mode: "crash", state: results.CellFailed, class: "crash", reason: "(killed by SIGABRT)", stderr: "SIGILL", records: 2},
		{mode: "kill", state: results.CellFailed, class: "crash", reason: "killed by SIGKILL", stderr: "child in mode", records: 2},
		{mode: "panic", state: results.CellFailed, class: "crash", reason: "crashed: panic: a fault in the backend (exit status 2)", stderr: "goroutine", records: 2},
		{mode: "exit", state: results.CellFailed, class: "crash", reason: "exit status 3", stderr: "a library called exit", records: 2},
		{mode: "hang", state: results.CellFailed, class: "timeout", reason: "hung", stderr: "in request 2", records: 2},
		{mode: "garbage", state: results.CellDone, warning: "could not be read", records: 6},
		{mode: "torn", state: results.CellFailed, class: "crash", reason: "without a word", warning: "cut off after 27 bytes", records: 2},
		{mode: "silent", state: results.CellFailed, class: "crash", reason: "without a word", records: 2},
		{mode: "unopened", state: results.CellFailed, class: "engine", reason: "fake: not a model"},
		{mode: "lingers", state: results.CellDone, warning: "killed by SIGKILL", records: 6},
	} {
		t.Run(tc.mode, func(t *testing.T) {
			t.Parallel()
			c := testChild(tc.mode)
			switch tc.mode {
			case "hang":
				c.Limit = 500 * time.Millisecond
			case "lingers":
				c.Grace = 100 * time.Millisecond
			}
			var k keeper
			var log bytes.Buffer
			var infos, pid int
			c.Record, c.Log = k.keep, &log
			c.Info = func(i bench.Info) { infos++ }
			c.Started = func(p int) { pid = p }
			ev, err := Supervise(context.Background(), nil, c)
			if err != nil {
				t.Fatal(err)
			}
			if ev.Cell != c.Spec.Job.ID || ev.Attempt != 2 || ev.T == 0 {
				t.Errorf("event does not say whose it is: %+v", ev)
			}
			if tc.mode == "hang" && len(k.recs) == 0 {
				t.Skip("the machine was too busy for the child to come to its request within the limit")
			}
			if ev.State != tc.state || ev.Class != tc.class || !strings.Contains(ev.Reason, tc.reason) {
				t.Errorf("state %s, class %q, reason %q", ev.State, ev.Class, ev.Reason)
			}
			// Answers that take no time may well wait for their records.
			ev.Warnings = slices.DeleteFunc(ev.Warnings, func(w string) bool { return strings.Contains(w, waitedFor) })
			if (tc.warning == "") != (len(ev.Warnings) == 0) || !strings.Contains(strings.Join(ev.Warnings, "\n"), tc.warning) {
				t.Errorf("warnings %q, want %q", ev.Warnings, tc.warning)
			}
			if !strings.Contains(strings.Join(ev.Stderr, "\n"), tc.stderr) || (ev.State == results.CellDone) != (len(ev.Stderr) == 0) {
				t.Errorf("stderr %q", ev.Stderr)
			}
			if !strings.Contains(log.String(), "child in mode "+tc.mode) {
				t.Errorf("log %q", log.String())
			}
			if len(k.recs) != tc.records {
				t.Errorf("%d records, want %d", len(k.recs), tc.records)
			}
			for i, r := range k.recs {
				if r.Index != i || r.Class != bench.OK || len(r.Marks) == 0 {
					t.Errorf("record %d: %+v", i, r)
				}
			}
			if tc.records > 0 && len(k.recs) > 0 && (ev.WindowNS[0] != k.recs[0].Start || infos != 1) {
				t.Errorf("window %v, %d infos", ev.WindowNS, infos)
			}
			if alive(pid) {
				t.Errorf("process %d is still there", pid)
			}
		})
	}
}

func TestStopsReachTheChild(t *testing.T) {
	for _, tc := range []struct {
		mode    string
		records int
		last    bench.Class
	}{
		{"drain", 3, bench.OK},         // request 2 was in flight and ended
		{"cancel", 3, bench.Cancelled}, // request 2 was in flight and was cut
		{"deaf", 0, ""},
	} {
		t.Run(tc.mode, func(t *testing.T) {
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			drain := make(chan struct{})
			c := testChild(tc.mode)
			var k keeper
			c.Record = k.keep
			stop := func() {
				if tc.mode == "cancel" {
					cancel()
				} else {
					close(drain)
				}
			}
			c.Loading = func(float64) { stop() } // it is in request 2 now
			if tc.mode == "deaf" {
				c.Started = func(int) { stop() }
			}
			ev, err := Supervise(ctx, drain, c)
			if err != nil || ev.State != results.CellInterrupted || ev.Class != "cancelled" {
				t.Fatalf("%+v, %v", ev, err)
			}
			if len(k.recs) != tc.records || (tc.records > 0 && k.recs[tc.records-1].Class != tc.last) {
				t.Fatalf("records %+v", k.recs)
			}
		})
	}
}

// Told to stop, it has no more time than that, however long it may otherwise
// take after its last message.
func TestStopNowCutsTheEndingShort(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	c := testChild("lingers")
	c.Grace, c.Ending = 100*time.Millisecond, time.Hour
	seen := 0
	c.Record = func(*results.Record) error {
		if seen++; seen == 6 {
			time.AfterFunc(100*time.Millisecond, cancel) // about when it has said its last message; before or after
		}
		return nil
	}
	if ev, err := Supervise(ctx, nil, c); err != nil || len(ev.Warnings)+len(ev.Reason) == 0 {
		t.Fatalf("%+v, %v", ev, err)
	}
}

// A child that does not heed the second stop is killed after its grace.
func TestStopNowKillsADeafChild(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	c := testChild("hang")
	c.Grace = 100 * time.Millisecond
	c.Record = func(r *results.Record) error {
		if r.Index == 1 {
			cancel()
		}
		return nil
	}
	ev, err := Supervise(ctx, nil, c)
	if err != nil || ev.State != results.CellInterrupted {
		t.Fatalf("%+v, %v", ev, err)
	}
}

func TestRecordThatCannotBeKeptEndsTheChild(t *testing.T) {
	full := errors.New("no space left on device")
	c := testChild("ok")
	c.Record = func(r *results.Record) error { return full }
	ev, err := Supervise(context.Background(), nil, c)
	if !errors.Is(err, full) || ev.State != results.CellFailed || !strings.Contains(ev.Reason, "no space left") {
		t.Fatalf("%+v, %v", ev, err)
	}
}

func TestChildThatCannotBeStarted(t *testing.T) {
	c := testChild("ok")
	c.Command = []string{"/nonexistent/nativebench"}
	ev, err := Supervise(context.Background(), nil, c)
	if err != nil || ev.State != results.CellFailed || !strings.Contains(ev.Reason, "could not be started") {
		t.Fatalf("%+v, %v", ev, err)
	}
}

// kill -9 of the parent leaves no child behind, nor a cell that a program in
// between had started.
func TestParentKilledTakesItsChildAlong(t *testing.T) {
	for _, between := range []string{"", "sh"} {
		exe, _ := os.Executable()
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		unused, answers, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer answers.Close()
		parent := exec.Command(exe)
		parent.Env = append(os.Environ(), childMode+"=parent", behind+"="+between)
		parent.ExtraFiles = []*os.File{w, unused}
		if err := parent.Start(); err != nil {
			t.Fatal(err)
		}
		w.Close()
		unused.Close()
		line := make([]byte, 32)
		n, err := r.Read(line)
		if err != nil {
			t.Fatal(err)
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(line[:n])))
		if err != nil || !alive(pid) {
			t.Fatalf("no child %q: %v", line[:n], err)
		}
		parent.Process.Kill()
		parent.Wait()
		for end := time.Now().Add(20 * time.Second); alive(pid); {
			if time.Now().After(end) {
				syscall.Kill(pid, syscall.SIGKILL)
				t.Fatalf("child %d outlived its parent (%q in between)", pid, between)
			}
			time.Sleep(5 * time.Millisecond)
		}
	}
}

// alive tells whether pid is a running process; a zombie is not.
func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, after, _ := strings.Cut(string(stat), ") ")
	return !strings.HasPrefix(after, "Z") && !strings.HasPrefix(after, "X")
}

// At a mark the child stands still until the parent has looked, before its weights
// come and again before its first request; that wait is no load time.
func TestTheChildStandsStillAtAMark(t *testing.T) {
	file := filepath.Join(t.TempDir(), "holds")
	c := testChild("marks")
	c.Env = append(c.Env, holds+"="+file)
	var seen []string
	const looks = 50 * time.Millisecond
	c.Hold = func(mark string) {
		time.Sleep(looks) // a child that went on would be elsewhere by now
		what, _ := os.ReadFile(file)
		seen = append(seen, mark+": "+string(what))
	}
	c.Info = func(bench.Info) { seen = append(seen, "opened") }
	c.Record = func(*results.Record) error {
		if len(seen) < 4 {
			seen = append(seen, "a request")
		}
		return nil
	}
	ev, err := Supervise(context.Background(), nil, c)
	if err != nil || ev.State != results.CellDone {
		t.Fatalf("%+v, %v", ev, err)
	}
	if want := []string{"context: a context", "loaded: weights", "opened", "a request"}; !slices.Equal(seen, want) {
		t.Errorf("%q, want %q", seen, want)
	}
	// Nobody looks: it goes on all the same.
	c.Hold = nil
	if ev, err := Supervise(context.Background(), nil, c); err != nil || ev.State != results.CellDone {
		t.Errorf("%+v, %v", ev, err)
	}
}

func TestServeRefusesWhatIsNoSpec(t *testing.T) {
	for _, in := range []string{"", "hello", `{"job":`, `[]`} {
		err := Serve(context.Background(), nil, strings.NewReader(in), nil, io.Discard, nil)
		if err == nil || !strings.Contains(err.Error(), "started by compare and run") {
			t.Errorf("%q: %v", in, err)
		}
	}
}

func TestTailKeepsTheLastLines(t *testing.T) {
	var tl tail
	for i := range 50 {
		fmt.Fprintf(&tl, "line %d\r\n\n", i)
	}
	io.WriteString(&tl, strings.Repeat("x", 10000)+"\xff end")
	got := tl.lines()
	if len(got) != keepLines || got[0] != "line 31" || !strings.HasSuffix(got[keepLines-1], "x\uFFFD end") || len(got[keepLines-1]) > 5000 {
		t.Fatalf("%d lines, first %q", len(got), got[0])
	}
}

// The reason of a crash of a Go process is at the top of pages of goroutines and
// registers.
func TestTailKeepsTheCauseOfACrash(t *testing.T) {
	var tl tail
	for i := range 30 {
		fmt.Fprintf(&tl, "load %d\n", i)
	}
	io.WriteString(&tl, "ggml.c:123: GGML_ASSERT(x) failed\nSIGABRT: abort\nPC=0x1 m=0\n")
	for i := range 500 {
		fmt.Fprintf(&tl, "goroutine %d\n", i)
	}
	got := tl.lines()
	if tl.cause() != "SIGABRT: abort" || len(got) != keepLines || got[0] != "load 23" ||
		got[7] != "ggml.c:123: GGML_ASSERT(x) failed" || got[8] != "SIGABRT: abort" || got[9] != "PC=0x1 m=0" {
		t.Fatalf("cause %q, lines %q", tl.cause(), got)
	}
}

// No bytes on the pipe crash the parent, and every whole message is handled.
func FuzzReceive(f *testing.F) {
	f.Add([]byte(`{"load":0.5}` + "\n" + `{"request":{"i":1}}` + "\n"))
	f.Add([]byte("\n\n{}\n[]\nnull\n"))
	f.Add([]byte(`{"done":{"cell":"x","state":"done"}}`))
	f.Add([]byte(`{"request":{"marks":[[1,2],[3]]}}` + "\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		handled := 0
		notes, err := receive(bytes.NewReader(data), func(m message) error { handled++; return nil })
		if err != nil {
			t.Fatal(err)
		}
		lines := bytes.Count(data, []byte("\n"))
		if handled > lines {
			t.Fatalf("%d messages in %d lines", handled, lines)
		}
		torn := len(data) > 0 && data[len(data)-1] != '\n'
		if clean := handled == lines && !torn; clean != (len(notes) == 0) {
			t.Fatalf("%d of %d lines handled, torn %v, notes %q", handled, lines, torn, notes)
		}
	})
}
