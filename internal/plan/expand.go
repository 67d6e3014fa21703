package plan

import (
	"fmt"
	"slices"
	"time"

	"github.com/nativebench/nativebench/internal/bench"
)

// ContextTask is the Task of the cells of a context-scaling sweep. It is no
// row of the table of tasks.
const ContextTask = "context"

// sweepOutput is the number of output tokens in a sweep when the plan does not
// set one: enough for a decode speed, little beside a long prefill.
const sweepOutput = 32

// Default returns the plan that a user starts from: the smallest model, every
// task, the in-process engine beside a server of the same engine.
func Default() Plan {
	return Plan{
		Models:         []string{"gpt2"},
		Tasks:          taskKeys(),
		Backends:       []string{"native", "llama-server"},
		Modes:          []Mode{Sync, Stream},
		Concurrency:    []int{1},
		Repeats:        3,
		Requests:       10,
		Warmup:         1,
		Seed:           1,
		RequestTimeout: 2 * time.Minute,
		CellTimeout:    30 * time.Minute,
		Engine: Engine{
			Batch:        2048,
			UBatch:       512,
			PrefillChunk: 512,
			GPULayers:    -1,
			FlashAttn:    "auto",
			CacheType:    "f16",
		},
	}
}

// Sweep tells whether the plan is a context-scaling sweep. A sweep has no
// tasks: Tasks is then not used.
func (p Plan) Sweep() bool { return len(p.PromptTokens) > 0 }

// load is what is asked in some cells: all of a cell but the backend and the
// repetition.
type load struct {
	model       Model
	task        string
	prompt      int // exact prompt length in a sweep, else 0
	mode        Mode
	concurrency int
	sampling    bench.Sampling
}

// Cells expands the plan, which it validates first. The order is repeat →
// load → backend: a slow drift of the machine then touches all backends of a
// load alike. The backends of a load are rotated, and each goes first equally
// often (to within one), both over the whole plan and over the repeats of any
// one load.
//
// Every cell has the plan's seed, so that backends, modes, concurrencies and
// repeats are asked the same things.
func (p Plan) Cells() ([]Cell, error) {
	if err := p.Validate(); err != nil {
		return nil, err
	}
	loads, err := p.loads()
	if err != nil {
		return nil, err
	}
	n := len(p.Backends)
	cells := make([]Cell, 0, p.Repeats*len(loads)*n)
	for repeat := range p.Repeats {
		for i, l := range loads {
			first := i + rotation(repeat, len(loads), n)
			for j := range n {
				cells = append(cells, Cell{
					Backend:        p.Backends[(first+j)%n],
					Model:          l.model.Key,
					Task:           l.task,
					Mode:           l.mode,
					Concurrency:    l.concurrency,
					Prompt:         l.prompt,
					Repeat:         repeat,
					Requests:       max(p.Requests, l.concurrency),
					Warmup:         p.Warmup,
					Sampling:       l.sampling,
					Seed:           p.Seed,
					RequestTimeout: p.RequestTimeout,
					CellTimeout:    p.CellTimeout,
					Cooldown:       p.Cooldown,

					FirstTokenTimeout: p.FirstTokenTimeout,
					TokenTimeout:      p.TokenTimeout,
					Retries:           p.Retries,
				})
			}
		}
	}
	return cells, nil
}

// rotation is by how much repeat r turns the backends of its first load; each
// further load turns by one more. Going on where the repeat before stopped
// (r·loads) is fair over the whole plan, but repeats with period
// n/gcd(loads, n) and could keep one backend first at one load for ever: each
// period is therefore turned by one more.
func rotation(r, loads, n int) int {
	period := n / gcd(loads, n)
	return r*loads + r/period
}

