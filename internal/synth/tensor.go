package synth

import (
	"context"
	"io"
	"runtime"
	"sync"

	"github.com/nativebench/nativebench/internal/gguf"
)

// tensor is one weight of a model: its name and place in both files and the
// distribution of its numbers.
type tensor struct {
	gguf, hf string // names in the two files

	// rows and cols are the shape in GGUF, row by row: a matrix from cols
	// inputs to rows outputs. A vector has rows 0.
	rows, cols int64
	// transposed tells that the Hugging Face file holds inputs × outputs.
	transposed bool
	// wide tells that GGUF stores F32 whatever the model's type: vectors and
	// position embeddings, as llama.cpp's converter does.
	wide bool

	mean, std float32
	// quietRow's numbers are scaled by quietBy; 0 for quietBy means none is.
	quietRow int64
	quietBy  float32
}

func (t tensor) elements() int64 { return max(t.rows, 1) * t.cols }

// ggufTensor is the row of GGUF's tensor table.
func (t tensor) ggufTensor(d DType) gguf.Tensor {
	row := gguf.Tensor{Name: t.gguf, Type: t.ggufDType(d).ggml(), Dims: []int64{t.cols}}
	if t.rows > 0 {
		row.Dims = append(row.Dims, t.rows)
	}
	return row
}

func (t tensor) ggufDType(d DType) DType {
	if t.wide || t.rows == 0 {
		return F32
	}
	return d
}

// hfShape is the shape in the Hugging Face file, outermost dimension first.
func (t tensor) hfShape() []int64 {
	switch {
	case t.rows == 0:
		return []int64{t.cols}
	case t.transposed:
		return []int64{t.cols, t.rows}
	}
	return []int64{t.rows, t.cols}
}

func (d DType) ggml() gguf.TensorType {
	switch d {
	case F32:
		return gguf.F32
	case BF16:
		return gguf.BF16
	}
	return gguf.F16
}

// chunk is how many elements are made at once, by all cores together.
const chunk = 1 << 20

// writeTo writes the tensor's numbers to w, row by row, or column by column if
// transposed is set. The numbers are those of a model of type d, each stored as
// stored. Memory: one chunk.
func (t tensor) writeTo(ctx context.Context, w io.Writer, seed uint64, d, stored DType, transposed bool) error {
	n, size := t.elements(), stored.bytes()
	buf := make([]byte, min(n, chunk)*size)
	for first := int64(0); first < n; first += chunk {
		if err := ctx.Err(); err != nil {
			return err
		}
		part := buf[:min(n-first, chunk)*size]
		t.fillAll(part, first, seed, d, stored, transposed)
		if _, err := w.Write(part); err != nil {
			return err
		}
	}
	return nil
}

// fillAll shares the work of fill among the cores.
func (t tensor) fillAll(dst []byte, first int64, seed uint64, d, stored DType, transposed bool) {
	const least = 1 << 14 // elements that are worth a goroutine
	k, size := key(seed, t.gguf), stored.bytes()
	n := int64(len(dst)) / size
	share := max((n-1)/int64(runtime.GOMAXPROCS(0))+1, least)
	var wg sync.WaitGroup
	for at := int64(0); at < n; at += share {
		part := dst[at*size : min(at+share, n)*size]
		wg.Go(func() { t.fill(part, first+at, k, d, stored, transposed) })
	}
	wg.Wait()
}

// fill makes the elements from position first of the file's order on.
func (t *tensor) fill(dst []byte, first int64, key uint64, d, stored DType, transposed bool) {
	// element is the index in GGUF's order, which numbers the random sequence.
	element, step := first, int64(1)
	if transposed {
		element, step = first%t.rows*t.cols+first/t.rows, t.cols
	}
	n, scale := t.elements(), t.std/spread
	quietFrom, quietTo := t.quietRow*t.cols, (t.quietRow+1)*t.cols
	if t.quietBy == 0 {
		quietTo = quietFrom
	}
	for size := stored.bytes(); len(dst) > 0; dst = dst[size:] {
		// The conversion keeps a compiler from fusing the multiplication with
		// the addition, which would give other bits on another machine.
		x := float32(float32(bell(key, element)) * scale)
		if quietFrom <= element && element < quietTo {
			x = float32(x * t.quietBy)
		}
		d.put(dst, stored, t.mean+x)
		if element += step; element >= n {
			element -= n - 1 // from the end of a column to the next
		}
	}
}
