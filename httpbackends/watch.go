package httpbackends

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/nativebench/nativebench/internal/bench"
)

// watch ends a stream that brings no content in time, whatever else it brings:
// comments and empty events show that a server lives, not that it answers. One
// timer looks at the stamp that the timed path leaves and sets itself anew, so
// that an event costs one store.
type watch struct {
	first, gap time.Duration // bench.Limits; 0: none

	content atomic.Int64 // arrival of the last event with content; 0: none yet

	mu     sync.Mutex // never taken on the timed path
	timer  *time.Timer
	conn   *wire // nil: no request under way
	start  int64
	passed limit
}

// limit names a time limit of the watch.
type limit int

const (
	noLimit limit = iota
	firstLimit
	gapLimit
)

func (w *watch) on() bool { return w.first > 0 || w.gap > 0 }

// begin watches a request on conn that is about to be sent.
func (w *watch) begin(conn *wire) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.content.Store(0)
	w.conn, w.start, w.passed = conn, bench.Now(), noLimit
	if wait := w.wait(w.start); w.timer == nil {
		w.timer = time.AfterFunc(wait, w.look)
	} else {
		w.timer.Reset(wait)
	}
}

// end stops watching; when it returns, nothing will be done to the connection
// any more. It returns the limit that passed, if one did.
func (w *watch) end() limit {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.conn == nil {
		return noLimit
	}
	w.conn = nil
	w.timer.Stop() // a look that is already waiting for the lock finds no connection
	return w.passed
}

// look ends the request if a limit has passed, and else looks again when one
// could have.
func (w *watch) look() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.conn == nil {
		return
	}
	now := bench.Now()
	content := w.content.Load()
	switch {
	case content == 0 && w.first > 0 && now-w.start >= int64(w.first):
		w.passed = firstLimit
	case content != 0 && w.gap > 0 && now-content >= int64(w.gap):
		w.passed = gapLimit
	case content != 0 && w.gap == 0:
		return // nothing is left to watch
	default:
		w.timer.Reset(w.wait(now))
		return
	}
	_ = w.conn.SetDeadline(time.Unix(1, 0)) // ends a read or write under way at once
}

// wait is how long, from now, no limit can pass.
func (w *watch) wait(now int64) time.Duration {
	content := w.content.Load()
	if content != 0 {
		return time.Duration(content-now) + w.gap
	}
	wait := time.Duration(w.start-now) + w.first
	if w.first == 0 || w.gap > 0 && w.gap < wait {
		wait = w.gap // content may come at any moment from now on
	}
	return wait
}
