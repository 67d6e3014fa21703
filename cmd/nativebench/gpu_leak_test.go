//go:build cgo

package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/nativebench/nativebench/internal/bench"
	"github.com/nativebench/nativebench/internal/synth"
	"github.com/nativebench/nativebench/internal/telemetry/nvml"
	"github.com/nativebench/nativebench/native"
)

// Settings of the tests that need a real NVIDIA GPU and an engine with its
// plugin. The model is a small relative of GPT-2 where none is named.
const (
	onGPU    = "NATIVEBENCH_TEST_GPU"
	gpuModel = "NATIVEBENCH_TEST_MODEL"
)

// TestGPUMemoryComesBack loads a model, makes tokens with it and releases it 200
// times in one process: what the device has in use afterwards must settle. The
// first cycles make what stays with a process, its CUDA context above all.
func TestGPUMemoryComesBack(t *testing.T) {
	if os.Getenv(onGPU) == "" || os.Getenv(native.EnvDir) == "" {
		t.Skipf("%s and %s are not both set: it needs a machine with an NVIDIA GPU and an engine built for it", onGPU, native.EnvDir)
	}
	const cycles, settled = 200, 20
	lib, err := nvml.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer lib.Close()
	devices, _ := lib.Visible()
	if len(devices) == 0 {
		t.Fatal("CUDA programs find no GPU")
	}
	path := os.Getenv(gpuModel)
	if path == "" {
		res, err := synth.Write(t.Context(), synth.Spec{
			Model: "gpt2", Seed: 1, Layers: 2, Width: 128, VocabPath: filepath.Join(os.Getenv(native.EnvDir), "vocab", "ggml-vocab-gpt-2.gguf"),
		}, t.TempDir(), nil)
		if err != nil {
			t.Fatal(err)
		}
		path = res.GGUF
	}
	used := func() (sum int64) {
		for _, d := range devices {
			n, err := lib.Used(d)
			if err != nil {
				t.Fatal(err)
			}
			sum += n
		}
		return sum
	}
	before := used()
	after := make([]int64, cycles)
	most := int64(0)
	for i := range after {
		e, err := native.Open(t.Context(), native.Config{ModelPath: path, Model: "gpt2", Synthetic: true, Context: 512, GPULayers: -1}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			t.Logf("%s; %+v", e.Info().Device, e.Memory())
		}
		s, err := e.NewSession(bench.Limits{PromptBytes: 64, PromptTokens: 64, OutputTokens: 8})
		if err != nil {
			t.Fatal(err)
		}
		req := &bench.Request{Prompt: "Hello there", Stream: true, Sampling: bench.Sampling{Temperature: 1, TopP: 0.9, MaxTokens: 8, Seed: uint64(i + 1), IgnoreEOS: true}}
		if err := s.Prepare(req); err != nil {
			t.Fatal(err)
		}
		if err := s.Generate(t.Context(), bench.NewTrace(8)); err != nil {
			t.Fatal(err)
		}
		most = max(most, used())
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
		after[i] = used()
	}
	t.Logf("in use before: %.1f MiB; loaded, at most: %.1f; after cycle 1: %.1f, %d: %.1f, %d: %.1f",
		mb(before), mb(most), mb(after[0]), settled, mb(after[settled-1]), cycles, mb(after[cycles-1]))
	if most <= before {
		t.Fatalf("the model took no GPU memory: %.1f MiB before and while loaded", mb(before))
	}
	if grown := after[cycles-1] - after[settled-1]; grown > 4<<20 {
		t.Errorf("%.1f MiB more are in use after cycle %d than after cycle %d: not all is given back", mb(grown), cycles, settled)
	}
}

func mb(bytes int64) float64 { return float64(bytes) / (1 << 20) }
