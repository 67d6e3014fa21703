package main

import (
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/nativebench/nativebench/internal/hub"
	"github.com/nativebench/nativebench/internal/hub/hubtest"
)

// hubOfGPT2 is a hub that has a small file as GPT-2's weights; the environment
// points to it and to an empty cache.
func hubOfGPT2(t *testing.T) *hubtest.Hub {
	t.Helper()
	h := hubtest.New(t)
	h.Add("openai-community/gpt2", &hubtest.Repo{Commit: strings.Repeat("ab", 20), Files: map[string][]byte{
		"config.json": []byte(`{"model_type":"gpt2","n_layer":12,"n_embd":768,"n_head":12,"n_positions":1024,"vocab_size":50257}`), "tokenizer.json": []byte(`{"a":1}`), "README.md": []byte("#"),
		"model.safetensors": hubtest.Safetensors(20<<20, 1), "pytorch_model.bin": make([]byte, 100),
	}})
	for _, v := range []string{"HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"} {
		t.Setenv(v, "")
	}
	t.Setenv("HF_HOME", t.TempDir())
	t.Setenv("HF_ENDPOINT", h.URL)
	return h
}

func TestModelsPull(t *testing.T) {
	h := hubOfGPT2(t)
	dir := filepath.Join(os.Getenv("HF_HOME"), "hub/models--openai-community--gpt2/snapshots", strings.Repeat("ab", 20))

	code, stdout, stderr := invoke(t, "models", "pull", "gpt2", "--dry-run")
	if code != exitOK || !strings.Contains(stdout, "3 files, 20 MiB to fetch into") || stderr != "" {
		t.Fatalf("dry run: status %d\n%s%s", code, stdout, stderr)
	}
	if _, err := os.Stat(filepath.Join(os.Getenv("HF_HOME"), "hub")); err == nil {
		t.Error("the dry run wrote into the cache")
	}
	h.Forget()
	code, stdout, stderr = invoke(t, "models", "pull", "gpt2")
	if code != exitOK || stderr != "" || !strings.HasSuffix(stdout, "\n"+dir+"\n") || !strings.Contains(stdout, "revision main: commit abab") {
		t.Fatalf("status %d\n%s%s", code, stdout, stderr)
	}
	h.Forget()
	code, stdout, stderr = invoke(t, "models", "pull", "gpt2")
	if code != exitOK || !strings.Contains(stdout, "all in the cache") {
		t.Fatalf("again: status %d\n%s%s", code, stdout, stderr)
	}
	if seen := h.Requests(); len(seen) != 1 {
		t.Errorf("again: asked for %v", seen)
	}
	weights := filepath.Join(dir, "model.safetensors")
	content, err := os.ReadFile(weights)
	if err != nil {
		t.Fatal(err)
	}
	if code, stdout, _ := invoke(t, "models", "pull", "gpt2", "--verify"); code != exitOK || !strings.Contains(stdout, "none of the 3 files differs") {
		t.Errorf("verify: status %d\n%s", code, stdout)
	}
	content[9<<20] ^= 1
	if err := os.WriteFile(weights, content, 0o666); err != nil {
		t.Fatal(err)
	}
	if code, _, stderr := invoke(t, "models", "pull", "gpt2", "--verify"); code != exitError || !strings.Contains(stderr, "model.safetensors is damaged") {
		t.Errorf("verify damage: status %d\n%s", code, stderr)
	}
	for _, args := range [][]string{{"models"}, {"models", "show", "gpt2"}} {
		if _, stdout, _ := invoke(t, args...); !strings.Contains(stdout, "20 MiB, abababababab") {
			t.Errorf("%v does not show what is in the cache:\n%s", args, stdout)
		}
	}
}

