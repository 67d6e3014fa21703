package httpbackends

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nativebench/nativebench/internal/bench"
	"github.com/nativebench/nativebench/internal/bench/benchtest"
)

// fakeServer serves a benchtest.Fake as llama-server would, through net/http.
func fakeServer(t *testing.T) *httptest.Server {
	fake := benchtest.NewFake(benchtest.FakeConfig{Virtual: true})
	mux := http.NewServeMux()
	mux.HandleFunc("GET /health", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("GET /props", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `{"default_generation_settings":{"n_ctx":%d},"total_slots":8,"model_alias":"fake","build_info":"fake"}`, fake.Info().Context)
	})
	mux.HandleFunc("GET /v1/models", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"data":[]}`) })
	mux.HandleFunc("POST /v1/completions", func(w http.ResponseWriter, r *http.Request) {
		var body struct {
			Prompt      string
			MaxTokens   int `json:"max_tokens"`
			Temperature float64
			TopP        float64 `json:"top_p"`
			Seed        uint64
			IgnoreEOS   bool `json:"ignore_eos"`
			Stream      bool
		}
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			t.Error(err)
		}
		tr, err := fakeGenerate(r.Context(), fake, body.Prompt, bench.Sampling{
			Temperature: body.Temperature, TopP: body.TopP, MaxTokens: body.MaxTokens, Seed: body.Seed, IgnoreEOS: body.IgnoreEOS,
		})
		if err != nil {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusBadRequest)
			fmt.Fprintf(w, `{"error":{"message":%q,"code":400}}`, err)
			return
		}
		usage := fmt.Sprintf(`"usage":{"prompt_tokens":%d,"completion_tokens":%d}`, tr.PromptTokens, tr.OutputTokens)
		if !body.Stream {
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprintf(w, `{"choices":[{"text":%q,"finish_reason":"length"}],%s}`, tr.Text, usage)
			return
		}
		w.Header().Set("Content-Type", "text/event-stream")
		for piece := range slices.Chunk(tr.Text, len(tr.Text)/tr.OutputTokens) {
			fmt.Fprintf(w, "data: {\"choices\":[{\"text\":%q,\"finish_reason\":null}]}\n\n", piece)
			if w.(http.Flusher).Flush(); r.Context().Err() != nil {
				return
			}
			time.Sleep(100 * time.Microsecond)
		}
		fmt.Fprintf(w, "data: {\"choices\":[{\"text\":\"\",\"finish_reason\":\"length\"}],%s}\n\ndata: [DONE]\n\n", usage)
	})
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	return srv
}

func TestConforms(t *testing.T) {
	srv := fakeServer(t)
	benchtest.Run(t, func(t *testing.T) bench.Backend {
		b, err := Open(t.Context(), Config{Server: llamaServer(), Endpoint: srv.URL})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}, benchtest.Options{Invariant: true})
}

// Odd but allowed answers are read like any other.
func TestGoodAnswers(t *testing.T) {
	srv := newTestServer(t)
	for _, tc := range []struct {
		name     string
		edit     func(*Server)
		stream   bool
		answer   func(*call)
		text     string
		marks    []int32
		events   int
		tokens   int
		counted  bench.TokenSource
		finish   bench.Finish
		warnings []bench.Warning
	}{
		{name: "plain", stream: true, answer: goodAnswer, text: " w w w w", marks: []int32{1, 2, 3, 4}, events: 4, tokens: 4, counted: bench.CountUsage, finish: bench.FinishLength},
		{
			name: "all in one write, CRLF, comments, interim answer", stream: true,
			answer: raw("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.0 200 OK\r\n\r\n: hello\r\n\r\n" +
				strings.ReplaceAll(event(" a", 1)+event("b", 2)+event("c", 3)+event("d", 4)+last("length", 4)+doneMark, "\n", "\r\n")),
			text: " abcd", marks: []int32{1, 2, 3, 4}, events: 4, tokens: 4, counted: bench.CountUsage, finish: bench.FinishLength,
		},
		{
			name: "an event of three tokens after held-back UTF-8", stream: true,
			answer: streamOf(event("a", 1), event("가", 4), last("length", 4), doneMark),
			text:   "a가", marks: []int32{1, 4}, events: 2, tokens: 4, counted: bench.CountUsage, finish: bench.FinishLength,
		},
		{
			name: "ends inside a character", stream: true,
			answer: streamOf(event("a", 1), event("b", 2), last("length", 4), doneMark),
			text:   "ab", marks: []int32{1, 2, 4}, events: 2, tokens: 4, counted: bench.CountUsage, finish: bench.FinishLength,
			warnings: []bench.Warning{bench.WarnHeldBack},
		},
		{
			name: "end of sequence", stream: true,
			answer: streamOf(event("a", 1), event("b", 2), event("", 3), last("stop", 3), doneMark),
			text:   "ab", marks: []int32{1, 2, 3}, events: 2, tokens: 3, counted: bench.CountUsage, finish: bench.FinishStop,
			warnings: []bench.Warning{bench.WarnShort}, // EOS was to be ignored
		},
		{
			name: "empty events first", stream: true,
			answer: streamOf(`data: {"choices":[{"text":""}]}`+"\n\n", event("a", 1), event("b", 2), event("c", 3), event("d", 4), last("length", 4), doneMark),
			text:   "abcd", marks: []int32{1, 2, 3, 4}, events: 4, tokens: 4, counted: bench.CountUsage, finish: bench.FinishLength,
		},
		{
			name: "usage in an event of its own", stream: true,
			answer: streamOf("data: {\"choices\":[{\"text\":\"a\"}],\"usage\":null}\n\n", "data: {\"choices\":[{\"text\":\"b\",\"finish_reason\":\"stop\"}]}\n\n", "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":4}}\n\n", doneMark),
			text:   "ab", marks: []int32{1, 2}, events: 2, tokens: 4, counted: bench.CountUsage, finish: bench.FinishStop,
			warnings: []bench.Warning{bench.WarnCount},
		},
		{
			name: "a running usage", stream: true,
			answer: streamOf("data: {\"choices\":[{\"text\":\"a\"}],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":1}}\n\n", "data: {\"choices\":[{\"text\":\"bcd\",\"finish_reason\":\"length\"}],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":4}}\n\n", doneMark),
			text:   "abcd", marks: []int32{1, 4}, events: 2, tokens: 4, counted: bench.CountUsage, finish: bench.FinishLength,
		},
		{
			name: "token ids without text", stream: true,
			answer: streamOf("data: {\"choices\":[{\"text\":\"\",\"token_ids\":[5]}]}\n\n", "data: {\"choices\":[{\"text\":\"a\",\"token_ids\":[6,7,8],\"finish_reason\":\"length\"}]}\n\n", doneMark),
			text:   "a", marks: []int32{1, 4}, events: 2, tokens: 4, counted: bench.CountTokenIDs, finish: bench.FinishLength,
		},
		{
			name: "nobody counts", stream: true,
			answer: streamOf("data: {\"choices\":[{\"text\":\"a\"}]}\n\n", "data: {\"choices\":[{\"text\":\"b\"}]}\n\n", doneMark),
			text:   "ab", marks: []int32{1, 2}, events: 2,
			warnings: []bench.Warning{bench.WarnTokenCount, bench.WarnNoFinish},
		},
		{
			name: "a prefix cache", stream: true,
			answer: streamOf("data: {\"choices\":[{\"text\":\"abcd\",\"finish_reason\":\"length\"}],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":4,\"prompt_tokens_details\":{\"cached_tokens\":2}}}\n\n", doneMark),
			text:   "abcd", marks: []int32{1}, events: 1, tokens: 4, counted: bench.CountUsage, finish: bench.FinishLength,
			warnings: []bench.Warning{bench.WarnCacheHit, bench.WarnCount},
		},
		{
			name: "events that do not count and hold several tokens", stream: true, edit: func(s *Server) { s.MergesTokens = true },
			answer: streamOf("data: {\"choices\":[{\"text\":\"a\"}]}\n\n", "data: {\"choices\":[{\"text\":\"가\",\"finish_reason\":\"length\"}],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":4}}\n\n", doneMark),
			text:   "a가", marks: []int32{1, 2}, events: 2, tokens: 4, counted: bench.CountUsage, finish: bench.FinishLength,
		},
		{
			name: "fewer bytes than the usage has tokens", stream: true, edit: func(s *Server) { s.MergesTokens = true },
			answer: streamOf("data: {\"choices\":[{\"text\":\"ab\",\"finish_reason\":\"length\"}],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":4}}\n\n", doneMark),
			text:   "ab", marks: []int32{1}, events: 1, tokens: 4, counted: bench.CountUsage, finish: bench.FinishLength,
			warnings: []bench.Warning{bench.WarnCount},
		},
		{
			name: "more events than tokens", stream: true, edit: func(s *Server) { s.MergesTokens = true },
			answer: streamOf("data: {\"choices\":[{\"text\":\"ab\"}]}\n\n", "data: {\"choices\":[{\"text\":\"c\"}]}\n\n", "data: {\"choices\":[{\"text\":\"d\",\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":2}}\n\n", doneMark),
			text:   "abcd", marks: []int32{1, 2, 3}, events: 3, tokens: 2, counted: bench.CountUsage, finish: bench.FinishStop,
			warnings: []bench.Warning{bench.WarnShort, bench.WarnCount},
		},
		{
			name: "no end mark where none is sent", stream: true, edit: func(s *Server) { s.EndsAfterFinish = true },
			answer: streamOf(event("a", 1), event("bcd", 4), strings.TrimSuffix(last("length", 4), "\n\n")),
			text:   "abcd", marks: []int32{1, 4}, events: 2, tokens: 4, counted: bench.CountUsage, finish: bench.FinishLength,
		},
		{name: "sync", answer: goodAnswer, text: " w w w w", marks: []int32{4}, events: 1, tokens: 4, counted: bench.CountUsage, finish: bench.FinishLength},
		{
			name: "sync until close, escapes", answer: raw("HTTP/1.1 200 OK\r\nContent-Type: application/json; charset=utf-8\r\n\r\n" + `{"choices":[{"text":"\ud83d\ude00\n","finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":2}}`),
			text: "😀\n", marks: []int32{2}, events: 1, tokens: 2, counted: bench.CountUsage, finish: bench.FinishStop,
			warnings: []bench.Warning{bench.WarnShort},
		},
		{
			name: "sync that nobody counts", answer: answerJSON(200, `{"choices":[{"text":"a"}]}`),
			text: "a", marks: []int32{0}, events: 1, warnings: []bench.Warning{bench.WarnTokenCount, bench.WarnNoFinish},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			srv.set(tc.answer)
			b := srv.open(t, func(c *Config) {
				if tc.edit != nil {
					tc.edit(&c.Server)
				}
			})
			s := openSession(t, b)
			req := testRequest(tc.stream)
			tr := bench.NewTrace(8)
			for range 2 {
				tr.Reset()
				if err := s.Prepare(req); err != nil {
					t.Fatal(err)
				}
				if err := s.Generate(context.Background(), tr); err != nil {
					t.Fatal(err)
				}
				var marks []int32
				for _, m := range tr.Marks {
					marks = append(marks, m.N)
				}
				if string(tr.Text) != tc.text || tr.OutputTokens != tc.tokens || tr.Counted != tc.counted || tr.Finish != tc.finish || tr.Events != tc.events {
					t.Errorf("text %q, %d tokens by %q, finish %q, %d events; want %q, %d by %q, %q, %d",
						tr.Text, tr.OutputTokens, tr.Counted, tr.Finish, tr.Events, tc.text, tc.tokens, tc.counted, tc.finish, tc.events)
				}
				if !slices.Equal(marks, tc.marks) {
					t.Errorf("marks %v, want %v", marks, tc.marks)
				}
				if !slices.Equal(tr.Warnings, tc.warnings) {
					t.Errorf("warnings %v, want %v", tr.Warnings, tc.warnings)
				}
				if tr.Sent < tr.Start || tr.FirstByte < tr.Start || tr.End < tr.FirstByte || tc.stream != (tr.FirstLine != 0) {
					t.Errorf("stamps %d %d %d %d %d", tr.Start, tr.Sent, tr.FirstByte, tr.FirstLine, tr.End)
				}
			}
		})
	}
}

// Events of one read share a stamp and are counted as coalesced.
func TestCoalesced(t *testing.T) {
	srv := newTestServer(t)
	srv.set(raw("HTTP/1.1 200 OK\r\n\r\n" + event("a", 1) + event("b", 2) + event("c", 3) + event("d", 4) + last("length", 4) + doneMark))
	s := openSession(t, srv.open(t, nil))
	if err := s.Prepare(testRequest(true)); err != nil {
		t.Fatal(err)
	}
	tr := bench.NewTrace(8)
	if err := s.Generate(context.Background(), tr); err != nil {
		t.Fatal(err)
	}
	same := 0
	for i := 1; i < len(tr.Marks); i++ {
		if tr.Marks[i].T == tr.Marks[i-1].T {
			same++
		}
	}
	if tr.Coalesced != same || tr.Events != 4 {
		t.Errorf("%d coalesced of %d events, %d marks share a stamp", tr.Coalesced, tr.Events, same)
	}
}

// What the server says of its own time is kept, in nanoseconds.
func TestServerTimings(t *testing.T) {
	srv := newTestServer(t)
	s := openSession(t, srv.open(t, nil))
	srv.set(streamOf(event("a", 1), doneMark))
	if err := s.Prepare(testRequest(true)); err != nil {
		t.Fatal(err)
	}
	tr := bench.NewTrace(8)
	if err := s.Generate(context.Background(), tr); err != nil {
		t.Fatal(err)
	}
	want := bench.Server{PromptTokens: 3, OutputTokens: 1, Prefill: 1_500_000, Decode: 2_250_000}
	if tr.Server != want {
		t.Errorf("got %+v, want %+v", tr.Server, want)
	}
}

// A connection serves many requests, unless the server said or is known to
// close it, or closed it without a word.
func TestConnectionReuse(t *testing.T) {
	kept := func(c *call) { goodAnswer(c); c.close = false }
	closed := func(c *call) { goodAnswer(c); c.close = true }
	announced := func(c *call) {
		body := whole(" w", "length", 4)
		c.write("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	}
	extra := func(c *call) {
		body := whole(" w", "length", 4)
		c.write("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%sHTTP/1.1 408 Request Timeout\r\n\r\n", len(body), body)
	}
	for _, tc := range []struct {
		name   string
		stream bool
		closes bool // the row says so
		answer func(*call)
		conns  int // for 5 requests
	}{
		{"sync", false, false, kept, 1},
		{"stream", true, false, kept, 1},
		{"stream of a server that closes", true, true, closed, 5},
		{"sync of a server that closes streams", false, true, kept, 1},
		{"connection: close", false, false, announced, 5},
		{"words that nobody asked for", false, false, extra, 5},
	} {
		t.Run(tc.name, func(t *testing.T) {
			srv := newTestServer(t)
			b := srv.open(t, func(c *Config) { c.Server.ClosesAfterStream = tc.closes })
			srv.set(tc.answer)
			before := srv.accepted()
			s := openSession(t, b)
			tr := bench.NewTrace(8)
			for range 5 {
				tr.Reset()
				if err := s.Prepare(testRequest(tc.stream)); err != nil {
					t.Fatal(err)
				}
				if err := s.Generate(context.Background(), tr); err != nil {
					t.Fatal(err)
				}
			}
			if got := srv.accepted() - before; got != tc.conns {
				t.Errorf("%d connections for 5 requests, want %d", got, tc.conns)
			}
		})
	}
}

// A request that met a connection which the server was closing is sent once more,
// marked and with stamps of its own; after that the backend does not keep
// connections after such answers.
func TestRedial(t *testing.T) {
	for _, stream := range []bool{true, false} {
		t.Run(fmt.Sprintf("stream %v", stream), func(t *testing.T) {
			srv := newTestServer(t)
			b := srv.open(t, func(c *Config) { c.Server.ClosesAfterStream = false })
			s := openSession(t, b)
			var requests, dropped atomic.Int64
			srv.set(func(c *call) {
				if requests.Add(1) == 2 { // on the connection of the first
					dropped.Store(bench.Now())
					if c.close = true; !stream {
						_ = c.Conn.(*net.TCPConn).SetLinger(0) // a reset
					}
					return
				}
				goodAnswer(c)
				c.close = false
			})
			tr := bench.NewTrace(8)
			for i, want := range [][]bench.Warning{nil, {bench.WarnRedialled}, nil, nil} {
				conns := srv.accepted()
				tr.Reset()
				err := s.Prepare(testRequest(stream))
				if err == nil {
					err = s.Generate(context.Background(), tr)
				}
				if err == nil {
					err = benchtest.Check(tr, testRequest(stream))
				}
				if err != nil || !slices.Equal(tr.Warnings, want) {
					t.Errorf("request %d: %v, warnings %v, want %v", i, err, tr.Warnings, want)
				}
				if i == 1 && (tr.Start < dropped.Load() || tr.Connect == 0 || srv.accepted() != conns+1) {
					t.Errorf("started at %d, the first try ended at %d; connecting took %d ns; %d connections more", tr.Start, dropped.Load(), tr.Connect, srv.accepted()-conns)
				}
				if i > 1 && srv.accepted() != conns+1 {
					t.Errorf("request %d: %d connections more, though the server closes them", i, srv.accepted()-conns)
				}
			}
			if got := requests.Load(); got != 5 {
				t.Errorf("%d requests reached the server, want 5", got)
			}
			other := openSession(t, b) // of the same backend: knows it, too
			for range 2 {
				ask(t, other, testRequest(stream))
			}
			if other.conn != nil {
				t.Error("another session keeps a connection that the server will close")
			}
		})
	}
}

// It is not sent a third time, nor again when a byte of the answer came.
func TestNoRedial(t *testing.T) {
	for name, tc := range map[string]struct {
		answer   string
		requests int64
		want     string
	}{
		"closed again":   {"", 3, "without an answer"},
		"a byte came":    {"H", 2, "before the answer was whole"},
		"an answer came": {"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n", 2, "status 500"},
	} {
		t.Run(name, func(t *testing.T) {
			srv := newTestServer(t)
			s := openSession(t, srv.open(t, nil))
			var requests atomic.Int64
			srv.set(func(c *call) {
				if requests.Add(1) == 1 {
					goodAnswer(c)
					return
				}
				raw(tc.answer)(c)
			})
			ask(t, s, testRequest(false)) // its connection stays open
			tr := bench.NewTrace(8)
			err := s.Prepare(testRequest(false))
			if err == nil {
				err = s.Generate(context.Background(), tr)
			}
			if err == nil || !strings.Contains(err.Error(), tc.want) || requests.Load() != tc.requests {
				t.Errorf("%v after %d requests, want …%s… after %d", err, requests.Load(), tc.want, tc.requests)
			}
		})
	}
}

// A server that closes after its answers is known for it from the first time,
// though no request met it.
func TestLearnsThatConnectionsClose(t *testing.T) {
	srv := newTestServer(t)
	s := openSession(t, srv.open(t, func(c *Config) { c.Server.ClosesAfterStream = false }))
	for i := range 3 {
		ask(t, s, testRequest(true)) // goodAnswer closes after a stream
		if i > 0 && s.conn != nil {
			t.Error("a connection is kept that the server closes")
		}
		for s.conn != nil && s.conn.fresh() {
			time.Sleep(time.Millisecond)
		}
	}
	ask(t, s, testRequest(false))
	if s.conn == nil {
		t.Error("after a sync answer it does not close, and yet the connection was dropped")
	}
}

// A connection that the server closed while it rested is replaced before the
// clock starts.
func TestStaleConnection(t *testing.T) {
	srv := newTestServer(t)
	s := openSession(t, srv.open(t, func(c *Config) { c.Server.ClosesAfterStream = false }))
	tr := bench.NewTrace(8)
	for range 3 {
		tr.Reset()
		if err := s.Prepare(testRequest(true)); err != nil {
			t.Fatal(err)
		}
		if err := s.Generate(context.Background(), tr); err != nil { // goodAnswer closes
			t.Fatal(err)
		}
		for s.conn != nil && s.conn.fresh() {
			time.Sleep(time.Millisecond)
		}
	}
	// Rested too long to be trusted.
	srv.set(func(c *call) { goodAnswer(c); c.close = false })
	conns := srv.accepted()
	for range 2 {
		tr.Reset()
		if err := s.Prepare(testRequest(true)); err != nil {
			t.Fatal(err)
		}
		if err := s.Generate(context.Background(), tr); err != nil {
			t.Fatal(err)
		}
		s.used -= 2 * idleLimit
	}
	if got := srv.accepted() - conns; got != 2 {
		t.Errorf("%d connections, want a new one for each request", got)
	}
}

// Over TLS too, requests share a connection.
func TestTLS(t *testing.T) {
	var conns atomic.Int32
	srv := httptest.NewUnstartedServer(fakeServer(t).Config.Handler)
	srv.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			conns.Add(1)
		}
	}
	srv.StartTLS()
	defer srv.Close()
	b := &backend{cfg: Config{Server: llamaServer(), Endpoint: srv.URL, ConnectTimeout: time.Minute}}
	if err := b.parse(srv.URL); err != nil {
		t.Fatal(err)
	}
	b.tls.RootCAs = srv.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
	s := openSession(t, b)
	for range 5 {
		tr := bench.NewTrace(8)
		if err := s.Prepare(testRequest(false)); err != nil {
			t.Fatal(err)
		}
		if err := s.Generate(context.Background(), tr); err != nil {
			t.Fatal(err)
		}
		if err := benchtest.Check(tr, testRequest(false)); err != nil {
			t.Error(err)
		}
	}
	if got := conns.Load(); got != 1 {
		t.Errorf("%d connections for 5 requests, want 1", got)
	}
}

// A request carries what was asked, and the key only in its header.
func TestRequestOnTheWire(t *testing.T) {
	srv := newTestServer(t)
	s := openSession(t, srv.open(t, func(c *Config) { c.APIKey = "sesame" }))
	req := &bench.Request{Prompt: "<a> & \"b\"\n가", Stream: true, Sampling: bench.Sampling{Temperature: 0.7, TopP: 0.9, MaxTokens: 5, Seed: 42}}
	tr := bench.NewTrace(8)
	if err := s.Prepare(req); err != nil {
		t.Fatal(err)
	}
	if err := s.Generate(context.Background(), tr); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"model": "m", "prompt": req.Prompt, "stream": true, "stream_options": map[string]any{"include_usage": true},
		"temperature": 0.7, "top_p": 0.9, "max_tokens": 5.0, "seed": 42.0,
		"ignore_eos": false, "cache_prompt": false, "timings_per_token": true,
		"samplers": []any{"temperature", "top_p"}, "mirostat": 0.0, "dynatemp_range": 0.0, "min_keep": 0.0,
	}
	body, header := srv.seen()
	if got, want := fmt.Sprint(body), fmt.Sprint(want); got != want {
		t.Errorf("body\n%s, want\n%s", got, want)
	}
	if got := header.Get("Authorization"); got != "Bearer sesame" {
		t.Errorf("Authorization %q", got)
	}
	if got := header.Get("Accept-Encoding"); got != "identity" {
		t.Errorf("Accept-Encoding %q", got)
	}
	// A server that repeats the key does not bring it into a message.
	srv.set(answerJSON(401, `{"error":{"message":"Incorrect API key: sesame"}}`))
	if err := s.Prepare(req); err != nil {
		t.Fatal(err)
	}
	tr.Reset()
	if err := s.Generate(context.Background(), tr); err == nil || strings.Contains(err.Error(), "sesame") || !strings.Contains(err.Error(), "Incorrect API key: [API key]") {
		t.Errorf("got %v", err)
	}
}

// The timed path allocates nothing per event.
func TestStreamAllocates(t *testing.T) {
	srv := newTestServer(t)
	s := openSession(t, srv.open(t, nil))
	response := func(n int) []byte {
		var b strings.Builder
		b.WriteString(streamHead)
		for i := range n {
			b.WriteString(chunk(event(" wörd\\n", i+1)))
		}
		b.WriteString(chunk(last("length", n)) + chunk(doneMark) + "0\r\n\r\n")
		return []byte(b.String())
	}
	req := testRequest(true)
	req.Sampling.MaxTokens = 1000
	tr := bench.NewTrace(1000)
	conn := s.conn
	allocs := func(n int) float64 {
		bytes := response(n)
		return testing.AllocsPerRun(20, func() {
			tr.Reset()
			s.answer.reset(tr, &s.b.cfg.Server, req, &s.b.cfg)
			s.http = &http1{r: &pieces{bytes[:len(bytes)/3], bytes[len(bytes)/3:]}, buf: s.http.buf}
			s.conn = conn
			if err := s.http.head(); err != nil {
				t.Fatal(err)
			}
			if err := s.readStream(tr); err != nil {
				t.Fatal(err)
			}
			if err := s.answer.close(); err != nil || tr.Events != n {
				t.Fatal(tr.Events, err)
			}
		})
	}
	few, many := allocs(10), allocs(1000)
	if many > few {
		t.Errorf("%v allocations for 10 events, %v for 1000", few, many)
	}
}

func BenchmarkEvent(b *testing.B) {
	data := []byte(strings.TrimSuffix(event(" word", 7), "\n\n"))[len("data: "):]
	tr := bench.NewTrace(1)
	a := newTestAnswer(tr, true)
	b.ReportAllocs()
	for b.Loop() {
		tr.Reset()
		if err := completionsChunk(a, data); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkStream is the way of one event from the bytes read to its mark:
// HTTP, server-sent events, JSON, without the kernel.
func BenchmarkStream(b *testing.B) {
	const events = 1000
	srv := newTestServer(b)
	s := openSession(b, srv.open(b, nil))
	reads := pieces{[]byte(streamHead)}
	for i := range events {
		reads = append(reads, []byte(chunk(event(" word", i+1))))
	}
	reads = append(reads, []byte(chunk(last("length", events))+chunk(doneMark)+"0\r\n\r\n"))
	req := testRequest(true)
	req.Sampling.MaxTokens = events
	tr := bench.NewTrace(events)
	rest := make(pieces, len(reads))
	b.ReportAllocs()
	for b.Loop() {
		copy(rest, reads)
		left := rest
		tr.Reset()
		s.answer.reset(tr, &s.b.cfg.Server, req, &s.b.cfg)
		s.http = &http1{r: &left, buf: s.http.buf}
		if err := s.http.head(); err != nil {
			b.Fatal(err)
		}
		if err := s.readStream(tr); err != nil || tr.Events != events {
			b.Fatal(tr.Events, err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/events, "ns/event")
}
