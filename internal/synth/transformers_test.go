package synth

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nativebench/nativebench/internal/gguf"
	"github.com/nativebench/nativebench/internal/plan"
	"github.com/nativebench/nativebench/native"
)

// Set by scripts/test-models.sh: a Python with Transformers, one that llama.cpp's
// converter runs in, and llama.cpp's sources.
const (
	pythonVar    = "NATIVEBENCH_TEST_TRANSFORMERS"
	converterVar = "NATIVEBENCH_TEST_CONVERTER"
	sourcesVar   = "NATIVEBENCH_TEST_LLAMA_SOURCES"
)

// realModels are the models that the experiment compares across engines, and
// the row that shows that one more is a row.
func realModels() []string {
	return []string{"gpt2", "phi-2", "llama-2-7b-chat", "mistral-7b-instruct", "llama-3-8b-instruct"}
}

// tools skips a test that needs Transformers and the real engine, saying why.
func tools(t *testing.T) (python, engine string) {
	t.Helper()
	python, engine = os.Getenv(pythonVar), os.Getenv(native.EnvDir)
	if python == "" || engine == "" {
		t.Skipf("%s or %s is not set: `make test-models` sets them", pythonVar, native.EnvDir)
	}
	return python, engine
}

type answer struct {
	IDs, Whole [][]int32
	Logits     [][][]float64
}

func transformers(t *testing.T, python, dir string, texts []string, rows [][]int32, last int) (a answer) {
	t.Helper()
	in, err := json.Marshal(map[string]any{"texts": texts, "rows": rows, "last": last})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), python, "testdata/tell.py", dir)
	cmd.Env = append(os.Environ(), "HF_HUB_OFFLINE=1")
	var stderr bytes.Buffer
	cmd.Stdin, cmd.Stderr = bytes.NewReader(in), &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, stderr.String())
	}
	if err := json.Unmarshal(out, &a); err != nil {
		t.Fatal(err)
	}
	return a
}

// testPrompts are one of each task, rendered, and what is hard for tokenizers.
func testPrompts(m plan.Model) (texts []string) {
	for _, task := range plan.Tasks() {
		texts = append(texts, m.Render(plan.Prompts(task.Key)[0].Text))
	}
	return texts
}

