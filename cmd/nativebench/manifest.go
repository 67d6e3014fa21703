package main

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/nativebench/nativebench/internal/bench"
	"github.com/nativebench/nativebench/internal/plan"
	"github.com/nativebench/nativebench/internal/results"
	"github.com/nativebench/nativebench/native"
)

// promptsVersion is the name under which the manifest's versions keep the hash
// of a user's prompt file.
const promptsVersion = "prompts_sha256"

// newManifest describes the run before its first cell.
func (s *setup) newManifest(args []string) (*results.Manifest, error) {
	m := &results.Manifest{
		Schema:  results.Schema,
		RunID:   runID(),
		Created: time.Now().UTC(),
		Command: args,
		Tool:    buildFacts(),
		Plan:    s.plan,
		Clock: results.Clock{
			Source: "CLOCK_MONOTONIC", UncertaintyNS: bench.ClockUncertainty(),
			WallNS: time.Now().UnixNano(), MonotonicNS: bench.Now(), BootID: bootID(),
		},
	}
	notes := s.notes()
	for _, c := range s.cells {
		m.Cells = append(m.Cells, results.Cell{
			ID: c.ID(), Load: c.Load(), Backend: c.Backend, Model: c.Model, Task: c.Task, Mode: string(c.Mode),
			Concurrency: c.Concurrency, Prompt: c.Prompt, Repeat: c.Repeat, Requests: c.Requests,
			Sampling: c.Sampling, Expect: expected(c),
		})
	}
	m.PromptCounts, m.PromptTokens = s.counts, s.tokens
	for _, key := range s.plan.Models {
		if f := s.models[key]; f != nil {
			m.Models = append(m.Models, f.file)
		}
	}
	h := s.machine
	m.Environment = results.Environment{
		OS: h.OS, Kernel: h.Kernel, CPU: h.CPU, Cores: h.Cores, MemoryB: h.Memory.TotalBytes,
		Governor: h.Governor, Container: h.Container, LoadBefore: h.LoadBefore,
		Versions: map[string]string{"go": runtime.Version()},
		Warnings: append(slices.Clone(h.Warnings), notes...),
	}
	s.gpus.note(&m.Environment)
	if b, err := native.Describe(s.engineDir); err == nil {
		m.Environment.Versions["engine"] = b.Engine
		m.Environment.Versions["engine_build"] = b.Build
		m.Environment.Versions["engine_sources"] = b.SourceHash
	}
	if s.plan.PromptFile != "" {
		sum, _, err := hashFile(s.plan.PromptFile)
		if err != nil {
			return nil, err
		}
		m.Environment.Versions[promptsVersion] = sum
	}
	return m, nil
}

// expected is the range of output tokens that the task expects; none in a
// sweep.
func expected(c plan.Cell) [2]int {
	if t, err := plan.TaskByKey(c.Task); err == nil {
		return t.OutputTokens
	}
	return [2]int{}
}

