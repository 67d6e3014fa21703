package gguf

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
)

// Write writes a GGUF file of version 3 to w: metadata, tensor table, and the
// bytes of each tensor as data writes them, in the order given, with padding
// between. data must write exactly t.Bytes() bytes. Offsets are set here; the
// Offset of the given tensors is not looked at. Write needs memory for the
// header only.
func Write(w io.Writer, kv []KV, tensors []Tensor, data func(t Tensor, w io.Writer) error) error {
	alignment, err := check(kv, tensors)
	if err != nil {
		return err
	}
	c := &counter{w: w}
	if err := writeHeader(c, alignment, kv, tensors); err != nil {
		return err
	}
	for _, t := range tensors {
		start := c.n
		if err := data(t, c); err != nil {
			return fmt.Errorf("tensor %s: %w", t.Name, err)
		}
		if got := c.n - start; got != t.Bytes() {
			return fmt.Errorf("tensor %s: %d bytes were written, its shape and type need %d", t.Name, got, t.Bytes())
		}
		if err := c.pad(alignment); err != nil {
			return err
		}
	}
	return nil
}

// Size is the number of bytes that Write would write.
func Size(kv []KV, tensors []Tensor) (int64, error) {
	alignment, err := check(kv, tensors)
	if err != nil {
		return 0, err
	}
	c := &counter{w: io.Discard}
	if err := writeHeader(c, alignment, kv, tensors); err != nil {
		return 0, err
	}
	for _, t := range tensors {
		c.n += pad(t.Bytes(), alignment)
	}
	return c.n, nil
}

// check refuses what Read would refuse.
func check(kv []KV, tensors []Tensor) (alignment int64, err error) {
	alignment = defaultAlignment
	keys := map[string]bool{}
	for _, p := range kv {
		if p.Key == "" || keys[p.Key] {
			return 0, fmt.Errorf("metadata key %q is empty or occurs twice", p.Key)
		}
		keys[p.Key] = true
		if p.Key == alignmentKey {
			if alignment, err = alignmentOf(p.Value); err != nil {
				return 0, err
			}
		}
	}
	names := map[string]bool{}
	for _, t := range tensors {
		info, ok := t.Type.info()
		switch {
		case t.Name == "" || len(t.Name) >= maxName:
			return 0, fmt.Errorf("tensor name %q has %d bytes; it may have 1 to %d", t.Name, len(t.Name), maxName-1)
		case names[t.Name]:
			return 0, fmt.Errorf("tensor %q occurs twice", t.Name)
		case !ok:
			return 0, fmt.Errorf("tensor %q has the unknown %v", t.Name, t.Type)
		case len(t.Dims) == 0 || len(t.Dims) > maxDims || t.Elements() <= 0 || t.Dims[0]%info.block != 0:
			return 0, fmt.Errorf("tensor %q of type %v has the shape %v", t.Name, t.Type, t.Dims)
		}
		names[t.Name] = true
	}
	return alignment, nil
}

func writeHeader(c *counter, alignment int64, kv []KV, tensors []Tensor) error {
	buf := bufio.NewWriter(c)
	e := encoder{buf}
	buf.WriteString(magic)
	e.fixed(uint32(writeVersion), uint64(len(tensors)), uint64(len(kv)))
	for _, p := range kv {
		e.str(p.Key)
		if err := e.value(p.Value); err != nil {
			return fmt.Errorf("metadata key %q: %w", p.Key, err)
		}
	}
	offset := int64(0)
	for _, t := range tensors {
		e.str(t.Name)
		e.fixed(uint32(len(t.Dims)), t.Dims, uint32(t.Type), uint64(offset))
		offset += pad(t.Bytes(), alignment)
	}
	if err := buf.Flush(); err != nil { // holds the first error of all writes
		return err
	}
	if len(tensors) == 0 {
		return nil
	}
	return c.pad(alignment)
}

// encoder writes little-endian values; bufio keeps the first error.
type encoder struct{ w *bufio.Writer }

func (e encoder) fixed(values ...any) {
	for _, v := range values {
		binary.Write(e.w, binary.LittleEndian, v)
	}
}

func (e encoder) str(s string) {
	e.fixed(uint64(len(s)))
	e.w.WriteString(s)
}

// value writes a value's type and the value.
func (e encoder) value(v any) error {
	switch v := v.(type) {
	case string:
		e.fixed(typeString)
		e.str(v)
	case []string:
		e.fixed(typeArray, typeString, uint64(len(v)))
		for _, s := range v {
			e.str(s)
		}
	case uint8, int8, uint16, int16, uint32, int32, float32, bool, uint64, int64, float64:
		e.fixed(scalarType(v), v)
	case []uint8:
		e.array(typeUint8, len(v), v)
	case []int8:
		e.array(typeInt8, len(v), v)
	case []uint16:
		e.array(typeUint16, len(v), v)
	case []int16:
		e.array(typeInt16, len(v), v)
	case []uint32:
		e.array(typeUint32, len(v), v)
	case []int32:
		e.array(typeInt32, len(v), v)
	case []float32:
		e.array(typeFloat32, len(v), v)
	case []bool:
		e.array(typeBool, len(v), v)
	case []uint64:
		e.array(typeUint64, len(v), v)
	case []int64:
		e.array(typeInt64, len(v), v)
	case []float64:
		e.array(typeFloat64, len(v), v)
	default:
		return fmt.Errorf("GGUF has no type for a value of Go's %T", v)
	}
	return nil
}

func (e encoder) array(t valueType, n int, values any) {
	e.fixed(typeArray, t, uint64(n), values)
}

func scalarType(v any) valueType {
	switch v.(type) {
	case uint8:
		return typeUint8
	case int8:
		return typeInt8
	case uint16:
		return typeUint16
	case int16:
		return typeInt16
	case uint32:
		return typeUint32
	case int32:
		return typeInt32
	case float32:
		return typeFloat32
	case bool:
		return typeBool
	case uint64:
		return typeUint64
	case int64:
		return typeInt64
	default:
		return typeFloat64
	}
}

// counter counts what goes through it.
type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.n += int64(n)
	if err == nil && n < len(b) {
		err = io.ErrShortWrite
	}
	return n, err
}

// pad writes zeros up to a multiple of alignment.
func (c *counter) pad(alignment int64) error {
	n := pad(c.n, alignment) - c.n
	if n == 0 {
		return nil
	}
	_, err := c.Write(make([]byte, n))
	return err
}
