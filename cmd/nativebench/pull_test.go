package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nativebench/nativebench/internal/hub/hubtest"
)

// hubOfGPT2 is a hub that has a small file as GPT-2's weights; the environment
// points to it and to an empty cache.
func hubOfGPT2(t *testing.T) *hubtest.Hub {
	t.Helper()
	h := hubtest.New(t)
	h.Add("openai-community/gpt2", &hubtest.Repo{Commit: strings.Repeat("ab", 20), Files: map[string][]byte{
		"config.json": []byte("{}"), "tokenizer.json": []byte(`{"a":1}`), "README.md": []byte("#"),
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
