package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nativebench/nativebench/internal/plan"
	"github.com/nativebench/nativebench/internal/results"
	"github.com/nativebench/nativebench/internal/synth"
	"github.com/nativebench/nativebench/native"
)

// needVocabulary skips a test that plans synthetic weights, for which the engine
// brings the vocabularies.
func needVocabulary(t *testing.T) {
	t.Helper()
	if os.Getenv(native.EnvDir) == "" {
		t.Skipf("needs the engine's vocabularies: set %s", native.EnvDir)
	}
}

// whole are flags of a small experiment of a fake backend.
func whole(out string, more ...string) []string {
	return append([]string{
		"bench-all", "--models", "gpt2", "--backends", "fake,absent", "--tasks", "chat", "--mode", "stream", "--concurrency", "1,2",
		"--repeat", "2", "--requests", "4", "--max-tokens", "8", "--context-sweep", "32,64", "--out", out,
	}, more...)
}

// wholeRuns are the names of its runs.
func wholeRuns() []string { return []string{"gpt2-tasks", "gpt2-context"} }

func TestBenchAllPlanWritesNothing(t *testing.T) {
	needVocabulary(t)
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	pretendGPU(t, filepath.Join(t.TempDir(), "no such device"))
	out := filepath.Join(t.TempDir(), "all")
	code, stdout, stderr := invoke(t, whole(out, "--plan")...)
	if code != exitOK {
		t.Fatalf("status %d: %s", code, stderr)
	}
	for _, want := range append(wholeRuns(), "absent: absent: its program is not installed", "a rough guess") {
		if !strings.Contains(stdout, want) {
			t.Errorf("no %q in\n%s", want, stdout)
		}
	}
	if _, err := os.Stat(out); err == nil {
		t.Error("a plan made its directory")
	}
}

// The plan says for how much of it there is time, and which lengths of prompts are
// not those asked for.
func TestBenchAllPlanSaysWhatIsNotAsAsked(t *testing.T) {
	needVocabulary(t)
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	pretendGPU(t, filepath.Join(t.TempDir(), "no such device"))
	for budget, says := range map[string]string{
		"1s":   "Time budget: 1s, which the runs share: by these times it does not cover all, and what has no time is left out.\n",
		"100h": "Time budget: 100h0m0s, which the runs share: by these times it covers all.\n",
		"":     "",
	} {
		args := []string{"bench-all", "--models", "gpt2", "--backends", "fake", "--tasks", "chat", "--concurrency", "1", "--context-sweep", "128,5000", "--out", filepath.Join(t.TempDir(), "all"), "--plan"}
		if budget != "" {
			args = append(args, "--time-budget", budget)
		}
		code, stdout, stderr := invoke(t, args...)
		if code != exitOK || !strings.Contains(stdout, says) || strings.Contains(stdout, "Time budget") != (budget != "") {
			t.Errorf("--time-budget %s: status %d, no %q in\n%s%s", budget, code, says, stdout, stderr)
		}
		if !strings.Contains(stdout, "  gpt2-context: gpt2: prompts of 5000 tokens were capped to 992: ") || strings.Contains(stdout, "tasks chat were left out") {
			t.Errorf("lengths in\n%s", stdout)
		}
	}
}

