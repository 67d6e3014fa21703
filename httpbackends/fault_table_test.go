package httpbackends

import (
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/nativebench/nativebench/internal/bench"
)

// streamOf sends pieces of a stream, then its proper end.
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

// forever sends what is given, then the rest again and again until the client
// goes away.
func forever(s, rest string) func(*call) {
	return func(c *call) {
		c.write("%s", s)
		for {
			if _, err := fmt.Fprint(c, rest); err != nil {
				break
			}
			if len(rest) < 1000 { // a trickle
				time.Sleep(time.Millisecond)
			}
		}
		c.close = true
	}
}

// repeatedly is a chunk that holds s many times.
func repeatedly(s string) string { return chunk(strings.Repeat(s, 64<<10/len(s))) }

// fault is what a server may do to a request for 4 tokens.
type fault struct {
	name    string
	stream  bool
	timeout bool         // the request has a time limit
	limits  bench.Limits // FirstToken and Gap
	answer  func(*call)
	greet   func(net.Conn)  // in place of answer: what becomes of the connection
	spoil   func(*backend)  // no connection can be opened
	class   bench.Class     // OK: the answer is whole
	want    string          // part of the message
	events  int             // with content, seen before; -1: any number (a reset may overtake what was sent)
	after   time.Duration   // RetryAfter, or more
	warns   []bench.Warning // of a whole answer
}

