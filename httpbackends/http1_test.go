package httpbackends

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
)

// pieces is a reader that gives one piece per read.
type pieces [][]byte

func (p *pieces) Read(b []byte) (int, error) {
	for len(*p) > 0 && len((*p)[0]) == 0 {
		*p = (*p)[1:]
	}
	if len(*p) == 0 {
		return 0, io.EOF
	}
	n := copy(b, (*p)[0])
	(*p)[0] = (*p)[0][n:]
	return n, nil
}

// readResponse reads one response to its end.
func readResponse(h *http1) (body string, err error) {
	if err := h.head(); err != nil {
		return "", err
	}
	var b strings.Builder
	for {
		p, err := h.body()
		if err == io.EOF {
			return b.String(), nil
		}
		if err != nil {
			return b.String(), err
		}
		if len(p) == 0 {
			return b.String(), errors.New("an empty piece")
		}
		b.Write(p)
	}
}

var responses = []struct {
	name, response string
	status         int
	body           string
	keepAlive      bool
	err            error
}{
	{"length", "HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nContent-Length: 5\r\n\r\nhello", 200, "hello", true, nil},
	{"no reason", "HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nhi", 200, "hi", true, nil},
	{"empty", "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 200, "", true, nil},
	{"chunks", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n", 200, "hello world", true, nil},
	{"chunk extensions", "HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n5;a=b\r\nhello\r\n0;last\r\n\r\n", 200, "hello", true, nil},
	{"chunk sizes in hex", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n000A\r\n0123456789\r\nb \r\n0123456789a\r\n0\r\n\r\n", 200, "01234567890123456789a", true, nil},
	{"trailers", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nX-A: 1\r\nX-B: 2\r\n\r\n", 200, "hi", true, nil},
	{"until close", "HTTP/1.1 200 OK\r\n\r\nhello", 200, "hello", false, nil},
	{"close announced", "HTTP/1.1 200 OK\r\nConnection: foo, Close\r\nContent-Length: 2\r\n\r\nhi", 200, "hi", false, nil},
	{"HTTP/1.0", "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi", 200, "hi", false, nil},
	{"HTTP/1.0 kept", "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nhi", 200, "hi", true, nil},
	{"line feeds only", "HTTP/1.1 200 OK\nContent-Length: 2\n\nhi", 200, "hi", true, nil},
	{"interim", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", 200, "hi", true, nil},
	{"no content", "HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", 204, "", true, nil},
	{"length and chunks", "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n", 200, "hi", false, nil},
	{"length twice", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nhi", 200, "hi", true, nil},
	{"error", "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 3\r\nContent-Length: 2\r\n\r\nno", 503, "no", true, nil},

	{"nothing", "", 0, "", false, errSilent},
	{"cut in the status line", "HTTP/1.1 20", 0, "", false, errCut},
	{"cut in the header", "HTTP/1.1 200 OK\r\nContent-", 0, "", false, errCut},
	{"cut in the body", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello", 0, "hello", false, errCut},
	{"cut in a chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nhello", 0, "hello", false, errCut},
	{"cut between chunks", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", 0, "hello", false, errCut},
	{"cut after the last chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", 0, "", false, errCut},

	{"not HTTP", "SSH-2.0-OpenSSH_9.6\r\n", 0, "", false, errProtocol},
	{"HTTP/2", "HTTP/2 200\r\n\r\n", 0, "", false, errProtocol},
	{"status of letters", "HTTP/1.1 abc OK\r\n\r\n", 0, "", false, errProtocol},
	{"status of two digits", "HTTP/1.1 20 OK\r\n\r\n", 0, "", false, errProtocol},
	{"header without colon", "HTTP/1.1 200 OK\r\nhello\r\n\r\n", 0, "", false, errProtocol},
	{"folded header", "HTTP/1.1 200 OK\r\nA: b\r\n c: d\r\n\r\n", 0, "", false, errProtocol},
	{"negative length", "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", 0, "", false, errProtocol},
	{"length of letters", "HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", 0, "", false, errProtocol},
	{"no length", "HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\n", 0, "", false, errProtocol},
	{"two lengths", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nhi", 0, "", false, errProtocol},
	{"unknown transfer-encoding", "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 0, "", false, errProtocol},
	{"chunk size of letters", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", 0, "", false, errProtocol},
	{"chunk size over all bounds", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n", 0, "", false, errProtocol},
	{"chunk longer than it said", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhello\r\n0\r\n\r\n", 0, "he", false, errProtocol},
	{"switching protocols", "HTTP/1.1 101 Switching Protocols\r\n\r\n", 0, "", false, errProtocol},
	{"interim for ever", strings.Repeat("HTTP/1.1 100 Continue\r\n\r\n", 100), 0, "", false, errProtocol},
	{"endless header line", "HTTP/1.1 200 OK\r\nA: " + strings.Repeat("x", 1<<20), 0, "", false, errProtocol},
	{"endless header", "HTTP/1.1 200 OK\r\n" + strings.Repeat("A: b\r\n", 1<<17), 0, "", false, errProtocol},
	{"endless trailer", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + strings.Repeat("A: b\r\n", 1<<17), 0, "", false, errProtocol},
}

func TestHTTP1(t *testing.T) {
	for _, tc := range responses {
		t.Run(tc.name, func(t *testing.T) {
			check := func(how string, p ...[]byte) {
				t.Helper()
				h := newHTTP1((*pieces)(&p), 4096)
				body, err := readResponse(h)
				if !errors.Is(err, tc.err) || (err == nil) != (tc.err == nil) || body != tc.body {
					t.Fatalf("%s: body %q, error %v; want %q, %v", how, body, err, tc.body, tc.err)
				}
				if err == nil && (h.status != tc.status || h.keepAlive != tc.keepAlive || !h.over) {
					t.Errorf("%s: status %d, keep-alive %v, over %v; want %d, %v", how, h.status, h.keepAlive, h.over, tc.status, tc.keepAlive)
				}
			}
			b := []byte(tc.response)
			check("whole", slices.Clone(b))
			if len(b) > 1000 {
				check("in pieces", slices.Collect(slices.Chunk(slices.Clone(b), 1000))...)
				return
			}
			check("byte by byte", slices.Collect(slices.Chunk(slices.Clone(b), 1))...)
			for i := range b {
				check(fmt.Sprintf("cut at %d", i), slices.Clone(b[:i]), slices.Clone(b[i:]))
			}
		})
	}
}

func TestHTTP1Header(t *testing.T) {
	h := newHTTP1(strings.NewReader("HTTP/1.1 429 Too Many\r\nCONTENT-TYPE: Text/Event-Stream; charset=utf-8\r\ncontent-encoding:  gzip \r\nRetry-After: 7\r\nLocation: /x\r\nX-Prompt-Tokens: 14\r\nx-generated-tokens: 4\r\nx-queue-time: 7\r\nx-inference-time: 119 \r\nX-Total-Time: 3\r\nContent-Length: 0\r\n\r\n"), 4096)
	if err := h.head(); err != nil {
		t.Fatal(err)
	}
	want := header{"Text/Event-Stream; charset=utf-8", "gzip", "7", "/x", account{14, 4, 7, 119}}
	if h.header != want || h.reason != "Too Many" {
		t.Errorf("got %+v %q, want %+v", h.header, h.reason, want)
	}
	if !hasType(h.header.contentType, "text/event-stream") || hasType("text/html", "text/event-stream") || !hasType("", "a/b") {
		t.Error("hasType")
	}
}

// Responses that follow each other on one connection do not mix.
func TestHTTP1KeepAlive(t *testing.T) {
	var stream []byte
	var want []string
	for _, r := range responses {
		if r.keepAlive {
			stream = append(stream, r.response...)
			want = append(want, r.body)
		}
	}
	for _, size := range []int{1, 7, 4096} {
		p := pieces(slices.Collect(slices.Chunk(slices.Clone(stream), size)))
		h := newHTTP1(&p, 4096)
		for i, w := range want {
			body, err := readResponse(h)
			if err != nil || body != w {
				t.Fatalf("pieces of %d: response %d is %q, %v; want %q", size, i, body, err, w)
			}
		}
		if _, err := readResponse(h); !errors.Is(err, errSilent) {
			t.Errorf("after the last: %v", err)
		}
	}
}

// Whatever comes, any split gives the same, and what net/http understands too
// is understood alike.
func FuzzHTTP1(f *testing.F) {
	for i, r := range responses {
		if len(r.response) < 1000 {
			f.Add([]byte(r.response), uint16(i))
		}
	}
	f.Fuzz(func(t *testing.T, response []byte, step uint16) {
		whole := pieces{slices.Clone(response)}
		parts := pieces(slices.Collect(slices.Chunk(slices.Clone(response), int(step)%53+1)))
		hw, hp := newHTTP1(&whole, 4096), newHTTP1(&parts, 4096)
		body, err := readResponse(hw)
		body2, err2 := readResponse(hp)
		if body != body2 || fmt.Sprint(err) != fmt.Sprint(err2) || hw.keepAlive != hp.keepAlive && err == nil {
			t.Fatalf("%q: whole %q, %v; in parts %q, %v", response, body, err, body2, err2)
		}
		if err != nil {
			return
		}
		resp, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(response)), &http.Request{Method: http.MethodPost})
		if err != nil || resp.StatusCode < 200 || resp.ProtoMinor == 0 {
			return
		}
		want, err := io.ReadAll(resp.Body)
		if err == nil && (hw.status != resp.StatusCode || body != string(want)) {
			t.Errorf("%q: status %d, body %q; net/http: %d, %q", response, hw.status, body, resp.StatusCode, want)
		}
	})
}

func TestOneLine(t *testing.T) {
	for in, want := range map[string]string{
		"plain":                         "plain",
		"two\r\n lines\tand\x00 more\n": "two lines and more",
		"bad \xff byte":                 "bad \ufffd byte",
		"colour \x1b[31mred":            "colour [31mred",
		strings.Repeat("가", 200):        strings.Repeat("가", 100) + "…",
	} {
		if got := oneLine(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
}