func TestBenchAllRefuses(t *testing.T) {
	needVocabulary(t)
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	t.Setenv("HF_HUB_CACHE", t.TempDir())
	pretendGPU(t, filepath.Join(t.TempDir(), "no such device"))
	out := filepath.Join(t.TempDir(), "all")
	for _, tc := range []struct {
		args []string
		says string
	}{
		{[]string{"bench-all", "--models", "gpt3"}, "unknown model"},
		{[]string{"bench-all", "--backends", "natve"}, "unknown backend"},
		{[]string{"bench-all", "--context-sweep", "512,512"}, "different numbers"},
		{[]string{"bench-all", "--context-sweep", "-1"}, "different numbers"},
		{[]string{"bench-all", "--time-budget", "-1s"}, "--time-budget"},
		{[]string{"bench-all", "--weights", "model.gguf"}, "MODEL=PATH"},
		{[]string{"bench-all", "--weights", "gpt2=/no/such/file"}, "no such file"},
		{[]string{"bench-all", "--endpoint", "vllm=http://127.0.0.1:1"}, "a server has one model"},
		{[]string{"bench-all", "--backends", "absent"}, "nothing of this can be measured here: absent: absent: its program is not installed"},
		{[]string{"bench-all", "--models", "gpt2", "--backends", "holder", "--weights", "hub"}, "nativebench models pull gpt2"},
		{[]string{"bench-all", "words"}, "takes flags only"},
		{[]string{"bench-all", "--models", "gpt2", "--backends", "fake", "--report"}, "begin it without --report"},
	} {
		code, _, stderr := invoke(t, append(tc.args, "--out", out)...)
		if code != exitUsage || !strings.Contains(stderr, tc.says) || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%v: status %d, %q, want %q", tc.args[1:], code, stderr, tc.says)
		}
	}
	if _, err := os.Stat(out); err == nil {
		t.Error("a refusal made the directory")
	}
}

// A second call goes on where a killed one stopped: what is done is not done
// again, and the report is of all.
func TestBenchAllGoesOnAfterAKill(t *testing.T) {
	needVocabulary(t)
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	pretendGPU(t, filepath.Join(t.TempDir(), "no such device"))
	dir := t.TempDir()
	out, gate := filepath.Join(dir, "all"), filepath.Join(dir, "gate")
	cmd := program(t, []string{fakeGate + "=" + gate}, whole(out, "--requests", "2")...)
	// The gate holds cells of two workers at their fourth request, warm-up counted.
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	first := filepath.Join(out, "runs", "gpt2-tasks")
	waitUntil(t, "a cell is done and one has begun", func() bool {
		run, err := results.Read(first)
		if err != nil {
			return false
		}
		done := 0
		for _, c := range run.Cells() {
			if c.Done() {
				done++
			}
		}
		return done > 0 && len(run.Events) > 2*done
	})
	if code, _, stderr := invoke(t, "bench-all", "--out", out); code != exitUsage || !strings.Contains(stderr, "another nativebench is measuring there") {
		t.Errorf("two at once: status %d, %s", code, stderr)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // it was killed
	was := readRun(t, first)
	if len(was.Remaining()) == 0 {
		t.Fatal("nothing was left to do: the gate did not hold")
	}
	if _, err := os.Stat(filepath.Join(out, "report")); err == nil {
		t.Error("there is a report before the end")
	}

	// What was begun may be looked at, and not be changed.
	if code, stdout, _ := invoke(t, "bench-all", "--out", out, "--plan"); code != exitOK || !strings.Contains(stdout, "left)") {
		t.Errorf("the plan of what is left, status %d:\n%s", code, stdout)
	}
	for says, args := range map[string][]string{
		"it was begun with other flags (--requests 5, was 2): give none":   whole(out, "--requests", "5"),
		"(--task code, was chat): give none":                               {"bench-all", "--out", out, "--tasks", "code"},
		"; --requests is not given, was 2; --task is not given, was chat)": {"bench-all", "--out", out, "--models", "gpt2"},
		"(--seed 7, was not given):":                                       whole(out, "--requests", "2", "--seed", "7"),
	} {
		if code, _, stderr := invoke(t, args...); code != exitUsage || !strings.Contains(stderr, says) || strings.Count(stderr, "\n") != 1 {
			t.Errorf("other flags: status %d, %s, want %s", code, stderr, says)
		}
	}
	if code, stdout, stderr := invoke(t, "bench-all", "--out", out, "--report"); code != exitOK || !strings.Contains(stdout, "never started") {
		t.Errorf("the report of what is there: status %d, %s%s", code, stdout, stderr)
	}
	code, stdout, stderr := invoke(t, whole(out, "--requests", "2")...)
	if code != exitOK {
		t.Fatalf("status %d: %s", code, stderr)
	}
	for _, name := range wholeRuns() {
		run := readRun(t, filepath.Join(out, "runs", name))
		if left := run.Remaining(); len(left) > 0 || len(run.Cells()) != 4 {
			t.Errorf("%s: %d cells, left %v", name, len(run.Cells()), left)
		}
		if args := strings.Join(run.Manifest.Command, " "); !strings.HasPrefix(args, "nativebench compare --model gpt2 --backends fake") {
			t.Errorf("%s was made by %s", name, args)
		}
	}
	for _, c := range was.Cells() {
		now := readRun(t, first).NextAttempt(c.ID) - 1
		if c.Done() && now != 1 || c.State == results.CellCutOff && now != 2 {
			t.Errorf("%s was %s, and has %d attempts", c.ID, c.State, now)
		}
	}
	for _, name := range []string{"report.md", "report.csv", "report.json", "answers.json", "runs/gpt2-tasks.md"} {
		if st, err := os.Stat(filepath.Join(out, "report", name)); err != nil || st.Size() == 0 {
			t.Errorf("%s: %v", name, err)
		}
	}
	if !strings.Contains(stdout, "absent: absent: its program is not installed") || len(wholeRuns()) > 1 && !strings.Contains(stdout, "64 tokens") {
		t.Errorf("report:\n%s", stdout)
	}
	// Done is done.
	began := time.Now()
	if code, _, stderr := invoke(t, "bench-all", "--out", out); code != exitOK || strings.Contains(stderr, "[1/") {
		t.Errorf("after %s: status %d, %s", time.Since(began), code, stderr)
	}
}

func waitUntil(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("a minute went by before %s", what)
		}
	}
}