// faults is the table; those of class OK must not be taken for failures.
var faults = []fault{
	{name: "closes at once", stream: true, answer: raw(""), class: bench.Reset, want: "without an answer"},
	{name: "resets at once", answer: reset(""), class: bench.Reset, want: "llama-server"},
	{name: "closes in the header", stream: true, answer: raw("HTTP/1.1 200 OK\r\nContent-"), class: bench.Reset, want: "before the answer was whole"},
	{name: "closes in mid-stream", stream: true, answer: raw(streamHead + chunk(event(" w", 1))), class: bench.Reset, want: "before the answer was whole", events: 1},
	{name: "closes in a sync body", answer: raw("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"choices\""), class: bench.Reset, want: "before the answer was whole"},
	{name: "resets in mid-stream", stream: true, answer: reset(streamHead + chunk(event(" w", 1))), class: bench.Reset, events: -1},
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
	{name: "401", answer: answerJSON(401, `{"error":"Unauthorized"}`), class: bench.Refused, want: "Unauthorized: it wants an API key: give --api-key-env llama-server=VARIABLE (status 401)"},
	{name: "404 of FastAPI", answer: answerJSON(404, `{"detail":"Not Found"}`), class: bench.Refused, want: "Not Found (status 404)"},
	{name: "422 with a list", answer: answerJSON(422, `{"detail":[{"loc":["body"],"msg":"field required"}]}`), class: bench.Refused, want: "field required"},
	{name: "flat error body", answer: answerJSON(400, `{"object":"error","message":"too long","type":"BadRequestError","code":400}`), class: bench.Refused, want: "too long (status 400)"},
	{name: "429", answer: raw("HTTP/1.1 429 Too Many Requests\r\nRetry-After: 12\r\nContent-Length: 4\r\n\r\nslow"), class: bench.Busy, want: "slow (status 429, retry after 12)", after: 12 * time.Second},
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
	{name: "a long page of HTML", stream: true, answer: raw("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n" + strings.Repeat("<p>hi</p>\n", 13000)), class: bench.Malformed, want: `content-type "text/html" where a stream was asked for: "<p>hi</p>`},
	{name: "HTML cut short", answer: raw("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 11\r\n\r\n<h1>"), class: bench.Malformed, want: `content-type "text/html" where JSON was asked for: "<h1>"`},
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
	{name: "content without end", stream: true, answer: forever(streamHead, repeatedly(event(" w", 1))), class: bench.Malformed, want: "more than any answer", events: -1},
	{name: "content trickles without end", stream: true, timeout: true, answer: forever(streamHead, chunk(event(" w", 1))), class: bench.Timeout, want: "events with content: the time limit passed", events: -1},
	{name: "comments without end", stream: true, answer: forever(streamHead, repeatedly(": ping\n\n")), class: bench.Malformed, want: "more than any answer"},
	{name: "empty events without end", stream: true, answer: forever(streamHead, repeatedly("data: {}\n\n")), class: bench.Malformed, want: "more than any answer"},
	{name: "a line without end", stream: true, answer: forever(streamHead+chunk("data: "), repeatedly("x")), class: bench.Malformed, want: "a line of the stream is over"},
	{name: "an event without end", stream: true, answer: forever(streamHead, repeatedly("data: xxxxxxxx\n")), class: bench.Malformed, want: "event of the stream is over"},
	{name: "a header without end", answer: forever("HTTP/1.1 200 OK\r\n", strings.Repeat("X-Y: z\r\n", 1000)), class: bench.Malformed, want: "header is over"},
	{name: "interim answers without end", answer: forever("", strings.Repeat("HTTP/1.1 102 Processing\r\n\r\n", 100)), class: bench.Malformed, want: "too many interim answers"},
	{name: "a sync body without end", answer: forever("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n", repeatedly("{")), class: bench.Malformed, want: "more than any answer"},
	{name: "no answer", stream: true, timeout: true, answer: silent(""), class: bench.Timeout, want: "had not answered yet: the time limit passed"},
	{name: "no first token", stream: true, timeout: true, answer: silent(streamHead), class: bench.Timeout, want: "had sent no content yet"},
	{name: "hangs in mid-stream", stream: true, timeout: true, answer: silent(streamHead + chunk(event(" w", 1))), class: bench.Timeout, want: "had sent 1 events with content", events: 1},
	{name: "hangs in a sync body", timeout: true, answer: silent("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"), class: bench.Timeout, want: "the time limit passed"},
	{name: "whole limit, comments trickle", stream: true, timeout: true, answer: forever(streamHead, chunk(": ping\n\n")), class: bench.Timeout, want: "had sent no content yet"},
	{name: "token limit alone, no answer", stream: true, timeout: true, limits: bench.Limits{Gap: 50 * time.Millisecond}, answer: silent(""), class: bench.Timeout, want: "had not answered yet"},
	{name: "first-token limit, no answer", stream: true, limits: firstToken, answer: silent(""), class: bench.Timeout, want: "sent no content within 200ms (limit --first-token-timeout), no whole header"},
	{name: "first-token limit, nothing but a header", stream: true, limits: firstToken, answer: silent(streamHead), class: bench.Timeout, want: fmt.Sprintf("--first-token-timeout), %d bytes without any", len(streamHead))},
	{name: "first-token limit, comments trickle", stream: true, limits: firstToken, answer: forever(streamHead, chunk(": ping\n\n")), class: bench.Timeout, want: "--first-token-timeout"},
	{name: "first-token limit, empty events trickle", stream: true, limits: firstToken, answer: forever(streamHead, chunk(event("", 1))), class: bench.Timeout, want: "--first-token-timeout"},
	{name: "token limit, silence", stream: true, limits: betweenTokens, answer: silent(streamHead + chunk(event(" w", 1))), class: bench.Timeout, want: "sent no content for 100ms (limit --token-timeout), after 1 events", events: 1},
	{name: "token limit, comments trickle", stream: true, limits: betweenTokens, answer: forever(streamHead+chunk(event(" w", 1)), chunk(": ping\n\n")), class: bench.Timeout, want: "--token-timeout", events: 1},
	{name: "token limit, empty events trickle", stream: true, limits: betweenTokens, answer: forever(streamHead+chunk(event(" w", 1)+event(" w", 2)), chunk(event("", 2))), class: bench.Timeout, want: "after 2 events", events: 2},
	{name: "token limit, no end mark", stream: true, limits: betweenTokens, answer: silent(streamHead + chunk(event(" w", 1)+last("stop", 1))), class: bench.Timeout, want: "--token-timeout", events: 1},
	{name: "both limits, silence", stream: true, limits: bench.Limits{FirstToken: time.Minute, Gap: 100 * time.Millisecond}, answer: silent(streamHead + chunk(event(" w", 1))), class: bench.Timeout, want: "--token-timeout", events: 1},
	{name: "limits that are kept", stream: true, limits: bench.Limits{FirstToken: time.Minute, Gap: time.Minute}, answer: goodAnswer, events: 4},
	{name: "limits of a sync request", limits: bench.Limits{FirstToken: time.Nanosecond, Gap: time.Nanosecond}, answer: goodAnswer, events: 1},

	{name: "nobody listens", stream: true, spoil: func(b *backend) { b.addr = "127.0.0.1:1" }, class: bench.Connect, want: "is it running there?"},
	{name: "no such host", stream: true, spoil: func(b *backend) { b.addr = "nowhere.invalid:80" }, class: bench.Connect, want: "nowhere.invalid"},
	{name: "connect limit", stream: true, spoil: func(b *backend) { b.cfg.ConnectTimeout = time.Nanosecond }, class: bench.Connect, want: "nobody answered within 1ns"},
	{name: "accepts and closes", stream: true, greet: func(net.Conn) {}, class: bench.Reset, want: "llama-server"},
	{name: "accepts and is silent", stream: true, timeout: true, greet: func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }, class: bench.Timeout, want: "had not answered yet"},
	{name: "takes half of the request and closes", greet: func(c net.Conn) { _, _ = io.ReadFull(c, make([]byte, 40)) }, class: bench.Reset, want: "llama-server"},

	{name: "429, retry at a date", answer: raw("HTTP/1.1 429 Too Many Requests\r\nRetry-After: Wed, 21 Oct 2201 07:28:00 GMT\r\nContent-Length: 4\r\n\r\nslow"), class: bench.Busy, want: "retry after Wed, 21 Oct 2201 07:28:00 GMT", after: time.Hour},
	{name: "503, retry at a date gone by", answer: raw("HTTP/1.1 503 Oh\r\nRetry-After: Wed, 21 Oct 2015 07:28:00 GMT\r\nContent-Length: 0\r\n\r\n"), class: bench.Busy, want: "(status 503, retry after Wed, 21 Oct 2015"},
	{name: "503, retry after nonsense", answer: raw("HTTP/1.1 503 Oh\r\nRetry-After: a while\r\nContent-Length: 0\r\n\r\n"), class: bench.Busy, want: "retry after a while"},
	{name: "502 of a proxy", stream: true, answer: raw("HTTP/1.1 502 Bad Gateway\r\nContent-Type: text/html\r\n\r\n<h1>Bad Gateway</h1>"), class: bench.ServerFail, want: "Bad Gateway"},
	{name: "504 of a proxy", stream: true, answer: raw("HTTP/1.1 504 Gateway Timeout\r\nContent-Length: 0\r\n\r\n"), class: bench.ServerFail, want: "status 504"},
	{name: "two lengths", answer: raw("HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n{}"), class: bench.Malformed, want: "content-length"},
	{name: "gzip as transfer encoding", answer: raw("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n"), class: bench.Malformed, want: "transfer-encoding"},
	{name: "a chunk longer than it said", stream: true, answer: raw(streamHead + "1\r\ndata: \r\n"), class: bench.Malformed, want: "longer than it said"},
	{name: "switches protocol", answer: raw("HTTP/1.1 101 Switching Protocols\r\n\r\n"), class: bench.Malformed, want: "another protocol"},

	{name: "chunk extensions and trailers", stream: true, answer: raw(streamHead + strings.ReplaceAll(chunk(wholeStream("length", 4)), "\r\ndata", ";name=\"v\"\r\ndata") + "0;last\r\nX-Trailer: 1\r\nX-Other: 2\r\n\r\n"), events: 4},
	{name: "no finish_reason", stream: true, answer: streamOf(event(" w", 1), event(" w", 2), event(" w", 3), event(" w", 4), "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":4}}\n\n", doneMark), events: 4, warns: []bench.Warning{bench.WarnNoFinish}},
	{name: "fewer tokens than the usage says", stream: true, answer: streamOf("data: {\"choices\":[{\"text\":\"a\"}]}\n\n", "data: {\"choices\":[{\"text\":\"\",\"finish_reason\":\"length\"}],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":4}}\n\n", doneMark), events: 1, warns: []bench.Warning{bench.WarnCount}},
	{name: "more events than the usage says", stream: true, answer: streamOf("data: {\"choices\":[{\"text\":\"a\"}]}\n\n", "data: {\"choices\":[{\"text\":\"b\",\"finish_reason\":\"length\"}],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":1}}\n\n", doneMark), events: 2, warns: []bench.Warning{bench.WarnCut, bench.WarnCount}},
	{name: "stops short with EOS ignored", stream: true, answer: streamOf(wholeStream("stop", 2)), events: 2, warns: []bench.Warning{bench.WarnShort}},
	{name: "cut to a limit of the server's own", stream: true, answer: streamOf(wholeStream("length", 2)), events: 2, warns: []bench.Warning{bench.WarnCut}},
	{name: "cut, in sync mode", answer: answerJSON(200, whole(" w w", "length", 2)), events: 1, warns: []bench.Warning{bench.WarnCut}},
	{name: "no usage", answer: answerJSON(200, `{"choices":[{"text":" w","finish_reason":"length"}]}`), events: 1, warns: []bench.Warning{bench.WarnTokenCount}},
}

var (
	firstToken    = bench.Limits{FirstToken: 200 * time.Millisecond}
	betweenTokens = bench.Limits{Gap: 100 * time.Millisecond}
)

// wholeStream is a stream of n tokens up to its end mark.
func wholeStream(finish string, n int) string {
	var all strings.Builder
	for i := range n {
		all.WriteString(event(" w", i+1))
	}
	return all.String() + last(finish, n) + doneMark
}
