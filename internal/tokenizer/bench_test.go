package tokenizer

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/nativebench/nativebench/internal/plan"
	"github.com/nativebench/nativebench/native"
)

// ordinary is text as prompts have it: those of the experiment's tasks, code
// and Korean among them, and the same again.
func ordinary() string {
	var b strings.Builder
	for _, task := range plan.Tasks() {
		for _, p := range plan.Prompts(task.Key) {
			b.WriteString(p.Text + "\n\n")
		}
	}
	return b.String()
}

// BenchmarkTokenize has a sub-benchmark for each vocabulary, and the engine's
// own tokenizer on the same text.
func BenchmarkTokenize(b *testing.B) {
	text := ordinary()
	measure := func(name string, tokenize func(string) ([]int32, error)) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			tokens := 0
			for b.Loop() {
				ids, err := tokenize(text)
				if err != nil {
					b.Fatal(err)
				}
				tokens += len(ids)
			}
			b.ReportMetric(float64(tokens)/b.Elapsed().Seconds(), "tokens/s")
			b.ReportMetric(float64(len(text)), "bytes")
		})
	}
	for _, name := range known {
		measure(name+"/go", open(b, name).Tokenize)
		ref, err := native.OpenVocab(filepath.Dir(vocabDir(b)), filepath.Join(vocabDir(b), "ggml-vocab-"+name+".gguf"))
		if err == nil {
			measure(name+"/engine", ref.Tokenize)
			ref.Close()
		}
	}
}
