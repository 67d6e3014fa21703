package httpbackends

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nativebench/nativebench/internal/bench"
)

func TestOpen(t *testing.T) {
	// A proxy in the environment is not asked.
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:1")
	t.Setenv("http_proxy", "http://127.0.0.1:1")
	srv := newTestServer(t)
	b := srv.open(t, func(c *Config) { c.Weights, c.Synthetic, c.Device = "/w.gguf", true, "CPU" })
	info := b.Info()
	if info.Backend != "llama-server" || info.Engine != "llama.cpp" || info.Version != "b1-abc" || info.Model != "m" || info.DType != "F16" ||
		info.Context != 1024 || info.Slots != 2 || info.Params != 124 || info.Weights != "/w.gguf" || !info.Synthetic || info.Device != "CPU" {
		t.Errorf("info %+v", info)
	}
	if len(info.Substitutions) == 0 || !slices.ContainsFunc(info.Notes, func(n string) bool { return strings.Contains(n, "opening a connection took") }) {
		t.Errorf("substitutions %q, notes %q", info.Substitutions, info.Notes)
	}
	info.Notes[0] = "changed"
	if b.Info().Notes[0] == "changed" {
		t.Error("Info hands out its own memory")
	}
}

func TestOpenFails(t *testing.T) {
	handler := func(path string, h http.HandlerFunc) string {
		mux := http.NewServeMux()
		mux.HandleFunc("/", func(http.ResponseWriter, *http.Request) {})
		mux.HandleFunc(path, h)
		srv := httptest.NewServer(mux)
		t.Cleanup(srv.Close)
		return srv.URL
	}
	good := "http://" + newTestServer(t).Addr().String()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := "http://" + l.Addr().String()
	l.Close()

	for _, tc := range []struct {
		name, endpoint string
		edit           func(*Config)
		want           []string
	}{
		{"nobody there", nobody, nil, []string{"cannot connect to llama-server at " + nobody, "is it running there?", "refused"}},
		{"no such host", "http://nowhere.invalid:80", nil, []string{"cannot connect", "nowhere.invalid"}},
		{"loading", handler("/health", func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(503)
			fmt.Fprint(w, `{"error":{"code":503,"message":"Loading model"}}`)
		}), nil, []string{"is not ready", "503", "Loading model"}},
		{"redirect", handler("/health", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/x", http.StatusFound) }), nil, []string{"is not ready", "302"}},
		{"another kind of server", handler("/props", http.NotFound), nil, []string{"does not say that it is one", "another kind of server", "/props answers 404"}},
		{"no such health path", handler("/health", http.NotFound), nil, []string{"does not say that it is one", "openai=URL", "/health answers 404"}},
		{"no such path of any server's", handler("/v1/models", http.NotFound), func(c *Config) { c.Server = openAIServer() }, []string{"may be another kind of server: GET /v1/models answers 404"}},
		{"props that are no JSON", handler("/props", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "hello") }), nil, []string{"not the expected JSON"}},
		{"another model", good, func(c *Config) { c.Model = "llama" }, []string{`serves model "m", not "llama"`}},
		{"no row", good, func(c *Config) { c.Server = Server{Name: "x"} }, []string{`cannot open "x"`}},
		{"no token ids", good, func(c *Config) { c.Server.Tokens, c.TokenIDs = false, true }, []string{"does not tell token ids"}},
		{"no scheme", "127.0.0.1:80", nil, []string{"http://127.0.0.1:8080"}},
		{"ftp", "ftp://a/b", nil, []string{"ftp://a/b", "is not an http or https URL"}},
		{"no host", "http://", nil, []string{"names no host"}},
		{"bad URL", "http://me:secret@h:port", nil, []string{"is not a URL"}},
		{"password", "http://me:secret@127.0.0.1:80", nil, []string{"has a user name or password"}},
		{"password in another scheme", "ftp://me:secret@127.0.0.1:80", nil, []string{"is not an http or https URL"}},
		{"query", "http://127.0.0.1:80/x?key=secret", nil, []string{"http://127.0.0.1:80/x, has a query"}},
		{"password without a host", "me:secret@127.0.0.1", nil, []string{"is not an http or https URL"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cfg := Config{Server: llamaServer(), Endpoint: tc.endpoint, APIKey: "sesame"}
			if tc.edit != nil {
				tc.edit(&cfg)
			}
			_, err := Open(t.Context(), cfg)
			if err == nil {
				t.Fatal("opened")
			}
			for _, want := range tc.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("the error lacks %q: %v", want, err)
				}
			}
			if s := err.Error(); strings.Contains(s, "secret") || strings.Contains(s, "sesame") || strings.Contains(s, "\n") {
				t.Errorf("the error has a secret in it, or is not one line: %q", s)
			}
		})
	}
}

// Something else than HTTP on a port is told as that.
func TestPortOfAnotherProtocol(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprint(conn, "220 mail ready\r\n")
			defer conn.Close()
		}
	}()
	_, err = Open(t.Context(), Config{Server: llamaServer(), Endpoint: "http://" + l.Addr().String()})
	if err == nil || !strings.Contains(err.Error(), "GET /health: what answers there does not speak HTTP") || !strings.Contains(err.Error(), "give the server's own port") {
		t.Errorf("%v", err)
	}
}

