package gguf

import (
	"fmt"
	"strings"
)

// valueType is gguf_type: how a metadata value is stored.
type valueType uint32

const (
	typeUint8 valueType = iota
	typeInt8
	typeUint16
	typeInt16
	typeUint32
	typeInt32
	typeFloat32
	typeBool
	typeString
	typeArray
	typeUint64
	typeInt64
	typeFloat64
)

// size is the number of bytes of a scalar; for a string, of its length.
func (t valueType) size() int64 {
	switch t {
	case typeUint8, typeInt8, typeBool:
		return 1
	case typeUint16, typeInt16:
		return 2
	case typeUint32, typeInt32, typeFloat32:
		return 4
	case typeUint64, typeInt64, typeFloat64, typeString:
		return 8
	}
	return 0
}

// typeName names a Go value's type as messages do.
func typeName(v any) string {
	return strings.Replace(fmt.Sprintf("%T", v), "[]", "an array of ", 1)
}

// TensorType is ggml_type: how a tensor's elements are stored.
type TensorType uint32

// The types that this program names; the reader knows all of ggml's.
const (
	F32  TensorType = 0
	F16  TensorType = 1
	Q8_0 TensorType = 8
	BF16 TensorType = 30
)

// typeInfo says how many elements a block holds and how many bytes it takes
// (ggml-common.h of llama.cpp v0.5.0).
type typeInfo struct {
	name         string
	block, bytes int64
}

func (t TensorType) info() (typeInfo, bool) {
	switch t {
	case F32:
		return typeInfo{"F32", 1, 4}, true
	case F16:
		return typeInfo{"F16", 1, 2}, true
	case 2:
		return typeInfo{"Q4_0", 32, 18}, true
	case 3:
		return typeInfo{"Q4_1", 32, 20}, true
	case 6:
		return typeInfo{"Q5_0", 32, 22}, true
	case 7:
		return typeInfo{"Q5_1", 32, 24}, true
	case 8:
		return typeInfo{"Q8_0", 32, 34}, true
	case 9:
		return typeInfo{"Q8_1", 32, 36}, true
	case 10:
		return typeInfo{"Q2_K", 256, 84}, true
	case 11:
		return typeInfo{"Q3_K", 256, 110}, true
	case 12:
		return typeInfo{"Q4_K", 256, 144}, true
	case 13:
		return typeInfo{"Q5_K", 256, 176}, true
	case 14:
		return typeInfo{"Q6_K", 256, 210}, true
	case 15:
		return typeInfo{"Q8_K", 256, 292}, true
	case 16:
		return typeInfo{"IQ2_XXS", 256, 66}, true
	case 17:
		return typeInfo{"IQ2_XS", 256, 74}, true
	case 18:
		return typeInfo{"IQ3_XXS", 256, 98}, true
	case 19:
		return typeInfo{"IQ1_S", 256, 50}, true
	case 20:
		return typeInfo{"IQ4_NL", 32, 18}, true
	case 21:
		return typeInfo{"IQ3_S", 256, 110}, true
	case 22:
		return typeInfo{"IQ2_S", 256, 82}, true
	case 23:
		return typeInfo{"IQ4_XS", 256, 136}, true
	case 24:
		return typeInfo{"I8", 1, 1}, true
	case 25:
		return typeInfo{"I16", 1, 2}, true
	case 26:
		return typeInfo{"I32", 1, 4}, true
	case 27:
		return typeInfo{"I64", 1, 8}, true
	case 28:
		return typeInfo{"F64", 1, 8}, true
	case 29:
		return typeInfo{"IQ1_M", 256, 56}, true
	case BF16:
		return typeInfo{"BF16", 1, 2}, true
	case 34:
		return typeInfo{"TQ1_0", 256, 54}, true
	case 35:
		return typeInfo{"TQ2_0", 256, 66}, true
	case 39:
		return typeInfo{"MXFP4", 32, 17}, true
	case 40:
		return typeInfo{"NVFP4", 64, 36}, true
	case 41:
		return typeInfo{"Q1_0", 128, 18}, true
	case 42:
		return typeInfo{"Q2_0", 64, 18}, true
	}
	return typeInfo{}, false
}

func (t TensorType) String() string {
	if i, ok := t.info(); ok {
		return i.name
	}
	return fmt.Sprintf("type %d", uint32(t))
}

// fileTypeName names general.file_type (llama_ftype in llama.h), "" for one
// that this program does not know.
func fileTypeName(n int64) string {
	names := map[int64]string{
		0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1",
		10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M", 13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M",
		16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S",
		22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M",
		28: "IQ2_S", 29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0",
		37: "TQ2_0", 38: "MXFP4_MOE", 39: "NVFP4", 40: "Q1_0", 41: "Q2_0",
	}
	return names[n]
}
