// Package gguf reads and writes GGUF, the model file of llama.cpp: metadata
// and a table of tensors, followed by the tensors' bytes.
//
// The format is that of ggml's gguf.h, versions 2 and 3, little-endian: magic,
// version, counts, key-value pairs, tensor table, padding, data. The reader
// accepts what llama.cpp accepts and refuses the rest with one line that says
// what is wrong, so that a bad file is found before an engine aborts on it.
package gguf

import "fmt"

const (
	magic            = "GGUF"
	writeVersion     = 3
	alignmentKey     = "general.alignment"
	defaultAlignment = 32 // bytes, of each tensor's data, counted from the start of the data
	maxName          = 64 // GGML_MAX_NAME, with the terminating zero
	maxDims          = 4  // GGML_MAX_DIMS
)

// KV is one pair of the metadata. Value is one of uint8, int8, uint16, int16,
// uint32, int32, uint64, int64, float32, float64, bool, string, or a slice of
// one of these.
type KV struct {
	Key   string
	Value any
}

// Tensor is one row of the tensor table.
type Tensor struct {
	Name string
	Type TensorType
	// Dims are the numbers of elements along each dimension in ggml's order:
	// the first is the contiguous one. A matrix that maps n inputs to m
	// outputs has Dims {n, m}.
	Dims []int64
	// Offset is where the data starts, in bytes from File.DataOffset. A writer
	// sets it itself.
	Offset int64
}

// Elements is the number of elements.
func (t Tensor) Elements() int64 {
	n := int64(1)
	for _, d := range t.Dims {
		n *= d
	}
	return n
}

// Bytes is the size of the data without padding.
func (t Tensor) Bytes() int64 {
	i, ok := t.Type.info()
	if !ok {
		return 0
	}
	return t.Elements() / i.block * i.bytes
}

// File is what a GGUF file says about itself. It holds no tensor data.
type File struct {
	Version    uint32
	Alignment  int64    // bytes
	DataOffset int64    // where tensor data starts, bytes from the start of the file
	Size       int64    // of the whole file, bytes
	KV         []KV     // in the file's order, keys unique
	Tensors    []Tensor // in the file's order, which is the data's, names unique
}

// Value returns the value of a metadata key.
func (f *File) Value(key string) (any, bool) {
	for _, kv := range f.KV {
		if kv.Key == key {
			return kv.Value, true
		}
	}
	return nil, false
}

// Get returns the value of a key that must have type T. The error tells a
// missing key from one of another type.
func Get[T any](f *File, key string) (T, error) {
	var zero T
	v, ok := f.Value(key)
	if !ok {
		return zero, fmt.Errorf("the metadata lacks %q", key)
	}
	t, ok := v.(T)
	if !ok {
		return zero, fmt.Errorf("the metadata's %q is %s, not %s", key, typeName(v), typeName(zero))
	}
	return t, nil
}

// Int returns the value of a key that holds an integer of any width.
func (f *File) Int(key string) (int64, error) {
	v, ok := f.Value(key)
	if !ok {
		return 0, fmt.Errorf("the metadata lacks %q", key)
	}
	n, ok := toInt(v)
	if !ok {
		return 0, fmt.Errorf("the metadata's %q is not an integer of at most 63 bits", key)
	}
	return n, nil
}

func toInt(v any) (int64, bool) {
	switch v := v.(type) {
	case uint8:
		return int64(v), true
	case int8:
		return int64(v), true
	case uint16:
		return int64(v), true
	case int16:
		return int64(v), true
	case uint32:
		return int64(v), true
	case int32:
		return int64(v), true
	case int64:
		return v, true
	case uint64:
		return int64(v), v < 1<<63
	}
	return 0, false
}
