//go:build cgo && linux

package native

import (
	"context"
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
