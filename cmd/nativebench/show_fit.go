package main

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/urfave/cli/v2"

	"github.com/nativebench/nativebench/internal/convert"
	"github.com/nativebench/nativebench/internal/gguf"
	"github.com/nativebench/nativebench/internal/plan"
	"github.com/nativebench/nativebench/internal/telemetry"
	"github.com/nativebench/nativebench/native"
)

// showAction is models show: of a model of the table, a GGUF file or a Hugging
// Face directory.
func showAction(c *cli.Context) error {
	if c.NArg() != 1 {
		return refuse("show takes one model: choose from %s, or name a GGUF file or a Hugging Face directory", modelKeys())
	}
	for _, n := range c.IntSlice("concurrency") {
		if n < 1 || n > 1<<16 {
			return refuse("--concurrency %d: choose from 1 to %d", n, 1<<16)
		}
	}
	name := c.Args().First()
	m, err := plan.ModelByKey(name)
	if err == nil {
		return showModel(c, m)
	}
	st, statErr := os.Stat(name)
	switch {
	case statErr != nil && !strings.ContainsAny(name, "/."): // meant as a key
		return usageError{err}
	case statErr != nil:
		return refuse("models show: %w; name a model (%s), a GGUF file or a Hugging Face directory", statErr, modelKeys())
	case st.IsDir():
		s, err := convert.Inspect(name)
		if err != nil {
			return refuse("models show: %w", err)
		}
		return showFile(c, s, "Hugging Face directory "+name, "as GGUF in F16")
	}
	f, err := gguf.ReadFile(name)
	if err != nil {
		return refuse("models show: %w", err)
	}
	s, err := f.Summary()
	if err != nil {
		return refuse("models show %s: %w", name, err)
	}
	if s.Tensors == 0 {
		return refuse("models show %s: it holds no tensors, only a vocabulary; name a whole model", name)
	}
	what := "GGUF file " + name
	if made, err := convert.Read(name); err == nil { // its file does not say so of itself
		s.Synthetic, s.Seed = s.Synthetic || made.Synthetic, max(s.Seed, made.Seed)
		what += ", converted from " + made.Source
	}
	return showFile(c, s, what, "as they are in the file")
}

// showFile prints what a file or directory tells of itself.
func showFile(c *cli.Context, s gguf.Summary, what, how string) error {
	w := c.App.Writer
	fmt.Fprintf(w, "%-14s %s\n", "model", s.Name)
	fmt.Fprintf(w, "%-14s %s\n", "in", what)
	fmt.Fprintf(w, "%-14s %s\n", "architecture", s.Arch)
	fmt.Fprintf(w, "%-14s %d layers of width %d, %d heads, feed-forward %d, vocabulary %d\n", "shape", s.Layers, s.Width, s.Heads, s.FFN, s.Vocab)
	fmt.Fprintf(w, "%-14s %d tokens, prompt and output\n", "context", s.Context)
	if s.Synthetic {
		fmt.Fprintf(w, "%-14s random weights of seed %d\n", "synthetic", s.Seed)
	}
	weights := fmt.Sprintf("%s %s (%d bytes), %s", s.DType, gib(s.TensorBytes), s.TensorBytes, how)
	if s.TensorBytes == 0 {
		return refuse("models show: what %s holds is not known, its weights are no safetensors: convert it first (nativebench models convert)", what)
	}
	return showFit(c, s, weights)
}

// tableShape is a model of the table with F16 weights, as its GGUF file would
// tell it.
func tableShape(m plan.Model, tensors []gguf.Tensor) gguf.Summary {
	h := m.Shape
	s := gguf.Summary{
		Arch: m.Arch, Name: m.Name, DType: "F16", Context: m.Context,
		Layers: h.Layers, Width: h.Width, Heads: h.Heads, FFN: h.FFN, Vocab: h.Vocab,
		Tensors: len(tensors), KVPerToken: 2 * int64(h.Layers) * int64(h.KVHeads) * int64(h.HeadSize()),
	}
	for _, t := range tensors {
		s.Params += t.Elements()
		s.TensorBytes += t.Bytes()
	}
	return s
}

