//go:build cgo && linux

package native

import (
	"context"
	"math"
	"sync"
	"testing"

	"github.com/nativebench/nativebench/internal/bench"
)

// Tokens chosen on the device, here by its kernel run on the host: the path
// through llama.cpp that keeps logits where they are gives the answers that the
// host's choice gives.
func TestDeviceChoosesAsTheHostDoes(t *testing.T) {
	answers := func(where string) (all [][]int32) {
		e, err := Open(context.Background(), Config{ModelPath: tiny(t), Slots: 3, Context: 256, PrefillChunk: 8, Sampling: where}, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer e.Close()
		for i, prompt := range []string{"Once upon a time", "a", "The quick brown fox jumps over the lazy dog and goes on"} {
			s, err := e.NewSession(bench.Limits{OutputTokens: 12})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			req := &bench.Request{Prompt: prompt, Stream: true, Sampling: bench.Sampling{TopP: 1, MaxTokens: 6 + i, IgnoreEOS: true}}
			if err := s.Prepare(req); err != nil {
				t.Fatal(err)
			}
			tr := &bench.Trace{}
			if err := s.Generate(context.Background(), tr); err != nil {
				t.Fatal(err)
			}
			all = append(all, tr.Tokens)
		}
		return all
	}
	host, device := answers("host"), answers("device")
	for i := range host {
		if len(device[i]) != len(host[i]) {
			t.Fatalf("%d tokens on the device, %d on the host", len(device[i]), len(host[i]))
		}
		for k := range host[i] {
			if host[i][k] != device[i][k] {
				t.Errorf("prompt %d: token %d is %d on the device, %d on the host", i, k, device[i][k], host[i][k])
			}
		}
	}
}

// Logits asked for beside requests, in batches of unlike prompts: each call's
// rows are its own, whatever lies beside them.
func TestLogitsFromTheDevice(t *testing.T) {
	open := func(where string) *Engine {
		e, err := Open(context.Background(), Config{ModelPath: tiny(t), Slots: 4, Context: 64, PrefillChunk: 24, UBatch: 24, Sampling: where}, nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { e.Close() })
		return e
	}
	host, device := open("host"), open("device")
	calls := []struct{ n, last int }{{7, 3}, {7, 1}, {30, 9}}
	ids := func(call int) []int32 {
		out := make([]int32, calls[call].n)
		for i := range out {
			out[i] = int32((call*1009 + i*37) % 50000)
		}
		return out
	}
	s, err := device.NewSession(bench.Limits{OutputTokens: 8})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	req := &bench.Request{Prompt: "Once upon a time", Stream: true, Sampling: bench.Sampling{Temperature: 1, TopP: 0.9, MaxTokens: 8, IgnoreEOS: true}}
	if err := s.Prepare(req); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		tr := &bench.Trace{}
		if err := s.Generate(context.Background(), tr); err != nil || len(tr.Tokens) != 8 {
			t.Errorf("beside calls of logits: %d tokens, want 8: %v", len(tr.Tokens), err)
		}
	})
	for i, c := range calls {
		wg.Go(func() {
			got, err := device.Logits(ids(i), c.last)
			if err != nil {
				t.Error(err)
				return
			}
			want, err := host.Logits(ids(i), c.last)
			if err != nil {
				t.Error(err)
				return
			}
			for r := range want {
				for id, x := range want[r] {
					if d := math.Abs(float64(x - got[r][id])); !(d <= 1e-2*math.Max(1, math.Abs(float64(x)))) {
						t.Errorf("call %d, row %d, token %d: %g from the device, %g from the host", i, r, id, got[r][id], x)
						return
					}
				}
			}
		})
	}
	wg.Wait()
}
