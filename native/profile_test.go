//go:build cgo && linux

package native

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nativebench/nativebench/internal/bench"
)

// listening says that this process is the one of which a tool listens.
const listening = "NATIVEBENCH_TEST_NVTX"

// A tool that listens to NVTX sees a range for each request, and on the loop's
// thread chunks of prompts and decode steps, with sampling inside them.
func TestRangesOfAProfiler(t *testing.T) {
	model := tiny(t)
	if os.Getenv(listening) != "" {
		e, err := Open(context.Background(), Config{ModelPath: model, Slots: 2, Context: 256, PrefillChunk: 4, Threads: 1, Sampling: os.Getenv(listening)}, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer e.Close()
		generate(t, seat(t, e), request("one two three four five six seven", 3, true)) // 7 tokens
		return
	}
	dir := t.TempDir()
	tool := filepath.Join(dir, "tool.so")
	if text, err := exec.Command("cc", "-shared", "-fPIC", "-Wall", "-Werror", "-o", tool, "testdata/nvtx_tool.c").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	for _, sampling := range []string{"host", "device"} {
		out := filepath.Join(dir, sampling)
		cmd := exec.Command(os.Args[0], "-test.run=^TestRangesOfAProfiler$")
		cmd.Env = append(os.Environ(), listening+"="+sampling, "NVTX_INJECTION64_PATH="+tool, "NVTX_TOOL_OUT="+out)
		if text, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, text)
		}
		text, err := os.ReadFile(out)
		if err != nil {
			t.Fatalf("the tool was not told of anything: %v", err)
		}
		var ranges, open []string // of the loop's thread, nested ones as a path
		requests, ended, thread := 0, 0, ""
		warm, warmed := 0, false // ranges that are open of the warm-up, in Open's thread
		for line := range strings.Lines(strings.TrimSpace(string(text))) {
			by, what, _ := strings.Cut(strings.TrimSpace(line), " ")
			switch {
			case what == "push warm-up" && warm == 0 && !warmed:
				warm, warmed = 1, true
			case warm > 0 && what == "pop":
				warm--
			case warm > 0:
				warm++
			case what == "start request 1":
				requests++
			case what == "end 1":
				ended++
			case thread != "" && by != thread:
				t.Errorf("%s: %q on another thread", sampling, line)
			case what == "pop":
				open = open[:len(open)-1]
			default:
				thread = by
				open = append(open, strings.TrimPrefix(what, "push "))
				ranges = append(ranges, strings.Join(open, " > "))
			}
		}
		if warmed != (sampling == "device") || warm != 0 {
			t.Errorf("%s: warm-up: %v, %d of its ranges left open", sampling, warmed, warm)
		}
		const want = "prefill chunk, prefill chunk, prefill chunk > sampling, decode step, decode step > sampling, decode step, decode step > sampling"
		if got := strings.Join(ranges, ", "); got != want || len(open) != 0 || requests != 1 || ended != 1 {
			t.Errorf("%s: ranges %s\nwant %s; %d requests began, %d ended, %d ranges were left open", sampling, got, want, requests, ended, len(open))
		}
	}
}

// Without CUDA there is nothing to be captured, and the engine says so.
func TestProfileWithoutCUDA(t *testing.T) {
	for name, e := range map[string]bench.Profiled{"llama.cpp": openTiny(t, 1), "fake": openFake(t, "", 1)} {
		if err := e.StartProfile(context.Background()); err == nil || err.Error() != "native: no CUDA device computes here" {
			t.Errorf("%s: %v", name, err)
		}
	}
}
