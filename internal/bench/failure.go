package bench

import (
	"errors"
	"fmt"
	"time"
)

// Failure is why a request gave no usable answer. Failed requests are counted
// by class and are never averaged in.
type Failure struct {
	Class   Class
	Message string // one line: what was asked, what happened, what to do
	Err     error  // the cause, may be nil
	// RetryAfter is how long the server asks to wait before the request is sent
	// again; 0: it does not say.
	RetryAfter time.Duration
}

func (f *Failure) Error() string { return f.Message }
func (f *Failure) Unwrap() error { return f.Err }

// Fail makes a *Failure. A final error argument becomes its cause, as with %w.
func Fail(c Class, format string, args ...any) *Failure {
	err := fmt.Errorf(format, args...)
	return &Failure{Class: c, Message: err.Error(), Err: errors.Unwrap(err)}
}

// ClassOf returns the class of err: "" for nil, Internal for an error that is
// no *Failure.
func ClassOf(err error) Class {
	if err == nil {
		return OK
	}
	var f *Failure
	if errors.As(err, &f) {
		return f.Class
	}
	return Internal
}

// Class sorts failures.
type Class string

const (
	OK         Class = ""
	Refused    Class = "refused"   // bad request: the backend would not take it (4xx, over the context)
	Busy       Class = "busy"      // 429, 503: overloaded
	ServerFail Class = "server"    // 5xx, or an error object inside a stream
	Connect    Class = "connect"   // no connection
	Reset      Class = "reset"     // the connection broke before the answer was whole
	Truncated  Class = "truncated" // the stream ended without its end mark
	Empty      Class = "empty"     // an answer without content
	Malformed  Class = "malformed" // bytes that the protocol does not allow
	Timeout    Class = "timeout"   // the time limit of the request passed
	Cancelled  Class = "cancelled" // the run was stopped
	Engine     Class = "engine"    // the engine in this process failed
	Crash      Class = "crash"     // the process that ran the cell died
	Internal   Class = "internal"  // a fault of nativebench itself
)

// Warning sorts things about a successful request that must not be hidden.
type Warning string

const (
	WarnShort      Warning = "short_output"   // fewer tokens than asked, with EOS ignored
	WarnCut        Warning = "cut_short"      // ended for length, with fewer tokens than asked
	WarnCount      Warning = "count_mismatch" // usage and events, ids or text disagree, or more events than tokens asked for
	WarnCacheHit   Warning = "prefix_cache"   // prompt tokens came from a cache that should be off
	WarnNoFinish   Warning = "no_finish"      // no finish_reason was sent
	WarnHeldBack   Warning = "held_back"      // the answer ended inside a UTF-8 sequence
	WarnTokenCount Warning = "no_usage"       // the server did not say how many tokens it made
	WarnRedialled  Warning = "redialled"      // sent again on a new connection: the server had closed the one in use
)
