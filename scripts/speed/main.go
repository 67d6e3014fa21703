//go:build cgo && linux

// Speed holds the in-process engine against llama.cpp's own benchmarks of the
// same build: same model, threads, batch and device, run in turns.
//
//	go run ./scripts/speed -model model.gguf [-pairs 7] [-gpu] [-json]
//
// Each pair is two processes, ours and llama-bench (or llama-batched-bench),
// first one then the other in alternating order; a pair's ratio is ours over
// theirs. Printed are the median ratio and the range of all pairs. A ratio
// above 1 means that we are faster. With -gpu also: how far our stamps lie
// behind the device, and which part of its memory's speed decoding reaches.
package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/nativebench/nativebench/internal/bench"
	"github.com/nativebench/nativebench/native"
)

// kind is one comparison within a group.
type kind struct {
	name   string
	work   native.Work
	rate   func(native.Work, native.Timing) float64 // tokens per second
	theirs string                                   // key of the peer's rate; "": our raw decode
	target float64
}

// group is what one process of each side measures.
type group struct {
	name  string
	kinds []kind
	peer  func(o options) (map[string]float64, error)
}

func prefill(w native.Work, t native.Timing) float64 {
	return float64(w.PromptTokens*w.Slots) / float64(t.Prompt) * 1e9
}

func decode(_ native.Work, t native.Timing) float64 {
	return float64(t.DecodeTokens) / float64(t.Decode) * 1e9
}

const rawDecode = "decode, no sampler / llama-bench tg128"

func groups(gpu bool) []group {
	one := func(n int) native.Work { return native.Work{PromptTokens: 1, OutputTokens: n, Slots: 1} }
	sampled := one(129)
	sampled.Sample, sampled.Temperature, sampled.TopP = true, 0.8, 0.95
	prompt := native.Work{PromptTokens: 512, OutputTokens: 1, Slots: 1}
	single := group{"single", []kind{
		// In llama-bench's order: a GPU that computes grows warm and slows down.
		{"prompt of 512 / llama-bench pp512", prompt, prefill, "pp512", 1.00},
		{rawDecode, one(129), decode, "tg128", 1.00},
		{"decode, temperature + top-p / our raw decode", sampled, decode, "", 0.97},
	}, llamaBench}
	parallel, target := []int{4}, 0.98
	if gpu {
		single.kinds[2] = kind{"decode, temperature + top-p / llama-bench tg128", sampled, decode, "tg128", 0.98}
		parallel = []int{8, 32, 64}
	}
	many := group{"parallel", nil, batchedBench(parallel)}
	for _, n := range parallel {
		name := fmt.Sprintf("decode of %d / llama-batched-bench %d", n, n)
		many.kinds = append(many.kinds, kind{name, native.Work{PromptTokens: 128, OutputTokens: 129, Slots: n}, decode, strconv.Itoa(n), target})
		if gpu {
			w := native.Work{PromptTokens: 128, OutputTokens: 129, Slots: n, Sample: true, Temperature: 0.8, TopP: 0.95}
			many.kinds = append(many.kinds, kind{fmt.Sprintf("decode of %d, temperature + top-p / llama-batched-bench %d", n, n), w, decode, strconv.Itoa(n), target})
		}
	}
	return []group{single, many}
}

type options struct {
	dir, model    string
	threads, reps int
	self          string // run this group once, as the child
	pairs         int
	gpu, asJSON   bool
}

func (o options) layers() int {
	if o.gpu {
		return -1
	}
	return 0
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "speed:", err)
		os.Exit(1)
	}
}

func run() error {
	var o options
	flag.StringVar(&o.dir, "engine", native.DefaultDir(), "engine `directory`")
	flag.StringVar(&o.model, "model", "", "GGUF `file`")
	flag.IntVar(&o.threads, "threads", 2, "threads of both sides")
	flag.IntVar(&o.reps, "reps", 5, "repetitions inside a process; their median counts")
	flag.IntVar(&o.pairs, "pairs", 7, "pairs of processes")
	flag.BoolVar(&o.gpu, "gpu", false, "the whole model on the GPU, on both sides")
	flag.BoolVar(&o.asJSON, "json", false, "print JSON")
	flag.StringVar(&o.self, "self", "", "internal: run one group and print its rates")
	flag.Parse()
	if o.model == "" {
		return fmt.Errorf("-model is missing: the GGUF file to run")
	}
	if o.self != "" {
		return child(o)
	}
	if o.pairs < 3 {
		return fmt.Errorf("-pairs is %d: fewer than 3 pairs say nothing", o.pairs)
	}
	return compare(o)
}

