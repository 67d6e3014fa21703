package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/nativebench/nativebench/internal/plan"
	"github.com/nativebench/nativebench/internal/results"
	"github.com/nativebench/nativebench/native"
)

// opsPlanFlags are the flags of compare that ops takes, too.
var opsPlanFlags = []string{"threads", "batch-threads", "batch", "ubatch", "prefill-chunk", "gpu-layers", "flash-attn", "cache-type"}

func opsCommand(known registry) *cli.Command {
	flags := []cli.Flag{
		&cli.StringFlag{Name: "model", Category: flagsWhat, Value: plan.Default().Models[0], Usage: "`MODEL`: " + modelKeys()},
		&cli.IntFlag{Name: "prompt-tokens", Category: flagsWhat, Value: 128, Usage: "tokens of each prompt"},
		&cli.IntFlag{Name: "max-tokens", Category: flagsWhat, Value: 32, Usage: "tokens of each answer; at least 2"},
		&cli.IntFlag{Name: "concurrency", Category: flagsWhat, Value: 1, Usage: "sequences decoded at once"},
		&cli.IntFlag{Name: "repeat", Category: flagsHow, Value: 5, Usage: "times all of that is run, after one to warm up, in each of two engines"},
	}
	for _, f := range planFlags() {
		if slices.Contains(opsPlanFlags, f.Names()[0]) {
			flags = append(flags, f)
		}
	}
	flags = append(flags, slices.DeleteFunc(weightFlags(), func(f cli.Flag) bool { return f.Names()[0] == "hf-dir" })...)
	flags = append(flags, answerFlags()...)
	return &cli.Command{
		Name:  "ops",
		Usage: "where a step of native goes, operation by operation: time, bytes, FLOPs, roofline",
		Description: "Examples:\n" +
			"   nativebench ops --model gpt2\n" +
			"   nativebench ops --gguf model.gguf --model phi-2 --prompt-tokens 512 --concurrency 8\n\n" +
			"The model is loaded twice. The first engine runs as always, and its steps are timed\n" +
			"whole. In the second every operation is computed alone and awaited, by llama.cpp's\n" +
			"evaluation callback: what that costs is measured with an operation on one number, taken\n" +
			"off, and shown, so that the parts can be held against the whole. It is an account of\n" +
			"where time goes, not a measurement of how fast the engine is: compare does that.",
		Flags:  flags,
		Action: func(c *cli.Context) error { return opsAction(c, known) },
	}
}

func opsAction(c *cli.Context, known registry) error {
	if err := noArguments(c); err != nil {
		return err
	}
	for flag, least := range map[string]int{"prompt-tokens": 1, "max-tokens": 2, "concurrency": 1, "repeat": 1} {
		if n := c.Int(flag); n < least {
			return refuse("--%s is %d; it must be at least %d", flag, n, least)
		}
	}
	if f := c.String("format"); f != "terminal" && f != "json" {
		return refuse("--format %s: choose terminal or json", f)
	}
	base := plan.Default()
	base.Backends, base.Modes, base.Repeats, base.Requests, base.Warmup = []string{"native"}, []plan.Mode{plan.Sync}, 1, 1, 0
	s := newSetup(c, known, base)
	s.plan.Models, s.plan.PromptTokens, s.plan.Concurrency = []string{c.String("model")}, []int{c.Int("prompt-tokens")}, []int{c.Int("concurrency")}
	s.out = filepath.Join(os.TempDir(), "nativebench-ops-"+runID()) // nothing is written there
	s.wait = readyTimeout                                           // no server is started
	if err := s.check(); err != nil {
		return err
	}
	stop := listen(c.Context, c.App.ErrWriter)
	defer stop.close()
	show := newLiveLine(c.App.ErrWriter)
	if err := s.readyToRun(stop, c.App.ErrWriter); err != nil {
		if stop.stopped() {
			return exitStatus(exitInterrupted)
		}
		return err
	}
	ctx, cancel := stop.either()
	defer cancel()
	account, err := s.watchOps(ctx, show, native.Work{
		PromptTokens: c.Int("prompt-tokens"), OutputTokens: c.Int("max-tokens"), Slots: c.Int("concurrency"),
		Sample: true, Temperature: 0.8, TopP: 0.95,
	}, c.Int("repeat"))
	show.erase()
	if stop.stopped() {
		return exitStatus(exitInterrupted)
	}
	if err != nil {
		return err
	}
	if c.String("format") == "json" {
		e := json.NewEncoder(c.App.Writer)
		e.SetIndent("", "  ")
		return e.Encode(account)
	}
	return account.write(c.App.Writer)
}

