package synth

import (
	"context"
	"io"
	"math"
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
	// heads, if not 0, tells that rows are elements of so many heads which are
	// rotated in pairs. GGUF has the two of a pair side by side, the Hugging Face
	// file first the one of every pair of a head, then the other ("permute" in
	// llama.cpp's conversion/llama.py).
	heads int64
	// wide tells that GGUF stores F32 whatever the model's type: vectors and
	// position embeddings, as llama.cpp's converter does.
	wide bool

	mean, std float32
	quiet     []span // rows whose numbers are scaled by quietBy
}

// span is a range of rows, tokens of the vocabulary, without its end.
type span struct{ from, to int64 }

// quietBy gives end of sequence, and every other token that no text has, a
// logit near 0 among logits of some 4: its probability is about e^-18 at each
// step.
const quietBy = 0.1

// per is the standard deviation of a matrix's numbers that makes std of so many
// inputs of standard deviation 1.
func per(std float64, inputs int64) float32 { return float32(std / math.Sqrt(float64(inputs))) }

func vector(gguf, hf string, n int64, mean, std float32) tensor {
	return tensor{gguf: gguf, hf: hf, cols: n, mean: mean, std: std}
}

// linear is a matrix that both files hold as outputs × inputs.
func linear(gguf, hf string, in, out int64, std float64) tensor {
	return tensor{gguf: gguf, hf: hf, rows: out, cols: in, std: per(std, in)}
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

// form is how a file holds a tensor's numbers.
type form struct {
	dtype  DType // of the model
	stored DType // of this tensor in this file
	hf     bool  // in the order of the Hugging Face file, not GGUF's
}

// writeTo writes the tensor's numbers to w. Memory: one chunk, and tables of at most
// 512 KiB.
func (t *tensor) writeTo(ctx context.Context, w io.Writer, seed uint64, f form) error {
	n, size, s := t.elements(), f.stored.bytes(), t.source(seed, f)
	buf := make([]byte, min(n, chunk)*size)
	for first := int64(0); first < n; first += chunk {
		if err := ctx.Err(); err != nil {
			return err
		}
		part := buf[:min(n-first, chunk)*size]
		s.fillAll(part, first)
		if _, err := w.Write(part); err != nil {
			return err
		}
	}
	return nil
}

// source makes a tensor's numbers in a file's order. Goroutines may share it.
type source struct {
	of          *tensor
	form        form
	key         uint64
	loud, quiet numbers // of most rows, and of those in tensor.quiet
}

func (t *tensor) source(seed uint64, f form) *source {
	s := &source{of: t, form: f, key: key(seed, t.gguf), loud: newNumbers(t.mean, t.std, 1, f)}
	if len(t.quiet) > 0 {
		s.quiet = newNumbers(t.mean, t.std, quietBy, f)
	}
	return s
}

// fillAll shares the work of fill among the cores.
func (s *source) fillAll(dst []byte, first int64) {
	const least = 1 << 16 // elements that are worth a goroutine
	size := s.form.stored.bytes()
	n := int64(len(dst)) / size
	share := max((n-1)/int64(runtime.GOMAXPROCS(0))+1, least)
	share = (share + 3) &^ 3 // whole outputs of the random sequence
	var wg sync.WaitGroup
	for at := int64(0); at < n; at += share {
		part := dst[at*size : min(at+share, n)*size]
		wg.Go(func() { s.fill(part, first+at) })
	}
	wg.Wait()
}

// fill makes the elements from position first of the file's order on. Elements
// are numbered in GGUF's order, which is that of the random sequence.
func (s *source) fill(dst []byte, first int64) {
	t := s.of
	turned := s.form.hf && t.transposed
	for size := s.form.stored.bytes(); len(dst) > 0; {
		row, col := first/t.cols, first%t.cols
		run := t.cols - col
		switch {
		case turned:
			row, col = first%t.rows, first/t.rows
			run = t.rows - row
		case s.form.hf && t.heads > 0:
			row = t.ggufRow(row)
		}
		from := s.loud
		for _, q := range t.quiet {
			switch {
			case q.from <= row && row < q.to:
				from = s.quiet
				if turned {
					run = min(run, q.to-row)
				}
			case turned && q.from > row:
				run = min(run, q.from-row)
			}
		}
		run = min(run, int64(len(dst))/size)
		if e := row*t.cols + col; turned {
			from.fillEvery(dst[:run*size], s.key, e, t.cols)
		} else {
			from.fill(dst[:run*size], s.key, e)
		}
		dst, first = dst[run*size:], first+run
	}
}

// ggufRow is the row of GGUF that the Hugging Face file has as its row.
func (t *tensor) ggufRow(row int64) int64 {
	head, half := t.rows/t.heads, t.rows/t.heads/2
	in := row % head
	return row - in + in%half*2 + in/half
}
