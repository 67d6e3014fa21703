// Package synth writes models with synthetic weights: real architecture, real
// shapes and a real vocabulary, with seeded random numbers. The same numbers go
// into a GGUF file for llama.cpp and into a Hugging Face directory for
// Transformers, TGI and vLLM, so that all backends compute the same thing.
//
// Such a model costs what the real one costs and writes nonsense. Its next-token
// distributions are as wide as a trained model's, greedy decoding does not
// stand still, and end of sequence is rare; gpt2.go says how. The files say of
// themselves that they are synthetic.
package synth

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/nativebench/nativebench/internal/gguf"
)

// Spec says which weights to write. Equal specs give equal files, bit for bit,
// on every machine.
type Spec struct {
	Model string // one of Models()
	Seed  uint64
	DType string // f16, f32 or bf16, in any case; "" is f16

	// VocabDir holds llama.cpp's vocabularies, models/ggml-vocab-*.gguf;
	// VocabPath, if set, is the file itself.
	VocabDir, VocabPath string

	// GGUFOnly leaves the Hugging Face directory out, which is half of the bytes.
	// It is written when a later Spec asks for it.
	GGUFOnly bool

	// Layers and Width, if not 0, make a relative of another size, for tests.
	// Width must be a multiple of the model's head size, times the heads that
	// share a key.
	Layers, Width int
}

// Check says what is wrong with a spec, naming the choices. Write begins with
// it. It reads the vocabulary.
func (s Spec) Check() error {
	_, err := s.resolve()
	return err
}

// Params is the number of parameters, without writing anything.
func (s Spec) Params() (int64, error) {
	j, err := s.resolve()
	if err != nil {
		return 0, err
	}
	return j.params(), nil
}

// Summary is what the GGUF file will tell of itself, without writing anything.
func (s Spec) Summary() (gguf.Summary, error) {
	j, err := s.resolve()
	if err != nil {
		return gguf.Summary{}, err
	}
	f := gguf.File{KV: j.metadata()}
	for _, t := range j.tensors {
		f.Tensors = append(f.Tensors, t.ggufTensor(j.dtype))
	}
	return f.Summary()
}

// ToWrite is how many bytes a Write into dir would write: 0 where all is there.
func (s Spec) ToWrite(dir string) (int64, error) {
	j, err := s.resolve()
	if err != nil {
		return 0, err
	}
	had, reused := s.have(j, dir)
	if reused != nil {
		return 0, nil
	}
	streams, err := j.streams(had)
	return total(streams), err
}

// have is what of the files lies in dir already; reused if that is all of them.
func (s Spec) have(j *job, dir string) (had []File, reused *Result) {
	r, err := Open(dir)
	if err != nil || r.Identity != j.identity() {
		return nil, nil
	}
	if r.HFDir != "" || s.GGUFOnly {
		return r.Files, r
	}
	return r.Files, nil
}

// job is a spec made concrete.
type job struct {
	model   model
	seed    uint64
	dtype   DType
	vocab   *vocabulary
	tensors []tensor
	hf      bool // make the Hugging Face directory

	shardBytes int64
}

func (s Spec) resolve() (*job, error) {
	m, err := modelByKey(s.Model)
	if err != nil {
		return nil, err
	}
	if m, err = m.resized(s.Layers, s.Width); err != nil {
		return nil, err
	}
	d := DType(strings.ToUpper(s.DType))
	if d == "" {
		d = F16
	}
	if !slices.Contains([]DType{F16, F32, BF16}, d) {
		return nil, fmt.Errorf("synthetic weights of type %q: choose f16, f32 or bf16", s.DType)
	}
	path := s.VocabPath
	if path == "" {
		if s.VocabDir == "" {
			return nil, errors.New("synthetic weights need a real vocabulary: say where it is")
		}
		path = filepath.Join(s.VocabDir, m.Shape.VocabFile)
	}
	v, err := readVocabulary(path, m.Shape)
	if err != nil {
		return nil, err
	}
	return &job{model: m, seed: s.Seed, dtype: d, vocab: v, tensors: m.arch.tensors(m.Shape, m.Context, v.quiet), hf: !s.GGUFOnly, shardBytes: mostShardBytes}, nil
}

func (j *job) params() (n int64) {
	for _, t := range j.tensors {
		n += t.elements()
	}
	return n
}

// identity tells jobs apart that give different files.
func (j *job) identity() Identity {
	return Identity{
		Generator: Generator, Model: j.model.Key, Layers: j.model.Shape.Layers, Width: j.model.Shape.Width,
		Seed: j.seed, DType: j.dtype, Tokenizer: j.vocab.origin(),
	}
}

// Result tells what lies in a directory that Write filled. It is kept there as
// synth.json.
type Result struct {
	Identity
	Params int64  `json:"params"`
	Files  []File `json:"files"` // of all the directory, the GGUF first

	GGUF   string `json:"-"` // path of the GGUF file
	HFDir  string `json:"-"` // path of the Hugging Face directory; "" if there is none
	CRC32C string `json:"-"` // of the GGUF file, a Checksum
	Bytes  int64  `json:"-"` // size of the GGUF file
	Reused bool   `json:"-"` // nothing was written: it was there already
}

