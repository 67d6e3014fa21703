//go:build cgo

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	nvidia "github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/nativebench/nativebench/internal/results"
	"github.com/nativebench/nativebench/internal/synth"
	"github.com/nativebench/nativebench/internal/telemetry/nvml"
	"github.com/nativebench/nativebench/internal/telemetry/nvml/nvmltest"
	"github.com/nativebench/nativebench/native"
)

// mockGPUs puts a mock machine in place of this one's GPUs.
func mockGPUs(t *testing.T, n int) []*nvmltest.GPU {
	t.Helper()
	t.Setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3,4,5,6,7"[:2*n-1])
	machine, gpus := nvmltest.Machine(n)
	was := openNVML
	openNVML = func() (*nvml.Library, error) { return nvml.OpenDriver(machine) }
	t.Cleanup(func() { openNVML = was })
	return gpus
}

// children are the processes that this one started and that have not ended.
func children() (pids []uint32) {
	tasks, _ := filepath.Glob("/proc/self/task/*/children")
	for _, path := range tasks {
		b, _ := os.ReadFile(path) // a thread may end meanwhile
		for _, f := range strings.Fields(string(b)) {
			pid, err := strconv.ParseUint(f, 10, 32)
			// A zombie is in the list until it is reaped.
			if stat, _ := os.ReadFile(filepath.Join("/proc", f, "stat")); err == nil && !strings.Contains(string(stat), ") Z ") {
				pids = append(pids, uint32(pid))
			}
		}
	}
	return pids
}

// heldByChildren makes every process that this one starts hold 3 GiB, and this one
// 400 MiB, which are nobody's.
func heldByChildren(g *nvmltest.GPU) {
	g.Used, g.Processes = 500<<20, []nvidia.ProcessInfo{{Pid: uint32(os.Getpid()), UsedGpuMemory: 400 << 20}}
	for _, pid := range children() {
		g.Used += 3 << 30
		g.Processes = append(g.Processes, nvidia.ProcessInfo{Pid: pid, UsedGpuMemory: 3 << 30})
	}
}

func TestCellsAreWatchedOnTheGPU(t *testing.T) {
	t.Setenv(fakeRealTime, "1")
	gpus := mockGPUs(t, 2)
	gpus[0].Set(func(g *nvmltest.GPU) { g.Before = heldByChildren })
	gpus[1].Set(func(g *nvmltest.GPU) { g.Faults["energy"] = nvidia.ERROR_NOT_SUPPORTED })
	dir := t.TempDir()
	out, trace := filepath.Join(dir, "run"), filepath.Join(dir, "out.json.gz")
	code, _, stderr := invoke(t, small("fake", out, "--mode", "stream", "--repeat", "2", "--format", "none", "--trace", trace)...)
	if code != exitOK {
		t.Fatalf("status %d: %s", code, stderr)
	}
	if !strings.Contains(stderr, "gpu       GPU 0: Mock NVIDIA A100-SXM4-40GB, 40.0 GiB (CUDA0), driver 550.54.15, 500 MiB in use") {
		t.Errorf("the header does not name the GPU:\n%s", stderr)
	}
	run := readRun(t, out)
	env := run.Manifest.Environment
	if len(env.GPUs) != 2 || env.GPUs[1].Device != "gpu1" || env.GPUs[1].Engine != "CUDA1" || env.Versions["nvidia_driver"] != "550.54.15" || env.GPUsMissing != "" {
		t.Errorf("GPUs %+v, versions %v, missing %q", env.GPUs, env.Versions, env.GPUsMissing)
	}
	for _, c := range run.Cells() {
		if len(c.Event.GPU) != 2 || c.Event.GPUMissing != "" {
			t.Fatalf("%s: GPUs %+v (%q)", c.ID, c.Event.GPU, c.Event.GPUMissing)
		}
		u := c.Event.GPU[0]
		if u.Before != 500<<20 || u.Loaded != 3572<<20 || u.Peak != 3572<<20 || u.Released != 500<<20 {
			t.Errorf("%s: device %d, %d, %d, %d", c.ID, u.Before>>20, u.Loaded>>20, u.Peak>>20, u.Released>>20)
		}
		if u.Source != "processes" || u.OwnContext != 3<<30 || u.OwnLoaded != 3<<30 || u.OwnPeak != 3<<30 || u.Foreign != 0 || u.EnergyJ <= 0 || u.EnergySource != "counter" || u.PeakW != 300 {
			t.Errorf("%s: %+v", c.ID, u)
		}
		if len(u.CallSeconds) != 9 || u.SamplerCores < 0 {
			t.Errorf("%s: the cost of sampling is not told: %v, %v", c.ID, u.CallSeconds, u.SamplerCores)
		}
		idle := c.Event.GPU[1]
		if idle.OwnPeak != 0 || idle.EnergySource != "power" || !strings.HasPrefix(idle.Missing["energy"], "not available: ") || len(idle.Missing) != 1 {
			t.Errorf("%s: the other GPU: %+v", c.ID, idle)
		}
		for _, w := range c.Event.Warnings {
			if strings.Contains(w, "GPU") {
				t.Errorf("%s: warning %q", c.ID, w)
			}
		}
	}
	seen := map[string]int{}
	for s, err := range run.Telemetry() {
		if err != nil {
			t.Fatal(err)
		}
		seen[s.Subject]++
	}
	if seen["gpu0"] < 4 || seen["gpu1"] < 4 || seen["gpu_sampler"] == 0 {
		t.Errorf("samples: %v", seen)
	}
	isTraceOf(t, trace, run, "memory used", "memory of the backend", "power", "power by the energy counter", "SM clock", "memory clock", "temperature", "busy")
}

