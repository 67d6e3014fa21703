package plan_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/nativebench/nativebench/internal/plan"
	"github.com/nativebench/nativebench/native"
)

// vocab opens a real vocabulary of the engine. Phi-2 is counted by GPT-2's (see
// TestBuiltInPrompts); Mistral's is not among those that the engine brings.
func vocab(t *testing.T, name string) *native.Vocab {
	t.Helper()
	dir := os.Getenv("NATIVEBENCH_ENGINE_DIR")
	if dir == "" {
		t.Skip("NATIVEBENCH_ENGINE_DIR is not set: no engine to count tokens with")
	}
	v, err := native.OpenVocab(dir, filepath.Join(dir, "vocab", name))
	if errors.Is(err, native.ErrLeftOut) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { v.Close() })
	return v
}

var vocabularies = []struct {
	file   string
	models []string
}{
	{"ggml-vocab-gpt-2.gguf", []string{"gpt2", "phi-2"}},
	{"ggml-vocab-llama-spm.gguf", []string{"llama-2-7b-chat"}},
	{"ggml-vocab-llama-bpe.gguf", []string{"llama-3-8b-instruct"}},
}

func TestPromptLengthsWithRealVocabularies(t *testing.T) {
	for _, voc := range vocabularies {
		t.Run(voc.file, func(t *testing.T) {
			v := vocab(t, voc.file)
			count := func(id, text string) int {
				n, err := v.CountTokens(text)
				if err != nil {
					t.Fatalf("%s: %v", id, err)
				}
				return n
			}
			for _, key := range voc.models {
				m, err := plan.ModelByKey(key)
				if err != nil {
					t.Fatal(err)
				}
				bos := 0
				if m.AddBOS {
					bos = 1
				}
				for _, task := range plan.Tasks() {
					for _, p := range plan.Prompts(task.Key) {
						raw, rendered := count(p.ID, p.Text)-bos, count(p.ID, m.Render(p.Text))
						if m.Beyond() {
							if rendered > task.InputTokens[1] {
								t.Errorf("%s: %d tokens for %s", p.ID, rendered, key)
							}
							continue
						}
						if rendered-bos != p.Tokens[key] {
							t.Errorf("%s: %d tokens for %s, %d are recorded", p.ID, rendered-bos, key, p.Tokens[key])
						}
						if raw < task.InputTokens[0] || rendered > task.InputTokens[1] {
							t.Errorf("%s: %d tokens raw, %d rendered for %s, the task has %v", p.ID, raw, rendered, key, task.InputTokens)
						}
					}
				}
			}
		})
	}
}

func TestExactPromptWithRealVocabularies(t *testing.T) {
	for _, voc := range vocabularies {
		t.Run(voc.file, func(t *testing.T) {
			v := vocab(t, voc.file)
			for _, key := range voc.models {
				m, err := plan.ModelByKey(key)
				if err != nil {
					t.Fatal(err)
				}
				for _, n := range []int{16, 17, 32, 63, 64, 128, 500, 512, m.Context - 32} {
					for variant := range uint64(3) {
						text, err := plan.ExactPromptVariant(v, m, n, variant)
						if err != nil {
							t.Error(err)
							continue
						}
						if got, err := v.CountTokens(text); err != nil || got != n {
							t.Errorf("%s: %d tokens, %v; want %d", key, got, err, n)
						}
					}
				}
			}
		})
	}
}
