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
	Watch        string // for Ops: "", steps, or ops, which computes operations one at a time and is far slower
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

// Op is an operation of a model's graph, summed over the steps in which it was
// watched. Bytes are of the elements of its tensors, each tensor once; what
// caches save is not known.
type Op struct {
	Op      string // ggml's name: MUL_MAT
	Name    string // of the tensor that it makes: Qcur-3
	Weight  string // tensor of the model's file that it reads: blk.3.attn_q.weight; "": none
	Device  string // CPU, CUDA0, …
	Count   int
	NS      int64 // launched alone and awaited
	Read    int64 // bytes
	Written int64 // bytes
	Weights int64 // of Read: of the model's file
	FLOPs   int64 // of products: 2 for a multiplication and an addition; 0: it has none
}

// Steps is what was watched of one kind of step, prefill or decode, summed over
// the faster half of those seen: what else the machine did is in the others.
type Steps struct {
	Seen     int
	Steps    int   // of these summed
	Tokens   int64 // in their batches
	NS       int64 // from the batch to its results on the host
	SampleNS int64 // choosing tokens: on the device within NS (known with Config.Watch ops); on the host after it, as in the fastest run
	OnDevice bool  // where tokens were chosen
	Ops      []Op  // with Config.Watch ops, in the order of the graph
}

// Watched is what an engine opened with Config.Watch saw.
type Watched struct {
	Prefill, Decode Steps
	// With Watch ops, of the device that did most of the work:
	EmptyNS    int64  // an operation on one number, launched alone and awaited, the fastest of many
	MemoryRate int64  // bytes a second; 0: not known
	Memory     string // how that was measured
	FLOPRate   int64  // a second; 0: not known
	Product    string // how that was measured
}

// Work is raw work for the engine, for comparing it with llama-bench and
// llama-batched-bench: random prompt tokens, no tokenizer, EOS ignored.
type Work struct {
	PromptTokens int // per slot, >= 1
	OutputTokens int // per slot; at least 2 to time decoding
	Slots        int
	Sample       bool // with temperature and top-p; else no sampler at all
	Temperature  float64
	TopP         float64
}
