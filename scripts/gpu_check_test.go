package scripts

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// gpuCheck runs gpu-check.sh with programs of a test in place of nativebench's:
// this machine may have no GPU. env has the last word.
func gpuCheck(t *testing.T, programs map[string]string, env ...string) (status int, text string) {
	t.Helper()
	if _, err := os.ReadFile("gpu-check.sh"); err != nil { // so that go test knows what its result hangs on
		t.Fatal(err)
	}
	dir := t.TempDir()
	engine, device := filepath.Join(dir, "engine"), filepath.Join(dir, "nvidia0")
	if err := os.Mkdir(engine, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{device, filepath.Join(engine, "libnb.so"), filepath.Join(engine, "libggml-cuda.so")} {
		if err := os.WriteFile(path, []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	bin := filepath.Join(dir, "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, body := range programs {
		path := filepath.Join(bin, name)
		if name == "nb-check" {
			path = filepath.Join(engine, name)
		}
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"+body), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("bash", "gpu-check.sh")
	cmd.Env = append(os.Environ(), "GPU_DEVICES="+device, "BIN="+bin, "NATIVEBENCH_ENGINE_DIR="+engine, "OUT="+filepath.Join(dir, "out"), "MODELS=gpt2", "TIME_BUDGET=3600")
	cmd.Env = append(cmd.Env, env...)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode(), string(out)
	}
	if err != nil {
		t.Fatal(err)
	}
	return 0, string(out)
}

// healthy are programs that find everything as it should be.
func healthy() map[string]string {
	return map[string]string{
		"nb-check":         "echo 'nb-check: ok: 1000 choices agree'\n",
		"nvml.test":        "echo '--- PASS: TestRealGPU'; echo '    gpu0: 375 rounds in 3 s, 1 late, 0.05 s of CPU'\n",
		"nativebench.test": "echo '--- PASS: TestGPUMemoryComesBack'; echo '    in use before: 1.0 MiB; loaded, at most: 2.0'\n",
		"speed": `echo 'decode, no sampler / llama-bench tg128                        1700.0 /    1650.0 tok/s   ratio 1.030  [1.010, 1.050] of 5 pairs   target 1.00'
echo 'decode of 8 / llama-batched-bench 8                           9000.0 /    9100.0 tok/s   ratio 0.989  [0.970, 1.010] of 5 pairs   target 0.98'
echo 'stamps of tokens after the device'"'"'s end of the step: p50 4.0 µs, p99 9.0, max 20.0, each ±1.0 (256 steps)'
echo 'memory: copies at 4300 GB/s, so 0.33 GB of weights a token allow 13030.3 tok/s: llama-bench reaches 0.13 of it, we 0.13'
`,
		"nativebench": `case $1 in
--version) echo nativebench version test ;;
compare)
    for a; do [ "$last" = --out ] && mkdir -p "$a"; [ "$a" = --help ] && exit 0; last=$a; done
    echo '[1/1] x  1s  8 requests' ;;
report)
    for a; do [ "$last" = -o ] && file=$a; last=$a; done
    cat >"$file" <<'END'
  "backend": "native",
  "device": "CUDA0 (NVIDIA H100)",
  "period_seconds": 0.0081,
  "period_seconds": 0.0084,
  "sampler_cores": 0.05,
  "energy_joules": 120.5,
  "energy_source": "counter",
  "mean_watts": 300,
  "sm_mhz": 1980,
  "max_celsius": 48,
  "throttled": {
    "power cap": 0.25
  },
  "remainder_of_peak": -0.011,
  "device_released": 1000,
END
    ;;
models) for a; do [ "$last" = -o ] && mkdir -p "$a" && echo x >"$a/m.gguf"; last=$a; done ;;
bench-all)
    for a; do [ "$last" = --out ] && out=$a; [ "$a" = --plan ] && plan=1; last=$a; done
    if [ -n "$plan" ]; then
        echo 'gpt2-tasks   native llama-server   8   80   1m'
        echo '  vllm: no program vllm: run scripts/python-env.sh vllm'
    else
        mkdir -p "$out/report" && echo x >"$out/report/report.md"
    fi ;;
trace) for a; do [ "$a" = --help ] && exit 0; [ "$last" = -o ] && echo x >"$a"; last=$a; done ;;
*) exit 2 ;;
esac
`,
	}
}

// Without a GPU it says so in one line and ends with status 2.
func TestGPUCheckWithoutAGPU(t *testing.T) {
	status, text := gpuCheck(t, healthy(), "GPU_DEVICES="+filepath.Join(t.TempDir(), "nvidia[0-9]*"))
	if status != 2 || strings.Count(text, "\n") != 1 || !strings.Contains(text, "no NVIDIA GPU here") {
		t.Errorf("status %d: %s", status, text)
	}
	status, text = gpuCheck(t, nil)
	if status != 2 || strings.Count(text, "\n") != 1 || !strings.Contains(text, "--build") {
		t.Errorf("without its programs: status %d: %s", status, text)
	}
	for _, env := range []string{"PAIRS=2", "TIME_BUDGET=soon", "NATIVEBENCH_ENGINE_DIR=/none"} {
		if status, text := gpuCheck(t, healthy(), env); status != 2 || strings.Count(text, "\n") != 1 {
			t.Errorf("%s: status %d: %s", env, status, text)
		}
	}
}

// A part that runs out of time leaves nothing behind, nor what its programs have
// started in sessions of their own.
func TestGPUCheckLeavesNothingBehind(t *testing.T) {
	text, err := os.ReadFile("gpu-check.sh")
	if err != nil {
		t.Fatal(err)
	}
	script := "set -uo pipefail\n"
	for _, name := range []string{"left", "pause", "descendants", "interrupted", "end_at", "logged"} {
		_, body, found := strings.Cut(string(text), "\n"+name+"() {")
		if !found {
			t.Fatalf("no function %s", name)
		}
		line, rest, _ := strings.Cut(body, "\n")
		if body = line; !strings.HasSuffix(line, "}") {
			rest, _, _ = strings.Cut(rest, "\n}\n")
			body = "\n" + rest + "\n}"
		}
		script += name + "() {" + body + "\n"
	}
	for _, tc := range []struct {
		name, command, budget string
		status                string
		killed                int
	}{
		{"in time", "echo fine; exit 3", "60", "3", 0},
		// As a profiler and its cell: the first ends when told, the others do not.
		{"late", "trap 'exit 0' TERM; setsid sh -c 'trap \"\" TERM; echo $$ >>$0.pids; sleep 600 & echo $! >>$0.pids; wait' $0 & echo $$ >>$0.pids; wait", "1", "124", 3},
		{"deaf", "trap '' TERM; echo $$ >>$0.pids; sleep 600 & echo $! >>$0.pids; while :; do wait; done", "1", "124", 2},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			file := filepath.Join(dir, "program")
			cmd := exec.Command("bash", "-c", script+`logged log sh -c "$1" "$2"; echo "status $?"`, "bash", tc.command, file)
			cmd.Env = append(os.Environ(), "out="+dir, "budget="+tc.budget, "GRACE=2")
			out, err := cmd.CombinedOutput()
			if err != nil || string(out) != "status "+tc.status+"\n" {
				t.Errorf("%v: %s, want status %s", err, out, tc.status)
			}
			pids, _ := os.ReadFile(file + ".pids")
			if n := len(strings.Fields(string(pids))); n != tc.killed {
				t.Errorf("%d processes said who they are, want %d", n, tc.killed)
			}
			for _, pid := range strings.Fields(string(pids)) {
				for until := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) { // it was killed, but dies when the kernel comes to it
					stat, err := os.ReadFile("/proc/" + pid + "/stat")
					if err != nil || strings.Contains(string(stat), ") Z ") {
						break
					}
					if time.Now().After(until) {
						t.Errorf("process %s lives on", pid)
						exec.Command("kill", "-KILL", pid).Run()
						break
					}
				}
			}
		})
	}
}

