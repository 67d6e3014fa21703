package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nativebench/nativebench/internal/bench"
	"github.com/nativebench/nativebench/internal/plan"
	"github.com/nativebench/nativebench/internal/results"
	"github.com/nativebench/nativebench/internal/synth"
	"github.com/nativebench/nativebench/native"
)

// small are flags of a short run of one task.
func small(backends, out string, more ...string) []string {
	return append([]string{"compare", "--backends", backends, "--task", "chat", "--repeat", "1", "--requests", "4", "--out", out, "--format", "csv"}, more...)
}

func TestCompareMakesAWholeRun(t *testing.T) {
	out := filepath.Join(t.TempDir(), "a", "run")
	code, stdout, stderr := invoke(t, small("fake,twin", out, "--mode", "stream", "--concurrency", "1,3", "--repeat", "2",
		"--first-token-timeout", "50s", "--token-timeout", "40s", "--retries", "3")...)
	if code != exitOK {
		t.Fatalf("status %d: %s", code, stderr)
	}
	run := readRun(t, out)
	cells := run.Cells()
	if len(cells) != 2*2*2 || len(run.Damage) > 0 {
		t.Fatalf("%d cells, damage %v", len(cells), run.Damage)
	}
	asked := map[string]string{} // by load, repeat and index: prompt and seed
	for _, c := range cells {
		if !c.Done() || c.Attempt != 1 || len(c.Measured()) != 4 || c.Event.Host == nil || c.Event.WindowNS[1] <= c.Event.WindowNS[0] {
			t.Errorf("cell %s: %s, %d records, event %+v", c.ID, c.State, len(c.Measured()), c.Event)
		}
		if n := len(c.Records) - len(c.Measured()); n != c.Concurrency {
			t.Errorf("cell %s: %d warm-up records", c.ID, n)
		}
		for _, r := range c.Records {
			key := fmt.Sprint(c.Load, c.Repeat, r.Index)
			what := fmt.Sprint(r.Prompt, r.Seed)
			if have, ok := asked[key]; ok && have != what {
				t.Errorf("%s: one backend was asked %s, the other %s", key, have, what)
			}
			asked[key] = what
			if r.Class != bench.OK {
				t.Errorf("cell %s, request %d: %s", c.ID, r.Index, r.Error)
			}
		}
	}
	m := run.Manifest
	var p plan.Plan
	if err := m.DecodePlan(&p); err != nil || p.Repeats != 2 || len(p.Concurrency) != 2 ||
		p.FirstTokenTimeout != 50*time.Second || p.TokenTimeout != 40*time.Second || p.Retries != 3 {
		t.Errorf("plan %+v, %v", p, err)
	}
	if len(m.Backends) != 2 || m.Environment.Cores < 1 || m.Tool.GoVersion == "" || m.Clock.MonotonicNS == 0 {
		t.Errorf("manifest %+v", m)
	}
	for _, want := range []string{"backends  fake, twin", "[1/8]", "[8/8]", "run directory: " + out} {
		if !strings.Contains(stderr, want) {
			t.Errorf("no %q in:\n%s", want, stderr)
		}
	}
	if !strings.Contains(stdout, "twin") || strings.Contains(stderr+stdout, "\x1b") {
		t.Errorf("stdout %q", stdout)
	}
	if samples := count(run.Telemetry()); samples == 0 {
		t.Error("no telemetry")
	}
}

func count(seq func(func(results.Sample, error) bool)) (n int) {
	seq(func(results.Sample, error) bool { n++; return true })
	return n
}

