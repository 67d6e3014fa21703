package httpbackends

import (
	"bytes"
	"fmt"
)

// events cuts a stream of server-sent events into the data of each, whatever
// way the bytes are split into reads. (WHATWG HTML, "Server-sent events".)
//
// Where that text would lose what a server meant to say, this reads on: an
// event that the end of the stream cuts short is given by end.
type events struct {
	max  int    // longest line and longest event, in bytes
	in   []byte // handed over by feed, not yet looked at
	line []byte // a line begun in earlier reads
	data []byte // of the event being put together

	raw    bool // lines are events
	has    bool // data holds at least one data line
	given  bool // data was returned by next: cleared by the following call
	skipLF bool // the last byte was a CR that ended a line
	begun  bool // the first line was seen (only it may start with a BOM)
	lines  int  // lines that were not empty, seen so far
}

// newEvents makes a parser for lines and events of at most limit bytes.
func newEvents(limit int) *events {
	return &events{max: limit, line: make([]byte, 0, 1024), data: make([]byte, 0, 1024)}
}

// reset readies e for another stream and keeps its memory. raw: each line that
// is not empty is an event (NDJSON), there are no fields.
func (e *events) reset(raw bool) {
	*e = events{max: e.max, line: e.line[:0], data: e.data[:0], raw: raw}
}

// feed hands over the next bytes, which must stay unchanged until next has
// returned false. Everything handed over before must have been taken.
func (e *events) feed(p []byte) { e.in = p }

// next returns the data of the next event, its lines joined by LF, valid until
// the next call of any method; false when more bytes are needed. Events
// without a data line do not appear.
func (e *events) next() (data []byte, ok bool, err error) {
	e.drop()
	for len(e.in) > 0 {
		if e.skipLF {
			e.skipLF = false
			if e.in[0] == '\n' {
				e.in = e.in[1:]
				continue
			}
		}
		// A CR ends a line too, and at once: waiting for an LF would keep the
		// event back until the next one.
		i, head := bytes.IndexByte(e.in, '\n'), e.in
		if i >= 0 {
			head = e.in[:i]
		}
		if cr := bytes.IndexByte(head, '\r'); cr >= 0 {
			i = cr
		}
		if i < 0 {
			if len(e.line)+len(e.in) > e.max {
				return nil, false, e.tooLong("line")
			}
			e.line = append(e.line, e.in...)
			e.in = nil
			return nil, false, nil
		}
		line := e.in[:i]
		e.skipLF = e.in[i] == '\r'
		e.in = e.in[i+1:]
		if len(e.line)+len(line) > e.max {
			return nil, false, e.tooLong("line")
		}
		if len(e.line) > 0 {
			e.line = append(e.line, line...)
			line = e.line
			e.line = e.line[:0] // line keeps its bytes until the next append
		}
		whole, err := e.take(line)
		if err != nil {
			return nil, false, err
		}
		if whole {
			e.given = true
			return e.data, true, nil
		}
	}
	return nil, false, nil
}

// end tells that the stream is over and returns the event that was not
// finished by an empty line, if there is one.
func (e *events) end() (data []byte, ok bool, err error) {
	e.drop()
	if len(e.line) > 0 {
		line := e.line
		e.line = e.line[:0]
		if _, err := e.take(line); err != nil {
			return nil, false, err
		}
	}
	if !e.has {
		return nil, false, nil
	}
	e.given = true
	return e.data, true, nil
}

// drop forgets the event that was given last.
func (e *events) drop() {
	if e.given {
		e.given, e.has, e.data = false, false, e.data[:0]
	}
}

// take works on one line without its end; true when it finished an event.
func (e *events) take(line []byte) (bool, error) {
	if !e.begun {
		e.begun = true
		line = bytes.TrimPrefix(line, []byte("\xef\xbb\xbf"))
	}
	if len(line) == 0 {
		return e.has, nil
	}
	e.lines++
	if e.raw {
		e.data, e.has = append(e.data, line...), true
		return true, nil
	}
	// Of the fields only data matters here: event, id and retry are for
	// clients that reconnect, a line that starts with a colon is a comment.
	const field = "data"
	if len(line) < len(field) || string(line[:len(field)]) != field {
		return false, nil
	}
	switch rest := line[len(field):]; {
	case len(rest) == 0:
		line = nil
	case rest[0] != ':':
		return false, nil // another field
	case len(rest) > 1 && rest[1] == ' ':
		line = rest[2:]
	default:
		line = rest[1:]
	}
	if len(e.data)+len(line)+1 > e.max {
		return false, e.tooLong("event")
	}
	if e.has {
		e.data = append(e.data, '\n')
	}
	e.data = append(e.data, line...)
	e.has = true
	return false, nil
}

func (e *events) tooLong(what string) error {
	return fmt.Errorf("a %s of the stream is over %d bytes long", what, e.max)
}
