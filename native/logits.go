//go:build cgo && linux

package native

/*
#include "load.h"
*/
import "C"

import (
	"fmt"
	"unsafe"
)

// Logits evaluates token ids from an empty cache, in a slot that no session
// has, beside the requests under way, and returns the logits after each of the
// last of them, in their order: rows of one float per token id, as the model
// makes them: before temperature, and with end tokens. BOS is not added. An
// error if all slots have a session or the ids do not fit a slot. Any goroutine
// may call it.
func (e *Engine) Logits(ids []int32, last int) ([][]float32, error) {
	if last < 1 || last > len(ids) {
		return nil, fmt.Errorf("native: logits after the last %d of %d tokens were asked for: want at least one, at most all", last, len(ids))
	}
	slot, err := e.take()
	if err != nil {
		return nil, err
	}
	defer e.give(slot)
	msg := newMessage()
	defer msg.free()
	all := make([]float32, last*e.vocab)
	st := C.api_logits(e.lib.api, e.handle, C.int32_t(slot), (*C.int32_t)(unsafe.Pointer(&ids[0])), C.int32_t(len(ids)), C.int32_t(last),
		(*C.float)(unsafe.Pointer(&all[0])), C.int64_t(len(all)), msg.buf, errLen)
	if err := msg.err(st); err != nil {
		return nil, err
	}
	rows := make([][]float32, last)
	for i := range rows {
		rows[i] = all[i*e.vocab : (i+1)*e.vocab : (i+1)*e.vocab]
	}
	return rows, nil
}

// take reserves a slot that no session has.
func (e *Engine) take() (int, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.free) == 0 {
		return 0, fmt.Errorf("native: all %d slots have a session: open the engine with as many slots as workers", e.info.Slots)
	}
	slot := e.free[len(e.free)-1]
	e.free = e.free[:len(e.free)-1]
	return slot, nil
}

func (e *Engine) give(slot int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.free = append(e.free, slot)
}