// watchOps loads the model twice and accounts for its steps.
func (s *setup) watchOps(ctx context.Context, show *liveLine, w native.Work, times int) (*opsAccount, error) {
	key := s.plan.Models[0]
	b, err := s.known.find("native")
	if err != nil {
		return nil, err
	}
	at, err := b.ready(ctx, s.place(b.name, key))
	if err != nil {
		return nil, err
	}
	cfg, ok := at.spec.(native.Config)
	if !ok {
		return nil, fmt.Errorf("ops: the engine in process is described by a %T", at.spec)
	}
	a := &opsAccount{Tool: buildFacts(), Notes: slices.DeleteFunc(slices.Clone(s.machine.Warnings), aboutServing), Model: s.models[key].file, Work: opsWork{w.PromptTokens, w.OutputTokens, w.Slots, times}}
	seen := map[string]native.Watched{}
	for _, watch := range []string{"steps", "ops"} {
		cfg.Watch = watch
		e, err := native.Open(ctx, cfg, func(f float64) { show.draw(fmt.Sprintf("loading the model, %.0f %%", 100*f)) })
		if err != nil {
			return nil, err
		}
		show.draw(map[string]string{"steps": "timing whole steps", "ops": "timing operations"}[watch])
		info := e.Info()
		a.Device, a.Build = info.Device, info.Engine+" "+info.Version+"; "+info.Build
		seen[watch], err = e.Watch(w, times)
		e.Close()
		if err != nil || ctx.Err() != nil {
			return nil, err
		}
	}
	a.fill(seen["steps"], seen["ops"])
	return a, nil
}

// aboutServing tells whether a warning of the machine is about servers and their
// clients, of which there are none here.
func aboutServing(warning string) bool { return strings.Contains(warning, "the client and the server") }

// opsAccount is what ops prints. Times are means over the steps of a kind.
type opsAccount struct {
	Tool   results.Tool  `json:"tool"`
	Build  string        `json:"engine"`
	Model  results.Model `json:"model"`
	Device string        `json:"device"`
	Work   opsWork       `json:"work"`
	Notes  []string      `json:"notes,omitempty"` // of the machine

	EmptyNS    int64  `json:"empty_operation_ns"` // launched alone and awaited; the fastest of many
	MemoryRate int64  `json:"memory_bytes_per_second,omitempty"`
	Memory     string `json:"memory_measured_by,omitempty"`
	FLOPRate   int64  `json:"flops_per_second,omitempty"`
	Product    string `json:"flops_measured_by,omitempty"`

	Prefill stepAccount `json:"prefill"`
	Decode  stepAccount `json:"decode"`
}

type opsWork struct {
	PromptTokens int `json:"prompt_tokens"` // of each sequence
	OutputTokens int `json:"output_tokens"` // of each sequence
	Slots        int `json:"sequences"`
	Times        int `json:"repeats"`
}