// A cell whose process dies, or whose backend does not start, is a failed cell;
// the others run.
func TestOneBadBackendDoesNotStopTheRun(t *testing.T) {
	out := filepath.Join(t.TempDir(), "run")
	code, _, stderr := invoke(t, small("fake,crash,unready", out, "--repeat", "3", "--mode", "sync")...)
	if code != exitCellsFailed {
		t.Fatalf("status %d: %s", code, stderr)
	}
	for _, c := range readRun(t, out).Cells() {
		why := c.Why()
		switch c.Backend {
		case "fake":
			if !c.Done() {
				t.Errorf("%s: %s", c.ID, why)
			}
		case "crash":
			if c.State != results.CellFailed || c.Event.Class != "crash" || !strings.Contains(why, "panic: the engine fell over") || len(c.Event.Stderr) == 0 {
				t.Errorf("%s: %s, stderr %q", c.ID, why, c.Event.Stderr)
			}
			if len(c.Measured()) != 1 || len(c.Records) != 2 {
				t.Errorf("%s: %d records were kept, %d of them measured", c.ID, len(c.Records), len(c.Measured()))
			}
		case "unready":
			if c.State != results.CellFailed || c.Event.Class != "connect" || !strings.Contains(why, "no answer on its port") {
				t.Errorf("%s: %s", c.ID, why)
			}
			if tried := !strings.Contains(why, "not tried again"); tried != (c.Repeat < startTries) {
				t.Errorf("%s: %s", c.ID, why)
			}
		}
	}
	log, err := os.ReadFile(filepath.Join(out, "logs", "cells.log"))
	if err != nil || !strings.Contains(string(log), "goroutine") {
		t.Errorf("log %q, %v", log, err)
	}
}

// Weights of a user's file that says it is synthetic are called so, and a
// resumed run refuses another file in its place.
func TestWeightsOfTheRunAreKnown(t *testing.T) {
	dir := t.TempDir()
	path, out := filepath.Join(dir, "model.gguf"), filepath.Join(dir, "run")
	writeGGUF(t, path, "gpt2", 1024, 64, true)
	if code, _, stderr := invoke(t, small("holder", out, "--weights", path)...); code != exitOK || !strings.Contains(stderr, "synthetic weights") {
		t.Fatalf("status %d: %s", code, stderr)
	}
	m := readRun(t, out).Manifest.Models
	if len(m) != 1 || !m[0].Synthetic || m[0].Seed != 3 || m[0].Path != path || len(m[0].SHA256) != 64 || m[0].Bytes == 0 {
		t.Fatalf("models %+v", m)
	}
	if code, _, stderr := invoke(t, "compare", "--resume", out, "--format", "none"); code != exitOK {
		t.Fatalf("status %d: %s", code, stderr)
	}
	if code, _, stderr := invoke(t, "compare", "--resume", out, "--weights", path); code != exitUsage || !strings.Contains(stderr, "--weights would change") {
		t.Fatalf("status %d: %s", code, stderr)
	}
	writeGGUF(t, path, "gpt2", 1000, 64, true)
	if code, _, stderr := invoke(t, "compare", "--resume", out); code != exitUsage || !strings.Contains(stderr, "is not the file that the run began with") {
		t.Fatalf("status %d: %s", code, stderr)
	}
	os.Remove(path)
	if code, _, stderr := invoke(t, "compare", "--resume", out, "--engine-dir", dir); code == exitOK {
		t.Fatalf("status %d: %s", code, stderr)
	}
}