// Identity is what decides every bit of the files.
type Identity struct {
	Generator int    `json:"generator"` // version, see Generator
	Model     string `json:"model"`
	Layers    int    `json:"layers"`
	Width     int    `json:"width"`
	Seed      uint64 `json:"seed"`
	DType     DType  `json:"dtype"`
	Tokenizer string `json:"tokenizer"` // vocabulary file and its hash
}

// File is one written file.
type File struct {
	Path   string `json:"path"` // relative to the directory
	Bytes  int64  `json:"bytes"`
	CRC32C string `json:"crc32c"` // a Checksum
}

// Progress is told how many bytes of how many are written. It is called by one
// goroutine at a time, about once a megabyte, and must be quick.
type Progress func(done, total int64)

// Write fills dir, which is made if need be, with the model's GGUF file, the
// Hugging Face directory and synth.json, or finds all that there already and
// writes nothing (Result.Reused; sizes are compared, Verify compares hashes).
// Synthetic weights of another spec in dir are replaced.
//
// Files get their names when all are whole: a cancelled or failed Write leaves
// dir as it was. Of several Writes into one directory, in one process or many,
// the later wait and then find the files. progress may be nil. Memory is
// bounded by a few megabytes and the vocabulary, whatever the model's size.
func Write(ctx context.Context, s Spec, dir string, progress Progress) (*Result, error) {
	j, err := s.resolve()
	if err != nil {
		return nil, err
	}
	st, err := openStore(ctx, dir)
	if err != nil {
		return nil, err
	}
	defer st.close()
	had, r := s.have(j, dir)
	if r != nil {
		r.Reused = true
		return r, nil
	}
	if err := st.write(ctx, j, had, progress); err != nil {
		return nil, fmt.Errorf("writing synthetic weights of %s to %s: %w", s.Model, dir, err)
	}
	return Open(dir)
}

// metadata is the GGUF file's, in the order in which llama.cpp's converter
// writes it, and our own keys.
func (j *job) metadata() []gguf.KV {
	fileType := map[DType]uint32{F32: 0, F16: 1, BF16: 32}[j.dtype] // llama_ftype
	kv := []gguf.KV{
		{Key: "general.architecture", Value: j.model.Arch},
		{Key: "general.type", Value: "model"},
		{Key: "general.name", Value: j.model.Name + ", synthetic weights"},
		{Key: "general.description", Value: "Seeded random numbers in the shape of the model, for measuring speed. It was never trained."},
		{Key: "general.size_label", Value: sizeLabel(j.params())},
	}
	kv = append(kv, j.model.arch.metadata(j.model.Model)...)
	kv = append(kv,
		gguf.KV{Key: "general.file_type", Value: fileType},
		gguf.KV{Key: "general.quantization_version", Value: uint32(2)}, // GGML_QNT_VERSION
	)
	kv = append(kv, j.vocab.kv...)
	kv = append(kv,
		gguf.KV{Key: gguf.SyntheticKey, Value: true},
		gguf.KV{Key: gguf.SeedKey, Value: j.seed},
		gguf.KV{Key: gguf.GeneratorKey, Value: uint32(Generator)},
	)
	if len(j.vocab.quiet) > 0 { // what was done to make end of sequence rare
		kv = append(kv, gguf.KV{Key: "nativebench.eos_row_scale", Value: float32(quietBy)})
	}
	if j.vocab.note != "" {
		kv = append(kv, gguf.KV{Key: gguf.VocabularyKey, Value: j.vocab.note})
	}
	return kv
}

// sizeLabel is general.size_label: at least two digits and a unit.
func sizeLabel(params int64) string {
	for _, u := range []struct {
		size int64
		name string
	}{{1e12, "T"}, {1e9, "B"}, {1e6, "M"}} {
		if params >= u.size {
			x := float64(params) / float64(u.size)
			if x < 9.5 {
				return fmt.Sprintf("%.1f%s", x, u.name)
			}
			return fmt.Sprintf("%.0f%s", x, u.name)
		}
	}
	return fmt.Sprintf("%.0fK", float64(params)/1e3)
}

// hfFiles gives the Hugging Face directory's files but the weights.
func (j *job) hfFiles() (map[string][]byte, error) {
	files, err := j.vocab.files(j.model.Context)
	if err != nil {
		return nil, err
	}
	config := object(j.model.arch.config(j.model.Model))
	config["vocab_size"] = j.model.Shape.Vocab
	config["bos_token_id"], config["eos_token_id"] = j.vocab.bos, j.vocab.eos
	config["torch_dtype"] = map[DType]string{F16: "float16", F32: "float32", BF16: "bfloat16"}[j.dtype]
	config["nativebench"] = object{"synthetic": true, "seed": j.seed, "generator": Generator}
	for name, content := range map[string]object{
		"config.json":            config,
		"generation_config.json": {"bos_token_id": j.vocab.bos, "eos_token_id": j.vocab.eos},
	} {
		if files[name], err = encodeJSON(content); err != nil {
			return nil, err
		}
	}
	return files, nil
}
