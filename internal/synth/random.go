package synth

import (
	"encoding/binary"
	"hash/fnv"
	"math"

	"github.com/x448/float16"
)

// Generator is the version of everything that decides the numbers: the random
// function below and each architecture's scales. It is written into the files.
// Raise it with any change that alters a number; a test holds the hash of a
// small model.
const Generator = 1

// Every number is a pure function of (seed, tensor name, element), so tensors
// and parts of tensors can be made in any order and at once, and the two files
// can be written independently of each other.
//
// The function: output i of SplitMix64 (Steele, Lea, Flood: Fast Splittable
// Pseudorandom Number Generators, OOPSLA 2014) started at a key made of seed and
// name; its four 16-bit parts are summed, which gives a bell of mean 131070 and
// variance (2^32-1)/3 (Irwin-Hall distribution, n = 4; nothing lies beyond 3.46
// standard deviations). It is exact integer arithmetic and one rounded
// multiplication, so the bits are the same on every machine; a logarithm or a
// cosine would not promise that. Matrix products of such numbers are as normal
// as those of true normals.

const (
	golden = 0x9e3779b97f4a7c15 // SplitMix64's increment
	centre = 2 * (1<<16 - 1)    // mean of the sum of four parts
	spread = 37837.226          // its standard deviation, sqrt((2^32-1)/3)
)

func mix(z uint64) uint64 {
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

// key starts the sequence of one tensor.
func key(seed uint64, name string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(name))
	return mix(h.Sum64() + mix(seed+golden))
}

// bell turns a state of SplitMix64, which for element i is key + (i+1)·golden,
// into an integer of mean 0 and standard deviation spread.
func bell(z uint64) int32 {
	z = mix(z)
	return int32(z&0xffff) + int32(z>>16&0xffff) + int32(z>>32&0xffff) + int32(z>>48) - centre
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

// put stores x at the start of dst, in stored's form, as the number that a
// model of type d holds for it. That number can be represented in F16, so that
// files of F16 and F32 agree, and for BF16 in both: the same number stands in
// all files of a model, however wide they store it.
func (d DType) put(dst []byte, stored DType, x float32) {
	h := half(x)
	if d == F16 && stored == F16 {
		binary.LittleEndian.PutUint16(dst, h)
		return
	}
	bits := math.Float32bits(float16.Frombits(h).Float32())
	if d == BF16 {
		bits = (bits + 0x7fff + bits>>16&1) &^ 0xffff // to nearest, ties to even
	}
	if stored == F32 {
		binary.LittleEndian.PutUint32(dst, bits)
	} else {
		binary.LittleEndian.PutUint16(dst, uint16(bits>>16))
	}
}

// half is x rounded to F16, to nearest, ties to even.
func half(x float32) uint16 {
	if h, ok := quickHalf(x); ok {
		return h
	}
	return float16.Fromfloat32(x).Bits()
}

// quickHalf is half for numbers that are normal in F16: nearly all. It is small
// enough for a compiler to put where it is called, in the loop that takes the
// time.
func quickHalf(x float32) (uint16, bool) {
	const bias = 127 - 15 // difference of the exponents' biases
	bits := math.Float32bits(x)
	magnitude := bits&^(1<<31) - bias<<23
	return uint16(bits>>16&(1<<15) | (magnitude+0xfff+magnitude>>13&1)>>13), magnitude-1<<23 < 29<<23
}
