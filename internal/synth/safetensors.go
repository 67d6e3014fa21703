package synth

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"io"
)

const safetensorsName = "model.safetensors"

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

// writeSafetensors writes all tensors in the model's type: a number that GGUF
// stores as F32 is one that the narrower type holds as well.
func writeSafetensors(ctx context.Context, w io.Writer, tensors []tensor, seed uint64, d DType) error {
	header, err := safetensorsHeader(tensors, d)
	if err != nil {
		return err
	}
	if _, err := w.Write(header); err != nil {
		return err
	}
	for _, t := range tensors {
		if err := t.writeTo(ctx, w, seed, form{dtype: d, stored: d, hf: true}); err != nil {
			return err
		}
	}
	return nil
}