// stepAccount adds up: PartsNS + SamplingNS + ObservingNS + BetweenNS =
// ObservedNS, each of one step on average.
type stepAccount struct {
	Seen       int      `json:"steps_seen"`
	Steps      int      `json:"steps"` // the faster half of them, which the means are of
	Tokens     float64  `json:"tokens_per_step"`
	Parts      []opPart `json:"operations"`
	PartsNS    float64  `json:"operations_ns"` // without what observing them cost
	SamplingNS float64  `json:"sampling_ns"`
	OnDevice   bool     `json:"sampling_on_device"`
	// ObservingNS is the cost of launching each operation alone and awaiting it.
	ObservingNS float64 `json:"observing_ns"`
	BetweenNS   float64 `json:"between_operations_ns"` // building the graph, its inputs, looking at operations
	ObservedNS  float64 `json:"observed_step_ns"`
	// WholeNS is a step of the other engine, which nobody looked into.
	WholeNS float64 `json:"unobserved_step_ns"`
}

// opPart is one kind of operation within one part of the layers, per step.
type opPart struct {
	Kind      string  `json:"part"`
	Op        string  `json:"operation"` // ggml's name
	Calls     float64 `json:"calls"`
	NS        float64 `json:"ns"`                  // as observed, less Calls times the empty operation; not below 0
	Short     bool    `json:"too_short,omitempty"` // NS is less than what was taken off: rates would tell nothing
	Read      float64 `json:"read_bytes"`          // elements of its tensors, each tensor once
	Written   float64 `json:"written_bytes"`
	Weights   float64 `json:"weights_bytes"`         // of Read: of the model's file
	FLOPs     float64 `json:"flops"`                 // of products; 0: it has none
	Roofline  float64 `json:"of_roofline,omitempty"` // the least time that bytes and FLOPs take, over NS; 0: not known
	ComputeIs bool    `json:"compute_bound,omitempty"`
}

func (a *opsAccount) fill(whole, ops native.Watched) {
	a.EmptyNS, a.MemoryRate, a.FLOPRate = ops.EmptyNS, ops.MemoryRate, ops.FLOPRate
	if a.MemoryRate > 0 {
		a.Memory = ops.Memory
	}
	if a.FLOPRate > 0 {
		a.Product = ops.Product
	}
	a.Prefill = a.account(whole.Prefill, ops.Prefill)
	a.Decode = a.account(whole.Decode, ops.Decode)
}

func (a *opsAccount) account(whole, seen native.Steps) stepAccount {
	if seen.Steps == 0 || whole.Steps == 0 {
		return stepAccount{}
	}
	n := float64(seen.Steps)
	s := stepAccount{Seen: seen.Seen, Steps: seen.Steps, Tokens: float64(seen.Tokens) / n, SamplingNS: float64(seen.SampleNS) / n, OnDevice: seen.OnDevice}
	at := map[[2]string]int{}
	for _, o := range seen.Ops {
		key := [2]string{partOf(o), o.Op}
		i, ok := at[key]
		if !ok {
			i, at[key] = len(s.Parts), len(s.Parts)
			s.Parts = append(s.Parts, opPart{Kind: key[0], Op: key[1]})
		}
		p := &s.Parts[i]
		p.Calls += float64(o.Count) / n
		p.NS += float64(o.NS) / n
		p.Read += float64(o.Read) / n
		p.Written += float64(o.Written) / n
		p.Weights += float64(o.Weights) / n
		p.FLOPs += float64(o.FLOPs) / n
	}
	for i := range s.Parts {
		p := &s.Parts[i]
		cost := min(p.NS, p.Calls*float64(a.EmptyNS))
		p.NS -= cost
		p.Short = p.NS < cost
		s.PartsNS += p.NS
		s.ObservingNS += cost
		p.Roofline, p.ComputeIs = a.roofline(*p)
	}
	slices.SortStableFunc(s.Parts, func(x, y opPart) int { return slices.Index(partNames, x.Kind) - slices.Index(partNames, y.Kind) })
	s.ObservedNS, s.WholeNS = float64(seen.NS)/n, float64(whole.NS)/float64(whole.Steps)
	if !seen.OnDevice { // then it comes after the step
		s.ObservedNS += s.SamplingNS
		s.WholeNS += float64(whole.SampleNS) / float64(whole.Steps)
	}
	s.BetweenNS = s.ObservedNS - s.PartsNS - s.SamplingNS - s.ObservingNS
	return s
}

