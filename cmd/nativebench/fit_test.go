package main

import (
	"os"
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
// its real size; the others are relatives of two layers.
func TestFootprintAgainstTheEngine(t *testing.T) {
	engineDir := native.DefaultDir()
	if err := native.Available(engineDir); err != nil {
		t.Skip(err)
	}
	for _, key := range []string{"gpt2", "phi-2", "llama-2-7b-chat", "mistral-7b-instruct"} {
		spec := synth.Spec{Model: key, Seed: 1, VocabDir: filepath.Join(engineDir, "vocab")}
		if key != "gpt2" {
			spec.Layers, spec.Width = 2, 1280
			if m, err := plan.ModelByKey(key); err == nil && m.Arch == "llama" {
				spec.Width = 1024
			}
			spec.GGUFOnly = true
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
				{4, min(s.Context, 4096), 64, 64, "on", "f32"},
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
				if error < 0 || error > 0.04 {
					t.Errorf("%+v: buffers: the engine has %d bytes, we say %d: %+.1f %%", c, has["compute"], estimate, 100*error)
				}
			}
		})
	}
}

// models show tells of a model of the table what its file would tell, and of
// file and directory what they hold.
func TestModelsShow(t *testing.T) {
	for _, c := range []struct {
		args []string
		says []string
	}{
		{[]string{"gpt2"}, []string{"parameters     124439808", "F16 or BF16 239 MiB (250695168 bytes), F32 475 MiB (497759232 bytes), Q8_0 129 MiB (134883888 bytes)", "36 KiB a token in f16 (36864 bytes), 72 KiB in f32"}},
		{[]string{"llama-2-7b-chat"}, []string{"parameters     6738415616", "13477363712 bytes", "512 KiB a token in f16 (524288 bytes), 1 MiB in f32"}},
		{[]string{"mistral-7b-instruct", "--concurrency", "3,16"}, []string{"parameters     7241732096", "128 KiB a token in f16 (131072 bytes)", "\n               3   f16", "\n              16   f32"}},
		{[]string{"phi-2"}, []string{"parameters     2779683840", "320 KiB a token in f16 (327680 bytes)"}},
	} {
		code, stdout, stderr := invoke(t, append([]string{"models", "show"}, c.args...)...)
		if code != exitOK || stderr != "" {
			t.Errorf("%v: status %d: %s", c.args, code, stderr)
		}
		for _, part := range append(c.says, "\nRAM  ", "\nGPU  ", "\n               1   f16") {
			if hasGPU() && part == "\nGPU  " {
				continue
			}
			if !strings.Contains(stdout, part) {
				t.Errorf("%v: lacks %q:\n%s", c.args, part, stdout)
			}
		}
	}
	engineDir := native.DefaultDir()
	if _, err := os.Stat(filepath.Join(engineDir, "vocab")); err != nil {
		t.Skip(err)
	}
	made, err := synth.Write(t.Context(), synth.Spec{Model: "gpt2", Seed: 5, Layers: 2, Width: 128, VocabDir: filepath.Join(engineDir, "vocab")}, t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for path, what := range map[string]string{made.GGUF: "GGUF file ", made.HFDir: "Hugging Face directory "} {
		code, stdout, stderr := invoke(t, "models", "show", path)
		for _, part := range []string{"in             " + what + path, "2 layers of width 128, 2 heads, feed-forward 512, vocabulary 50257", "random weights of seed 5", "F16 14 MiB (14190848 bytes)", "1 KiB a token in f16"} {
			if code != exitOK || !strings.Contains(stdout, part) {
				t.Errorf("%s: status %d: %s%s\nlacks %q", path, code, stdout, stderr, part)
			}
		}
	}
}

// A context that is said to fit does, and the next longer one does not.
func TestFittingContext(t *testing.T) {
	s := gguf.Summary{Layers: 8, Width: 1024, Heads: 8, Vocab: 1000, FFN: 4096, Context: 4096, TensorBytes: 1 << 30, KVPerToken: 1 << 14}
	e := plan.Default().Engine
	need := func(slots, context int) int64 {
		return s.TensorBytes + kvBytes(s, slots, context, "f16") + bufferBytes(s, slots, context, e.Resolve(slots, context))
	}
	for _, c := range []struct {
		free int64
		want string
	}{
		{-1, "not known"},
		{need(4, 4096), "4096 (all)"},
		{need(4, 4096) - 1, "3840"},
		{need(4, 512), "512"},
		{need(4, 256), "256"},
		{need(4, 256) - 1, "none: 256 tokens need 1.1 GiB"},
	} {
		if got := fittingContext(s, 4, "f16", room{"RAM", c.free}); got != c.want {
			t.Errorf("%d bytes: %q, want %q", c.free, got, c.want)
		}
	}
	if got := fittingContext(s, 4, "f16", room{"CUDA0", need(4, 512)}); got == "512" {
		t.Error("what CUDA itself takes was left out")
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
			[]string{"gpt2/chat/sync/c8 cannot run: it needs about 1.7 GiB of memory (weights 1.0 GiB, and for each of 2 engines of llama.cpp: KV cache 256 MiB = 8 slots × 1024 tokens × 32 KiB, and buffers ", ", but 1.5 GiB is free; what would fit: --concurrency up to 4 (of those asked for: 1); or"},
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
			[]int64{31 << 26},
			[]string{"it needs about 2.0 GiB of GPU memory (weights 1.0 GiB, KV cache 256 MiB = 8 slots × 1024 tokens × 32 KiB, buffers ", "but 1.9 GiB is free; what would fit: --concurrency up to "},
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
