package main

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
	"github.com/urfave/cli/v2"

	"github.com/nativebench/nativebench/internal/plan"
	"github.com/nativebench/nativebench/internal/synth"
	"github.com/nativebench/nativebench/native"
)

func modelsCommand() *cli.Command {
	return &cli.Command{
		Name:  "models",
		Usage: "list the models, show one, download it, convert it, or write synthetic weights of it",
		Description: "Examples:\n" +
			"   nativebench models\n" +
			"   nativebench models show gpt2\n" +
			"   nativebench models pull gpt2                       from the Hugging Face hub\n" +
			"   nativebench models synth gpt2 -o gpt2-synthetic    GGUF and a Hugging Face directory\n" +
			"   nativebench models convert gpt2                    what was downloaded, to GGUF",
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return refuse("unknown models command %q: choose from show, pull, convert, synth, or nothing to list them", c.Args().First())
			}
			listModels(c)
			return nil
		},
		Subcommands: []*cli.Command{
			{
				Name: "show", Usage: "what is known of a model, what memory it takes, and what fits", ArgsUsage: "MODEL|FILE|DIR",
				Description: "Examples:\n" +
					"   nativebench models show llama-2-7b-chat\n" +
					"   nativebench models show --concurrency 8,32 model.gguf\n" +
					"   nativebench models show ~/models/phi-2    a Hugging Face directory\n\n" +
					"Weights and KV cache are exact; what engines need besides is an estimate.",
				Flags: []cli.Flag{
					&cli.IntSliceFlag{Name: "concurrency", Value: cli.NewIntSlice(8), Usage: "`N,…`: for how many requests at once to say what fits, beside one"},
					&cli.StringFlag{Name: "engine-dir", Usage: "`DIR`: of the engine that would run it", DefaultText: "$NATIVEBENCH_ENGINE_DIR, or engine/ beside this program"},
				},
				Action: showAction,
			},
			pullCommand(),
			{
				Name: "synth", Usage: "write random weights of a model's real shape", ArgsUsage: "MODEL",
				Description: "Example:\n" +
					"   nativebench models synth gpt2 -o gpt2-synthetic --dtype f16 --seed 1\n\n" +
					"DIR gets a GGUF file, and the same numbers as a Hugging Face directory.",
				Flags: []cli.Flag{
					&cli.StringFlag{Name: "out", Aliases: []string{"o"}, Usage: "`DIR`: to make", DefaultText: "MODEL-synthetic"},
					&cli.StringFlag{Name: "dtype", Value: "f16", Usage: "`TYPE`: f16, f32, bf16"},
					&cli.Uint64Flag{Name: "seed", Value: syntheticSeed, Usage: "the same seed makes the same bytes"},
					&cli.IntFlag{Name: "layers", Usage: "`N` layers instead of the model's: a small relative, for tests"},
					&cli.IntFlag{Name: "width", Usage: "`N` numbers per token instead of the model's, a multiple of its head size and of the heads that share a key"},
					&cli.BoolFlag{Name: "gguf-only", Usage: "leave the Hugging Face directory out"},
					&cli.StringFlag{Name: "engine-dir", Usage: "`DIR`: with vocab/ in it", DefaultText: "$NATIVEBENCH_ENGINE_DIR, or engine/ beside this program"},
				},
				Action: synthModel,
			},
			convertCommand(),
		},
	}
}

func oneModel(c *cli.Context) (plan.Model, error) {
	if c.NArg() != 1 {
		return plan.Model{}, refuse("%s takes one model: choose from %s", c.Command.Name, modelKeys())
	}
	m, err := plan.ModelByKey(c.Args().First())
	if err != nil {
		return plan.Model{}, usageError{err}
	}
	return m, nil
}

func plainTable() table.Writer {
	t := table.NewWriter()
	t.SetStyle(table.StyleDefault)
	t.Style().Options = table.OptionsNoBordersAndSeparators
	t.Style().Box.PaddingLeft = ""
	t.Style().Box.PaddingRight = "   "
	t.Style().Format.Header = text.FormatLower
	return t
}

// writeTable writes the table without blanks at the ends of lines.
func writeTable(w io.Writer, t table.Writer) {
	for line := range strings.Lines(t.Render()) {
		fmt.Fprintln(w, strings.TrimRight(line, " \n"))
	}
}

func listModels(c *cli.Context) {
	t := plainTable()
	t.AppendHeader(table.Row{"model", "parameters", "context", "Hugging Face id", "in the hub's cache", ""})
	for _, m := range plan.Models() {
		var remarks []string
		if m.Gated {
			remarks = append(remarks, "gated: needs a token")
		}
		if m.Beyond() {
			remarks = append(remarks, "not of the experiment: sampled as "+m.SamplingOf)
		}
		t.AppendRow(table.Row{m.Key, m.Size, m.Context, m.HubID, cmp.Or(inCache(m.HubID), "—"), strings.Join(remarks, "; ")})
	}
	t.SetColumnConfigs([]table.ColumnConfig{{Number: 2, Align: text.AlignRight}, {Number: 3, Align: text.AlignRight}})
	writeTable(c.App.Writer, t)
	fmt.Fprintf(c.App.Writer, "\nWeights: --weights hub (the model's own, downloaded when they are first wanted), synthetic (random, in the real shape), or FILE.gguf.\n")
}

