package main

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nativebench/nativebench/httpbackends"
	"github.com/nativebench/nativebench/internal/plan"
	"github.com/nativebench/nativebench/internal/results"
)

// servedName is what that server calls its model.
const servedName = "some-model"

// openAIServer answers as any OpenAI-compatible server does that wants a key,
// and keeps what it was asked.
func openAIServer(t *testing.T, key string) (url string, asked func() []map[string]any) {
	var mu sync.Mutex
	var bodies []map[string]any
	srv := httptest.NewServer(openAIHandler(key, func(body map[string]any) {
		mu.Lock()
		defer mu.Unlock()
		bodies = append(bodies, body)
	}))
	t.Cleanup(srv.Close)
	return srv.URL, func() []map[string]any {
		mu.Lock()
		defer mu.Unlock()
		return bodies
	}
}

// openAIHandler answers in OpenAI's protocol, and what vLLM is asked besides.
func openAIHandler(key string, note func(body map[string]any)) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("GET /version", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"version":"0.0-test"}`) })
	mux.HandleFunc("GET /v1/models", func(w http.ResponseWriter, _ *http.Request) {
		name := os.Getenv(containerModel)
		if name == "" {
			name = servedName
		}
		fmt.Fprint(w, `{"data":[{"id":"`+name+`","owned_by":"vllm","max_model_len":1024}]}`)
	})
	generate := func(w http.ResponseWriter, r *http.Request) {
		var body map[string]any
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		note(body)
		n := int(body["max_tokens"].(float64))
		usage := fmt.Sprintf(`"usage":{"prompt_tokens":7,"completion_tokens":%d}`, n)
		if stream, _ := body["stream"].(bool); !stream {
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprintf(w, `{"choices":[{"text":"a","message":{"content":"a"},"finish_reason":"length"}],%s}`, usage)
			return
		}
		w.Header().Set("Content-Type", "text/event-stream")
		for range n {
			fmt.Fprint(w, `data: {"choices":[{"text":" a","delta":{"content":" a"}}]}`+"\n\n")
		}
		fmt.Fprintf(w, "data: {\"choices\":[{\"text\":\"\",\"delta\":{},\"finish_reason\":\"length\"}],%s}\n\ndata: [DONE]\n\n", usage)
	}
	mux.HandleFunc("POST /v1/completions", generate)
	mux.HandleFunc("POST /v1/chat/completions", generate)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if key != "" && r.Header.Get("Authorization") != "Bearer "+key {
			w.WriteHeader(http.StatusUnauthorized)
			fmt.Fprintf(w, `{"error":{"message":"%s is not the key"}}`, r.Header.Get("Authorization"))
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// A server that runs already is driven beside others; its key reaches it and
// nothing else.
func TestEndpoint(t *testing.T) {
	const key = "sesame-open-up"
	t.Setenv("NATIVEBENCH_TEST_KEY", key)
	for _, route := range []string{"completions", "chat"} {
		t.Run(route, func(t *testing.T) {
			url, asked := openAIServer(t, key)
			out := filepath.Join(t.TempDir(), "run")
			code, stdout, stderr := invoke(t, small("fake", out, "--endpoint", "openai="+url, "--api-key-env", "openai=NATIVEBENCH_TEST_KEY", "--route", route)...)
			if code != exitOK {
				t.Fatalf("status %d: %s", code, stderr)
			}
			run := readRun(t, out)
			seen := 0
			for _, c := range run.Cells() {
				if c.Backend != "openai" {
					continue
				}
				seen++
				if !c.Done() || len(c.Measured()) != 4 {
					t.Errorf("cell %s: %s, %d records", c.ID, c.State, len(c.Measured()))
				}
				// The server is this test, which does not look like one: whose
				// memory would that be, and whose work?
				if h := c.Event.Host; h.PeakRSS > 0 || h.CPUSeconds > 0 || h.OtherCores >= 0 {
					t.Errorf("cell %s: %+v of a process that is not known to be the server", c.ID, h)
				}
			}
			if seen != 2 {
				t.Errorf("%d cells of the endpoint, want sync and stream", seen)
			}
			for _, body := range asked() {
				_, prompt := body["prompt"]
				_, messages := body["messages"]
				if prompt != (route == "completions") || messages != (route == "chat") || body["model"] != servedName {
					t.Errorf("asked %v", body)
				}
			}
			// One to see that it makes tokens, the prompts that verify asks, then each
			// mode's warm-up and four.
			if n := len(asked()); n != 1+vetPrompts+2*(1+4) {
				t.Errorf("%d requests", n)
			}
			if strings.Contains(stdout+stderr, key) {
				t.Error("the key is in what was printed")
			}
			err := filepath.WalkDir(out, func(path string, d fs.DirEntry, err error) error {
				if err != nil || d.IsDir() {
					return err
				}
				b, err := os.ReadFile(path)
				if strings.Contains(string(b), key) {
					t.Errorf("the key is in %s", path)
				}
				return err
			})
			if err != nil {
				t.Error(err)
			}
			if code, _, stderr := invoke(t, "compare", "--resume", out, "--format", "none"); code != exitOK {
				t.Errorf("resume: status %d: %s", code, stderr)
			}
		})
	}
}

// An endpoint that cannot work is found out before anything is started or
// written.
func TestEndpointThatRefuses(t *testing.T) {
	t.Setenv("NATIVEBENCH_TEST_KEY", "wrong-one")
	locked, _ := openAIServer(t, "right-one")
	mute := httptest.NewServer(http.NotFoundHandler())
	defer mute.Close()
	other := httptest.NewServer(openAIHandler("", func(map[string]any) {}))
	defer other.Close()
	gone := httptest.NewServer(nil)
	gone.Close()
	loading := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "Loading model", http.StatusServiceUnavailable)
	}))
	defer loading.Close()
	for want, flags := range map[string][]string{
		"it refuses the API key in the variable that --api-key-env openai names":         {"--endpoint", "openai=" + locked, "--api-key-env", "openai=NATIVEBENCH_TEST_KEY"},
		"it wants an API key: give --api-key-env openai=VARIABLE":                        {"--endpoint", "openai=" + locked},
		"GET /v1/models answers 404":                                                     {"--endpoint", "openai=" + mute.URL},
		"is it running there?":                                                           {"--endpoint", "openai=" + gone.URL},
		"it may be another kind of server":                                               {"--endpoint", "llama-server=" + other.URL + "/v1"},
		"503: Loading model: waited 600ms for it: see its log, or raise --ready-timeout": {"--endpoint", "openai=" + loading.URL, "--ready-timeout", "600ms"},
	} {
		out := filepath.Join(t.TempDir(), "run")
		code, stdout, stderr := invoke(t, small("fake", out, flags...)...)
		if code != exitUsage || !strings.Contains(stderr, want) || strings.Contains(stdout+stderr, "wrong-one") {
			t.Errorf("status %d: %s; want %q and no key", code, stderr, want)
		}
		if _, err := os.Stat(out); err == nil {
			t.Errorf("%s: a run directory was made", want)
		}
	}
}

// A server that is still loading its model is waited for.
func TestEndpointThatLoads(t *testing.T) {
	var asked atomic.Int32
	ready := openAIHandler("", func(map[string]any) {})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if asked.Add(1) < 3 {
			http.Error(w, "Loading model", http.StatusServiceUnavailable)
			return
		}
		ready.ServeHTTP(w, r)
	}))
	defer srv.Close()
	out := filepath.Join(t.TempDir(), "run")
	if code, _, stderr := invoke(t, small("fake", out, "--endpoint", "openai="+srv.URL)...); code != exitOK || !strings.Contains(stderr, "waiting for openai (") {
		t.Errorf("status %d: %s", code, stderr)
	}
}

// Whose memory and work are measured at an endpoint of this machine.
func TestFind(t *testing.T) {
	vllm, err := httpbackends.ServerByName("vllm")
	if err != nil {
		t.Fatal(err)
	}
	url, _ := openAIServer(t, "")
	if got := listeners(url); len(got) != 1 || got[0] != os.Getpid() {
		t.Errorf("%s: processes %v, want this one, %d", url, got, os.Getpid())
	}
	at := &seat{entry: results.Backend{Endpoint: url}}
	at.find(vllm)
	self := fmt.Sprintf("process %d (%s), is not recognisably vllm itself", os.Getpid(), filepath.Base(os.Args[0]))
	if len(at.pids()) != 0 || !at.hidden || !strings.Contains(strings.Join(at.notes, " "), self) {
		t.Errorf("a process that is no server: %v, hidden %v, notes %q", at.pids(), at.hidden, at.notes)
	}
	for _, elsewhere := range []string{"http://192.0.2.1:80", "http://example.invalid", "not a URL\x7f"} {
		at := &seat{entry: results.Backend{Endpoint: elsewhere}}
		if at.find(vllm); len(at.pids()) != 0 || at.hidden || len(at.notes) != 0 {
			t.Errorf("%q: %v, hidden %v, notes %q", elsewhere, at.pids(), at.hidden, at.notes)
		}
	}

	// The same program, called as the server is.
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	l.Close()
	cmd := exec.Command(exe)
	cmd.Args = []string{"/opt/bin/vllm", "serve", "/models/x"}
	cmd.Env = append(os.Environ(), containerPort+"="+port)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	for range 1000 {
		if conn, err := net.Dial("tcp", "127.0.0.1:"+port); err == nil {
			conn.Close()
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	at = &seat{entry: results.Backend{Endpoint: "http://127.0.0.1:" + port}}
	at.find(vllm)
	named := fmt.Sprintf("process %d (vllm)", cmd.Process.Pid)
	if got := at.pids(); !slices.Equal(got, []int{cmd.Process.Pid}) || at.hidden || !strings.Contains(strings.Join(at.notes, " "), named) {
		t.Errorf("%v, hidden %v, notes %q; want process %d", got, at.hidden, at.notes, cmd.Process.Pid)
	}
}

func TestSoundsLike(t *testing.T) {
	for served, key := range map[string]string{
		"gpt2": "gpt2", "openai-community/gpt2": "gpt2", "/models/GPT2": "gpt2", "microsoft/phi-2": "phi-2",
		"meta-llama/Llama-2-7b-chat-hf": "llama-2-7b-chat", "mistralai/Mistral-7B-Instruct-v0.1": "mistral-7b-instruct",
	} {
		m, err := plan.ModelByKey(key)
		if err != nil {
			t.Fatal(err)
		}
		if !soundsLike(served, m) {
			t.Errorf("%s is not taken for %s", served, key)
		}
		if soundsLike("mistral-7b", m) {
			t.Errorf("mistral-7b is taken for %s", key)
		}
	}
}

// A server with another model's name is driven, and that it has it is said.
func TestEndpointOfAnotherName(t *testing.T) {
	url, _ := openAIServer(t, "")
	out := filepath.Join(t.TempDir(), "run")
	code, stdout, stderr := invoke(t, small("fake", out, "--endpoint", "openai="+url, "--route", "chat", "--format", "terminal")...)
	want := `openai calls its model "some-model": that does not say that it is gpt2`
	plain := strings.Join(strings.Fields(stdout), " ")
	if code != exitOK || !strings.Contains(stderr, want) || !strings.Contains(plain, want) || !strings.Contains(plain, `model "some-model"`) {
		t.Errorf("status %d: %s\n%s", code, stderr, stdout)
	}
	if strings.Contains(plain, "native got the prompts") {
		t.Errorf("native was not asked: %s", stdout)
	}
	if len(readRun(t, out).Manifest.PromptTokens["gpt2"]) == 0 || !strings.Contains(plain, "prompt tokens differ from those of our tokenizer in 4 of 4 requests, by -") {
		t.Errorf("the server says that it read 7 tokens of each prompt: %s", stdout)
	}
}

// An endpoint alone has no weights here with which it could agree.
func TestEndpointAloneIsNotChecked(t *testing.T) {
	url, _ := openAIServer(t, "")
	code, _, stderr := invoke(t, small("openai", filepath.Join(t.TempDir(), "run"), "--endpoint", "openai="+url, "--route", "chat")...)
	if code != exitOK || !strings.Contains(stderr, "that it serves gpt2, and with its caches off, was not checked") {
		t.Errorf("status %d: %s", code, stderr)
	}
}

// A server that cuts its answers is answered by none of the numbers: that is said
// as the cell ends, and by the exit status, though nothing failed.
func TestLeftOutAnswersAreToldByTheStatus(t *testing.T) {
	mux := http.NewServeMux()
	mux.Handle("/", openAIHandler("", func(map[string]any) {}))
	mux.HandleFunc("POST /v1/completions", func(w http.ResponseWriter, r *http.Request) {
		var body struct {
			Tokens int `json:"max_tokens"`
		}
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"choices":[{"text":"a","finish_reason":"length"}],"usage":{"prompt_tokens":7,"completion_tokens":%d}}`, body.Tokens-1)
	})
	srv := httptest.NewServer(mux)
	defer srv.Close()
	out := filepath.Join(t.TempDir(), "run")
	code, stdout, stderr := invoke(t, small("fake", out, "--endpoint", "openai="+srv.URL, "--mode", "sync", "--format", "terminal")...)
	if code != exitCellsFailed || !strings.Contains(stderr, "4 requests, 4 LEFT OUT for warnings (first: cut_short)\n") || strings.Contains(stderr, "FAILED") {
		t.Errorf("status %d: %s", code, stderr)
	}
	plain := strings.Join(strings.Fields(stdout), " ")
	for _, want := range []string{"0 ok, 4 cut_short", "(cut_short): left out of latencies, speeds, rates and comparisons", "none of the 4 answers counts, see the warnings"} {
		if !strings.Contains(plain, want) {
			t.Errorf("no %q in %s", want, stdout)
		}
	}
}

