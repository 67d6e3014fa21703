// Package runner runs cells: it keeps a fixed number of workers busy at a
// backend, apart from warm-up and under time limits, and it keeps the process
// that does so at arm's length, so that whatever happens in it is a result.
//
// It is stage 2 of the pipeline plan → runner → results → measure → report. It
// knows no backend by name, no file format and no device.
//
//	parent: Supervise ── starts ──▶ child: Serve ── opens a backend ──▶ RunCell
//	        ◀── load, hold, info, request, done: one JSON object a line, on descriptor 3 ──
//	        ── one byte for each hold, on descriptor 4; its end is the parent's ──▶
package runner

import (
	"fmt"

	"github.com/nativebench/nativebench/internal/bench"
	"github.com/nativebench/nativebench/internal/plan"
)

// Job is the whole work of one cell: RunCell needs nothing beside it and a
// backend.
type Job struct {
	ID      string    `json:"id"` // of the cell within its run
	Attempt int       `json:"attempt"`
	Cell    plan.Cell `json:"cell"`
	// Prompts, rendered: measured request i sends Prompts[i]. Their number is
	// the number of measured requests.
	Prompts []Prompt `json:"prompts"`
	// Warmups, rendered: warm-up request -1-k sends Warmups[k % len]. May be
	// empty if Cell.Warmup is 0.
	Warmups []Prompt `json:"warmups"`
	// Profile has a bench.Profiled capture the measured window.
	Profile bool `json:"profile,omitempty"`
}

// Prompt is a rendered prompt under the name that records know it by.
type Prompt struct {
	ID      string `json:"id"`
	Text    string `json:"text"`
	Message string `json:"message,omitempty"` // Text before the template; bench.Request.Message
}

// Measured is how many measured requests a cell sends: what was asked for, and
// at least one for each worker.
func Measured(c plan.Cell) int { return max(c.Requests, c.Concurrency) }

// Limits bounds what the job asks of a session. A token is at least one byte
// of the prompt, so the bytes (and one BOS) bound the tokens.
func (j Job) Limits() bench.Limits {
	var longest int
	for _, list := range [][]Prompt{j.Prompts, j.Warmups} {
		for _, p := range list {
			longest = max(longest, len(p.Text))
		}
	}
	return bench.Limits{
		PromptBytes: longest, PromptTokens: longest + 1, OutputTokens: j.Cell.Sampling.MaxTokens,
		FirstToken: j.Cell.FirstTokenTimeout, Gap: j.Cell.TokenTimeout,
	}
}

// check refuses a job that cannot be run; a fault of the caller.
func (j Job) check() error {
	c := j.Cell
	switch {
	case c.Concurrency < 1:
		return fmt.Errorf("cell %s: concurrency is %d; it must be at least 1", j.ID, c.Concurrency)
	case len(j.Prompts) < Measured(c):
		return fmt.Errorf("cell %s: %d prompts for %d measured requests", j.ID, len(j.Prompts), Measured(c))
	case c.Warmup > 0 && len(j.Warmups) == 0:
		return fmt.Errorf("cell %s: no prompt for warm-up", j.ID)
	case c.Sampling.MaxTokens < 1:
		return fmt.Errorf("cell %s: max_tokens is %d; it must be at least 1", j.ID, c.Sampling.MaxTokens)
	}
	return nil
}
