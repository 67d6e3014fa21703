package measure

import (
	"math"
	"slices"
	"testing"

	"github.com/nativebench/nativebench/internal/bench"
)

func TestTheLedgerAddsUp(t *testing.T) {
	parts := []bench.MemoryPart{
		{Device: "CPU", Part: "weights", Bytes: 77},
		{Device: "CUDA0", Part: "weights", Bytes: 2000},
		{Device: "CUDA0", Part: "kv", Bytes: 500},
		{Device: "CUDA0", Part: "compute", Bytes: 100},
		{Device: "CUDA0", Part: "kv", Bytes: 200},
		{Device: "CUDA1", Part: "weights", Bytes: 9},
	}
	// GPT-2 with 8 slots of 256 tokens on an H100: driver 580, CUDA 13.
	h100 := []bench.MemoryPart{{Device: "CUDA0", Part: "weights", Bytes: 247549440}, {Device: "CUDA0", Part: "kv", Bytes: 75497472}, {Device: "CUDA0", Part: "compute", Bytes: 106072064}}
	for _, tt := range []struct {
		name                  string
		parts                 []bench.MemoryPart
		context, loaded, peak int64
		keys                  []string
		grown, remainder      int64
		share                 float64
		missing               bool
	}{
		{"all is known", parts, 300, 3150, 3250, []string{"context", "weights", "kv", "compute"}, 100, 50, 50.0 / 3250, false},
		{"the context was not seen", parts, -1, 3150, 3250, []string{"weights", "kv", "compute"}, 100, 350, 350.0 / 3250, false},
		{"the engine tells its context", append(slices.Clone(parts), bench.MemoryPart{Device: "CUDA0", Part: "context", Bytes: 310}), 300, 3150, 3250, []string{"weights", "kv", "compute", "context"}, 100, 40, 40.0 / 3250, false},
		{"a real card", h100, 543162368, 983564288, 1155530752, []string{"context", "weights", "kv", "compute"}, 171966464, 11282944, 0.00976429, false},
		{"more than was held", parts, 300, 3000, 3000, []string{"context", "weights", "kv", "compute"}, 0, -100, -100.0 / 3000, false},
		{"the driver does not tell", parts, 300, -1, -1, nil, 0, 0, 0, true},
		{"nothing on the device", parts[:1], 300, 3150, 3250, nil, 0, 0, 0, true},
	} {
		v, ok := VRAMOf(tt.parts, "CUDA0", tt.context, tt.loaded, tt.peak)
		if ok == tt.missing {
			t.Errorf("%s: ok %v", tt.name, ok)
		}
		if !ok {
			continue
		}
		var keys []string
		sum := v.Grown + v.Remainder
		for _, p := range v.Parts {
			keys = append(keys, p.Key)
			sum += p.Bytes
		}
		if sum != v.Peak || v.Peak != tt.peak {
			t.Errorf("%s: the parts make %d, the peak is %d, want %d", tt.name, sum, v.Peak, tt.peak)
		}
		if !slices.Equal(keys, tt.keys) || v.Grown != tt.grown || v.Remainder != tt.remainder || math.Abs(v.Share()-tt.share) > 1e-8 {
			t.Errorf("%s: %q, grown %d, remainder %d (%v); want %q, %d, %d (%v)", tt.name, keys, v.Grown, v.Remainder, v.Share(), tt.keys, tt.grown, tt.remainder, tt.share)
		}
	}
}

func TestPool(t *testing.T) {
	for _, tt := range []struct {
		tokens     float64
		tokenBytes int64
		used, held float64
		want       Pool
	}{
		{1000, 100, 0.25, 0, Pool{100_000, 25_000}},
		{1000, 100, 0, 0, Pool{100_000, 0}},
		{1000, 100, -1, 300, Pool{100_000, 30_000}},
		{0, 100, -1, 300, Pool{-1, 30_000}},
		{0, 100, 0.25, 0, Pool{-1, -1}},
		{1000, 100, -1, 0, Pool{100_000, -1}},
		{1000, 0, 0.25, 300, Pool{-1, -1}},
	} {
		if got := PoolOf(tt.tokens, tt.tokenBytes, tt.used, tt.held); got != tt.want {
			t.Errorf("%v tokens of %d bytes, %v used, %v held: %+v, want %+v", tt.tokens, tt.tokenBytes, tt.used, tt.held, got, tt.want)
		}
	}
}
