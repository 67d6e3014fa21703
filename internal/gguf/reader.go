package gguf

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"os"
)

// maxHeader bounds metadata and tensor table, in bytes, and with them the
// memory that reading takes (at most about three times as much). The largest
// vocabularies in use take 16 MB.
const maxHeader = 128 << 20

// maxCount bounds the numbers of tensors and of metadata pairs. The largest
// models have a few thousand tensors.
const maxCount = 1 << 16

// ReadFile reads the metadata and the tensor table of the GGUF file at path
// and checks them against the file's size. It reads no tensor data. Its error
// is one line that names the path and what is wrong.
func ReadFile(path string) (*File, error) {
	h, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer h.Close()
	st, err := h.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: not a regular file; give a GGUF file", path)
	}
	f, err := Read(h, st.Size())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return f, nil
}

// Read reads what ReadFile does from r, which holds the first bytes of a GGUF
// file of size bytes. It never panics, and its memory is bounded whatever r
// holds.
func Read(r io.Reader, size int64) (*File, error) {
	d := &decoder{r: bufio.NewReaderSize(r, 1<<16), size: size}
	f := &File{Size: size, Alignment: defaultAlignment}
	tensors, pairs, err := d.start(f)
	if err != nil {
		return nil, err
	}
	if err := d.metadata(f, pairs); err != nil {
		return nil, err
	}
	if err := d.table(f, tensors); err != nil {
		return nil, err
	}
	return f, f.checkLayout(d.off)
}

// decoder reads little-endian values and keeps count, so that no length is
// believed that the file could not hold.
type decoder struct {
	r         *bufio.Reader
	off, size int64 // bytes read so far; bytes of the file
	buf       [8]byte
}

// left is how many bytes of header there can still be.
func (d *decoder) left() int64 { return min(d.size, maxHeader) - d.off }

// fits says whether n more bytes of what can be read, and if not, why.
func (d *decoder) fits(n int64, what string) error {
	switch {
	case n <= d.left():
		return nil
	case n > d.size-d.off:
		return fmt.Errorf("the file is cut short or corrupted: %s takes %d bytes from offset %d, and the file has %d", what, n, d.off, d.size)
	}
	return fmt.Errorf("the file is corrupted: its metadata and tensor table take more than %d MiB (at %s)", maxHeader>>20, what)
}

func (d *decoder) bytes(n int64, what string) ([]byte, error) {
	if err := d.fits(n, what); err != nil {
		return nil, err
	}
	b := d.buf[:]
	if n > int64(len(b)) {
		b = make([]byte, n)
	}
	b = b[:n]
	if _, err := io.ReadFull(d.r, b); err != nil {
		return nil, fmt.Errorf("reading %s at offset %d: %w", what, d.off, err)
	}
	d.off += n
	return b, nil
}

func (d *decoder) u32(what string) (uint32, error) {
	b, err := d.bytes(4, what)
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint32(b), nil
}

func (d *decoder) u64(what string) (uint64, error) {
	b, err := d.bytes(8, what)
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint64(b), nil
}

func (d *decoder) str(what string) (string, error) {
	n, err := d.u64(what)
	if err != nil {
		return "", err
	}
	if n > math.MaxInt64 {
		return "", fmt.Errorf("the file is corrupted: %s has a length of %d bytes", what, n)
	}
	b, err := d.bytes(int64(n), what)
	return string(b), err
}

// start reads up to the counts.
func (d *decoder) start(f *File) (tensors, pairs int64, err error) {
	if d.size < int64(len(magic)) {
		return 0, 0, fmt.Errorf("not a GGUF file: it has %d bytes", d.size)
	}
	b, err := d.bytes(int64(len(magic)), "the magic")
	if err != nil {
		return 0, 0, err
	}
	if string(b) != magic {
		return 0, 0, fmt.Errorf("not a GGUF file: it starts with %q, not %q", b, magic)
	}
	if f.Version, err = d.u32("the version"); err != nil {
		return 0, 0, err
	}
	switch {
	case f.Version == 2 || f.Version == 3:
	case f.Version != 0 && f.Version&0xffff == 0:
		return 0, 0, fmt.Errorf("a big-endian GGUF file; only little-endian ones can be used here")
	default:
		return 0, 0, fmt.Errorf("GGUF version %d; versions 2 and 3 can be used", f.Version)
	}
	t, err := d.u64("the number of tensors")
	if err != nil {
		return 0, 0, err
	}
	p, err := d.u64("the number of metadata pairs")
	if err != nil {
		return 0, 0, err
	}
	if t > maxCount || p > maxCount {
		return 0, 0, fmt.Errorf("the file is corrupted: it claims %d tensors and %d metadata pairs; at most %d of each can be", t, p, maxCount)
	}
	return int64(t), int64(p), nil
}

