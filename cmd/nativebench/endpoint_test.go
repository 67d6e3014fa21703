package main

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

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
		fmt.Fprint(w, `{"data":[{"id":"`+name+`","max_model_len":1024}]}`)
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
				// The server is this test: its process is found by its port.
				if c.Event.Host.PeakRSS <= 0 {
					t.Errorf("cell %s: the server's memory is not known", c.ID)
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
			// One to see that it makes tokens, then each mode's warm-up and four.
			if n := len(asked()); n != 1+2*(1+4) {
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

// An endpoint with a wrong key or another model fails its own cells, in words.
func TestEndpointThatRefuses(t *testing.T) {
	t.Setenv("NATIVEBENCH_TEST_KEY", "wrong-one")
	url, _ := openAIServer(t, "right-one")
	for want, flags := range map[string][]string{
		"401":            {"--api-key-env", "openai=NATIVEBENCH_TEST_KEY"},
		"is not the key": nil,
	} {
		out := filepath.Join(t.TempDir(), "run")
		code, stdout, stderr := invoke(t, small("fake", out, append(flags, "--endpoint", "openai="+url)...)...)
		if code != exitCellsFailed {
			t.Errorf("%s: status %d: %s", want, code, stderr)
		}
		if !strings.Contains(stderr, want) || strings.Contains(stdout+stderr, "wrong-one") {
			t.Errorf("want %q and no key: %s", want, stderr)
		}
	}
}

func TestListeners(t *testing.T) {
	url, _ := openAIServer(t, "")
	if got := listeners(url)(); len(got) != 1 || got[0] != os.Getpid() {
		t.Errorf("%s: processes %v, want this one, %d", url, got, os.Getpid())
	}
	for _, elsewhere := range []string{"http://192.0.2.1:80", "http://example.invalid", "not a URL\x7f"} {
		if got := listeners(elsewhere)(); len(got) != 0 {
			t.Errorf("%q: processes %v", elsewhere, got)
		}
	}
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
