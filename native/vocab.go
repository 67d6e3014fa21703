//go:build cgo && linux

package native

/*
#include <stdlib.h>
#include "load.h"
*/
import "C"

import "unsafe"

// Vocab is a model's tokenizer without its weights. Any goroutine may use it.
type Vocab struct {
	lib    library
	handle *C.nb_vocab
}

// OpenVocab reads the vocabulary of a GGUF file (whole model or vocabulary
// only) with the engine library in dir ("" means DefaultDir).
func OpenVocab(dir, gguf string) (*Vocab, error) {
	lib, err := load(dir)
	if err != nil {
		return nil, err
	}
	path := C.CString(gguf)
	defer C.free(unsafe.Pointer(path))
	msg := newMessage()
	defer msg.free()
	out := (**C.nb_vocab)(C.calloc(1, C.size_t(unsafe.Sizeof(uintptr(0)))))
	defer C.free(unsafe.Pointer(out))
	if err := msg.err(C.api_vocab_open(lib.api, path, out, msg.buf, errLen)); err != nil {
		return nil, err
	}
	return &Vocab{lib, *out}, nil
}

// Tokenize returns the ids of text, without BOS. Special tokens written in the
// text are parsed.
func (v *Vocab) Tokenize(text string) ([]int32, error) { return v.tokenize(text, false) }

// CountTokens returns how many tokens a backend counts for text as a prompt:
// BOS included where the tokenizer adds one.
func (v *Vocab) CountTokens(text string) (int, error) {
	ids, err := v.tokenize(text, true)
	return len(ids), err
}

func (v *Vocab) tokenize(text string, bos bool) ([]int32, error) {
	return tokenize(text, bos, func(t *C.char, n C.int64_t, flags C.uint32_t, ids *C.int32_t, room C.int32_t, count *C.int32_t, msg message) C.nb_status {
		return C.api_vocab_tokenize(v.lib.api, v.handle, t, n, flags, ids, room, count, msg.buf, errLen)
	})
}

// Piece returns the bytes of a token, "" for control tokens.
func (v *Vocab) Piece(id int32) (string, error) {
	msg := newMessage()
	defer msg.free()
	var n C.int32_t
	buf := make([]byte, 512)
	if err := msg.err(C.api_vocab_piece(v.lib.api, v.handle, C.int32_t(id), (*C.char)(unsafe.Pointer(&buf[0])), C.int32_t(len(buf)), &n, msg.buf, errLen)); err != nil {
		return "", err
	}
	return string(buf[:min(int(n), len(buf))]), nil
}

// Close frees the vocabulary.
func (v *Vocab) Close() error {
	if v.handle != nil {
		C.api_vocab_close(v.lib.api, v.handle)
		v.handle = nil
	}
	return nil
}

// tokenize runs call with a buffer that holds the ids of UTF-8: a token has at
// least one byte, besides BOS and a space that some tokenizers put in front. Of
// other text there may be more, since a space next to half a character becomes
// three bytes; then call is run again.
func tokenize(text string, bos bool, call func(text *C.char, n C.int64_t, flags C.uint32_t, ids *C.int32_t, room C.int32_t, count *C.int32_t, msg message) C.nb_status) ([]int32, error) {
	msg := newMessage()
	defer msg.free()
	ids := make([]C.int32_t, len(text)+8)
	flags := C.uint32_t(C.NB_REQ_SPECIAL)
	if bos {
		flags |= C.NB_REQ_ADD_BOS
	}
	var n C.int32_t
	t := (*C.char)(unsafe.Pointer(unsafe.StringData(text + "\x00")))
	for {
		if err := msg.err(call(t, C.int64_t(len(text)), flags, &ids[0], C.int32_t(len(ids)), &n, msg)); err != nil {
			return nil, err
		}
		if int(n) <= len(ids) {
			break
		}
		ids = make([]C.int32_t, n)
	}
	out := make([]int32, n)
	for i := range out {
		out[i] = int32(ids[i])
	}
	return out, nil
}
