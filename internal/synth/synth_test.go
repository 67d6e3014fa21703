package synth

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"runtime"
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
	if Generator != 2 {
		t.Errorf("Generator is %d: put its hashes here", Generator)
	}
	for dtype, want := range map[string][2]string{
		"F16":  {"50c4fd5e6a8129574c367384e32e57aa58d5b77882f6c9d6e132c9572c983719", "3d1b9429b14578de69b03b9a7bc10ac44a7846d94f951912afa11823110eb6fb"},
		"f32":  {"aefbf5c567f2c2c2318067bb069e54b311943b2a93ce39db39bc533a4d03de90", "c3be493b1415f8cca25675f728b49489b1a65fe1fa1b0e6a4f21cddc82608166"},
		"BF16": {"36b7a00654dd2fa0939ee0fa093ac9d8074d818467d8bd70c4a3da17a24794b4", "8eb1cc881e337146396b555bcd6c2ed2451086af4c8125fcee6af92023468ec8"},
	} {
		s := tiny(t)
		s.DType = dtype
		r := write(t, s, t.TempDir())
		got := [2]string{sha256Of(t, r.GGUF), sha256Of(t, filepath.Join(r.HFDir, safetensorsName))}
		if got != want {
			t.Errorf("%s: the files are\n%q, not\n%q", dtype, got, want)
		}
		if err := r.Verify(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

func sha256Of(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", sha256.Sum256(b))
}

func TestSeedsDiffer(t *testing.T) {
	s := least(t)
	a := write(t, s, t.TempDir())
	s.Seed++
	if b := write(t, s, t.TempDir()); a.CRC32C == b.CRC32C {
		t.Errorf("seeds 1 and 2 give the same file, %s", a.CRC32C)
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
	w := &tensor{gguf: "w", transposed: true, rows: 1100, cols: 1000, std: 1, quiet: []span{{3, 5}}}
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
	w.source(1, form{F16, F32, false}).fill(one, 777_777)
	if got := decode(t, one, "F32")[0]; got != a[777_777] {
		t.Errorf("alone, element 777777 is %v, not %v", got, a[777_777])
	}
}

// TestQuantilesAreNormal holds the table against the error function.
func TestQuantilesAreNormal(t *testing.T) {
	const n = 1 << 16
	q, squares, fourths := quantiles(), 0.0, 0.0
	for i, x := range q {
		p := (float64(i) + .5) / n
		if want := math.Sqrt2 * math.Erfinv(2*p-1); math.Abs(x-want) > 1e-4 {
			t.Fatalf("quantile %v is %v, want %v", p, x, want)
		}
		if i > 0 && x <= q[i-1] || x != -q[n-1-i] {
			t.Fatalf("quantile %v is %v after %v, its opposite %v", p, x, q[i-1], q[n-1-i])
		}
		squares, fourths = squares+x*x, fourths+x*x*x*x
	}
	if variance, kurtosis := squares/n, fourths/n; math.Abs(variance-1) > 1e-12 || math.Abs(kurtosis-3) > 0.01 {
		t.Errorf("variance %v, fourth moment %v; a normal distribution has 1 and 3", variance, kurtosis)
	}
}

// TestNumbersAreNormal: what is written has the distribution function and the moments
// of the normal distribution, and neighbours have nothing to do with each other.
func TestNumbersAreNormal(t *testing.T) {
	const std, rows, cols = 0.02, 1000, 2000
	const n, root = rows * cols, 1414.2
	for _, dtype := range []DType{F16, BF16, F32} {
		w, out := &tensor{gguf: "w", rows: rows, cols: cols, std: std}, &bytes.Buffer{}
		if err := w.writeTo(t.Context(), out, 7, form{dtype, dtype, false}); err != nil {
			t.Fatal(err)
		}
		z := make([]float64, n)
		var powers [5]float64
		for i, x := range decode(t, out.Bytes(), string(dtype)) {
			z[i] = float64(x) / std
			for k, p := 1, z[i]; k < 5; k, p = k+1, p*z[i] {
				powers[k] += p / n
			}
		}
		// Five standard errors of each, and what rounding to 8 bits does.
		for k, want := range []struct{ is, sd float64 }{{0, 0}, {0, 1}, {1, 1.42}, {0, 3.9}, {3, 9.8}} {
			if math.Abs(powers[k]-want.is) > 5*want.sd/root+1e-4 {
				t.Errorf("%s: moment %d is %v, want %v", dtype, k, powers[k], want.is)
			}
		}
		for _, by := range []int{1, 2, 3, 4, 5, 8, cols, 4 * cols} {
			sum := 0.0
			for i := range n - by {
				sum += z[i] * z[i+by]
			}
			if r := sum / float64(n-by); math.Abs(r) > 5/root {
				t.Errorf("%s: numbers %d apart correlate by %v", dtype, by, r)
			}
		}
		slices.Sort(z)
		far, steps := 0.0, 0.0
		for i, x := range z {
			p := (1 + math.Erf(x/math.Sqrt2)) / 2
			far = max(far, math.Abs(p-(float64(i)+.5)/n))
			if i > 0 && x > z[i-1] {
				steps++
			}
		}
		// 1.95 is exceeded by chance once in a thousand (Kolmogorov); a number
		// of BF16 stands for up to 2^-8 of itself.
		most := 1.95 / root
		if dtype == BF16 {
			most += 0x1p-9 * 0.25
		}
		if far > most {
			t.Errorf("%s: the distribution function is off by %v", dtype, far)
		}
		if z[0] < -4.5 || z[n-1] > 4.5 || z[0] > -4 || z[n-1] < 4 {
			t.Errorf("%s: the numbers go from %v to %v standard deviations", dtype, z[0], z[n-1])
		}
		t.Logf("%s: moments %v, at most %.5f from the distribution function, %v different numbers", dtype, powers[1:], far, steps+1)
	}
}

// TestStoredForms: files of F16 and F32 hold the same numbers, those of BF16 are
// the F16's rounded once more, and none is infinite or no number, whatever
// scale the models use.
func TestStoredForms(t *testing.T) {
	for _, std := range []float32{per(0.5, 1<<16), per(0.5, 4096), per(4.4, 64), 1} {
		for _, by := range []float32{1, quietBy} {
			half, wide := newNumbers(0, std, by, form{dtype: F16, stored: F16}), newNumbers(0, std, by, form{dtype: F32, stored: F32})
			short, shortWide := newNumbers(0, std, by, form{dtype: BF16, stored: BF16}), newNumbers(0, std, by, form{dtype: BF16, stored: F32})
			for i, q := range quantiles() {
				x := float16.Frombits(half.narrow[i]).Float32()
				if got := math.Float32frombits(wide.wide[i]); got != x || math.Abs(float64(x)-q*float64(std*by)) > max(math.Abs(float64(x))*0x1p-10, 0x1p-24) {
					t.Fatalf("quantile %v of %v: %v in F16, %v in F32", q, std*by, x, got)
				}
				b := math.Float32frombits(uint32(short.narrow[i]) << 16)
				if got := math.Float32frombits(shortWide.wide[i]); got != b || math.Abs(float64(b-x)) > math.Abs(float64(x))*0x1p-8 {
					t.Fatalf("quantile %v of %v: %v in F16, %v in BF16, %v stored wide", q, std*by, x, b, got)
				}
			}
		}
	}
}

// TestEveryPlaceIsReached: blocks that begin and end anywhere are made alike.
func TestEveryPlaceIsReached(t *testing.T) {
	for _, f := range []form{{F16, F16, false}, {BF16, F32, false}, {F16, F16, true}} {
		w := &tensor{gguf: "w", rows: 12, cols: 7, heads: 2, std: 1, quiet: []span{{2, 3}, {7, 9}}}
		s, size := w.source(3, f), int(f.stored.bytes())
		whole := make([]byte, 12*7*size)
		s.fill(whole, 0)
		for from := range 12 * 7 {
			for to := from + 1; to <= 12*7; to++ {
				part := make([]byte, (to-from)*size)
				s.fill(part, int64(from))
				if !bytes.Equal(part, whole[from*size:to*size]) {
					t.Fatalf("%+v: elements %d to %d are others alone than in the whole", f, from, to)
				}
			}
		}
	}
}

// TestCoresDoNotMatter: any number of goroutines makes the same bytes.
func TestCoresDoNotMatter(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(0))
	var first []byte
	for _, cores := range []int{1, 2, 3, 7} {
		runtime.GOMAXPROCS(cores)
		w, out := &tensor{gguf: "w", rows: 1003, cols: 1501, std: 1}, &bytes.Buffer{}
		if err := w.writeTo(t.Context(), out, 7, form{F16, F16, false}); err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = out.Bytes()
		} else if !bytes.Equal(first, out.Bytes()) {
			t.Errorf("%d cores make other numbers than one", cores)
		}
	}
}

func BenchmarkFill(b *testing.B) {
	for _, dtype := range []DType{F16, BF16, F32} {
		b.Run(string(dtype), func(b *testing.B) {
			w := &tensor{gguf: "w", rows: 1 << 8, cols: 1 << 12, std: 1}
			s, dst := w.source(1, form{dtype, dtype, false}), make([]byte, 1<<20)
			b.SetBytes(int64(len(dst)))
			for b.Loop() {
				s.fill(dst, 0)
			}
		})
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
		Context: 1024, Layers: 2, Width: 128, Heads: 2, FFN: 512, Vocab: 50257, Tensors: 28, Params: r.Params,
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
