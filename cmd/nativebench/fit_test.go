package main

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/nativebench/nativebench/internal/gguf"
	"github.com/nativebench/nativebench/internal/plan"
	"github.com/nativebench/nativebench/internal/results"
	"github.com/nativebench/nativebench/internal/synth"
	"github.com/nativebench/nativebench/internal/telemetry"
	"github.com/nativebench/nativebench/native"
)

// What we say that a model takes is what the engine says that it took: weights
// and KV cache to the byte, its buffers never less and not much more. GPT-2 has
// its real size; the others are relatives of one layer.
func TestFootprintAgainstTheEngine(t *testing.T) {
	engineDir := native.DefaultDir()
	if err := native.Available(engineDir); err != nil {
		t.Skip(err)
	}
	for _, key := range synth.Models() {
		spec := synth.Spec{Model: key, Seed: 1, VocabDir: filepath.Join(engineDir, "vocab")}
		if key != "gpt2" {
			spec.Layers, spec.Width = 1, 1280
			if m, err := plan.ModelByKey(key); err == nil && m.Arch == "llama" {
				spec.Width = 1024
			}
		}
		t.Run(key, func(t *testing.T) {
			made, err := synth.Write(t.Context(), spec, t.TempDir(), nil)
			if err != nil {
				t.Fatal(err)
			}
			f, err := gguf.ReadFile(made.GGUF)
			if err != nil {
				t.Fatal(err)
			}
			s, err := f.Summary()
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range []struct {
				slots, context, batch, ubatch int
				flash, cache                  string
			}{
				{1, 256, 512, 512, "auto", "f16"},
				{1, 1024, 512, 512, "auto", "f16"},
				{1, 1024, 512, 128, "off", "f16"},
				{4, 1024, 512, 512, "on", "f32"},
				{4, 512, 512, 64, "auto", "f32"},
				{1, min(s.Context, 8192), 512, 512, "off", "f16"},
				{2, min(s.Context, 8192), 512, 512, "auto", "f16"},
			} {
				e := plan.Engine{Batch: c.batch, UBatch: c.ubatch, PrefillChunk: c.batch, FlashAttn: c.flash, CacheType: c.cache, Threads: 1, BatchThreads: 1}.Resolve(c.slots, c.context)
				engine, err := native.Open(t.Context(), native.Config{
					Dir: engineDir, ModelPath: made.GGUF, Slots: c.slots, Context: c.context, Batch: e.Batch, UBatch: e.UBatch, PrefillChunk: e.PrefillChunk,
					Threads: 1, BatchThreads: 1, FlashAttn: c.flash, CacheType: c.cache,
				}, nil)
				if err != nil {
					t.Fatal(err)
				}
				has := map[string]int64{}
				for _, part := range engine.Memory() {
					has[part.Part] += part.Bytes
				}
				if err := engine.Close(); err != nil {
					t.Fatal(err)
				}
				if has["weights"] != s.TensorBytes {
					t.Errorf("%+v: weights: the engine has %d bytes, we say %d", c, has["weights"], s.TensorBytes)
				}
				if kv := kvBytes(s, c.slots, c.context, c.cache); has["kv"] != kv {
					t.Errorf("%+v: KV cache: the engine has %d bytes, we say %d", c, has["kv"], kv)
				}
				estimate := computeBytes(s, c.slots, c.context, e)
				error := float64(estimate)/float64(has["compute"]) - 1
				t.Logf("%+v: buffers: the engine has %d bytes, we say %d: %+.1f %%", c, has["compute"], estimate, 100*error)
				if error < 0 || error > 0.35 {
					t.Errorf("%+v: buffers: the engine has %d bytes, we say %d: %+.1f %%", c, has["compute"], estimate, 100*error)
				}
			}
		})
	}
}

