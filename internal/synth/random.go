package synth

import (
	"encoding/binary"
	"hash/fnv"
	"math"
	"math/bits"
	"sync"

	"github.com/x448/float16"
)

// Generator is the version of everything that decides the numbers: the random
// function below and each architecture's scales. It is written into the files.
// Raise it with any change that alters a number; a test holds the hash of a
// small model.
const Generator = 2

// Every number is a pure function of (seed, tensor name, element), so tensors
// and parts of tensors can be made in any order and at once, and the two files
// can be written independently of each other.
//
// Four elements share an output of wyrand (Wang Yi, wyhash, final version 4): output
// i is the two halves of s · (s xor fold), 128 bits, xored, where s is key +
// (i+1)·step and key is made of seed and name. Element e takes 16 bits of
// output e/4, the lowest for e%4 = 0, and these choose one of 65536 quantiles of
// the normal distribution, which stand in a table as the file stores them
// (numbers): one multiplication for four elements, and a look into a table for
// each.

const (
	step = 0xa0761d6478bd642f
	fold = 0xe7037ed1a0b428db
)

// draw is the output for state s.
func draw(s uint64) uint64 {
	high, low := bits.Mul64(s, s^fold)
	return high ^ low
}

// at16 is the 16 bits of element e.
func at16(key uint64, e int64) uint16 {
	return uint16(draw(key+(uint64(e)/4+1)*step) >> (uint64(e) % 4 * 16))
}

// key starts the sequence of one tensor. (The finisher of SplitMix64: Steele,
// Lea, Flood, OOPSLA 2014.)
func key(seed uint64, name string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(name))
	return mix(h.Sum64() + mix(seed+0x9e3779b97f4a7c15))
}

func mix(z uint64) uint64 {
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// quantiles are those of the standard normal distribution at (i+½)/65536 for
// each i of 16 bits, from -4.33 to 4.33, scaled by 1.00001 so that their
// variance is 1. Their mean is 0.
//
// Only operations that IEEE 754 rounds exactly are used, so that the bits are
// the same on every machine, which a logarithm would not promise: the density
// goes from one x to the next by multiplications, and its integral is summed by
// trapezoids. The conversions keep a compiler from fusing a multiplication with
// an addition. Quantiles are good to 3e-7.
var quantiles = sync.OnceValue(func() *[1 << 16]float64 {
	const (
		h     = 1. / 4096
		turn  = 1 - h*h + h*h*h*h/2      // exp(-h²)
		first = 1 - h*h/2 + h*h*h*h/8    // exp(-h²/2)
		whole = math.SqrtPi / math.Sqrt2 // integral of exp(-x²/2) from 0
		n     = 1 << 15                  // quantiles on each side
	)
	var q [2 * n]float64
	x, density, ratio, area, squares := 0., 1., first, 0., 0.
	for i := range n {
		want := (float64(i) + .5) * (whole / n)
		for {
			next := float64(density * ratio)
			strip := float64((density + next) * (h / 2))
			if area+strip >= want {
				q[n+i] = x + float64((want-area)/strip*h)
				break
			}
			x, density, ratio, area = x+h, next, float64(ratio*turn), area+strip
		}
		squares += float64(q[n+i] * q[n+i])
	}
	scale := 1 / math.Sqrt(squares/n)
	for i := range n {
		q[n+i] *= scale
		q[n-1-i] = -q[n+i]
	}
	return &q
})

// numbers are the numbers that a tensor can have, as a file stores them, for
// each 16 bits of the random sequence.
type numbers struct {
	narrow *[1 << 16]uint16 // where an element has 2 bytes, else nil
	wide   *[1 << 16]uint32 // where it has 4, else nil
}

// newNumbers fills the table of a distribution. by is a further factor.
func newNumbers(mean, std, by float32, f form) numbers {
	var n numbers
	if f.stored == F32 {
		n.wide = new([1 << 16]uint32)
	} else {
		n.narrow = new([1 << 16]uint16)
	}
	for i, q := range quantiles() {
		b := f.dtype.bits(f.stored, mean+float32(float32(float32(q)*std)*by))
		if n.wide != nil {
			n.wide[i] = b
		} else {
			n.narrow[i] = uint16(b)
		}
	}
	return n
}

// fill stores the elements e, e+1, … of a sequence.
func (n numbers) fill(dst []byte, key uint64, e int64) {
	for ; e%4 != 0 && len(dst) > 0; e++ {
		dst = n.put(dst, at16(key, e))
	}
	s := key + (uint64(e)/4+1)*step
	if n.wide != nil {
		for wide := n.wide; len(dst) >= 16; dst = dst[16:] {
			v := draw(s)
			binary.LittleEndian.PutUint64(dst, uint64(wide[uint16(v)])|uint64(wide[uint16(v>>16)])<<32)
			binary.LittleEndian.PutUint64(dst[8:], uint64(wide[uint16(v>>32)])|uint64(wide[uint16(v>>48)])<<32)
			s, e = s+step, e+4
		}
	} else {
		for narrow := n.narrow; len(dst) >= 8; dst = dst[8:] {
			v := draw(s)
			binary.LittleEndian.PutUint64(dst, uint64(narrow[uint16(v)])|uint64(narrow[uint16(v>>16)])<<16|
				uint64(narrow[uint16(v>>32)])<<32|uint64(narrow[uint16(v>>48)])<<48)
			s, e = s+step, e+4
		}
	}
	for ; len(dst) > 0; e++ {
		dst = n.put(dst, at16(key, e))
	}
}

// fillEvery stores the elements e, e+by, e+2·by, …
func (n numbers) fillEvery(dst []byte, key uint64, e, by int64) {
	for ; len(dst) > 0; e += by {
		dst = n.put(dst, at16(key, e))
	}
}

// put stores one element and returns the rest of dst.
func (n numbers) put(dst []byte, i uint16) []byte {
	if n.wide != nil {
		binary.LittleEndian.PutUint32(dst, n.wide[i])
		return dst[4:]
	}
	binary.LittleEndian.PutUint16(dst, n.narrow[i])
	return dst[2:]
}

// DType is how the files store matrices.
type DType string

const (
	F16  DType = "F16"
	F32  DType = "F32" // the numbers of F16, stored wider
	BF16 DType = "BF16"
)

// bytes is the size of an element.
func (d DType) bytes() int64 {
	if d == F32 {
		return 4
	}
	return 2
}

// bits is x in stored's form, as the number that a model of type d holds for
// it: rounded to F16 and, for BF16, from there to BF16. It can be represented in F16
// (BF16: in both, where it is normal), and the same number stands in all files
// of a model, however wide they store it; files of F16 and F32 agree. Below 1 % of
// the numbers of a 7B model's matrices are subnormal in F16, and none is 0.
func (d DType) bits(stored DType, x float32) uint32 {
	h := float16.Fromfloat32(x) // to nearest, ties to even
	if stored == F16 {
		return uint32(h.Bits())
	}
	b := math.Float32bits(h.Float32())
	if d == BF16 {
		b = (b + 0x7fff + b>>16&1) &^ 0xffff // to nearest, ties to even
	}
	if stored == F32 {
		return b
	}
	return b >> 16
}
