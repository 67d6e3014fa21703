package main

import (
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nativebench/nativebench/internal/hub/hubtest"
	"github.com/nativebench/nativebench/internal/plan"
	"github.com/nativebench/nativebench/internal/results"
	"github.com/nativebench/nativebench/internal/synth"
	"github.com/nativebench/nativebench/internal/tokenizer"
	"github.com/nativebench/nativebench/native"
)

// vocabulariesOnly is an engine's folder without the engine.
func vocabulariesOnly(t *testing.T) string {
	t.Helper()
	engine := os.Getenv(native.EnvDir)
	if engine == "" {
		t.Skipf("%s is not set: no vocabularies", native.EnvDir)
	}
	dir := t.TempDir()
	if err := os.Symlink(filepath.Join(engine, "vocab"), filepath.Join(dir, "vocab")); err != nil {
		t.Fatal(err)
	}
	return dir
}

// Without the engine's library, as in the client-only build, the built-in
// prompts have as many tokens as were recorded when they were written.
func TestPromptsAreCountedWithoutTheEngine(t *testing.T) {
	dir := vocabulariesOnly(t)
	exact := []string{"gpt2", "llama-2-7b-chat", "llama-3-8b-instruct"}
	for _, m := range plan.Models() {
		s := &setup{engineDir: dir}
		c, err := s.counterOf(m)
		if err != nil {
			t.Fatal(err)
		}
		if _, ok := c.Counter.(*tokenizer.Tokenizer); !ok || c.entry.Exact != slices.Contains(exact, m.Key) || c.entry.Exact != (c.entry.Note == "") {
			t.Errorf("%s: %T, %+v", m.Key, c.Counter, c.entry)
			continue
		}
		bos := 0
		if m.AddBOS {
			bos = 1
		}
		for _, task := range plan.Tasks() {
			for _, p := range plan.Prompts(task.Key) {
				n, ok := c.exactly(m.Render(p.Text))
				if m.Beyond() && ok && n > 0 {
					continue // not recorded
				}
				if ok != c.entry.Exact || ok && n != p.Tokens[m.Key]+bos {
					t.Errorf("%s: %s: %d tokens, %v; want %d", m.Key, p.ID, n, ok, p.Tokens[m.Key]+bos)
				}
			}
		}
	}
}

