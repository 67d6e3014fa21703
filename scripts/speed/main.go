//go:build cgo && linux

// Speed holds the in-process engine against llama.cpp's own benchmarks of the
// same build: same model, threads and batch, run in turns.
//
//	go run ./scripts/speed -model model.gguf [-pairs 7] [-json]
//
// Each pair is two processes, ours and llama-bench (or llama-batched-bench),
// first one then the other in alternating order; a pair's ratio is ours over
// theirs. Printed are the median ratio and the range of all pairs. A ratio
// above 1 means that we are faster.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/nativebench/nativebench/native"
)

// kind is one comparison: our work, and how the other side is run.
type kind struct {
	name string
	work native.Work
	rate func(native.Work, native.Timing) float64 // tokens per second
	// theirs returns the peer's rate; nil: the peer is our own raw decode.
	theirs func(dir, model string, threads, reps int) (float64, error)
	target float64
}

func prefill(w native.Work, t native.Timing) float64 {
	return float64(w.PromptTokens*w.Slots) / float64(t.Prompt) * 1e9
}

func decode(w native.Work, t native.Timing) float64 {
	return float64((w.OutputTokens-1)*w.Slots) / float64(t.Decode) * 1e9
}

func kinds() []kind {
	raw := native.Work{PromptTokens: 1, OutputTokens: 129, Slots: 1}
	sampled := native.Work{PromptTokens: 1, OutputTokens: 129, Slots: 1, Sample: true, Temperature: 0.8, TopP: 0.95}
	return []kind{
		{"decode, no sampler / llama-bench tg128", raw, decode, llamaBench("-p", "0", "-n", "128"), 1.00},
		{"prompt of 512 / llama-bench pp512", native.Work{PromptTokens: 512, OutputTokens: 1, Slots: 1}, prefill, llamaBench("-p", "512", "-n", "0"), 1.00},
		{"decode of 4 / llama-batched-bench 4", native.Work{PromptTokens: 128, OutputTokens: 129, Slots: 4}, decode, batchedBench, 0.98},
		{"decode, temperature + top-p / our raw decode", sampled, decode, nil, 0.97},
	}
}

type options struct {
	dir, model    string
	threads, reps int
	self          string // run this kind once, as the child
	pairs         int
	asJSON        bool
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
	flag.BoolVar(&o.asJSON, "json", false, "print JSON")
	flag.StringVar(&o.self, "self", "", "internal: run one kind and print its rate")
	flag.Parse()
	if o.model == "" {
		return fmt.Errorf("-model is missing: the GGUF file to run")
	}
	if o.self != "" {
		return child(o)
	}
	if o.pairs < 5 {
		return fmt.Errorf("-pairs is %d: fewer than 5 pairs say nothing", o.pairs)
	}
	return compare(o)
}

// child measures one kind in this process and prints tokens per second.
func child(o options) error {
	w, rate, err := find(o.self)
	if err != nil {
		return err
	}
	e, err := native.Open(context.Background(), native.Config{
		Dir: o.dir, ModelPath: o.model, Slots: w.Slots, Context: w.PromptTokens + w.OutputTokens, Threads: o.threads,
	}, nil)
	if err != nil {
		return err
	}
	defer e.Close()
	var rates []float64
	for i := range o.reps + 1 {
		t, err := e.Speed(w)
		if err != nil {
			return err
		}
		if i > 0 { // the first one warms up, as llama-bench does
			rates = append(rates, rate(w, t))
		}
	}
	fmt.Println(median(rates))
	return nil
}

func find(name string) (native.Work, func(native.Work, native.Timing) float64, error) {
	for _, k := range kinds() {
		if k.name == name {
			return k.work, k.rate, nil
		}
	}
	return native.Work{}, nil, fmt.Errorf("no kind %q", name)
}

func ours(o options, name string) (float64, error) {
	exe, err := os.Executable()
	if err != nil {
		return 0, err
	}
	out, err := output(exec.Command(exe, "-self", name, "-engine", o.dir, "-model", o.model,
		"-threads", strconv.Itoa(o.threads), "-reps", strconv.Itoa(o.reps)))
	if err != nil {
		return 0, err
	}
	return strconv.ParseFloat(strings.TrimSpace(string(out)), 64)
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

func llamaBench(args ...string) func(dir, model string, threads, reps int) (float64, error) {
	return func(dir, model string, threads, reps int) (float64, error) {
		out, err := output(exec.Command(filepath.Join(dir, "llama-bench"), append([]string{
			"-m", model, "-t", strconv.Itoa(threads), "-r", strconv.Itoa(reps), "-o", "json",
		}, args...)...))
		if err != nil {
			return 0, err
		}
		var tests []struct {
			Samples []float64 `json:"samples_ts"`
		}
		if err := json.Unmarshal(out, &tests); err != nil || len(tests) != 1 {
			return 0, fmt.Errorf("llama-bench printed something else than one test: %.200s", out)
		}
		return median(tests[0].Samples), nil
	}
}

func batchedBench(dir, model string, threads, reps int) (float64, error) {
	var rates []float64
	for range reps {
		t := strconv.Itoa(threads)
		out, err := output(exec.Command(filepath.Join(dir, "llama-batched-bench"), "-m", model, "-t", t, "-tb", t,
			"-c", "1028", "-npp", "128", "-ntg", "128", "-npl", "4", "--output-format", "jsonl"))
		if err != nil {
			return 0, err
		}
		var row struct {
			Speed float64 `json:"speed_tg"`
		}
		at := bytes.IndexByte(out, '{')
		if at < 0 || json.Unmarshal(bytes.TrimSpace(out[at:]), &row) != nil || row.Speed <= 0 {
			return 0, fmt.Errorf("llama-batched-bench printed no speed_tg: %.200s", out)
		}
		rates = append(rates, row.Speed)
	}
	return median(rates), nil
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

func compare(o options) error {
	var results []result
	for _, k := range kinds() {
		theirs := k.theirs
		if theirs == nil {
			theirs = func(string, string, int, int) (float64, error) { return ours(o, kinds()[0].name) }
		}
		var us, them, ratios []float64
		for i := range o.pairs {
			var a, b float64
			var errA, errB error
			first, second := func() { a, errA = ours(o, k.name) }, func() { b, errB = theirs(o.dir, o.model, o.threads, o.reps) }
			if i%2 == 1 {
				first, second = second, first
			}
			first()
			second()
			if errA != nil || errB != nil {
				return fmt.Errorf("%s: %w", k.name, cmpErr(errA, errB))
			}
			us, them, ratios = append(us, a), append(them, b), append(ratios, a/b)
		}
		r := result{k.name, median(us), median(them), median(ratios), ratios, k.target}
		results = append(results, r)
		if !o.asJSON {
			fmt.Printf("%-46s %9.1f / %9.1f tok/s   ratio %.3f  [%.3f, %.3f] of %d pairs   target %.2f\n",
				r.Kind, r.Ours, r.Theirs, r.Ratio, slices.Min(ratios), slices.Max(ratios), len(ratios), r.Target)
		}
	}
	if o.asJSON {
		enc := json.NewEncoder(os.Stdout)
		enc.SetIndent("", "  ")
		return enc.Encode(results)
	}
	return nil
}

func cmpErr(a, b error) error {
	if a != nil {
		return a
	}
	return b
}
