package main

import (
	"fmt"
	"math"
	"os"

	"github.com/nativebench/nativebench/internal/plan"
	"github.com/nativebench/nativebench/internal/results"
	"github.com/nativebench/nativebench/internal/runner"
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
	s.prompts, s.counts, s.countNotes, s.tokens = promptBook{}, nil, nil, map[string]map[string]int{}
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
		counts, err := s.counterOf(m)
		if err != nil {
			return err
		}
		defer counts.close()
		switch {
		case s.plan.Sweep() && !counts.entry.Exact:
			return refuse("prompts of exact lengths of %s need its own vocabulary; counts are %s", key, countText(counts.entry))
		case !s.plan.Sweep() && own == nil && !counts.entry.Exact && recorded(m, s.plan.Tasks):
			counts.entry = results.PromptCount{Model: key, Exact: true}
			counts.Counter = nil
		}
		s.counts = append(s.counts, counts.entry)
		for _, c := range s.cells {
			k := promptKey{c.Model, c.Task, c.Prompt}
			if c.Model != key || s.prompts[k] != nil {
				continue
			}
			switch {
			case s.plan.Sweep():
				s.prompts[k], err = exactPrompts(counts, m, c.Prompt)
			case own != nil:
				s.prompts[k], err = s.ownPrompts(own, counts, m, c)
			default:
				s.prompts[k] = render(m, s.fitted(plan.Prompts(c.Task), m, c, counts))
			}
			if err != nil {
				return err
			}
		}
		s.countPrompts(m, counts)
	}
	return nil
}

// countPrompts keeps the lengths of the prompts of a model's cells, as far as
// they are known exactly, so that what servers say they read can be held
// against them.
func (s *setup) countPrompts(m plan.Model, counts *counter) {
	recorded := map[string]int{} // BOS included
	if s.plan.PromptFile == "" && !s.plan.Sweep() {
		for _, task := range s.plan.Tasks {
			for _, p := range plan.Prompts(task) {
				if recorded[p.ID] = p.Tokens[m.Key]; m.AddBOS {
					recorded[p.ID]++
				}
			}
		}
	}
	known := map[string]int{}
	for _, c := range s.cells {
		if c.Model != m.Key || !counts.entry.Exact {
			continue
		}
		for _, p := range s.prompts.job(c, 1).Prompts {
			if _, done := known[p.ID]; done {
				continue
			}
			if n, ok := counts.exactly(p.Text); ok {
				known[p.ID] = n
			} else if n := recorded[p.ID]; n > 0 {
				known[p.ID] = n
			}
		}
	}
	s.tokens[m.Key] = known
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
// can be counted, not one by one during the run. That some are shorter or
// longer than the task says is noted.
func (s *setup) ownPrompts(own []plan.Prompt, counts *counter, m plan.Model, c plan.Cell) ([]runner.Prompt, error) {
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
	if counts.Counter == nil {
		return out, nil
	}
	room, outside := s.plan.SlotContext(m), 0
	t, err := plan.TaskByKey(c.Task)
	if err != nil {
		return nil, usageError{err}
	}
	least, most := math.MaxInt, 0
	for i, p := range out {
		n, err := counts.CountTokens(p.Text)
		if err != nil {
			return nil, fmt.Errorf("--prompts %s: prompt %s: %w", s.plan.PromptFile, p.ID, err)
		}
		if n < t.InputTokens[0] || n > t.InputTokens[1] {
			outside++
		}
		least, most = min(least, n), max(most, n)
		if counts.entry.Exact && n+c.Sampling.MaxTokens > room {
			return nil, refuse("--prompts %s: prompt %s has %d tokens, with %d of output over the context of %d: shorten it, lower --max-tokens or raise --ctx", s.plan.PromptFile, list[i].ID, n, c.Sampling.MaxTokens, room)
		}
	}
	if outside > 0 {
		about := ""
		if !counts.entry.Exact {
			about = "about "
		}
		s.countNotes = append(s.countNotes, fmt.Sprintf("%s: %d of %d prompts of %s lie outside the task's %s tokens: they have %s%s", m.Key, outside, len(out), s.plan.PromptFile+" for "+c.Task, span(t.InputTokens), about, span([2]int{least, most})))
	}
	return out, nil
}
