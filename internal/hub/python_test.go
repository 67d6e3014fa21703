package hub

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nativebench/nativebench/internal/hub/hubtest"
)

// environments are Python environments with huggingface_hub and Transformers:
// the present ones (2.4.0), and old ones (0.36.2).
func environments() []string { return []string{"transformers", "transformers-4.36"} }

// pythonCommand runs a script in a Python environment, with the hub's variables
// as they are when it is made.
func pythonCommand(t *testing.T, environment, script string, args ...string) *exec.Cmd {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Skip("no cache directory: ", err)
	}
	program := filepath.Join(cache, "nativebench/python", environment, "bin/python")
	if _, err := os.Stat(program); err != nil {
		t.Skip("no Python environment (scripts/python-env.sh makes it): ", err)
	}
	cmd := exec.Command(program, append([]string{"-c", script}, args...)...)
	for _, v := range os.Environ() {
		if _, value, _ := strings.Cut(v, "="); value != "" { // the client takes an empty variable for a set one
			cmd.Env = append(cmd.Env, v)
		}
	}
	cmd.Env = append(cmd.Env, "HF_HUB_DISABLE_TELEMETRY=1", "HF_HUB_DISABLE_PROGRESS_BARS=1", "HF_HUB_DISABLE_UPDATE_CHECK=1", "OMP_NUM_THREADS=1")
	return cmd
}

// python gives a function that runs a script and returns what it printed.
func python(t *testing.T, environment string) func(script string, args ...string) string {
	t.Helper()
	pythonCommand(t, environment, "") // skips the test early
	return func(script string, args ...string) string {
		t.Helper()
		cmd := pythonCommand(t, environment, script, args...)
		var stderr strings.Builder
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("python: %v\n%s%s", err, out, stderr.String())
		}
		return strings.TrimSpace(string(out))
	}
}

// The hub of these tests behaves as the hub does in the eyes of the hub's own
// client, and what that client downloads is found.
func TestTheHubsOwnClientDownloadsFromOurHub(t *testing.T) {
	for _, environment := range environments() {
		t.Run(environment, func(t *testing.T) { downloadByItsOwnClient(t, python(t, environment)) })
	}
}

func downloadByItsOwnClient(t *testing.T, run func(script string, args ...string) string) {
	repo := whole()
	h, _ := setUp(t, repo)
	h.Token, repo.Gated, repo.Grant = "hf_secret", "manual", true
	h.Move("old/name", name)
	t.Setenv("HF_TOKEN", h.Token)
	const snapshot = `
import sys
from huggingface_hub import snapshot_download
print(snapshot_download(sys.argv[1], revision=sys.argv[2], allow_patterns=sys.argv[3:] or None))`
	// As vLLM does: the weights, and then one file after the other.
	dir := run(snapshot, name, "main", "*.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja")
	if _, err := Find(name, ""); !errors.Is(err, ErrMissing) || !strings.Contains(err.Error(), "index") {
		t.Fatalf("weights without their index: %v", err)
	}
	run(snapshot, name, "main", "*.safetensors.index.json")
	s, err := Find(name, "")
	if err != nil {
		t.Fatal(err)
	}
	if s.Dir != dir || s.Revision != commit || len(s.Files) != 8 { // without added_tokens.json, whose content tokenizer.json has
		t.Errorf("found %+v, want %s", s, dir)
	}
	run(snapshot, name, "main")
	if s, err = Find(name, ""); err != nil {
		t.Fatal(err)
	}
	wantSnapshot(t, s, repo)
	run(snapshot, "old/name", "v1.0")
	if _, err := Find("old/name", "v1.0"); err != nil {
		t.Error(err)
	}
	// Its errors, as it reads them from the answers.
	const failing = `
import sys
from huggingface_hub import snapshot_download, hf_hub_download
try:
    hf_hub_download(sys.argv[1], sys.argv[2], revision=sys.argv[3], token=(sys.argv[4] if len(sys.argv) > 4 else False))
except Exception as e:
    while e.__cause__ is not None and type(e).__name__ == "LocalEntryNotFoundError":
        e = e.__cause__
    print(type(e).__name__.removeprefix("Remote")) # as it is called since 1.0`
	for want, args := range map[string][]string{
		"RepositoryNotFoundError": {"owner/nothing", "config.json", "main"},
		"RevisionNotFoundError":   {name, "config.json", "v9", h.Token},
		"EntryNotFoundError":      {name, "nothing.json", "main", h.Token},
		"GatedRepoError":          {name, "README.md", "refs/pr/1"},
	} {
		if got := run(failing, args...); got != want {
			t.Errorf("%q: %s, want %s", args, got, want)
		}
	}
}