func TestModelsPullSaysWhatWentWrong(t *testing.T) {
	hubOfGPT2(t)
	code, stdout, stderr := invoke(t, "models", "pull", "gpt2", "--revision", "v9")
	if code != exitError || stdout != "" || strings.Count(stderr, "\n") != 1 || !strings.Contains(stderr, `openai-community/gpt2: the repository has no revision "v9"`) {
		t.Errorf("status %d: %s%s", code, stdout, stderr)
	}
	t.Setenv("HF_HUB_OFFLINE", "1")
	code, _, stderr = invoke(t, "models", "pull", "gpt2")
	if code != exitUsage || !strings.Contains(stderr, "HF_HUB_OFFLINE is set") {
		t.Errorf("offline: status %d: %s", code, stderr)
	}
}

func TestRateIsOfTheLastSeconds(t *testing.T) {
	var r rate
	now := time.Unix(0, 0)
	if r.add(now, 0); r.perSecond() != 0 {
		t.Error("a rate out of one point")
	}
	for range 20 { // 100 a second, then 50
		now = now.Add(time.Second)
		r.add(now, r.n[len(r.n)-1]+100)
	}
	if got := r.perSecond(); got != 100 {
		t.Errorf("%v a second, want 100", got)
	}
	for range 20 {
		now = now.Add(time.Second)
		r.add(now, r.n[len(r.n)-1]+50)
	}
	if got := r.perSecond(); got != 50 {
		t.Errorf("%v a second, want 50", got)
	}
}

func TestModelsPullOfAMovedRepository(t *testing.T) {
	h := hubOfGPT2(t)
	h.Move("microsoft/phi-2", "openai-community/gpt2")
	code, stdout, stderr := invoke(t, "models", "pull", "phi-2", "--revision", strings.Repeat("ab", 20))
	if code != exitOK || !strings.Contains(stdout, "\nthe hub calls it openai-community/gpt2 now; the cache keeps the name that was asked for\n") {
		t.Fatalf("status %d\n%s%s", code, stdout, stderr)
	}
	// A commit alone makes no branch, and is listed all the same.
	if _, stdout, _ := invoke(t, "models"); strings.Count(stdout, "20 MiB, abababababab") != 1 {
		t.Errorf("models:\n%s", stdout)
	}
}

func TestModelsPullStopsAndGoesOn(t *testing.T) {
	h := hubOfGPT2(t)
	var arrived atomic.Bool
	h.Fault(true, "GET", -1, func(_ http.ResponseWriter, r *http.Request, _ http.Handler) {
		arrived.Store(true)
		<-r.Context().Done()
	})
	cmd := program(t, nil, "models", "pull", "gpt2")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	await(t, "a request for the weights", arrived.Load)
	cmd.Process.Signal(syscall.SIGINT)
	cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != exitInterrupted || !strings.Contains(stderr.String(), "the same command goes on there") {
		t.Fatalf("status %d: %s", code, stderr.String())
	}
	h.Forget()
	if code, stdout, stderr := invoke(t, "models", "pull", "gpt2"); code != exitOK {
		t.Errorf("status %d\n%s%s", code, stdout, stderr)
	}
}

func TestPullProgress(t *testing.T) {
	var out strings.Builder
	show := &liveLine{out: &out, live: true, width: 80}
	tell := pullProgress(show)
	for i := range int64(4) {
		show.drawnAt = time.Time{} // due again
		tell(hub.State{Done: 1<<30 + i*100<<20, Total: 13 << 30, Fetched: i * 100 << 20, Note: map[int64]string{2: "rate-limited: trying again in 5s"}[i]})
		time.Sleep(time.Millisecond) // for a rate, whatever it is
	}
	for _, want := range []string{`1\.0 GiB of 13\.0 GiB\r`, `1\.3 GiB of 13\.0 GiB · [\d.]+ [MG]iB/s · about [\dmhs.]+ left$`, `\x1b\[Krate-limited: trying again in 5s\n`} {
		if !regexp.MustCompile(want).MatchString(out.String()) {
			t.Errorf("no %s in %q", want, out.String())
		}
	}
}