// A sweep against an endpoint needs no engine, only its vocabularies.
func TestSweepWithoutTheEngineIsExact(t *testing.T) {
	dir := vocabulariesOnly(t)
	p := plan.Default()
	p.Models, p.Backends, p.PromptTokens = []string{"llama-2-7b-chat"}, []string{"fake"}, []int{64, 200}
	s := &setup{known: testRegistry(), plan: p, engineDir: dir, weights: synthetic}
	var err error
	if s.cells, err = p.Cells(); err != nil {
		t.Fatal(err)
	}
	if err := s.makePrompts(); err != nil {
		t.Fatal(err)
	}
	count, err := tokenizer.Open(filepath.Join(dir, "vocab", "ggml-vocab-llama-spm.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	for key, list := range s.prompts {
		for _, p := range list {
			if n, err := count.CountTokens(p.Text); err != nil || n != key.tokens {
				t.Errorf("%s: %d tokens, %v; want %d", p.ID, n, err, key.tokens)
			}
		}
	}
	if len(s.prompts) != 2 || len(s.counts) != 1 || !s.counts[0].Exact {
		t.Errorf("%d lengths, counts %+v", len(s.prompts), s.counts)
	}
}

// bytesAsTokens counts a token a byte.
type bytesAsTokens struct{}

func (bytesAsTokens) CountTokens(text string) (int, error) { return len(text), nil }

func TestPromptsOutsideTheTaskAreLeftOut(t *testing.T) {
	m, err := plan.ModelByKey("gpt2")
	if err != nil {
		t.Fatal(err)
	}
	of := func(lengths ...int) (list []plan.Prompt) {
		for _, n := range lengths {
			list = append(list, plan.Prompt{Text: strings.Repeat("x", n)})
		}
		return list
	}
	for _, c := range []struct {
		name    string
		lengths []int
		exact   bool
		want    []int
		note    string
	}{
		{"all fit", []int{20, 100}, true, []int{20, 100}, ""},
		{"too short and too long", []int{19, 20, 100, 101}, true, []int{20, 100}, "2 of 4 prompts of chat lie outside the task's 20–100 tokens and were left out"},
		{"none fits", []int{1, 2}, true, []int{1, 2}, "all 2 prompts of chat lie outside"},
		{"not exact: nothing is known", []int{1, 50}, false, []int{1, 50}, ""},
	} {
		s := &setup{}
		var got []int
		for _, p := range s.fitted(of(c.lengths...), m, plan.Cell{Task: "chat"}, &counter{Counter: bytesAsTokens{}, entry: results.PromptCount{Exact: c.exact}}) {
			got = append(got, len(p.Text))
		}
		if notes := strings.Join(s.countNotes, "; "); !slices.Equal(got, c.want) || !strings.Contains(notes, c.note) || (notes == "") != (c.note == "") {
			t.Errorf("%s: %v, %q", c.name, got, notes)
		}
	}
}

// What the header and the report say of counts.
func TestCountsAreSaid(t *testing.T) {
	dir := vocabulariesOnly(t)
	file := filepath.Join(t.TempDir(), "own.jsonl")
	if err := os.WriteFile(file, []byte(`{"prompt":"Short."}`+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	hf := t.TempDir() // of an endpoint's model: its tokenizer alone
	const small = `{"pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false},"model":{"vocab":{"S":0,"h":1,"o":2,"r":3,"t":4,".":5,"ho":6},"merges":["h o"]}}`
	if err := os.WriteFile(filepath.Join(hf, "tokenizer.json"), []byte(small), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		want []string
	}{
		{
			[]string{"--engine-dir", dir, "--model", "mistral-7b-instruct", "--prompts", file, "--hf-dir", hf},
			[]string{"tokens of prompts: exact, with the vocabulary in " + hf + "/tokenizer.json"},
		},
		{[]string{"--prompts", file, "--vocab", filepath.Join(hf, "tokenizer.json")}, []string{"tokens of prompts: exact, with the vocabulary in " + hf, "they have 5–5"}},
		{[]string{"--engine-dir", dir}, []string{"tokens of prompts: exact, with the vocabulary in " + dir}},
		{[]string{"--engine-dir", filepath.Join(dir, "none")}, []string{"tokens of prompts: exact, recorded"}},
		{[]string{"--engine-dir", dir, "--model", "mistral-7b-instruct"}, []string{"tokens of prompts: exact, recorded"}},
		{
			[]string{"--engine-dir", dir, "--model", "mistral-7b-instruct", "--prompts", file},
			[]string{"tokens of prompts: approximate, with the vocabulary in", "in place of Mistral's own", "1 of 1 prompts of " + file + " for chat lie outside the task's 20–100 tokens: they have about "},
		},
		{
			[]string{"--engine-dir", filepath.Join(dir, "none"), "--prompts", file},
			[]string{"tokens of prompts: unknown: there is no ", "`make engine` fetches it; or give --vocab FILE.gguf"},
		},
		{
			[]string{"--engine-dir", filepath.Join(dir, "none"), "--prompts", file, "--vocab", filepath.Join(dir, "vocab", "ggml-vocab-gpt-2.gguf")},
			[]string{"tokens of prompts: exact, with the vocabulary in " + dir, "they have 2–2"},
		},
	} {
		code, _, stderr := invoke(t, append([]string{"compare", "--backends", "fake", "--task", "chat", "--dry-run"}, c.args...)...)
		for _, want := range c.want {
			if code != 0 || !strings.Contains(stderr, want) {
				t.Errorf("%q: status %d, want %q in\n%s", c.args, code, want, stderr)
			}
		}
	}
}

// Without weights here, the model's own tokenizer in the hub's cache counts its
// prompts.
func TestCountsWithTheHubsCache(t *testing.T) {
	dir := vocabulariesOnly(t)
	h := hubOfGPT2(t)
	made, err := synth.Write(t.Context(), synth.Spec{Model: "phi-2", Seed: 1, Layers: 1, Width: 80, VocabDir: filepath.Join(dir, "vocab")}, t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	repo := &hubtest.Repo{Commit: hubCommit, Files: map[string][]byte{}}
	for _, name := range []string{"config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"} {
		if repo.Files[name], err = os.ReadFile(filepath.Join(made.HFDir, name)); err != nil {
			t.Fatal(err)
		}
	}
	h.Add("microsoft/phi-2", repo)
	args := []string{"compare", "--backends", "fake", "--task", "chat", "--dry-run", "--model", "phi-2", "--engine-dir", dir}
	if code, _, stderr := invoke(t, args...); code != exitOK || !strings.Contains(stderr, "tokens of prompts: exact, recorded when they were written") {
		t.Errorf("before the pull: status %d\n%s", code, stderr)
	}
	if code, _, stderr := invoke(t, "models", "pull", "phi-2"); code != exitOK {
		t.Fatal(stderr)
	}
	if code, _, stderr := invoke(t, args...); code != exitOK || !strings.Contains(stderr, "tokens of prompts: exact, with the vocabulary in "+os.Getenv("HF_HOME")) || strings.Contains(stderr, "left out") {
		t.Errorf("after it: status %d\n%s", code, stderr)
	}
}

// A GGUF file and a Hugging Face directory are of one model only if their tokens
// are the same.
func TestSameVocabulary(t *testing.T) {
	dir := vocabulariesOnly(t)
	write := func(model string, width int) *synth.Result {
		made, err := synth.Write(t.Context(), synth.Spec{Model: model, Seed: 1, Layers: 1, Width: width, VocabDir: filepath.Join(dir, "vocab")}, t.TempDir(), nil)
		if err != nil {
			t.Fatal(err)
		}
		return made
	}
	gpt2, phi2, llama := write("gpt2", 64), write("phi-2", 80), write("llama-2-7b-chat", 128)
	for _, c := range []struct {
		gguf, hf *synth.Result
		says     string
	}{
		{gpt2, gpt2, ""},
		{phi2, phi2, ""},
		{llama, llama, ""},
		{phi2, gpt2, ""}, // Phi-2's has the same tokens and more
		{gpt2, llama, "these are not the same weights; give both forms of one model"},
		{llama, gpt2, `is "!", of ` + llama.GGUF + ` "<unk>"`},
	} {
		err := sameVocabulary(c.gguf.GGUF, c.hf.HFDir)
		if (err != nil) != (c.says != "") || err != nil && !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s beside %s: %v, want %q", c.gguf.GGUF, c.hf.HFDir, err, c.says)
		}
	}
}

// A real server counts as many tokens of every prompt as were counted here
// without the engine.
func TestServerCountsWhatWasCountedHere(t *testing.T) {
	dir := vocabulariesOnly(t)
	server := filepath.Join(os.Getenv(native.EnvDir), "llama-server")
	if _, err := os.Stat(server); err != nil {
		t.Skip(err)
	}
	made, err := synth.Write(t.Context(), synth.Spec{Model: "gpt2", Seed: 1, Layers: 1, Width: 64, VocabDir: filepath.Join(dir, "vocab")}, filepath.Join(t.TempDir(), "model"), nil)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	_, port, _ := net.SplitHostPort(address)
	cmd := exec.CommandContext(t.Context(), server, "-m", made.GGUF, "--host", "127.0.0.1", "--port", port, "-c", "512", "-t", "1")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { cmd.Wait(); close(ended) }()
	t.Cleanup(func() { cmd.Process.Kill(); <-ended })
	for ready := false; !ready; {
		select {
		case <-ended:
			t.Fatalf("llama-server ended by itself: %v", cmd.ProcessState)
		case <-time.After(20 * time.Millisecond):
		}
		if r, err := http.Get("http://" + address + "/health"); err == nil {
			ready = r.StatusCode == http.StatusOK
			r.Body.Close()
		}
	}
	out := filepath.Join(t.TempDir(), "run")
	code, _, stderr := invoke(t, "compare", "--endpoint", "llama-server=http://"+address, "--backends", "llama-server", "--engine-dir", dir,
		"--prompt-tokens", "40,77", "--max-tokens", "2", "--requests", "8", "--warmup", "0", "--repeat", "1", "--mode", "sync", "--out", out, "--format", "none")
	if code != exitOK {
		t.Fatalf("status %d: %s", code, stderr)
	}
	run := readRun(t, out)
	for _, c := range run.Cells() {
		if len(c.Measured()) != 8 {
			t.Errorf("%s: %d requests", c.ID, len(c.Measured()))
		}
		for _, r := range c.Measured() {
			if r.PromptTokens != c.Prompt {
				t.Errorf("%s: %d tokens for the server; want %d", r.Prompt, r.PromptTokens, c.Prompt)
			}
		}
	}
	if counts := run.Manifest.PromptCounts; len(counts) != 1 || !counts[0].Exact || filepath.Dir(filepath.Dir(counts[0].Vocabulary)) != dir {
		t.Errorf("%+v", counts)
	}
}

// A run whose prompts were counted with one vocabulary is not completed with
// another.
func TestResumeWantsTheSameVocabulary(t *testing.T) {
	dir := vocabulariesOnly(t)
	b, err := os.ReadFile(filepath.Join(dir, "vocab", "ggml-vocab-gpt-2.gguf"))
	if err != nil {
		t.Fatal(err)
	}
	vocab, out := filepath.Join(t.TempDir(), "mine.gguf"), filepath.Join(t.TempDir(), "run")
	write := func(b []byte) {
		if err := os.WriteFile(vocab, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(b)
	if code, _, stderr := invoke(t, small("fake", out, "--vocab", vocab)...); code != exitOK {
		t.Fatalf("status %d: %s", code, stderr)
	}
	if code, _, stderr := invoke(t, "compare", "--resume", out, "--format", "none"); code != exitOK {
		t.Errorf("the same file: status %d: %s", code, stderr)
	}
	write(append(b, 0))
	code, _, stderr := invoke(t, "compare", "--resume", out, "--format", "none")
	if code != exitUsage || !strings.Contains(stderr, "counted with another vocabulary than there is now") {
		t.Errorf("another file: status %d: %s", code, stderr)
	}
}
