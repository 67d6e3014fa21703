// Package native is the in-process engine: llama.cpp behind the C ABI of
// csrc/nb.h, as a bench.Backend. It is the local baseline against which
// servers are held.
//
// The engine is a shared library, opened at run time, so that one nativebench
// serves machines with and without it (and with a CUDA plugin beside it or
// not). Built with CGO_ENABLED=0 the package compiles to a client-only stub
// whose every entry returns ErrLeftOut.
package native

import (
	"errors"
	"os"
	"path/filepath"
)

// ErrLeftOut says that this nativebench was built without cgo.
var ErrLeftOut = errors.New("native: this nativebench is client-only (built with CGO_ENABLED=0), the in-process engine was left out: use a build with cgo, or --backends without native")

// Library is the file name of the engine library in the engine directory.
const Library = "libnb.so"

// EnvDir names the environment variable that overrides DefaultDir.
const EnvDir = "NATIVEBENCH_ENGINE_DIR"

// Config says what to load and how to run it. Zero numbers mean the default
// named beside each.
type Config struct {
	Dir       string // engine directory; DefaultDir()
	ModelPath string // GGUF
	Model     string // name of the model in Info
	Synthetic bool   // the weights are random; told on in Info

	Slots        int    // requests at once; 1
	Context      int    // tokens per slot; the model's own
	Batch        int    // logical batch, tokens; 2048
	UBatch       int    // physical batch, tokens; 512
	PrefillChunk int    // prompt tokens between two decode steps; 512
	Threads      int    // decode; the usable cores
	BatchThreads int    // prefill; as Threads
	GPULayers    int    // -1: all; 0: none
	FlashAttn    string // auto, on, off; auto
	CacheType    string // f16, f32; f16
	Sampling     string // where tokens are chosen: auto (on the device, if it can), host, device; auto
}

// DefaultDir is where the engine library is looked for: $NATIVEBENCH_ENGINE_DIR,
// else the folder "engine" beside the executable (which `make` links to the
// build cache).
func DefaultDir() string {
	if dir := os.Getenv(EnvDir); dir != "" {
		return dir
	}
	exe, err := os.Executable()
	if err != nil {
		return "engine"
	}
	if real, err := filepath.EvalSymlinks(exe); err == nil {
		exe = real
	}
	return filepath.Join(filepath.Dir(exe), "engine")
}

// ErrNoDevice says that Calibrate has nothing to hold the stamps against.
var ErrNoDevice = errors.New("native: the model computes on the host, whose clock stamps its tokens")

// Calibration tells how far the stamps of tokens lie behind the end of the
// device's step that made them, and how fast the device's memory is.
type Calibration struct {
	Steps                     int
	LateP50, LateP99, LateMax int64 // ns from the device's end of a step to the host's stamp
	Uncertainty               int64 // ns, of each of them
	CopyRate                  int64 // bytes a second, read and written, of a copy within the device's memory; 0: not measured
}