// The real thing, small: the engine in process beside llama-server, with a
// model of one narrow layer.
func TestRealBackendsSideBySide(t *testing.T) {
	engine := os.Getenv(native.EnvDir)
	if engine == "" {
		t.Skipf("needs the engine library and llama-server: set %s", native.EnvDir)
	}
	if err := native.Available(engine); err != nil {
		t.Skip(err)
	}
	dir := t.TempDir()
	made, err := synth.Write(t.Context(), synth.Spec{Model: "gpt2", Seed: 1, Layers: 1, Width: 64, VocabDir: filepath.Join(engine, "vocab")}, filepath.Join(dir, "model"), nil)
	if err != nil {
		t.Fatal(err)
	}
	out, trace := filepath.Join(dir, "run"), filepath.Join(dir, "out.json.gz")
	code, stdout, stderr := invoke(t, small("native,llama-server", out, "--trace", trace, "--weights", made.GGUF, "--concurrency", "1,2", "--max-tokens", "8", "--threads", "1", "--format", "terminal")...)
	if code != exitOK {
		t.Fatalf("status %d: %s", code, stderr)
	}
	run := readRun(t, out)
	isTraceOf(t, trace, run)
	prompts := map[string]int{}
	for _, c := range run.Cells() {
		if !c.Done() || len(c.Measured()) != 4 || c.Event.Host == nil || (c.Event.LoadNS > 0) != (c.Backend == "native") {
			t.Errorf("%s: %s, event %+v", c.ID, c.State, c.Event)
		}
		for _, r := range c.Records {
			key := fmt.Sprint(c.Load, r.Index)
			if r.Class != bench.OK || r.OutputTokens == 0 || r.PromptTokens == 0 {
				t.Errorf("%s, request %d: %s", c.ID, r.Index, r.Error)
			} else if n, ok := prompts[key]; ok && n != r.PromptTokens {
				t.Errorf("%s: one backend counts %d prompt tokens, the other %d", key, n, r.PromptTokens)
			} else {
				prompts[key] = r.PromptTokens
			}
		}
	}
	if m := run.Manifest.Models[0]; m.Relative != "1 of 12 layers, width 64 of 768" || m.Layers != 1 || m.Width != 64 || !strings.Contains(stdout, "relative: "+m.Relative) {
		t.Errorf("model %+v; a relative must be told from the model in\n%s", m, stdout)
	}
	if len(run.Manifest.Backends) != 2 || !run.Manifest.Models[0].Synthetic || !strings.Contains(strings.ToLower(stdout), "synthetic weights") {
		t.Errorf("backends %+v, models %+v, report:\n%s", run.Manifest.Backends, run.Manifest.Models, stdout)
	}
	for _, b := range run.Manifest.Backends {
		if b.Context != 256 || b.Slots != 2 {
			t.Errorf("%s has %d slots of %d tokens", b.Backend, b.Slots, b.Context)
		}
		// What is recorded is what the engines really have.
		want := results.Settings{Slots: 2, Context: 256, Threads: 1, BatchThreads: 1, Batch: 512, UBatch: 512, PrefillChunk: 512, GPULayers: -1, FlashAttn: "auto", CacheType: "f16"}
		if b.Settings == nil || *b.Settings != want {
			t.Errorf("%s has settings %+v", b.Backend, b.Settings)
		}
		if made := strings.Join(b.Substitutions, "\n"); strings.Contains(made, "temperature 0") || strings.Contains(made, "top-p before temperature") != (b.Backend == "llama-server") {
			t.Errorf("%s names other substitutions than were made of a temperature above 0: %s", b.Backend, made)
		}
		has := map[string]string{"native": b.Build, "llama-server": strings.Join(b.Command, " ")}[b.Backend]
		for _, s := range map[string][]string{
			"native": {"threads 1/1, batch 512/512"}, "llama-server": {"--batch-size 512", "--ubatch-size 512", "--threads 1", "--threads-batch 1", "--ctx-size 512"},
		}[b.Backend] {
			if !strings.Contains(has, s) {
				t.Errorf("%s: no %q in %s", b.Backend, s, has)
			}
		}
	}
}