// measured is what a child prints.
type measured struct {
	Rates       map[string]float64 `json:"rates"` // tokens a second, by kind
	Bytes       int64              `json:"bytes"` // of the weights
	Calibration native.Calibration `json:"calibration"`
}

// child measures one group in this process.
func child(o options) error {
	at := slices.IndexFunc(groups(o.gpu), func(g group) bool { return g.name == o.self })
	if at < 0 {
		return fmt.Errorf("no group %q", o.self)
	}
	g := groups(o.gpu)[at]
	slots, tokens := 0, 0
	for _, k := range g.kinds {
		slots, tokens = max(slots, k.work.Slots), max(tokens, k.work.PromptTokens+k.work.OutputTokens)
	}
	e, err := native.Open(context.Background(), native.Config{
		Dir: o.dir, ModelPath: o.model, Slots: slots, Context: tokens, Threads: o.threads, GPULayers: o.layers(),
	}, nil)
	if err != nil {
		return err
	}
	defer e.Close()
	out := measured{Rates: map[string]float64{}}
	out.Bytes = weightBytes(e.Memory())
	for _, k := range g.kinds {
		var rates []float64
		for i := range o.reps + 1 {
			t, err := e.Speed(k.work)
			if err != nil {
				return err
			}
			if i > 0 { // the first one warms up, as llama-bench does
				rates = append(rates, k.rate(k.work, t))
			}
		}
		out.Rates[k.name] = median(rates)
	}
	if o.gpu && g.name == "single" {
		if out.Calibration, err = e.Calibrate(); err != nil && !errors.Is(err, native.ErrNoDevice) {
			return err
		}
	}
	return json.NewEncoder(os.Stdout).Encode(out)
}

func ours(o options, g group) (m measured, err error) {
	exe, err := os.Executable()
	if err != nil {
		return m, err
	}
	args := []string{"-self", g.name, "-engine", o.dir, "-model", o.model, "-threads", strconv.Itoa(o.threads), "-reps", strconv.Itoa(o.reps)}
	if o.gpu {
		args = append(args, "-gpu")
	}
	out, err := output(exec.Command(exe, args...))
	if err != nil {
		return m, err
	}
	return m, json.Unmarshal(out, &m)
}

func output(cmd *exec.Cmd) ([]byte, error) {
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s", filepath.Base(cmd.Path), err, stderr.Bytes()[max(0, stderr.Len()-500):])
	}
	return out, nil
}

// device gives the peers' flags for where the model runs.
func (o options) device() []string {
	if o.gpu {
		return []string{"-ngl", "99", "-fa", "on"}
	}
	return nil
}

func llamaBench(o options) (map[string]float64, error) {
	out, err := output(exec.Command(filepath.Join(o.dir, "llama-bench"), append([]string{
		"-m", o.model, "-t", strconv.Itoa(o.threads), "-r", strconv.Itoa(o.reps), "-p", "512", "-n", "128", "-o", "json",
	}, o.device()...)...))
	if err != nil {
		return nil, err
	}
	var tests []struct {
		Prompt  int       `json:"n_prompt"`
		Gen     int       `json:"n_gen"`
		Samples []float64 `json:"samples_ts"`
	}
	if err := json.Unmarshal(out, &tests); err != nil || len(tests) != 2 {
		return nil, fmt.Errorf("llama-bench printed something else than two tests: %.200s", out)
	}
	rates := map[string]float64{}
	for _, t := range tests {
		if t.Gen > 0 {
			rates["tg128"] = median(t.Samples)
		} else {
			rates["pp512"] = median(t.Samples)
		}
	}
	return rates, nil
}

func batchedBench(parallel []int) func(o options) (map[string]float64, error) {
	return func(o options) (map[string]float64, error) {
		t, list := strconv.Itoa(o.threads), make([]string, len(parallel))
		for i, n := range parallel {
			list[i] = strconv.Itoa(n)
		}
		context := strconv.Itoa(slices.Max(parallel) * (128 + 129))
		all := map[string][]float64{}
		for range o.reps {
			out, err := output(exec.Command(filepath.Join(o.dir, "llama-batched-bench"), append([]string{
				"-m", o.model, "-t", t, "-tb", t,
				"-c", context, "-npp", "128", "-ntg", "128", "-npl", strings.Join(list, ","), "--output-format", "jsonl",
			}, o.device()...)...))
			if err != nil {
				return nil, err
			}
			for line := range bytes.Lines(out) {
				var row struct {
					Parallel int     `json:"pl"`
					Speed    float64 `json:"speed_tg"`
				}
				if line[0] == '{' && json.Unmarshal(line, &row) == nil && row.Speed > 0 {
					all[strconv.Itoa(row.Parallel)] = append(all[strconv.Itoa(row.Parallel)], row.Speed)
				}
			}
			if o.gpu {
				break // a process loads the model for seconds; pairs repeat it
			}
		}
		rates := map[string]float64{}
		for _, n := range list {
			if len(all[n]) == 0 {
				return nil, fmt.Errorf("llama-batched-bench printed no speed_tg of %s sequences", n)
			}
			rates[n] = median(all[n])
		}
		return rates, nil
	}
}

