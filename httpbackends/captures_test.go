package httpbackends

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nativebench/nativebench/internal/bench"
	"github.com/nativebench/nativebench/internal/bench/benchtest"
)

// capture is what a real server sent in answer to a request, read by read (see
// testdata/captures/README.md).
type capture struct {
	route     string     // asked for; empty if by GET
	stream    bool       // asked for, or answered with
	maxTokens int        // asked for; a large number if not
	ignoreEOS bool       // asked for
	exchanges [][][]byte // of one connection, the reads of each
}

var (
	captureRead  = regexp.MustCompile(`(?m)^\[ *[\d.]+ ms\] (?:(\d+) bytes|EOF|\(client|!!)(?: \(request (\d)\))?.*\n?`)
	captureRoute = regexp.MustCompile(`POST (?:http://[^/ ]+)?(/\S*)`)
	captureMax   = regexp.MustCompile(`"?(?:max_tokens|max_new_tokens|max_completion_tokens)"?:? (\d+)|"(?:max_tokens|max_new_tokens|max_completion_tokens)":(\d+)`)
	captureChunk = regexp.MustCompile(`(?m)^[0-9a-fA-F]+\r\n((?:data|event):[^\r]*)\r\n`)
)

// readCapture parses one file.
func readCapture(t testing.TB, path string) capture {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	at := captureRead.FindAllSubmatchIndex(text, -1)
	if len(at) == 0 {
		t.Fatalf("%s has no reads", path)
	}
	head := string(text[:at[0][0]])
	c := capture{maxTokens: 4000}
	if m := captureRoute.FindStringSubmatch(head); m != nil {
		c.route = m[1]
	}
	if m := captureMax.FindStringSubmatch(head); m != nil {
		c.maxTokens, _ = strconv.Atoi(m[1] + m[2])
	}
	c.ignoreEOS = regexp.MustCompile(`"ignore_eos": ?true`).MatchString(head)
	c.exchanges = [][][]byte{nil}
	for i, m := range at {
		if m[2] < 0 {
			continue // no bytes
		}
		if m[4] >= 0 && string(text[m[4]:m[5]]) == "2" && len(c.exchanges) == 1 {
			c.exchanges = append(c.exchanges, nil)
		}
		end := len(text)
		if i+1 < len(at) {
			end = at[i+1][0]
		}
		read := bytes.TrimSuffix(text[m[1]:end], []byte("\n"))
		read = bytes.ReplaceAll(read, []byte(`\r`+"\n"), []byte("\r\n"))
		size, _ := strconv.Atoi(string(text[m[2]:m[3]]))
		if len(read) > size { // the client left; remarks follow
			read = read[:size]
		}
		if len(read) < size { // paths were shortened
			read = captureChunk.ReplaceAllFunc(read, func(chunk []byte) []byte {
				data := chunk[bytes.IndexByte(chunk, '\n')+1 : len(chunk)-2]
				return fmt.Appendf(nil, "%x\r\n%s\r\n", len(data), data)
			})
		}
		last := len(c.exchanges) - 1
		c.exchanges[last] = append(c.exchanges[last], read)
	}
	for _, reads := range c.exchanges {
		fixLength(reads)
	}
	first := bytes.Join(c.exchanges[0], nil)
	c.stream = c.route == "/generate_stream" || bytes.Contains(first, []byte("text/event-stream")) ||
		regexp.MustCompile(`"stream": ?true`).MatchString(head)
	return c
}

// fixLength makes the content-length of an answer whose text was shortened true.
func fixLength(reads [][]byte) {
	whole := bytes.Join(reads, nil)
	_, body, ok := bytes.Cut(whole, []byte("\r\n\r\n"))
	if !ok || bytes.Contains(whole, []byte("hunked\r\n")) {
		return
	}
	length := regexp.MustCompile(`(?i)(\ncontent-length: )\d+`)
	reads[0] = length.ReplaceAll(reads[0], fmt.Appendf(nil, "${1}%d", len(body)))
}

// row is the server that gave the capture, and whether on its chat route.
func (c capture) row(dir string) (row Server, chat bool) {
	chat = c.route == "/v1/chat/completions"
	switch {
	case dir == "vllm":
		row = vllmServer()
	case dir != "tgi":
		row = transformersServe()
	default:
		row = tgiServer()
		if c.route == "/v1/completions" {
			row.Dialect = OpenAICompletions{}
		}
	}
	if chat {
		row.Dialect = OpenAIChat{}
	}
	row.Route, row.StreamRoute = c.route, ""
	return row, chat
}

// captureServer answers requests with captured bytes.
type captureServer struct {
	net.Listener
	exchanges chan [][]byte // one per request; the connection is closed when it is empty
	loop      *loop         // of its clients
}

func newCaptureServer(t *testing.T) *captureServer {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &captureServer{Listener: l, exchanges: make(chan [][]byte, 2), loop: testLoop(t)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			s.serve(conn)
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
	})
	return s
}

func (s *captureServer) serve(conn net.Conn) {
	defer conn.Close()
	r := bufio.NewReader(conn)
	for {
		req, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		if _, err := io.Copy(io.Discard, req.Body); err != nil {
			return
		}
		for _, piece := range <-s.exchanges {
			if _, err := conn.Write(piece); err != nil {
				return
			}
		}
		if len(s.exchanges) == 0 {
			return
		}
	}
}

