//go:build cgo && linux

package native

/*
#include <stdlib.h>
#include "load.h"
*/
import "C"

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"time"
	"unsafe"

	"github.com/nativebench/nativebench/internal/bench"
)

// Engine is a loaded model with its slots; a bench.Backend. Each session takes
// one slot, and all slots are stepped in one batch.
type Engine struct {
	lib    library
	handle *C.nb_engine
	info   bench.Info
	dir    string // of the library
	addBOS bool
	vocab  int // number of token ids

	choosesOnDevice bool // tokens

	mu   sync.Mutex
	free []int // slots without a session
}

var (
	_ bench.Backend = (*Engine)(nil)
	_ bench.Batched = (*Engine)(nil)
)

// Open loads cfg.ModelPath. progress, if not nil, is called from Open's
// goroutine with the loaded fraction (0 to 1) a few times a second. Cancelling
// ctx gives the load up.
func Open(ctx context.Context, cfg Config, progress func(fraction float64)) (*Engine, error) {
	lib, err := load(cfg.Dir)
	if err != nil {
		return nil, err
	}
	params, release, err := cfg.params()
	if err != nil {
		return nil, err
	}
	defer release()

	pr := (*C.nb_progress)(C.calloc(1, C.sizeof_nb_progress))
	defer C.free(unsafe.Pointer(pr))
	msg := newMessage()
	defer msg.free()
	out := (**C.nb_engine)(C.calloc(1, C.size_t(unsafe.Sizeof(uintptr(0)))))
	defer C.free(unsafe.Pointer(out))

	// The load blocks a thread; another goroutine watches ctx and reports. It
	// is joined before pr is freed.
	done := make(chan struct{})
	var status C.nb_status
	go func() {
		defer close(done)
		status = C.api_open(lib.api, params, pr, out, msg.buf, errLen)
	}()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for waiting := true; waiting; {
		select {
		case <-done:
			waiting = false
		case <-ctx.Done():
			pr.cancel = 1
			<-done
			waiting = false
		case <-tick.C:
			if progress != nil {
				progress(float64(pr.permille) / 1000)
			}
		}
	}
	if status != C.NB_OK {
		if ctx.Err() != nil {
			return nil, fmt.Errorf("native: loading %s was given up: %w", cfg.ModelPath, context.Cause(ctx))
		}
		return nil, msg.err(status)
	}
	if progress != nil {
		progress(1)
	}
	e := &Engine{lib: lib, handle: *out, dir: cfg.Dir}
	if err := e.describe(cfg); err != nil {
		e.Close()
		return nil, err
	}
	for slot := e.info.Slots - 1; slot >= 0; slot-- {
		e.free = append(e.free, slot)
	}
	return e, nil
}

// params turns the configuration into C memory; release frees it.
func (cfg Config) params() (*C.nb_params, func(), error) {
	flash := map[string]C.int32_t{"": C.NB_FA_AUTO, "auto": C.NB_FA_AUTO, "on": C.NB_FA_ON, "off": C.NB_FA_OFF}
	kv := map[string]C.int32_t{"": C.NB_KV_F16, "f16": C.NB_KV_F16, "f32": C.NB_KV_F32}
	fa, ok := flash[cfg.FlashAttn]
	if !ok {
		return nil, nil, fmt.Errorf("native: flash attention %q is not one of auto, on, off", cfg.FlashAttn)
	}
	where := map[string]C.int32_t{"": C.NB_SAMPLE_AUTO, "auto": C.NB_SAMPLE_AUTO, "host": C.NB_SAMPLE_HOST, "device": C.NB_SAMPLE_DEVICE}
	sampling, ok := where[cfg.Sampling]
	if !ok {
		return nil, nil, fmt.Errorf("native: sampling on the %q is not one of auto, host, device", cfg.Sampling)
	}
	see := map[string]C.int32_t{"": C.NB_WATCH_NOTHING, "steps": C.NB_WATCH_STEPS, "ops": C.NB_WATCH_OPS}
	watch, ok := see[cfg.Watch]
	if !ok {
		return nil, nil, fmt.Errorf("native: watching %q is not one of steps, ops", cfg.Watch)
	}
	cache, ok := kv[cfg.CacheType]
	if !ok {
		return nil, nil, fmt.Errorf("native: KV cache type %q is not one of f16, f32", cfg.CacheType)
	}
	if _, err := os.Stat(cfg.ModelPath); err != nil && !strings.HasPrefix(cfg.ModelPath, fakePrefix) {
		return nil, nil, fmt.Errorf("native: no model file: %w", err)
	}
	dir := cmp.Or(cfg.Dir, DefaultDir())
	threads := cmp.Or(cfg.Threads, runtime.NumCPU())
	batch := cmp.Or(cfg.Batch, 2048)
	p := (*C.nb_params)(C.calloc(1, C.sizeof_nb_params))
	p.model_path = C.CString(cfg.ModelPath)
	p.plugin_dir = C.CString(dir)
	p.n_slots = C.int32_t(cmp.Or(cfg.Slots, 1))
	p.n_ctx_slot = C.int32_t(cfg.Context)
	p.n_batch = C.int32_t(batch)
	p.n_ubatch = C.int32_t(cmp.Or(cfg.UBatch, min(512, batch)))
	p.prefill_chunk = C.int32_t(cmp.Or(cfg.PrefillChunk, min(512, batch)))
	p.n_threads = C.int32_t(threads)
	p.n_threads_batch = C.int32_t(cmp.Or(cfg.BatchThreads, threads))
	p.n_gpu_layers = C.int32_t(cfg.GPULayers)
	p.flash_attn = fa
	p.kv_type = cache
	p.sampling = sampling
	p.watch = watch
	return p, func() {
		C.free(unsafe.Pointer(p.model_path))
		C.free(unsafe.Pointer(p.plugin_dir))
		C.free(unsafe.Pointer(p))
	}, nil
}

