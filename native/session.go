//go:build cgo && linux

package native

/*
#include <stdlib.h>
#include <string.h>
#include "load.h"
*/
import "C"

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"
	"unsafe"

	"github.com/nativebench/nativebench/internal/bench"
)

// session is one slot of the engine. All memory that C reads or writes during
// a request is C's and made here, so that Generate passes no Go pointer and
// allocates nothing.
type session struct {
	e      *Engine
	slot   C.int32_t
	req    *C.nb_request
	res    *C.nb_result
	prompt *C.char
	room   int // bytes of prompt
	msg    message
	stream bool
	ready  bool

	first, gap time.Duration // bench.Limits; 0: none
}

var _ bench.Session = (*session)(nil)

// NewSession takes a free slot.
func (e *Engine) NewSession(l bench.Limits) (bench.Session, error) {
	slot, err := e.take()
	if err != nil {
		return nil, err
	}
	s := &session{e: e, slot: C.int32_t(slot), msg: newMessage(), first: l.FirstToken, gap: l.Gap}
	s.req = (*C.nb_request)(C.calloc(1, C.sizeof_nb_request))
	s.res = (*C.nb_result)(C.calloc(1, C.sizeof_nb_result))
	s.grow(max(l.PromptBytes, 1))
	return s, nil
}

func (s *session) grow(n int) {
	if n > s.room {
		C.free(unsafe.Pointer(s.prompt))
		s.prompt, s.room = (*C.char)(C.malloc(C.size_t(n))), n
	}
}

// Prepare copies the request into the engine's memory. Tokenizing is on the
// clock, in Generate, as it is with servers.
func (s *session) Prepare(req *bench.Request) error {
	s.ready = false
	if s.req == nil {
		return bench.Fail(bench.Internal, "native: the session is closed")
	}
	if req.Prompt == "" {
		return bench.Fail(bench.Refused, "native: the prompt is empty")
	}
	if sm := req.Sampling; sm.Temperature < 0 || sm.TopP <= 0 || sm.TopP > 1 || sm.MaxTokens < 1 || sm.MaxTokens > math.MaxInt32 {
		return bench.Fail(bench.Refused, "native: temperature %g, top-p %g, max tokens %d: want temperature >= 0, 0 < top-p <= 1, max tokens >= 1", sm.Temperature, sm.TopP, sm.MaxTokens)
	}
	s.grow(len(req.Prompt))
	copy(unsafe.Slice((*byte)(unsafe.Pointer(s.prompt)), s.room), req.Prompt)
	*s.req = C.nb_request{
		prompt:      s.prompt,
		prompt_len:  C.int64_t(len(req.Prompt)),
		seed:        C.uint64_t(req.Sampling.Seed),
		temperature: C.float(req.Sampling.Temperature),
		top_p:       C.float(req.Sampling.TopP),
		max_tokens:  C.int32_t(req.Sampling.MaxTokens),
		// Special tokens written in a prompt are parsed, as llama-server does.
		flags: C.NB_REQ_ADD_BOS | C.NB_REQ_SPECIAL,
	}
	if req.Sampling.IgnoreEOS {
		s.req.flags |= C.NB_REQ_IGNORE_EOS
	}
	s.stream, s.ready = req.Stream, true
	return nil
}

// Generate runs the prepared request. In streaming mode the calling goroutine
// is woken for every token, as a consumer would be; the stamps are the
// engine's in both modes. A sync answer has one mark, at its end.
func (s *session) Generate(ctx context.Context, tr *bench.Trace) error {
	if !s.ready {
		return bench.Fail(bench.Internal, "native: Generate without a prepared request")
	}
	s.ready = false
	api, h := s.e.lib.api, s.e.handle
	tr.Start = bench.Now()
	if st := C.api_submit(api, h, s.slot, s.req, s.msg.buf, errLen); st != C.NB_OK {
		tr.End = bench.Now()
		return s.failure(st)
	}
	tr.Sent = bench.Now()
	if ctx.Done() != nil {
		// Joined below: a late cancel would hit the slot's next request.
		cancelled := make(chan struct{})
		stop := context.AfterFunc(ctx, func() {
			C.api_cancel(api, h, s.slot)
			close(cancelled)
		})
		defer func() {
			if !stop() {
				<-cancelled
			}
		}()
	}

	var at cursor
	seen := C.int32_t(math.MaxInt32)
	if s.stream {
		seen = 0
	}
	st := C.nb_status(C.NB_OK)
	late := "" // the limit that passed
	for {
		left := C.int64_t(-1)
		if s.stream && late == "" {
			left = s.left(tr)
		}
		st = C.api_wait(api, h, s.slot, seen, left, s.res, s.msg.buf, errLen)
		if st == C.NB_TIMEOUT {
			late = s.limit(tr)
			seen = math.MaxInt32
			C.api_cancel(api, h, s.slot)
			continue
		}
		if st != C.NB_OK || s.res.finish != C.NB_RUNNING {
			break
		}
		seen = s.res.n_tokens
		s.mark(tr, &at)
	}
	s.collect(tr, &at)
	switch {
	case st != C.NB_OK:
		return s.failure(st)
	case s.res.finish == C.NB_FINISH_CANCELLED && late != "":
		return bench.Fail(bench.Timeout, "native: %s", late)
	case s.res.finish == C.NB_FINISH_CANCELLED && errors.Is(ctx.Err(), context.DeadlineExceeded):
		return bench.Fail(bench.Timeout, "native: the time limit of the request passed after %d tokens", tr.OutputTokens)
	case s.res.finish == C.NB_FINISH_CANCELLED:
		return bench.Fail(bench.Cancelled, "native: the request was cancelled after %d tokens", tr.OutputTokens)
	case len(tr.Text) == 0:
		return bench.Fail(bench.Empty, "native: the answer has no text (%d tokens)", tr.OutputTokens)
	}
	return nil
}