func median(x []float64) float64 {
	s := slices.Sorted(slices.Values(x))
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}

// result is one line of the answer.
type result struct {
	Kind   string    `json:"kind"`
	Ours   float64   `json:"ours_tok_per_s"`
	Theirs float64   `json:"theirs_tok_per_s"`
	Ratio  float64   `json:"ratio"`
	Ratios []float64 `json:"ratios"`
	Target float64   `json:"target"`
}

// answer is all that -json prints.
type answer struct {
	Model       string             `json:"model"`
	Results     []result           `json:"results"`
	Bytes       int64              `json:"weight_bytes"`
	Calibration native.Calibration `json:"calibration"` // of the last process
}

func compare(o options) error {
	a := answer{Model: filepath.Base(o.model)}
	for _, g := range groups(o.gpu) {
		us, them, ratios := map[string][]float64{}, map[string][]float64{}, map[string][]float64{}
		for i := range o.pairs {
			var mine measured
			var peer map[string]float64
			var errA, errB error
			first, second := func() { mine, errA = ours(o, g) }, func() { peer, errB = g.peer(o) }
			if i%2 == 1 {
				first, second = second, first
			}
			first()
			second()
			if err := errors.Join(errA, errB); err != nil {
				return fmt.Errorf("%s: %w", g.name, err)
			}
			if g.name == "single" {
				a.Bytes, a.Calibration = mine.Bytes, mine.Calibration
			}
			for _, k := range g.kinds {
				x, y := mine.Rates[k.name], peer[k.theirs]
				if k.theirs == "" {
					y = mine.Rates[rawDecode]
				}
				us[k.name], them[k.name], ratios[k.name] = append(us[k.name], x), append(them[k.name], y), append(ratios[k.name], x/y)
			}
		}
		for _, k := range g.kinds {
			r := result{k.name, median(us[k.name]), median(them[k.name]), median(ratios[k.name]), ratios[k.name], k.target}
			a.Results = append(a.Results, r)
			if !o.asJSON {
				fmt.Printf("%-58s %9.1f / %9.1f tok/s   ratio %.3f  [%.3f, %.3f] of %d pairs   target %.2f\n",
					r.Kind, r.Ours, r.Theirs, r.Ratio, slices.Min(r.Ratios), slices.Max(r.Ratios), len(r.Ratios), r.Target)
			}
		}
	}
	if o.asJSON {
		enc := json.NewEncoder(os.Stdout)
		enc.SetIndent("", "  ")
		return enc.Encode(a)
	}
	if c := a.Calibration; c.Steps > 0 {
		us := func(ns int64) float64 { return float64(ns) / 1e3 }
		fmt.Printf("stamps of tokens after the device's end of the step: p50 %.1f µs, p99 %.1f, max %.1f, each ±%.1f (%d steps)\n",
			us(c.LateP50), us(c.LateP99), us(c.LateMax), us(c.Uncertainty), c.Steps)
		fmt.Print(a.roofline())
	}
	return nil
}

// weightBytes is what a token reads of the weights: what lies on the device that
// computes, without the table of embeddings that stays on the host, of which a
// token looks up one row.
func weightBytes(parts []bench.MemoryPart) (device int64) {
	var host int64
	for _, part := range parts {
		switch {
		case part.Part != "weights":
		case part.Device == "CPU":
			host += part.Bytes
		default:
			device += part.Bytes
		}
	}
	return cmp.Or(device, host)
}

// roofline holds the raw decode speed of one sequence against what reading all
// weights once a token allows, at the speed at which the device copies.
func (a answer) roofline() string {
	at := slices.IndexFunc(a.Results, func(r result) bool { return r.Kind == rawDecode })
	if at < 0 || a.Calibration.CopyRate <= 0 || a.Bytes <= 0 {
		return ""
	}
	limit := float64(a.Calibration.CopyRate) / float64(a.Bytes)
	return fmt.Sprintf("memory: copies at %.0f GB/s, so %.2f GB of weights a token allow %.1f tok/s: llama-bench reaches %.2f of it, we %.2f\n",
		float64(a.Calibration.CopyRate)/1e9, float64(a.Bytes)/1e9, limit, a.Results[at].Theirs/limit, a.Results[at].Ours/limit)
}
