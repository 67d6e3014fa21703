package synth

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// startServer runs the engine's llama-server on a model and returns its
// address once it is ready.
func startServer(t *testing.T, engineDir, model string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	ctx, cancel := context.WithCancel(t.Context())
	server := exec.CommandContext(ctx, filepath.Join(engineDir, "llama-server"), "-m", model, "--host", "127.0.0.1", "--port", port, "-c", "1024", "-np", "1", "-t", "2")
	server.Env = append(os.Environ(), "LD_LIBRARY_PATH="+engineDir)
	var log bytes.Buffer
	server.Stdout, server.Stderr = &log, &log
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- server.Wait() }()
	t.Cleanup(func() {
		cancel()
		<-ended
		if t.Failed() {
			t.Logf("llama-server said:\n%s", log.String())
		}
	})
	for {
		answer, err := http.Get("http://" + address + "/health")
		if err == nil {
			answer.Body.Close()
			if answer.StatusCode == http.StatusOK {
				return "http://" + address
			}
		}
		select {
		case err := <-ended:
			ended <- err
			t.Fatalf("llama-server does not take the model: %v", err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// completion asks for 150 tokens, greedily.
func completion(t *testing.T, base, prompt string) (tokens []int, logprobs []float64) {
	t.Helper()
	body, err := json.Marshal(map[string]any{
		"prompt": prompt, "n_predict": 150, "temperature": 0, "return_tokens": true, "cache_prompt": false, "n_probs": 1,
	})
	if err != nil {
		t.Fatal(err)
	}
	answer, err := http.Post(base+"/completion", "application/json", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	var got struct {
		Tokens        []int `json:"tokens"`
		Probabilities []struct {
			Logprob *float64 `json:"logprob"` // null where it is not a number
		} `json:"completion_probabilities"`
	}
	if err := json.NewDecoder(answer.Body).Decode(&got); err != nil {
		t.Fatalf("%s: %v", answer.Status, err)
	}
	for _, p := range got.Probabilities {
		if p.Logprob == nil {
			t.Fatal("a probability is not a number")
		}
		logprobs = append(logprobs, *p.Logprob)
	}
	return got.Tokens, logprobs
}

// TestTextIsVaried lets llama.cpp run a small relative of each architecture: its
// file is taken, and greedy decoding neither stands still, nor ends, nor forgets
// its prompt.
func TestTextIsVaried(t *testing.T) {
	dir := os.Getenv("NATIVEBENCH_ENGINE_DIR")
	if dir == "" {
		t.Skip("NATIVEBENCH_ENGINE_DIR is not set: no llama-server to try the model in")
	}
	if _, err := os.Stat(filepath.Join(dir, "llama-server")); errors.Is(err, fs.ErrNotExist) {
		t.Skipf("NATIVEBENCH_ENGINE_DIR lacks %s", filepath.Join(dir, "llama-server"))
	}
	for _, s := range []Spec{
		{Model: "gpt2", Width: 128},
		{Model: "phi-2", Width: 160},
		{Model: "llama-2-7b-chat", Width: 256},
		{Model: "mistral-7b-instruct", Width: 512},
	} {
		t.Run(s.Model, func(t *testing.T) {
			s.Seed, s.Layers, s.VocabDir, s.GGUFOnly = 1, 2, filepath.Join(dir, "vocab"), true
			if err := s.Check(); errors.Is(err, fs.ErrNotExist) {
				t.Skip(err)
			}
			textIsVaried(t, startServer(t, dir, write(t, s, t.TempDir()).GGUF))
		})
	}
}

func textIsVaried(t *testing.T, base string) {
	t.Helper()
	answers := map[string]bool{}
	for _, prompt := range []string{"The quick brown fox", "def fibonacci(n):", "안녕하세요, 오늘 날씨가 어때요?"} {
		tokens, logprobs := completion(t, base, prompt)
		if len(tokens) != 150 {
			t.Errorf("%q: %d tokens; the model ended by itself", prompt, len(tokens))
			continue
		}
		distinct := map[int]bool{}
		for _, id := range tokens {
			distinct[id] = true
		}
		if len(distinct) < 15 {
			t.Errorf("%q: %d distinct tokens of 150: %v", prompt, len(distinct), tokens)
		}
		if p := period(tokens); p > 0 {
			t.Errorf("%q: the text repeats itself every %d tokens: %v", prompt, p, tokens)
		}
		sure, unsure := 0, 0
		for _, l := range logprobs {
			if l > -0.01 {
				sure++
			}
			if l < -4 {
				unsure++
			}
		}
		if sure > len(logprobs)/4 || unsure > len(logprobs)/4 {
			t.Errorf("%q: of %d tokens %d had no rival, and %d a hundred", prompt, len(logprobs), sure, unsure)
		}
		t.Logf("%q: %d distinct tokens of 150, %d without a rival, %d with a hundred", prompt, len(distinct), sure, unsure)
		answers[fmt.Sprint(tokens)] = true
	}
	if len(answers) != 3 {
		t.Errorf("three prompts have %d different answers", len(answers))
	}
}

// period is the smallest n such that the last third of tokens repeats every n
// of them, at least twice; 0 if there is none.
func period(tokens []int) int {
	tail := tokens[len(tokens)*2/3:]
	for n := 1; n <= len(tail)/2; n++ {
		same := true
		for i := n; i < len(tail) && same; i++ {
			same = tail[i] == tail[i-n]
		}
		if same {
			return n
		}
	}
	return 0
}

// TestRealTokenizer writes the real vocabulary's files.
func TestRealTokenizer(t *testing.T) {
	dir := os.Getenv("NATIVEBENCH_ENGINE_DIR")
	if dir == "" {
		t.Skip("NATIVEBENCH_ENGINE_DIR is not set: no real vocabulary")
	}
	m, err := modelByKey("gpt2")
	if err != nil {
		t.Fatal(err)
	}
	v, err := readVocabulary(filepath.Join(dir, "vocab", m.Shape.VocabFile), m.Shape)
	if errors.Is(err, fs.ErrNotExist) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	files, err := v.files(1024)
	if err != nil {
		t.Fatal(err)
	}
	var ids map[string]int
	if err := json.Unmarshal(files["vocab.json"], &ids); err != nil {
		t.Fatal(err)
	}
	if len(ids) != 50257 || ids["Ġthe"] != 262 || ids["<|endoftext|>"] != 50256 || ids["!"] != 0 {
		t.Errorf("%d tokens; Ġthe is %d", len(ids), ids["Ġthe"])
	}
	if !bytes.HasPrefix(files["merges.txt"], []byte("#version: 0.2\nĠ t\nĠ a\nh e\n")) || bytes.Count(files["merges.txt"], []byte{'\n'}) != 50001 {
		t.Errorf("merges.txt starts with %q", files["merges.txt"][:40])
	}
}