// weightsByType says how large a model's weights are in several types: what is
// F32 in an F16 file is so in all of them.
func weightsByType(tensors []gguf.Tensor) string {
	var words []string
	for _, typ := range []gguf.TensorType{gguf.F16, gguf.F32, gguf.Q8_0} {
		bytes := int64(0)
		for _, t := range tensors {
			if t.Type == gguf.F16 {
				t.Type = typ
			}
			bytes += t.Bytes()
		}
		name := typ.String()
		if typ == gguf.F16 {
			name = "F16 or BF16"
		}
		words = append(words, fmt.Sprintf("%s %s (%d bytes)", name, gib(bytes), bytes))
	}
	return strings.Join(words, ", ")
}

// showFit prints what a model takes, and what fits on this machine.
func showFit(c *cli.Context, s gguf.Summary, weights string) error {
	w := c.App.Writer
	row := func(name, format string, args ...any) {
		fmt.Fprintf(w, "%-14s %s\n", name, fmt.Sprintf(format, args...))
	}
	row("parameters", "%d", s.Params)
	row("weights", "%s", weights)
	row("KV cache", "%s a token in f16 (%d bytes), %s in f32", kib(2*s.KVPerToken), 2*s.KVPerToken, kib(4*s.KVPerToken))
	engineDir := c.String("engine-dir")
	if engineDir == "" {
		engineDir = native.DefaultDir()
	}
	g := lookGraphics(findGPUs(), engineDir)
	memory, err := telemetry.ReadMemory()
	if err != nil {
		memory.AvailableBytes = -1
	}
	rooms := []room{{"RAM", memory.AvailableBytes}}
	row("RAM", "%s", memoryWords(memory))
	for _, r := range g.rooms {
		row(strings.Fields(r.name)[0], "%s, %s free", r.name, gib(r.free))
	}
	switch {
	case len(g.rooms) == 0:
		row("GPU", "no GPU found: %s", strings.TrimPrefix(g.why, "not available: "))
	case g.engine != "":
		row("", "not used: %s", g.engine)
	}
	rooms = append(rooms, g.rooms...)
	if len(g.rooms) > 1 {
		rooms = append(rooms, room{fmt.Sprintf("all %d GPUs", len(g.rooms)), g.free()})
	}
	fmt.Fprintf(w, "\nLongest context of a request, prompt and output, in tokens, with weights in %s:\n\n", s.DType)
	fitTable(c, s, rooms)
	return nil
}

func memoryWords(m telemetry.Memory) string {
	switch {
	case m.AvailableBytes <= 0:
		return "how much is free is not known"
	case m.LimitBytes > 0:
		return fmt.Sprintf("%s free within the limit of the control group, %s", gib(m.AvailableBytes), gib(m.LimitBytes))
	}
	return gib(m.AvailableBytes) + " free"
}

// fitTable prints how long a context fits where, by requests at once and type
// of the KV cache, in one engine of llama.cpp.
func fitTable(c *cli.Context, s gguf.Summary, rooms []room) {
	t := plainTable()
	header := table.Row{"requests at once", "KV cache"}
	for _, r := range rooms {
		header = append(header, r.name)
	}
	t.AppendHeader(header)
	parallel := append([]int{1}, c.IntSlice("concurrency")...)
	slices.Sort(parallel)
	for _, slots := range slices.Compact(parallel) {
		for _, cache := range []string{"f16", "f32"} {
			line := table.Row{slots, cache}
			for _, r := range rooms {
				line = append(line, fittingContext(s, slots, cache, r))
			}
			t.AppendRow(line)
		}
	}
	t.Style().Format.Header = 0 // GPUs have names
	writeTable(c.App.Writer, t)
}

// fittingContext says how long a context fits.
func fittingContext(s gguf.Summary, slots int, cache string, r room) string {
	e := plan.Default().Engine
	e.CacheType = cache
	beside := int64(0)
	if r.name != "RAM" {
		beside = cudaBytes
	}
	need := func(context int) int64 {
		return s.TensorBytes + beside + kvBytes(s, slots, context, cache) + bufferBytes(s, slots, context, e.Resolve(slots, context))
	}
	if r.free <= 0 {
		return "not known"
	}
	if need(s.Context) <= r.free {
		return fmt.Sprintf("%d (all)", s.Context)
	}
	if n := largest((s.Context-1)/contextStep, func(n int) bool { return need(n*contextStep) <= r.free }); n > 0 {
		return fmt.Sprint(n * contextStep)
	}
	return fmt.Sprintf("none: %d tokens need %s", min(contextStep, s.Context), gib(need(min(contextStep, s.Context))))
}
