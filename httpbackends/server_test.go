package httpbackends

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/nativebench/nativebench/internal/bench"
)

// testServer is a server on raw TCP that answers what a test tells it to,
// proper HTTP or not.
type testServer struct {
	net.Listener
	mu     sync.Mutex
	answer func(*call)    // to requests for generation; nil: goodAnswer
	greet  func(net.Conn) // what becomes of new connections in place of serving
	conns  int            // accepted
	last   map[string]any
	lastH  http.Header
	wg     sync.WaitGroup
}

// call is one request for generation.
type call struct {
	net.Conn
	prompt string
	stream bool
	tokens int
	close  bool                // close the connection after the answer
	mangle func([]byte) []byte // what is written, nil: as it is
}

func (c *call) write(format string, args ...any) { fmt.Fprintf(c, format, args...) }

func (c *call) Write(p []byte) (int, error) {
	if c.mangle != nil {
		p = c.mangle(p)
	}
	return c.Conn.Write(p)
}

// newTestServer serves until the test ends.
func newTestServer(t testing.TB) *testServer {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &testServer{Listener: l}
	s.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			s.conns++
			s.mu.Unlock()
			s.wg.Go(func() { s.serve(c) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		s.wg.Wait()
	})
	return s
}

func (s *testServer) set(answer func(*call)) {
	s.mu.Lock()
	s.answer = answer
	s.mu.Unlock()
}

// receive sets what becomes of new connections; nil: they are served.
func (s *testServer) receive(greet func(net.Conn)) {
	s.mu.Lock()
	s.greet = greet
	s.mu.Unlock()
}

// seen returns the last request for generation.
func (s *testServer) seen() (body map[string]any, header http.Header) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last, s.lastH
}

func (s *testServer) accepted() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conns
}

func (s *testServer) serve(c net.Conn) {
	defer c.Close()
	s.mu.Lock()
	greet := s.greet
	s.mu.Unlock()
	if greet != nil {
		greet(c)
		return
	}
	r := bufio.NewReader(c)
	for {
		req, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		body, err := io.ReadAll(req.Body)
		if err != nil {
			return
		}
		switch req.URL.Path {
		case "/health":
			writeJSON(c, 200, `{"status":"ok"}`)
		case "/props":
			writeJSON(c, 200, `{"default_generation_settings":{"n_ctx":1024},"total_slots":2,"model_alias":"m","model_ftype":"F16","model_path":"/models/m.gguf","build_info":"b1-abc"}`)
		case "/v1/models":
			writeJSON(c, 200, `{"data":[{"id":"m","meta":{"n_params":124}}]}`)
		case "/v1/completions":
			var fields map[string]any
			if json.Unmarshal(body, &fields) != nil {
				writeJSON(c, 400, `{"error":{"message":"no JSON"}}`)
				continue
			}
			stream, _ := fields["stream"].(bool)
			tokens, _ := fields["max_tokens"].(float64)
			prompt, _ := fields["prompt"].(string)
			one := &call{Conn: c, prompt: prompt, stream: stream, tokens: int(tokens)}
			s.mu.Lock()
			answer := s.answer
			s.last, s.lastH = fields, req.Header
			s.mu.Unlock()
			if answer == nil {
				answer = goodAnswer
			}
			answer(one)
			if one.close {
				return
			}
		default:
			writeJSON(c, 404, `{"error":{"message":"no such path"}}`)
		}
	}
}

func writeJSON(w io.Writer, status int, body string) {
	fmt.Fprintf(w, "HTTP/1.1 %d X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", status, len(body), body)
}

const streamHead = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"

func chunk(s string) string { return fmt.Sprintf("%x\r\n%s\r\n", len(s), s) }

// event is one token's event, the n-th, as llama-server writes it.
func event(text string, n int) string {
	return fmt.Sprintf("data: {\"choices\":[{\"text\":%q,\"index\":0,\"logprobs\":null,\"finish_reason\":null}],\"created\":1,\"model\":\"m\",\"object\":\"text_completion\",\"id\":\"x\",\"timings\":{\"cache_n\":0,\"prompt_n\":3,\"prompt_ms\":1.5,\"predicted_n\":%d,\"predicted_ms\":2.25}}\n\n", text, n)
}

// last is the event that ends the generation.
func last(finish string, n int) string {
	return fmt.Sprintf("data: {\"choices\":[{\"text\":\"\",\"index\":0,\"finish_reason\":%q}],\"usage\":{\"completion_tokens\":%d,\"prompt_tokens\":3,\"total_tokens\":%d},\"timings\":{\"predicted_n\":%d}}\n\n", finish, n, n+3, n)
}

const doneMark = "data: [DONE]\n\n"

// goodAnswer makes as many tokens as were asked for.
func goodAnswer(c *call) {
	if !c.stream {
		writeJSON(c, 200, whole(strings.Repeat(" w", c.tokens), "length", c.tokens))
		return
	}
	c.write("%s", streamHead)
	for i := range c.tokens {
		c.write("%s", chunk(event(" w", i+1)))
	}
	c.write("%s%s0\r\n\r\n", chunk(last("length", c.tokens)), chunk(doneMark))
	c.close = true // as llama-server does
}

func whole(text, finish string, n int) string {
	return fmt.Sprintf(`{"choices":[{"text":%q,"index":0,"finish_reason":%q}],"usage":{"completion_tokens":%d,"prompt_tokens":3,"total_tokens":%d}}`, text, finish, n, n+3)
}

// openTest opens a backend on the server.
func (s *testServer) open(t testing.TB, edit func(*Config)) bench.Backend {
	t.Helper()
	cfg := Config{Server: llamaServer(), Endpoint: "http://" + s.Addr().String()}
	if edit != nil {
		edit(&cfg)
	}
	b, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	return b
}

func openSession(t testing.TB, b bench.Backend) *session {
	t.Helper()
	s, err := b.NewSession(bench.Limits{PromptBytes: 100, PromptTokens: 100, OutputTokens: 100})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s.(*session)
}

func testRequest(stream bool) *bench.Request {
	return &bench.Request{Prompt: "p", Stream: stream, Sampling: bench.Sampling{TopP: 1, MaxTokens: 4, IgnoreEOS: true}}
}
