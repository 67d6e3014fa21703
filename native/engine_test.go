//go:build cgo && linux

package native

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nativebench/nativebench/internal/bench"
	"github.com/nativebench/nativebench/internal/bench/benchtest"
	"github.com/nativebench/nativebench/internal/plan"
	"github.com/nativebench/nativebench/internal/synth"
)

// tinyModel writes a two-layer relative of GPT-2 with synthetic weights once
// per test binary: real architecture, real vocabulary, real llama.cpp.
var tinyModel = sync.OnceValues(func() (string, error) {
	dir := os.Getenv(EnvDir)
	out, err := os.MkdirTemp("", "nativebench-tiny-*")
	if err != nil {
		return "", err
	}
	res, err := synth.Write(context.Background(), synth.Spec{
		Model: "gpt2", Seed: 1, Layers: 2, Width: 128, VocabPath: filepath.Join(dir, "vocab", "ggml-vocab-gpt-2.gguf"),
	}, out, nil)
	if err != nil {
		return "", err
	}
	return res.GGUF, nil
})

func tiny(t testing.TB) string {
	t.Helper()
	if os.Getenv(EnvDir) == "" {
		t.Skipf("%s is not set: `make test` sets it", EnvDir)
	}
	path, err := tinyModel()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func TestMain(m *testing.M) {
	code := m.Run()
	if os.Getenv(EnvDir) != "" {
		if path, err := tinyModel(); err == nil {
			os.RemoveAll(filepath.Dir(path))
		}
	}
	os.Exit(code)
}

func openTiny(t testing.TB, slots int) *Engine {
	t.Helper()
	e, err := Open(context.Background(), Config{
		ModelPath: tiny(t), Model: "gpt2", Synthetic: true, Slots: slots, Context: 512, Threads: 1, // tests run side by side
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	return e
}

func TestConformanceOfLlamaCpp(t *testing.T) {
	tiny(t)
	benchtest.Run(t, func(t *testing.T) bench.Backend { return openTiny(t, 8) }, benchtest.Options{})
}

func TestInfoAndMemory(t *testing.T) {
	e := openTiny(t, 3)
	in := e.Info()
	if in.Backend != "native" || in.Version != "v0.5.0" || in.Slots != 3 || in.Context != 512 || !in.Synthetic || in.Params < 1e6 || in.DType == "" || !strings.HasPrefix(in.Device, "CPU") {
		t.Errorf("info %+v", in)
	}
	sum := map[string]int64{}
	for _, m := range in.Memory {
		sum[m.Part] += m.Bytes
	}
	// K and V, 2 layers, width 128, 3 slots of 512 tokens, two bytes each.
	if want := int64(2 * 2 * 128 * 3 * 512 * 2); sum["kv"] != want {
		t.Errorf("KV cache of %d bytes, by hand %d", sum["kv"], want)
	}
	if sum["weights"] < in.Params*2 || sum["compute"] <= 0 {
		t.Errorf("memory %v for %d parameters of two bytes", sum, in.Params)
	}
}

func TestPromptOverTheContextIsRefused(t *testing.T) {
	s := seat(t, openTiny(t, 1))
	if err := s.Prepare(request(strings.Repeat("many words ", 300), 20, false)); err != nil {
		t.Fatal(err)
	}
	err := s.Generate(context.Background(), bench.NewTrace(20))
	if bench.ClassOf(err) != bench.Refused || !strings.Contains(err.Error(), "context of 512 tokens") {
		t.Errorf("got %v", err)
	}
	generate(t, s, request("fine", 4, false))
}

func TestBrokenModelsAreRefusedByName(t *testing.T) {
	whole, err := os.ReadFile(tiny(t))
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{"cut": whole[:len(whole)/2], "text": []byte("hello, I am no model"), "empty": nil} {
		path := filepath.Join(t.TempDir(), name+".gguf")
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Open(context.Background(), Config{ModelPath: path, Threads: 1}, nil)
		if err == nil || !strings.Contains(err.Error(), path) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if _, err := Open(context.Background(), Config{ModelPath: tiny(t), Context: 4096}, nil); err == nil || !strings.Contains(err.Error(), "made for 1024") {
		t.Errorf("a context longer than the model's: got %v", err)
	}
}

// seeded is request i of a reproducibility test.
func seeded(i int) *bench.Request {
	p := plan.Prompts("chat")[i]
	return &bench.Request{Prompt: p.Text, Stream: i%2 == 0, Sampling: bench.Sampling{Temperature: 0.9, TopP: 0.95, MaxTokens: 24, Seed: uint64(i), IgnoreEOS: true}}
}

// TestSeededRunRepeatsAlone is the engine's promise: a request that runs alone
// gives the same tokens every time, in any slot, after any other request.
func TestSeededRunRepeatsAlone(t *testing.T) {
	e := openTiny(t, 3)
	seats := []bench.Session{seat(t, e), seat(t, e), seat(t, e)}
	for i := range 10 {
		first := generate(t, seats[0], seeded(i)).Tokens
		for round := range 3 {
			generate(t, seats[round], seeded(i+10))
			if again := generate(t, seats[round], seeded(i)).Tokens; !slices.Equal(first, again) {
				t.Fatalf("request %d gave %v, then %v", i, first, again)
			}
		}
	}
}

// TestSeededRunBesideOthers counts what cannot be promised: beside other slots
// the batches have other shapes. Each answer must still begin with tokens that
// follow from its own seed; here it is only reported how many are equal.
func TestSeededRunBesideOthers(t *testing.T) {
	e := openTiny(t, 4)
	alone := make([][]int32, 20)
	s := seat(t, e)
	for i := range alone {
		alone[i] = generate(t, s, seeded(i)).Tokens
	}
	s.Close()
	var wg sync.WaitGroup
	equal := make([]bool, len(alone))
	for w := range 4 {
		s := seat(t, e)
		wg.Go(func() {
			for i := w; i < len(alone); i += 4 {
				tr := bench.NewTrace(64)
				if s.Prepare(seeded(i)) == nil && s.Generate(context.Background(), tr) == nil {
					equal[i] = slices.Equal(tr.Tokens, alone[i])
					if len(tr.Tokens) != 24 {
						t.Errorf("request %d made %d tokens", i, len(tr.Tokens))
					}
				}
			}
		})
	}
	wg.Wait()
	n := 0
	for _, ok := range equal {
		if ok {
			n++
		}
	}
	t.Logf("%d of %d seeded requests gave the same tokens beside three others as alone", n, len(alone))
}

// TestLogitsAreThoseOfGreedyDecoding: the argmax of the logits after every
// prefix of an answer is the answer's next token, and a call for many rows
// gives the same as one call a row, short of sums in another order.
func TestLogitsAreThoseOfGreedyDecoding(t *testing.T) {
	e := openTiny(t, 2)
	s := seat(t, e)
	req := request(plan.Prompts("chat")[0].Text, 40, false)
	prompt, err := e.Tokenize(req.Prompt)
	if err != nil {
		t.Fatal(err)
	}
	tr := generate(t, s, req)
	if tr.PromptTokens != len(prompt) {
		t.Fatalf("%d prompt tokens, tokenized %d", tr.PromptTokens, len(prompt))
	}
	all := slices.Concat(prompt, tr.Tokens)
	rows, err := e.Logits(all[:len(all)-1], len(tr.Tokens))
	if err != nil {
		t.Fatal(err)
	}
	for i, row := range rows {
		top := 0
		for id, x := range row {
			if x > row[top] && id != 50256 { // the end token cannot be drawn with EOS ignored
				top = id
			}
		}
		if int32(top) != tr.Tokens[i] && row[top]-row[tr.Tokens[i]] > 1e-2 {
			t.Errorf("token %d is %d, the largest logit that of %d, %g above", i, tr.Tokens[i], top, row[top]-row[tr.Tokens[i]])
		}
		if i%13 > 0 {
			continue
		}
		one, err := e.Logits(all[:len(prompt)+i], 1)
		if err != nil {
			t.Fatal(err)
		}
		for id, x := range one[0] {
			if d := math.Abs(float64(x - row[id])); d > 1e-2*math.Abs(float64(row[top])) {
				t.Fatalf("row %d, token %d: %g alone, %g among others", i, id, x, row[id])
			}
		}
	}
}

// TestGreedyEqualsLlamaServer: the same build, the same weights, 50 prompts:
// the same token ids.
func TestGreedyEqualsLlamaServer(t *testing.T) {
	model := tiny(t)
	e := openTiny(t, 1)
	s := seat(t, e)
	url := startLlamaServer(t, model)
	differ := 0
	for i := range 50 {
		prompt := slices.Concat(plan.Prompts("chat"), plan.Prompts("code"))[i].Text
		got := generate(t, s, request(prompt, 32, false)).Tokens
		want := completion(t, url, prompt, 32)
		if !slices.Equal(got, want) {
			differ++
			t.Errorf("prompt %d: ours %v, llama-server %v", i, got, want)
		}
	}
	t.Logf("%d of 50 greedy answers of 32 tokens equal llama-server's", 50-differ)
}

func startLlamaServer(t *testing.T, model string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	_, port, _ := net.SplitHostPort(addr)
	var log bytes.Buffer
	cmd := exec.Command(filepath.Join(os.Getenv(EnvDir), "llama-server"), "-m", model, "--port", port, "-c", "512", "-np", "1", "-t", "1")
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan struct{})
	go func() { cmd.Wait(); close(exited) }()
	t.Cleanup(func() { cmd.Process.Kill(); <-exited })
	url := "http://" + addr
	for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); {
		if resp, err := http.Get(url + "/health"); err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return url
			}
		}
		select {
		case <-exited:
			t.Fatalf("llama-server ended:\n%s", log.String())
		case <-time.After(50 * time.Millisecond):
		}
	}
	t.Fatal("llama-server did not get ready in two minutes")
	return ""
}

func completion(t *testing.T, url, prompt string, n int) []int32 {
	t.Helper()
	body, _ := json.Marshal(map[string]any{
		"prompt": prompt, "n_predict": n, "temperature": 0, "cache_prompt": false, "ignore_eos": true, "return_tokens": true,
	})
	resp, err := http.Post(url+"/completion", "application/json", bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var answer struct {
		Tokens []int32         `json:"tokens"`
		Error  json.RawMessage `json:"error"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil || len(answer.Tokens) == 0 {
		t.Fatal(fmt.Errorf("llama-server answered %+v: %w", answer, err))
	}
	return answer.Tokens
}
