package main

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
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

func serveContainer(port string) {
	fmt.Println("serving in a container")
	fmt.Println(http.ListenAndServe(net.JoinHostPort("127.0.0.1", port), openAIHandler("", func(map[string]any) {})))
	os.Exit(1)
}

// fakeDocker puts a docker on the path that notes how it is called and runs the
// test binary for "run".
func fakeDocker(t *testing.T) (calls func() []string) {
	dir := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	script := fmt.Sprintf(`#!/bin/sh
echo "$*" >>%[1]s/calls
case $1 in
version) echo 0.0-test ;;
inspect) cat %[1]s/pid ;;
rm) echo "Error response from daemon: No such container: $3" >&2; exit 1 ;;
run)
	for word in "$@"; do
		case $word in 127.0.0.1:*) port=${word##*:} ;; esac
	done
	echo $$ >%[1]s/pid
	%[2]s=$port %[3]s=gpt2 exec %[4]s ;;
esac
`, dir, containerPort, containerModel, self)
	if err := os.WriteFile(filepath.Join(dir, "docker"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+string(filepath.ListSeparator)+os.Getenv("PATH"))
	return func() []string {
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
	calls := fakeDocker(t)
	out := filepath.Join(t.TempDir(), "run")
	code, _, stderr := invoke(t, small("fake,vllm", out, "--launch", "docker", "--weights", weights.GGUF, "--hf-dir", weights.HFDir)...)
	if code != exitOK {
		t.Fatalf("status %d: %s", code, stderr)
	}
	run := readRun(t, out)
	for _, b := range run.Manifest.Backends {
		if b.Backend != "vllm" {
			continue
		}
		line := strings.Join(b.Command, " ")
		for _, want := range []string{" run --rm --name nativebench-vllm-", " --volume " + weights.HFDir + ":/model:ro ", " vllm/vllm-openai:", " --model /model ", " --host 0.0.0.0 ", " --served-model-name gpt2"} {
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
	if pid, err := strconv.Atoi(strings.TrimSpace(readFile(t, filepath.Join(filepath.Dir(dockerPath(t)), "pid")))); err != nil || running(pid) {
		t.Errorf("process %d of the container is left, %v", pid, err)
	}
}

func dockerPath(t *testing.T) string {
	t.Helper()
	dir, _, _ := strings.Cut(os.Getenv("PATH"), string(filepath.ListSeparator))
	return filepath.Join(dir, "docker")
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