// A budget that is spent at once starts nothing, and says what it left out; the
// rest can be done later.
func TestBenchAllTimeBudget(t *testing.T) {
	needVocabulary(t)
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	pretendGPU(t, filepath.Join(t.TempDir(), "no such device"))
	out := filepath.Join(t.TempDir(), "all")
	code, _, stderr := invoke(t, whole(out, "--time-budget", "1ns")...)
	if code != exitError || !strings.HasSuffix(stderr, "nativebench: --time-budget 1ns: nothing was measured: there is no time for a single cell: give more\n") {
		t.Fatalf("status %d: %s", code, stderr)
	}
	if code, _, stderr := invoke(t, "bench-all", "--out", out); code != exitOK {
		t.Fatalf("status %d: %s", code, stderr)
	}
	for _, name := range wholeRuns() {
		if left := readRun(t, filepath.Join(out, "runs", name)).Remaining(); len(left) > 0 {
			t.Errorf("%s: left: %v", name, left)
		}
	}
}

// A run that fails is in the report, and the others go on.
func TestBenchAllKeepsFailures(t *testing.T) {
	needVocabulary(t)
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	pretendGPU(t, filepath.Join(t.TempDir(), "no such device"))
	out := filepath.Join(t.TempDir(), "all")
	code, stdout, stderr := invoke(t, "bench-all", "--models", "gpt2,phi-2", "--backends", "fake,unready", "--tasks", "chat", "--mode", "sync", "--concurrency", "1",
		"--repeat", "1", "--requests", "2", "--context-sweep", "none", "--out", out)
	if code != exitCellsFailed {
		t.Fatalf("status %d: %s", code, stderr)
	}
	if !strings.Contains(stdout, "no answer on its port") {
		t.Errorf("the report does not say why:\n%s", stdout)
	}
	b, err := os.ReadFile(filepath.Join(out, "report", "answers.json"))
	if err != nil {
		t.Fatal(err)
	}
	var answers struct {
		Runs    []string
		Answers []struct{ First string }
	}
	if err := json.Unmarshal(b, &answers); err != nil || len(answers.Runs) != 2 || len(answers.Answers) != 4 || answers.Answers[0].First != "fake" {
		t.Errorf("%+v, %v", answers, err)
	}
}