// The ledger is of readings at moments at which the cell's process stood still, not
// of the last samples before them: it adds up though each stage is as short as can
// be, whether the driver shows processes or not. Figures of GPT-2 on an H100.
func TestTheLedgerIsReadAtMarks(t *testing.T) {
	for _, shown := range []bool{true, false} {
		file := filepath.Join(t.TempDir(), "stage")
		t.Setenv(stageFile, file)
		gpus := mockGPUs(t, 1)
		gpus[0].Set(func(g *nvmltest.GPU) {
			g.Before = func(g *nvmltest.GPU) {
				g.Used, g.Processes = 0, nil
				stage, _ := os.ReadFile(file)
				for _, pid := range children() {
					own := map[string]uint64{"context": 518, "loaded": 420 + 518, "at work": 1102}[string(stage)] << 20
					g.Used += own
					g.Processes = append(g.Processes, nvidia.ProcessInfo{Pid: pid, UsedGpuMemory: own})
				}
			}
			if !shown {
				g.Faults["processes"] = nvidia.ERROR_NO_PERMISSION
			}
		})
		code, stdout, stderr := invoke(t, small("staged", filepath.Join(t.TempDir(), "run"), "--mode", "stream", "--format", "json")...)
		if code != exitOK {
			t.Fatalf("status %d: %s", code, stderr)
		}
		var r struct {
			Runs []struct {
				Memory []struct {
					Parts     map[string]int64
					Grown     int64 `json:"since_first_request"`
					Remainder int64
					Share     float64 `json:"remainder_of_peak"`
					Peak      int64   `json:"own_peak"`
				} `json:"gpu_memory"`
			}
		}
		if err := json.Unmarshal([]byte(stdout), &r); err != nil || len(r.Runs) != 1 || len(r.Runs[0].Memory) != 1 {
			t.Fatalf("%v: %s", err, stdout)
		}
		m := r.Runs[0].Memory[0]
		if m.Parts["context"] != 518<<20 || m.Parts["weights"] != 236<<20 || m.Grown != 164<<20 || m.Remainder != 8<<20 || m.Peak != 1102<<20 || m.Share > 0.02 {
			t.Errorf("processes shown: %v: %+v", shown, m)
		}
	}
}

