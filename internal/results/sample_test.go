package results

import (
	"errors"
	"time"

	"github.com/nativebench/nativebench/internal/bench"
)

// sampleManifest is a whole manifest with every part filled.
func sampleManifest() *Manifest {
	sampling := bench.Sampling{Temperature: 0.9, TopP: 0.95, MaxTokens: 4, Seed: 1 << 30}
	cell := func(backend string, repeat int) Cell {
		load := "gpt2/chat/stream/c1"
		return Cell{
			ID: load + "/" + backend + "/r" + string(rune('0'+repeat)), Load: load, Backend: backend,
			Model: "gpt2", Task: "chat", Mode: "stream", Concurrency: 1, Repeat: repeat, Requests: 2,
			Sampling: sampling, Expect: [2]int{20, 100},
		}
	}
	return &Manifest{
		RunID:   "20260102-030405-gpt2",
		Created: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
		Command: []string{"nativebench", "compare", "--model", "gpt2", "--out", "runs/example"},
		Tool:    Tool{Version: "v1.0.0", Commit: "0123456789abcdef", GoVersion: "go1.26.0", CGO: true},
		Plan:    map[string]any{"models": []string{"gpt2"}, "tasks": []string{"chat"}, "seed": 1},
		Cells:   []Cell{cell("native", 0), cell("llama-server", 0), cell("llama-server", 1), cell("native", 1)},
		Environment: Environment{
			OS: "debian 12", Kernel: "6.1.0", CPU: "AMD EPYC 9654", Cores: 2, MemoryB: 8 << 30,
			Governor: "performance", LoadBefore: 0.02,
			Versions: map[string]string{"llama.cpp": "v0.5.0"},
			Warnings: []string{"2 usable cores"},
		},
		Clock:        Clock{Source: "CLOCK_MONOTONIC", UncertaintyNS: 20, WallNS: 1767323045000000000, MonotonicNS: 1000000000, BootID: "3f1c2a5e-0d4b-4c57-9a53-5b2f0e8d7c61"},
		Models:       []Model{{Key: "gpt2", HubID: "openai-community/gpt2", Path: "gpt2-synthetic-f16.gguf", SHA256: "9f86d081…", Bytes: 248_000_000, DType: "f16", Synthetic: true, Seed: 1, Tokenizer: "ggml-vocab-gpt-2.gguf"}},
		PromptCounts: []PromptCount{{Model: "gpt2", Vocabulary: "vocab/ggml-vocab-gpt-2.gguf", SHA256: "9f86d081…", Exact: true}},
		Backends: []Backend{{
			Info:    bench.Info{Backend: "llama-server", Engine: "llama.cpp", Version: "v0.5.0", Device: "CPU", Model: "gpt2", Weights: "gpt2-synthetic-f16.gguf", Synthetic: true, DType: "F16", Context: 1024, Slots: 1},
			Command: []string{"llama-server", "--port", "40123"}, Endpoint: "http://127.0.0.1:40123", Log: "logs/llama-server.log", StartNS: 812_000_000,
			Settings: &Settings{Slots: 1, Context: 1024, Threads: 2, BatchThreads: 2, Batch: 512, UBatch: 512, PrefillChunk: 512, GPULayers: -1, FlashAttn: "auto", CacheType: "f16"},
		}},
	}
}

// sampleTrace is a streamed answer of four tokens in Korean and English.
func sampleTrace() *bench.Trace {
	tr := bench.NewTrace(8)
	tr.Start, tr.Sent, tr.FirstByte, tr.FirstLine = 5_000_000_000, 5_000_050_000, 5_011_900_000, 5_011_950_000
	tr.Mark(5_012_000_000, 1)
	tr.Mark(5_018_500_000, 2)
	tr.Mark(5_025_100_000, 3)
	tr.Mark(5_031_400_000, 4)
	tr.End = 5_031_600_000
	tr.PromptTokens, tr.OutputTokens, tr.Counted, tr.Finish = 24, 4, bench.CountUsage, bench.FinishLength
	tr.Text = append(tr.Text, " 안녕, <you> & me"...)
	tr.Tokens = append(tr.Tokens, 31495, 11, 502, 0)
	tr.Events = 4
	tr.Coalesced = 1
	tr.Server = bench.Server{PromptTokens: 24, OutputTokens: 4, Prefill: 11_000_000, Decode: 19_000_000}
	tr.Phases = bench.Phases{Tokenize: 1, Queue: 2, Prefill: 3, Decode: 4, Sampling: 5, Detokenize: 6}
	tr.Warn(bench.WarnShort)
	return tr
}

func sampleRecord(cell string, attempt, index int) *Record {
	r := &Record{Cell: cell, Attempt: attempt, Index: index, Warmup: index < 0, Prompt: "chat-03", Seed: 1234567}
	r.Fill(sampleTrace(), nil)
	return r
}

func failedRecord(cell string, attempt, index int) *Record {
	r := &Record{Cell: cell, Attempt: attempt, Index: index, Prompt: "chat-04", Seed: 7654321}
	tr := bench.NewTrace(4)
	tr.Start, tr.End = 6_000_000_000, 6_000_200_000
	r.Fill(tr, bench.Fail(bench.Connect, "POST http://127.0.0.1:40123/completion: no connection: %w", errors.New("connection refused")))
	return r
}
