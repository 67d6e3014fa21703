package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/nativebench/nativebench/internal/plan"
	"github.com/nativebench/nativebench/internal/runner"
	"github.com/nativebench/nativebench/native"
)

// sweepVariants is how many different prompts of one length a sweep has, so
// that no request repeats the one before it.
const sweepVariants = 8

// promptBook holds the rendered prompts by model and by task or length.
type promptBook map[promptKey][]runner.Prompt

type promptKey struct {
	model, task string
	tokens      int // exact length in a sweep, 0 otherwise
}

// job makes the work of a cell. Which prompt a request gets depends on the seed
// and its index alone: it is the same for every backend.
func (b promptBook) job(c plan.Cell, attempt int) runner.Job {
	list := b[promptKey{c.Model, c.Task, c.Prompt}]
	j := runner.Job{ID: c.ID(), Attempt: attempt, Cell: c}
	for i := range runner.Measured(c) {
		j.Prompts = append(j.Prompts, list[plan.PromptIndex(c.Seed, i, len(list))])
	}
	for k := range min(c.Warmup*c.Concurrency, len(list)) {
		j.Warmups = append(j.Warmups, list[plan.PromptIndex(c.Seed, -1-k, len(list))])
	}
	return j
}

// makePrompts renders every prompt that the cells may use.
func (s *setup) makePrompts() error {
	s.prompts = promptBook{}
	var own []plan.Prompt
	if s.plan.PromptFile != "" {
		var err error
		if own, err = readPrompts(s.plan.PromptFile); err != nil {
			return err
		}
	}
	for _, key := range s.plan.Models {
		m, err := plan.ModelByKey(key)
		if err != nil {
			return usageError{err}
		}
		var counter plan.Counter
		if s.models[key] != nil && (s.plan.Sweep() || own != nil) {
			vocab, err := native.OpenVocab(s.engineDir, s.models[key].file.Path)
			if err == nil {
				defer vocab.Close()
				counter = vocab
			} else if s.plan.Sweep() {
				return refuse("prompts of exact lengths need the model's tokenizer: %w", err)
			}
		} else if s.plan.Sweep() {
			return refuse("prompts of exact lengths need the model's tokenizer, and none of the backends %v has its weights here", s.plan.Backends)
		}
		for _, c := range s.cells {
			k := promptKey{c.Model, c.Task, c.Prompt}
			if c.Model != key || s.prompts[k] != nil {
				continue
			}
			switch {
			case s.plan.Sweep():
				s.prompts[k], err = exactPrompts(counter, m, c.Prompt)
			case own != nil:
				s.prompts[k], err = s.ownPrompts(own, counter, m, c)
			default:
				s.prompts[k] = render(m, plan.Prompts(c.Task))
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// vocabularies are the files of the engine's folder that hold a model's whole
// tokenizer, by model.
var vocabularies = map[string]string{"gpt2": "ggml-vocab-gpt-2.gguf", "llama-2-7b-chat": "ggml-vocab-llama-spm.gguf"}

// promptTokens counts the prompts of the cells by our own tokenizer, so that
// what servers say they read can be held against it; nothing is known of a model
// whose vocabulary is not here.
func (s *setup) promptTokens() map[string]map[string]int {
	all := map[string]map[string]int{}
	for _, key := range s.plan.Models {
		var path string
		switch m := s.models[key]; {
		case m != nil:
			path = m.file.Path
		case vocabularies[key] != "":
			path = filepath.Join(s.engineDir, "vocab", vocabularies[key])
		default:
			continue
		}
		vocab, err := native.OpenVocab(s.engineDir, path)
		if err != nil {
			continue // no engine here, or a client-only build
		}
		counts := map[string]int{}
		for _, c := range s.cells {
			if c.Model != key {
				continue
			}
			for _, p := range s.prompts.job(c, 1).Prompts {
				if _, done := counts[p.ID]; done {
					continue
				}
				if n, err := vocab.CountTokens(p.Text); err == nil {
					counts[p.ID] = n
				}
			}
		}
		vocab.Close()
		all[key] = counts
	}
	return all
}

func readPrompts(path string) ([]plan.Prompt, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, refuse("--prompts: %w", err)
	}
	defer f.Close()
	list, err := plan.LoadPrompts(f, path)
	if err != nil {
		return nil, refuse("--prompts: %w", err)
	}
	return list, nil
}

func render(m plan.Model, list []plan.Prompt) (out []runner.Prompt) {
	for _, p := range list {
		out = append(out, runner.Prompt{ID: p.ID, Text: m.Render(p.Text), Message: p.Text})
	}
	return out
}

func exactPrompts(c plan.Counter, m plan.Model, n int) (out []runner.Prompt, err error) {
	for v := range uint64(sweepVariants) {
		text, err := plan.ExactPromptVariant(c, m, n, v)
		if err != nil {
			return nil, usageError{err}
		}
		out = append(out, runner.Prompt{ID: fmt.Sprintf("exact-%d-%d", n, v), Text: text})
	}
	return out, nil
}

// ownPrompts picks a task's prompts from the user's: those that name the task
// and those that name none. Those that cannot fit are refused now, where they
// can be counted, not one by one during the run.
func (s *setup) ownPrompts(own []plan.Prompt, counter plan.Counter, m plan.Model, c plan.Cell) ([]runner.Prompt, error) {
	var list []plan.Prompt
	for _, p := range own {
		if p.Task == "" || p.Task == c.Task {
			list = append(list, p)
		}
	}
	if len(list) == 0 {
		return nil, refuse("--prompts %s: none of its %d prompts is for task %s; choose other --task", s.plan.PromptFile, len(own), c.Task)
	}
	out := render(m, list)
	if counter == nil {
		return out, nil
	}
	room := s.plan.SlotContext(m)
	for i, p := range out {
		n, err := counter.CountTokens(p.Text)
		if err != nil {
			return nil, fmt.Errorf("--prompts %s: prompt %s: %w", s.plan.PromptFile, p.ID, err)
		}
		if n+c.Sampling.MaxTokens > room {
			return nil, refuse("--prompts %s: prompt %s has %d tokens, with %d of output over the context of %d: shorten it, lower --max-tokens or raise --ctx", s.plan.PromptFile, list[i].ID, n, c.Sampling.MaxTokens, room)
		}
	}
	return out, nil
}