// The process that measures holds nothing on a GPU: it loads no plugin that would
// make a context there, and only the processes of cells do.
func TestTheMeasuringProcessTouchesNoGPU(t *testing.T) {
	from := os.Getenv(native.EnvDir)
	if from == "" {
		t.Skipf("%s is not set: `make test` sets it", native.EnvDir)
	}
	dir := t.TempDir()
	engine, out, touched := filepath.Join(dir, "engine"), filepath.Join(dir, "run"), filepath.Join(dir, "touched")
	if err := os.Mkdir(engine, 0o755); err != nil {
		t.Fatal(err)
	}
	files, err := os.ReadDir(from)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if !strings.HasPrefix(f.Name(), "libggml-cuda") {
			if err := os.Symlink(filepath.Join(from, f.Name()), filepath.Join(engine, f.Name())); err != nil {
				t.Fatal(err)
			}
		}
	}
	if text, err := exec.Command("cc", "-shared", "-fPIC", "-o", filepath.Join(engine, "libggml-cuda.so"), "../../native/testdata/device_plugin.c").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	made, err := synth.Write(t.Context(), synth.Spec{Model: "gpt2", Seed: 1, Layers: 1, Width: 64, VocabDir: filepath.Join(from, "vocab")}, filepath.Join(dir, "model"), nil)
	if err != nil {
		t.Fatal(err)
	}
	cmd := program(t, []string{native.EnvDir + "=" + engine, "LD_LIBRARY_PATH=" + engine, "DEVICE_PLUGIN_OUT=" + touched}, small("native", out, "--mode", "sync", "--repeat", "2", "--format", "none", "--weights", made.GGUF, "--max-tokens", "4", "--threads", "1")...)
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	run := readRun(t, out)
	if c := run.Manifest.PromptCounts; len(c) != 1 || !c[0].Exact || c[0].Vocabulary == "" {
		t.Errorf("the prompts were not counted with the engine's tokenizer: %+v", c)
	}
	text, err := os.ReadFile(touched)
	if err != nil {
		t.Fatalf("no cell loaded the plugin: %v", err)
	}
	pids := strings.Fields(string(text))
	if len(pids) != len(run.Cells()) || slices.Contains(pids, strconv.Itoa(cmd.Process.Pid)) {
		t.Errorf("the plugin was loaded by %v, for %d cells of process %d", pids, len(run.Cells()), cmd.Process.Pid)
	}
}

// A GPU that falls off the bus during a cell takes its own numbers with it and
// nothing else.
func TestALostGPUIsNotTheCellsEnd(t *testing.T) {
	gpus := mockGPUs(t, 1)
	gpus[0].Set(func(g *nvmltest.GPU) {
		g.Before = func(g *nvmltest.GPU) {
			if heldByChildren(g); len(g.Processes) > 1 {
				g.All = nvidia.ERROR_GPU_IS_LOST
			}
		}
	})
	out := filepath.Join(t.TempDir(), "run")
	if code, _, stderr := invoke(t, small("fake", out, "--mode", "sync", "--format", "none")...); code != exitOK {
		t.Fatalf("status %d: %s", code, stderr)
	}
	for _, c := range readRun(t, out).Cells() {
		u := c.Event.GPU[0]
		if !c.Done() || len(c.Measured()) != 4 {
			t.Errorf("%s: %s, %d requests", c.ID, c.State, len(c.Measured()))
		}
		if u.Peak != -1 || u.EnergyJ != -1 || u.Released != -1 || !strings.Contains(u.Missing["memory"], "the GPU is lost") || !strings.Contains(u.Missing["energy"], "the GPU is lost") {
			t.Errorf("%s: %+v", c.ID, u)
		}
		if !strings.Contains(strings.Join(c.Event.Warnings, "\n"), "whether the memory of GPU 0 was given back is not known") {
			t.Errorf("%s: warnings %q", c.ID, c.Event.Warnings)
		}
	}
}

func TestGPUsThatAreNotThere(t *testing.T) {
	for _, tt := range []struct {
		name, why string
		more      []string
		set       func()
	}{
		{"no library", "not available: libnvidia-ml.so.1 is not here", nil, func() {
			openNVML = func() (*nvml.Library, error) { return nil, fmt.Errorf("not available: libnvidia-ml.so.1 is not here") }
		}},
		{"hidden from CUDA", "not available: CUDA_VISIBLE_DEVICES leaves none", nil, func() { t.Setenv("CUDA_VISIBLE_DEVICES", "") }},
		{"not to be used", "not available: --gpu-layers 0 leaves the GPU alone", []string{"--gpu-layers", "0"}, func() {}},
	} {
		mockGPUs(t, 1)
		tt.set()
		out := filepath.Join(t.TempDir(), "run")
		if code, _, stderr := invoke(t, small("fake", out, append(tt.more, "--mode", "sync", "--format", "none")...)...); code != exitOK {
			t.Fatalf("%s: status %d: %s", tt.name, code, stderr)
		}
		run := readRun(t, out)
		if got := run.Manifest.Environment.GPUsMissing; !strings.HasPrefix(got, tt.why) {
			t.Errorf("%s: the manifest says %q", tt.name, got)
		}
		for _, c := range run.Cells() {
			if len(c.Event.GPU) != 0 || !strings.HasPrefix(c.Event.GPUMissing, tt.why) {
				t.Errorf("%s: %+v, %q", tt.name, c.Event.GPU, c.Event.GPUMissing)
			}
		}
	}
}

