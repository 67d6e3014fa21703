package synth

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/x448/float16"

	"github.com/nativebench/nativebench/internal/gguf"
)

// madeUpVocabulary writes a vocabulary of the right size and kind, so that most
// tests need no engine.
func madeUpVocabulary(t testing.TB) string {
	t.Helper()
	const n = 50257
	tokens, types := make([]string, n), make([]int32, n)
	for i := range tokens {
		tokens[i], types[i] = fmt.Sprintf("Ġ<%d>", i), 1
	}
	tokens[n-1], types[n-1] = "<|endoftext|>", 3
	path := filepath.Join(t.TempDir(), "vocab.gguf")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	kv := []gguf.KV{
		{Key: "general.architecture", Value: "gpt2"},
		{Key: "tokenizer.ggml.model", Value: "gpt2"},
		{Key: "tokenizer.ggml.pre", Value: "gpt-2"},
		{Key: "tokenizer.ggml.tokens", Value: tokens},
		{Key: "tokenizer.ggml.token_type", Value: types},
		{Key: "tokenizer.ggml.merges", Value: []string{"Ġ t", "h e"}},
		{Key: "tokenizer.ggml.bos_token_id", Value: uint32(n - 1)},
		{Key: "tokenizer.ggml.eos_token_id", Value: uint32(n - 1)},
	}
	if err := gguf.Write(f, kv, nil, nil); err != nil {
		t.Fatal(err)
	}
	return path
}

// tiny is a small relative of GPT-2.
func tiny(t testing.TB) Spec {
	return Spec{Model: "gpt2", Seed: 1, Layers: 2, Width: 128, VocabPath: madeUpVocabulary(t)}
}

