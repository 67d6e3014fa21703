package synth

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
)

const (
	safetensorsName  = "model.safetensors"
	safetensorsIndex = "model.safetensors.index.json"
	mostShardBytes   = 5e9
)

// safetensorsHeader is the start of a safetensors file: the length of a JSON
// object in 8 little-endian bytes, then the object, which names each tensor's
// type, shape and bytes, padded with blanks to a multiple of 8
// (huggingface/safetensors, README "Format"). Data follows without gaps, in the
// order given.
func safetensorsHeader(tensors []tensor, d DType) ([]byte, error) {
	type row struct {
		DType   DType    `json:"dtype"`
		Shape   []int64  `json:"shape"`
		Offsets [2]int64 `json:"data_offsets"` // from the end of the header
	}
	// Transformers refuses a file without a format.
	object := map[string]any{"__metadata__": map[string]string{"format": "pt"}}
	at := int64(0)
	for _, t := range tensors {
		end := at + t.elements()*d.bytes()
		object[t.hf] = row{d, t.hfShape(), [2]int64{at, end}}
		at = end
	}
	text, err := json.Marshal(object)
	if err != nil {
		return nil, err
	}
	text = append(text, bytes.Repeat([]byte{' '}, -len(text)&7)...)
	return append(binary.LittleEndian.AppendUint64(nil, uint64(len(text))), text...), nil
}

// shards cuts the list where the next tensor would make a file larger than most
// bytes, as Transformers saves a model.
func shards(tensors []tensor, d DType, most int64) (list [][]tensor) {
	from, bytes := 0, int64(0)
	for i, t := range tensors {
		n := t.elements() * d.bytes()
		if bytes += n; bytes > most && i > from {
			list = append(list, tensors[from:i])
			from, bytes = i, n
		}
	}
	return append(list, tensors[from:])
}

// safetensors are the files of weights and, if they are several, the index that
// says which tensor is in which.
func (j *job) safetensors() (list []content, index []byte, err error) {
	all := shards(j.tensors, j.dtype, j.shardBytes)
	where := map[string]string{}
	for i, tensors := range all {
		name := safetensorsName
		if len(all) > 1 {
			name = fmt.Sprintf("model-%05d-of-%05d.safetensors", i+1, len(all))
		}
		header, err := safetensorsHeader(tensors, j.dtype)
		if err != nil {
			return nil, nil, err
		}
		size := int64(len(header))
		for _, t := range tensors {
			size += t.elements() * j.dtype.bytes()
			where[t.hf] = name
		}
		list = append(list, content{name, size, func(ctx context.Context, out io.Writer) error {
			if _, err := out.Write(header); err != nil {
				return err
			}
			for _, t := range tensors {
				// What GGUF stores as F32 is a number that the model's type holds too.
				if err := t.writeTo(ctx, out, j.seed, form{dtype: j.dtype, stored: j.dtype, hf: true}); err != nil {
					return err
				}
			}
			return nil
		}})
	}
	if len(all) > 1 {
		index, err = encodeJSON(object{"metadata": object{"total_size": j.params() * j.dtype.bytes()}, "weight_map": where})
	}
	return list, index, err
}
