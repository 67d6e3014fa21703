//go:build cgo && linux

package native

/*
#cgo CFLAGS: -std=c11 -O2 -Wall -Wextra
#cgo LDFLAGS: -ldl
#include <stdlib.h>
#include "load.h"
*/
import "C"

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"unsafe"
)

// The sizes are laid down here too: a change of nb.h that only one side saw is
// a compile error here, or a refusal when the library is opened.
var (
	_ = [1]struct{}{}[unsafe.Sizeof(C.nb_params{})-64]
	_ = [1]struct{}{}[unsafe.Sizeof(C.nb_info{})-752]
	_ = [1]struct{}{}[unsafe.Sizeof(C.nb_memory{})-88]
	_ = [1]struct{}{}[unsafe.Sizeof(C.nb_request{})-48]
	_ = [1]struct{}{}[unsafe.Sizeof(C.nb_token{})-16]
	_ = [1]struct{}{}[unsafe.Sizeof(C.nb_result{})-104]
	_ = [1]struct{}{}[unsafe.Sizeof(C.nb_progress{})-8]
	_ = [1]struct{}{}[unsafe.Sizeof(C.nb_stamps{})-48]
	_ = [1]struct{}{}[unsafe.Sizeof(C.nb_op{})-216]
	_ = [1]struct{}{}[unsafe.Sizeof(C.nb_ops{})-216]
)

// Build describes an engine library.
type Build struct {
	Engine     string // "llama.cpp v0.5.0"
	Build      string // compiler and flags
	SourceHash string // of csrc and the llama.cpp pin
}

// library is an opened engine library.
type library struct{ api *C.nb_api }

const errLen = 4096 // bytes of an error line from C

// load opens the engine library in dir ("" means DefaultDir) and checks that
// it was built from the sources this program was built with.
func load(dir string) (library, error) {
	if dir == "" {
		dir = DefaultDir()
	}
	path := filepath.Join(dir, Library)
	if _, err := os.Stat(path); err != nil {
		return library{}, fmt.Errorf("native: no engine library at %s: run `make engine` to build it, or set %s to its folder", path, EnvDir)
	}
	cpath := C.CString(path)
	defer C.free(unsafe.Pointer(cpath))
	msg := newMessage()
	defer msg.free()
	api := C.nb_load(cpath, msg.buf, errLen)
	if api == nil {
		return library{}, fmt.Errorf("native: cannot open %s: %s", path, msg)
	}
	want := [10]C.uint32_t{64, 752, 88, 48, 16, 104, 8, 48, 216, 216}
	for i, size := range want {
		if api.sizes[i] != size {
			return library{}, fmt.Errorf("native: %s was built from another nb.h (structure %d has %d bytes, not %d): run `make engine`", path, i, api.sizes[i], size)
		}
	}
	if got := C.GoString(api.source_hash); got != SourceHash {
		return library{}, fmt.Errorf("native: %s was built from other sources (%.12s, this program from %.12s): run `make engine`", path, got, SourceHash)
	}
	return library{api}, nil
}

// Available returns nil when the engine library in dir can be used, else why
// not and what to do.
func Available(dir string) error {
	_, err := load(dir)
	return err
}

// Begin loads the engine's plugins and makes a context on each GPU, as Open does
// first: what a GPU holds between the two is the context's. In a process that
// only tokenizes nothing touches a GPU.
func Begin(dir string) error {
	lib, err := load(dir)
	if err != nil {
		return err
	}
	path := C.CString(cmp.Or(dir, DefaultDir()))
	defer C.free(unsafe.Pointer(path))
	msg := newMessage()
	defer msg.free()
	return msg.err(C.api_begin(lib.api, path, msg.buf, errLen))
}

// Describe tells which engine lies in dir.
func Describe(dir string) (Build, error) {
	lib, err := load(dir)
	if err != nil {
		return Build{}, err
	}
	return Build{
		Engine:     C.GoString(lib.api.engine),
		Build:      C.GoString(lib.api.build),
		SourceHash: C.GoString(lib.api.source_hash),
	}, nil
}

// message is a line buffer for C's errors.
type message struct{ buf *C.char }

func newMessage() message        { return message{(*C.char)(C.calloc(1, errLen))} }
func (m message) free()          { C.free(unsafe.Pointer(m.buf)) }
func (m message) String() string { return C.GoString(m.buf) }

// statusError is an error of the engine with its status.
type statusError struct {
	status C.nb_status
	text   string
}

func (e *statusError) Error() string { return "native: " + e.text }

func statusOf(err error) C.nb_status {
	var s *statusError
	if errors.As(err, &s) {
		return s.status
	}
	return C.NB_INTERNAL
}

func (m message) err(s C.nb_status) error {
	if s == C.NB_OK {
		return nil
	}
	return &statusError{s, m.String()}
}