// fakePrefix marks the "paths" that the fake engine takes as instructions.
const fakePrefix = "fake:"

func (e *Engine) describe(cfg Config) error {
	msg := newMessage()
	defer msg.free()
	var in C.nb_info
	if err := msg.err(C.api_info(e.lib.api, e.handle, &in, msg.buf, errLen)); err != nil {
		return err
	}
	e.addBOS, e.vocab = in.add_bos != 0, int(in.n_vocab)
	e.choosesOnDevice = C.GoString(&in.sampling[0]) == "on the device"
	e.info = bench.Info{
		Backend: "native",
		Engine:  "llama.cpp",
		Version: strings.TrimPrefix(C.GoString(e.lib.api.engine), "llama.cpp "),
		Build: fmt.Sprintf("%s; threads %d/%d, batch %d/%d, shim %.12s", C.GoString(e.lib.api.build),
			in.n_threads, in.n_threads_batch, in.n_batch, in.n_ubatch, C.GoString(e.lib.api.source_hash)),
		Device:    C.GoString(&in.device[0]),
		Model:     cmp.Or(cfg.Model, C.GoString(&in.desc[0])),
		Weights:   cfg.ModelPath,
		Synthetic: cfg.Synthetic,
		DType:     C.GoString(&in.ftype[0]),
		Params:    int64(in.n_params),
		Context:   int(in.n_ctx_slot),
		Slots:     int(in.n_slots),
		Memory:    e.Memory(),
		Notes: []string{
			"native: tokens are chosen " + C.GoString(&in.sampling[0]),
			"native: token stamps are taken in C when the token's id is on the host; a seeded run repeats exactly when requests run alone; beside other slots batches have other shapes and sums may round differently",
		},
	}
	return nil
}

// Info describes the engine, its model and its memory.
func (e *Engine) Info() bench.Info { return e.info }

// Passes tells how often the engine has read all weights for its batches since it
// was opened, and how many rows it computed in those passes for nobody, so that
// they are fewer (decision 0014). Both are 0 where tokens are chosen on the host:
// llama.cpp then divides the batches itself. Any goroutine may call it.
func (e *Engine) Passes() (passes, filled int64) {
	msg := newMessage()
	defer msg.free()
	var in C.nb_info
	if C.api_info(e.lib.api, e.handle, &in, msg.buf, errLen) != C.NB_OK {
		return 0, 0
	}
	return int64(in.n_passes), int64(in.n_filled)
}

// Vocab opens the vocabulary of the engine's model.
func (e *Engine) Vocab() (*Vocab, error) { return OpenVocab(e.dir, e.info.Weights) }

// Memory returns the engine's own account of its memory by device and part.
func (e *Engine) Memory() []bench.MemoryPart {
	const most = 32
	rows := (*[most]C.nb_memory)(C.calloc(most, C.sizeof_nb_memory))
	defer C.free(unsafe.Pointer(rows))
	msg := newMessage()
	defer msg.free()
	var n C.int32_t
	if C.api_memory(e.lib.api, e.handle, &rows[0], most, &n, msg.buf, errLen) != C.NB_OK {
		return nil
	}
	var parts []bench.MemoryPart
	for _, r := range rows[:min(int(n), most)] {
		device := C.GoString(&r.device[0])
		parts = append(parts,
			bench.MemoryPart{Device: device, Part: "weights", Bytes: int64(r.weights)},
			bench.MemoryPart{Device: device, Part: "kv", Bytes: int64(r.kv)},
			bench.MemoryPart{Device: device, Part: "compute", Bytes: int64(r.compute)})
	}
	return parts
}

// CountTokens returns the number of prompt tokens of text, BOS included where
// the model's tokenizer adds one. Any goroutine may call it.
func (e *Engine) CountTokens(text string) (int, error) {
	ids, err := e.Tokenize(text)
	return len(ids), err
}

// Tokenize returns the ids that a request with this prompt has: BOS included
// where the model's tokenizer adds one, special tokens in the text parsed. Any
// goroutine may call it.
func (e *Engine) Tokenize(text string) ([]int32, error) {
	return tokenize(text, e.addBOS, func(t *C.char, n C.int64_t, flags C.uint32_t, ids *C.int32_t, room C.int32_t, count *C.int32_t, msg message) C.nb_status {
		return C.api_tokenize(e.lib.api, e.handle, t, n, flags, ids, room, count, msg.buf, errLen)
	})
}

// Close cancels what runs and frees the model. Sessions must be closed before.
func (e *Engine) Close() error {
	if e.handle != nil {
		C.api_close(e.lib.api, e.handle)
		e.handle = nil
	}
	return nil
}
