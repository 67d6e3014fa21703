package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nativebench/nativebench/internal/bench"
	"github.com/nativebench/nativebench/internal/bench/benchtest"
	"github.com/nativebench/nativebench/internal/results"
	"github.com/nativebench/nativebench/internal/runner"
	"github.com/nativebench/nativebench/internal/telemetry"
)

var update = flag.Bool("update", false, "write the golden files")

// The test binary is nativebench itself when this variable is set, with the
// backends of testRegistry: cells run in processes of it.
const asProgram = "NATIVEBENCH_TEST_AS_PROGRAM"

// Settings of the fake backends, which the process of a cell reads.
const (
	// fakeGate names a file: measured requests from the fourth of a cell on
	// wait until it is there.
	fakeGate = "NATIVEBENCH_TEST_GATE"
	// fakeHang, if set, makes the fourth request wait until it is cancelled.
	fakeHang = "NATIVEBENCH_TEST_HANG"
	// fakeRealTime, if set, makes the fake take the time that it says it took.
	fakeRealTime = "NATIVEBENCH_TEST_REAL_TIME"
)

// noSleep spares each child the second for which the race detector otherwise
// waits at exit.
const noSleep = "atexit_sleep_ms=0"

func TestMain(m *testing.M) {
	if port := os.Getenv(containerPort); port != "" {
		serveContainer(port)
	}
	// No test depends on what this machine has downloaded.
	if os.Getenv(asProgram) == "" {
		os.Setenv("HF_HOME", "/nonexistent/huggingface")
	}
	if os.Getenv(asProgram) != "" {
		os.Exit(runWith(context.Background(), os.Stdout, os.Stderr, os.Args, testRegistry()))
	}
	os.Exit(m.Run())
}

// testRegistry is the real one and backends without a model.
func testRegistry() registry {
	fake := func(name string, open func() (bench.Backend, error)) backend {
		return backend{
			name: name, about: "for tests",
			check: func(string) error { return nil },
			ready: func(context.Context, place) (*seat, error) { return &seat{spec: name}, nil },
			open: func(_ context.Context, spec json.RawMessage, o runner.Opening) (bench.Backend, error) {
				if string(spec) != `"`+name+`"` {
					return nil, errors.New("the spec did not reach the child: " + string(spec))
				}
				o.Loading(0.5)
				o.Hold(telemetry.ContextMark)
				return open()
			},
		}
	}
	config := func(name string) benchtest.FakeConfig {
		return benchtest.FakeConfig{Name: name, Virtual: true, FirstToken: 20 * time.Millisecond, Gap: 5 * time.Millisecond, Context: 4096}
	}
	return append(backends(),
		fake("fake", func() (bench.Backend, error) {
			cfg := config("fake")
			cfg.Virtual = os.Getenv(fakeRealTime) == ""
			if gate := os.Getenv(fakeGate); gate != "" {
				cfg.OnGenerate = func(i int, _ *bench.Request) {
					for i >= 3 {
						if _, err := os.Stat(gate); err == nil {
							return
						}
						time.Sleep(time.Millisecond)
					}
				}
			}
			if os.Getenv(fakeHang) != "" {
				cfg.Fail = map[int]bench.Class{3: bench.Cancelled}
			}
			return benchtest.NewFake(cfg), nil
		}),
		fake("twin", func() (bench.Backend, error) { return benchtest.NewFake(config("twin")), nil }),
		fake("crash", func() (bench.Backend, error) {
			cfg := config("crash")
			cfg.OnGenerate = func(i int, _ *bench.Request) {
				if i == 2 {
					time.Sleep(20 * time.Millisecond) // for the records before it to be written
					panic("the engine fell over")
				}
			}
			return benchtest.NewFake(cfg), nil
		}),
		backend{
			name: "absent", about: "for tests",
			check: func(string) error { return errors.New("absent: its program is not installed") },
		},
		mortal(),
		staged(),
		flaky(),
		holder(),
		traced(),
		backend{
			name: "unready", about: "for tests",
			check: func(string) error { return nil },
			ready: func(context.Context, place) (*seat, error) {
				return nil, bench.Fail(bench.Connect, "no answer on its port")
			},
		},
	)
}

