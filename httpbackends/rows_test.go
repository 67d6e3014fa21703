package httpbackends

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/nativebench/nativebench/internal/bench"
)

// rowBody is the body that a row sends, as the server decodes it.
func rowBody(t *testing.T, row Server, req *bench.Request, cfg Config) (map[string]any, error) {
	t.Helper()
	cfg.Server = row
	dialect := row.Dialect
	if cfg.Chat {
		dialect = OpenAIChat{}
	}
	body := dialect.body("m", req)
	if err := row.Fields(body, req, &cfg); err != nil {
		return nil, err
	}
	sent, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(sent, &got); err != nil {
		t.Fatal(err)
	}
	return got, nil
}

// What each row sends for a sampled stream and for a greedy sync answer.
func TestFields(t *testing.T) {
	sampled := bench.Sampling{Temperature: 0.7, TopP: 0.9, MaxTokens: 5, Seed: 42}
	greedy := bench.Sampling{TopP: 1, MaxTokens: 5, Seed: 42}
	const (
		openAI = `"model":"m","prompt":"p","max_tokens":5,"seed":42`
		chat   = `"model":"m","messages":[{"role":"user","content":"hi"}],"max_tokens":5,"seed":42`
		s      = `,"temperature":0.7,"top_p":0.9,"stream":true`
		g      = `,"temperature":0,"top_p":1,"stream":false`
		usage  = `,"stream_options":{"include_usage":true}`
		usages = `,"stream_options":{"include_usage":true,"continuous_usage_stats":true}`
		vllm   = `,"ignore_eos":true,"top_k":-1,"min_p":0,"repetition_penalty":1,"presence_penalty":0,"frequency_penalty":0`
		ollama = `"model":"m","prompt":"p","raw":true,"truncate":false,"shift":false,"options":{"num_predict":5,"seed":42,"top_k":0,"min_p":0,"typical_p":1,"repeat_penalty":1,"presence_penalty":0,"frequency_penalty":0`
	)
	for _, tc := range []struct {
		name   string
		row    Server
		ignore bool
		cfg    Config
		stream string // the body of the sampled stream
		sync   string // and of the greedy sync answer
	}{
		{"vllm", vllmServer(), true, Config{Launched: true}, openAI + s + usages + vllm, openAI + g + vllm},
		{"vllm, token ids and cache", vllmServer(), true, Config{TokenIDs: true, PrefixCache: true}, openAI + s + usages + vllm + `,"return_token_ids":true`, openAI + g + vllm + `,"return_token_ids":true`},
		{"vllm, chat", vllmServer(), true, Config{Launched: true, Chat: true}, chat + s + usages + vllm, chat + g + vllm},
		{
			"tgi", tgiServer(), false,
			Config{},
			`"inputs":"p","parameters":{"max_new_tokens":5,"seed":42,"do_sample":true,"temperature":0.7,"top_p":0.9,"details":true,"return_full_text":false}`,
			`"inputs":"p","parameters":{"max_new_tokens":5,"seed":42,"do_sample":false,"details":true,"return_full_text":false}`,
		},
		{
			"tgi, chat", tgiServer(), false,
			Config{Chat: true},
			strings.Replace(chat, `"m"`, `"tgi"`, 1) + s + usage, strings.Replace(chat, `"m"`, `"tgi"`, 1) + `,"temperature":0,"stream":false`,
		},
		{"transformers", transformersServer(), true, Config{}, openAI + s + usages + `,"ignore_eos":true`, openAI + g + `,"ignore_eos":true`},
		{
			"transformers-serve", transformersServe(), true,
			Config{},
			openAI + s + `,"generation_config":"{\"do_sample\":true,\"min_new_tokens\":5,\"top_k\":0}"`,
			openAI + g + `,"generation_config":"{\"do_sample\":false,\"min_new_tokens\":5,\"top_k\":0}"`,
		},
		{
			"transformers-serve, started here", transformersServe(), false,
			Config{Launched: true, Chat: true},
			strings.TrimPrefix(chat, `"model":"m",`) + s + `,"generation_config":"{\"do_sample\":true,\"top_k\":0}"`,
			strings.TrimPrefix(chat, `"model":"m",`) + g + `,"generation_config":"{\"do_sample\":false,\"top_k\":0}"`,
		},
		{"sglang", sglangServer(), true, Config{}, openAI + s + usages + vllm, openAI + g + vllm},
		{"ollama", ollamaServer(), false, Config{}, ollama + `,"temperature":0.7,"top_p":0.9},"stream":true`, ollama + `,"temperature":0,"top_p":1},"stream":false`},
		{"ollama, context", ollamaServer(), false, Config{Context: 512}, ollama + `,"temperature":0.7,"top_p":0.9,"num_ctx":512},"stream":true`, ollama + `,"temperature":0,"top_p":1,"num_ctx":512},"stream":false`},
		{"openai", openAIServer(), false, Config{}, openAI + s + usage, openAI + g},
		{"openai, chat", openAIServer(), false, Config{Chat: true}, chat + s + usage, chat + g},
	} {
		for want, req := range map[string]*bench.Request{
			tc.stream: {Prompt: "p", Message: "hi", Stream: true, Sampling: sampled},
			tc.sync:   {Prompt: "p", Message: "hi", Sampling: greedy},
		} {
			req.Sampling.IgnoreEOS = tc.ignore
			got, err := rowBody(t, tc.row, req, tc.cfg)
			if err != nil {
				t.Errorf("%s: %v", tc.name, err)
				continue
			}
			var body map[string]any
			if err := json.Unmarshal([]byte("{"+want+"}"), &body); err != nil {
				t.Fatal(tc.name, err)
			}
			if fmt.Sprint(got) != fmt.Sprint(body) {
				t.Errorf("%s: body\n%v, want\n%v", tc.name, got, body)
			}
		}
	}
}