// fitting is a setup of one model of known size: 1 GiB of weights, 32 KiB of
// KV cache a token.
func fitting(free int64, gpus ...int64) (*setup, *model) {
	p := plan.Default()
	p.Models, p.Backends, p.Concurrency = []string{"gpt2"}, []string{"native", "llama-server"}, []int{1, 8}
	s := &setup{known: backends(), plan: p, machine: telemetry.Machine{Cores: 2, Memory: telemetry.Memory{AvailableBytes: free}}, graphics: graphics{why: "none"}}
	for _, bytes := range gpus {
		s.graphics = graphics{rooms: append(s.graphics.rooms, room{"CUDA0", bytes})}
	}
	s.resolveThreads()
	m := &model{
		context: 1024, file: results.Model{Key: "gpt2"},
		shape: gguf.Summary{Layers: 8, Width: 1024, Heads: 8, Vocab: 1000, FFN: 4096, Context: 1024, Params: 1 << 29, TensorBytes: 1 << 30, KVPerToken: 1 << 14},
	}
	m.Model, _ = plan.ModelByKey("gpt2")
	s.models = map[string]*model{"gpt2": m}
	s.cells, _ = p.Cells()
	return s, m
}

func TestWhatDoesNotFitIsNamed(t *testing.T) {
	// Weights once, and per engine 256 MiB of cache and about 100 MiB beside.
	for _, c := range []struct {
		name   string
		change func(s *setup)
		free   int64
		gpus   []int64
		says   []string // nothing: it fits
	}{
		{"enough", nil, 2 << 30, nil, nil},
		{"not known", nil, -1, nil, nil},
		{
			"RAM", nil, 3 << 29, nil,
			[]string{"gpt2/chat/sync/c8 cannot run: it needs about 1.7 GiB of memory (weights 1.0 GiB, and for each of 2 engines of llama.cpp: KV cache 256 MiB = 8 slots × 1024 tokens × 32 KiB, and buffers ", ", but 1.5 GiB is free; what would fit: --concurrency up to 5 (of those asked for: 1); or"},
		},
		{"weights alone", nil, 1 << 30, nil, []string{"not even one request of 256 tokens would fit, which needs 1."}},
		{
			"a context was asked for", func(s *setup) { s.plan.Engine.Context = 1024 }, 3 << 29, nil,
			[]string{"or 8 parallel requests of up to 512 tokens, prompt and output (--ctx, --prompt-tokens)"},
		},
		{"GPU has room", nil, 1 << 30, []int64{3 << 30}, nil},
		{"two GPUs have room together", nil, 1 << 30, []int64{3 << 29, 3 << 29}, nil},
		{
			"GPU", nil, 64 << 30,
			[]int64{7 << 28},
			[]string{"it needs about 1.8 GiB of GPU memory (weights 1.0 GiB, KV cache 256 MiB = 8 slots × 1024 tokens × 32 KiB, buffers ", "but 1.8 GiB is free; what would fit: --concurrency up to "},
		},
		{"layers left on the CPU", func(s *setup) { s.engine.GPULayers = 4 }, 64 << 30, []int64{7 << 28}, nil},
		{"a GPU that is not used", func(s *setup) { s.engine.GPULayers = 0 }, 64 << 30, []int64{1 << 20}, nil},
		{
			"a server in Python", func(s *setup) { s.plan.Backends = []string{"native", "vllm"} }, 4 << 30, nil,
			[]string{"for each of 1 servers in Python: weights of 4 bytes 2.0 GiB, the program 1.5 GiB, KV cache 1.0 GiB"},
		},
		{"the user insists", func(s *setup) { s.yes = true }, 1, nil, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, _ := fitting(c.free, c.gpus...)
			if c.change != nil {
				c.change(s)
			}
			err := s.checkMemory()
			if err == nil {
				if len(c.says) > 0 {
					t.Error("it was not refused")
				}
				return
			}
			if len(c.says) == 0 || strings.Contains(err.Error(), "\n") {
				t.Error(err)
			}
			for _, part := range c.says {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("%v\nlacks %q", err, part)
				}
			}
		})
	}
}

// What is said to fit does, and one more does not.
func TestWhatFitsIsTheMost(t *testing.T) {
	for free := int64(3) << 29; free < 2<<30; free += 50 << 20 {
		s, m := fitting(free)
		n := largest(s.slots(), func(n int) bool { return s.fits(s.demand(m, n, m.context)) })
		if n > 0 && !s.fits(s.demand(m, n, m.context)) || n < s.slots() && s.fits(s.demand(m, n+1, m.context)) {
			t.Errorf("%d bytes free: %d", free, n)
		}
	}
}