// bootID tells one start of the machine from another: the clock of the stamps
// begins anew with each. "" where the kernel does not tell (random(4)).
func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func runID() string {
	var b [8]byte
	rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// hashFile returns the SHA-256 and the size of a file, whose bytes also gets, too.
func hashFile(path string, also ...io.Writer) (sum string, size int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	h := sha256.New()
	if size, err = io.Copy(io.MultiWriter(append(also, h)...), f); err != nil {
		return "", 0, fmt.Errorf("reading %s: %w", path, err)
	}
	return hex.EncodeToString(h.Sum(nil)), size, nil
}

// header says what will be run, before it is: the cells at the indices todo.
func (s *setup) header(w io.Writer, todo []int) {
	requests, warmup := 0, 0
	for _, c := range s.at(todo) {
		requests += c.Requests
		warmup += c.Warmup * c.Concurrency
	}
	row := func(name, format string, args ...any) {
		fmt.Fprintf(w, "  %-9s %s\n", name, fmt.Sprintf(format, args...))
	}
	fmt.Fprintf(w, "nativebench %s\n", buildFacts().Version)
	row("backends", "%s", strings.Join(s.plan.Backends, ", "))
	if s.plan.Sweep() {
		row("prompts", "of exactly %s tokens", joined(s.lengths()))
	} else {
		row("tasks", "%s", strings.Join(s.plan.Tasks, ", "))
	}
	row("modes", "%s; concurrency %s; repeats: %d", strings.Join(names(s.plan.Modes), ", "), joined(s.plan.Concurrency), s.plan.Repeats)
	cells := fmt.Sprintf("%d", len(s.cells))
	if len(todo) != len(s.cells) {
		cells = fmt.Sprintf("%d of %d are still to run", len(todo), len(s.cells))
	}
	row("cells", "%s (%d requests, and %d to warm up)", cells, requests, warmup)
	for _, key := range s.plan.Models {
		if m := s.models[key]; m != nil {
			row("model", "%s, %s, %s in %s", key, m.file.DType, gib(m.file.Bytes), m.file.Path)
			if from := m.file.Source; from != nil {
				row("", "converted from %s%s", from.Path, revision(from))
			}
			switch {
			case m.file.Synthetic && m.file.Relative != "":
				row("", "synthetic weights: random numbers, the text that comes out means nothing")
			case m.file.Synthetic:
				row("", "synthetic weights: random numbers in the model's real shape; speed and memory are")
				row("", "real, the text that comes out means nothing")
			}
			if m.file.Relative != "" {
				row("", "not %s itself but a relative, %s: its speed and memory are not the model's", key, m.file.Relative)
			}
			if m.shape.Vocabulary != "" {
				row("", "vocabulary: %s", m.shape.Vocabulary)
			}
		} else {
			row("model", "%s", key)
		}
	}
	for _, c := range s.counts {
		of := ""
		if len(s.counts) > 1 {
			of = " of " + c.Model
		}
		row("counts", "tokens of prompts%s: %s", of, countText(c))
	}
	for _, line := range s.engineLines() {
		row("engine", "%s", line)
	}
	row("machine", "%s, %d cores, %s of memory (%s free)", s.machine.CPU, s.machine.Cores, gib(s.machine.Memory.TotalBytes), gib(s.machine.Memory.AvailableBytes))
	for i, d := range s.gpus.used {
		text := fmt.Sprintf("%s (%s), driver %s", d, engineName(i), s.gpus.system.Driver)
		if used, known := s.gpus.memory()[d.Subject]; known {
			text += fmt.Sprintf(", %s in use", gib(used))
		}
		row("gpu", "%s", text)
	}
	for _, note := range slices.Concat(s.machine.Warnings, s.gpus.notes, s.notes()) {
		row("note", "%s", note)
	}
	row("results", "%s", filepath.Clean(s.out))
	fmt.Fprintln(w)
}

// revision names a source's, if it is known.
func revision(from *results.Source) string {
	if from.Revision == "" {
		return ""
	}
	return fmt.Sprintf(": %s, revision %.12s", from.HubID, from.Revision)
}

// lengths are the prompt lengths of a sweep as they will be sent.
func (s *setup) lengths() (list []int) {
	for _, c := range s.cells {
		if !slices.Contains(list, c.Prompt) {
			list = append(list, c.Prompt)
		}
	}
	return list
}

// engineLines say what every engine of this run is given, one line if it is
// the same for all models.
func (s *setup) engineLines() (lines []string) {
	for _, key := range s.plan.Models {
		m := s.models[key]
		if m == nil {
			continue
		}
		e := s.engine.Resolve(s.slots(), m.context)
		line := fmt.Sprintf("threads %d (prefill %d), slots %d of %d tokens, batch %d/%d, KV %s: the same for all llama.cpp backends",
			e.Threads, e.BatchThreads, s.slots(), e.Context, e.Batch, e.UBatch, e.CacheType)
		if !slices.Contains(lines, line) {
			lines = append(lines, line)
		}
	}
	return lines
}

func joined[T any](list []T) string {
	words := make([]string, len(list))
	for i, v := range list {
		words[i] = fmt.Sprint(v)
	}
	return strings.Join(words, ", ")
}