// showModel prints a row of the table of models.
func showModel(c *cli.Context, m plan.Model) error {
	w := c.App.Writer
	row := func(name, format string, args ...any) {
		fmt.Fprintf(w, "%-14s %s\n", name, fmt.Sprintf(format, args...))
	}
	row("model", "%s", m.Key)
	row("hub", "https://huggingface.co/%s", m.HubID)
	row("in the cache", "%s", cmp.Or(inCache(m.HubID), "no; nativebench models pull "+m.Key))
	row("architecture", "%s", m.Arch)
	h := m.Shape
	row("shape", "%d layers of width %d, %d heads (%d for keys and values), feed-forward %d, vocabulary %d", h.Layers, h.Width, h.Heads, h.KVHeads, h.FFN, h.Vocab)
	if h.VocabNote != "" {
		row("synthetic", "%s", h.VocabNote)
	}
	row("context", "%d tokens, prompt and output", m.Context)
	if m.SlidingWindow > 0 {
		row("attention", "sliding window of %d tokens; llama.cpp (native, llama-server) attends to all", m.SlidingWindow)
	}
	row("template", "%q", m.Render("…"))
	bos := "no"
	if m.AddBOS {
		bos = "the tokenizer adds one"
	}
	row("BOS", "%s", bos)
	if m.Beyond() {
		row("sampling", "that of %s: the experiment does not have this model", m.SamplingOf)
	}
	fmt.Fprintln(w)
	t := plainTable()
	t.AppendHeader(table.Row{"task", "temperature", "top_p", "max_tokens", "input tokens", "expected output"})
	for _, task := range plan.Tasks() {
		s, err := plan.SamplingFor(m.Key, task.Key)
		if err != nil {
			return err
		}
		t.AppendRow(table.Row{task.Key, s.Temperature, s.TopP, s.MaxTokens, span(task.InputTokens), span(task.OutputTokens)})
	}
	writeTable(c.App.Writer, t)
	fmt.Fprintln(w)
	tensors, err := synth.Tensors(m.Key)
	if err != nil {
		return err
	}
	return showFit(c, tableShape(m, tensors), weightsByType(tensors))
}

func span(r [2]int) string { return fmt.Sprintf("%d–%d", r[0], r[1]) }

func synthModel(c *cli.Context) error {
	m, err := oneModel(c)
	if err != nil {
		return err
	}
	out := c.String("out")
	if out == "" {
		out = m.Key + "-synthetic"
	}
	if _, err := os.Lstat(out); err == nil {
		return refuse("--out %s: it exists; name a directory that does not exist yet", out)
	}
	if err := checkOut(out); err != nil {
		return err
	}
	dir := c.String("engine-dir")
	if dir == "" {
		dir = native.DefaultDir()
	}
	spec := synth.Spec{Model: m.Key, Seed: c.Uint64("seed"), DType: c.String("dtype"), VocabDir: filepath.Join(dir, "vocab"), Layers: c.Int("layers"), Width: c.Int("width"), GGUFOnly: c.Bool("gguf-only")}
	if err := spec.Check(); err != nil {
		return usageError{err}
	}
	bytes, err := spec.ToWrite(out)
	if err != nil {
		return usageError{err}
	}
	if err := checkDisk([]diskNeed{{what: "synthetic weights of " + m.Key, dir: absolute(out), bytes: bytes}}, "choose a directory on another disk with --out, or write less (--gguf-only, --layers)"); err != nil {
		return err
	}
	stop := listen(c.Context, c.App.ErrWriter)
	defer stop.close()
	ctx, cancel := stop.either()
	defer cancel()
	began := time.Now()
	show := newLiveLine(c.App.ErrWriter)
	made, err := synth.Write(ctx, spec, out, synthProgress(m.Key, out, show))
	show.erase()
	if err != nil {
		os.Remove(out) // it is empty, and would be refused the next time
		if stop.stopped() {
			return exitStatus(exitInterrupted)
		}
		return err
	}
	fmt.Fprintf(c.App.Writer, "synthetic weights of %s (%s, seed %d), written in %s:\n", m.Key, made.DType, spec.Seed, short(time.Since(began)))
	fmt.Fprintf(c.App.Writer, "  GGUF          %s\n", made.GGUF)
	if made.HFDir != "" {
		fmt.Fprintf(c.App.Writer, "  Hugging Face  %s\n", made.HFDir)
	}
	if note := m.Shape.VocabNote; note != "" {
		fmt.Fprintf(c.App.Writer, "  vocabulary    %s\n", note)
	}
	return nil
}