// TestTokenizerFilesAgree: Transformers makes the same ids of the Hugging Face
// directory's files as llama.cpp of the GGUF file's metadata: of llama.cpp's own
// hard cases, and of prompts.
func TestTokenizerFilesAgree(t *testing.T) {
	python, engine := tools(t)
	for _, key := range realModels() {
		t.Run(key, func(t *testing.T) {
			m, err := modelByKey(key)
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(engine, "vocab", m.Shape.VocabFile)
			v, err := readVocabulary(path, m.Shape)
			if err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			only, err := os.Create(filepath.Join(dir, "vocab.gguf"))
			if err != nil {
				t.Fatal(err)
			}
			defer only.Close()
			kv := append([]gguf.KV{{Key: "general.architecture", Value: m.Arch}}, m.arch.metadata(m.Model)...)
			if err := gguf.Write(only, append(kv, v.kv...), nil, nil); err != nil {
				t.Fatal(err)
			}
			files, err := v.files(m.Context)
			if err != nil {
				t.Fatal(err)
			}
			if files["config.json"], err = encodeJSON(m.arch.config(m.Model)); err != nil {
				t.Fatal(err)
			}
			for name, b := range files {
				if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			cases, err := os.ReadFile(path + ".inp")
			if err != nil {
				t.Fatal(err)
			}
			texts := append(strings.Split(string(cases), "\n__ggml_vocab_test__\n"), testPrompts(m.Model)...)
			texts = append(texts, "if x:\n        return\t\ty\n\t\t\t\t\t\t\t\t\t\tz"+strings.Repeat(" ", 40)+".")
			engineVocab, err := native.OpenVocab(engine, only.Name())
			if errors.Is(err, native.ErrLeftOut) {
				t.Skip(err)
			}
			if err != nil {
				t.Fatal(err)
			}
			defer engineVocab.Close()
			got := transformers(t, python, dir, texts, nil, 0)
			for i, text := range texts {
				want, err := engineVocab.Tokenize(text)
				if err != nil {
					t.Fatal(err)
				}
				if !slices.Equal(got.IDs[i], want) {
					t.Errorf("%q: Transformers has %v, llama.cpp %v", text, got.IDs[i], want)
				}
				count, err := engineVocab.CountTokens(text)
				if err != nil {
					t.Fatal(err)
				}
				if bos := slices.Contains(got.Whole[i], int32(v.bos)); len(got.Whole[i]) != count || bos != m.AddBOS {
					t.Errorf("%q: Transformers counts %d tokens, BOS among them: %v; llama.cpp %d; the model adds BOS: %v", text, len(got.Whole[i]), bos, count, m.AddBOS)
				}
			}
			t.Logf("%d texts, %d tokens", len(texts), len(slices.Concat(got.IDs...)))
		})
	}
}

// TestTokenizersAreThoseOfTheHub: llama.cpp's converter tells tokenizers of the
// hub apart by the hash of what they make of one hard text, and takes ours for
// those of the models. SentencePiece's are not among them.
func TestTokenizersAreThoseOfTheHub(t *testing.T) {
	python, engine := tools(t)
	sources := os.Getenv(sourcesVar)
	if sources == "" {
		t.Skipf("%s is not set: `make test-models` sets it", sourcesVar)
	}
	b, err := os.ReadFile(filepath.Join(sources, "conversion", "base.py"))
	if err != nil {
		t.Fatal(err)
	}
	quoted := regexp.MustCompile(`(?m)^\s+chktxt = ('.*')$`).FindSubmatch(b)
	if quoted == nil {
		t.Fatal("the converter has no text to check tokenizers with")
	}
	// Python's literal, read by Python.
	plain, err := exec.CommandContext(t.Context(), python, "-c", "import ast,sys; sys.stdout.buffer.write(ast.literal_eval(sys.argv[1]).encode())", string(quoted[1])).Output()
	if err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]string{"gpt2": "gpt-2", "phi-2": "phi-2", "llama-3-8b-instruct": "llama-bpe"} {
		m, err := modelByKey(key)
		if err != nil {
			t.Fatal(err)
		}
		v, err := readVocabulary(filepath.Join(engine, "vocab", m.Shape.VocabFile), m.Shape)
		if err != nil {
			t.Fatal(err)
		}
		files, err := v.files(m.Context)
		if err != nil {
			t.Fatal(err)
		}
		if files["config.json"], err = encodeJSON(m.arch.config(m.Model)); err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		for name, b := range files {
			if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		ids := transformers(t, python, dir, []string{string(plain)}, nil, 0).Whole[0]
		text := strings.ReplaceAll(fmt.Sprint(ids), " ", ", ") // as Python prints a list
		row := regexp.MustCompile(fmt.Sprintf(`(?s)"%x":\n.*?res = "(.*?)"`, sha256.Sum256([]byte(text)))).FindSubmatch(b)
		if row == nil || string(row[1]) != want {
			t.Errorf("%s: the converter takes the tokenizer for %q, not %q", key, row, want)
		}
	}
}

// TestLogitsAreThoseOfTransformers: the engine makes of the GGUF file what
// Transformers makes in float32 of the Hugging Face directory: two layers of the
// real width of each model, stored as F32, so that llama.cpp rounds nothing.
func TestLogitsAreThoseOfTransformers(t *testing.T) {
	python, engine := tools(t)
	const last, most = 8, 1e-3
	for _, key := range realModels()[:4] {
		t.Run(key, func(t *testing.T) {
			s := Spec{Model: key, Seed: 1, DType: "f32", Layers: 2, VocabDir: filepath.Join(engine, "vocab")}
			m, err := plan.ModelByKey(key)
			if err != nil {
				t.Fatal(err)
			}
			r := write(t, s, t.TempDir())
			e, err := native.Open(context.Background(), native.Config{ModelPath: r.GGUF, Model: key, Synthetic: true, Context: 1024, CacheType: "f32", FlashAttn: "off"}, nil)
			if errors.Is(err, native.ErrLeftOut) {
				t.Skip(err)
			}
			if err != nil {
				t.Fatal(err)
			}
			var rows [][]int32
			var ours [][][]float32
			for _, text := range testPrompts(m) {
				ids, err := e.Tokenize(text)
				if err != nil {
					t.Fatal(err)
				}
				logits, err := e.Logits(ids, last)
				if err != nil {
					t.Fatal(err)
				}
				rows, ours = append(rows, ids), append(ours, logits)
			}
			if err := e.Close(); err != nil {
				t.Fatal(err)
			}
			theirs := transformers(t, python, r.HFDir, []string{}, rows, last).Logits
			worst, agree := 0.0, 0
			for i := range ours {
				for j, row := range ours[i] {
					difference, largest := 0.0, 0.0
					best, bestOfTheirs := 0, 0
					for id, x := range row {
						y := theirs[i][j][id]
						difference, largest = max(difference, math.Abs(float64(x)-y)), max(largest, math.Abs(y))
						if x > row[best] {
							best = id
						}
						if y > theirs[i][j][bestOfTheirs] {
							bestOfTheirs = id
						}
					}
					if len(row) != len(theirs[i][j]) || !(difference/largest <= most) { // also when NaN
						t.Errorf("prompt %d, place %d: %d and %d logits differ by up to %v, the largest is %v", i, j, len(row), len(theirs[i][j]), difference, largest)
					}
					if best == bestOfTheirs {
						agree++
					} else {
						t.Errorf("prompt %d, place %d: the engine's next token is %d, that of Transformers %d", i, j, best, bestOfTheirs)
					}
					worst = max(worst, difference/largest)
				}
			}
			t.Logf("%s, 2 layers of width %d: logits differ by at most %.1e of the largest; %d of %d next tokens agree", key, m.Shape.Width, worst, agree, len(ours)*last)
		})
	}
}

// TestConverterMakesTheSameTensors: llama.cpp's own converter makes of the
// Hugging Face directory the tensors and the tokens of the GGUF file beside it,
// bit for bit. It reads tokenizer.model where there is one.
func TestConverterMakesTheSameTensors(t *testing.T) {
	_, engine := tools(t)
	python, sources := os.Getenv(converterVar), os.Getenv(sourcesVar)
	if python == "" || sources == "" {
		t.Skipf("%s or %s is not set: `make test-models` sets them if the converter's environment is there", converterVar, sourcesVar)
	}
	for _, s := range []Spec{
		{Model: "phi-2", Width: 160},
		{Model: "llama-2-7b-chat", Width: 256},
		{Model: "mistral-7b-instruct", Width: 512},
		{Model: "llama-3-8b-instruct", Width: 512},
	} {
		t.Run(s.Model, func(t *testing.T) {
			s.Seed, s.Layers, s.VocabDir = 1, 1, filepath.Join(engine, "vocab")
			r := write(t, s, t.TempDir())
			converted := filepath.Join(t.TempDir(), "converted.gguf")
			cmd := exec.CommandContext(t.Context(), python, filepath.Join(sources, "convert_hf_to_gguf.py"), r.HFDir, "--outtype", "f16", "--outfile", converted)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			ours, theirs := tensorHashes(t, r.GGUF), tensorHashes(t, converted)
			if diff := cmp.Diff(theirs, ours); diff != "" {
				t.Errorf("the converter makes other tensors (-converter +ours):\n%s", diff)
			}
			t.Logf("%d tensors are the same", len(ours))
			a, b := vocabularyIn(t, r.GGUF), vocabularyIn(t, converted)
			if !slices.Equal(a.tokens, b.tokens) || !slices.Equal(a.merges, b.merges) {
				t.Errorf("the converter makes other tokens or merges: %d and %d, %d and %d", len(b.tokens), len(b.merges), len(a.tokens), len(a.merges))
			}
			for id, kind := range a.kinds {
				// The converter calls the unknown token of SentencePiece, as every special
				// one of the configuration, a control token.
				if kind != b.kinds[id] && kind != kindUnknown {
					t.Errorf("token %d, %q: type %d, by the converter %d", id, a.tokens[id], kind, b.kinds[id])
				}
			}
		})
	}
}

// tensorHashes are type, shape and hash of the tensors of a file.
func tensorHashes(t *testing.T, path string) map[string]string {
	t.Helper()
	f, err := gguf.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, row := range f.Tensors {
		out[row.Name] = fmt.Sprintf("%v %v %x", row.Type, row.Dims, sha256.Sum256(b[f.DataOffset+row.Offset:][:row.Bytes()]))
	}
	return out
}

func vocabularyIn(t *testing.T, path string) (v vocabulary) {
	t.Helper()
	f, err := gguf.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if v.tokens, err = gguf.Get[[]string](f, "tokenizer.ggml.tokens"); err != nil {
		t.Fatal(err)
	}
	if v.kinds, err = gguf.Get[[]int32](f, "tokenizer.ggml.token_type"); err != nil {
		t.Fatal(err)
	}
	v.merges, _ = gguf.Get[[]string](f, "tokenizer.ggml.merges")
	return v
}
