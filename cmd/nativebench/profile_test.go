package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/nativebench/nativebench/internal/bench"
	"github.com/nativebench/nativebench/internal/bench/benchtest"
	"github.com/nativebench/nativebench/internal/plan"
	"github.com/nativebench/nativebench/internal/runner"
)

// traceFile names a file into which the backend "traced" writes what happens.
const traceFile = "NATIVEBENCH_TEST_TRACE"

// note appends a line to that file.
func note(line string) {
	f, err := os.OpenFile(os.Getenv(traceFile), os.O_APPEND|os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		panic(err)
	}
	defer f.Close()
	fmt.Fprintln(f, line)
}

// profiledFake is a Fake that can be profiled.
type profiledFake struct{ *benchtest.Fake }

func (profiledFake) StartProfile(context.Context) error {
	if os.Getenv(fakeHang) != "" {
		return bench.Fail(bench.Engine, "no CUDA device computes here")
	}
	note("start")
	return nil
}
func (profiledFake) StopProfile(context.Context) error { note("stop"); return nil }

// traced stands in for native where a profiler is to look at it.
func traced() backend {
	return backend{
		name: "traced", about: "for tests", profiles: true,
		check: func(string) error { return nil },
		ready: func(context.Context, place) (*seat, error) { return &seat{spec: ""}, nil },
		open: func(context.Context, json.RawMessage, runner.Opening) (bench.Backend, error) {
			return profiledFake{benchtest.NewFake(benchtest.FakeConfig{
				Name: "traced", Virtual: true, Context: 4096,
				OnGenerate: func(int, *bench.Request) { note("request") },
			})}, nil
		},
	}
}

