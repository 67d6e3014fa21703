package verify_test

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/nativebench/nativebench/internal/bench"
	"github.com/nativebench/nativebench/internal/plan"
	"github.com/nativebench/nativebench/internal/synth"
	"github.com/nativebench/nativebench/native"
)

// Set by scripts/test-models.sh: a Python with Transformers, and an engine folder
// whose CPU plugin computes GELU in float32 (scripts/exact-gelu.sh).
const (
	pythonVar = "NATIVEBENCH_TEST_TRANSFORMERS"
	exactVar  = "NATIVEBENCH_TEST_EXACT_ENGINE"
)

// TestSameModelAsTransformers: of the same weights in float32 the engine makes
// the logits of Transformers on the CPU, within 1e-3 of the largest, and the
// same greedy answers, short of provable ties. GPT-2 is whole; of the others two
// layers of the real width. Flash attention is off and the KV cache in F32: with
// it llama.cpp's CPU kernels attend in float16. With the GELU table of llama.cpp's
// own CPU build the error of the whole GPT-2 was 1.4e-3, without it 5e-6.
func TestSameModelAsTransformers(t *testing.T) {
	python, engine := os.Getenv(pythonVar), os.Getenv(exactVar)
	if python == "" || engine == "" {
		t.Skipf("%s or %s is not set: `make test-models` sets them", pythonVar, exactVar)
	}
	var table []string
	for _, key := range []string{"gpt2", "phi-2", "llama-2-7b-chat", "mistral-7b-instruct"} {
		t.Run(key, func(t *testing.T) {
			m, err := plan.ModelByKey(key)
			if err != nil {
				t.Fatal(err)
			}
			layers := 2
			if key == "gpt2" {
				layers = 0 // all
			}
			table = append(table, sameAsTransformers(t, python, engine, m, layers))
		})
	}
	t.Logf("\n%-20s %8s  %-13s  %10s  %-14s  %s\n%s", "model", "layers", "logits", "max error", "greedy", "ties", strings.Join(table, "\n"))
}

const (
	testPrompts = 20
	testTokens  = 50
	mostError   = 1e-3 // max |difference| / max |logit| of a row
)

func sameAsTransformers(t *testing.T, python, engine string, m plan.Model, layers int) string {
	made, err := synth.Write(t.Context(), synth.Spec{
		Model: m.Key, Seed: 1, DType: "f32", Layers: layers, VocabDir: filepath.Join(engine, "vocab"),
	}, filepath.Join(t.TempDir(), "model"), nil)
	if err != nil {
		t.Fatal(err)
	}
	const slots = 4
	e, err := native.Open(t.Context(), native.Config{
		Dir: engine, ModelPath: made.GGUF, Slots: slots + 1, Context: 256, Threads: 1, CacheType: "f32", FlashAttn: "off",
	}, nil)
	if errors.Is(err, native.ErrLeftOut) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	var prompts [][]int32
	for i := range testPrompts / 2 {
		for _, task := range []string{"chat", "code"} {
			ids, err := e.Tokenize(m.Render(plan.Prompts(task)[i].Text))
			if err != nil {
				t.Fatal(err)
			}
			prompts = append(prompts, ids)
		}
	}
	answers := greedy(t, e, m, slots)

	var sequences [][]int32
	for i, ids := range prompts {
		sequences = append(sequences, slices.Concat(ids, answers[i][:testTokens-1]))
	}
	theirs, logits := askTransformers(t, python, made.HFDir, prompts, sequences)
	defer logits.Close()

	worst, ties, equal := 0.0, 0, 0
	for i, ids := range sequences {
		rows, err := e.Logits(ids, testTokens)
		if err != nil {
			t.Fatal(err)
		}
		at := 0 // of the first difference
		for at < testTokens && answers[i][at] == theirs[i][at] {
			at++
		}
		if at == testTokens {
			equal++
		}
		other := make([]float32, len(rows[0]))
		for j, row := range rows {
			if err := binary.Read(logits, binary.LittleEndian, other); err != nil {
				t.Fatal(err)
			}
			difference, largest := 0.0, 0.0
			for id, x := range row {
				difference = max(difference, math.Abs(float64(x-other[id])))
				largest = max(largest, math.Abs(float64(other[id])))
			}
			if difference/largest > worst || math.IsNaN(difference) {
				worst = difference / largest
			}
			if j != at {
				continue
			}
			// a is the engine's choice, the largest of its row short of the error
			// between decoding and this; b that of Transformers. If they are as
			// far apart as twice the error of this very row, it is a tie.
			gap := math.Abs(float64(row[answers[i][at]] - row[theirs[i][at]]))
			if gap <= 2*difference {
				ties++
			} else {
				t.Errorf("prompt %d, token %d: the engine takes %d, Transformers %d, %g apart; logits differ by %g", i, j, answers[i][at], theirs[i][at], gap, difference)
			}
		}
	}
	if !(worst <= mostError) {
		t.Errorf("logits differ by up to %.2e of the largest, more than %g", worst, mostError)
	}
	shape := "2 layers"
	if layers == 0 {
		shape = "whole"
	}
	return fmt.Sprintf("%-20s %8s  %4d × %6d  %10.1e  %2d of %d × %d  %4d", m.Key, shape, testPrompts*testTokens, len(sequences), worst, equal, testPrompts, testTokens, ties)
}

// greedy answers the prompts of sameAsTransformers, some at once.
func greedy(t *testing.T, e *native.Engine, m plan.Model, slots int) [][]int32 {
	answers := make([][]int32, testPrompts)
	var wg sync.WaitGroup
	for w := range slots {
		s, err := e.NewSession(bench.Limits{PromptBytes: 4096, PromptTokens: 256, OutputTokens: testTokens})
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			defer s.Close()
			for i := w; i < testPrompts; i += slots {
				text := m.Render(plan.Prompts([]string{"chat", "code"}[i%2])[i/2].Text)
				tr := bench.NewTrace(testTokens)
				err := s.Prepare(&bench.Request{Prompt: text, Sampling: bench.Sampling{TopP: 1, MaxTokens: testTokens, IgnoreEOS: true}})
				if err == nil {
					err = s.Generate(t.Context(), tr)
				}
				if err != nil {
					t.Error(err)
					return
				}
				answers[i] = slices.Clone(tr.Tokens)
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
	return answers
}

type openLogits struct {
	io.Reader
	io.Closer
}

func askTransformers(t *testing.T, python, dir string, prompts, sequences [][]int32) ([][]int32, openLogits) {
	in, err := json.Marshal(map[string]any{"prompts": prompts, "new_tokens": testTokens, "sequences": sequences, "last": testTokens})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "logits")
	cmd := exec.CommandContext(t.Context(), python, "../../scripts/python/logits.py", "--model", dir, "--out", path)
	cmd.Env = append(os.Environ(), "HF_HUB_OFFLINE=1")
	var stderr bytes.Buffer
	cmd.Stdin, cmd.Stderr = bytes.NewReader(in), &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, stderr.String())
	}
	var answer struct{ Greedy [][]int32 }
	if err := json.Unmarshal(out, &answer); err != nil || len(answer.Greedy) != len(prompts) {
		t.Fatalf("%d answers, %v", len(answer.Greedy), err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	return answer.Greedy, openLogits{bufio.NewReaderSize(f, 1<<20), f}
}
