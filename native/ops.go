//go:build cgo && linux

package native

/*
#include <stdlib.h>
#include "load.h"
*/
import "C"

import (
	"context"
	"fmt"
	"math"
	"unsafe"

	"github.com/nativebench/nativebench/internal/bench"
)

var _ bench.Profiled = (*Engine)(nil)

// StartProfile begins the range that a profiler of CUDA captures
// (cuProfilerStart). No request may be under way. An error where no CUDA device
// computes.
func (e *Engine) StartProfile(context.Context) error { return e.profile(1) }

// StopProfile ends that range (cuProfilerStop).
func (e *Engine) StopProfile(context.Context) error { return e.profile(0) }

func (e *Engine) profile(begin C.int32_t) error {
	msg := newMessage()
	defer msg.free()
	return msg.err(C.api_profile(e.lib.api, e.handle, begin, msg.buf, errLen))
}

// mostOps is room for the operations of 400 layers.
const mostOps = 32768

// Watch runs w once unwatched, to warm up, and then so many times more, and
// returns what was seen of these; the engine must have been opened with
// Config.Watch. No session may be open.
func (e *Engine) Watch(w Work, times int) (Watched, error) {
	if _, err := e.Speed(w); err != nil {
		return Watched{}, err
	}
	msg := newMessage()
	defer msg.free()
	rows := (*[mostOps]C.nb_op)(C.calloc(mostOps, C.sizeof_nb_op))
	defer C.free(unsafe.Pointer(rows))
	out := (*C.nb_ops)(C.calloc(1, C.sizeof_nb_ops))
	defer C.free(unsafe.Pointer(out))
	var n C.int32_t
	ask := func(begin C.int32_t) error {
		return msg.err(C.api_ops(e.lib.api, e.handle, begin, out, &rows[0], mostOps, &n, msg.buf, errLen))
	}
	if err := ask(1); err != nil {
		return Watched{}, err
	}
	sampling := int64(math.MaxInt64) // on the host, in the fastest run
	for range times {
		timing, err := e.Speed(w)
		if err != nil {
			return Watched{}, err
		}
		sampling = min(sampling, timing.Sampling)
	}
	if err := ask(0); err != nil {
		return Watched{}, err
	}
	if n > mostOps {
		return Watched{}, fmt.Errorf("native: the model's graph has %d operations, over the %d that can be told of", n, mostOps)
	}
	seen := Watched{
		EmptyNS: int64(out.empty_ns), MemoryRate: int64(out.memory_rate), Memory: C.GoString(&out.memory[0]),
		FLOPRate: int64(out.flop_rate), Product: C.GoString(&out.product[0]),
	}
	for kind, s := range []*Steps{&seen.Decode, &seen.Prefill} {
		*s = Steps{
			Seen: int(out.seen[kind]), Steps: int(out.steps[kind]), Tokens: int64(out.tokens[kind]),
			NS: int64(out.step_ns[kind]), SampleNS: int64(out.sample_ns[kind]), OnDevice: e.choosesOnDevice,
		}
	}
	if !e.choosesOnDevice {
		ofPrompts := sampling / int64(w.OutputTokens) // one of each slot's
		seen.Prefill.SampleNS = share(ofPrompts, &seen.Prefill, times)
		seen.Decode.SampleNS = share(sampling-ofPrompts, &seen.Decode, times)
	}
	for _, r := range rows[:n] {
		s := &seen.Decode
		if r.prompt != 0 {
			s = &seen.Prefill
		}
		s.Ops = append(s.Ops, Op{
			Op: C.GoString(&r.op[0]), Name: C.GoString(&r.name[0]), Weight: C.GoString(&r.weight[0]), Device: C.GoString(&r.device[0]),
			Count: int(r.count), NS: int64(r.ns), Read: int64(r.read), Written: int64(r.written), Weights: int64(r.weights), FLOPs: int64(r.flops),
		})
	}
	return seen, nil
}

// share is the part of a run's time that belongs to the steps that were summed.
func share(ns int64, s *Steps, runs int) int64 {
	if s.Seen == 0 {
		return 0
	}
	return int64(float64(ns) * float64(s.Steps) * float64(runs) / float64(s.Seen))
}
