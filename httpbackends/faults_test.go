package httpbackends

import (
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/nativebench/nativebench/internal/bench"
	"github.com/nativebench/nativebench/internal/bench/benchtest"
)

// stream sends pieces of a stream, then its proper end.
func streamOf(events ...string) func(*call) {
	return func(c *call) {
		c.write("%s", streamHead)
		for _, e := range events {
			c.write("%s", chunk(e))
		}
		c.write("0\r\n\r\n")
	}
}

// raw sends bytes and closes.
func raw(s string) func(*call) {
	return func(c *call) {
		c.write("%s", s)
		c.close = true
	}
}

func answerJSON(status int, body string) func(*call) {
	return func(c *call) { writeJSON(c, status, body) }
}

// silent sends what is given and then nothing until the client goes away.
func silent(s string) func(*call) {
	return func(c *call) {
		c.write("%s", s)
		_, _ = c.Read(make([]byte, 1))
		c.close = true
	}
}

// reset sends what is given and breaks the connection.
func reset(s string) func(*call) {
	return func(c *call) {
		c.write("%s", s)
		_ = c.Conn.(*net.TCPConn).SetLinger(0)
		c.close = true
	}
}

// faults are what a server may do to a request for 4 tokens.
var faults = []struct {
	name    string
	stream  bool
	timeout bool // the request has a time limit
	answer  func(*call)
	class   bench.Class
	want    string // part of the message
	events  int    // with content, seen before
}{
	{name: "closes at once", stream: true, answer: raw(""), class: bench.Reset, want: "without an answer"},
	{name: "resets at once", answer: reset(""), class: bench.Reset, want: "llama-server"},
	{name: "closes in the header", stream: true, answer: raw("HTTP/1.1 200 OK\r\nContent-"), class: bench.Reset, want: "before the answer was whole"},
	{name: "closes in mid-stream", stream: true, answer: raw(streamHead + chunk(event(" w", 1))), class: bench.Reset, want: "before the answer was whole", events: 1},
	{name: "closes in a sync body", answer: raw("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"choices\""), class: bench.Reset, want: "before the answer was whole"},
	{name: "resets in mid-stream", stream: true, answer: reset(streamHead + chunk(event(" w", 1))), class: bench.Reset},
	{name: "ends the stream early", stream: true, answer: streamOf(event(" w", 1), event(" w", 2)), class: bench.Truncated, want: "after 2 events with content, without its end mark", events: 2},
	{name: "ends after finish without [DONE]", stream: true, answer: streamOf(event(" w", 1), last("length", 1)), class: bench.Truncated, want: "without its end mark", events: 1},
	{name: "ends a stream without length early", stream: true, answer: raw("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + event(" w", 1)), class: bench.Truncated, events: 1},
	{name: "ends inside an event", stream: true, answer: streamOf(event(" w", 1), event(" w", 2)[:30]), class: bench.Malformed, want: "no JSON object", events: 1},
	{name: "empty stream", stream: true, answer: streamOf(), class: bench.Empty, want: "without any content"},
	{name: "nothing but [DONE]", stream: true, answer: streamOf(doneMark), class: bench.Empty, want: "without any content"},
	{name: "no content but usage", stream: true, answer: streamOf(last("stop", 1), doneMark), class: bench.Empty, want: "(1 tokens by its own count)"},
	{name: "only comments", stream: true, answer: streamOf(": ping\n\n", ":\n\n"), class: bench.Empty},
	{name: "empty sync body", answer: raw("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"), class: bench.Empty, want: "empty body"},
	{name: "empty sync text", answer: answerJSON(200, whole("", "length", 0)), class: bench.Empty},
	{name: "error object in a stream", stream: true, answer: streamOf(event(" w", 1), "data: {\"error\":{\"message\":\"out of memory\",\"type\":\"server_error\",\"code\":500}}\n\n", doneMark), class: bench.ServerFail, want: "out of memory", events: 1},
	{name: "error string in a stream", stream: true, answer: streamOf("data: {\"error\":\"Model is overloaded\",\"error_type\":\"overloaded\"}\n\n"), class: bench.Busy, want: "Model is overloaded"},
	{name: "validation error in a stream", stream: true, answer: streamOf("data: {\"error\":\"Input validation error\",\"error_type\":\"validation\"}\n\n"), class: bench.Refused, want: "Input validation error"},
	{name: "error that is no JSON", stream: true, answer: streamOf("data: {\"error\": \"it said \"no\"\"}\n\n"), class: bench.ServerFail, want: `it said "no"`},
	{name: "error in a sync 200", answer: answerJSON(200, `{"error":{"message":"no slot","code":503}}`), class: bench.Busy, want: "no slot"},
	{name: "JSON error to a stream request", stream: true, answer: answerJSON(200, `{"error":{"message":"not now"}}`), class: bench.ServerFail, want: "not now"},
	{name: "finish_reason error", stream: true, answer: streamOf(event(" w", 1), last("abort", 1), doneMark), class: bench.ServerFail, want: `finish_reason "abort"`, events: 1},
	{name: "more tokens than asked", stream: true, answer: streamOf(event(" w", 1), last("stop", 9), doneMark), class: bench.ServerFail, want: "9 tokens where at most 4", events: 1},
	{name: "400", stream: true, answer: answerJSON(400, `{"error":{"code":400,"message":"request (2000 tokens) exceeds the available context size","type":"exceed_context_size_error"}}`), class: bench.Refused, want: "exceeds the available context size (status 400)"},
	{name: "401", answer: answerJSON(401, `{"error":"Unauthorized"}`), class: bench.Refused, want: "Unauthorized (status 401)"},
	{name: "404 of FastAPI", answer: answerJSON(404, `{"detail":"Not Found"}`), class: bench.Refused, want: "Not Found (status 404)"},
	{name: "422 with a list", answer: answerJSON(422, `{"detail":[{"loc":["body"],"msg":"field required"}]}`), class: bench.Refused, want: "field required"},
	{name: "flat error body", answer: answerJSON(400, `{"object":"error","message":"too long","type":"BadRequestError","code":400}`), class: bench.Refused, want: "too long (status 400)"},
	{name: "429", answer: raw("HTTP/1.1 429 Too Many Requests\r\nRetry-After: 12\r\nContent-Length: 4\r\n\r\nslow"), class: bench.Busy, want: "slow (status 429, retry after 12)"},
	{name: "503", stream: true, answer: answerJSON(503, `{"error":{"message":"Loading model","code":503}}`), class: bench.Busy, want: "Loading model"},
	{name: "500 in plain text", answer: raw("HTTP/1.1 500 Oh\r\nContent-Type: text/plain\r\nContent-Length: 21\r\n\r\nInternal Server\nError"), class: bench.ServerFail, want: "Internal Server Error (status 500)"},
	{name: "500 without a body", answer: raw("HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n"), class: bench.ServerFail, want: "no reason given (status 500)"},
	{name: "500 cut short", answer: raw("HTTP/1.1 500 Oh no\r\nContent-Length: 100\r\n\r\n"), class: bench.ServerFail, want: "Oh no (status 500)"},
	{name: "500 with a huge body", answer: raw("HTTP/1.1 500 Oh\r\n\r\n" + strings.Repeat("<p>sorry</p>\n", 20000)), class: bench.ServerFail, want: "status 500"},
	{name: "redirect", stream: true, answer: raw("HTTP/1.1 307 Temporary\r\nLocation: http://user:secret@other/\r\nContent-Length: 0\r\n\r\n"), class: bench.Refused, want: "redirects (307)"},
	{name: "202", answer: answerJSON(202, `{}`), class: bench.Malformed, want: "status 202"},
	{name: "not HTTP", answer: raw("\x16\x03\x01\x02\x00\x01\r\n"), class: bench.Malformed, want: "not proper HTTP"},
	{name: "bad chunk size", stream: true, answer: raw(streamHead + "zz\r\n"), class: bench.Malformed, want: "chunk size"},
	{name: "gzip", answer: raw("HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n\x1f\x8b"), class: bench.Malformed, want: "content-encoding"},
	{name: "HTML", answer: raw("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 11\r\n\r\n<h1>hi</h1>"), class: bench.Malformed, want: "text/html"},
	{name: "sync answer to a stream request", stream: true, answer: answerJSON(200, whole(" w", "length", 1)), class: bench.Malformed, want: "application/json"},
	{name: "stream to a sync request", answer: streamOf(event(" w", 1), doneMark), class: bench.Malformed, want: "text/event-stream"},
	{name: "event that is no JSON", stream: true, answer: streamOf("data: hello\n\n"), class: bench.Malformed, want: `"hello"`},
	{name: "event that is an array", stream: true, answer: streamOf("data: []\n\n"), class: bench.Malformed, want: "no JSON object"},
	{name: "sync body that is no JSON", answer: answerJSON(200, `{"choices":[`), class: bench.Malformed, want: "no JSON object"},
	{name: "line of 5 MB", stream: true, answer: func(c *call) {
		c.write("%s", streamHead)
		c.write("%s", chunk("data: "+strings.Repeat("x", 5<<20)))
		c.close = true
	}, class: bench.Malformed, want: "bytes long"},
	{name: "endless comments", stream: true, answer: func(c *call) {
		c.write("%s", streamHead)
		for range 4000 {
			if _, err := fmt.Fprint(c.Conn, chunk(strings.Repeat(": ping\n\n", 1000))); err != nil {
				break
			}
		}
		c.close = true
	}, class: bench.Malformed, want: "more than any answer"},
	{name: "no answer", stream: true, timeout: true, answer: silent(""), class: bench.Timeout, want: "had not answered yet: the time limit passed"},
	{name: "no first token", stream: true, timeout: true, answer: silent(streamHead), class: bench.Timeout, want: "had sent no content yet"},
	{name: "hangs in mid-stream", stream: true, timeout: true, answer: silent(streamHead + chunk(event(" w", 1))), class: bench.Timeout, want: "had sent 1 events with content", events: 1},
	{name: "hangs in a sync body", timeout: true, answer: silent("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"), class: bench.Timeout, want: "the time limit passed"},
}

// Each fault has its class and message, keeps what was stamped, and does no
// harm to the request after it.
func TestFaults(t *testing.T) {
	for _, tc := range faults {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			srv := newTestServer(t)
			s := openSession(t, srv.open(t, nil))
			srv.set(tc.answer)
			ctx := context.Background()
			if tc.timeout {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, 700*time.Millisecond)
				defer cancel()
			}
			req := testRequest(tc.stream)
			if err := s.Prepare(req); err != nil {
				t.Fatal(err)
			}
			tr := bench.NewTrace(8)
			before := bench.Now()
			err := s.Generate(ctx, tr)
			if got := bench.ClassOf(err); got != tc.class || !strings.Contains(fmt.Sprint(err), tc.want) {
				t.Errorf("class %q: %v; want %q: …%s…", got, err, tc.class, tc.want)
			}
			if err != nil && strings.ContainsAny(err.Error(), "\r\n") || strings.Contains(fmt.Sprint(err), "secret") {
				t.Errorf("message %q is not one line, or has a secret in it", err)
			}
			if tc.name != "resets in mid-stream" && tr.Events != tc.events { // a reset may overtake what was sent before
				t.Errorf("%d events were kept, want %d", tr.Events, tc.events)
			}
			if tr.Start < before || tr.End < tr.Start || tr.End > bench.Now() || len(tr.Marks) != 0 && tr.Marks[0].T < tr.Start {
				t.Errorf("start %d, end %d, marks %v", tr.Start, tr.End, tr.Marks)
			}

			srv.set(nil)
			for _, stream := range []bool{true, false} {
				req := testRequest(stream)
				if err := s.Prepare(req); err != nil {
					t.Fatal(err)
				}
				tr.Reset()
				if err := s.Generate(context.Background(), tr); err != nil {
					t.Fatalf("the next request: %v", err)
				}
				if err := benchtest.Check(tr, req); err != nil {
					t.Errorf("the next request: %v", err)
				}
			}
		})
	}
}