// What is pulled is a download of its own to the hub's own client, and what is
// half pulled is nothing to it.
func TestTheHubsOwnClientTakesOurDownloads(t *testing.T) {
	const snapshot = `
import sys
from huggingface_hub import snapshot_download, hf_hub_download, scan_cache_dir
try:
    print(snapshot_download(sys.argv[1], local_files_only=sys.argv[2] == "local", allow_patterns=sys.argv[3:]))
    print(scan_cache_dir().warnings)
except FileNotFoundError as e:
    print(type(e).__name__)`
	for _, environment := range environments() {
		t.Run(environment, func(t *testing.T) {
			run := python(t, environment)
			repo := whole()
			h, c := setUp(t, repo)
			names, _, _ := chosenOf(repo)
			do, hangs := hanging(9)
			h.Fault(true, "GET", -1, do)
			ctx, cancel := context.WithCancel(t.Context())
			go func() {
				<-hangs
				cancel()
			}()
			if _, err := pullAll(ctx, c, ""); !errors.Is(err, context.Canceled) {
				t.Fatal(err)
			}
			h.Forget()
			kept := marked(t, c, repo)
			if got := run(snapshot, append([]string{name, "local"}, names...)...); got != "LocalEntryNotFoundError" {
				t.Errorf("half a model is to it %q", got)
			}
			run(snapshot, append([]string{name, "online"}, names...)...) // it completes what is half here
			s, err := Find(name, "")
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Verify(t.Context(), nil); err != nil {
				t.Fatal(err)
			}
			if kept == 0 {
				t.Error("nothing was half here")
			}
			if s, err = pullAll(t.Context(), c, ""); err != nil {
				t.Fatal(err)
			}
			wantSnapshot(t, s, repo) // and nothing left of ours
			t.Setenv("HF_HOME", t.TempDir())
			if s, err = pullAll(t.Context(), client(t), ""); err != nil {
				t.Fatal(err)
			}
			if got := run(snapshot, append([]string{name, "local"}, names...)...); got != s.Dir+"\n[]" {
				t.Errorf("a whole model is to it %q, want %s", got, s.Dir)
			}
		})
	}
}

// What is pulled is loaded by Transformers, offline.
func TestTransformersLoadsWhatWasPulled(t *testing.T) {
	run := python(t, "transformers")
	src := t.TempDir()
	run(`
import sys
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from tokenizers import Tokenizer, models, pre_tokenizers
GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=8, n_head=2, vocab_size=3, n_positions=16)).save_pretrained(sys.argv[1], max_shard_size="3KB")
t = Tokenizer(models.WordLevel({"a": 0, "b": 1, "[UNK]": 2}, unk_token="[UNK]"))
t.pre_tokenizer = pre_tokenizers.Whitespace()
PreTrainedTokenizerFast(tokenizer_object=t, unk_token="[UNK]").save_pretrained(sys.argv[1])`, src)
	repo := &hubtest.Repo{Commit: commit, Files: map[string][]byte{}}
	entries, err := os.ReadDir(src)
	if err != nil {
		t.Fatal(err)
	}
	parts := 0
	for _, e := range entries {
		if repo.Files[e.Name()], err = os.ReadFile(filepath.Join(src, e.Name())); err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(e.Name(), ".safetensors") {
			parts++
		}
	}
	if parts < 2 {
		t.Fatalf("the model has %d parts: this is to test several", parts)
	}
	_, c := setUp(t, repo)
	s, err := pullAll(t.Context(), c, "main")
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("HF_HUB_OFFLINE", "1")
	got := run(`
import sys, torch
from huggingface_hub import snapshot_download, scan_cache_dir
from transformers import AutoModelForCausalLM, AutoTokenizer
print(snapshot_download(sys.argv[1], local_files_only=True))
print(scan_cache_dir().warnings)
m = AutoModelForCausalLM.from_pretrained(sys.argv[1]); want = AutoModelForCausalLM.from_pretrained(sys.argv[2])
x = AutoTokenizer.from_pretrained(sys.argv[1])("a b a", return_tensors="pt").input_ids
print(x.tolist(), torch.equal(m(x).logits, want(x).logits))`, name, src)
	if want := s.Dir + "\n[]\n[[0, 1, 0]] True"; got != want {
		t.Errorf("Transformers says\n%s\nwant\n%s", got, want)
	}
}
