package plan_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nativebench/nativebench/internal/bench"
	"github.com/nativebench/nativebench/internal/plan"
)

func cells(t *testing.T, p plan.Plan) []plan.Cell {
	t.Helper()
	cells, err := p.Cells()
	if err != nil {
		t.Fatal(err)
	}
	return cells
}

func TestDefaultPlan(t *testing.T) {
	p := plan.Default()
	if err := p.Validate("native", "llama-server", "vllm"); err != nil {
		t.Fatal(err)
	}
	got := cells(t, p)
	if want := 1 * 4 * 2 * 2 * 1 * p.Repeats; len(got) != want {
		t.Errorf("%d cells, want %d", len(got), want)
	}
	if notes := p.Notes(); len(notes) > 0 {
		t.Errorf("the default plan needs no notes: %q", notes)
	}
}

func TestCellsOrderAndNames(t *testing.T) {
	p := plan.Default()
	p.Models = []string{"gpt2", "phi-2"}
	p.Tasks = []string{"qa", "chat"}
	p.Backends = []string{"native", "vllm"}
	p.Modes = []plan.Mode{plan.Stream}
	p.Concurrency = []int{1, 4}
	p.Repeats = 2
	var got []string
	for _, c := range cells(t, p) {
		got = append(got, c.ID())
	}
	want := []string{
		"gpt2/qa/stream/c1/native/r0", "gpt2/qa/stream/c1/vllm/r0",
		"gpt2/qa/stream/c4/vllm/r0", "gpt2/qa/stream/c4/native/r0",
		"gpt2/chat/stream/c1/native/r0", "gpt2/chat/stream/c1/vllm/r0",
		"gpt2/chat/stream/c4/vllm/r0", "gpt2/chat/stream/c4/native/r0",
		"phi-2/qa/stream/c1/native/r0", "phi-2/qa/stream/c1/vllm/r0",
		"phi-2/qa/stream/c4/vllm/r0", "phi-2/qa/stream/c4/native/r0",
		"phi-2/chat/stream/c1/native/r0", "phi-2/chat/stream/c1/vllm/r0",
		"phi-2/chat/stream/c4/vllm/r0", "phi-2/chat/stream/c4/native/r0",
		"gpt2/qa/stream/c1/vllm/r1", "gpt2/qa/stream/c1/native/r1",
		"gpt2/qa/stream/c4/native/r1", "gpt2/qa/stream/c4/vllm/r1",
		"gpt2/chat/stream/c1/vllm/r1", "gpt2/chat/stream/c1/native/r1",
		"gpt2/chat/stream/c4/native/r1", "gpt2/chat/stream/c4/vllm/r1",
		"phi-2/qa/stream/c1/vllm/r1", "phi-2/qa/stream/c1/native/r1",
		"phi-2/qa/stream/c4/native/r1", "phi-2/qa/stream/c4/vllm/r1",
		"phi-2/chat/stream/c1/vllm/r1", "phi-2/chat/stream/c1/native/r1",
		"phi-2/chat/stream/c4/native/r1", "phi-2/chat/stream/c4/vllm/r1",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestCellIDsAreUnique(t *testing.T) {
	p := plan.Default()
	p.Models = []string{"gpt2", "phi-2", "llama-2-7b-chat", "mistral-7b-instruct"}
	p.Concurrency = []int{1, 4, 16}
	sweep := p
	sweep.PromptTokens = []int{32, 64, 4096, 8192}
	for _, p := range []plan.Plan{p, sweep} {
		seen := map[string]bool{}
		for _, c := range cells(t, p) {
			if seen[c.ID()] {
				t.Errorf("two cells are %s", c.ID())
			}
			seen[c.ID()] = true
		}
	}
}

// Each backend goes first equally often, to within one, over the plan and over
// the repeats of each load.
func TestRotationIsFair(t *testing.T) {
	for backends := 1; backends <= 5; backends++ {
		for loads := 1; loads <= 12; loads++ {
			for repeats := 1; repeats <= 11; repeats++ {
				p := plan.Default()
				p.Tasks, p.Modes = []string{"chat"}, []plan.Mode{plan.Sync}
				p.Backends, p.Concurrency, p.Repeats = nil, nil, repeats
				for i := range backends {
					p.Backends = append(p.Backends, fmt.Sprint("b", i))
				}
				for i := range loads {
					p.Concurrency = append(p.Concurrency, i+1)
				}
				all := map[string]int{}
				byLoad := map[string]map[string]int{}
				for group := range slices.Chunk(cells(t, p), backends) {
					var names []string
					for _, c := range group {
						names = append(names, c.Backend)
						if c.Load() != group[0].Load() || c.Repeat != group[0].Repeat {
							t.Fatalf("%s runs between cells of %s", c.ID(), group[0].Load())
						}
					}
					if slices.Sort(names); !slices.Equal(names, p.Backends) {
						t.Fatalf("%s r%d runs %v", group[0].Load(), group[0].Repeat, names)
					}
					if byLoad[group[0].Load()] == nil {
						byLoad[group[0].Load()] = map[string]int{}
					}
					byLoad[group[0].Load()][group[0].Backend]++
					all[group[0].Backend]++
				}
				fair := func(what string, first map[string]int) {
					least, most := first[p.Backends[0]], 0
					for _, b := range p.Backends {
						least, most = min(least, first[b]), max(most, first[b])
					}
					if most > least+1 {
						t.Errorf("%d backends, %d loads, %d repeats, %s: first %v", backends, loads, repeats, what, first)
					}
				}
				fair("all", all)
				for load, first := range byLoad {
					fair(load, first)
				}
			}
		}
	}
}

func TestCellContents(t *testing.T) {
	p := plan.Default()
	p.Models, p.Tasks, p.Backends, p.Modes = []string{"llama-2-7b-chat"}, []string{"code"}, []string{"tgi"}, []plan.Mode{plan.Sync}
	p.Concurrency, p.Repeats, p.Requests, p.Seed = []int{16}, 1, 10, 77
	p.FirstTokenTimeout, p.TokenTimeout, p.Retries = 5*time.Second, time.Second, 2
	want := plan.Cell{
		Backend: "tgi", Model: "llama-2-7b-chat", Task: "code", Mode: plan.Sync, Concurrency: 16,
		Requests: 16, Warmup: p.Warmup, Seed: 77,
		Sampling:       bench.Sampling{Temperature: 0.6, TopP: 0.85, MaxTokens: 120, Seed: 77},
		RequestTimeout: p.RequestTimeout, CellTimeout: p.CellTimeout,
		FirstTokenTimeout: 5 * time.Second, TokenTimeout: time.Second, Retries: 2,
	}
	if diff := cmp.Diff([]plan.Cell{want}, cells(t, p)); diff != "" {
		t.Error(diff)
	}
	if notes := p.Notes(); len(notes) != 1 || !strings.Contains(notes[0], "more than 10 workers") {
		t.Errorf("16 requests in place of 10 must be noted: %q", notes)
	}
	p.MaxTokens, p.IgnoreEOS = 7, true
	if s := cells(t, p)[0].Sampling; s.MaxTokens != 7 || !s.IgnoreEOS || s.Temperature != 0.6 {
		t.Errorf("overrides: %+v", s)
	}
}

func TestSweep(t *testing.T) {
	p := plan.Default()
	p.Models = []string{"gpt2", "phi-2", "mistral-7b-instruct"}
	p.Backends, p.Modes, p.Repeats = []string{"native"}, []plan.Mode{plan.Stream}, 1
	p.PromptTokens = []int{32, 512, 1024, 2048, 4096}
	p.MaxTokens = 24
	lengths := map[string][]int{}
	for _, c := range cells(t, p) {
		lengths[c.Model] = append(lengths[c.Model], c.Prompt)
		if want := (bench.Sampling{TopP: 1, MaxTokens: 24, IgnoreEOS: true, Seed: 1}); c.Task != plan.ContextTask || c.Sampling != want {
			t.Errorf("%s: %s %+v", c.ID(), c.Task, c.Sampling)
		}
	}
	want := map[string][]int{
		"gpt2":                {32, 512, 1000},
		"phi-2":               {32, 512, 1024, 2024},
		"mistral-7b-instruct": {32, 512, 1024, 2048, 4096},
	}
	if diff := cmp.Diff(want, lengths); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{
		"gpt2: prompts of 1024, 2048, 4096 tokens were capped to 1000: its positions hold 1024 with 24 for the output",
		"phi-2: prompts of 2048, 4096 tokens were capped to 2024: its positions hold 2048 with 24 for the output",
		"mistral-7b-instruct: prompts beyond 4096 tokens are other work in other engines: llama.cpp (native, llama-server) attends to all tokens, Transformers, vLLM and TGI to a sliding window",
	}, p.Notes()); diff != "" {
		t.Error(diff)
	}
	if id := cells(t, p)[0].ID(); id != "gpt2/context-32/stream/c1/native/r0" {
		t.Error(id)
	}

	p.Engine.Context = 600
	p.Tasks = []string{"qa"}
	notes := strings.Join(p.Notes(), "\n")
	for _, want := range []string{
		"gpt2: prompts of 1024, 2048, 4096 tokens were capped to 576: the slots of this plan hold 600 with 24 for the output",
		"tasks qa were left out",
	} {
		if !strings.Contains(notes, want) {
			t.Errorf("no note %q in\n%s", want, notes)
		}
	}
	p.Tasks, p.MaxTokens = nil, 0
	if s := cells(t, p)[0].Sampling; s.MaxTokens < 1 {
		t.Errorf("a sweep without an output length: %+v", s)
	}
}

func TestSlotContext(t *testing.T) {
	model := func(key string) plan.Model {
		m, err := plan.ModelByKey(key)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	p := plan.Default()
	for _, c := range []struct {
		name   string
		change func(*plan.Plan)
		model  string
		want   int
	}{
		{"the longest prompt and output", func(*plan.Plan) {}, "gpt2", 800 + 60},
		{"with BOS", func(*plan.Plan) {}, "llama-2-7b-chat", 800 + 1 + 80},
		{"one task", func(p *plan.Plan) { p.Tasks = []string{"code"} }, "gpt2", 50 + 100},
		{"output overridden", func(p *plan.Plan) { p.MaxTokens = 5 }, "gpt2", 805},
		{"sweep", func(p *plan.Plan) { p.PromptTokens, p.MaxTokens = []int{64, 128}, 16 }, "gpt2", 144},
		{"capped sweep", func(p *plan.Plan) { p.PromptTokens, p.MaxTokens = []int{64, 9999}, 16 }, "gpt2", 1024},
		{"own prompts", func(p *plan.Plan) { p.PromptFile = "mine.jsonl" }, "phi-2", 2048},
		{"set", func(p *plan.Plan) { p.Engine.Context = 900 }, "gpt2", 900},
	} {
		p := p
		c.change(&p)
		if got := p.SlotContext(model(c.model)); got != c.want {
			t.Errorf("%s: %d tokens, want %d", c.name, got, c.want)
		}
	}
}

func TestValidateRefuses(t *testing.T) {
	if err := plan.Default().Validate(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		change func(*plan.Plan)
		want   string
	}{
		{func(p *plan.Plan) { p.Models = nil }, "no model: choose from gpt2, phi-2"},
		{func(p *plan.Plan) { p.Models = []string{"gpt3"} }, `unknown model "gpt3": did you mean "gpt2"?`},
		{func(p *plan.Plan) { p.Models = []string{"gpt2", "gpt2"} }, `model "gpt2" is named twice`},
		{func(p *plan.Plan) { p.Tasks = nil }, "no task: choose from chat, summarization, qa, code"},
		{func(p *plan.Plan) { p.Tasks = []string{"chats"} }, `did you mean "chat"? choose from chat,`},
		{func(p *plan.Plan) { p.Backends = nil }, "no backend: choose from native, llama-server, vllm"},
		{func(p *plan.Plan) { p.Backends = []string{"native", "vlm"} }, `unknown backend "vlm": did you mean "vllm"? choose from native, llama-server, vllm`},
		{func(p *plan.Plan) { p.Modes = nil }, "no mode: choose from sync, stream"},
		{func(p *plan.Plan) { p.Modes = []plan.Mode{"streaming"} }, `unknown mode "streaming": choose from sync, stream`},
		{func(p *plan.Plan) { p.Concurrency = nil }, "no concurrency"},
		{func(p *plan.Plan) { p.Concurrency = []int{1, 0} }, "concurrency 0: the number of workers is from 1 to"},
		{func(p *plan.Plan) { p.Concurrency = []int{-3} }, "concurrency -3"},
		{func(p *plan.Plan) { p.Concurrency = []int{1 << 30} }, "concurrency 1073741824"},
		{func(p *plan.Plan) { p.Concurrency = []int{2, 2} }, "concurrency 2 is named twice"},
		{func(p *plan.Plan) { p.Repeats = 0 }, "repeats 0"},
		{func(p *plan.Plan) { p.Requests = 0 }, "requests 0"},
		{func(p *plan.Plan) { p.Warmup = -1 }, "warm-up -1"},
		{func(p *plan.Plan) { p.MaxTokens = -1 }, "output tokens -1"},
		{func(p *plan.Plan) { p.Seed = 1 << 31 }, "seed 2147483648: seeds are at most 2147483647"},
		{func(p *plan.Plan) { p.RequestTimeout = -1 }, "time limit per request -1ns"},
		{func(p *plan.Plan) { p.RequestTimeout = 0 }, "time limit per request 0s"},
		{func(p *plan.Plan) { p.CellTimeout = -1 }, "time limit per cell -1ns"},
		{func(p *plan.Plan) { p.CellTimeout = p.RequestTimeout - 1 }, "is below that per request"},
		{func(p *plan.Plan) { p.FirstTokenTimeout = -1 }, "time limit until the first token -1ns"},
		{func(p *plan.Plan) { p.FirstTokenTimeout = p.RequestTimeout + 1 }, "to the limit per request, 2m0s"},
		{func(p *plan.Plan) { p.TokenTimeout = -1 }, "time limit between tokens -1ns"},
		{func(p *plan.Plan) { p.TokenTimeout = p.RequestTimeout + 1 }, "to the limit per request, 2m0s"},
		{func(p *plan.Plan) { p.Retries = -1 }, "retries -1"},
		{func(p *plan.Plan) { p.Retries = 101 }, "retries 101"},
		{func(p *plan.Plan) { p.Cooldown = -1 }, "cool-down -1ns"},
		{func(p *plan.Plan) { p.PromptTokens = []int{0} }, "prompt length 0"},
		{func(p *plan.Plan) { p.PromptTokens = []int{8, 8} }, "prompt length 8 is named twice"},
		{func(p *plan.Plan) { p.PromptTokens, p.PromptFile = []int{8}, "mine.jsonl" }, "mine.jsonl and exact prompt lengths together"},
		{func(p *plan.Plan) { p.PromptTokens, p.MaxTokens = []int{8}, 1024 }, "1024 output tokens leave no room for a prompt in the 1024 tokens of context of gpt2"},
		{func(p *plan.Plan) { p.MaxTokens = 225 }, "summarization of gpt2 needs 1025 tokens (longest prompt and output), over the context of 1024"},
		{func(p *plan.Plan) { p.PromptFile, p.MaxTokens = "mine.jsonl", 1025 }, "over the context of 1024"},
		{func(p *plan.Plan) { p.Engine.Context = 512 }, "over the context of 512"},
		{func(p *plan.Plan) { p.Engine.Context = 2048 }, "context 2048: gpt2 has 1024 positions"},
		{func(p *plan.Plan) { p.Engine.Context = -1 }, "engine: context -1"},
		{func(p *plan.Plan) { p.Engine.Threads = -1 }, "engine: threads -1"},
		{func(p *plan.Plan) { p.Engine.Batch = 0 }, "engine: batch 0"},
		{func(p *plan.Plan) { p.Engine.UBatch = 4096 }, "physical batch 4096 is above the logical batch 2048"},
		{func(p *plan.Plan) { p.Engine.PrefillChunk = 4096 }, "prefill chunk 4096 is above the batch 2048"},
		{func(p *plan.Plan) { p.Engine.GPULayers = -2 }, "engine: GPU layers -2"},
		{func(p *plan.Plan) { p.Engine.FlashAttn = "yes" }, `engine: unknown flash attention setting "yes": choose from auto, on, off`},
		{func(p *plan.Plan) { p.Engine.CacheType = "q8_0" }, `engine: unknown cache type "q8_0": choose from f16, f32`},
	} {
		p := plan.Default()
		c.change(&p)
		err := p.Validate("native", "llama-server", "vllm")
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("got  %v\nwant %s", err, c.want)
		} else if strings.Contains(err.Error(), "\n") {
			t.Errorf("more than one line: %v", err)
		}
		if p.Backends != nil && !slices.Contains(p.Backends, "vlm") {
			if got, err := p.Cells(); err == nil {
				t.Errorf("%s: an invalid plan expands into %d cells", c.want, len(got))
			}
		}
	}
	p := plan.Default()
	p.Backends = []string{"a/b"}
	if err := p.Validate(); err == nil {
		t.Error("a backend name with a slash would make cell ids ambiguous")
	}
	p = plan.Default()
	p.PromptFile, p.MaxTokens = "mine.jsonl", 1000
	if err := p.Validate(); err != nil {
		t.Errorf("the lengths of own prompts are not the plan's to judge: %v", err)
	}
}

// One set of numbers is true of the engine in process and of the server alike.
func TestEngineSettingsResolveToWhatEnginesUse(t *testing.T) {
	d := plan.Default().Engine
	for _, tt := range []struct {
		name           string
		change         func(*plan.Engine)
		slots, context int
		batch, ubatch  int
	}{
		{"the chunk is the batch", func(*plan.Engine) {}, 4, 1024, 512, 512},
		{"cut to the context", func(*plan.Engine) {}, 1, 256, 256, 256},
		{"cut to the context of all slots", func(*plan.Engine) {}, 2, 128, 256, 256},
		{"a batch below the chunk", func(e *plan.Engine) { e.Batch = 64 }, 1, 256, 64, 64},
		{"a small physical batch", func(e *plan.Engine) { e.UBatch = 32 }, 1, 1024, 512, 32},
		{"a token of each slot", func(e *plan.Engine) { e.PrefillChunk = 4 }, 16, 256, 16, 16},
	} {
		e := d
		tt.change(&e)
		got := e.Resolve(tt.slots, tt.context)
		if got.Batch != tt.batch || got.UBatch != tt.ubatch || got.PrefillChunk != tt.batch || got.Context != tt.context {
			t.Errorf("%s: %+v", tt.name, got)
		}
	}
}