// A cell whose server ended by itself is failed, whatever was answered; the
// server is started again for the next cell, and resuming repeats the cell.
func TestDeadServerFailsItsCellAndIsStartedAgain(t *testing.T) {
	out := filepath.Join(t.TempDir(), "run")
	code, _, stderr := invoke(t, small("mortal", out, "--mode", "sync", "--repeat", "3")...)
	if code != exitCellsFailed || !strings.Contains(stderr, "started again") {
		t.Fatalf("status %d: %s", code, stderr)
	}
	run := readRun(t, out)
	cells := run.Cells()
	if c := cells[0]; c.State != results.CellFailed || c.Event.Class != string(bench.Crash) ||
		!strings.Contains(c.Why(), "the server ended by itself (signal: killed)") || !strings.Contains(c.Why(), "of 4 requests had been answered") ||
		strings.Contains(c.Why(), "user") || strings.Join(c.Event.Stderr, "") != "mortal: farewell" {
		t.Errorf("%s: %s, stderr %q", c.ID, c.Why(), c.Event.Stderr)
	}
	for i, want := range []string{"before this cell, the server ended by itself", ""} {
		c := cells[i+1]
		got := strings.Join(c.Event.Warnings, "\n")
		if !c.Done() || (want == "" && strings.Contains(got, "ended by itself")) || !strings.Contains(got, want) {
			t.Errorf("%s: %s, warnings %q", c.ID, c.State, got)
		}
	}
	b := run.Manifest.Backends // the first may have ended before it could say what it is
	if n := len(b); n == 0 || b[n-1].StartNS != 2 || !strings.HasPrefix(b[n-1].Log, "logs") || strings.Contains(fmt.Sprint(b), "secret") {
		t.Errorf("backends %+v", b)
	}

	// Only what is left is counted, and its clock is kept beside the first.
	code, _, stderr = invoke(t, "compare", "--resume", out, "--format", "none")
	if !strings.Contains(stderr, "1 of 3 are still to run (4 requests, and 1 to warm up)") || !strings.Contains(stderr, "[1/1] "+cells[0].ID) {
		t.Errorf("status %d: %s", code, stderr)
	}
	run = readRun(t, out)
	if c := run.Cells()[0]; c.Attempt != 2 {
		t.Errorf("%s: attempt %d", c.ID, c.Attempt)
	}
	m := run.Manifest
	if len(m.Clocks) != 1 || m.Clocks[0].EventsBefore != 6 || m.Clocks[0].MonotonicNS <= m.Clock.MonotonicNS || m.Clocks[0].BootID != m.Clock.BootID {
		t.Errorf("clocks %+v beside %+v", m.Clocks, m.Clock)
	}
}

// The same with a real server that is killed: no more is asked of it.
func TestKilledServerFailsItsCell(t *testing.T) {
	engine := os.Getenv(native.EnvDir)
	if engine == "" {
		t.Skipf("needs llama-server and a vocabulary: set %s", native.EnvDir)
	}
	if _, err := os.Stat(filepath.Join(engine, "llama-server")); err != nil {
		t.Skip(err)
	}
	dir := t.TempDir()
	made, err := synth.Write(t.Context(), synth.Spec{Model: "gpt2", Seed: 1, Layers: 1, Width: 64, VocabDir: filepath.Join(engine, "vocab")}, filepath.Join(dir, "model"), nil)
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(dir, "run")
	done := make(chan struct{})
	go func() {
		defer close(done)
		for lines(filepath.Join(out, "requests.jsonl")) < 20 {
			select {
			case <-t.Context().Done():
				return
			case <-time.After(2 * time.Millisecond):
			}
		}
		for _, pid := range childrenOf(os.Getpid()) {
			if name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); strings.HasPrefix(string(name), "llama-server") {
				syscall.Kill(pid, syscall.SIGKILL)
			}
		}
	}()
	code, _, stderr := invoke(t, small("llama-server", out, "--weights", made.GGUF, "--requests", "20000", "--max-tokens", "8", "--threads", "1", "--mode", "sync")...)
	<-done
	c := readRun(t, out).Cells()[0]
	if code != exitCellsFailed || c.State != results.CellFailed || c.Event.Class != string(bench.Crash) || !strings.Contains(c.Why(), "the server ended by itself (signal: killed)") || len(c.Event.Stderr) == 0 {
		t.Errorf("status %d, %s, stderr %q: %s", code, c.Why(), c.Event.Stderr, stderr)
	}
	if n := len(c.Measured()); n < 19 || n >= 20000 {
		t.Errorf("%d records", n)
	}
}

