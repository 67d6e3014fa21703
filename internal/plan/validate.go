package plan

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
)

// Validate refuses a plan that cannot run as asked. The error is one line and
// names the choices. backends, when given, are the backends there are; without
// them a backend needs only a name.
func (p Plan) Validate(backends ...string) error {
	checks := []func() error{
		func() error { return oneOf("model", p.Models, modelKeys()) },
		func() error {
			if p.Sweep() && len(p.Tasks) == 0 {
				return nil
			}
			return oneOf("task", p.Tasks, taskKeys())
		},
		func() error { return oneOf("backend", p.Backends, backends) },
		func() error { return oneOf("mode", p.Modes, []string{string(Sync), string(Stream)}) },
		p.checkCounts,
		p.checkTimes,
		p.Engine.check,
		p.checkContext,
	}
	for _, check := range checks {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

// oneOf checks a list of names: not empty, none twice, each among choices if
// there are any.
func oneOf[S ~string](kind string, names []S, choices []string) error {
	if len(names) == 0 {
		if len(choices) == 0 {
			return fmt.Errorf("no %s: name at least one", kind)
		}
		return fmt.Errorf("no %s: choose from %s", kind, strings.Join(choices, ", "))
	}
	for i, name := range names {
		switch {
		case len(choices) > 0 && !slices.Contains(choices, string(name)):
			return unknown(kind, string(name), choices)
		case name == "" || strings.ContainsAny(string(name), "/ \t\r\n"):
			return fmt.Errorf("%s %q: a name has no slash and no space, and is not empty", kind, name)
		case slices.Contains(names[:i], name):
			return fmt.Errorf("%s %q is named twice: name each once, and use repeats to measure again", kind, name)
		}
	}
	return nil
}

// maxWorkers bounds the closed-loop workers of a cell: beyond it the driver,
// not the server, is what is measured.
const maxWorkers = 4096

// maxRetries bounds the retries of one request, which wait longer each time.
const maxRetries = 100

func (p Plan) checkCounts() error {
	if len(p.Concurrency) == 0 {
		return fmt.Errorf("no concurrency: give at least one number of workers, for example 1")
	}
	for i, c := range p.Concurrency {
		if c < 1 || c > maxWorkers {
			return fmt.Errorf("concurrency %d: the number of workers is from 1 to %d", c, maxWorkers)
		}
		if slices.Contains(p.Concurrency[:i], c) {
			return fmt.Errorf("concurrency %d is named twice: name each once, and use repeats to measure again", c)
		}
	}
	for i, n := range p.PromptTokens {
		if n < 1 {
			return fmt.Errorf("prompt length %d: a length is at least 1 token", n)
		}
		if slices.Contains(p.PromptTokens[:i], n) {
			return fmt.Errorf("prompt length %d is named twice: name each once", n)
		}
	}
	switch {
	case p.Repeats < 1:
		return fmt.Errorf("repeats %d: measure at least once", p.Repeats)
	case p.Requests < 1:
		return fmt.Errorf("requests %d: a cell sends at least 1", p.Requests)
	case p.Warmup < 0:
		return fmt.Errorf("warm-up %d: give 0 for none, or a number of requests per worker", p.Warmup)
	case p.Retries < 0 || p.Retries > maxRetries:
		return fmt.Errorf("retries %d: give 0 for none, or at most %d", p.Retries, maxRetries)
	case p.MaxTokens < 0:
		return fmt.Errorf("output tokens %d: give 0 for the sampling table's cap, or at least 1", p.MaxTokens)
	case p.Seed > math.MaxInt32:
		return fmt.Errorf("seed %d: seeds are at most %d, so that every server takes them", p.Seed, math.MaxInt32)
	case p.Sweep() && p.PromptFile != "":
		return fmt.Errorf("prompts from %s and exact prompt lengths together: a sweep makes its own prompts, so give one or the other", p.PromptFile)
	}
	return nil
}

func (p Plan) checkTimes() error {
	switch {
	case p.RequestTimeout <= 0:
		return fmt.Errorf("time limit per request %v: it must be above zero", p.RequestTimeout)
	case p.CellTimeout <= 0:
		return fmt.Errorf("time limit per cell %v: it must be above zero", p.CellTimeout)
	case p.CellTimeout < p.RequestTimeout:
		return fmt.Errorf("time limit per cell %v is below that per request, %v: one slow request would end the cell", p.CellTimeout, p.RequestTimeout)
	case p.FirstTokenTimeout < 0 || p.FirstTokenTimeout > p.RequestTimeout:
		return fmt.Errorf("time limit until the first token %v: it is from 0 (none) to the limit per request, %v", p.FirstTokenTimeout, p.RequestTimeout)
	case p.TokenTimeout < 0 || p.TokenTimeout > p.RequestTimeout:
		return fmt.Errorf("time limit between tokens %v: it is from 0 (none) to the limit per request, %v", p.TokenTimeout, p.RequestTimeout)
	case p.Cooldown < 0 || p.Cooldown > time.Hour:
		return fmt.Errorf("cool-down %v: it is from 0 to 1h", p.Cooldown)
	}
	return nil
}

func (e Engine) check() error {
	for _, n := range []struct {
		name       string
		value, min int
	}{
		{"threads", e.Threads, 0},
		{"batch threads", e.BatchThreads, 0},
		{"context", e.Context, 0},
		{"batch", e.Batch, 1},
		{"physical batch", e.UBatch, 1},
		{"prefill chunk", e.PrefillChunk, 1},
		{"GPU layers", e.GPULayers, -1},
	} {
		if n.value < n.min || n.value > math.MaxInt32 {
			return fmt.Errorf("engine: %s %d: it is at least %d", n.name, n.value, n.min)
		}
	}
	if e.UBatch > e.Batch {
		return fmt.Errorf("engine: physical batch %d is above the logical batch %d", e.UBatch, e.Batch)
	}
	if e.PrefillChunk > e.Batch {
		return fmt.Errorf("engine: prefill chunk %d is above the batch %d that carries it", e.PrefillChunk, e.Batch)
	}
	if err := oneOf("flash attention setting", []string{e.FlashAttn}, []string{"auto", "on", "off"}); err != nil {
		return fmt.Errorf("engine: %w", err)
	}
	if err := oneOf("cache type", []string{e.CacheType}, []string{"f16", "f32"}); err != nil {
		return fmt.Errorf("engine: %w", err)
	}
	return nil
}

// checkContext refuses what cannot fit: a task's longest prompt plus the output
// over a context, or a sweep whose output leaves no room for a prompt. A
// sweep's lengths themselves are capped, which Notes reports.
func (p Plan) checkContext() error {
	for _, key := range p.Models {
		m, err := ModelByKey(key)
		if err != nil {
			return err
		}
		if c := p.Engine.Context; c > m.Context {
			return fmt.Errorf("context %d: %s has %d positions; give at most that, or 0 for what the plan needs", c, key, m.Context)
		}
		if p.Sweep() {
			if room := p.longestPrompt(m); room < 1 {
				out := p.sweepSampling().MaxTokens
				return fmt.Errorf("%d output tokens leave no room for a prompt in the %d tokens of context of %s", out, room+out, key)
			}
			continue
		}
		context := m.Context
		if p.Engine.Context > 0 {
			context = p.Engine.Context
		}
		for _, name := range p.Tasks {
			t, err := TaskByKey(name)
			if err != nil {
				return err
			}
			need := p.taskNeed(m, t)
			if p.PromptFile != "" { // lengths are the file's: only the output is known here
				need -= t.InputTokens[1]
			}
			if need > context {
				return fmt.Errorf("%s of %s needs %d tokens (longest prompt and output), over the context of %d: lower the output tokens or raise the context", name, key, need, context)
			}
		}
	}
	return nil
}

// join lists values with commas.
func join[T any](values []T) string {
	words := make([]string, len(values))
	for i, v := range values {
		words[i] = fmt.Sprint(v)
	}
	return strings.Join(words, ", ")
}