// roofline is the share of the measured rates that a part reaches: the larger
// of the times that its bytes and its FLOPs take at those, over its own.
func (a *opsAccount) roofline(p opPart) (share float64, compute bool) {
	if a.MemoryRate == 0 || p.Short {
		return 0, false
	}
	least := (p.Read + p.Written) / float64(a.MemoryRate)
	if a.FLOPRate > 0 {
		if t := p.FLOPs / float64(a.FLOPRate); t > least {
			least, compute = t, true
		}
	}
	return least * 1e9 / p.NS, compute
}

// partNames are the parts of a model, in the order of its layers.
var partNames = []string{
	"embedding", "norms", "attention QKV", "rope", "KV cache write", "attention", "attention out",
	"FFN gate", "FFN up", "FFN activation", "FFN down", "experts' choice", "residual", "LM head", "other",
}

// weightParts tell by the tensor of the model's file that an operation reads
// which part it belongs to; llama.cpp's names (gguf's TENSOR_NAMES).
var weightParts = []struct{ within, part string }{
	{"_norm", "norms"},
	{"position_embd", "embedding"},
	{"attn_qkv", "attention QKV"},
	{"attn_q", "attention QKV"},
	{"attn_k", "attention QKV"},
	{"attn_v", "attention QKV"},
	{"attn_output", "attention out"},
	{"ffn_gate_inp", "experts' choice"},
	{"ffn_gate", "FFN gate"},
	{"ffn_up", "FFN up"},
	{"ffn_down", "FFN down"},
	{"rope_", "rope"},
	{"output.", "LM head"},
}

// partOf is the part of the model that an operation belongs to: by the weights
// that it reads, or else by what it is and what it makes.
func partOf(o native.Op) string {
	if o.Weight != "" {
		if strings.HasPrefix(o.Weight, "token_embd") {
			if o.Op == "GET_ROWS" {
				return "embedding"
			}
			return "LM head"
		}
		for _, w := range weightParts {
			if strings.Contains(o.Weight, w.within) {
				return w.part
			}
		}
		return "other"
	}
	name, _, _ := strings.Cut(o.Name, "-")
	switch o.Op {
	case "NORM", "RMS_NORM", "L2_NORM", "GROUP_NORM":
		return "norms"
	case "ROPE":
		return "rope"
	case "SET_ROWS":
		return "KV cache write"
	case "FLASH_ATTN_EXT", "SOFT_MAX", "MUL_MAT":
		return "attention"
	case "GELU", "SILU", "RELU", "SWIGLU", "GEGLU", "REGLU", "GELU_QUICK", "GELU_ERF":
		return "FFN activation"
	case "ADD":
		if name == "inpL" {
			return "embedding"
		}
		return "residual"
	}
	switch {
	case strings.HasPrefix(name, "kq"), strings.HasPrefix(name, "Q"), strings.HasPrefix(name, "K"), strings.HasPrefix(name, "V"):
		return "attention"
	case strings.HasPrefix(name, "ffn"):
		return "FFN activation"
	}
	return "other"
}