// left is for how many ns from now a stream may go on without content; -1: no
// limit.
func (s *session) left(tr *bench.Trace) C.int64_t {
	since, limit := tr.LastToken(), s.gap
	if since == 0 {
		since, limit = tr.Start, s.first
	}
	if limit == 0 {
		return -1
	}
	return C.int64_t(max(0, since+int64(limit)-bench.Now()))
}

// limit says which limit of left has passed.
func (s *session) limit(tr *bench.Trace) string {
	if len(tr.Marks) == 0 {
		return fmt.Sprintf("no content within %v (limit --first-token-timeout): raise the limit", s.first)
	}
	return fmt.Sprintf("no content for %v (limit --token-timeout), after %d events with content: raise the limit", s.gap, tr.Events)
}

// cursor is how far an answer has been marked.
type cursor struct {
	tokens int // looked at
	text   C.int32_t
}

// mark notes the tokens that came since, by their stamps. As with servers, a
// token counts from the moment its text is there: one that is only part of a
// character, or has no text, is counted with the next one that has.
func (s *session) mark(tr *bench.Trace, at *cursor) {
	for _, t := range s.tokens()[at.tokens:] {
		at.tokens++
		if t.text_end > at.text {
			at.text = t.text_end
			tr.Mark(int64(t.t_ns), at.tokens)
			tr.Events++
		}
	}
}

func (s *session) tokens() []C.nb_token { return unsafe.Slice(s.res.tokens, s.res.n_tokens) }

// collect fills the trace from an ended request.
func (s *session) collect(tr *bench.Trace, at *cursor) {
	r := s.res
	tr.End = int64(r.t_end)
	n := int(r.n_tokens)
	switch {
	case n == 0:
	case s.stream:
		s.mark(tr, at)
		if k := len(tr.Marks); k == 0 || int(tr.Marks[k-1].N) < n { // the last ones have no text of their own
			tr.Mark(int64(s.tokens()[n-1].t_ns), n)
		}
	default:
		tr.Mark(tr.End, n)
		tr.Events = 1
	}
	for _, t := range s.tokens() {
		tr.Tokens = append(tr.Tokens, int32(t.id))
	}
	if r.text_len > 0 {
		tr.Text = append(tr.Text, unsafe.Slice((*byte)(unsafe.Pointer(r.text)), r.text_len)...)
	}
	if r.held_back > 0 {
		tr.Warn(bench.WarnHeldBack)
	}
	tr.PromptTokens, tr.OutputTokens, tr.Counted = int(r.n_prompt), n, bench.CountEngine
	switch r.finish {
	case C.NB_FINISH_LENGTH:
		tr.Finish = bench.FinishLength
	case C.NB_FINISH_STOP:
		tr.Finish = bench.FinishStop
	}
	tr.Phases = bench.Phases{
		Tokenize: int64(r.tokenize), Queue: int64(r.queue), Prefill: int64(r.prefill),
		Decode: int64(r.decode), Sampling: int64(r.sampling), Detokenize: int64(r.detokenize),
	}
}

// failure turns the engine's status and message into a classed failure.
func (s *session) failure(st C.nb_status) *bench.Failure {
	class := bench.Engine
	switch st {
	case C.NB_INVALID, C.NB_CONTEXT:
		class = bench.Refused
	case C.NB_CANCELLED:
		class = bench.Cancelled
	case C.NB_BUSY:
		class = bench.Internal
	}
	return bench.Fail(class, "native: %s", s.msg)
}

// Close gives the slot back. No request may be under way.
func (s *session) Close() error {
	if s.req == nil {
		return nil
	}
	C.free(unsafe.Pointer(s.req))
	C.free(unsafe.Pointer(s.res))
	C.free(unsafe.Pointer(s.prompt))
	s.msg.free()
	s.req = nil
	s.e.give(int(s.slot))
	return nil
}