func TestGPUCheck(t *testing.T) {
	worse := func(name, old, with string) map[string]string {
		p := healthy()
		if !strings.Contains(p[name], old) {
			t.Fatalf("%s does not print %q", name, old)
		}
		p[name] = strings.ReplaceAll(p[name], old, with)
		return p
	}
	for _, tc := range []struct {
		name     string
		programs map[string]string
		env      string
		status   int
		says     []string
	}{
		{"all well", healthy(), "", 0, []string{
			"PASS  1.1   CUDA plugin", "PASS  1.2   sampling on the GPU against the CPU's, by distribution: nb-check: ok: 1000 choices",
			"PASS  1.3   whole model on the GPU: \"CUDA0", "PASS  1.4   gpt2: decode, no sampler / llama-bench tg128: ratio 1.030, target 1.00 ([1.010, 1.050] of 5 pairs",
			"PASS  1.4   gpt2: stamps of tokens after the device's end of the step: p50 4.0 µs", "PASS  1.4   gpt2: memory: copies at 4300 GB/s",
			"PASS  2.1   VRAM ledger: remainder: 0.011 of the peak", "PASS  2.2   sampling period of GPU memory: 0.0084 s", "PASS  2.5", "375 rounds",
			"PASS  3.2   energy: 120.5 J", "by the counter", "PASS  3.5   not slowed down by heat or hardware: reasons that the GPU gave: power cap",
			"PASS  4.1   llama-server beside native", "SKIP  4.2   vllm beside native: vllm: no program", "SKIP  4.3   tgi beside native: not found here", "PASS  5.1", "SKIP  5.2", "PASS  7.1", " 0 failed",
		}},
		{"slow", worse("speed", "ratio 1.030", "ratio 0.999"), "", 1, []string{"FAIL  1.4   gpt2: decode, no sampler / llama-bench tg128: ratio 0.999, target 1.00", "PASS  1.4   gpt2: decode of 8", " 1 failed"}},
		{"no stamps", worse("speed", "stamps", "stomps"), "", 1, []string{"FAIL  1.4   gpt2: stamps of tokens: speed did not print it"}},
		{"faster than its memory", worse("speed", "we 0.13", "we 99.52"), "", 1, []string{"FAIL  1.4   gpt2: memory: more than the memory's speed allows cannot be: copies at 4300 GB/s"}},
		{"one line of a part", healthy(), "PARTS=1.3 2.5", 0, []string{"SKIP  1.2   sampling on the GPU against the CPU's, by distribution: PARTS leaves it out", "PASS  1.3", "SKIP  1.4", "PASS  2.5", "SKIP  7.1"}},
		{"speed dies", worse("speed", "echo 'memory", "exit 7; echo 'memory"), "", 1, []string{"PASS  1.4   gpt2: decode", "FAIL  1.4   gpt2: speed against llama.cpp's own benchmarks: status 7"}},
		{"ledger", worse("nativebench", "-0.011", "-0.031"), "", 1, []string{"FAIL  2.1   VRAM ledger: remainder: 0.031 of the peak, more than 0.02"}},
		{"ledger untold", worse("nativebench", "remainder_of_peak", "x"), "", 1, []string{"FAIL  2.1   VRAM ledger: remainder: the run does not tell it"}},
		{"unknown is no number", worse("nativebench", "1980", "-1"), "", 1, []string{"FAIL  3.3   clock of the multiprocessors: the run does not tell it"}},
		{"coarse", worse("nativebench", "0.0084", "0.0184"), "", 1, []string{"FAIL  2.2   sampling period of GPU memory: 0.0184 s, more than 0.010"}},
		{"hot", worse("nativebench", "power cap", "hardware thermal slowdown"), "", 1, []string{"FAIL  3.5"}},
		{"on the CPU", worse("nativebench", "CUDA0 (", "CPU ("), "", 1, []string{"FAIL  1.3   whole model on the GPU"}},
		{"leaks", worse("nativebench.test", "PASS", "FAIL: leaks'; exit 1; echo '"), "", 1, []string{"FAIL  2.5   200 load and release cycles: status 1"}},
		{"leak check skipped", worse("nativebench.test", "PASS", "SKIP"), "", 0, []string{"SKIP  2.5"}},
		{"sampler", worse("nb-check", "ok", "FAILED'; exit 1; '"), "", 1, []string{"FAIL  1.2"}},
		{"no time", healthy(), "TIME_BUDGET=0", 0, []string{"SKIP  1.3   whole model on the GPU: TIME_BUDGET leaves", "SKIP  1.4", "SKIP  2.1   VRAM ledger: remainder: there is no run", "SKIP  7.1"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			status, text := gpuCheck(t, tc.programs, tc.env)
			if status != tc.status {
				t.Errorf("status %d, want %d", status, tc.status)
			}
			for _, want := range tc.says {
				if !strings.Contains(text, want) {
					t.Errorf("no %q", want)
				}
			}
			if t.Failed() {
				t.Log(text)
			}
		})
	}
}
