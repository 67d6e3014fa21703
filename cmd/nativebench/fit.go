package main

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/nativebench/nativebench/httpbackends"
	"github.com/nativebench/nativebench/internal/gguf"
	"github.com/nativebench/nativebench/internal/plan"
)

// room is memory that a model may be put into, in bytes.
type room struct {
	name string // "RAM", "CUDA0 (NVIDIA H200)"
	free int64
}

// graphics is the memory of the GPUs that CUDA programs find here.
type graphics struct {
	rooms  []room
	why    string // why there are none; "" if there are
	engine string // why the engine does not use them; "" if it does
}

func (g graphics) free() (n int64) {
	for _, r := range g.rooms {
		n += r.free
	}
	return n
}

// lookGraphics asks the driver how much of each GPU is free.
func lookGraphics(gpus gpuSet, engineDir string) graphics {
	g := graphics{why: gpus.why}
	if plugins, _ := filepath.Glob(filepath.Join(engineDir, "libggml-cuda*.so")); len(plugins) == 0 {
		g.engine = "the engine directory " + engineDir + " has no CUDA plugin"
	}
	for i, d := range gpus.used {
		used, err := gpus.lib.Used(d)
		if err != nil {
			return graphics{why: oneLine(err)}
		}
		if d.MemoryBytes <= 0 {
			return graphics{why: "not available: the driver does not tell the memory of " + d.Name}
		}
		g.rooms = append(g.rooms, room{fmt.Sprintf("%s (%s)", engineName(i), d.Name), d.MemoryBytes - used})
	}
	return g
}

// elementBytes is the size of a number in a KV cache.
func elementBytes(cacheType string) int64 {
	if cacheType == "f32" {
		return 4
	}
	return 2
}

// kvBytes is an engine's KV cache: keys and values of every layer for every
// token of every slot. It is exact.
func kvBytes(s gguf.Summary, slots, context int, cacheType string) int64 {
	return int64(slots) * int64(context) * s.KVPerToken * elementBytes(cacheType)
}

// computeBytes estimates llama.cpp's buffer for intermediate values, which it
// makes for the costliest moment of a physical batch: the scores of the
// vocabulary, the feed-forward's inner layer, or attention. Numbers per token of
// that batch, f32 each, fitted to v0.5.0's own account on a CPU of GPT-2, Phi-2,
// Llama and Mistral: not less than that, and at most 4 % more
// (TestFootprintAgainstTheEngine). Layers that attend to a window are taken for
// whole ones.
func computeBytes(s gguf.Summary, slots, context int, e plan.Engine) int64 {
	batch := int64(min(e.UBatch, slots*context))
	width, ctx, heads := int64(s.Width), int64(context), int64(s.Heads)
	kvWidth := int64(0) // of keys, and of values
	if s.Layers > 0 {
		kvWidth = s.KVPerToken / int64(s.Layers) / 2
	}
	scores := int64(s.Vocab) + 3*width + 1
	inner := 3*int64(s.FFN) + 4*width + 8
	if e.FlashAttn == "off" {
		inner += 2*kvWidth + ctx
		attention := (heads+1)*ctx + 5*width + 2*kvWidth + 5 // a score for each pair of tokens and head
		return 4 * batch * max(scores, inner, attention)
	}
	bytes := 4 * batch * max(scores, inner+ctx/2)
	attention := 4 * batch * (ctx/2 + 6*width + 7)
	if e.CacheType == "f32" {
		attention += 4 * int64(slots) * ctx * kvWidth // the whole layer's keys and values again, in f16
	}
	return max(bytes, attention)
}

// Estimates of what programs take besides a model.
const (
	processBytes = 64 << 20  // an engine's process
	pythonBytes  = 3 << 29   // a server in Python, with PyTorch
	cudaBytes    = 704 << 20 // on the GPU: of a CUDA program; an H100 took 518 MiB for the context and 165 more once it had computed
	torchBytes   = 2 << 30   // on the GPU: of PyTorch, with its workspaces
)

