package httpbackends

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nativebench/nativebench/internal/bench"
	"github.com/nativebench/nativebench/internal/bench/benchtest"
	"github.com/nativebench/nativebench/internal/launch"
	"github.com/nativebench/nativebench/internal/synth"
)

// llamaServerForTest starts a real llama-server with a small model, or skips.
func llamaServerForTest(t *testing.T, slots int) *launch.Server {
	t.Helper()
	dir := os.Getenv("NATIVEBENCH_ENGINE_DIR")
	if dir == "" {
		t.Skip("NATIVEBENCH_ENGINE_DIR is not set: no llama-server to test against")
	}
	row := llamaServer()
	start := Start{
		Bin: filepath.Join(dir, row.Program), Model: testModel(t, dir), Name: "test-model",
		Slots: slots, Context: 512, Threads: max(1, runtime.NumCPU()/2), Batch: 512, UBatch: 512,
		GPULayers: 0, FlashAttn: "auto", CacheType: "f16",
	}
	s, err := launch.Start(t.Context(), launch.Spec{
		Name: row.Name, Health: row.Health, LogPath: filepath.Join(t.TempDir(), "server.log"),
		Argv: func(port int) ([]string, error) {
			start := start
			start.Port = port
			return row.Argv(start)
		},
		Env: row.Environ(start, os.Environ()), ReadyTimeout: 2 * time.Minute,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the server's last words:\n%s", strings.Join(s.LastLog(30), "\n"))
		}
		if err := s.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return s
}

// testModel returns the path of a model: one that the user gives, or a tiny
// relative of GPT-2 with its real vocabulary.
func testModel(t *testing.T, dir string) string {
	t.Helper()
	if path := os.Getenv("NATIVEBENCH_TEST_MODEL"); path != "" {
		return path
	}
	res, err := synth.Write(t.Context(), synth.Spec{
		Model: "gpt2", Seed: 1, DType: "f16", Layers: 2, Width: 128, VocabDir: filepath.Join(dir, "vocab"),
	}, t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return res.GGUF
}

func TestLlamaServerConforms(t *testing.T) {
	s := llamaServerForTest(t, 4)
	benchtest.Run(t, func(t *testing.T) bench.Backend {
		b, err := Open(t.Context(), Config{Server: llamaServer(), Endpoint: s.Endpoint(), Model: "test-model"})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}, benchtest.Options{})
}

// The chat route passes the suite, too.
func TestLlamaServerChatConforms(t *testing.T) {
	s := llamaServerForTest(t, 4)
	benchtest.Run(t, func(t *testing.T) bench.Backend {
		b, err := Open(t.Context(), Config{Server: llamaServer(), Endpoint: s.Endpoint(), Model: "test-model", Chat: true})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}, benchtest.Options{})
}

// The server shows the series of its row; that of the KV cache is of older ones.
func TestLlamaServerMetrics(t *testing.T) {
	s := llamaServerForTest(t, 1)
	resp, err := http.Get(s.Endpoint() + llamaServer().Metrics.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	page, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	for _, series := range llamaServer().Metrics.Series {
		if series.Key != "kv_cache_used_ratio" && !metricIn(string(page), series.Names[0]) {
			t.Errorf("%s: no %s in\n%s", series.Key, series.Names[0], page)
		}
	}
}

// The ids of a prompt are as many as the server computes for it.
func TestLlamaServerTellsPromptIDs(t *testing.T) {
	srv := llamaServerForTest(t, 1)
	b, err := Open(t.Context(), Config{Server: llamaServer(), Endpoint: srv.Endpoint(), TokenIDs: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	req := testRequest(false)
	req.Prompt = "Once upon a time, 안녕<|endoftext|> there"
	s := openSession(t, b)
	if err := s.Prepare(req); err != nil {
		t.Fatal(err)
	}
	tr := bench.NewTrace(req.Sampling.MaxTokens)
	if err := s.Generate(t.Context(), tr); err != nil && bench.ClassOf(err) != bench.Empty {
		t.Fatal(err)
	}
	ids, err := b.(*backend).Tokenize(t.Context(), req.Prompt)
	if err != nil || len(ids) != tr.PromptTokens || !slices.Contains(ids, 50256) {
		t.Errorf("ids %v, %v; the server counted %d", ids, err, tr.PromptTokens)
	}
}

// What the row sends is what the server does: checked against the settings
// that the server itself reports.
func TestLlamaServerSamplesAsAsked(t *testing.T) {
	srv := llamaServerForTest(t, 2)
	body := map[string]any{}
	req := &bench.Request{Prompt: "Once upon a time", Sampling: bench.Sampling{Temperature: 0.7, TopP: 0.9, MaxTokens: 5, Seed: 42, IgnoreEOS: true}}
	for k, v := range (OpenAICompletions{}).body("test-model", req) {
		body[k] = v
	}
	if err := llamaFields(body, req, &Config{TokenIDs: true}); err != nil {
		t.Fatal(err)
	}
	sent, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.Post(srv.Endpoint()+"/v1/completions", "application/json", bytes.NewReader(sent))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var answer struct {
		Verbose struct {
			Settings map[string]any `json:"generation_settings"`
			Tokens   []int
			Cached   *int `json:"tokens_cached"`
		} `json:"__verbose"`
		Timings struct {
			Cached int `json:"cache_n"`
		}
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		t.Fatal(err)
	}
	got := answer.Verbose.Settings
	for name, want := range map[string]any{
		"seed": 42.0, "n_predict": 5.0, "ignore_eos": true, "mirostat": 0.0, "dynatemp_range": 0.0, "min_keep": 0.0,
		"samplers": []any{"temperature", "top_p"}, "repeat_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
	} {
		if !reflect.DeepEqual(got[name], want) {
			t.Errorf("%s: the server took %v, want %v", name, got[name], want)
		}
	}
	for name, want := range map[string]float64{"temperature": 0.7, "top_p": 0.9} {
		if x, _ := got[name].(float64); math.Abs(x-want) > 1e-6 {
			t.Errorf("%s: the server took %v, want %v", name, got[name], want)
		}
	}
	if len(answer.Verbose.Tokens) != 5 {
		t.Errorf("token ids %v, want 5", answer.Verbose.Tokens)
	}
}

// The same prompt twice takes nothing from a cache.
func TestLlamaServerPrefixCacheIsOff(t *testing.T) {
	srv := llamaServerForTest(t, 1)
	for _, cache := range []bool{false, true} {
		b, err := Open(t.Context(), Config{Server: llamaServer(), Endpoint: srv.Endpoint(), PrefixCache: cache})
		if err != nil {
			t.Fatal(err)
		}
		s := openSession(t, b)
		req := &bench.Request{Prompt: strings.Repeat("Once upon a time there was a king. ", 10), Stream: true, Sampling: bench.Sampling{TopP: 1, MaxTokens: 4, IgnoreEOS: true}}
		tr := bench.NewTrace(4)
		for range 3 {
			tr.Reset()
			if err := s.Prepare(req); err != nil {
				t.Fatal(err)
			}
			if err := s.Generate(context.Background(), tr); err != nil {
				t.Fatal(err)
			}
			if tr.Server.Prefill <= 0 || tr.Server.Decode <= 0 || tr.Server.OutputTokens != 4 {
				t.Errorf("the server's own account: %+v", tr.Server)
			}
		}
		// The server was started without the cache, but a request may ask for it.
		if hit := tr.Server.CachedTokens > 0; hit != cache || slices.Contains(tr.Warnings, bench.WarnCacheHit) {
			t.Errorf("cache asked for: %v; %d tokens came from it, warnings %v", cache, tr.Server.CachedTokens, tr.Warnings)
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}
}
