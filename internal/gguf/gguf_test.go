package gguf

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// sampleKV has a value of every type.
func sampleKV() []KV {
	return []KV{
		{"general.architecture", "gpt2"},
		{"general.name", "räksmörgås \xff"},
		{"gpt2.context_length", uint32(64)},
		{"gpt2.block_count", uint32(2)},
		{"gpt2.embedding_length", uint32(128)},
		{"gpt2.attention.head_count", uint32(2)},
		{"u8", uint8(255)},
		{"i8", int8(-128)},
		{"u16", uint16(65535)},
		{"i16", int16(-32768)},
		{"i32", int32(-1 << 31)},
		{"u64", uint64(1<<64 - 1)},
		{"i64", int64(-1 << 63)},
		{"f32", float32(1e-5)},
		{"f64", 0.1},
		{"yes", true},
		{"no", false},
		{"a.string", []string{"Ġthe", "", "<|endoftext|>"}},
		{"a.i32", []int32{1, -2, 3}},
		{"a.u8", []uint8{}},
		{"a.i8", []int8{-1}},
		{"a.u16", []uint16{1}},
		{"a.i16", []int16{-1}},
		{"a.u32", []uint32{1}},
		{"a.u64", []uint64{1}},
		{"a.i64", []int64{-1}},
		{"a.f32", []float32{0.5}},
		{"a.f64", []float64{0.5}},
		{"a.bool", []bool{true, false}},
	}
}

func sampleTensors() []Tensor {
	return []Tensor{
		{Name: "token_embd.weight", Type: F16, Dims: []int64{3, 5}},
		{Name: "output_norm.bias", Type: F32, Dims: []int64{7}},
		{Name: "blk.0.ffn_up.weight", Type: 8, Dims: []int64{64, 2}}, // Q8_0
	}
}

