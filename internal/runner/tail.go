package runner

import (
	"bytes"
	"strings"
	"sync"
)

const (
	// keepLines is how many lines of a child's output a failed cell keeps.
	keepLines = 20
	// keepBefore is how many of them come from before a crash.
	keepBefore = 8
	// keepBytes bounds a line.
	keepBytes = 4096
)

// tail keeps the last lines written to it. Once a line is the head of a Go
// crash it keeps what surrounds that line instead: pages of goroutines and
// registers follow, and the cause is above them.
type tail struct {
	mu    sync.Mutex
	kept  []string
	part  []byte
	crash int // index in kept of the crash's head, plus 1
}

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.part = append(t.part, b...)
	for {
		i := bytes.IndexByte(t.part, '\n')
		if i < 0 {
			break
		}
		t.add(t.part[:i])
		t.part = t.part[i+1:]
	}
	if len(t.part) > keepBytes { // a line without end: keep its last bytes
		t.part = append([]byte(nil), t.part[len(t.part)-keepBytes:]...)
	}
	return len(b), nil
}

func (t *tail) add(line []byte) {
	s := strings.TrimRight(strings.ToValidUTF8(string(line), "\uFFFD"), "\r ")
	if s == "" {
		return
	}
	if t.crash > 0 {
		if len(t.kept) < keepLines {
			t.kept = append(t.kept, s)
		}
		return
	}
	room := keepLines - 1
	if crashHead(s) {
		room = keepBefore
	}
	if over := len(t.kept) - room; over > 0 {
		t.kept = append([]string(nil), t.kept[over:]...)
	}
	t.kept = append(t.kept, s)
	if crashHead(s) {
		t.crash = len(t.kept)
	}
}

// crashHead tells whether the Go runtime begins its account of a crash with
// this line.
func crashHead(line string) bool {
	for _, head := range []string{"panic: ", "fatal error: ", "SIGSEGV: ", "SIGABRT: ", "SIGBUS: ", "SIGFPE: ", "SIGILL: ", "SIGTRAP: ", "SIGQUIT: "} {
		if strings.HasPrefix(line, head) {
			return true
		}
	}
	return false
}

// lines returns what is kept, oldest first.
func (t *tail) lines() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.part) > 0 {
		t.add(t.part)
		t.part = nil
	}
	return t.kept
}

// cause returns the head of a crash, with the signal where that is said in a
// line of its own; "" if there was no crash.
func (t *tail) cause() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.crash == 0 {
		return ""
	}
	text := t.kept[t.crash-1]
	for _, line := range t.kept[t.crash:] {
		if inner, ok := strings.CutPrefix(line, "[signal "); ok {
			text += " (" + strings.TrimSuffix(inner, "]") + ")"
			break
		}
	}
	return text
}