// flaky fails two of a cell's requests.
func flaky() backend {
	return backend{
		name: "flaky", about: "for tests",
		check: func(string) error { return nil },
		ready: func(context.Context, place) (*seat, error) { return &seat{spec: ""}, nil },
		open: func(context.Context, json.RawMessage, runner.Opening) (bench.Backend, error) {
			return benchtest.NewFake(benchtest.FakeConfig{
				Name: "flaky", Virtual: true, Context: 4096,
				Fail: map[int]bench.Class{2: bench.Engine, 3: bench.Engine},
			}), nil
		},
	}
}

// mortal is a server whose first process ends by itself as soon as it is ready.
func mortal() backend {
	starts := 0
	return backend{
		name: "mortal", about: "for tests",
		check: func(string) error { return nil },
		ready: func(_ context.Context, p place) (*seat, error) {
			died := make(chan struct{})
			if starts++; starts == 1 {
				close(died)
			}
			return &seat{
				spec: "", died: died, exit: func() string { return "signal: killed" },
				entry:   results.Backend{Command: []string{"mortal", "--api-key", "secret"}, Log: p.log, StartNS: int64(starts)},
				pids:    func() []int { return []int{os.Getpid()} },
				lastLog: func(int) []string { return []string{"mortal: farewell"} },
				stop:    func(context.Context) error { return nil },
			}, nil
		},
		open: func(context.Context, json.RawMessage, runner.Opening) (bench.Backend, error) {
			return benchtest.NewFake(benchtest.FakeConfig{Name: "mortal", Virtual: true}), nil
		},
	}
}

// stageFile is where the staged backend says what it holds by now.
const stageFile = "NATIVEBENCH_TEST_STAGE"

// staged holds memory on a GPU in stages, each beginning right after the mark that
// ends the one before.
func staged() backend {
	return backend{
		name: "staged", about: "for tests",
		check: func(string) error { return nil },
		ready: func(context.Context, place) (*seat, error) { return &seat{spec: ""}, nil },
		open: func(_ context.Context, _ json.RawMessage, o runner.Opening) (bench.Backend, error) {
			stage := func(s string) { os.WriteFile(os.Getenv(stageFile), []byte(s), 0o600) }
			stage("context")
			o.Hold(telemetry.ContextMark)
			stage("loaded")
			b := benchtest.NewFake(benchtest.FakeConfig{
				Name: "staged", FirstToken: 20 * time.Millisecond, Gap: 2 * time.Millisecond, Context: 4096,
				OnGenerate: func(int, *bench.Request) { stage("at work") },
			})
			return stagedBackend{b}, nil
		},
	}
}

type stagedBackend struct{ bench.Backend }

func (b stagedBackend) Info() bench.Info {
	i := b.Backend.Info()
	for part, mib := range map[string]int64{"weights": 236, "kv": 72, "compute": 104} {
		i.Memory = append(i.Memory, bench.MemoryPart{Device: "CUDA0", Part: part, Bytes: mib << 20})
	}
	return i
}

// holder loads weights, as far as the checks before a run can tell.
func holder() backend {
	return backend{
		name: "holder", about: "for tests", holdsWeights: true,
		check: func(string) error { return nil },
		ready: func(_ context.Context, p place) (*seat, error) { return &seat{spec: p.weights.Path}, nil },
		open: func(_ context.Context, spec json.RawMessage, _ runner.Opening) (bench.Backend, error) {
			var path string
			if err := json.Unmarshal(spec, &path); err != nil {
				return nil, err
			}
			if _, err := os.Stat(path); err != nil {
				return nil, err
			}
			return benchtest.NewFake(benchtest.FakeConfig{Name: "holder", Virtual: true}), nil
		},
	}
}

// invoke runs nativebench in this process; its cells run in processes of the
// test binary.
func invoke(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	t.Setenv(asProgram, "1")
	t.Setenv("GORACE", noSleep)
	var out, errOut bytes.Buffer
	code = runWith(context.Background(), &out, &errOut, append([]string{"nativebench"}, args...), testRegistry())
	return code, out.String(), errOut.String()
}

// golden compares text with a file in testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(got, "\n")); diff != "" {
		t.Errorf("%s differs (go test -update writes it anew):\n%s", path, diff)
	}
}

func readRun(t *testing.T, dir string) *results.Run {
	t.Helper()
	run, err := results.Read(dir)
	if err != nil {
		t.Fatal(err)
	}
	return run
}

// program starts this test binary as nativebench.
func program(t *testing.T, env []string, args ...string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, args...)
	cmd.Env = append(append(os.Environ(), asProgram+"=1", "GORACE="+noSleep), env...)
	return cmd
}
