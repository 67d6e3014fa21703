package runner

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/nativebench/nativebench/internal/bench"
	"github.com/nativebench/nativebench/internal/results"
)

// message is one line from the child. Exactly one field is set.
type message struct {
	Load    *float64           `json:"load,omitempty"` // share of the model loaded, 0..1
	Hold    string             `json:"hold,omitempty"` // a mark: the child waits for an answer
	Info    *bench.Info        `json:"info,omitempty"`
	Request *results.Record    `json:"request,omitempty"`
	Done    *results.CellEvent `json:"done,omitempty"` // the last one
}

// sender writes messages, each with one Write, from any goroutine.
type sender struct {
	mu  sync.Mutex
	w   io.Writer
	buf bytes.Buffer
}

func (s *sender) send(m message) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.buf.Reset()
	if err := json.NewEncoder(&s.buf).Encode(m); err != nil {
		return err
	}
	_, err := s.w.Write(s.buf.Bytes())
	return err
}

// maxMessage bounds a line: far above the largest record (100,000 tokens are
// about 5 MB of marks and text).
const maxMessage = 64 << 20

// receive gives each message in r to handle until r ends or handle fails. A
// line that is no message is skipped, and so is a last line that was cut off;
// notes says what was skipped. The error is of handle or of reading.
func receive(r io.Reader, handle func(message) error) (notes []string, err error) {
	var unreadable, torn int
	sc := bufio.NewScanner(r)
	sc.Buffer(make([]byte, 0, 64<<10), maxMessage)
	sc.Split(func(data []byte, atEOF bool) (int, []byte, error) {
		if i := bytes.IndexByte(data, '\n'); i >= 0 {
			return i + 1, data[:i], nil
		}
		if atEOF {
			torn = len(data)
			return len(data), nil, nil
		}
		return 0, nil, nil
	})
	for err == nil && sc.Scan() {
		m, bad := parse(sc.Bytes())
		if bad != nil {
			if unreadable++; unreadable == 1 {
				notes = append(notes, fmt.Sprintf("a message of the cell's process could not be read and was left out: %v", bad))
			}
			continue
		}
		err = handle(m)
	}
	if err == nil {
		err = sc.Err()
	}
	if unreadable > 1 {
		notes[0] += fmt.Sprintf(" (and %d more)", unreadable-1)
	}
	if torn > 0 {
		notes = append(notes, fmt.Sprintf("the last message of the cell's process was cut off after %d bytes and was left out", torn))
	}
	return notes, err
}

func parse(line []byte) (message, error) {
	var m message
	if err := json.Unmarshal(line, &m); err != nil {
		return m, err
	}
	var set int
	for _, is := range []bool{m.Load != nil, m.Hold != "", m.Info != nil, m.Request != nil, m.Done != nil} {
		if is {
			set++
		}
	}
	if set != 1 {
		return m, errors.New("not exactly one of load, hold, info, request, done")
	}
	return m, nil
}