// outcome is what a capture must come to.
type outcome struct {
	class    bench.Class
	message  string // part of it
	text     string
	prompt   int // tokens
	tokens   int
	counted  bench.TokenSource
	events   int
	finish   bench.Finish
	warnings []bench.Warning
}

// replay gives the outcome of a capture, cut into pieces by cut.
func (c capture) replay(t *testing.T, srv *captureServer, dir string, cut func([][]byte) [][]byte) (got outcome, marks []int32) {
	t.Helper()
	row, chat := c.row(dir)
	b := &backend{cfg: Config{Server: row, Endpoint: "http://" + srv.Addr().String(), Model: "m", Chat: chat, ConnectTimeout: time.Minute}, loop: srv.loop}
	if err := b.parse(b.cfg.Endpoint); err != nil {
		t.Fatal(err)
	}
	for _, reads := range c.exchanges {
		srv.exchanges <- cut(reads)
	}
	s := openSession(t, b)
	defer s.Close()
	req := &bench.Request{Prompt: "p", Message: "p", Stream: c.stream, Sampling: bench.Sampling{TopP: 1, MaxTokens: max(c.maxTokens, 1), IgnoreEOS: c.ignoreEOS && dir == "vllm"}}
	for range c.exchanges {
		tr := bench.NewTrace(req.Sampling.MaxTokens)
		if err := s.Prepare(req); err != nil {
			t.Fatal(err)
		}
		err := s.Generate(context.Background(), tr)
		got = outcome{class: bench.ClassOf(err), text: string(tr.Text), prompt: tr.PromptTokens, tokens: tr.OutputTokens, counted: tr.Counted, events: tr.Events, finish: tr.Finish}
		if len(tr.Warnings) > 0 {
			got.warnings = slices.Clone(tr.Warnings)
		}
		if err != nil {
			got.message = err.Error()
		} else if bad := benchtest.Check(tr, req); bad != nil && tr.PromptTokens > 0 {
			t.Errorf("%s: %v", c.route, bad)
		}
		marks = nil
		for _, m := range tr.Marks {
			marks = append(marks, m.N)
		}
	}
	return got, marks
}

// cuts are ways in which the bytes of an answer may arrive.
var cuts = map[string]func([][]byte) [][]byte{
	"as recorded": func(reads [][]byte) [][]byte { return reads },
	"at once":     func(reads [][]byte) [][]byte { return [][]byte{bytes.Join(reads, nil)} },
	"byte by byte": func(reads [][]byte) [][]byte {
		return slices.Collect(slices.Chunk(bytes.Join(reads, nil), 1))
	},
}

// Each capture comes to what it must, however its bytes arrive.
func TestCaptures(t *testing.T) {
	files, err := filepath.Glob("testdata/captures/*/*.txt")
	if err != nil {
		t.Fatal(err)
	}
	srv := newCaptureServer(t)
	found := map[string]bool{}
	for _, path := range files {
		name := filepath.ToSlash(path)[len("testdata/captures/"):]
		c := readCapture(t, path)
		if c.route == "" {
			continue // an answer to GET
		}
		want, ok := outcomes[name]
		if found[name] = true; !ok {
			t.Errorf("%s is not in the table of outcomes", name)
			continue
		}
		dir, _, _ := strings.Cut(name, "/")
		for how, cut := range cuts {
			got, _ := c.replay(t, srv, dir, cut)
			if !strings.Contains(got.message, want.message) {
				t.Errorf("%s, %s: message %q, want …%s…", name, how, got.message, want.message)
			}
			if strings.ContainsAny(got.message, "\r\n") {
				t.Errorf("%s, %s: message %q is not one line", name, how, got.message)
			}
			got.message = want.message
			if !reflect.DeepEqual(got, want) {
				t.Errorf("%s, %s:\n%+v, want\n%+v", name, how, got, want)
			}
		}
	}
	for name := range outcomes {
		if !found[name] {
			t.Errorf("%s is in the table of outcomes, but there is no such capture", name)
		}
	}
	t.Logf("%d captures, each in %d ways", len(found), len(cuts))
}

// The marks of streams that bring more or fewer tokens than events with text.
func TestCaptureMarks(t *testing.T) {
	srv := newCaptureServer(t)
	for name, want := range map[string][]int32{
		"vllm/completions-stream-interval4.txt":   {1, 5, 8},
		"vllm/completions-stream-continuous.txt":  {1, 2, 3, 4, 5, 6, 7, 8},
		"vllm/completions-stream-usage-b.txt":     {1, 2, 3, 4, 5, 6, 7, 8},
		"tgi/generate-stream-utf8.txt":            {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14},
		"tgi/generate-stream-eos.txt":             {1, 2, 3},
		"tgi/generate-stream-spec.txt":            {1, 2, 3, 4, 5, 6, 7, 8, 9},
		"tgi/chat-stream-eos.txt":                 {1, 2},
		"transformers/chat-stream.txt":            {1, 2, 3, 4, 5, 6, 7, 8},
		"transformers-serve/completions-sync.txt": {8},
	} {
		dir, _, _ := strings.Cut(name, "/")
		c := readCapture(t, "testdata/captures/"+name)
		if _, got := c.replay(t, srv, dir, cuts["as recorded"]); !slices.Equal(got, want) {
			t.Errorf("%s: marks %v, want %v", name, got, want)
		}
	}
}