func write(t testing.TB, s Spec, dir string) *Result {
	t.Helper()
	r, err := Write(t.Context(), s, dir, nil)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestGolden notices a change of the numbers or of the files. If the change is
// meant, raise Generator and put the new hashes here.
func TestGolden(t *testing.T) {
	if Generator != 1 {
		t.Errorf("Generator is %d: put its hashes here", Generator)
	}
	for dtype, want := range map[string][2]string{
		"F16":  {"18c660ea24b528437410680d193354767709a1b5abe85ce06f03934603e74b08", "727d27b4f5f2405bf0df4468e34bdfc1e6a0af6908a4112cc9c1e5f624c6d30a"},
		"f32":  {"92f5157481ea7013d781a505b2ed6055fc557e19c027e438b68e18f46e2c3797", "26ecf23c35c1d77f5c16e210f845b81738815f79143b27b812b84a97b8d9f238"},
		"BF16": {"cea4f436cea912239682dd8feb339996889458d9d209f193b9f2313454d0bf22", "797394385f9d336ac6ad472c8c257f0baf36eb9442c73ed7801bb73ad2d37abb"},
	} {
		s := tiny(t)
		s.DType = dtype
		r := write(t, s, t.TempDir())
		got := [2]string{r.SHA256}
		for _, f := range r.Files {
			if f.Path == "hf/model.safetensors" {
				got[1] = f.SHA256
			}
		}
		if got != want {
			t.Errorf("%s: the files are\n%q, not\n%q", dtype, got, want)
		}
		if err := r.Verify(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

func TestSeedsDiffer(t *testing.T) {
	s := least(t)
	a := write(t, s, t.TempDir())
	s.Seed++
	if b := write(t, s, t.TempDir()); a.SHA256 == b.SHA256 {
		t.Errorf("seeds 1 and 2 give the same file, %s", a.SHA256)
	}
}

// decode reads numbers of a GGUF or safetensors type.
func decode(t *testing.T, b []byte, typ string) []float32 {
	var out []float32
	switch typ {
	case "F32":
		for ; len(b) > 0; b = b[4:] {
			out = append(out, math.Float32frombits(binary.LittleEndian.Uint32(b)))
		}
	case "F16":
		for ; len(b) > 0; b = b[2:] {
			out = append(out, float16.Frombits(binary.LittleEndian.Uint16(b)).Float32())
		}
	case "BF16":
		for ; len(b) > 0; b = b[2:] {
			out = append(out, math.Float32frombits(uint32(binary.LittleEndian.Uint16(b))<<16))
		}
	default:
		t.Fatalf("type %q", typ)
	}
	return out
}

type array struct {
	shape   []int64 // outermost dimension first
	numbers []float32
}

func readGGUF(t *testing.T, path string) map[string]array {
	t.Helper()
	f, err := gguf.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]array{}
	for _, row := range f.Tensors {
		data := b[f.DataOffset+row.Offset:][:row.Bytes()]
		shape := slices.Clone(row.Dims)
		slices.Reverse(shape)
		out[row.Name] = array{shape, decode(t, data, row.Type.String())}
	}
	return out
}

func readSafetensors(t *testing.T, path string) map[string]array {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	n := binary.LittleEndian.Uint64(b)
	if n%8 != 0 {
		t.Errorf("the header has %d bytes, not a multiple of 8", n)
	}
	var header map[string]struct {
		DType   string   `json:"dtype"`
		Shape   []int64  `json:"shape"`
		Offsets [2]int64 `json:"data_offsets"`
	}
	if err := json.Unmarshal(b[8:8+n], &header); err != nil {
		t.Fatal(err)
	}
	delete(header, "__metadata__")
	data, out, total := b[8+n:], map[string]array{}, int64(0)
	for name, row := range header {
		out[name] = array{row.Shape, decode(t, data[row.Offsets[0]:row.Offsets[1]], row.DType)}
		total += row.Offsets[1] - row.Offsets[0]
	}
	if total != int64(len(data)) {
		t.Errorf("the tensors cover %d of %d bytes", total, len(data))
	}
	return out
}

// hfName translates a GGUF name by llama.cpp's table for GPT-2.
func hfName(name string) string {
	for _, p := range [][2]string{
		{"token_embd", "wte"},
		{"position_embd", "wpe"},
		{"output_norm", "ln_f"},
		{"blk.", "h."},
		{"attn_norm", "ln_1"},
		{"attn_qkv", "attn.c_attn"},
		{"attn_output", "attn.c_proj"},
		{"ffn_norm", "ln_2"},
		{"ffn_up", "mlp.c_fc"},
		{"ffn_down", "mlp.c_proj"},
	} {
		name = strings.Replace(name, p[0], p[1], 1)
	}
	return name
}

// TestFilesHoldTheSameNumbers compares element by element; c_* matrices of the
// Hugging Face file are inputs × outputs, GGUF's are outputs × inputs.
func TestFilesHoldTheSameNumbers(t *testing.T) {
	var f16 map[string]array
	for _, dtype := range []DType{F16, F32, BF16} {
		s := tiny(t)
		s.Width = 64
		s.DType = string(dtype)
		r := write(t, s, t.TempDir())
		left, right := readGGUF(t, r.GGUF), readSafetensors(t, filepath.Join(r.HFDir, safetensorsName))
		if len(left) != len(right) || len(left) != 4+2*12 {
			t.Fatalf("%s: %d tensors in GGUF, %d in safetensors", dtype, len(left), len(right))
		}
		params := int64(0)
		for name, l := range left {
			r, ok := right[hfName(name)]
			if !ok {
				t.Fatalf("%s: %s is not in the safetensors file as %s", dtype, name, hfName(name))
			}
			params += int64(len(l.numbers))
			want, at := slices.Clone(l.shape), func(i int) int { return i }
			if strings.Contains(hfName(name), ".c_") && len(want) == 2 {
				out, in := int(l.shape[0]), int(l.shape[1])
				slices.Reverse(want)
				at = func(i int) int { return i%in*out + i/in }
			}
			if !slices.Equal(want, r.shape) {
				t.Fatalf("%s: %s has shape %v, in safetensors %v", dtype, name, l.shape, r.shape)
			}
			for i, x := range l.numbers {
				if x != r.numbers[at(i)] { // also when NaN
					t.Fatalf("%s: element %d of %s is %v, in safetensors %v", dtype, i, name, x, r.numbers[at(i)])
				}
				if math.IsInf(float64(x), 0) {
					t.Fatalf("%s: element %d of %s is %v", dtype, i, name, x)
				}
			}
		}
		if params != r.Params {
			t.Errorf("%s: %d numbers, Params is %d", dtype, params, r.Params)
		}
		switch dtype {
		case F16:
			f16 = left
		case F32:
			for name, l := range left {
				if !slices.Equal(l.numbers, f16[name].numbers) {
					t.Errorf("files of F16 and F32 hold different numbers in %s", name)
				}
			}
		}
	}
}

func TestNumbersHaveTheirMoments(t *testing.T) {
	const eos = 50256
	s := tiny(t)
	j, err := s.resolve()
	if err != nil {
		t.Fatal(err)
	}
	left := readGGUF(t, write(t, s, t.TempDir()).GGUF)
	for _, want := range j.tensors {
		numbers := left[want.gguf].numbers
		if want.quiet != nil {
			if sd := moments(numbers[eos*128:]).std; sd > 1.3*float64(want.std*quietBy) || sd < 0.7*float64(want.std*quietBy) {
				t.Errorf("%s: the row of end of sequence has a standard deviation of %v", want.gguf, sd)
			}
			numbers = numbers[:eos*128]
		}
		// Six standard errors: a chance of 1e-9, and the seed is fixed.
		got, n := moments(numbers), math.Sqrt(float64(len(numbers)))
		if math.Abs(got.mean-float64(want.mean)) > 6*float64(want.std)/n {
			t.Errorf("%s: mean %v, want %v", want.gguf, got.mean, want.mean)
		}
		if math.Abs(got.std/float64(want.std)-1) > 6/n {
			t.Errorf("%s: standard deviation %v, want %v", want.gguf, got.std, want.std)
		}
	}
}

type meanStd struct{ mean, std float64 }

func moments(numbers []float32) meanStd {
	sum, squares := 0.0, 0.0
	for _, x := range numbers {
		sum += float64(x)
		squares += float64(x) * float64(x)
	}
	n := float64(len(numbers))
	return meanStd{sum / n, math.Sqrt(squares/n - sum/n*sum/n)}
}

// TestPlacesAreIndependent: a number depends on its place in the tensor alone,
// not on chunks, cores or the order of writing.
func TestPlacesAreIndependent(t *testing.T) {
	w := tensor{gguf: "w", transposed: true, rows: 1100, cols: 1000, std: 1, quiet: []span{{3, 5}}}
	var rows, columns strings.Builder
	for to, transposed := range map[io.Writer]bool{&rows: false, &columns: true} {
		if err := w.writeTo(t.Context(), to, 1, form{F16, F32, transposed}); err != nil {
			t.Fatal(err)
		}
	}
	a, b := decode(t, []byte(rows.String()), "F32"), decode(t, []byte(columns.String()), "F32")
	if len(a) != 1100*1000 || len(b) != len(a) {
		t.Fatalf("%d and %d elements", len(a), len(b))
	}
	for i := range a {
		if r, c := i/1000, i%1000; a[i] != b[c*1100+r] {
			t.Fatalf("row %d, column %d: %v by rows, %v by columns", r, c, a[i], b[c*1100+r])
		}
	}
	one := make([]byte, 4)
	w.fill(one, 777_777, key(1, "w"), form{F16, F32, false})
	if got := decode(t, one, "F32")[0]; got != a[777_777] {
		t.Errorf("alone, element 777777 is %v, not %v", got, a[777_777])
	}
}

func TestHalfRoundsAsFloat16(t *testing.T) {
	for bits := uint64(0); bits < 1<<32; bits += 9973 { // a prime: all exponents and endings
		x := math.Float32frombits(uint32(bits))
		if want := float16.Fromfloat32(x).Bits(); half(x) != want && x == x {
			t.Fatalf("half(%v) is %#x, not %#x", x, half(x), want)
		}
	}
	for _, x := range []float32{65504, 65519.99, 65520, 1 + 0x1p-11, 1 + 3*0x1p-11, 0x1p-14, 0x1p-25} { // overflow, ties, subnormals
		if want := float16.Fromfloat32(x).Bits(); half(x) != want {
			t.Errorf("half(%v) is %#x, not %#x", x, half(x), want)
		}
	}
}

func TestMetadata(t *testing.T) {
	s := tiny(t)
	s.Seed = 1<<64 - 1
	r := write(t, s, t.TempDir())
	f, err := gguf.ReadFile(r.GGUF)
	if err != nil {
		t.Fatal(err)
	}
	got, err := f.Summary()
	want := gguf.Summary{
		Arch: "gpt2", Name: "GPT-2 small cut to 2 layers of width 128, synthetic weights", DType: "F16",
		Context: 1024, Layers: 2, Width: 128, Heads: 2, Vocab: 50257, Tensors: 28, Params: r.Params,
		TensorBytes: got.TensorBytes, KVPerToken: 2 * 2 * 128, Synthetic: true, Seed: 1<<64 - 1,
	}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	var keys []string
	for _, kv := range f.KV {
		keys = append(keys, kv.Key)
	}
	for _, key := range []string{"gpt2.attention.layer_norm_epsilon", "gpt2.feed_forward_length", "general.quantization_version", "tokenizer.ggml.pre", gguf.GeneratorKey, "nativebench.eos_row_scale"} {
		if !slices.Contains(keys, key) {
			t.Errorf("the metadata lacks %s: %q", key, keys)
		}
	}
	var config struct {
		NLayer    int    `json:"n_layer"`
		NEmbd     int    `json:"n_embd"`
		NHead     int    `json:"n_head"`
		Vocab     int    `json:"vocab_size"`
		EOS       int    `json:"eos_token_id"`
		ModelType string `json:"model_type"`
		DType     string `json:"torch_dtype"`
		Own       struct {
			Synthetic bool   `json:"synthetic"`
			Seed      uint64 `json:"seed"`
		} `json:"nativebench"`
	}
	b, err := os.ReadFile(filepath.Join(r.HFDir, "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &config); err != nil {
		t.Fatal(err)
	}
	if config.NLayer != 2 || config.NEmbd != 128 || config.NHead != 2 || config.Vocab != 50257 || config.EOS != 50256 ||
		config.ModelType != "gpt2" || config.DType != "float16" || !config.Own.Synthetic || config.Own.Seed != s.Seed {
		t.Errorf("config.json: %s", b)
	}
}

func TestFullSizeIsThatOfGPT2(t *testing.T) {
	s := tiny(t)
	s.Layers, s.Width = 0, 0
	if n, err := s.Params(); err != nil || n != 124_439_808 {
		t.Errorf("%d parameters, %v", n, err)
	}
}

func TestTokenizerFiles(t *testing.T) {
	r := write(t, least(t), t.TempDir())
	read := func(name string, to any) {
		b, err := os.ReadFile(filepath.Join(r.HFDir, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(b, to); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	var whole struct {
		Added []struct {
			ID      int    `json:"id"`
			Content string `json:"content"`
			Special bool   `json:"special"`
		} `json:"added_tokens"`
		Model struct {
			Type   string         `json:"type"`
			Vocab  map[string]int `json:"vocab"`
			Merges []string       `json:"merges"`
		} `json:"model"`
	}
	read("tokenizer.json", &whole)
	var ids map[string]int
	read("vocab.json", &ids)
	if diff := cmp.Diff(ids, whole.Model.Vocab); diff != "" {
		t.Error("vocab.json and tokenizer.json differ")
	}
	if len(ids) != 50257 || ids["Ġ<300>"] != 300 || ids["<|endoftext|>"] != 50256 {
		t.Errorf("%d tokens; Ġ<300> is %d", len(ids), ids["Ġ<300>"])
	}
	if diff := cmp.Diff([]string{"Ġ t", "h e"}, whole.Model.Merges); diff != "" {
		t.Error(diff)
	}
	if len(whole.Added) != 1 || whole.Added[0].ID != 50256 || !whole.Added[0].Special {
		t.Errorf("added tokens: %+v", whole.Added)
	}
}

func TestRefusals(t *testing.T) {
	good := tiny(t)
	cut := filepath.Join(t.TempDir(), "cut.gguf")
	b, err := os.ReadFile(good.VocabPath)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(cut, b[:len(b)/2], 0o644); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change func(*Spec)
		want   string
	}{
		"model":          {func(s *Spec) { s.Model = "gpt-4" }, `no synthetic weights of model "gpt-4"; there are of gpt2`},
		"type":           {func(s *Spec) { s.DType = "q4_0" }, "choose f16, f32 or bf16"},
		"layers":         {func(s *Spec) { s.Layers = -1 }, "choose 1 to 1000"},
		"width":          {func(s *Spec) { s.Width = 100 }, "multiple of its head size, 64"},
		"no vocabulary":  {func(s *Spec) { s.VocabPath = "" }, "say where it is"},
		"none there":     {func(s *Spec) { s.VocabPath, s.VocabDir = "", t.TempDir() }, "no vocabulary at"},
		"cut vocabulary": {func(s *Spec) { s.VocabPath = cut }, "cut short"},
	} {
		s := good
		c.change(&s)
		dir := t.TempDir()
		if _, err := Write(t.Context(), s, dir, nil); err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: error %v, want one line with %q", name, err, c.want)
		}
		if err := s.Check(); err == nil {
			t.Errorf("%s: Check finds nothing", name)
		}
		if left, _ := os.ReadDir(dir); len(left) > 0 {
			t.Errorf("%s: %v was left", name, left)
		}
	}
	if err := good.Check(); err != nil {
		t.Error(err)
	}
}

func TestCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	dir := t.TempDir()
	_, err := Write(ctx, least(t), dir, func(done, total int64) { cancel() })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("%v was left", left)
	}
}
