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

// Prompts of unlike lengths beside each other, slots that fall empty between
// others, and one that holds no token more than it needs: passes are filled with
// rows for nobody, and no answer changes by them.
func TestFilledPassesChangeNoAnswer(t *testing.T) {
	const context64 = 64
	open := func(where string) *Engine {
		e, err := Open(context.Background(), Config{ModelPath: tiny(t), Slots: 5, Context: context64, PrefillChunk: 256, Sampling: where}, nil)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { e.Close() })
		return e
	}
	host, device := open("host"), open("device")
	prompts := []string{"Once upon a time", "a", "The quick brown fox jumps over the lazy dog and goes on", "b c", "There was"}
	lengths := []int{40, 3, 30, 2, 40}
	type answer struct{ prompt, tokens []int32 }
	const rounds = 4 // of each session; a slot is empty between two
	answers := make([][]answer, len(prompts))
	var wg sync.WaitGroup
	for i := range prompts {
		ids, err := device.Tokenize(prompts[i])
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			lengths[i] = context64 - len(ids) // to the last token of its slot
		}
		s, err := device.NewSession(bench.Limits{OutputTokens: lengths[i]})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		wg.Go(func() {
			for range rounds {
				req := &bench.Request{Prompt: prompts[i], Stream: true, Sampling: bench.Sampling{TopP: 1, MaxTokens: lengths[i], IgnoreEOS: true}}
				if err := s.Prepare(req); err != nil {
					t.Error(err)
					return
				}
				tr := &bench.Trace{}
				if err := s.Generate(context.Background(), tr); err != nil {
					t.Error(err)
					return
				}
				answers[i] = append(answers[i], answer{ids, tr.Tokens})
			}
		})
	}
	wg.Wait()
	passes, filled := device.Passes()
	if passes == 0 || filled == 0 {
		t.Errorf("%d passes with %d rows filled: nothing was put to the test", passes, filled)
	}
	for i, all := range answers {
		if len(all) != rounds {
			t.Fatalf("slot %d answered %d of %d requests", i, len(all), rounds)
		}
		for _, a := range all {
			if len(a.tokens) != lengths[i] {
				t.Fatalf("slot %d: %d tokens, want %d", i, len(a.tokens), lengths[i])
			}
			// Greedy: each token is the likeliest after those before it, or as good as
			// that: sums over batches of other shapes round otherwise.
			ids := append(append([]int32(nil), a.prompt...), a.tokens[:len(a.tokens)-1]...)
			rows, err := host.Logits(ids, len(a.tokens))
			if err != nil {
				t.Fatal(err)
			}
			for k, row := range rows {
				best := row[0]
				for _, x := range row {
					best = max(best, x)
				}
				if got := row[a.tokens[k]]; float64(best-got) > 1e-2*math.Max(1, math.Abs(float64(best))) {
					t.Fatalf("slot %d: token %d has logit %g, the best is %g", i, k, got, best)
				}
			}
		}
	}
}
