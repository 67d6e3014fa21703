//go:build cgo && linux

package native

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nativebench/nativebench/internal/gguf"
	"github.com/nativebench/nativebench/internal/synth"
)

// synthetic writes a two-layer relative of a model.
func synthetic(t *testing.T, model, vocab string) string {
	t.Helper()
	res, err := synth.Write(context.Background(), synth.Spec{
		Model: model, Seed: 1, Layers: 2, Width: 256, VocabPath: filepath.Join(os.Getenv(EnvDir), "vocab", vocab),
	}, t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return res.GGUF
}

// What the operations of a model are said to read and to compute is what its
// file holds: every tensor once a step, 2·m·n·k FLOPs for each that is
// multiplied with; and the operations fit into the steps.
func TestOperations(t *testing.T) {
	tiny(t) // skips without an engine
	const prompt, output, width, layers = 24, 5, 256, 2
	for model, vocab := range map[string]string{"gpt2": "ggml-vocab-gpt-2.gguf", "llama-2-7b-chat": "ggml-vocab-llama-spm.gguf"} {
		t.Run(model, func(t *testing.T) {
			path := synthetic(t, model, vocab)
			file, err := gguf.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			tensors := map[string]gguf.Tensor{}
			for _, x := range file.Tensors {
				tensors[x.Name] = x
			}
			e, err := Open(context.Background(), Config{ModelPath: path, Context: 256, Threads: 1, Watch: "ops"}, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer e.Close()
			seen, err := e.Watch(Work{PromptTokens: prompt, OutputTokens: output, Slots: 1, Sample: true, Temperature: 0.8, TopP: 0.95}, 2)
			if err != nil {
				t.Fatal(err)
			}
			if seen.EmptyNS <= 0 || seen.MemoryRate < 1e8 || seen.FLOPRate < 1e8 || seen.Memory == "" || seen.Product == "" {
				t.Errorf("the machine's best: %d ns, %d B/s (%s), %d FLOP/s (%s)", seen.EmptyNS, seen.MemoryRate, seen.Memory, seen.FLOPRate, seen.Product)
			}
			for kind, s := range map[string]Steps{"prefill": seen.Prefill, "decode": seen.Decode} {
				tokens, steps := int64(1), 2*(output-1)
				if kind == "prefill" {
					tokens, steps = prompt, 2
				}
				if s.Seen != steps || s.Steps != steps/2 || s.Tokens != tokens*int64(s.Steps) || s.SampleNS <= 0 || s.OnDevice {
					t.Errorf("%s: %d of %d steps with %d tokens, sampling %d ns; want %d of %d", kind, s.Steps, s.Seen, s.Tokens, s.SampleNS, steps/2, steps)
				}
				n := int64(s.Steps)
				read := map[string]bool{}
				sum, kept := int64(0), int64(0)
				for _, o := range s.Ops {
					sum += o.NS
					if o.Op == "SET_ROWS" {
						kept += o.Written
					}
					if o.Weight == "" {
						continue
					}
					x, ok := tensors[o.Weight]
					if !ok {
						t.Errorf("%s: %s reads %q, which the file does not hold", kind, o.Name, o.Weight)
						continue
					}
					if o.Op == "GET_ROWS" { // the rows of the tokens
						if want := x.Bytes() / x.Dims[1] * tokens * n; o.Weights != want {
							t.Errorf("%s: %s reads %d bytes of %s, want %d", kind, o.Name, o.Weights, o.Weight, want)
						}
						continue
					}
					read[o.Weight] = true
					if o.Weights != x.Bytes()*n || int64(o.Count) != n {
						t.Errorf("%s: %s reads %d bytes of %s in %d steps, the file has %d", kind, o.Name, o.Weights, o.Weight, o.Count, x.Bytes())
					}
					columns := tokens // of the last layer's only what the last token needs
					if strings.HasPrefix(o.Weight, "blk.1.ffn") || !strings.HasPrefix(o.Weight, "blk.") {
						columns = 1
					}
					if o.Op == "MUL_MAT" {
						k, m := x.Dims[0], x.Dims[1]
						if want := 2 * m * columns * k * n; o.FLOPs != want {
							t.Errorf("%s: %s makes %d FLOPs, 2·%d·%d·%d in %d steps are %d", kind, o.Name, o.FLOPs, m, columns, k, n, want)
						}
						if want := 4 * m * columns * n; o.Written != want {
							t.Errorf("%s: %s writes %d bytes, want %d", kind, o.Name, o.Written, want)
						}
					} else if o.FLOPs != 0 {
						t.Errorf("%s: %s, a %s, has FLOPs", kind, o.Name, o.Op)
					}
				}
				for name := range tensors {
					if !read[name] && name != "position_embd.weight" && (name != "token_embd.weight" || tensors["output.weight"].Name == "") && !strings.HasPrefix(name, "rope") {
						t.Errorf("%s: nothing reads %s", kind, name)
					}
				}
				if kvHeads := int64(width); kept != 2*layers*kvHeads*2*tokens*n { // K and V, F16
					t.Errorf("%s: %d bytes go into the KV cache, want %d", kind, kept, 2*layers*kvHeads*2*tokens*n)
				}
				if sum <= 0 || sum > s.NS {
					t.Errorf("%s: operations of %d ns in steps of %d ns", kind, sum, s.NS)
				}
			}
		})
	}
}

// Where tokens are chosen on the device, that is a part of the step.
func TestOperationsWithTheChoiceOnTheDevice(t *testing.T) {
	e, err := Open(context.Background(), Config{ModelPath: tiny(t), Context: 256, Threads: 1, Watch: "ops", Sampling: "device"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	seen, err := e.Watch(Work{PromptTokens: 8, OutputTokens: 4, Slots: 1, Sample: true, Temperature: 0.8, TopP: 0.95}, 2)
	if err != nil {
		t.Fatal(err)
	}
	for kind, s := range map[string]Steps{"prefill": seen.Prefill, "decode": seen.Decode} {
		sum := s.SampleNS
		for _, o := range s.Ops {
			sum += o.NS
		}
		if !s.OnDevice || s.SampleNS <= 0 || len(s.Ops) == 0 || sum > s.NS {
			t.Errorf("%s: operations and choice take %d ns of %d: %d of it the choice, on the device: %v", kind, sum, s.NS, s.SampleNS, s.OnDevice)
		}
	}
}

// An engine that is not opened for it tells nothing, and one that times whole
// steps tells of no operations.
func TestWatchedOrNot(t *testing.T) {
	w := Work{PromptTokens: 8, OutputTokens: 3, Slots: 1, Sample: true, Temperature: 1, TopP: 1}
	if _, err := openTiny(t, 1).Watch(w, 1); err == nil || err.Error() != "native: the engine was not opened for watching" {
		t.Errorf("unwatched: %v", err)
	}
	if _, err := openFake(t, "", 1).Watch(w, 1); err == nil || err.Error() != "native: this engine has no operations to be watched" {
		t.Errorf("fake: %v", err)
	}
	e, err := Open(context.Background(), Config{ModelPath: tiny(t), Context: 256, Threads: 1, Watch: "steps"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	seen, err := e.Watch(w, 3)
	if err != nil {
		t.Fatal(err)
	}
	if seen.Decode.Seen != 6 || seen.Prefill.Seen != 3 || len(seen.Decode.Ops) != 0 || seen.Decode.NS <= 0 || seen.EmptyNS != 0 {
		t.Errorf("%+v", seen)
	}
	if _, err := Open(context.Background(), Config{ModelPath: tiny(t), Watch: "all"}, nil); err == nil || !strings.Contains(err.Error(), "steps, ops") {
		t.Errorf("an unknown kind: %v", err)
	}
}
