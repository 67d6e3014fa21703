package convert_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/nativebench/nativebench/internal/convert"
	"github.com/nativebench/nativebench/internal/gguf"
	"github.com/nativebench/nativebench/internal/synth"
)

// converter returns where the real converter is, and skips the test where it
// is not.
func converter(t *testing.T) convert.Spec {
	t.Helper()
	s := convert.Spec{EngineDir: os.Getenv("NATIVEBENCH_ENGINE_DIR"), PythonDir: os.Getenv("NATIVEBENCH_PYTHON_CONVERT")}
	if s.PythonDir == "" {
		t.Skip("NATIVEBENCH_PYTHON_CONVERT is not set: `make test-models` converts for real")
	}
	if err := convert.Available(s.EngineDir, s.PythonDir); err != nil {
		t.Skip(err)
	}
	return s
}

// widths are of small relatives of the models.
var widths = map[string]int{"gpt2": 128, "phi-2": 160, "llama-2-7b-chat": 256, "mistral-7b-instruct": 512, "llama-3-8b-instruct": 512}

// synthetic writes a small model both ways.
func synthetic(t *testing.T, engineDir string, spec synth.Spec) *synth.Result {
	t.Helper()
	spec.Seed, spec.VocabDir = 7, filepath.Join(engineDir, "vocab")
	made, err := synth.Write(t.Context(), spec, t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return made
}

// tensors reads all tensors' types, shapes and bytes.
func tensors(t *testing.T, path string) (*gguf.File, map[string][]byte) {
	t.Helper()
	f, err := gguf.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	all, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data := map[string][]byte{}
	for _, x := range f.Tensors {
		data[x.Name] = all[f.DataOffset+x.Offset:][:x.Bytes()]
	}
	return f, data
}

// The synthetic models' two forms hold the same numbers: what llama.cpp's
// converter makes of one is the other, tensor by tensor and byte by byte, and
// in all metadata that decides what the model computes.
func TestConvertedEqualsSynthetic(t *testing.T) {
	s := converter(t)
	s.CacheDir = t.TempDir()
	for _, key := range synth.Models() {
		for _, typ := range []string{"f16", "bf16"} {
			if typ == "bf16" && key != "gpt2" && key != "llama-2-7b-chat" {
				continue // once for each kind of tokenizer is enough
			}
			t.Run(key+"/"+typ, func(t *testing.T) {
				made := synthetic(t, s.EngineDir, synth.Spec{Model: key, DType: typ, Layers: 2, Width: widths[key]})
				s := s
				s.HFDir, s.Type = made.HFDir, typ
				got, err := convert.Convert(t.Context(), s, nil)
				if err != nil {
					t.Fatal(err)
				}
				want, wantData := tensors(t, made.GGUF)
				have, haveData := tensors(t, got.Path)
				if len(have.Tensors) != len(want.Tensors) {
					t.Errorf("%d tensors, not %d", len(have.Tensors), len(want.Tensors))
				}
				for _, w := range want.Tensors {
					i := slices.IndexFunc(have.Tensors, func(h gguf.Tensor) bool { return h.Name == w.Name })
					if i < 0 {
						t.Errorf("no tensor %s", w.Name)
						continue
					}
					if h := have.Tensors[i]; h.Type != w.Type || !slices.Equal(h.Dims, w.Dims) {
						t.Errorf("%s is %s %v, not %s %v", w.Name, h.Type, h.Dims, w.Type, w.Dims)
					} else if !bytes.Equal(haveData[w.Name], wantData[w.Name]) {
						t.Errorf("%s has other bytes", w.Name)
					}
				}
				compareMetadata(t, want, have)
				if !got.Synthetic || got.Seed != 7 || got.Reused || got.Type != strings.ToUpper(typ) {
					t.Errorf("described as %+v", got)
				}
			})
		}
	}
}

// compareMetadata compares what decides how a model computes and tokenizes:
// not names and remarks.
func compareMetadata(t *testing.T, want, have *gguf.File) {
	t.Helper()
	// A SentencePiece model's <unk>, <s> and </s>, its first three, the converter
	// takes from tokenizer_config.json: of score -1000, all of type control.
	// llama.cpp's own vocabulary has scores of 0, and <unk> of type unknown. No
	// merge makes any of them, so neither decides what a text becomes.
	model, _ := gguf.Get[string](want, "tokenizer.ggml.model")
	spm := model == "llama"
	compared := 0
	for _, kv := range want.KV {
		if strings.HasPrefix(kv.Key, "general.") && kv.Key != "general.architecture" && kv.Key != "general.file_type" || strings.HasPrefix(kv.Key, "nativebench.") {
			continue
		}
		compared++
		v, ok := have.Value(kv.Key)
		if !ok {
			// Where it is missing llama.cpp takes this one (llama-model.cpp).
			if !strings.HasSuffix(kv.Key, ".rope.freq_base") || kv.Value != float32(10000) {
				t.Errorf("%s is missing", kv.Key)
			}
			continue
		}
		if spm && slices.Contains([]string{"tokenizer.ggml.scores", "tokenizer.ggml.token_type"}, kv.Key) {
			if difference := differ(specials(v), specials(kv.Value)); difference == "" {
				t.Errorf("%s: <unk>, <s> and </s> are as in llama.cpp's vocabulary now: leave the exception away", kv.Key)
			}
			v, kv.Value = besideSpecials(v), besideSpecials(kv.Value)
		}
		if difference := differ(v, kv.Value); difference != "" {
			t.Errorf("%s: %s", kv.Key, difference)
		}
	}
	if compared < 10 {
		t.Errorf("only %d keys were compared", compared)
	}
}

func specials(list any) any       { return reflect.ValueOf(list).Slice(0, 3).Interface() }
func besideSpecials(list any) any { v := reflect.ValueOf(list); return v.Slice(3, v.Len()).Interface() }

// differ says in what two metadata values differ; "" if they do not.
func differ(have, want any) string {
	a, b := reflect.ValueOf(have), reflect.ValueOf(want)
	if a.Type() != b.Type() {
		return fmt.Sprintf("it is %T, not %T", have, want)
	}
	if a.Kind() != reflect.Slice {
		if have != want {
			return fmt.Sprintf("it is %v, not %v", have, want)
		}
		return ""
	}
	if a.Len() != b.Len() {
		return fmt.Sprintf("it has %d values, not %d", a.Len(), b.Len())
	}
	var where []string
	for i := range a.Len() {
		if x, y := a.Index(i).Interface(), b.Index(i).Interface(); x != y {
			where = append(where, fmt.Sprintf("[%d] is %v, not %v", i, x, y))
		}
	}
	if len(where) == 0 {
		return ""
	}
	return fmt.Sprintf("%d values differ: %s …", len(where), strings.Join(where[:min(4, len(where))], ", "))
}

// What is told of a directory is what its GGUF file says, and needs no
// converter.
func TestInspect(t *testing.T) {
	engineDir := os.Getenv("NATIVEBENCH_ENGINE_DIR")
	if engineDir == "" {
		t.Skip("NATIVEBENCH_ENGINE_DIR is not set: no vocabularies")
	}
	for key, width := range widths {
		made := synthetic(t, engineDir, synth.Spec{Model: key, Layers: 2, Width: width})
		got, err := convert.Inspect(made.HFDir)
		if err != nil {
			t.Fatal(err)
		}
		f, err := gguf.ReadFile(made.GGUF)
		if err != nil {
			t.Fatal(err)
		}
		want, err := f.Summary()
		if err != nil {
			t.Fatal(err)
		}
		want.Arch, want.Name, want.Tensors, want.Vocabulary = got.Arch, got.Name, 0, ""
		if got != want {
			t.Errorf("%s:\n%+v, the GGUF file says\n%+v", key, got, want)
		}
	}
}

// Quantized types are of the type asked for, smaller, and described in full.
func TestQuantizedTypes(t *testing.T) {
	s := converter(t)
	s.CacheDir = t.TempDir()
	s.HFDir = synthetic(t, s.EngineDir, synth.Spec{Model: "gpt2", Layers: 2, Width: 256}).HFDir
	before, sizes := int64(1<<62), map[string]int64{}
	for _, typ := range []string{"F16", "Q8_0", "Q4_K_M"} {
		s.Type = typ
		got, err := convert.Convert(t.Context(), s, nil)
		if err != nil {
			t.Fatal(err)
		}
		f, err := gguf.ReadFile(got.Path)
		if err != nil {
			t.Fatal(err)
		}
		sum, err := f.Summary()
		if err != nil {
			t.Fatal(err)
		}
		if sum.DType != typ || got.Bytes >= before || got.Bytes != f.Size || got.Params != sum.Params {
			t.Errorf("%s: type %s, %d bytes after %d, described as %+v", typ, sum.DType, f.Size, before, got)
		}
		before, sizes[typ] = got.Bytes, sum.TensorBytes
		if typ == "F16" {
			// As models show foretells it.
			for _, x := range f.Tensors {
				if x.Type == gguf.F16 {
					x.Type = gguf.Q8_0
				}
				sizes["foretold"] += x.Bytes()
			}
		} else if typ == "Q8_0" && sizes[typ] != sizes["foretold"] {
			t.Errorf("Q8_0: tensors of %d bytes, foretold %d", sizes[typ], sizes["foretold"])
		}
		read, err := convert.Read(got.Path)
		if err != nil {
			t.Fatal(err)
		}
		if read.Key != got.Key || read.SHA256 != got.SHA256 || len(read.Files) < 4 || read.Converter == "" || read.TookNS <= 0 || read.Began.IsZero() {
			t.Errorf("%s: the description is %+v", typ, read)
		}
		if left, _ := filepath.Glob(filepath.Join(filepath.Dir(got.Path), ".*")); len(left) > 0 {
			t.Errorf("%s: left behind: %v", typ, left)
		}
	}
}

// What was made is found again, from any place, until an input changes; two at
// once make it once.
func TestConvertedOnce(t *testing.T) {
	s := converter(t)
	s.CacheDir = t.TempDir()
	made := synthetic(t, s.EngineDir, synth.Spec{Model: "gpt2", Layers: 1, Width: 64})
	s.HFDir = made.HFDir
	var wg sync.WaitGroup
	var both [2]*convert.Result
	var errs [2]error
	for i := range both {
		wg.Go(func() { both[i], errs[i] = convert.Convert(t.Context(), s, nil) })
	}
	wg.Wait()
	if err := errors.Join(errs[:]...); err != nil {
		t.Fatal(err)
	}
	if both[0].Reused == both[1].Reused || both[0].SHA256 != both[1].SHA256 {
		t.Errorf("two at once: %+v and %+v", both[0], both[1])
	}
	moved := filepath.Join(t.TempDir(), "hf")
	if err := os.CopyFS(moved, os.DirFS(s.HFDir)); err != nil {
		t.Fatal(err)
	}
	s.HFDir = moved
	again, err := convert.Convert(t.Context(), s, nil)
	if err != nil {
		t.Fatal(err)
	}
	if !again.Reused || again.Path != both[0].Path {
		t.Errorf("a copy of the directory was converted anew: %+v", again)
	}
	config := filepath.Join(moved, "config.json")
	b, err := os.ReadFile(config)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(config, append(b, '\n'), 0o644); err != nil {
		t.Fatal(err)
	}
	if other, err := convert.Convert(t.Context(), s, nil); err != nil || other.Reused {
		t.Errorf("another config.json: %+v, %v", other, err)
	}
	// A file that was cut since is not taken for whole, and what a killed
	// conversion left goes.
	stale := filepath.Join(filepath.Dir(again.Path), ".nativebench-convert-123")
	if err := os.Mkdir(stale, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(again.Path, again.Bytes/2); err != nil {
		t.Fatal(err)
	}
	s.HFDir = made.HFDir
	if mended, err := convert.Convert(t.Context(), s, nil); err != nil || mended.Reused || mended.SHA256 != again.SHA256 {
		t.Errorf("a cut file: %+v, %v", mended, err)
	}
	if _, err := os.Stat(stale); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s is still there: %v", stale, err)
	}
}

// A conversion that is given up leaves neither file nor process.
func TestGivenUp(t *testing.T) {
	s := converter(t)
	s.HFDir = synthetic(t, s.EngineDir, synth.Spec{Model: "gpt2", Layers: 1, Width: 64}).HFDir
	dir := t.TempDir()
	s.Out = filepath.Join(dir, "model.gguf")
	ctx, cancel := context.WithCancel(t.Context())
	told := 0
	_, err := convert.Convert(ctx, s, func(what string, _, _ int64) {
		if strings.HasPrefix(what, "converting") {
			if told++; told == 2 { // the first is before the program starts
				cancel()
			}
		}
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// The converter's own last words are in the error, and nothing is left.
func TestConverterFails(t *testing.T) {
	s := converter(t)
	dir := t.TempDir()
	s.HFDir = filepath.Join(dir, "hf")
	made := synthetic(t, s.EngineDir, synth.Spec{Model: "gpt2", Layers: 1, Width: 64})
	if err := os.CopyFS(s.HFDir, os.DirFS(made.HFDir)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.HFDir, "config.json"), []byte(`{"architectures": ["NoSuchModel"], "model_type": "gpt2"}`), 0o644); err != nil {
		t.Fatal(err)
	}
	s.Out = filepath.Join(dir, "out", "model.gguf")
	_, err := convert.Convert(t.Context(), s, nil)
	if err == nil || !strings.Contains(err.Error(), "NoSuchModel is not supported") || strings.Contains(err.Error(), "\n") {
		t.Errorf("error %v", err)
	}
	if left, _ := os.ReadDir(filepath.Join(dir, "out")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// What cannot be converted is refused before anything starts, by name.
func TestRefusals(t *testing.T) {
	write := func(t *testing.T, files map[string]string) string {
		dir := t.TempDir()
		for name, text := range files {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		return dir
	}
	const header = "\x40\x00\x00\x00\x00\x00\x00\x00" + `{"a":{"dtype":"F16","shape":[4,4],"data_offsets":[0,32]}}       `
	whole := header + strings.Repeat("x", 32)
	for _, c := range []struct {
		name  string
		files map[string]string
		spec  convert.Spec
		says  string
	}{
		{"no config", map[string]string{"a.safetensors": whole}, convert.Spec{}, "has no config.json"},
		{"no weights", map[string]string{"config.json": "{}"}, convert.Spec{}, "has no weights"},
		{"cut", map[string]string{"config.json": "{}", "a.safetensors": header + "xx"}, convert.Spec{}, "is cut: it has 2 bytes of tensors, not 32"},
		{"no header", map[string]string{"config.json": "{}", "a.safetensors": "xx"}, convert.Spec{}, "not a whole safetensors file"},
		{"not JSON", map[string]string{"config.json": "{}", "a.safetensors": "\x02\x00\x00\x00\x00\x00\x00\x00no"}, convert.Spec{}, "not a safetensors file"},
		{
			"a shard is missing",
			map[string]string{"config.json": "{}", "model-1.safetensors": whole, "model.safetensors.index.json": `{"weight_map":{"a":"model-1.safetensors","b":"model-2.safetensors"}}`},
			convert.Spec{},
			"lacks model-2.safetensors, which its model.safetensors.index.json names",
		},
		{"type", map[string]string{"config.json": "{}", "a.safetensors": whole}, convert.Spec{Type: "q5"}, `type "q5" cannot be made: choose from f16, bf16, q8_0, q4_k_m`},
		{"no engine", map[string]string{"config.json": "{}", "a.safetensors": whole}, convert.Spec{EngineDir: "/nowhere"}, "has no convert/convert_hf_to_gguf.py: build it anew (make engine), or give a GGUF file with --gguf PATH"},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.spec.HFDir = write(t, c.files)
			err := c.spec.Check()
			if err == nil || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "\n") {
				t.Errorf("error %v, want %q", err, c.says)
			}
			if _, err := convert.Convert(t.Context(), c.spec, nil); err == nil {
				t.Error("Convert did not refuse it")
			}
		})
	}
	engine := t.TempDir()
	if err := os.MkdirAll(filepath.Join(engine, "convert"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"convert/convert_hf_to_gguf.py", "llama-quantize"} {
		if err := os.WriteFile(filepath.Join(engine, name), nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	err := convert.Available(engine, "/nowhere")
	if !errors.Is(err, convert.ErrNoConverter) || !strings.Contains(err.Error(), "make it (scripts/python-env.sh convert), or give a GGUF file with --gguf PATH") {
		t.Errorf("without Python: %v", err)
	}
}

// What there is no description of, or one of another file, is not described.
func TestRead(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a.gguf")
	if _, err := convert.Read(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("nothing there: %v", err)
	}
	for name, text := range map[string]string{path: "12345", path + convert.Suffix: `{"sha256":"x","bytes":4}`} {
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := convert.Read(path); err == nil || !strings.Contains(err.Error(), "has 5 bytes, not 4") {
		t.Errorf("another size: %v", err)
	}
}