// More than a tenth of failed requests is no success, though the cell is done.
func TestFailedRequestsAreToldByTheStatus(t *testing.T) {
	out := filepath.Join(t.TempDir(), "run")
	code, _, stderr := invoke(t, small("flaky", out, "--mode", "sync")...)
	if code != exitCellsFailed || !strings.Contains(stderr, "4 requests, 2 FAILED (first: fake: request 2 fails as configured (engine))\n") || !readRun(t, out).Cells()[0].Done() {
		t.Fatalf("status %d: %s", code, stderr)
	}
}

// A Ctrl-C after the last request finds nothing to stop.
func TestALateStopIsNoInterruption(t *testing.T) {
	x := &execution{stop: &stopper{ctx: t.Context(), drain: make(chan struct{})}, left: 1, setup: &setup{}}
	out := filepath.Join(t.TempDir(), "run")
	var err error
	if x.w, err = results.Create(out, &results.Manifest{Schema: results.Schema, Cells: []results.Cell{{ID: "a"}}}); err != nil {
		t.Fatal(err)
	}
	defer x.w.Close()
	x.show = newProgress(io.Discard, []plan.Cell{{Requests: 1}})
	x.show.request(false)
	for i, tt := range []struct {
		state results.CellState
		left  int
	}{{results.CellInterrupted, 1}, {results.CellDone, 0}} {
		ev := results.CellEvent{Cell: "a", Attempt: i + 1, State: results.CellStarted}
		if err := x.w.Event(ev); err != nil {
			t.Fatal(err)
		}
		ev.State = tt.state
		if err := x.finish(ev, uncounted{}); err != nil || x.left != tt.left || x.failed != 0 {
			t.Fatalf("%s: %v, %d left, %d failed", tt.state, err, x.left, x.failed)
		}
	}
}

// A backend that cannot serve one model is tried again with the next.
func TestFailedStartsCountForTheirModelOnly(t *testing.T) {
	tries := map[string]int{}
	b := backend{name: "picky", ready: func(_ context.Context, p place) (*seat, error) {
		tries[p.model.Key]++
		if p.model.Key == "phi-2" {
			return nil, errors.New("too big")
		}
		return &seat{}, nil
	}}
	s := newSeats(func(_, key string) place { return place{model: plan.Model{Key: key}} })
	for range startTries + 1 {
		if _, _, _, err := s.get(t.Context(), b, "phi-2"); err == nil {
			t.Fatal("phi-2 was served")
		}
	}
	if _, started, _, err := s.get(t.Context(), b, "gpt2"); err != nil || !started {
		t.Fatalf("gpt2: %v", err)
	}
	if tries["phi-2"] != startTries || tries["gpt2"] != 1 {
		t.Errorf("tries %v", tries)
	}
}

// Where servers would share a GPU, the others are stopped before one starts.
func TestOneServerAtATime(t *testing.T) {
	running, most := 0, 0
	server := func(name string) backend {
		return backend{name: name, ready: func(context.Context, place) (*seat, error) {
			running++
			most = max(most, running)
			return &seat{stop: func(context.Context) error { running--; return nil }}, nil
		}}
	}
	for _, alone := range []bool{false, true} {
		s := newSeats(func(_, key string) place { return place{} })
		s.alone, most = alone, 0
		for _, name := range []string{"a", "b", "b", "a"} {
			if _, _, _, err := s.get(t.Context(), server(name), "gpt2"); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.close(); err != nil || running != 0 {
			t.Errorf("alone %v: %d are left, %v", alone, running, err)
		}
		if want := map[bool]int{false: 2, true: 1}[alone]; most != want {
			t.Errorf("alone %v: %d at once, want %d", alone, most, want)
		}
	}
}

func TestOwnPrompts(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "mine.jsonl")
	os.WriteFile(file, []byte(`{"id":"one","prompt":"Hello there."}`+"\n"+`{"id":"two","prompt":"And again."}`+"\n"), 0o644)
	out := filepath.Join(dir, "run")
	if code, _, stderr := invoke(t, small("fake", out, "--prompts", file, "--mode", "sync")...); code != exitOK {
		t.Fatalf("status %d: %s", code, stderr)
	}
	run := readRun(t, out)
	seen := map[string]int{}
	for _, r := range run.Cells()[0].Measured() {
		seen[r.Prompt]++
	}
	if seen["one"] != 2 || seen["two"] != 2 || run.Manifest.Environment.Versions[promptsVersion] == "" {
		t.Fatalf("prompts %v", seen)
	}
}

