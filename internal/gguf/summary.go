package gguf

import (
	"fmt"
	"math"
)

// Summary is what a user wants to know of a model file before loading it.
// Numbers that the file does not state are 0.
type Summary struct {
	Arch string // general.architecture: gpt2, phi2, llama, …
	Name string // general.name
	// DType names general.file_type, or, where that is missing, the tensor
	// type that takes the most bytes.
	DType string

	Context int // positions that the model was made for, tokens
	Layers  int
	Width   int // elements of a token's embedding
	Heads   int // of attention, queries
	Vocab   int // tokens

	Tensors     int
	Params      int64 // elements of all tensors
	TensorBytes int64 // of all tensors, without padding

	// KVPerToken is how many elements the KV cache needs for one token: keys
	// and values of all layers. Times the cache's element size it is bytes.
	// Layers that attend to a window only are counted in full.
	KVPerToken int64

	// Synthetic tells random weights; Seed made them, and Vocabulary says in
	// what their vocabulary is not the model's own, "" if it is.
	Synthetic  bool
	Seed       uint64
	Vocabulary string
}

// Metadata keys that mark weights which nativebench made up.
const (
	SyntheticKey = "nativebench.synthetic" // bool
	SeedKey      = "nativebench.seed"      // uint64
	GeneratorKey = "nativebench.generator" // uint32, version of the generator
	// VocabularyKey, a string, says in what the vocabulary is not the model's.
	VocabularyKey = "nativebench.vocabulary"
)

// Summary collects the facts. The error names the metadata key that is missing
// or absurd. A file with a vocabulary only gives Tensors 0.
func (f *File) Summary() (Summary, error) {
	var s Summary
	var err error
	if s.Arch, err = Get[string](f, "general.architecture"); err != nil {
		return s, err
	}
	s.Name, _ = Get[string](f, "general.name")
	s.Synthetic, _ = Get[bool](f, SyntheticKey)
	s.Seed, _ = Get[uint64](f, SeedKey)
	s.Vocabulary, _ = Get[string](f, VocabularyKey)
	for _, field := range []struct {
		key string
		to  *int
	}{
		{"context_length", &s.Context},
		{"block_count", &s.Layers},
		{"embedding_length", &s.Width},
	} {
		if *field.to, err = f.small(s.Arch + "." + field.key); err != nil {
			return s, err
		}
	}
	if tokens, err := Get[[]string](f, "tokenizer.ggml.tokens"); err == nil {
		s.Vocab = len(tokens)
	}
	s.Tensors = len(f.Tensors)
	for _, t := range f.Tensors {
		s.Params += t.Elements()
		s.TensorBytes += t.Bytes()
	}
	s.DType = f.dtype()
	if err := f.attention(&s); err != nil {
		return s, err
	}
	return s, nil
}

// small reads a size that a model can have; a missing key is 0.
func (f *File) small(key string) (int, error) {
	if _, ok := f.Value(key); !ok {
		return 0, nil
	}
	n, err := f.Int(key)
	if err != nil {
		return 0, err
	}
	if n < 0 || n > math.MaxInt32 {
		return 0, fmt.Errorf("the metadata's %q is %d, which no model has", key, n)
	}
	return int(n), nil
}

func (f *File) dtype() string {
	if n, err := f.Int("general.file_type"); err == nil {
		if name := fileTypeName(n); name != "" {
			return name
		}
	}
	bytes, most := map[TensorType]int64{}, TensorType(0)
	for _, t := range f.Tensors {
		bytes[t.Type] += t.Bytes()
		if bytes[t.Type] > bytes[most] {
			most = t.Type
		}
	}
	if len(bytes) == 0 {
		return ""
	}
	return most.String()
}

// attention computes Heads and KVPerToken as llama.cpp does: a layer caches
// head_count_kv vectors of key_length and of value_length elements.
func (f *File) attention(s *Summary) error {
	key := func(name string) string { return s.Arch + ".attention." + name }
	heads, err := f.perLayer(key("head_count"), s.Layers)
	if err != nil || heads == nil {
		return err
	}
	s.Heads = heads[0]
	kv, err := f.perLayer(key("head_count_kv"), s.Layers)
	if err != nil {
		return err
	}
	if kv == nil {
		kv = heads
	}
	k, err := f.small(key("key_length"))
	if err != nil {
		return err
	}
	v, err := f.small(key("value_length"))
	if err != nil {
		return err
	}
	for i := range kv {
		head := 0
		if heads[i] > 0 {
			head = s.Width / heads[i]
		}
		size := int64(orElse(k, head)) + int64(orElse(v, head))
		if kv[i] > 0 && size > (math.MaxInt64-s.KVPerToken)/int64(kv[i]) {
			return fmt.Errorf("the metadata's attention sizes are absurd: %d heads of %d elements in a layer", kv[i], size)
		}
		s.KVPerToken += int64(kv[i]) * size
	}
	return nil
}

func orElse(n, otherwise int) int {
	if n != 0 {
		return n
	}
	return otherwise
}

// perLayer reads a number that is given once or for every layer; nil when the
// key is missing or there are no layers.
func (f *File) perLayer(key string, layers int) ([]int, error) {
	const maxLayers = 1 << 16 // memory is made for as many
	v, ok := f.Value(key)
	if !ok || layers == 0 {
		return nil, nil
	}
	if layers > maxLayers {
		return nil, fmt.Errorf("the metadata claims %d layers, which no model has", layers)
	}
	each := make([]int, layers)
	switch v := v.(type) {
	case []int32:
		if len(v) != layers {
			return nil, fmt.Errorf("the metadata's %q has %d values for %d layers", key, len(v), layers)
		}
		for i, n := range v {
			each[i] = int(max(n, 0))
		}
	case []uint32:
		if len(v) != layers {
			return nil, fmt.Errorf("the metadata's %q has %d values for %d layers", key, len(v), layers)
		}
		for i, n := range v {
			each[i] = int(min(n, math.MaxInt32))
		}
	default:
		n, err := f.small(key)
		if err != nil {
			return nil, err
		}
		for i := range each {
			each[i] = n
		}
	}
	return each, nil
}