// TGI refuses a top_p of 1 when it samples, too.
func TestTGITopP(t *testing.T) {
	for _, chat := range []bool{false, true} {
		req := &bench.Request{Prompt: "p", Message: "hi", Stream: true, Sampling: bench.Sampling{Temperature: 0.7, TopP: 1, MaxTokens: 5}}
		body, err := rowBody(t, tgiServer(), req, Config{Chat: chat})
		if err != nil {
			t.Fatal(err)
		}
		fields := body
		if !chat {
			fields = body["parameters"].(map[string]any)
		}
		if _, there := fields["top_p"]; there || fields["temperature"] != 0.7 {
			t.Errorf("chat %v: %v", chat, body)
		}
	}
}

// Against a vLLM whose prefix cache may be on, no two requests share a salt.
func TestCacheSalt(t *testing.T) {
	seen := map[any]bool{}
	for range 10 {
		body, err := rowBody(t, vllmServer(), testRequest(true), Config{})
		if err != nil {
			t.Fatal(err)
		}
		salt, _ := body["cache_salt"].(string)
		if seen[salt] || len(salt) < 20 || len(salt) > 128 || strings.ContainsAny(salt, `@/\`) {
			t.Errorf("salt %q", salt)
		}
		seen[salt] = true
	}
}

// Info names the substitutions that are made of what is asked, and no other.
func TestSubstitutionsThatAreMade(t *testing.T) {
	sampled := bench.Sampling{Temperature: 0.7, TopP: 0.9}
	greedy := bench.Sampling{TopP: 1}
	on := bench.Sampling{Temperature: 0.7, TopP: 0.9, IgnoreEOS: true}
	for _, tc := range []struct {
		row       Server
		samplings []bench.Sampling
		chat      bool
		want      []string // beginnings
	}{
		{llamaServer(), []bench.Sampling{sampled}, false, []string{"llama-server applies top-p"}},
		{llamaServer(), []bench.Sampling{sampled, greedy}, false, []string{"llama-server applies top-p", "temperature 0: "}},
		{llamaServer(), nil, false, []string{"llama-server applies top-p", "temperature 0: "}},
		{tgiServer(), []bench.Sampling{sampled}, false, nil},
		{tgiServer(), []bench.Sampling{{Temperature: 1, TopP: 1}}, false, []string{"top_p 1: "}},
		{tgiServer(), []bench.Sampling{greedy}, false, []string{"top_p 1: ", "temperature 0: sent as do_sample false"}},
		{tgiServer(), []bench.Sampling{greedy}, true, []string{"top_p 1: ", "temperature 0: sent to its chat route"}},
		{transformersServe(), []bench.Sampling{sampled}, false, []string{"sampling is set by generation_config"}},
		{transformersServe(), []bench.Sampling{on}, false, []string{"sampling is set by generation_config", "ignore EOS: "}},
		{ollamaServer(), []bench.Sampling{sampled}, false, []string{"top-k off: "}},
		{vllmServer(), []bench.Sampling{greedy}, false, nil},
	} {
		got := tc.row.substitutions(&Config{Samplings: tc.samplings, Chat: tc.chat})
		if !slices.EqualFunc(got, tc.want, strings.HasPrefix) {
			t.Errorf("%s, %+v, chat %v: %q, want %q", tc.row.Name, tc.samplings, tc.chat, got, tc.want)
		}
	}
}

// A row says beforehand what its Fields would refuse.
func TestRowsSayWhatTheyRefuse(t *testing.T) {
	for _, row := range Servers() {
		req := testRequest(true)
		for _, ignore := range []bool{false, true} {
			req.Sampling.IgnoreEOS = ignore
			_, err := rowBody(t, row, req, Config{})
			if refused := ignore && row.NoIgnoreEOS; refused != (bench.ClassOf(err) == bench.Refused) || !refused && err != nil {
				t.Errorf("%s, ignore EOS %v: %v", row.Name, ignore, err)
			}
			if err != nil && !strings.Contains(err.Error(), row.Name) {
				t.Errorf("%s: %v does not name it", row.Name, err)
			}
		}
	}
}

// A chat route is asked with a message or not at all.
func TestChatWantsMessage(t *testing.T) {
	srv := newTestServer(t)
	s := openSession(t, srv.open(t, func(c *Config) { c.Chat = true }))
	if err := s.Prepare(testRequest(true)); bench.ClassOf(err) != bench.Refused || !strings.Contains(err.Error(), "without a message") {
		t.Errorf("got %v", err)
	}
}

// bodyOf is the body of a captured answer to GET.
func bodyOf(t *testing.T, name string) []byte {
	t.Helper()
	c := readCapture(t, "testdata/captures/"+name)
	_, body, ok := bytes.Cut(bytes.Join(c.exchanges[0], nil), []byte("\r\n\r\n"))
	if !ok {
		t.Fatalf("%s has no body", name)
	}
	return body
}

// Rows understand what servers say of themselves.
func TestIdentify(t *testing.T) {
	for _, tc := range []struct {
		row    Server
		asked  string // model
		told   map[string]string
		want   bench.Info
		failed string
	}{
		{
			vllmServer(), "gpt2",
			map[string]string{"/version": string(bodyOf(t, "vllm/version.txt")), "/v1/models": string(bodyOf(t, "vllm/models.txt"))},
			bench.Info{Model: "gpt2", Weights: "models/gpt2", Version: "0.32.0", Build: "0.32.0", Context: 1024},
			"",
		},
		{
			tgiServer(), "",
			map[string]string{"/info": string(bodyOf(t, "tgi/info.txt"))},
			bench.Info{Model: "/models/gpt2", Weights: "/models/gpt2", Version: "3.3.6-dev0", Build: "db931fcf42da018a3657580c64bf2720f167f9ab", Context: 1024},
			"",
		},
		{
			tgiServer(), "gpt2",
			map[string]string{"/info": `{"model_id":"/data","model_dtype":"torch.float16","max_total_tokens":2048,"version":"1.4.0","sha":"a","docker_label":"sha-b"}`},
			bench.Info{Model: "/data", Weights: "/data", DType: "torch.float16", Version: "1.4.0", Build: "sha-b", Context: 2048}, // Open compares the names
			"",
		},
		{
			transformersServer(), "",
			map[string]string{"/version": `{"version":"5.23.0","torch":"2.13.0"}`, "/v1/models": `{"data":[{"id":"gpt2","owned_by":"nativebench","max_model_len":1024,"dtype":"float32","n_params":124439808}]}`},
			bench.Info{Model: "gpt2", Version: "5.23.0", Build: "torch 2.13.0", Context: 1024, DType: "float32", Params: 124439808},
			"",
		},
		{
			transformersServe(), "m",
			map[string]string{"/openapi.json": serveAPI},
			bench.Info{Model: "m", Version: "version not told"},
			"",
		},
		// Servers of another kind.
		{transformersServe(), "m", nil, bench.Info{}, "no /openapi.json"},
		{transformersServe(), "m", map[string]string{"/openapi.json": `{"paths":{"/v1/completions":{}}}`}, bench.Info{}, "names no route /load_model"},
		{vllmServer(), "", map[string]string{"/version": `{"version":"5.23.0"}`, "/v1/models": `{"data":[{"id":"gpt2","owned_by":"nativebench"}]}`}, bench.Info{}, `owned by "nativebench", not "vllm"`},
		{transformersServer(), "", map[string]string{"/version": string(bodyOf(t, "vllm/version.txt")), "/v1/models": string(bodyOf(t, "vllm/models.txt"))}, bench.Info{}, `owned by "vllm", not "nativebench"`},
		{tgiServer(), "", map[string]string{"/info": `{}`}, bench.Info{}, "no model_id"},
		{llamaServer(), "", map[string]string{"/props": `{}`, "/v1/models": `{}`}, bench.Info{}, "no total_slots"},
		{
			sglangServer(), "",
			map[string]string{"/get_server_info": `{"version":"0.5.0","dtype":"auto","max_running_requests":48}`, "/v1/models": `{"data":[{"id":"m","root":"/m","max_model_len":4096}]}`},
			bench.Info{Model: "m", Weights: "/m", Version: "0.5.0", Build: "0.5.0", DType: "auto", Slots: 48, Context: 4096},
			"",
		},
		{
			sglangServer(), "",
			map[string]string{"/server_info": `{"version":"0.6.0"}`, "/v1/models": `{"data":[{"id":"m"}]}`},
			bench.Info{Model: "m", Version: "0.6.0", Build: "0.6.0"},
			"",
		},
		{sglangServer(), "", nil, bench.Info{}, "no /get_server_info"},
		{
			ollamaServer(), "a",
			map[string]string{"/api/version": `{"version":"0.12.0"}`, "/api/tags": `{"models":[{"name":"b:latest"},{"name":"a:latest","digest":"d","details":{"quantization_level":"Q4_0"}}]}`},
			bench.Info{Model: "a", Weights: "d", DType: "Q4_0", Version: "0.12.0", Build: "0.12.0"},
			"",
		},
		{
			ollamaServer(), "c", // Open compares the names
			map[string]string{"/api/version": `{"version":"0.12.0"}`, "/api/tags": `{"models":[{"name":"a:latest"},{"name":"b:7b"}]}`},
			bench.Info{Model: "a:latest, b:7b", Version: "0.12.0", Build: "0.12.0"},
			"",
		},
		{openAIServer(), "", map[string]string{"/v1/models": `{"data":[{"id":"a"},{"id":"b"}]}`}, bench.Info{}, "2 models (a, b)"},
		{openAIServer(), "b", map[string]string{"/v1/models": `{"data":[{"id":"a"},{"id":"b"}]}`}, bench.Info{Model: "b", Engine: "an OpenAI-compatible server", Version: "(it does not tell which)"}, ""},
	} {
		info := bench.Info{Model: tc.asked} // Open fills in more
		err := tc.row.Identify(&info, func(path string, into any) error {
			if body, ok := tc.told[path]; ok {
				return json.Unmarshal([]byte(body), into)
			}
			return fmt.Errorf("no %s", path)
		})
		if tc.failed != "" {
			if err == nil || !strings.Contains(err.Error(), tc.failed) {
				t.Errorf("%s: %v, want …%s…", tc.row.Name, err, tc.failed)
			}
			continue
		}
		if err != nil || fmt.Sprint(info) != fmt.Sprint(tc.want) {
			t.Errorf("%s: %+v, %v; want %+v", tc.row.Name, info, err, tc.want)
		}
	}
}

// The series of a row are those that the server shows.
func TestMetricsAreThere(t *testing.T) {
	for name, row := range map[string]Server{"vllm/metrics.txt": vllmServer(), "tgi/metrics.txt": tgiServer()} {
		text := string(bodyOf(t, name))
		for _, s := range row.Metrics.Series {
			if !slices.ContainsFunc(s.Names, func(n string) bool { return metricIn(text, n) }) {
				t.Errorf("%s: %s shows none of %q", s.Key, row.Name, s.Names)
			}
		}
	}
}

// serveAPI is what FastAPI says of transformers serve, as far as it is read.
const serveAPI = `{"openapi":"3.1.0","paths":{"/v1/completions":{},"/load_model":{},"/reset":{}}}`

// metricIn reports whether a page of Prometheus text has a value of that name.
func metricIn(page, name string) bool {
	return regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(name) + `(?:\{.*\})? [-+\d.eE]+`).MatchString(page)
}

// No row has a value twice, and all call it alike.
func TestMetricsKeys(t *testing.T) {
	known := regexp.MustCompile(`^(requests_running|requests_waiting|kv_cache_used_ratio|kv_held_tokens|preemptions_total|(prefix_cache_queries|prefix_cache_hits|prompt_tokens|output_tokens)_total|(queue|prefill|decode)_seconds_(sum|count))$`)
	for _, row := range Servers() {
		seen := map[string]bool{}
		for _, s := range row.Metrics.Series {
			if seen[s.Key] || !known.MatchString(s.Key) || len(s.Names) == 0 {
				t.Errorf("%s: series %+v", row.Name, s)
			}
			seen[s.Key] = true
		}
		if (row.Metrics.Path == "") != (len(seen) == 0) {
			t.Errorf("%s: %d series at %q", row.Name, len(seen), row.Metrics.Path)
		}
	}
}

// The command lines and variables by which rows are started.
func TestStarts(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(`{"n_layer":12,"n_embd":768,"n_head":12}`), 0o600); err != nil {
		t.Fatal(err)
	}
	start := Start{Bin: "/env/bin/program", Script: "/s.py", Model: dir, Name: "gpt2", Port: 8000, Slots: 16, Context: 1024, Threads: 3}
	gpu := start
	gpu.GPULayers, gpu.DType, gpu.PrefixCache, gpu.Host = -1, "f16", true, "0.0.0.0"
	profiled := start
	profiled.Profile = true
	env := []string{"HOME=/h", "HF_HUB_OFFLINE=0", "OMP_NUM_THREADS=9"}
	vllmEnv := append([]string{"VLLM_API_KEY=sesame", "VLLM_S3_TOKEN=a", "VLLM_LOGGING_LEVEL=DEBUG"}, env...)
	for _, tc := range []struct {
		name  string
		argv  func(Start) ([]string, error)
		env   func(Start, []string) []string
		start Start
		line  string
		vars  []string
	}{
		{
			"vllm", vllmServer().Argv, vllmServer().Environ, start,
			"/env/bin/program serve " + dir + " --host 127.0.0.1 --port 8000 --dtype float32 --max-model-len 1024 --max-num-seqs 16 --generation-config vllm --served-model-name gpt2 --no-enable-prefix-caching",
			[]string{"VLLM_LOGGING_LEVEL=DEBUG", "HOME=/h", "HF_HUB_OFFLINE=1", "VLLM_NO_USAGE_STATS=1", "VLLM_CPU_KVCACHE_SPACE=2", "OMP_NUM_THREADS=3", "VLLM_CPU_OMP_THREADS_BIND=nobind"},
		},
		{
			"vllm to be profiled", vllmServer().Argv, func(Start, []string) []string { return nil }, profiled,
			"/env/bin/program serve " + dir + " --host 127.0.0.1 --port 8000 --dtype float32 --max-model-len 1024 --max-num-seqs 16 --generation-config vllm --served-model-name gpt2 --profiler-config {\"profiler\": \"cuda\"} --no-enable-prefix-caching",
			nil,
		},
		{
			"vllm on a GPU", vllmServer().Argv, vllmServer().Environ, gpu,
			"/env/bin/program serve " + dir + " --host 0.0.0.0 --port 8000 --dtype float16 --max-model-len 1024 --max-num-seqs 16 --generation-config vllm --served-model-name gpt2 --enable-prefix-caching",
			[]string{"VLLM_LOGGING_LEVEL=DEBUG", "HOME=/h", "OMP_NUM_THREADS=9", "HF_HUB_OFFLINE=1", "VLLM_NO_USAGE_STATS=1"},
		},
		{
			"vllm in a container", vllmServer().ContainerArgv, func(s Start, _ []string) []string { return vllmServer().ContainerEnv(s) }, gpu,
			"--model " + dir + " --host 0.0.0.0 --port 8000 --dtype float16 --max-model-len 1024 --max-num-seqs 16 --generation-config vllm --served-model-name gpt2 --enable-prefix-caching",
			[]string{"HF_HUB_OFFLINE=1", "VLLM_NO_USAGE_STATS=1"},
		},
		{
			"tgi in a container", tgiServer().ContainerArgv, func(s Start, _ []string) []string { return tgiServer().ContainerEnv(s) }, gpu,
			"--model-id " + dir + " --hostname 0.0.0.0 --port 8000 --max-input-tokens 1023 --max-total-tokens 1024 --max-batch-total-tokens 16384 --max-concurrent-requests 128 --usage-stats off --num-shard 1 --dtype float16",
			[]string{"HF_HUB_OFFLINE=1", "PREFIX_CACHING=1"},
		},
		{
			"tgi without a cache", tgiServer().ContainerArgv, func(s Start, _ []string) []string { return tgiServer().ContainerEnv(s) }, start,
			"--model-id " + dir + " --hostname 127.0.0.1 --port 8000 --max-input-tokens 1023 --max-total-tokens 1024 --max-batch-total-tokens 16384 --max-concurrent-requests 128 --usage-stats off --num-shard 1",
			[]string{"HF_HUB_OFFLINE=1", "PREFIX_CACHING=0"},
		},
		{
			"transformers", transformersServer().Argv, transformersServer().Environ, start,
			"/env/bin/program /s.py --model " + dir + " --host 127.0.0.1 --port 8000 --dtype float32 --device cpu --max-model-len 1024 --served-model-name gpt2 --threads 3",
			[]string{"HOME=/h", "HF_HUB_OFFLINE=1", "OMP_NUM_THREADS=3"},
		},
		{
			"transformers-serve", transformersServe().Argv, transformersServe().Environ, gpu,
			"/env/bin/program serve --host 0.0.0.0 --port 8000 --device cuda --dtype float16 " + dir,
			[]string{"HOME=/h", "HF_HUB_OFFLINE=1", "OMP_NUM_THREADS=3"},
		},
	} {
		argv, err := tc.argv(tc.start)
		if err != nil || strings.Join(argv, " ") != tc.line {
			t.Errorf("%s:\n%s, %v; want\n%s", tc.name, strings.Join(argv, " "), err, tc.line)
		}
		given := env
		if strings.HasPrefix(tc.name, "vllm") {
			given = vllmEnv
		}
		if got := tc.env(tc.start, given); !slices.Equal(got, tc.vars) {
			t.Errorf("%s: variables %q, want %q", tc.name, got, tc.vars)
		}
		for want, spoil := range map[string]func(*Start){
			"model":   func(s *Start) { s.Model = "" },
			"slots":   func(s *Start) { s.Slots = 0 },
			"context": func(s *Start) { s.Context = 0 },
			"port":    func(s *Start) { s.Port = 70000 },
			"f16":     func(s *Start) { s.DType = "q4_0" },
		} {
			s := tc.start
			spoil(&s)
			if _, err := tc.argv(s); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s without %s: %v", tc.name, want, err)
			}
		}
	}
	if env[1] != "HF_HUB_OFFLINE=0" {
		t.Error("the caller's environment was changed")
	}
	if _, err := transformersServer().Argv(Start{Bin: "b", Model: "m", Slots: 1, Context: 1, Port: 1}); err == nil || !strings.Contains(err.Error(), "script") {
		t.Errorf("without a script: %v", err)
	}
}

// The KV cache of a model with grouped heads is as large as they are.
func TestVLLMCacheSpace(t *testing.T) {
	for config, want := range map[string]int64{
		`{"num_hidden_layers":32,"hidden_size":4096,"num_attention_heads":32,"num_key_value_heads":8}`:           10, // 8 GiB
		`{"num_hidden_layers":1,"hidden_size":64,"num_attention_heads":4,"head_dim":16,"num_key_value_heads":4}`: 1,
		`{"num_hidden_layers":1}`: 0,
		`{`:                       0,
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(config), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := vllmCacheGiB(Start{Model: dir, Slots: 8, Context: 4096}); got != want {
			t.Errorf("%s: %d GiB, want %d", config, got, want)
		}
	}
	if got := vllmCacheGiB(Start{Model: t.TempDir(), Slots: 8, Context: 4096}); got != 0 {
		t.Errorf("without a config: %d GiB", got)
	}
}

// A row that merges tokens says so once, since no request is warned of it.
func TestRowsThatMergeTokensSaySo(t *testing.T) {
	for _, s := range Servers() {
		said := slices.ContainsFunc(s.Notes, func(n string) bool { return strings.HasSuffix(n, notedMerges) })
		if said != s.MergesTokens {
			t.Errorf("%s: merges tokens %t, says so %t", s.Name, s.MergesTokens, said)
		}
	}
}