// Weights of the user's own are compare's, each for its model; a model without
// any is left out, and so are servers that want another form of them.
func TestBenchAllTakesWeights(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	pretendGPU(t, filepath.Join(t.TempDir(), "no such device"))
	dir := t.TempDir()
	path, out := filepath.Join(dir, "model.gguf"), filepath.Join(dir, "all")
	writeGGUF(t, path, "gpt2", 1024, 64, true)
	python := filepath.Join(dir, "python")
	for _, name := range []string{"python3", "python"} {
		file := filepath.Join(python, "bin", name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv(pythonVariable("transformers"), python)
	code, stdout, stderr := invoke(t, "bench-all", "--models", "gpt2,phi-2", "--backends", "holder,transformers", "--tasks", "chat", "--mode", "sync", "--concurrency", "1",
		"--repeat", "1", "--requests", "2", "--context-sweep", "none", "--weights", "gpt2="+path, "--seed", "7", "--no-verify", "--out", out)
	if code != exitOK {
		t.Fatalf("status %d: %s", code, stderr)
	}
	for _, want := range []string{"phi-2: no weights: --weights names none for it", "gpt2 on transformers: it loads a Hugging Face directory"} {
		if !strings.Contains(stderr, want) || !strings.Contains(strings.Join(strings.Fields(stdout), " "), want) {
			t.Errorf("no %q in the plan and the report:\n%s\n%s", want, stderr, stdout)
		}
	}
	m := readRun(t, filepath.Join(out, "runs", "gpt2-tasks")).Manifest
	var p plan.Plan
	if err := m.DecodePlan(&p); err != nil || p.Seed != 7 || !p.NoVerify || len(m.Models) != 1 || m.Models[0].Path != path {
		t.Errorf("plan %+v, models %+v, %v", p, m.Models, err)
	}
}

// planner is one without a machine: memory and disk are given.
func planner(backends ...string) (*wholePlanner, *setup, *model) {
	p := wholePlan()
	p.Models, p.Backends = []string{"phi-2"}, backends
	s := &setup{known: testRegistry(), plan: p, weights: synthetic, dtype: "f16"}
	s.engine = p.Engine
	m, _ := plan.ModelByKey("phi-2") // it is in the table
	tensors, _ := synth.Tensors("phi-2")
	return &wholePlanner{known: s.known, base: s, out: &wholeBench{}, planned: map[string]int64{}}, s, &model{Model: m, shape: tableShape(m, tensors)}
}

func TestWhatDoesNotFitIsLeftOut(t *testing.T) {
	pretendGPU(t, filepath.Join(t.TempDir(), "no such device"))
	const gib = int64(1) << 30
	for _, tc := range []struct {
		memory   int64
		sweep    []int
		backends string // that stay
		parallel string
		lengths  string
		says     []string
	}{
		{512 * gib, nil, "[native llama-server transformers]", "[1 4 16 64]", "[]", nil},
		{12 * gib, nil, "[native llama-server]", "[1 4]", "[]", []string{"x on transformers: does not fit: it needs about", "x, 64, 16 requests at once: does not fit"}},
		{6 * gib, nil, "[native]", "[1]", "[]", []string{"x on llama-server: does not fit beside native: together needs about", "x, 64, 16, 4 requests at once"}},
		{13 * gib / 2, []int{128, 1024, 2016}, "[native llama-server]", "[1]", "[128 1024]", []string{"x, prompts of 2016 tokens: does not fit: of 2016 it needs about"}},
		{2 * gib, nil, "[]", "[1 4 16 64]", "[]", []string{"x on native: does not fit: it needs about"}},
	} {
		w, s, m := planner("native", "llama-server", "transformers")
		s.machine.Memory.AvailableBytes = tc.memory
		if tc.sweep != nil {
			s.plan.PromptTokens = tc.sweep
			s.plan.Concurrency = []int{1}
		}
		ok := w.fit("x", s, m)
		var said []string
		for _, o := range w.out.Omitted {
			said = append(said, o.What+": "+o.Why)
		}
		all := strings.Join(said, "\n")
		if fmt.Sprint(s.plan.Backends) != tc.backends || ok != (tc.backends != "[]") {
			t.Errorf("%d GiB: backends %v (%t), want %s; %s", tc.memory/gib, s.plan.Backends, ok, tc.backends, all)
		}
		if tc.sweep == nil && fmt.Sprint(s.plan.Concurrency) != tc.parallel {
			t.Errorf("%d GiB: concurrency %v, want %s; %s", tc.memory/gib, s.plan.Concurrency, tc.parallel, all)
		}
		if tc.sweep != nil && fmt.Sprint(s.plan.PromptTokens) != tc.lengths {
			t.Errorf("%d GiB: lengths %v, want %s; %s", tc.memory/gib, s.plan.PromptTokens, tc.lengths, all)
		}
		if ok && len(s.holders()) > 0 && !s.fits(s.demand(m, s.slots(), m.context)) {
			t.Errorf("%d GiB: what is left does not fit: %s", tc.memory/gib, all)
		}
		for _, want := range tc.says {
			if !strings.Contains(all, want) {
				t.Errorf("%d GiB: no %q in %s", tc.memory/gib, want, all)
			}
		}
		if tc.says == nil && len(said) > 0 {
			t.Errorf("%d GiB: %s", tc.memory/gib, all)
		}
	}
}

// What the disk has no room for, after the runs before, is left out.
func TestWeightsThatTheDiskHasNoRoomFor(t *testing.T) {
	pretendGPU(t, filepath.Join(t.TempDir(), "no such device"))
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	for _, tc := range []struct {
		before int64
		says   string
	}{
		{0, "and 4.0 GiB is free in the cache (1.0 GiB is to stay free)"},
		{3 << 30, "and 4.0 GiB is free in the cache after the 3.0 GiB of the runs above (1.0 GiB is to stay free)"},
	} {
		w, s, m := planner("native")
		s.machine.Memory.AvailableBytes = 64 << 30
		w.free, w.planned["gpt2"] = 4<<30, tc.before
		w.add("x", s, m, nil)
		if len(w.out.Omitted) != 1 || !strings.HasSuffix(w.out.Omitted[0].Why, tc.says) {
			t.Errorf("left out: %+v, want %q", w.out.Omitted, tc.says)
		}
	}
}

// On a GPU its memory decides, and one backend at a time holds it.
func TestWhatDoesNotFitOnTheGPU(t *testing.T) {
	device := filepath.Join(t.TempDir(), "nvidia0")
	if err := os.WriteFile(device, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	pretendGPU(t, device)
	w, s, m := planner("native", "llama-server", "transformers")
	s.machine.Memory.AvailableBytes = 64 << 30
	s.graphics.rooms = []room{{"CUDA0 (a GPU)", 24 << 30}}
	if !w.fit("x", s, m) || len(s.plan.Backends) != 3 || fmt.Sprint(s.plan.Concurrency) != "[1 4 16]" {
		t.Errorf("backends %v, concurrency %v: %+v", s.plan.Backends, s.plan.Concurrency, w.out.Omitted)
	}
	if len(w.out.Omitted) != 1 || w.out.Omitted[0].What != "x, 64 requests at once" || !strings.Contains(w.out.Omitted[0].Why, "of GPU memory, and 24.0 GiB is free") {
		t.Errorf("left out: %+v", w.out.Omitted)
	}
	w, s, m = planner("native", "transformers")
	s.machine.Memory.AvailableBytes = 64 << 30
	s.graphics.rooms = []room{{"CUDA0 (a GPU)", 4 << 30}}
	if w.fit("x", s, m) || len(w.out.Omitted) != 2 {
		t.Errorf("5.2 GiB of weights on 4 GiB: %v, %+v", s.plan.Backends, w.out.Omitted)
	}
}

// Weights for which there is no room on the disk are a reason to leave a run
// out; those that a run before writes are counted once.
func TestDiskOfTheWeights(t *testing.T) {
	pretendGPU(t, filepath.Join(t.TempDir(), "no such device"))
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	w, s, m := planner("native", "llama-server")
	both := w.disk(s, m.shape)
	if both != m.shape.TensorBytes {
		t.Errorf("%d bytes for a GGUF file of %d", both, m.shape.TensorBytes)
	}
	s.plan.Backends = []string{"native", "transformers"}
	if n := w.disk(s, m.shape); n != 2*m.shape.TensorBytes {
		t.Errorf("%d bytes with a Hugging Face directory", n)
	}
	w.planned["phi-2"] = both
	if n := w.disk(s, m.shape); n != m.shape.TensorBytes {
		t.Errorf("%d bytes after a run that writes the file", n)
	}
	s.plan.Backends = []string{"fake"}
	if n := w.disk(s, m.shape); n != 0 {
		t.Errorf("%d bytes for a backend without weights", n)
	}
}

// The sweep to a model's limit ends with the longest prompt that leaves room
// for the output.
func TestLengthsToTheLimit(t *testing.T) {
	for key, want := range map[string]string{"gpt2": "[128 256 512 992]", "phi-2": "[128 256 512 1024 2016]", "mistral-7b-instruct": "[128 256 512 1024 2048 4096 8192 16384 32736]"} {
		m, err := plan.ModelByKey(key)
		if err != nil {
			t.Fatal(err)
		}
		w := &wholePlanner{limit: true}
		if got := fmt.Sprint(w.lengthsFor(wholePlan(), m)); got != want {
			t.Errorf("%s: %s, want %s", key, got, want)
		}
	}
}

// Cells run backend by backend where servers must take turns, and each repeat
// begins with another one; what is worth most comes first where time is short.
func TestOrderOfCells(t *testing.T) {
	s := &setup{known: testRegistry(), plan: plan.Default()}
	s.plan.Backends = []string{"native", "llama-server"}
	s.plan.Tasks, s.plan.Concurrency, s.plan.Repeats = []string{"chat", "qa"}, []int{4, 1}, 2
	s.engine = s.plan.Engine
	var err error
	if s.cells, err = s.plan.Cells(); err != nil {
		t.Fatal(err)
	}
	all := make([]int, len(s.cells))
	for i := range all {
		all[i] = i
	}
	pretendGPU(t, filepath.Join(t.TempDir(), "no such device"))
	if got := s.order(all); !slices.Equal(got, all) {
		t.Errorf("without a GPU and without a limit the plan's order is kept, not %v", got)
	}
	s.budget = time.Hour
	first := s.cells[s.order(all)[0]]
	if first.Mode != plan.Stream || first.Concurrency != 1 || first.Repeat != 0 {
		t.Errorf("worth most: %s", first.ID())
	}
	device := filepath.Join(t.TempDir(), "nvidia0")
	if err := os.WriteFile(device, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	pretendGPU(t, device)
	var turns []string
	for _, i := range s.order(all) {
		c := s.cells[i]
		if turn := fmt.Sprintf("%s/%d", c.Backend, c.Repeat); len(turns) == 0 || turns[len(turns)-1] != turn {
			turns = append(turns, turn)
		}
	}
	if got := strings.Join(turns, " "); got != "native/0 llama-server/0 llama-server/1 native/1" {
		t.Errorf("turns %s", got)
	}
}

// A budget of compare's own starts nothing when it is over, and the run can be
// completed.
func TestCompareTimeBudget(t *testing.T) {
	out := filepath.Join(t.TempDir(), "run")
	code, _, stderr := invoke(t, small("fake,twin", out, "--time-budget", "1ns")...)
	if code != exitError || !strings.HasSuffix(stderr, "nativebench: --time-budget 1ns: nothing was measured: there is no time for a single cell: give more\n") || !strings.Contains(stderr, "the time budget of 1ns has no room for more: 4 of 4 cells were not started; go on with: nativebench compare --resume "+out) {
		t.Fatalf("status %d: %s", code, stderr)
	}
	if left := readRun(t, out).Remaining(); len(left) != 4 {
		t.Fatalf("left: %v", left)
	}
	for _, why := range []string{"fake, gpt2, repeat 1: not run: no time: its shortest cell takes about ", " and 0.0s of the time budget of 0.0s were left"} {
		if !strings.Contains(stderr, why) {
			t.Errorf("no %q in %s", why, stderr)
		}
	}
	for _, c := range readRun(t, out).Cells() {
		if !strings.Contains(c.Why(), "not run: no time: ") {
			t.Errorf("%s: %s", c.ID, c.Why())
		}
	}
	if code, _, stderr := invoke(t, "compare", "--resume", out, "--time-budget", "1h", "--format", "none"); code != exitOK || strings.Contains(stderr, "no room") {
		t.Fatalf("status %d: %s", code, stderr)
	}
	if run := readRun(t, out); len(run.Remaining()) > 0 || len(run.Manifest.NotRun) > 0 {
		t.Errorf("left: %v, not run: %v", run.Remaining(), run.Manifest.NotRun)
	}
}
