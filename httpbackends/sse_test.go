package httpbackends

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

const testLimit = 1 << 20

// parse cuts stream into events, fed in the given pieces.
func parseEvents(e *events, pieces ...[]byte) (got []string, err error) {
	for _, p := range pieces {
		p = bytes.Clone(p) // as a read buffer: overwritten afterwards
		e.feed(p)
		for {
			data, ok, err := e.next()
			if err != nil {
				return got, err
			}
			if !ok {
				break
			}
			got = append(got, string(data))
		}
		for i := range p {
			p[i] = '?'
		}
	}
	if data, ok, err := e.end(); err != nil {
		return got, err
	} else if ok {
		got = append(got, string(data))
	}
	return got, nil
}

// reference is the same in the plainest way.
func reference(stream string) (got []string) {
	stream = strings.TrimPrefix(stream, "\ufeff")
	stream = strings.ReplaceAll(stream, "\r\n", "\n")
	stream = strings.ReplaceAll(stream, "\r", "\n")
	var data []string
	flush := func() {
		if data != nil {
			got = append(got, strings.Join(data, "\n"))
			data = nil
		}
	}
	for line := range strings.SplitSeq(stream, "\n") {
		field, value, _ := strings.Cut(line, ":")
		switch {
		case line == "":
			flush()
		case field == "data":
			data = append(data, strings.TrimPrefix(value, " "))
		}
	}
	flush()
	return got
}

var streams = []struct {
	name, stream string
	want         []string
}{
	{"line feeds", "data: a\n\ndata: b\n\n", []string{"a", "b"}},
	{"carriage returns", "data: a\r\rdata: b\r\r", []string{"a", "b"}},
	{"both", "data: a\r\n\r\ndata: b\r\n\r\n", []string{"a", "b"}},
	{"mixed", "data: a\r\n\ndata: b\r\r\ndata: c\n\r", []string{"a", "b", "c"}},
	{"no space", "data:a\n\n", []string{"a"}},
	{"two spaces keep one", "data:  a\n\n", []string{" a"}},
	{"many lines", "data: a\ndata: b\ndata\ndata: c\n\n", []string{"a\nb\n\nc"}},
	{"comments", ": ping\n\n:\n\ndata: a\n: in between\ndata: b\n\n", []string{"a\nb"}},
	{"other fields", "event: error\nid: 7\nretry: 10\ndata: a\nunknown: x\nno colon\n\n", []string{"a"}},
	{"field names that begin alike", "dat: x\ndata2: x\ndatabase\n\ndata: a\n\n", []string{"a"}},
	{"events without data", "event: ping\n\n\n\n\ndata: a\n\n", []string{"a"}},
	{"empty data", "data:\n\ndata\n\n", []string{"", ""}},
	{"byte order mark", "\ufeffdata: a\n\n\ufeffdata: b\n\n", []string{"a"}},
	{"end without empty line", "data: a\n\ndata: b\n", []string{"a", "b"}},
	{"end inside a line", "data: a\n\ndata: b", []string{"a", "b"}},
	{"end in a comment", "data: a\n\n: b", []string{"a"}},
	{"end after CR", "data: a\r\n\r", []string{"a"}},
	{"colon in data", "data: {\"a\":\"b: c\"}\n\n", []string{`{"a":"b: c"}`}},
	{"utf-8", "data: 가나다\n\n", []string{"가나다"}},
	{"nothing", "", nil},
}

func TestEvents(t *testing.T) {
	for _, tc := range streams {
		t.Run(tc.name, func(t *testing.T) {
			e := newEvents(testLimit)
			b := []byte(tc.stream)
			check := func(how string, pieces ...[]byte) {
				t.Helper()
				e.reset(false)
				got, err := parseEvents(e, pieces...)
				if err != nil || !slices.Equal(got, tc.want) {
					t.Errorf("%s: got %q, %v; want %q", how, got, err, tc.want)
				}
			}
			check("whole", b)
			check("byte by byte", slices.Collect(slices.Chunk(b, 1))...)
			for i := range b {
				check(fmt.Sprintf("cut at %d", i), b[:i], b[i:])
			}
			if got := reference(tc.stream); !slices.Equal(got, tc.want) {
				t.Errorf("the reference gives %q, want %q", got, tc.want)
			}
		})
	}
}

// An event is there as soon as its empty line is, even if that ends in a CR
// that an LF may follow.
func TestEventsDoNotWait(t *testing.T) {
	for _, s := range []string{"data: a\n\n", "data: a\r\r", "data: a\r\n\r"} {
		e := newEvents(testLimit)
		e.feed([]byte(s))
		if data, ok, err := e.next(); !ok || err != nil || string(data) != "a" {
			t.Errorf("%q: got %q, %v, %v", s, data, ok, err)
		}
	}
}

func TestEventsLong(t *testing.T) {
	e := newEvents(testLimit)
	long := strings.Repeat("x", testLimit-len("data: "))
	got, err := parseEvents(e, slices.Collect(slices.Chunk([]byte("data: "+long+"\n\n"), 4096))...)
	if err != nil || len(got) != 1 || got[0] != long {
		t.Errorf("a line of 1 MB: %d events, %v", len(got), err)
	}
	for name, stream := range map[string]string{
		"line":            "data: x" + long + "\n\n",
		"line unfinished": "data: x" + long,
		"comment":         ":" + strings.Repeat("x", testLimit) + "\n",
		"event":           strings.Repeat("data: "+long[:1000]+"\n", 1100) + "\n",
	} {
		for _, size := range []int{len(stream), 4096} {
			e.reset(false)
			if _, err := parseEvents(e, slices.Collect(slices.Chunk([]byte(stream), size))...); err == nil {
				t.Errorf("%s over the limit, in pieces of %d: no error", name, size)
			}
		}
	}
}

// Any split of any stream into reads gives the events of the whole.
func TestEventsSplit(t *testing.T) {
	part := rapid.OneOf(
		rapid.SampledFrom([]string{"data: ", "data:", "data", ":", "\n", "\r", "\r\n", "\n\n", "event: x", "id", "{\"a\":1}", " ", "\ufeff", "가"}),
		rapid.StringN(0, 8, 16),
	)
	rapid.Check(t, func(t *rapid.T) {
		stream := strings.Join(rapid.SliceOfN(part, 0, 40).Draw(t, "parts"), "")
		var pieces [][]byte
		for rest := []byte(stream); len(rest) > 0; {
			n := rapid.IntRange(1, len(rest)).Draw(t, "n")
			pieces = append(pieces, rest[:n])
			rest = rest[n:]
		}
		got, err := parseEvents(newEvents(testLimit), pieces...)
		if want := reference(stream); err != nil || !slices.Equal(got, want) {
			t.Fatalf("%q in %q: got %q, %v; want %q", stream, pieces, got, err, want)
		}
	})
}

func FuzzEvents(f *testing.F) {
	for i, tc := range streams {
		f.Add([]byte(tc.stream), uint16(i))
	}
	f.Fuzz(func(t *testing.T, stream []byte, step uint16) {
		got, err := parseEvents(newEvents(testLimit), slices.Collect(slices.Chunk(stream, int(step)%37+1))...)
		if err != nil {
			t.Skip() // over the limit
		}
		if want := reference(string(stream)); !slices.Equal(got, want) {
			t.Errorf("%q: got %q, want %q", stream, got, want)
		}
	})
}