func TestDryRunStartsNothing(t *testing.T) {
	out := filepath.Join(t.TempDir(), "run")
	code, stdout, stderr := invoke(t, small("fake,twin", out, "--dry-run")...)
	if code != exitOK || strings.Count(stdout, "\n") != 4 || !strings.Contains(stdout, "gpt2/chat/sync/c1/fake/r0") {
		t.Fatalf("status %d, stdout %q, stderr %q", code, stdout, stderr)
	}
	if _, err := os.Stat(out); err == nil {
		t.Fatal("a run directory was made")
	}
}

// watched collects what a program prints, and lets a test wait for a line.
type watched struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (w *watched) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.text.Write(b)
}

func (w *watched) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.text.String()
}

// await polls until ok, far beyond any time that a healthy machine needs.
func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited a minute for %s", what)
		}
	}
}

// lines counts whole lines of a file that may not be there yet.
func lines(path string) int {
	b, _ := os.ReadFile(path)
	return bytes.Count(b, []byte("\n"))
}

// Ctrl-C once: the request in flight ends and is kept, the report comes, the
// status is 130, and --resume completes the run.
func TestCtrlCOnceAndResume(t *testing.T) {
	dir := t.TempDir()
	out, gate := filepath.Join(dir, "run"), filepath.Join(dir, "gate")
	var stdout, stderr watched
	cmd := program(t, []string{fakeGate + "=" + gate}, small("fake", out, "--warmup", "0", "--mode", "sync", "--repeat", "2", "--requests", "6")...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	await(t, "three records", func() bool { return lines(filepath.Join(out, "requests.jsonl")) >= 3 })
	time.Sleep(50 * time.Millisecond) // for the fourth request to be in flight
	cmd.Process.Signal(syscall.SIGINT)
	await(t, "word of the stop", func() bool { return strings.Contains(stderr.String(), "waiting for the requests in flight") })
	time.Sleep(100 * time.Millisecond) // for the process of the cell to hear of it too
	os.WriteFile(gate, nil, 0o644)
	cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != exitInterrupted {
		t.Fatalf("status %d: %s", code, stderr.String())
	}
	cells := readRun(t, out).Cells()
	if cells[0].State != results.CellInterrupted || cells[1].State != results.CellNotRun {
		t.Fatalf("states %s, %s", cells[0].State, cells[1].State)
	}
	if n := len(cells[0].Measured()); n < 3 || n > 4 {
		t.Fatalf("%d records", n)
	}
	for _, r := range cells[0].Measured() {
		if r.Class != bench.OK {
			t.Errorf("request %d in flight was cut: %s", r.Index, r.Error)
		}
	}
	if stdout.String() == "" || !strings.Contains(stderr.String(), "--resume "+out) {
		t.Errorf("stdout %q, stderr %q", stdout.String(), stderr.String())
	}

	code, _, text := invoke(t, "compare", "--resume", out, "--format", "csv")
	if code != exitOK {
		t.Fatalf("status %d: %s", code, text)
	}
	for i, c := range readRun(t, out).Cells() {
		if !c.Done() || len(c.Measured()) != 6 || c.Attempt != 2-i { // the first was begun twice
			t.Errorf("%s: %s, attempt %d, %d records", c.ID, c.State, c.Attempt, len(c.Measured()))
		}
	}
	// Nothing is left to do: the report comes again, and nothing is run.
	code, stdoutAgain, _ := invoke(t, "compare", "--resume", out, "--format", "csv")
	if code != exitOK || stdoutAgain == "" || readRun(t, out).Cells()[0].Attempt != 2 {
		t.Fatalf("status %d", code)
	}
}

// Ctrl-C twice: the request in flight is cut, and the directory is readable.
func TestCtrlCTwice(t *testing.T) {
	dir := t.TempDir()
	out, trace := filepath.Join(dir, "run"), filepath.Join(dir, "out.json.gz")
	var stderr watched
	cmd := program(t, []string{fakeHang + "=1"}, small("fake", out, "--warmup", "0", "--mode", "sync", "--trace", trace)...)
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	await(t, "three records", func() bool { return lines(filepath.Join(out, "requests.jsonl")) >= 3 })
	cmd.Process.Signal(syscall.SIGINT)
	await(t, "word of the stop", func() bool { return strings.Contains(stderr.String(), "waiting for the requests in flight") })
	cmd.Process.Signal(syscall.SIGINT)
	cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != exitInterrupted {
		t.Fatalf("status %d: %s", code, stderr.String())
	}
	run := readRun(t, out)
	c := run.Cells()[0]
	if len(run.Damage) > 0 || c.State != results.CellInterrupted || len(c.Measured()) < 3 {
		t.Fatalf("damage %v, %s, %d records", run.Damage, c.Why(), len(c.Measured()))
	}
	isTraceOf(t, trace, run)
}

// kill -9 of nativebench leaves no process of a cell, a readable directory, and
// a run that can be completed.
func TestKilledRunLeavesNoChildAndResumes(t *testing.T) {
	dir := t.TempDir()
	out, gate := filepath.Join(dir, "run"), filepath.Join(dir, "gate")
	cmd := program(t, []string{fakeGate + "=" + gate}, small("fake", out, "--warmup", "0", "--mode", "sync")...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	await(t, "three records", func() bool { return lines(filepath.Join(out, "requests.jsonl")) >= 3 })
	children := childrenOf(cmd.Process.Pid)
	if len(children) == 0 {
		t.Fatal("no process of a cell was found")
	}
	cmd.Process.Kill()
	cmd.Wait()
	for _, pid := range children {
		await(t, fmt.Sprintf("the end of process %d", pid), func() bool { return !running(pid) })
	}
	c := readRun(t, out).Cells()[0]
	if c.State != results.CellCutOff || len(c.Measured()) != 3 {
		t.Fatalf("%s with %d records", c.State, len(c.Measured()))
	}
	code, _, stderr := invoke(t, "compare", "--resume", out, "--format", "none")
	if c := readRun(t, out).Cells()[0]; code != exitOK || !c.Done() || c.Attempt != 2 {
		t.Fatalf("status %d, %s: %s", code, c.Why(), stderr)
	}
}

var ppid = regexp.MustCompile(`(?m)^PPid:\s+(\d+)$`)

func childrenOf(parent int) (pids []int) {
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if m := ppid.FindSubmatch(b); m != nil && string(m[1]) == strconv.Itoa(parent) {
			pids = append(pids, pid)
		}
	}
	return pids
}

func running(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, after, _ := strings.Cut(string(b), ") ")
	return !strings.HasPrefix(after, "Z") && !strings.HasPrefix(after, "X")
}

// TestRelativesAreWrittenAgain: a run whose synthetic weights are gone gets those
// of the same size back.
func TestRelativesAreWrittenAgain(t *testing.T) {
	for _, c := range []struct {
		of            results.Model
		layers, width int
	}{
		{results.Model{Key: "gpt2", Layers: 12, Width: 768}, 0, 0},
		{results.Model{Key: "gpt2", Layers: 2, Width: 768, Relative: "2 of 12 layers"}, 2, 0},
		{results.Model{Key: "phi-2", Layers: 32, Width: 160, Relative: "width 160 of 2560"}, 0, 160},
	} {
		s := &setup{}
		s.relativeOf(c.of)
		if s.layers != c.layers || s.width != c.width {
			t.Errorf("%+v: %d layers, width %d", c.of, s.layers, s.width)
		}
	}
}