// What is known of a server by the Python environment it is started from.
func TestPythonEnvironment(t *testing.T) {
	env := t.TempDir()
	packages := filepath.Join(env, "lib", "python3.12", "site-packages")
	for _, dir := range []string{"transformers-5.23.0.dist-info", "transformers_stream-1.dist-info", "twice-1.dist-info", "twice-2.dist-info"} {
		if err := os.MkdirAll(filepath.Join(packages, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]string{"transformers": "5.23.0", "torch": "", "twice": ""} {
		if got := distribution(env, name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	t.Setenv("VLLM_B", "1")
	t.Setenv("VLLM_A", "2")
	t.Setenv("VLLM_GONE", "3")
	if got := letThrough([]string{"VLLM_B=1", "VLLM_A=2", "VLLM_SET=by us", "HOME=/"}, "VLLM_"); !slices.Equal(got, []string{"VLLM_A=2", "VLLM_B=1"}) {
		t.Errorf("let through: %q", got)
	}
}

// A server at an endpoint that dies within a cell leaves no cell that is done,
// whether its port is closed then or something still answers there in its place.
// One that fails requests and lives does.
func TestEndpointThatDies(t *testing.T) {
	for _, tc := range []struct {
		name string
		dies func(srv *httptest.Server, w http.ResponseWriter)
		dead bool // for good
		want string
	}{
		{"its port is closed", func(srv *httptest.Server, w http.ResponseWriter) {
			srv.Listener.Close()
			hangUp(w)
		}, true, "FAILED the server is gone: nobody listened any more when 1 of 4 requests had been answered: "},
		{
			"its container is gone", func(_ *httptest.Server, w http.ResponseWriter) { hangUp(w) }, true,
			"FAILED the server is gone: after the cell it made no token any more; 1 of 4 requests had been answered; ",
		},
		{
			"its proxy answers", func(_ *httptest.Server, w http.ResponseWriter) { http.Error(w, "no upstream", http.StatusBadGateway) }, true,
			"FAILED the server is gone: after the cell it made no token any more; 1 of 4 requests had been answered; ",
		},
		{
			"it lives", func(_ *httptest.Server, w http.ResponseWriter) {
				http.Error(w, "a fault", http.StatusInternalServerError)
			}, false,
			"4 requests, 3 FAILED (first: openai answers with an error: a fault (status 500))",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			alive := openAIHandler("", func(map[string]any) {})
			var asked atomic.Int32
			var srv *httptest.Server
			srv = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				n := asked.Load()
				if r.Method == http.MethodPost {
					n = asked.Add(1)
				}
				// One to see that it makes tokens, one to warm up, one that counts.
				if n > 3 && (tc.dead || n <= 6) && (tc.dead || r.Method == http.MethodPost) {
					tc.dies(srv, w)
					return
				}
				alive.ServeHTTP(w, r)
			}))
			defer srv.Close()
			out := filepath.Join(t.TempDir(), "run")
			code, _, stderr := invoke(t, small("openai", out, "--endpoint", "openai="+srv.URL, "--mode", "sync")...)
			if code != exitCellsFailed || !strings.Contains(stderr, tc.want) {
				t.Errorf("status %d: %s\nwant %q", code, stderr, tc.want)
			}
			run := readRun(t, out)
			c := run.Cells()[0]
			if done := c.Done(); done == tc.dead || done == slices.Contains(run.Remaining(), c.ID) {
				t.Errorf("%s, to be done again: %v", c.State, run.Remaining())
			}
			_, stdout, _ := invoke(t, "report", out)
			plain := strings.Join(strings.Fields(stdout), " ")
			if said := strings.Contains(plain, "0 of 1 done, 1 failed"); said != tc.dead {
				t.Errorf("the report: %s", stdout)
			}
			if tc.dead && !strings.Contains(plain, "failed: the server is gone: ") {
				t.Errorf("the report: %s", stdout)
			}
		})
	}
}

// hangUp ends a connection without an answer.
func hangUp(w http.ResponseWriter) {
	conn, _, err := w.(http.Hijacker).Hijack()
	if err != nil {
		panic(err)
	}
	conn.Close()
}

// Runs that begin in the same second get directories of their own.
func TestDefaultNameIsFree(t *testing.T) {
	t.Chdir(t.TempDir())
	args := []string{"run", "--backend", "fake", "--task", "chat", "--mode", "sync", "--repeat", "1", "--requests", "1", "--format", "none"}
	const runs = 4
	for range runs { // some of them within one second
		if code, _, stderr := invoke(t, args...); code != exitOK {
			t.Fatalf("status %d: %s", code, stderr)
		}
	}
	if list, err := os.ReadDir("runs"); err != nil || len(list) != runs {
		t.Errorf("%v, %v: want %d directories", list, err, runs)
	}
	s := setup{out: "runs/x", ownName: true}
	for _, want := range []string{"runs/x", "runs/x-2", "runs/x-3"} {
		s.out = "runs/x" // as if checked at the same time
		w, err := s.create(&results.Manifest{Schema: results.Schema})
		if err != nil || s.out != want {
			t.Fatalf("%s, %v; want %s", s.out, err, want)
		}
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	}
}
