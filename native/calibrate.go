//go:build cgo && linux

package native

/*
#include <stdlib.h>
#include "load.h"
*/
import "C"

import "unsafe"

// Calibrate runs a few hundred decode steps on one slot and holds the stamps of
// their tokens, taken by the host, against the device's own end of each step.
// No session may be open. ErrNoDevice: no device with a clock of its own
// computes here, and the stamps are as good as the host's clock.
//
// The two clocks are aligned by an event on the idle device that lies between
// two host stamps, the narrowest pair of many; the device's end of a step is an
// event behind the kernel that chose the token.
func (e *Engine) Calibrate() (Calibration, error) {
	msg := newMessage()
	defer msg.free()
	out := (*C.nb_stamps)(C.calloc(1, C.sizeof_nb_stamps))
	defer C.free(unsafe.Pointer(out))
	// The first steps load kernels and build graphs.
	work := Work{PromptTokens: 8, OutputTokens: min(200, e.info.Context-8), Slots: 1, Sample: true, Temperature: 0.8, TopP: 0.95}
	if _, err := e.Speed(work); err != nil {
		return Calibration{}, err
	}
	switch st := C.api_stamps(e.lib.api, e.handle, 1, out, msg.buf, errLen); {
	case st == C.NB_NOT_FOUND:
		return Calibration{}, ErrNoDevice
	case st != C.NB_OK:
		return Calibration{}, msg.err(st)
	}
	_, ran := e.Speed(work)
	if err := msg.err(C.api_stamps(e.lib.api, e.handle, 0, out, msg.buf, errLen)); err != nil {
		return Calibration{}, err
	}
	return Calibration{
		Steps: int(out.steps), LateP50: int64(out.p50), LateP99: int64(out.p99), LateMax: int64(out.max),
		Uncertainty: int64(out.uncertainty), CopyRate: int64(out.copy_rate),
	}, ran
}
