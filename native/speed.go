//go:build cgo && linux

package native

/*
#include <stdlib.h>
#include "load.h"
*/
import "C"

import (
	"fmt"
	"math"
	"unsafe"
)

// Timing is what Speed stamped, in nanoseconds.
type Timing struct {
	Prompt int64 // submit of the first slot to the first token of the last

	// The time in which all slots were decoding, from the first token of the slot
	// that began last to the last token of the one that ended first, and how many
	// tokens all slots made in it.
	Decode       int64
	DecodeTokens int
	Sampling     int64 // on the host, of all slots
}

// Speed runs w once through the slots and the loop, as requests do. No
// session may be open.
func (e *Engine) Speed(w Work) (Timing, error) {
	if w.Slots < 1 || w.Slots > e.info.Slots || w.PromptTokens < 1 || w.OutputTokens < 1 {
		return Timing{}, fmt.Errorf("native: cannot run %+v on %d slots", w, e.info.Slots)
	}
	msg := newMessage()
	defer msg.free()
	req := (*C.nb_request)(C.calloc(1, C.sizeof_nb_request))
	defer C.free(unsafe.Pointer(req))
	ids := (*C.int32_t)(C.calloc(C.size_t(w.PromptTokens), C.sizeof_int32_t))
	defer C.free(unsafe.Pointer(ids))
	for i := range unsafe.Slice(ids, w.PromptTokens) {
		unsafe.Slice(ids, w.PromptTokens)[i] = C.int32_t((i*7919 + 17) % e.vocab)
	}
	*req = C.nb_request{
		tokens: ids, prompt_len: C.int64_t(w.PromptTokens), top_p: 1, max_tokens: C.int32_t(w.OutputTokens),
		flags: C.NB_REQ_IGNORE_EOS | C.NB_REQ_RAW,
	}
	if w.Sample {
		req.flags = C.NB_REQ_IGNORE_EOS
		req.temperature, req.top_p, req.seed = C.float(w.Temperature), C.float(w.TopP), 1
	}
	res := (*C.nb_result)(C.calloc(1, C.sizeof_nb_result))
	defer C.free(unsafe.Pointer(res))

	for slot := range w.Slots {
		if err := msg.err(C.api_submit(e.lib.api, e.handle, C.int32_t(slot), req, msg.buf, errLen)); err != nil {
			return Timing{}, err
		}
	}
	begin, first, last := int64(math.MaxInt64), int64(0), int64(math.MaxInt64)
	var stamps []int64
	var sampling int64
	for slot := range w.Slots {
		if err := msg.err(C.api_wait(e.lib.api, e.handle, C.int32_t(slot), math.MaxInt32, -1, res, msg.buf, errLen)); err != nil {
			return Timing{}, err
		}
		tokens := unsafe.Slice(res.tokens, res.n_tokens)
		begin = min(begin, int64(res.t_submit))
		sampling += int64(res.sampling)
		first = max(first, int64(tokens[0].t_ns))
		last = min(last, int64(tokens[len(tokens)-1].t_ns))
		for _, t := range tokens {
			stamps = append(stamps, int64(t.t_ns))
		}
	}
	t := Timing{Prompt: first - begin, Decode: max(last-first, 0), Sampling: sampling}
	for _, at := range stamps {
		if first < at && at <= last {
			t.DecodeTokens++
		}
	}
	return t, nil
}