// fakeProfilers puts an nsys and an ncu into an otherwise empty PATH, which note
// their arguments and then are the program that they were to start.
func fakeProfilers(t *testing.T) (argv func() []string) {
	t.Helper()
	dir := t.TempDir()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(dir, "argv")
	script := fmt.Sprintf("#!/bin/sh\necho \"$(basename $0) $*\" >>%s\nwhile [ \"$1\" != %s ]; do shift; done\nexec \"$@\"\n", log, exe)
	for _, name := range []string{"nsys", "ncu"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	return func() []string {
		text, _ := os.ReadFile(log)
		return strings.FieldsFunc(strings.ReplaceAll(string(text), exe, "nativebench"), func(r rune) bool { return r == '\n' })
	}
}

// aGPU makes this machine have a GPU, as far as its device files tell.
func aGPU(t *testing.T) { pretendGPU(t, t.TempDir()) }

// The process of a cell runs under the profiler, whose capture is the measured
// window: not the warm-up, all of the requests.
func TestProfile(t *testing.T) {
	for tool, want := range map[string]string{
		"nsys": "nsys profile --trace=cuda,nvtx,osrt --cuda-graph-trace=node --sample=none --cpuctxsw=none --trace-fork-before-exec=true --capture-range=cudaProfilerApi --capture-range-end=stop --force-overwrite=true --output=%s nativebench cell",
		"ncu":  "ncu --profile-from-start off --target-processes all --nvtx --force-overwrite --export %s nativebench cell",
	} {
		t.Run(tool, func(t *testing.T) {
			aGPU(t)
			argv := fakeProfilers(t)
			trace := filepath.Join(t.TempDir(), "trace")
			t.Setenv(traceFile, trace)
			out := filepath.Join(t.TempDir(), "run")
			code, stdout, stderr := invoke(t, small("traced", out, "--profile", tool, "--mode", "stream", "--no-verify", "--format", "terminal")...)
			if code != exitOK {
				t.Fatalf("status %d: %s", code, stderr)
			}
			report := filepath.Join(out, "profiles", "gpt2.chat.stream.c1.traced.r0.a1")
			if got := argv(); !slices.Equal(got, []string{fmt.Sprintf(want, report)}) {
				t.Errorf("started\n%s\nwant\n%s", strings.Join(got, "\n"), fmt.Sprintf(want, report))
			}
			events, err := os.ReadFile(trace)
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Fields(string(events)); !slices.Equal(got, []string{"request", "start", "request", "request", "request", "request", "stop"}) {
				t.Errorf("happened: %v", got)
			}
			const loud = "PROFILED RUN, NOT A MEASUREMENT: every cell ran under "
			for where, text := range map[string]string{"header": stderr, "report": stdout} {
				if !strings.Contains(strings.Join(strings.Fields(text), " "), loud+tool) {
					t.Errorf("the %s does not say that the run was profiled:\n%s", where, text)
				}
			}
			run := readRun(t, out)
			var p plan.Plan
			if err := run.Manifest.DecodePlan(&p); err != nil || p.Profile != tool {
				t.Errorf("the manifest says profile %q (%v)", p.Profile, err)
			}
			for _, c := range run.Cells() {
				if !slices.Contains(c.Event.Warnings, "profiled under "+tool+": not a measurement") {
					t.Errorf("cell %s has the warnings %q", c.ID, c.Event.Warnings)
				}
			}
		})
	}
}

// A capture that cannot begin is the cell's failure, and no request is sent.
func TestProfileThatCannotBegin(t *testing.T) {
	aGPU(t)
	fakeProfilers(t)
	trace := filepath.Join(t.TempDir(), "trace")
	t.Setenv(traceFile, trace)
	t.Setenv(fakeHang, "1")
	out := filepath.Join(t.TempDir(), "run")
	code, _, stderr := invoke(t, small("traced", out, "--profile", "nsys", "--mode", "stream", "--no-verify")...)
	if code != exitCellsFailed {
		t.Fatalf("status %d: %s", code, stderr)
	}
	if c := readRun(t, out).Cells()[0]; len(c.Measured()) != 0 || !strings.Contains(c.Event.Reason, "the profiler's capture could not be begun: no CUDA device computes here") {
		t.Errorf("%d records, reason %q", len(c.Measured()), c.Event.Reason)
	}
}

// A vLLM that runs already is told where the measured window begins and ends;
// nothing of it is started here.
func TestProfileOfAnEndpoint(t *testing.T) {
	var mu sync.Mutex
	var events []string
	add := func(what string) {
		mu.Lock()
		defer mu.Unlock()
		events = append(events, what)
	}
	handler := openAIHandler("", func(map[string]any) { add("request") })
	mux := http.NewServeMux()
	mux.Handle("/", handler)
	mux.HandleFunc("POST /start_profile", func(http.ResponseWriter, *http.Request) { add("start") })
	mux.HandleFunc("POST /stop_profile", func(http.ResponseWriter, *http.Request) { add("stop") })
	srv := httptest.NewServer(mux)
	defer srv.Close()
	t.Setenv("PATH", "") // no nsys, and none is needed
	out := filepath.Join(t.TempDir(), "run")
	code, _, stderr := invoke(t, small("vllm", out, "--profile", "nsys", "--mode", "stream", "--no-verify", "--endpoint", "vllm="+srv.URL)...)
	if code != exitOK {
		t.Fatalf("status %d: %s", code, stderr)
	}
	// One to see that it makes tokens, one to warm up.
	if want := []string{"request", "request", "start", "request", "request", "request", "request", "stop"}; !slices.Equal(events, want) {
		t.Errorf("happened: %v, want %v", events, want)
	}
}

// One that was not started for it is refused by what its cell says.
func TestProfileOfAnUnwillingEndpoint(t *testing.T) {
	url, _ := openAIServer(t, "")
	out := filepath.Join(t.TempDir(), "run")
	code, _, stderr := invoke(t, small("vllm", out, "--profile", "nsys", "--mode", "stream", "--no-verify", "--endpoint", "vllm="+url)...)
	if code != exitUsage && code != exitCellsFailed {
		t.Fatalf("status %d: %s", code, stderr)
	}
	if want := `POST /start_profile answers 404`; !strings.Contains(stderr, want) || !strings.Contains(stderr, `--profiler-config '{"profiler": "cuda"}'`) {
		t.Errorf("no %q and no advice in: %s", want, stderr)
	}
}

func TestProfileRefusals(t *testing.T) {
	for name, tc := range map[string]struct {
		gpu, tools bool
		args       []string
		want       string
	}{
		"no such tool": {true, true, []string{"--profile", "perf"}, "--profile perf: choose nsys or ncu"},
		"no GPU":       {false, true, []string{"--profile", "nsys"}, "this machine has none"},
		"not the GPU":  {true, true, []string{"--profile", "nsys", "--gpu-layers", "0"}, "--gpu-layers 0 forbids it"},
		"nsys missing": {true, false, []string{"--profile", "nsys"}, "there is no nsys in PATH: install Nsight Systems"},
		"ncu missing":  {true, false, []string{"--profile", "ncu"}, "there is no ncu in PATH: install Nsight Compute"},
		"cannot":       {true, true, []string{"--profile", "ncu", "--endpoint", "openai=http://127.0.0.1:1"}, "openai has no way to be told where a profile begins: choose --backends of native, vllm, sglang"},
	} {
		t.Run(name, func(t *testing.T) {
			if aGPU(t); !tc.gpu {
				pretendGPU(t, filepath.Join(t.TempDir(), "no such device"))
			}
			t.Setenv("PATH", "")
			if tc.tools {
				fakeProfilers(t)
			}
			out := filepath.Join(t.TempDir(), "run")
			code, _, stderr := invoke(t, append(small("traced", out, "--no-verify"), tc.args...)...)
			if code != exitUsage || !strings.Contains(stderr, tc.want) || strings.Count(strings.TrimSpace(stderr), "\n") != 0 {
				t.Errorf("status %d, want %d and one line with %q: %s", code, exitUsage, tc.want, stderr)
			}
			if _, err := os.Stat(out); err == nil {
				t.Error("the run directory was made")
			}
		})
	}
}
