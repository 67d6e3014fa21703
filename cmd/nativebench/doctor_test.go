package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nativebench/nativebench/internal/telemetry"
	"github.com/nativebench/nativebench/internal/telemetry/nvml"
	"github.com/nativebench/nativebench/native"
)

// healthyPatient is a machine that lacks nothing, with files in a directory of
// the test.
func healthyPatient(t *testing.T) patient {
	t.Helper()
	dir := t.TempDir()
	p := patient{
		machine: telemetry.Machine{
			OS: "debian 12", Kernel: "6.1.0", CPU: "AMD EPYC 9654", Cores: 16, PhysicalCores: 16, LogicalCores: 32,
			QuotaCores: -1, NUMANodes: 2, Governor: "performance", MinMHz: 1500, MaxMHz: 3700, Turbo: "on",
			Memory: telemetry.Memory{TotalBytes: 64 << 30, AvailableBytes: 60 << 30, LimitBytes: -1, SwapTotalBytes: 8 << 30},
		},
		engineDir: filepath.Join(dir, "engine"), cacheDir: dir, outDir: dir, root: filepath.Join(dir, "root"),
	}
	for name, content := range map[string]string{
		"engine/llama-bench": "#!", "engine/llama-quantize": "#!", "engine/convert/convert_hf_to_gguf.py": "", "python/bin/python": "#!",
		"engine/libggml-cuda.so": "", "engine/vocab/ggml-vocab-gpt-2.gguf": "GGUF",
		"root/proc/driver/nvidia/gpus/0000:01:00.0/information":                "Model: \t\t NVIDIA H200\nIRQ: 1\n",
		"root/sys/devices/system/clocksource/clocksource0/current_clocksource": "tsc\n",
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv(pythonVariable(convertEnv), filepath.Join(dir, "python"))
	hubOfGPT2(t)
	return p
}

func healthyRegistry() registry {
	fine := func(string) error { return nil }
	return registry{{name: "native", about: "in process", check: fine}, {name: "llama-server", about: "a server", check: fine}}
}

func TestDoctorSaysWhatIsMissingAndWhatItCosts(t *testing.T) {
	for _, tt := range []struct {
		check   string
		change  func(t *testing.T, p *patient, known registry)
		verdict verdict
		found   string
		cost    string
		ready   bool
	}{
		{"system", func(_ *testing.T, p *patient, _ registry) { p.machine.Container = "docker in a virtual machine (kvm)" }, verdictOK, "docker in a virtual machine (kvm)", "hypervisor", true},
		{"cores", func(_ *testing.T, p *patient, _ registry) { p.machine.Cores = 2 }, verdictWarn, "AMD EPYC 9654: 2 usable of 32 (16 physical), 2 NUMA nodes", "share them with the model", true},
		{"cores", func(_ *testing.T, p *patient, _ registry) { p.machine.QuotaCores = 3.5 }, verdictWarn, "16 usable", "3.5 cores' worth", true},
		{"frequency", func(_ *testing.T, p *patient, _ registry) { p.machine.Governor = "powersave" }, verdictWarn, "governor powersave, 1500 to 3700 MHz, turbo on", "numbers vary", true},
		{"frequency", func(_ *testing.T, p *patient, _ registry) { p.machine.Governor = "not known: no cpufreq" }, verdictOK, "not known: no cpufreq", "cannot be told", true},
		{"heat", func(_ *testing.T, p *patient, _ registry) { p.machine.Throttled = 4 }, verdictWarn, "4 times", "--cooldown", true},
		{"heat", func(_ *testing.T, p *patient, _ registry) { p.machine.ThrottleEvents = -1 }, verdictOK, "not known", "", true},
		{"other work", func(_ *testing.T, p *patient, _ registry) { p.machine.LoadBefore = 3 }, verdictWarn, "3.00 cores busy", "end the other work", true},
		{"other work", func(_ *testing.T, p *patient, _ registry) { p.machine.LoadBefore = -1 }, verdictWarn, "not known", "would not be noticed", true},
		{"memory", func(_ *testing.T, p *patient, _ registry) { p.machine.Memory.AvailableBytes = 100 << 20 }, verdictMissing, "100 MiB free of 64.0 GiB", "smallest model", false},
		{"memory", func(_ *testing.T, p *patient, _ registry) { p.machine.Memory.LimitBytes = 64 << 30 }, verdictOK, "limit of the control group", "", true},
		{"swap", func(_ *testing.T, p *patient, _ registry) { p.machine.Memory.SwapUsedBytes = 8 << 30 }, verdictWarn, "8.0 GiB used of 8.0 GiB", "short of memory", true},
		{"swap", func(_ *testing.T, p *patient, _ registry) { p.machine.Memory.SwapTotalBytes = 0 }, verdictOK, "none", "", true},
		{"native", func(_ *testing.T, _ *patient, r registry) {
			r[0].check = func(string) error { return errors.New("no library:\nmake") }
		}, verdictMissing, "no library:", "no local baseline", false},
		{"native", func(_ *testing.T, _ *patient, r registry) {
			r[0].check = func(string) error { return native.ErrLeftOut }
		}, verdictMissing, "built with CGO_ENABLED=0", "left out: only servers", false},
		{"llama-server", func(_ *testing.T, _ *patient, r registry) {
			r[1].check = func(string) error { return errors.New("no program llama-server: run `make engine`") }
		}, verdictMissing, "make engine", "compare has no served side", false},
		{"vocabularies", func(t *testing.T, p *patient, _ registry) { p.engineDir = t.TempDir() }, verdictMissing, "does not exist", "--weights", true},
		{"gpu", func(t *testing.T, p *patient, _ registry) { p.root = t.TempDir() }, verdictMissing, "no NVIDIA GPU", "not measured", true},
		{"gpu", func(t *testing.T, p *patient, _ registry) {
			if err := os.Remove(filepath.Join(p.engineDir, "libggml-cuda.so")); err != nil {
				t.Fatal(err)
			}
		}, verdictWarn, "NVIDIA H200; the engine directory has no CUDA plugin", "although there is a GPU", true},
		{"hub", func(*testing.T, *patient, registry) {}, verdictOK, ": no model; others can be downloaded", "", true},
		{"hub", func(t *testing.T, _ *patient, _ registry) { t.Setenv("HF_HUB_OFFLINE", "1") }, verdictWarn, "HF_HUB_OFFLINE forbids downloads", "--weights synthetic", true},
		{"hub", func(t *testing.T, _ *patient, _ registry) { t.Setenv("HF_ENDPOINT", "http://hub.invalid") }, verdictMissing, ": no model; the name hub.invalid cannot be resolved", "--weights synthetic", true},
		{"converter", func(t *testing.T, p *patient, _ registry) {
			if err := os.Remove(filepath.Join(p.engineDir, "llama-quantize")); err != nil {
				t.Fatal(err)
			}
		}, verdictMissing, "has no llama-quantize: build it anew (make engine), or give a GGUF file with --gguf PATH", "cannot be converted", true},
		{"converter", func(t *testing.T, _ *patient, _ registry) {
			t.Setenv(pythonVariable(convertEnv), "/nonexistent")
		}, verdictMissing, "environment /nonexistent is not there: make it (scripts/python-env.sh convert)", "cannot be converted", true},
		{"llama-bench", func(t *testing.T, p *patient, _ registry) {
			if err := os.Remove(filepath.Join(p.engineDir, "llama-bench")); err != nil {
				t.Fatal(err)
			}
		}, verdictMissing, "no program llama-bench", "compare does not need it", true},
		{"cache", func(_ *testing.T, p *patient, _ registry) { p.cacheDir = "" }, verdictMissing, "neither XDG_CACHE_HOME nor HOME", "have no place", false},
		{"cache", func(_ *testing.T, p *patient, _ registry) { p.cacheDir = "/proc/nothing/cache" }, verdictMissing, "", "XDG_CACHE_HOME", false},
		{"cache", func(_ *testing.T, p *patient, _ registry) {
			p.cacheDir = filepath.Join(p.cacheDir, "not", "made", "yet")
		}, verdictOK, "free", "", true},
		{"runs", func(_ *testing.T, p *patient, _ registry) { p.outDir = "/proc" }, verdictWarn, "", "--out elsewhere", true},
	} {
		t.Run(tt.check+" "+tt.cost, func(t *testing.T) {
			p, known := healthyPatient(t), healthyRegistry()
			if r := diagnose(p, doctorChecks(known)); !r.Ready {
				t.Fatalf("the healthy machine is not ready:\n%s", renderDoctor(r, false))
			}
			tt.change(t, &p, known)
			r := diagnose(p, doctorChecks(known))
			if r.Ready != tt.ready {
				t.Errorf("ready %v, want %v", r.Ready, tt.ready)
			}
			for _, c := range r.Checks {
				if c.Name != tt.check {
					continue
				}
				if c.Verdict != tt.verdict || !strings.Contains(c.Found, tt.found) || !strings.Contains(c.Cost, tt.cost) {
					t.Errorf("got %s, %q, %q; want %s, %q, %q", c.Verdict, c.Found, c.Cost, tt.verdict, tt.found, tt.cost)
				}
				return
			}
			t.Errorf("there is no check %q", tt.check)
		})
	}
}

// Whatever is not well says what it costs.
func TestDoctorNamesTheCostOfEverythingMissing(t *testing.T) {
	t.Setenv("HF_HUB_OFFLINE", "1")
	broken := func(string) error { return errors.New("broken") }
	known := registry{{name: "native", check: broken}, {name: "llama-server", check: broken}}
	p := patient{engineDir: "/nonexistent", outDir: "/proc", root: "/nonexistent", machine: telemetry.Machine{Cores: 1, LoadBefore: -1, Governor: "powersave", Throttled: 1}}
	r := diagnose(p, doctorChecks(known))
	for _, c := range r.Checks {
		if c.Verdict != verdictOK && (c.Cost == "" || c.Found == "") {
			t.Errorf("%s is %s: found %q, cost %q", c.Name, c.Verdict, c.Found, c.Cost)
		}
		if strings.Contains(c.Found+c.Cost, "\n") {
			t.Errorf("%s has more than one line: %q %q", c.Name, c.Found, c.Cost)
		}
	}
	if r.Ready {
		t.Error("ready")
	}
	text := renderDoctor(r, false)
	if !strings.Contains(text, "Not ready for compare: memory, native, llama-server, cache missing") {
		t.Errorf("the last line does not sum up:\n%s", text)
	}
	for line := range strings.Lines(text) {
		if n := len([]rune(strings.TrimRight(line, "\n"))); n > doctorWidth {
			t.Errorf("a line of %d columns: %s", n, line)
		}
	}
	if strings.Contains(text, "\x1b") {
		t.Error("colour where none was asked for")
	}
	if c := renderDoctor(r, true); !strings.Contains(c, "\x1b[31mmissing") || !strings.Contains(c, "\x1b[33mwarn") {
		t.Errorf("no colour where it was asked for:\n%q", c)
	}
}

func TestDoctorDescribesEachGPU(t *testing.T) {
	h200 := nvml.Device{
		Subject: "gpu0", Name: "NVIDIA H200", UUID: "GPU-0", MemoryBytes: 141 << 30, PowerLimitW: 700,
		MIG: "off", Persistence: "on", ECC: "on", Processes: "visible",
	}
	other := h200
	other.Index, other.Subject, other.UUID, other.Persistence, other.Processes = 1, "gpu1", "GPU-1", "off", "not available: memory by process: this user may not ask"
	cut := h200
	cut.Index, cut.Subject, cut.UUID, cut.MIG = 2, "gpu2.0", "MIG-2", "part of GPU 2"
	g := gpuSet{
		lib: &nvml.Library{}, system: nvml.System{Driver: "580.1", CUDA: "13.0", NVML: "13.580.1"},
		all: []nvml.Device{h200, other, cut}, used: []nvml.Device{other, cut}, notes: []string{"GPU 3: not available: the GPU is lost"},
	}
	for i, want := range []diagnosis{
		{Name: "driver library", Verdict: verdictWarn, Found: "driver 580.1, CUDA up to 13.0, NVML 13.580.1", Cost: "GPU 3: not available"},
		{Name: "gpu0", Verdict: verdictOK, Found: "GPU 0: NVIDIA H200, 141.0 GiB, 700 W, MIG off, persistence on, ECC on, processes visible, not used by CUDA programs started here"},
		{Name: "gpu1", Verdict: verdictWarn, Found: "this user may not ask, CUDA0", Cost: "nvidia-smi -pm 1; memory is that of the whole device"},
		{Name: "gpu2.0", Verdict: verdictWarn, Found: "MIG part of GPU 2", Cost: "those of the whole board"},
	} {
		got := diagnose(patient{}, gpuChecks(g)).Checks[i]
		if got.Group != "gpu" || got.Name != want.Name || got.Verdict != want.Verdict || !strings.Contains(got.Found, want.Found) || !strings.Contains(got.Cost, want.Cost) {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
	none := diagnose(patient{}, gpuChecks(gpuSet{why: "not available: built without cgo"})).Checks
	if len(none) != 1 || none[0].Verdict != verdictMissing || none[0].Found != "not available: built without cgo" || none[0].Cost == "" {
		t.Errorf("without the library: %+v", none)
	}
}

func TestDoctorIsPlainWhenPiped(t *testing.T) {
	if wantsColor(&bytes.Buffer{}) {
		t.Error("colour into a buffer")
	}
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if wantsColor(f) {
		t.Error("colour into a file")
	}
}

func TestDoctorCommand(t *testing.T) {
	dir := t.TempDir() // an engine directory without an engine
	t.Setenv("HF_HUB_OFFLINE", "1")
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	code, out, stderr := invoke(t, "doctor", "--engine-dir", dir, "--json")
	if code != exitError || stderr != "" {
		t.Errorf("code %d, %q", code, stderr)
	}
	var r doctorReport
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatalf("%v:\n%s", err, out)
	}
	if r.Ready || r.Machine.Cores < 1 || len(r.Checks) < 10 {
		t.Errorf("ready %v, %d cores, %d checks", r.Ready, r.Machine.Cores, len(r.Checks))
	}
	code, out, _ = invoke(t, "doctor", "--engine-dir", dir)
	if code != exitError || !strings.Contains(out, "Not ready for compare: ") || !strings.Contains(out, "missing  native") {
		t.Errorf("code %d:\n%s", code, out)
	}
	if code, _, _ = invoke(t, "doctor", "now"); code != exitUsage {
		t.Errorf("a stray word gives code %d", code)
	}
}