func (d *decoder) metadata(f *File, pairs int64) error {
	seen := map[string]bool{}
	for i := range pairs {
		key, err := d.str(fmt.Sprintf("the key of metadata pair %d", i))
		if err != nil {
			return err
		}
		switch {
		case key == "":
			return fmt.Errorf("the file is corrupted: metadata pair %d has an empty key", i)
		case seen[key]:
			return fmt.Errorf("the file is corrupted: metadata key %q occurs twice", key)
		}
		seen[key] = true
		v, err := d.value(key)
		if err != nil {
			return err
		}
		f.KV = append(f.KV, KV{key, v})
	}
	if v, ok := f.Value(alignmentKey); ok {
		var err error
		if f.Alignment, err = alignmentOf(v); err != nil {
			return fmt.Errorf("the file is corrupted: %w", err)
		}
	}
	return nil
}

// value reads a type and a value of it.
func (d *decoder) value(key string) (any, error) {
	what := fmt.Sprintf("the value of %q", key)
	t, err := d.u32(what)
	if err != nil {
		return nil, err
	}
	if valueType(t) != typeArray {
		return d.values(valueType(t), 1, false, what)
	}
	if t, err = d.u32(what); err != nil {
		return nil, err
	}
	n, err := d.u64(what)
	if err != nil {
		return nil, err
	}
	if n > math.MaxInt64/8 {
		return nil, fmt.Errorf("the file is corrupted: %s is an array of %d elements", what, n)
	}
	return d.values(valueType(t), int64(n), true, what)
}

// values reads n values of a type, as a slice if array is set.
func (d *decoder) values(t valueType, n int64, array bool, what string) (any, error) {
	switch t {
	case typeUint8:
		return numbers[uint8](d, t, n, array, what)
	case typeInt8:
		return numbers[int8](d, t, n, array, what)
	case typeUint16:
		return numbers[uint16](d, t, n, array, what)
	case typeInt16:
		return numbers[int16](d, t, n, array, what)
	case typeUint32:
		return numbers[uint32](d, t, n, array, what)
	case typeInt32:
		return numbers[int32](d, t, n, array, what)
	case typeUint64:
		return numbers[uint64](d, t, n, array, what)
	case typeInt64:
		return numbers[int64](d, t, n, array, what)
	case typeFloat32:
		return numbers[float32](d, t, n, array, what)
	case typeFloat64:
		return numbers[float64](d, t, n, array, what)
	case typeBool:
		return numbers[bool](d, t, n, array, what)
	case typeString:
		if !array {
			return d.str(what)
		}
		return d.strings(n, what)
	}
	return nil, fmt.Errorf("the file is corrupted: %s has elements of type %d", what, uint32(t))
}

func numbers[T any](d *decoder, t valueType, n int64, array bool, what string) (any, error) {
	b, err := d.bytes(n*t.size(), what)
	if err != nil {
		return nil, err
	}
	s := make([]T, n)
	if _, err := binary.Decode(b, binary.LittleEndian, s); err != nil {
		return nil, fmt.Errorf("reading %s: %w", what, err)
	}
	if !array {
		return s[0], nil
	}
	return s, nil
}