// bufferBytes is what an engine needs besides weights and cache.
func bufferBytes(s gguf.Summary, slots, context int, e plan.Engine) int64 {
	return processBytes + computeBytes(s, slots, context, e) + 4*int64(slots)*int64(s.Vocab) // the last: scores on the host
}

// largest is the largest of the numbers 0 to most that fit tells of, of which
// those from some number on do not; 0 is taken to.
func largest(most int, fit func(n int) bool) int {
	low, high := 0, most+1
	for high-low > 1 {
		if mid := (low + high) / 2; fit(mid) {
			low = mid
		} else {
			high = mid
		}
	}
	return low
}

// demand is what the backends of a run need at once, and how that adds up.
type demand struct {
	ram, gpu int64
	ramSum   string
	gpuSum   string
}

// demand of a model at so many slots of so many tokens. In RAM the engines of
// llama.cpp share the weights, mapped from one file; each has its own cache and
// buffers. Where there is a GPU one backend runs at a time, and its memory
// holds all of it.
func (s *setup) demand(m *model, slots, context int) demand {
	e := s.engine.Resolve(slots, context)
	python := len(s.wantDirectory())
	engines := len(s.holders()) - python
	if s.inTurn {
		engines, python = min(engines, 1), min(python, 1)
	}
	weights, params := m.weightBytes(), m.shape.Params
	kv, buffers := kvBytes(m.shape, slots, context, e.CacheType), bufferBytes(m.shape, slots, context, e)
	shape := fmt.Sprintf("KV cache %s = %d slots × %d tokens × %s", gib(kv), slots, context, kib(m.shape.KVPerToken*elementBytes(e.CacheType)))
	var d demand
	var ram, gpu []string
	offload := len(s.graphics.rooms) > 0 && s.graphics.engine == "" && e.GPULayers != 0
	if engines > 0 {
		if offload {
			share := 1.0
			if n := e.GPULayers; n > 0 && n <= m.shape.Layers {
				share = float64(n) / float64(m.shape.Layers+1)
			}
			onGPU := int64(share * float64(weights+kv))
			d.gpu = onGPU + buffers + cudaBytes
			gpu = append(gpu, fmt.Sprintf("weights %s, %s, buffers %s", gib(weights), shape, gib(buffers+cudaBytes)))
			if share < 1 {
				gpu = append(gpu, fmt.Sprintf("of weights and cache %d of %d layers are there", e.GPULayers, m.shape.Layers))
			}
			d.ram = weights + kv - onGPU + int64(engines)*processBytes
			ram = append(ram, fmt.Sprintf("what is not on the GPU of weights and cache %s, %d × process %s", gib(weights+kv-onGPU), engines, gib(processBytes)))
		} else {
			d.ram = weights + int64(engines)*(kv+buffers)
			ram = append(ram, fmt.Sprintf("weights %s, and for each of %d engines of llama.cpp: %s, and buffers %s", gib(weights), engines, shape, gib(buffers)))
		}
	}
	if python > 0 {
		if len(s.graphics.rooms) > 0 {
			each := 2*params + kvBytes(m.shape, slots, context, "f16") + torchBytes
			if each > d.gpu {
				d.gpu, gpu = each, []string{fmt.Sprintf("a server in Python: weights in 16 bits %s, KV cache %s, PyTorch %s", gib(2*params), gib(kvBytes(m.shape, slots, context, "f16")), gib(torchBytes))}
			}
			d.ram += pythonBytes
			ram = append(ram, fmt.Sprintf("a server in Python %s", gib(pythonBytes)))
		} else {
			// These compute in f32 on a CPU and share nothing: a copy of the weights
			// for each, PyTorch, and a cache of their own.
			cache := max(kvBytes(m.shape, slots, context, "f32"), 1<<30)
			each := 4*params + pythonBytes + cache
			d.ram += int64(python) * each
			ram = append(ram, fmt.Sprintf("for each of %d servers in Python: weights of 4 bytes %s, the program %s, KV cache %s", python, gib(4*params), gib(pythonBytes), gib(cache)))
		}
	}
	d.ramSum, d.gpuSum = strings.Join(ram, "; "), strings.Join(gpu, "; ")
	return d
}