// A path that does not answer is named with the method it was asked by.
func TestCallThatTakesTooLong(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	defer srv.Close()
	b := &backend{cfg: Config{Server: vllmServer()}}
	if err := b.parse(srv.URL); err != nil {
		t.Fatal(err)
	}
	client := b.client()
	client.Timeout = time.Millisecond
	err := b.call(t.Context(), client, http.MethodPost, "/start_profile", nil, nil)
	if bench.ClassOf(err) != bench.Timeout || !strings.HasPrefix(err.Error(), "POST /start_profile: ") || !strings.Contains(err.Error(), "within 1ms") {
		t.Errorf("%v", err)
	}
}

func TestConnectTimeoutAndCancel(t *testing.T) {
	// A listener with a full backlog does not answer.
	b := &backend{cfg: Config{Server: llamaServer(), ConnectTimeout: time.Nanosecond}}
	if err := b.parse("http://127.0.0.1:9"); err != nil {
		t.Fatal(err)
	}
	if _, err := b.dial(context.Background()); bench.ClassOf(err) != bench.Connect || !strings.Contains(err.Error(), "nobody answered within 1ns") {
		t.Errorf("timeout: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	b.cfg.ConnectTimeout = time.Minute
	if _, err := b.dial(ctx); bench.ClassOf(err) != bench.Cancelled {
		t.Errorf("cancelled: %v", err)
	}
}

// A server that is gone is a failure of the class connect, with the session
// good again once the server is back.
func TestServerGone(t *testing.T) {
	srv := newTestServer(t)
	s := openSession(t, srv.open(t, nil))
	addr := s.b.addr
	s.b.addr = "127.0.0.1:1"
	s.drop()
	if err := s.Prepare(testRequest(true)); bench.ClassOf(err) != bench.Connect {
		t.Errorf("class %q: %v", bench.ClassOf(err), err)
	}
	s.b.addr = addr
	if err := s.Prepare(testRequest(true)); err != nil {
		t.Fatal(err)
	}
	if err := s.Generate(context.Background(), bench.NewTrace(8)); err != nil {
		t.Error(err)
	}
}

func TestEndpointPath(t *testing.T) {
	b := &backend{cfg: Config{Server: llamaServer()}}
	for in, want := range map[string][3]string{
		"http://h":              {"h:80", "h", ""},
		"http://h:81/":          {"h:81", "h:81", ""},
		"https://h/a/b/":        {"h:443", "h", "/a/b"},
		"http://h/v1":           {"h:80", "h", ""}, // as clients of OpenAI's protocol want it
		"http://h/a/v1/":        {"h:80", "h", "/a"},
		"http://h/av1":          {"h:80", "h", "/av1"},
		"http://[::1]:8080/x%2": {},
		"http://[::1]:8080":     {"[::1]:8080", "[::1]:8080", ""},
	} {
		err := b.parse(in)
		if got := [3]string{b.addr, b.host, b.path}; err == nil && got != want || err != nil && want[0] != "" {
			t.Errorf("%s: got %q, %v; want %q", in, got, err, want)
		}
	}
}

func TestServerByName(t *testing.T) {
	for _, row := range Servers() {
		got, err := ServerByName(row.Name)
		if err != nil || got.Name != row.Name || got.Dialect == nil || got.Route == "" || got.Health == "" || got.Engine == "" || got.Dialect.Name() == "" {
			t.Errorf("%s: %+v, %v", row.Name, got, err)
		}
		if (got.Program == "") != (got.Argv == nil) {
			t.Errorf("%s: program %q, but a command line: %v", row.Name, got.Program, got.Argv != nil)
		}
	}
	if _, err := ServerByName("x"); err == nil || !strings.Contains(err.Error(), "llama-server") {
		t.Errorf("an unknown name: %v", err)
	}
}

func TestLlamaArgv(t *testing.T) {
	full := Start{
		Bin: "/opt/llama-server", Model: "/m.gguf", Name: "gpt2", Port: 8080, Slots: 4, Context: 1024,
		Threads: 2, BatchThreads: 3, Batch: 2048, UBatch: 512, PrefillChunk: 256, GPULayers: -1, FlashAttn: "on", CacheType: "f32",
	}
	argv, err := llamaArgv(full)
	if err != nil {
		t.Fatal(err)
	}
	if argv[0] != full.Bin {
		t.Errorf("argv[0] = %q", argv[0])
	}
	line := " " + strings.Join(argv[1:], " ") + " "
	for _, want := range []string{
		"--host 127.0.0.1", "--port 8080", "--model /m.gguf", "--alias gpt2", "--parallel 4", "--ctx-size 4096", "--no-kv-unified",
		"--threads 2", "--threads-batch 3", "--batch-size 256", "--ubatch-size 512", "--gpu-layers all", "--flash-attn on",
		"--cache-type-k f32", "--cache-type-v f32", "--no-cache-prompt", "--cache-ram 0", "--metrics", "--no-ui",
	} {
		if !strings.Contains(line, " "+want+" ") {
			t.Errorf("%s lacks %q", line, want)
		}
	}
	least, err := llamaArgv(Start{Bin: "b", Model: "m", Port: 1, Slots: 1, Context: 1, PrefixCache: true, Batch: 64})
	if err != nil {
		t.Fatal(err)
	}
	for _, flag := range []string{"--threads", "--alias", "--ubatch-size", "--flash-attn", "--cache-type-k", "--no-cache-prompt"} {
		if slices.Contains(least, flag) {
			t.Errorf("%s was not asked for: %q", flag, least)
		}
	}
	if !strings.Contains(strings.Join(least, " "), "--gpu-layers 0") || !strings.Contains(strings.Join(least, " "), "--batch-size 64") {
		t.Errorf("%q", least)
	}
	for want, spoil := range map[string]func(*Start){
		"program": func(s *Start) { s.Bin = "" },
		"model":   func(s *Start) { s.Model = "" },
		"slots":   func(s *Start) { s.Slots = 0 },
		"context": func(s *Start) { s.Context = 0 },
		"port":    func(s *Start) { s.Port = 0 },
	} {
		s := full
		spoil(&s)
		if _, err := llamaArgv(s); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("without %s: %v", want, err)
		}
	}
}

func TestLlamaEnviron(t *testing.T) {
	env := []string{"HOME=/h", "LLAMA_ARG_CTX_SIZE=9", "LLAMA_API_KEY=sesame", "LD_LIBRARY_PATH=/a:/b", "LLAMAS=2"}
	got := llamaEnviron(Start{Bin: "/opt/bin/llama-server"}, env)
	want := []string{"HOME=/h", "LLAMAS=2", "LD_LIBRARY_PATH=/opt/bin:/a:/b"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if env[1] != "LLAMA_ARG_CTX_SIZE=9" {
		t.Error("the caller's environment was changed")
	}
}

func TestTokenIDsAreForSync(t *testing.T) {
	srv := newTestServer(t)
	b := srv.open(t, func(c *Config) { c.TokenIDs = true })
	s := openSession(t, b)
	if err := s.Prepare(testRequest(true)); bench.ClassOf(err) != bench.Refused {
		t.Errorf("stream: %v", err)
	}
	srv.set(answerJSON(200, `{"choices":[{"text":"a","finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":2},"__verbose":{"prompt":"x","tokens":[7,8]}}`))
	if err := s.Prepare(testRequest(false)); err != nil {
		t.Fatal(err)
	}
	tr := bench.NewTrace(8)
	if err := s.Generate(context.Background(), tr); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(tr.Tokens, []int32{7, 8}) || tr.OutputTokens != 2 || tr.Counted != bench.CountUsage {
		t.Errorf("tokens %v, %d by %q", tr.Tokens, tr.OutputTokens, tr.Counted)
	}
	if body, _ := srv.seen(); body["return_tokens"] != true || body["verbose"] != true {
		t.Errorf("body %v", body)
	}
}

// Prompt ids lie in a choice (vLLM's completions) or beside the choices (its
// chat), in a stream with the first event; null where they are not told.
func TestPromptIDs(t *testing.T) {
	srv := newTestServer(t)
	s := openSession(t, srv.open(t, func(c *Config) {
		c.Server = vllmServer()
		c.Server.Health, c.Server.Identify, c.TokenIDs = "/health", nil, true
	}))
	for name, answer := range map[string]func(*call){
		"completions": answerJSON(200, `{"choices":[{"text":"a","finish_reason":"stop","token_ids":[9,2],"prompt_token_ids":[1,5,6]}],"usage":{"prompt_tokens":3,"completion_tokens":2}}`),
		"chat":        answerJSON(200, `{"choices":[{"message":{"content":"a"},"finish_reason":"stop","token_ids":[9,2]}],"prompt_token_ids":[1,5,6],"usage":{"prompt_tokens":3,"completion_tokens":2}}`),
		"stream": streamOf("data: {\"choices\":[{\"text\":\"a\",\"token_ids\":[9],\"prompt_token_ids\":[1,5,6]}]}\n\n",
			"data: {\"choices\":[{\"text\":\"b\",\"token_ids\":[2],\"prompt_token_ids\":null,\"finish_reason\":\"length\"}]}\n\n", doneMark),
	} {
		srv.set(answer)
		if err := s.Prepare(testRequest(name == "stream")); err != nil {
			t.Fatal(err)
		}
		tr := bench.NewTrace(8)
		if err := s.Generate(context.Background(), tr); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if !slices.Equal(tr.PromptIDs, []int32{1, 5, 6}) || !slices.Equal(tr.Tokens, []int32{9, 2}) {
			t.Errorf("%s: prompt %v, answer %v", name, tr.PromptIDs, tr.Tokens)
		}
		if tr.Reset(); len(tr.PromptIDs) != 0 {
			t.Errorf("%s: Reset kept %v", name, tr.PromptIDs)
		}
	}
}
