//go:build cgo && linux

package native

import (
	"context"
	"errors"
	"math"
	"slices"
	"strings"
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

// Passes are filled with rows for nobody in slots that are empty, that hold half a
// prompt, or whose prompt is shorter than its neighbour's; and not where a slot has
// no room for them. No answer changes by it.
func TestFilledPassesChangeNoAnswer(t *testing.T) {
	open := func(where string) *Engine {
		e, err := Open(context.Background(), Config{ModelPath: tiny(t), Slots: 4, Context: 256, PrefillChunk: 220, Sampling: where}, nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { e.Close() })
		return e
	}
	host, device := open("host"), open("device")
	seats := make([]bench.Session, 4)
	for i := range seats {
		seats[i] = seat(t, device)
	}
	prompt := func(tokens int) string {
		text := strings.Repeat(" a", tokens)
		if ids, err := device.Tokenize(text); err != nil || len(ids) != tokens {
			t.Fatalf("%d tokens in the prompt, want %d: %v", len(ids), tokens, err)
		}
		return text
	}
	// ask has a slot answer, and its answer judged: greedy, so each token is the
	// likeliest after those before it, or as good as that: sums over batches of other
	// shapes round otherwise.
	ask := func(slot, tokens, output int) {
		req := request(prompt(tokens), output, true)
		tr := bench.NewTrace(output)
		if err := errors.Join(seats[slot].Prepare(req), seats[slot].Generate(context.Background(), tr)); err != nil {
			t.Errorf("slot %d: %v", slot, err)
			return
		}
		ids, _ := device.Tokenize(req.Prompt)
		rows, err := host.Logits(append(ids, tr.Tokens[:len(tr.Tokens)-1]...), len(tr.Tokens))
		if err != nil || len(tr.Tokens) != output {
			t.Errorf("slot %d: %d of %d tokens: %v", slot, len(tr.Tokens), output, err)
			return
		}
		for k, row := range rows {
			best := slices.Max(row)
			if got := row[tr.Tokens[k]]; float64(best-got) > 1e-2*math.Max(1, math.Abs(float64(best))) {
				t.Errorf("slot %d: token %d has logit %g, the best is %g", slot, k, got, best)
				return
			}
		}
	}
	// together has several slots answer at once until rows were filled.
	together := func(what string, slots ...func()) {
		t.Helper()
		for range 50 {
			_, before := device.Passes()
			var wg sync.WaitGroup
			for _, f := range slots {
				wg.Go(f)
			}
			wg.Wait()
			if _, after := device.Passes(); after > before || t.Failed() {
				return
			}
		}
		t.Errorf("%s: no rows were filled", what)
	}
	together("an empty slot between two that generate", func() { ask(0, 120, 30) }, func() { ask(2, 120, 30) }) // too long to be filled up themselves
	together("prompts of unlike lengths", func() { ask(0, 10, 1) }, func() { ask(1, 40, 1) })                   // one token: no decode steps
	// Slot 1's prompt takes two chunks: between them it holds tokens, and stands
	// between two that generate; with the second, of 20 tokens, comes the prompt of
	// slot 2, whose length it cannot be filled up to.
	together("half a prompt between two that generate",
		func() { ask(0, 3, 40) }, func() { ask(3, 3, 40) },
		func() {
			for range 4 {
				ask(1, 240, 2)
			}
		},
		func() {
			for range 4 {
				ask(2, 90, 2)
			}
		})
}