// fits tells whether a demand is within what is free; what is not known, a
// number that is not positive, is enough.
func (s *setup) fits(d demand) bool {
	free := s.machine.Memory.AvailableBytes
	return (free <= 0 || d.ram <= free) && (len(s.graphics.rooms) == 0 || d.gpu <= s.graphics.free())
}

// checkMemory compares what the run will hold with what is free, and names the
// cell that asks for more, and what would fit.
func (s *setup) checkMemory() error {
	if s.yes {
		return nil
	}
	for _, key := range s.plan.Models {
		m := s.models[key]
		d := s.demand(m, s.slots(), m.context)
		if s.fits(d) {
			continue
		}
		what, need, free, sum := "memory", d.ram, s.machine.Memory.AvailableBytes, d.ramSum
		if len(s.graphics.rooms) > 0 && d.gpu > s.graphics.free() {
			what, need, free, sum = "GPU memory", d.gpu, s.graphics.free(), d.gpuSum
		}
		return refuse("%s cannot run: it needs about %s of %s (%s), but %s is free; %s; or free memory, or give --yes to try",
			s.costliest(key), gib(need), what, sum, gib(free), s.whatFits(m))
	}
	return nil
}

// costliest is the load of a model that asks for most memory: engines are made
// once for the most parallel requests and the longest prompt of all.
func (s *setup) costliest(key string) string {
	var most plan.Cell
	for _, c := range s.cells {
		if c.Model == key && (c.Concurrency > most.Concurrency || c.Concurrency == most.Concurrency && c.Prompt > most.Prompt) {
			most = c
		}
	}
	return most.Load()
}

// whatFits says what could be asked instead.
func (s *setup) whatFits(m *model) string {
	var ways []string
	if n := largest(s.slots(), func(n int) bool { return s.fits(s.demand(m, n, m.context)) }); n > 0 {
		way := fmt.Sprintf("--concurrency up to %d", n)
		if of := slices.DeleteFunc(slices.Clone(s.plan.Concurrency), func(c int) bool { return c > n }); len(of) > 0 {
			way += fmt.Sprintf(" (of those asked for: %s)", joined(of))
		}
		ways = append(ways, way)
	}
	// Tasks need the context they need.
	if s.plan.Engine.Context > 0 || s.plan.Sweep() || s.plan.PromptFile != "" {
		n := largest(m.context/contextStep, func(n int) bool { return s.fits(s.demand(m, s.slots(), n*contextStep)) })
		if n > 0 {
			ways = append(ways, fmt.Sprintf("%d parallel requests of up to %d tokens, prompt and output (--ctx, --prompt-tokens)", s.slots(), n*contextStep))
		}
	}
	if len(ways) == 0 {
		one := s.demand(m, 1, min(contextStep, m.context))
		return fmt.Sprintf("not even one request of %d tokens would fit, which needs %s: choose fewer --backends, smaller weights or a smaller model", min(contextStep, m.context), gib(max(one.ram, one.gpu)))
	}
	return "what would fit: " + strings.Join(ways, ", or ")
}

// wantDirectory are the holders that load a Hugging Face directory.
func (s *setup) wantDirectory() []backend {
	return slices.DeleteFunc(s.holders(), func(b backend) bool {
		return b.server == nil || b.server.Weights != httpbackends.HuggingFace
	})
}

func kib(bytes int64) string {
	if bytes < 1<<20 {
		return fmt.Sprintf("%.4g KiB", float64(bytes)/(1<<10))
	}
	return gib(bytes)
}
