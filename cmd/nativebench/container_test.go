package main

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/nativebench/nativebench/internal/synth"
)

// The test binary plays what runs in a container when these variables say so.
const (
	containerPort  = "NATIVEBENCH_TEST_CONTAINER_PORT"
	containerModel = "NATIVEBENCH_TEST_CONTAINER_MODEL"
)

// pretendGPU makes that file the device of a GPU.
func pretendGPU(t *testing.T, file string) {
	was := gpuDevices
	gpuDevices = file
	t.Cleanup(func() { gpuDevices = was })
}

func serveContainer(port string) {
	fmt.Println("serving in a container")
	fmt.Println(http.ListenAndServe(net.JoinHostPort("127.0.0.1", port), openAIHandler("", func(map[string]any) {})))
	os.Exit(1)
}

// fakeDocker puts a docker on the path that notes how it is called and runs the
// test binary for "run".
func fakeDocker(t *testing.T) (dir string, calls func() []string) {
	dir = t.TempDir()
	pretendGPU(t, filepath.Join(dir, "docker"))
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	script := fmt.Sprintf(`#!/bin/sh
cd %[1]s
echo "$*" >>calls
case $1 in
version) echo 0.0-test ;;
image) [ -e image ] ;;
pull)
	echo "layer 1 of 1: Pull complete"
	if [ -e nopull ]; then echo "manifest unknown" >&2; exit 1; fi
	touch image ;;
inspect) cat pid ;;
rm)
	if [ -e stuck ]; then echo "Cannot connect to the daemon" >&2; exit 1; fi
	if [ ! -e container ]; then echo "Error response from daemon: No such container: $3" >&2; exit 1; fi
	rm container ;;
run)
	case "$*" in *text-generation-inference*) echo "this is no TGI" >&2; exit 1 ;; esac
	for word in "$@"; do
		case $word in 127.0.0.1:*) port=${word##*:} ;; esac
	done
	echo $$ >pid
	touch container
	%[2]s=$port %[3]s=gpt2 exec %[4]s ;;
esac
`, dir, containerPort, containerModel, self)
	if err := os.WriteFile(filepath.Join(dir, "docker"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+string(filepath.ListSeparator)+os.Getenv("PATH"))
	return dir, func() []string {
		b, err := os.ReadFile(filepath.Join(dir, "calls"))
		if err != nil {
			t.Fatal(err)
		}
		return strings.Split(strings.TrimSpace(string(b)), "\n")
	}
}

// A server in a container is started from its pinned image, measured by its own
// process, and removed. (That a real engine takes the command line is not shown
// here.)
func TestContainer(t *testing.T) {
	engine := os.Getenv("NATIVEBENCH_ENGINE_DIR")
	if engine == "" {
		t.Skip("NATIVEBENCH_ENGINE_DIR is not set: no vocabulary for a model")
	}
	weights, err := synth.Write(t.Context(), synth.Spec{Model: "gpt2", Seed: 1, DType: "f16", Layers: 2, Width: 128, VocabDir: filepath.Join(engine, "vocab")}, t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	docker, calls := fakeDocker(t)
	out := filepath.Join(t.TempDir(), "run")
	flags := []string{"--launch", "docker", "--weights", weights.GGUF, "--hf-dir", weights.HFDir}
	code, _, stderr := invoke(t, small("fake,vllm", out, flags...)...)
	if code != exitOK {
		t.Fatalf("status %d: %s", code, stderr)
	}
	run := readRun(t, out)
	for _, b := range run.Manifest.Backends {
		if b.Backend != "vllm" {
			continue
		}
		line := strings.Join(b.Command, " ")
		for _, want := range []string{" run --rm --name nativebench-vllm-", " --volume " + weights.HFDir + ":/model:ro ", " vllm/vllm-openai:", " --gpus device=0 ", " --model /model ", " --host 0.0.0.0 ", " --served-model-name gpt2"} {
			if !strings.Contains(line, want) {
				t.Errorf("the command line lacks %q: %s", want, line)
			}
		}
		if b.StartNS <= 0 {
			t.Error("no time from start to ready")
		}
	}
	for _, c := range run.Cells() {
		if c.Backend == "vllm" && (!c.Done() || c.Event.Host.PeakRSS <= 0) {
			t.Errorf("cell %s: %s, %d bytes: the container's process was not measured", c.ID, c.State, c.Event.Host.PeakRSS)
		}
	}
	all := calls()
	if last := all[len(all)-1]; !strings.HasPrefix(last, "rm --force nativebench-vllm-") {
		t.Errorf("the last call was %q, want the container's removal", last)
	}
	if _, err := os.Stat(filepath.Join(docker, "container")); err == nil {
		t.Error("the container is left")
	}
	if pid, err := strconv.Atoi(strings.TrimSpace(readFile(t, filepath.Join(docker, "pid")))); err != nil || running(pid) {
		t.Errorf("process %d of the container is left, %v", pid, err)
	}
	at := func(word string) int {
		return slices.IndexFunc(all, func(c string) bool { return strings.HasPrefix(c, word) })
	}
	if !(at("image inspect vllm/") < at("pull vllm/") && at("pull vllm/") < at("run ")) || at("image inspect vllm/") < 0 {
		t.Errorf("the image was not fetched before the start, whose time is measured: %q", all)
	}
	if log := readFile(t, filepath.Join(out, "logs", "vllm.gpt2.log")); !strings.Contains(log, "Pull complete") {
		t.Errorf("the log says nothing of it: %s", log)
	}

	// The image is here now; a container that cannot be removed is told.
	before := len(all)
	touch(t, filepath.Join(docker, "stuck"))
	code, _, stderr = invoke(t, small("fake,vllm", filepath.Join(t.TempDir(), "run"), flags...)...)
	if code != exitOK || !strings.Contains(stderr, "warning: stopping vllm: ") || !strings.Contains(stderr, "Cannot connect to the daemon") {
		t.Errorf("a container that cannot be removed: status %d: %s", code, stderr)
	}
	if again := calls()[before:]; slices.ContainsFunc(again, func(c string) bool { return strings.HasPrefix(c, "pull") }) {
		t.Errorf("the image was fetched again: %q", again)
	}

	if code, _, stderr := invoke(t, small("fake,vllm", filepath.Join(t.TempDir(), "run"), append(flags, "--gpu-layers", "0")...)...); code != exitUsage || !strings.Contains(stderr, "--gpu-layers 0 forbids it") {
		t.Errorf("an image that needs a GPU without one: status %d: %s", code, stderr)
	}

	// TGI gets one GPU, and no type that its launcher refuses.
	code, _, stderr = invoke(t, small("fake,tgi", filepath.Join(t.TempDir(), "run"), flags...)...)
	line := ""
	for _, c := range calls() {
		if strings.HasPrefix(c, "run ") && strings.Contains(c, "text-generation-inference") {
			line = c
		}
	}
	if code != exitCellsFailed || !strings.Contains(line, " --num-shard 1") || !strings.Contains(line, " --gpus device=0 ") || strings.Contains(line, "float32") {
		t.Errorf("status %d: %s\n%q", code, stderr, line)
	}

	// An image that cannot be had.
	touch(t, filepath.Join(docker, "nopull"))
	if err := os.Remove(filepath.Join(docker, "image")); err != nil {
		t.Fatal(err)
	}
	code, _, stderr = invoke(t, small("fake,vllm", filepath.Join(t.TempDir(), "run"), flags...)...)
	if code != exitCellsFailed || !strings.Contains(stderr, "docker pull vllm/") || !strings.Contains(stderr, "manifest unknown") {
		t.Errorf("an image that cannot be had: status %d: %s", code, stderr)
	}
}

// What must be visible inside for a model to be whole.
func TestMountOf(t *testing.T) {
	dir := t.TempDir()
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		t.Fatal(err)
	}
	repo := filepath.Join(dir, "models--a--b")
	snapshot := filepath.Join(repo, "snapshots", "c0ffee")
	for _, d := range []string{snapshot, filepath.Join(repo, "blobs"), filepath.Join(dir, "plain"), filepath.Join(dir, "astray"), filepath.Join(dir, "absolute")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	touch(t, filepath.Join(repo, "blobs", "x"))
	touch(t, filepath.Join(dir, "plain", "config.json"))
	for link, to := range map[string]string{
		filepath.Join(snapshot, "config.json"):           "../../blobs/x",
		filepath.Join(dir, "plain", "model.safetensors"): "config.json",
		filepath.Join(dir, "astray", "config.json"):      "../plain/config.json",
		filepath.Join(dir, "absolute", "config.json"):    filepath.Join(repo, "blobs", "x"),
		filepath.Join(dir, "short"):                      snapshot,
	} {
		if err := os.Symlink(to, link); err != nil {
			t.Fatal(err)
		}
	}
	for given, want := range map[string][2]string{
		snapshot:                    {repo, "snapshots/c0ffee"},
		filepath.Join(dir, "short"): {repo, "snapshots/c0ffee"},
		filepath.Join(dir, "plain"): {filepath.Join(dir, "plain"), "."},
	} {
		if outside, below, err := mountOf(given); err != nil || outside != want[0] || below != want[1] {
			t.Errorf("%s: %s, %s, %v; want %q", given, outside, below, err, want)
		}
	}
	for _, bad := range []string{"astray", "absolute"} {
		if _, _, err := mountOf(filepath.Join(dir, bad)); err == nil || !strings.Contains(err.Error(), "a container would not see") {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

func touch(t *testing.T, path string) {
	t.Helper()
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