// The next server starts when the memory of the one before has come back.
func TestMemoryComesBackBeforeTheNextServer(t *testing.T) {
	gpus := mockGPUs(t, 1)
	set := func(used uint64) { gpus[0].Set(func(g *nvmltest.GPU) { g.Used = used << 20 }) }
	found := findGPUs()
	var atStart []int64
	server := func(name string) backend {
		return backend{name: name, ready: func(context.Context, place) (*seat, error) {
			for _, used := range found.memory() {
				atStart = append(atStart, used>>20)
			}
			set(9000)
			return &seat{entry: results.Backend{Endpoint: name}, stop: func(context.Context) error {
				go func() {
					time.Sleep(60 * time.Millisecond) // the driver takes its time
					set(501)
				}()
				return nil
			}}, nil
		}}
	}
	s := newSeats(func(_, key string) place { return place{} })
	s.alone, s.gpus = true, found
	var left []results.GPUHeld
	s.stopped = func(k *keptSeat, warnings []string) {
		left = append(left, k.held...)
		if len(warnings) > 0 {
			t.Errorf("warnings %q", warnings)
		}
	}
	for _, name := range []string{"a", "b"} {
		if _, _, _, err := s.get(t.Context(), server(name), "gpt2"); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.close(); err != nil {
		t.Fatal(err)
	}
	if want := []int64{500, 501}; fmt.Sprint(atStart) != fmt.Sprint(want) {
		t.Errorf("in use at the starts: %v MiB, want %v", atStart, want)
	}
	want := []results.GPUHeld{{Device: "gpu0", Before: 500 << 20, Ready: 9000 << 20, Released: 501 << 20}, {Device: "gpu0", Before: 501 << 20, Ready: 9000 << 20, Released: 501 << 20}}
	if fmt.Sprint(left) != fmt.Sprint(want) {
		t.Errorf("held %+v, want %+v", left, want)
	}
}

// What a server held before, ready and after its end is in the manifest, and
// each of its cells is set against what was in use before it was started.
func TestAServersMemoryIsInTheManifest(t *testing.T) {
	gpus := mockGPUs(t, 1)
	gpus[0].Set(func(g *nvmltest.GPU) { g.Faults["processes"] = nvidia.ERROR_NO_PERMISSION })
	known := testRegistry()
	for i := range known {
		if known[i].name != "mortal" {
			continue
		}
		ready := known[i].ready
		known[i].ready = func(ctx context.Context, p place) (*seat, error) {
			s, err := ready(ctx, p)
			s.died = make(chan struct{}) // it lives
			s.entry.Endpoint = "http://127.0.0.1:1"
			gpus[0].Set(func(g *nvmltest.GPU) { g.Used = 9000 << 20 })
			s.stop = func(context.Context) error {
				gpus[0].Set(func(g *nvmltest.GPU) { g.Used = 502 << 20 })
				return nil
			}
			return s, err
		}
	}
	t.Setenv(asProgram, "1")
	t.Setenv("GORACE", noSleep)
	out := filepath.Join(t.TempDir(), "run")
	var stdout, stderr strings.Builder
	if code := runWith(t.Context(), &stdout, &stderr, append([]string{"nativebench"}, small("mortal", out, "--mode", "sync", "--repeat", "2", "--format", "json")...), known); code != exitOK {
		t.Fatalf("status %d: %s", code, stderr.String())
	}
	run := readRun(t, out)
	want := results.GPUHeld{Device: "gpu0", Before: 500 << 20, Ready: 9000 << 20, Released: 502 << 20}
	if b := run.Manifest.Backends; len(b) != 1 || len(b[0].GPU) != 1 || b[0].GPU[0] != want {
		t.Errorf("backends %+v, want one that held %+v", b, want)
	}
	for _, c := range run.Cells() {
		u := c.Event.GPU[0]
		if u.Source != "device" || u.OwnPeak != 8500<<20 || !strings.Contains(u.SourceWhy, "this user may not ask") || u.Released != -1 {
			t.Errorf("%s: %+v", c.ID, u)
		}
	}
	var r struct {
		Runs []struct {
			Memory []struct {
				Released int64 `json:"device_released"`
				Peak     int64 `json:"own_peak"`
			} `json:"gpu_memory"`
		}
	}
	if err := json.Unmarshal([]byte(stdout.String()), &r); err != nil || len(r.Runs) != 1 || len(r.Runs[0].Memory) != 1 || r.Runs[0].Memory[0].Released != 502<<20 || r.Runs[0].Memory[0].Peak != 8500<<20 {
		t.Errorf("the report has %+v (%v)", r, err)
	}
}
