package tokenizer

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// vocabDir is where the engine's build keeps llama.cpp's vocabularies and the
// vectors that its authors made with the models' own tokenizers.
func vocabDir(t testing.TB) string {
	t.Helper()
	dir := os.Getenv("NATIVEBENCH_ENGINE_DIR")
	if dir == "" {
		t.Skip("NATIVEBENCH_ENGINE_DIR is not set: no vocabularies of llama.cpp")
	}
	return filepath.Join(dir, "vocab")
}

var opened = map[string]*Tokenizer{}

// open reads one of llama.cpp's vocabularies, "gpt-2" for example.
func open(t testing.TB, name string) *Tokenizer {
	t.Helper()
	if tok := opened[name]; tok != nil {
		return tok
	}
	tok, err := Open(filepath.Join(vocabDir(t), "ggml-vocab-"+name+".gguf"))
	if err != nil {
		t.Fatal(err)
	}
	opened[name] = tok
	return tok
}

type vector struct {
	text string
	ids  []int32
}

// vectors reads a vocabulary's, as llama.cpp's test-tokenizer-0 does.
func vectors(t testing.TB, vocab string) (list []vector) {
	t.Helper()
	base := filepath.Join(vocabDir(t), "ggml-vocab-"+vocab+".gguf")
	in, err := os.ReadFile(base + ".inp")
	if err != nil {
		t.Fatal(err)
	}
	out, err := os.ReadFile(base + ".out")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSuffix(string(out), "\n"), "\n")
	texts := strings.Split(string(in), "\n__ggml_vocab_test__\n")
	if len(texts) == len(lines)+1 && texts[len(texts)-1] == "" {
		texts = texts[:len(lines)]
	}
	if len(texts) != len(lines) {
		t.Fatalf("%s: %d texts, %d results", vocab, len(texts), len(lines))
	}
	for i, text := range texts {
		v := vector{text: text, ids: []int32{}}
		for _, f := range strings.Fields(lines[i]) {
			var id int32
			if _, err := fmt.Sscan(f, &id); err != nil {
				t.Fatal(err)
			}
			v.ids = append(v.ids, id)
		}
		list = append(list, v)
	}
	return list
}

// TestVectors: every vocabulary that llama.cpp brings is either exact on all
// its vectors or refused, and which is recorded here.
func TestVectors(t *testing.T) {
	exact := map[string]int{"gpt-2": 46, "llama-spm": 46, "llama-bpe": 46, "phi-3": 46, "mpt": 46, "qwen2": 46}
	noVectors := []string{"baichuan"}
	refused := []string{
		"aquila", "bert-bge", "command-r", "deepseek-coder", "deepseek-llm", "falcon", "gemma-4", "gpt-neox", "nomic-bert-moe", "qwen35", "refact", "starcoder",
	}
	files, err := filepath.Glob(filepath.Join(vocabDir(t), "*.gguf"))
	if err != nil || len(files) < len(exact)+len(refused) {
		t.Fatalf("%d vocabularies, %v", len(files), err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(file), "ggml-vocab-"), ".gguf")
		t.Run(name, func(t *testing.T) {
			tok, err := Open(file)
			if slices.Contains(refused, name) {
				if !errors.Is(err, ErrUnsupported) {
					t.Fatalf("%v; want ErrUnsupported", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if slices.Contains(noVectors, name) {
				if _, err := os.Stat(file + ".inp"); !errors.Is(err, fs.ErrNotExist) {
					t.Fatalf("there are vectors now, %v", err)
				}
				return
			}
			list := vectors(t, name)
			if len(list) != exact[name] {
				t.Fatalf("%d vectors, %d expected", len(list), exact[name])
			}
			for _, v := range list {
				if got, err := tok.tokenize(v.text, false); err != nil || !slices.Equal(got, v.ids) {
					t.Errorf("%q: %v, %v; want %v", v.text, got, err, v.ids)
				}
			}
		})
	}
}