func (a *opsAccount) write(w io.Writer) error {
	var b strings.Builder
	weights := ""
	if a.Model.Synthetic {
		weights = ", synthetic weights"
	}
	if a.Model.Relative != "" {
		weights += ", a relative: " + a.Model.Relative
	}
	fmt.Fprintf(&b, "nativebench %s ops: %s, %s%s\n", a.Tool.Version, a.Model.Key, a.Model.DType, weights)
	fmt.Fprintf(&b, "  %s\n  %s\n", a.Device, wrap(a.Build, 2))
	fmt.Fprintf(&b, "  sequences at once: %d; prompts of %d tokens, answers of %d, %d times; random token ids\n", a.Work.Slots, a.Work.PromptTokens, a.Work.OutputTokens, a.Work.Times)
	rate := func(name string, value int64, unit, how string) {
		if value == 0 {
			fmt.Fprintf(&b, "  %-9s not known\n", name)
			return
		}
		fmt.Fprintf(&b, "  %-9s %.1f %s: %s, measured afterwards\n", name, float64(value)/1e9, unit, how)
	}
	for _, note := range a.Notes {
		fmt.Fprintf(&b, "  note      %s\n", wrap(note, 12))
	}
	rate("memory", a.MemoryRate, "GB/s", a.Memory)
	rate("compute", a.FLOPRate, "GFLOP/s", a.Product)
	a.writeSteps(&b, "prefill", a.Prefill)
	a.writeSteps(&b, "decode", a.Decode)
	b.WriteString("\n" + strings.Join([]string{
		"  ms         of a step; the cost of observing, " + fmt.Sprintf("%.2f µs an operation", float64(a.EmptyNS)/1e3) + " at least, taken off",
		"  MB         of the operation's tensors, read and written, each once",
		"  FLOPs      of products: 2·m·n·k of a MUL_MAT; of attention with every key, masked ones too",
		"  roofline   the time that the bytes take at the memory's rate, or the FLOPs at the product's,",
		"             whichever is longer (mem, fp), over the time; over 100 %: caches gave the bytes",
		"  —          no products; or too short: less than what was taken off",
		"  Alone, operations are not fused, and none runs beside another: parts may add up to more than",
		"  a step that nobody looks into.",
	}, "\n") + "\n")
	_, err := io.WriteString(w, b.String())
	return err
}

func (a *opsAccount) writeSteps(b *strings.Builder, name string, s stepAccount) {
	if s.Steps == 0 {
		fmt.Fprintf(b, "\n%s: there was no such step\n", name)
		return
	}
	fmt.Fprintf(b, "\n%s: mean of the faster %d of %d steps, %.4g tokens each\n\n", name, s.Steps, s.Seen, s.Tokens)
	fmt.Fprintf(b, "  %-16s %-15s %6s %10s %6s %9s %8s %8s %8s %9s\n", "part", "operation", "calls", "ms", "share", "MB", "GB/s", "GFLOP", "GFLOP/s", "roofline")
	for _, p := range s.Parts {
		bytes := p.Read + p.Written
		perSecond := func(x float64) string {
			if x == 0 || p.Short {
				return "—"
			}
			return fmt.Sprintf("%.1f", x/p.NS) // 1e9 and ns cancel out
		}
		flops, share := "—", "—"
		if p.FLOPs > 0 {
			flops = fmt.Sprintf("%.4f", p.FLOPs/1e9)
		}
		if p.Roofline > 0 {
			share = fmt.Sprintf("%.0f%% mem", 100*p.Roofline)
			if p.ComputeIs {
				share = fmt.Sprintf("%.0f%% fp", 100*p.Roofline)
			}
		}
		fmt.Fprintf(b, "  %-16s %-15s %6.4g %10.4f %5.1f%% %9.3f %8s %8s %8s %9s\n", p.Kind, p.Op, p.Calls, p.NS/1e6, 100*p.NS/s.ObservedNS, bytes/1e6, perSecond(bytes), flops, perSecond(p.FLOPs), share)
	}
	where := "on the host"
	if s.OnDevice {
		where = "on the device"
	}
	line := func(what string, ns float64, more string) {
		fmt.Fprintf(b, "  %-39s %10.4f %5.1f%%%s\n", what, ns/1e6, 100*ns/s.ObservedNS, more)
	}
	line("sampling, "+where, s.SamplingNS, "")
	line("observing operations one by one", s.ObservingNS, "")
	line("between operations: graph, inputs", s.BetweenNS, "")
	line("= a step, observed", s.ObservedNS, "")
	parts := s.PartsNS + s.SamplingNS
	line("a step, unobserved", s.WholeNS, fmt.Sprintf("   operations and sampling add up to %.0f%% of it", 100*parts/s.WholeNS))
}