func (d *decoder) strings(n int64, what string) ([]string, error) {
	// Each string has at least its length: checked before memory is made.
	if err := d.fits(n*typeString.size(), what); err != nil {
		return nil, err
	}
	s := make([]string, n)
	for i := range s {
		var err error
		if s[i], err = d.str(what); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (d *decoder) table(f *File, tensors int64) error {
	seen := map[string]bool{}
	for i := range tensors {
		t, err := d.tensor(i)
		if err != nil {
			return err
		}
		if seen[t.Name] {
			return fmt.Errorf("the file is corrupted: tensor %q occurs twice", t.Name)
		}
		seen[t.Name] = true
		f.Tensors = append(f.Tensors, t)
	}
	return nil
}

func (d *decoder) tensor(i int64) (t Tensor, err error) {
	if t.Name, err = d.str(fmt.Sprintf("the name of tensor %d", i)); err != nil {
		return t, err
	}
	if t.Name == "" || len(t.Name) >= maxName {
		return t, fmt.Errorf("the file is corrupted: the name of tensor %d has %d bytes; it may have 1 to %d", i, len(t.Name), maxName-1)
	}
	what := fmt.Sprintf("the shape of tensor %q", t.Name)
	dims, err := d.u32(what)
	if err != nil {
		return t, err
	}
	if dims > maxDims {
		return t, fmt.Errorf("the file is corrupted: tensor %q has %d dimensions, more than %d", t.Name, dims, maxDims)
	}
	elements := int64(1)
	for range dims {
		n, err := d.u64(what)
		if err != nil {
			return t, err
		}
		if n == 0 || n > math.MaxInt64/16 || elements > math.MaxInt64/16/int64(n) {
			return t, fmt.Errorf("the file is corrupted: tensor %q has a dimension of %d elements", t.Name, n)
		}
		elements *= int64(n)
		t.Dims = append(t.Dims, int64(n))
	}
	typ, err := d.u32(what)
	if err != nil {
		return t, err
	}
	t.Type = TensorType(typ)
	info, ok := t.Type.info()
	if !ok {
		return t, fmt.Errorf("tensor %q has %v, which this program does not know: the file is corrupted or newer", t.Name, t.Type)
	}
	row := int64(1)
	if len(t.Dims) > 0 {
		row = t.Dims[0]
	}
	if row%info.block != 0 {
		return t, fmt.Errorf("the file is corrupted: tensor %q has rows of %d elements, not a multiple of %v's block of %d", t.Name, row, t.Type, info.block)
	}
	off, err := d.u64(what)
	if err != nil {
		return t, err
	}
	if off > math.MaxInt64/2 {
		return t, fmt.Errorf("the file is corrupted: tensor %q starts at byte %d of the data", t.Name, off)
	}
	t.Offset = int64(off)
	return t, nil
}

// checkLayout checks the tensors' places against each other and the file. Like
// llama.cpp it wants them one after another, each padded to the alignment; the
// padding after the last one may be missing.
func (f *File) checkLayout(headerEnd int64) error {
	f.DataOffset = pad(headerEnd, f.Alignment)
	if len(f.Tensors) == 0 {
		f.DataOffset = headerEnd
	}
	next := int64(0)
	for i, t := range f.Tensors {
		switch {
		case t.Offset < next:
			return fmt.Errorf("the file is corrupted: tensor %q starts at byte %d of the data and overlaps tensor %q, which ends at %d", t.Name, t.Offset, f.Tensors[i-1].Name, next)
		case t.Offset > next:
			return fmt.Errorf("the file is corrupted: tensor %q starts at byte %d of the data, not at %d where the one before it ends", t.Name, t.Offset, next)
		}
		end := t.Offset + t.Bytes()
		if end > f.Size-f.DataOffset {
			return fmt.Errorf("the file is cut short: tensor %q ends at byte %d, and the file has %d", t.Name, f.DataOffset+end, f.Size)
		}
		next = pad(end, f.Alignment)
	}
	return nil
}

// alignmentOf checks a value of general.alignment. Anything larger than a huge
// page is damage, not alignment.
func alignmentOf(v any) (int64, error) {
	a, ok := v.(uint32)
	if !ok || a == 0 || a&(a-1) != 0 || a > 1<<21 {
		return 0, fmt.Errorf("%s is %v; it must be a uint32 and a power of two, at most %d", alignmentKey, v, 1<<21)
	}
	return int64(a), nil
}

func pad(n, alignment int64) int64 { return (n + alignment - 1) / alignment * alignment }