// write writes a file whose tensor bytes count up from the tensor's name length.
func write(t testing.TB, kv []KV, tensors []Tensor) []byte {
	t.Helper()
	var b bytes.Buffer
	err := Write(&b, kv, tensors, func(t Tensor, w io.Writer) error {
		_, err := w.Write(content(t))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func content(t Tensor) []byte {
	data := make([]byte, t.Bytes())
	for i := range data {
		data[i] = byte(len(t.Name) + i)
	}
	return data
}

func TestRoundTrip(t *testing.T) {
	for _, alignment := range []uint32{0, 8, 64} {
		kv, tensors := sampleKV(), sampleTensors()
		want := int64(defaultAlignment)
		if alignment > 0 {
			kv, want = append(kv, KV{alignmentKey, alignment}), int64(alignment)
		}
		b := write(t, kv, tensors)
		if size, err := Size(kv, tensors); err != nil || size != int64(len(b)) {
			t.Errorf("alignment %d: Size is %d, %v; %d bytes were written", alignment, size, err, len(b))
		}
		path := filepath.Join(t.TempDir(), "a.gguf")
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
		f, err := ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(kv, f.KV); diff != "" {
			t.Errorf("alignment %d: metadata (-written +read):\n%s", alignment, diff)
		}
		if f.Alignment != want || f.Version != 3 || f.Size != int64(len(b)) || f.DataOffset%want != 0 {
			t.Errorf("alignment %d: %+v", alignment, f)
		}
		for i, got := range f.Tensors {
			w := tensors[i]
			w.Offset = got.Offset
			if diff := cmp.Diff(w, got); diff != "" || got.Offset%want != 0 {
				t.Errorf("tensor %d at %d (-written +read):\n%s", i, got.Offset, diff)
			}
			start := f.DataOffset + got.Offset
			if !bytes.Equal(b[start:start+got.Bytes()], content(got)) {
				t.Errorf("tensor %s: other bytes than written", got.Name)
			}
		}
		if len(f.Tensors) != len(tensors) {
			t.Errorf("%d tensors read, %d written", len(f.Tensors), len(tensors))
		}
	}
}

// TestEveryPrefix: a file cut at any byte is refused, except within the last
// padding, where nothing is lost.
func TestEveryPrefix(t *testing.T) {
	b := write(t, sampleKV(), sampleTensors())
	f, err := Read(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	last := f.Tensors[len(f.Tensors)-1]
	end := f.DataOffset + last.Offset + last.Bytes()
	for n := range b {
		_, err := Read(bytes.NewReader(b[:n]), int64(n))
		switch {
		case int64(n) >= end:
			if err != nil {
				t.Errorf("cut to %d bytes, in the last padding: %v", n, err)
			}
		case err == nil:
			t.Errorf("cut to %d of %d bytes: no error", n, len(b))
		case strings.Contains(err.Error(), "\n"):
			t.Errorf("cut to %d bytes: error of several lines: %v", n, err)
		case n >= 4 && !strings.Contains(err.Error(), "cut short"):
			t.Errorf("cut to %d bytes: %v", n, err)
		}
	}
}

// raw builds damaged files.
type raw struct{ bytes.Buffer }

func (r *raw) put(values ...any) *raw {
	for _, v := range values {
		if s, ok := v.(string); ok {
			binary.Write(r, binary.LittleEndian, uint64(len(s)))
			r.WriteString(s)
			continue
		}
		if err := binary.Write(r, binary.LittleEndian, v); err != nil {
			panic(err)
		}
	}
	return r
}

func header(version uint32, tensors, pairs uint64) *raw {
	r := &raw{}
	r.WriteString(magic)
	return r.put(version, tensors, pairs)
}

func TestRefusals(t *testing.T) {
	u32, u64 := func(n uint32) uint32 { return n }, func(n uint64) uint64 { return n }
	f32row := func(r *raw, name string, off uint64) *raw { // a tensor of 8 elements, 32 bytes
		return r.put(name, u32(1), u64(8), u32(0), off)
	}
	room := make([]byte, 256)
	for name, c := range map[string]struct {
		file []byte
		want string
	}{
		"empty":                 {nil, "not a GGUF file"},
		"another format":        {[]byte("PK\x03\x04 and more"), "not a GGUF file"},
		"version 1":             {header(1, 0, 0).Bytes(), "version 1"},
		"big endian":            {header(0x03000000, 0, 0).Bytes(), "big-endian"},
		"absurd tensor count":   {header(3, 1<<60, 0).Bytes(), "claims 1152921504606846976 tensors"},
		"absurd pair count":     {header(3, 0, 1<<63).Bytes(), "metadata pairs"},
		"absurd key length":     {header(3, 0, 1).put(u64(1<<62), room).Bytes(), "takes 4611686018427387904 bytes"},
		"negative key length":   {header(3, 0, 1).put(u64(1<<63), room).Bytes(), "length of 9223372036854775808"},
		"empty key":             {header(3, 0, 1).put("", u32(4), u32(1)).Bytes(), "empty key"},
		"duplicate key":         {header(3, 0, 2).put("a", u32(4), u32(1), "a", u32(4), u32(1)).Bytes(), `"a" occurs twice`},
		"unknown value type":    {header(3, 0, 1).put("a", u32(13), u64(1)).Bytes(), "type 13"},
		"array of arrays":       {header(3, 0, 1).put("a", u32(9), u32(9), u64(1), room).Bytes(), "type 9"},
		"absurd array":          {header(3, 0, 1).put("a", u32(9), u32(4), u64(1<<63), room).Bytes(), "array of 9223372036854775808 elements"},
		"array over the end":    {header(3, 0, 1).put("a", u32(9), u32(8), u64(1<<40), room).Bytes(), "cut short or corrupted"},
		"alignment 3":           {header(3, 0, 1).put(alignmentKey, u32(4), u32(3)).Bytes(), "must be a uint32 and a power of two"},
		"alignment of a string": {header(3, 0, 1).put(alignmentKey, u32(8), "32").Bytes(), "must be a uint32 and a power of two"},
		"duplicate tensor":      {f32row(f32row(header(3, 2, 0), "a", 0), "a", 32).put(room).Bytes(), `tensor "a" occurs twice`},
		"unnamed tensor":        {f32row(header(3, 1, 0), "", 0).put(room).Bytes(), "name of tensor 0 has 0 bytes"},
		"long tensor name":      {f32row(header(3, 1, 0), strings.Repeat("x", 64), 0).put(room).Bytes(), "has 64 bytes"},
		"five dimensions":       {header(3, 1, 0).put("a", u32(5), room).Bytes(), "5 dimensions"},
		"dimension 0":           {header(3, 1, 0).put("a", u32(1), u64(0), u32(0), u64(0), room).Bytes(), "dimension of 0"},
		"elements overflow":     {header(3, 1, 0).put("a", u32(2), u64(1<<40), u64(1<<40), u32(0), u64(0), room).Bytes(), "dimension of 1099511627776"},
		"removed tensor type":   {header(3, 1, 0).put("a", u32(1), u64(32), u32(4), u64(0), room).Bytes(), "type 4"},
		"broken block":          {header(3, 1, 0).put("a", u32(1), u64(33), u32(8), u64(0), room).Bytes(), "not a multiple"},
		"overlapping tensors":   {f32row(f32row(header(3, 2, 0), "a", 0), "b", 0).put(room).Bytes(), `overlaps tensor "a"`},
		"gap":                   {f32row(f32row(header(3, 2, 0), "a", 0), "b", 64).put(room).Bytes(), "not at 32"},
		"offset overflow":       {f32row(header(3, 1, 0), "a", 1<<63).put(room).Bytes(), "starts at byte 9223372036854775808"},
		"tensor over the end":   {header(3, 1, 0).put("a", u32(1), u64(1<<20), u32(0), u64(0), room).Bytes(), "cut short"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Read(bytes.NewReader(c.file), int64(len(c.file)))
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("error %v; one line with %q is wanted", err, c.want)
			}
		})
	}
}

func TestHeaderIsBounded(t *testing.T) {
	// A sparse file may claim any size; the header stays within its bound.
	b := header(3, 0, 1).put("a", uint32(9), uint32(0), uint64(maxHeader)).Bytes()
	_, err := Read(bytes.NewReader(b), 1<<40)
	if err == nil || !strings.Contains(err.Error(), "more than 128 MiB") {
		t.Errorf("error %v", err)
	}
}

func TestReadFileRefusesWhatIsNoFile(t *testing.T) {
	if _, err := ReadFile(t.TempDir()); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("a directory: %v", err)
	}
	if _, err := ReadFile(filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
}

func TestWriteRefuses(t *testing.T) {
	full := func(t Tensor, w io.Writer) error { _, err := w.Write(content(t)); return err }
	row := Tensor{Name: "a", Dims: []int64{8}}
	for name, c := range map[string]struct {
		kv      []KV
		tensors []Tensor
		data    func(Tensor, io.Writer) error
		want    string
	}{
		"duplicate key":    {[]KV{{"a", "b"}, {"a", "c"}}, nil, full, "occurs twice"},
		"unknown type":     {[]KV{{"a", 1}}, nil, full, "Go's int"},
		"bad alignment":    {[]KV{{alignmentKey, uint32(12)}}, nil, full, "power of two"},
		"duplicate tensor": {nil, []Tensor{row, row}, full, "occurs twice"},
		"no shape":         {nil, []Tensor{{Name: "a"}}, full, "shape"},
		"too little data":  {nil, []Tensor{row}, func(Tensor, io.Writer) error { return nil }, "0 bytes were written"},
		"failed data":      {nil, []Tensor{row}, func(Tensor, io.Writer) error { return io.ErrUnexpectedEOF }, "unexpected EOF"},
	} {
		if err := Write(io.Discard, c.kv, c.tensors, c.data); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want %q", name, err, c.want)
		}
	}
	for _, limit := range []int{0, 10, 200, 320} { // in the header, padding, data
		if err := Write(&fullDisk{limit}, nil, []Tensor{row, {Name: "b", Dims: []int64{70}}}, full); !errors.Is(err, errFull) {
			t.Errorf("disk full after %d bytes: error %v", limit, err)
		}
	}
}

var errFull = errors.New("no space left")

type fullDisk struct{ left int }

func (d *fullDisk) Write(b []byte) (int, error) {
	if n := d.left; n < len(b) {
		d.left = 0
		return n, errFull
	}
	d.left -= len(b)
	return len(b), nil
}

func TestSummary(t *testing.T) {
	read := func(kv ...KV) *File {
		b := write(t, kv, sampleTensors())
		f, err := Read(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	base := []KV{
		{"general.architecture", "llama"},
		{"general.name", "seven"},
		{"llama.context_length", uint32(4096)},
		{"llama.block_count", uint32(2)},
		{"llama.embedding_length", uint32(128)},
		{"llama.attention.head_count", uint32(4)},
		{"tokenizer.ggml.tokens", []string{"a", "b"}},
	}
	want := Summary{
		Arch: "llama", Name: "seven", DType: "Q8_0", Context: 4096, Layers: 2, Width: 128, Heads: 4, Vocab: 2,
		Tensors: 3, Params: 15 + 7 + 128, TensorBytes: 30 + 28 + 136, KVPerToken: 2 * 2 * 128,
	}
	for _, c := range []struct {
		name   string
		extra  []KV
		change func(*Summary)
	}{
		{"plain", nil, func(*Summary) {}},
		{"file type", []KV{{"general.file_type", uint32(15)}}, func(s *Summary) { s.DType = "Q4_K_M" }},
		{"grouped queries", []KV{{"llama.attention.head_count_kv", uint32(1)}}, func(s *Summary) { s.KVPerToken = 2 * 2 * 32 }},
		{"heads of another size", []KV{{"llama.attention.key_length", uint32(8)}, {"llama.attention.value_length", uint32(16)}}, func(s *Summary) { s.KVPerToken = 2 * 4 * 24 }},
		{"heads per layer", []KV{{"llama.attention.head_count_kv", []int32{1, 0}}}, func(s *Summary) { s.KVPerToken = 64 }},
		{"synthetic", []KV{{SyntheticKey, true}, {SeedKey, uint64(7)}}, func(s *Summary) { s.Synthetic, s.Seed = true, 7 }},
	} {
		w := want
		c.change(&w)
		got, err := read(append(base[:len(base):len(base)], c.extra...)...).Summary()
		if diff := cmp.Diff(w, got); diff != "" || err != nil {
			t.Errorf("%s: %v (-want +got):\n%s", c.name, err, diff)
		}
	}
	for _, c := range []struct {
		kv   []KV
		want string
	}{
		{nil, `lacks "general.architecture"`},
		{[]KV{{"general.architecture", uint8(1)}}, "is uint8, not string"},
		{[]KV{{"general.architecture", "x"}, {"x.context_length", "long"}}, "not an integer"},
		{[]KV{{"general.architecture", "x"}, {"x.context_length", int64(-1)}}, "which no model has"},
		{[]KV{{"general.architecture", "x"}, {"x.block_count", uint32(1 << 30)}, {"x.attention.head_count", uint32(1)}}, "1073741824 layers"},
		{[]KV{{"general.architecture", "x"}, {"x.block_count", uint32(3)}, {"x.attention.head_count", []int32{1}}}, "1 values for 3 layers"},
	} {
		if _, err := read(c.kv...).Summary(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v: error %v, want %q", c.kv, err, c.want)
		}
	}
}

// vocabDir finds the vocabularies that come with the engine.
func vocabDir(t *testing.T) string {
	t.Helper()
	dir := os.Getenv("NATIVEBENCH_ENGINE_DIR")
	if dir == "" {
		t.Skip("NATIVEBENCH_ENGINE_DIR is not set: no vocabularies to read")
	}
	dir = filepath.Join(dir, "vocab")
	if _, err := os.Stat(dir); err != nil {
		t.Skipf("no vocabularies: %v", err)
	}
	return dir
}

func TestReadsLlamaCppsVocabularies(t *testing.T) {
	dir := vocabDir(t)
	for name, vocab := range map[string]int{"gpt-2": 50257, "llama-spm": 32000, "llama-bpe": 128256} {
		f, err := ReadFile(filepath.Join(dir, fmt.Sprintf("ggml-vocab-%s.gguf", name)))
		if err != nil {
			t.Error(err)
			continue
		}
		if s, err := f.Summary(); err != nil || s.Vocab != vocab || s.Tensors != 0 {
			t.Errorf("%s: %+v, %v", name, s, err)
		}
	}
}
