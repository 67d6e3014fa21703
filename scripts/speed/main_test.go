//go:build cgo && linux

package main

import (
	"strings"
	"testing"

	"github.com/nativebench/nativebench/internal/bench"
	"github.com/nativebench/nativebench/native"
)

// The roofline is of decoding, wherever that stands among what was measured.
func TestTheRooflineIsOfDecoding(t *testing.T) {
	kinds := groups(true)[0].kinds
	var a answer
	for i, k := range kinds {
		r := result{Kind: k.name, Ours: float64(1000 * (i + 1)), Theirs: float64(1000 * (i + 1))}
		if k.name == rawDecode {
			r.Ours, r.Theirs = 75, 50
		}
		a.Results = append(a.Results, r)
	}
	if got := a.roofline(); got != "" {
		t.Errorf("without a calibration: %q", got)
	}
	a.Bytes, a.Calibration = 10e9, native.Calibration{CopyRate: 1000e9}
	if got := a.roofline(); !strings.Contains(got, "allow 100.0 tok/s: llama-bench reaches 0.50 of it, we 0.75") {
		t.Errorf("got %q", got)
	}
	parts := []bench.MemoryPart{{Device: "CPU", Part: "weights", Bytes: 5}, {Device: "CUDA0", Part: "weights", Bytes: 7}, {Device: "CUDA0", Part: "kv", Bytes: 9}}
	if got := weightBytes(parts); got != 7 {
		t.Errorf("a token reads %d bytes of weights, want the 7 on the device", got)
	}
	if got := weightBytes(parts[:1]); got != 5 {
		t.Errorf("on the host a token reads %d bytes of weights, want 5", got)
	}
	a.Results = nil
	if got := a.roofline(); got != "" {
		t.Errorf("without decoding: %q", got)
	}
}