func gcd(a, b int) int {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// loads lists what the plan asks, model by model so that a model's file stays
// in the page cache while it is used.
func (p Plan) loads() ([]load, error) {
	var loads []load
	for _, key := range p.Models {
		m, err := ModelByKey(key)
		if err != nil {
			return nil, err
		}
		var asked []load
		if p.Sweep() {
			for _, n := range p.promptLengths(m) {
				asked = append(asked, load{model: m, task: ContextTask, prompt: n, sampling: p.sweepSampling()})
			}
		} else {
			for _, task := range p.Tasks {
				s, err := SamplingFor(m.Key, task)
				if err != nil {
					return nil, err
				}
				if p.MaxTokens > 0 {
					s.MaxTokens = p.MaxTokens
				}
				s.IgnoreEOS, s.Seed = p.IgnoreEOS, p.Seed
				asked = append(asked, load{model: m, task: task, sampling: s})
			}
		}
		for _, l := range asked {
			for _, l.mode = range p.Modes {
				for _, l.concurrency = range p.Concurrency {
					loads = append(loads, l)
				}
			}
		}
	}
	return loads, nil
}

// sweepSampling is greedy: a sweep is about the prompt's length, has no row in
// the sampling table, and shall not depend on what is drawn.
func (p Plan) sweepSampling() bench.Sampling {
	s := bench.Sampling{TopP: 1, MaxTokens: p.MaxTokens, IgnoreEOS: true, Seed: p.Seed}
	if s.MaxTokens == 0 {
		s.MaxTokens = sweepOutput
	}
	return s
}

// longestPrompt is how many prompt tokens of a sweep fit, beside the output,
// into the context of a slot. It may be negative.
func (p Plan) longestPrompt(m Model) int {
	context := m.Context
	if p.Engine.Context > 0 {
		context = min(context, p.Engine.Context)
	}
	return context - p.sweepSampling().MaxTokens
}

// promptLengths are the lengths of a sweep for one model: those that are too
// long become one prompt of the longest length that fits.
func (p Plan) promptLengths(m Model) []int {
	var lengths []int
	for _, n := range p.PromptTokens {
		if n = min(n, p.longestPrompt(m)); !slices.Contains(lengths, n) {
			lengths = append(lengths, n)
		}
	}
	return lengths
}

// Notes says, a sentence each, where the plan's cells are not what was asked
// word for word: lengths capped by a context, more requests than asked. They
// belong into the report of the run. An invalid plan has no notes.
func (p Plan) Notes() []string {
	if p.Validate() != nil {
		return nil
	}
	var notes []string
	for _, key := range p.Models {
		m, err := ModelByKey(key)
		if err != nil {
			continue
		}
		if w := m.SlidingWindow; w > 0 && p.SlotContext(m) > w {
			notes = append(notes, fmt.Sprintf("%s: prompts beyond %d tokens are other work in other engines: llama.cpp (native, llama-server) attends to all tokens, Transformers, vLLM and TGI to a sliding window", key, w))
		}
		if !p.Sweep() {
			continue
		}
		longest, out := p.longestPrompt(m), p.sweepSampling().MaxTokens
		var over []int
		for _, n := range p.PromptTokens {
			if n > longest {
				over = append(over, n)
			}
		}
		if len(over) > 0 {
			notes = append(notes, fmt.Sprintf("%s: prompts of %s tokens were capped to %d: %s hold %d with %d for the output",
				key, join(over), longest, p.contextWords(m), longest+out, out))
		}
	}
	if p.Sweep() && len(p.Tasks) > 0 && !slices.Equal(p.Tasks, taskKeys()) {
		notes = append(notes, fmt.Sprintf("tasks %s were left out: a context sweep has prompts of its own", join(p.Tasks)))
	}
	if c := slices.Max(p.Concurrency); c > p.Requests {
		notes = append(notes, fmt.Sprintf("cells with more than %d workers send one request per worker, not %d requests", p.Requests, p.Requests))
	}
	return notes
}

// contextWords names the limit that a slot's context comes from.
func (p Plan) contextWords(m Model) string {
	if c := p.Engine.Context; c > 0 && c < m.Context {
		return "the slots of this plan"
	}
	return "its positions"
}

// SlotContext is how many tokens, prompt and output, a slot must hold for this
// plan and model: Engine.Context if set, else the longest prompt plus the
// longest output, BOS included. With a user's own prompts, whose lengths the
// plan does not know, it is the model's whole context.
func (p Plan) SlotContext(m Model) int {
	switch {
	case p.Engine.Context > 0:
		return min(p.Engine.Context, m.Context)
	case p.PromptFile != "" && !p.Sweep():
		return m.Context
	}
	need := 0
	if p.Sweep() {
		need = slices.Max(p.promptLengths(m)) + p.sweepSampling().MaxTokens
	}
	for _, key := range p.Tasks {
		t, err := TaskByKey(key)
		if err != nil || p.Sweep() {
			continue
		}
		need = max(need, p.taskNeed(m, t))
	}
	return min(need, m.Context)
}

// taskNeed is the tokens of a task's longest prompt, its BOS and its longest
// output.
func (p Plan) taskNeed(m Model, t Task) int {
	out := p.MaxTokens
	if s, err := SamplingFor(m.Key, t.Key); err == nil && out == 0 {
		out = s.MaxTokens
	}
	bos := 0
	if m.AddBOS {
		bos = 1
	}
	return t.InputTokens[1] + bos + out
}
