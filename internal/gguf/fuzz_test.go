package gguf

import (
	"bytes"
	"io"
	"strings"
	"testing"
)

// FuzzRead: whatever the bytes are, Read ends with one line or with a file
// whose tensors lie inside it and which survives being written and read again.
func FuzzRead(f *testing.F) {
	whole := write(f, sampleKV(), sampleTensors())
	f.Add(whole)
	for n := 0; n < len(whole); n += 61 {
		f.Add(whole[:n])
	}
	f.Add(header(2, 1, 1).put("a", uint32(9), uint32(8), uint64(1), "b", "t", uint32(1), uint64(8), uint32(0), uint64(0), make([]byte, 64)).Bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := Read(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("error of several lines: %q", err)
			}
			return
		}
		got.Summary()
		for _, tensor := range got.Tensors {
			start := got.DataOffset + tensor.Offset
			if tensor.Offset < 0 || start < 0 || start+tensor.Bytes() > int64(len(b)) {
				t.Fatalf("tensor %+v lies outside of %d bytes", tensor, len(b))
			}
			if len(tensor.Dims) == 0 {
				return // a scalar: readable, but not written
			}
		}
		var again bytes.Buffer
		i := 0
		err = Write(&again, got.KV, got.Tensors, func(tensor Tensor, w io.Writer) error {
			start := got.DataOffset + got.Tensors[i].Offset
			i++
			_, err := w.Write(b[start : start+tensor.Bytes()])
			return err
		})
		if err != nil {
			t.Fatalf("what was read is not writable: %v", err)
		}
		second, err := Read(bytes.NewReader(again.Bytes()), int64(again.Len()))
		if err != nil || len(second.KV) != len(got.KV) || len(second.Tensors) != len(got.Tensors) {
			t.Fatalf("written again, it reads as %+v, %v", second, err)
		}
	})
}
