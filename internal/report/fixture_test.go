package report

import (
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/nativebench/nativebench/internal/bench"
	"github.com/nativebench/nativebench/internal/results"
)

// fixture builds runs by hand, in memory. Its numbers are invented; the same
// calls give the same run, always.
type fixture struct {
	run *results.Run
	rng *rand.Rand
	now int64
}

const ms = int64(time.Millisecond)

func newFixture(dir string, backends ...string) *fixture {
	f := &fixture{rng: rand.New(rand.NewPCG(1, 2)), now: 1000 * 1000 * ms}
	f.run = &results.Run{Dir: dir, Manifest: results.Manifest{
		Schema:  results.Schema,
		RunID:   "0123456789abcdef",
		Created: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
		Tool:    results.Tool{Version: "v0.1.0", GoVersion: "go1.26", CGO: true},
		Environment: results.Environment{
			OS: "Linux", Kernel: "6.1.0", CPU: "Example CPU 3.0 GHz", Cores: 2, MemoryB: 24 << 30, Governor: "performance",
		},
		Clock: results.Clock{Source: "CLOCK_MONOTONIC", UncertaintyNS: 40},
		Models: []results.Model{{
			Key: "gpt2", HubID: "openai-community/gpt2", Path: "gpt2.gguf", SHA256: "aa00bb11cc22dd33", Bytes: 330 << 20,
			DType: "F16", Synthetic: true, Seed: 1,
		}},
	}}
	for _, b := range backends {
		info := bench.Info{
			Backend: b, Engine: "llama.cpp", Version: "v0.5.0", Build: "b1234, CPU", Device: "CPU", Model: "gpt2",
			Synthetic: true, DType: "F16", Context: 1024, Slots: 4,
		}
		row := results.Backend{Info: info}
		if b != reference {
			row.StartNS = 1234 * ms
			row.Substitutions = []string{"seed 0 is sent as 1"}
		}
		f.run.Manifest.Backends = append(f.run.Manifest.Backends, row)
	}
	return f
}

// pace is how fast a backend is.
type pace struct {
	overhead int64 // before the prefill, ns
	prefill  int64 // per prompt token
	decode   int64 // per token
}

func paceOf(backend string, concurrency int) pace {
	p := pace{overhead: 50_000, prefill: 120_000, decode: 9_600_000}
	if backend != reference {
		p = pace{overhead: 1_400_000, prefill: 121_000, decode: 9_840_000}
	}
	p.decode += int64(concurrency-1) * 2_300_000
	return p
}

// cell describes one cell to make.
type cellSpec struct {
	task, mode, backend string
	concurrency         int
	prompt              int
	repeat, requests    int
	expect              [2]int
	maxTokens           int
	state               results.CellState
	reason              string
	busy                []string                // warnings
	change              func(r *results.Record) // of each record, after it was made
	keep                int                     // records that were written; 0: all
}

func (f *fixture) add(c cellSpec) {
	load := fmt.Sprintf("gpt2/%s/%s/c%d", c.task, c.mode, c.concurrency)
	if c.prompt > 0 {
		load = fmt.Sprintf("gpt2/%s-%d/%s/c%d", c.task, c.prompt, c.mode, c.concurrency)
	}
	cell := results.Cell{
		ID: fmt.Sprintf("%s/%s/r%d", load, c.backend, c.repeat), Load: load, Backend: c.backend, Model: "gpt2", Task: c.task,
		Mode: c.mode, Concurrency: c.concurrency, Prompt: c.prompt, Repeat: c.repeat, Requests: c.requests, Expect: c.expect,
		Sampling: bench.Sampling{Temperature: 0.9, TopP: 0.95, MaxTokens: c.maxTokens},
	}
	if c.prompt > 0 {
		cell.Sampling = bench.Sampling{TopP: 1, MaxTokens: c.maxTokens, IgnoreEOS: true}
	}
	f.run.Manifest.Cells = append(f.run.Manifest.Cells, cell)
	if c.state == results.CellNotRun {
		return
	}
	f.event(results.CellEvent{Cell: cell.ID, Attempt: 1, State: results.CellStarted})
	p := paceOf(c.backend, c.concurrency)
	free := make([]int64, c.concurrency)
	for w := range free {
		free[w] = f.now + int64(w)*ms/2
	}
	window := [2]int64{f.now, f.now}
	f.record(cell, c, p, -1, 0, f.now-500*ms) // warm-up, much slower
	for i := range c.requests {
		if c.keep > 0 && i >= c.keep {
			break
		}
		w := i % c.concurrency
		r := f.record(cell, c, p, i, w, free[w])
		free[w] = r.End + 30_000
		window[1] = max(window[1], r.End)
	}
	f.now = window[1] + 100*ms
	end := results.CellEvent{Cell: cell.ID, Attempt: 1, State: results.CellDone}
	end.Warn(results.DoubtBusy, c.busy...)
	if c.state != "" {
		end.State, end.Reason = c.state, c.reason
	}
	if end.State == results.CellFailed {
		end.Class, end.Stderr = "crash", []string{"loading", "ggml_abort: example"}
	} else {
		end.WindowNS = window
		end.Host = &results.HostUse{Samples: 20, PeakRSS: 612 << 20, PeakPSS: 598 << 20, CPUSeconds: 2, OtherCores: 0.02, MeanMHz: 3000}
	}
	if c.backend == reference {
		end.LoadNS = 180 * ms
		end.Memory = []bench.MemoryPart{
			{Device: "CPU", Part: "weights", Bytes: 326 << 20}, {Device: "CPU", Part: "kv", Bytes: 36 << 20}, {Device: "CPU", Part: "compute", Bytes: 19 << 20},
		}
	} else {
		end.FirstConnNS = 210_000
		if end.State == results.CellDone && c.backend == "llama-server" {
			n := int64(c.requests)
			end.Server = &results.ServerUse{
				Scrapes: 9, RunningMax: float64(c.concurrency), RunningMean: 0.9 * float64(c.concurrency), WaitingMax: 0, KVCacheUsedMax: -1,
				PrefixHits: 0, PrefixQueries: -1, Preemptions: -1, QueueMeanSeconds: -1, PromptTokens: 40 * n, OutputTokens: int64(c.maxTokens) * n, ScrapeSeconds: 0.0012,
			}
		}
	}
	f.event(end)
}

func (f *fixture) event(e results.CellEvent) {
	e.T = f.now
	f.run.Events = append(f.run.Events, e)
}

func (f *fixture) record(cell results.Cell, c cellSpec, p pace, i, worker int, start int64) *results.Record {
	jitter := func(v int64) int64 { return int64(float64(v) * (1 + 0.03*f.rng.NormFloat64())) }
	// What is asked depends on the index alone, as in a real run.
	ask := rand.New(rand.NewPCG(uint64(i+100), 7))
	prompt, n := 24+ask.IntN(70), c.maxTokens
	if c.prompt > 0 {
		prompt = c.prompt
	}
	r := results.Record{
		Cell: cell.ID, Attempt: 1, Index: i, Warmup: i < 0, Worker: worker, Prompt: fmt.Sprintf("p%d", i), Text: "text",
		Trace: bench.Trace{Start: start, PromptTokens: prompt, OutputTokens: n, Counted: bench.CountEngine, Finish: bench.FinishLength},
	}
	prefill := jitter(p.prefill * int64(prompt))
	t := start + jitter(p.overhead) + prefill
	decode, sampling := int64(0), int64(0)
	var marks []bench.Mark
	for k := range n {
		if k > 0 {
			step := jitter(p.decode)
			t += step
			decode += step * 96 / 100
			sampling += step * 3 / 100
		}
		marks = append(marks, bench.Mark{T: t, N: int32(k + 1)})
	}
	r.End = t + 40_000
	r.Events = 1
	if c.mode == "stream" {
		r.Marks, r.Events = marks, n
	} else {
		r.Marks = []bench.Mark{{T: r.End, N: int32(n)}}
	}
	if c.backend == reference {
		r.Phases = bench.Phases{Tokenize: 45_000, Queue: 3_000, Prefill: prefill, Decode: decode, Sampling: sampling, Detokenize: 90_000}
	} else {
		r.Counted = bench.CountUsage
		r.Sent, r.FirstByte = start+30_000, start+p.overhead/2
		if c.mode == "stream" {
			r.FirstLine = marks[0].T
		}
		r.Server = bench.Server{PromptTokens: prompt, OutputTokens: n, Prefill: prefill, Decode: t - marks[0].T}
	}
	if i < 0 { // a warm-up that would show if it were counted
		r.End += 60_000 * ms
	} else if c.change != nil {
		c.change(&r)
	}
	f.run.Records = append(f.run.Records, r)
	return &f.run.Records[len(f.run.Records)-1]
}

// fullFixture has of everything something: both modes, two concurrencies,
// failures of requests and of cells, warnings, too few samples, a sweep.
func fullFixture() *results.Run {
	f := newFixture("runs/example", "native", "llama-server")
	f.run.Manifest.Environment.Warnings = []string{"2 usable cores: the client and the server share them with the model, so served numbers hold some of the client's own work"}
	backends := []string{"native", "llama-server"}
	for repeat := range 3 {
		for _, mode := range []string{"sync", "stream"} {
			for _, c := range []int{1, 4} {
				for k := range backends {
					b := backends[(k+repeat)%2]
					s := cellSpec{task: "chat", mode: mode, backend: b, concurrency: c, repeat: repeat, requests: 12, expect: [2]int{20, 100}, maxTokens: 40}
					if b == "llama-server" && mode == "stream" && c == 4 {
						s.busy = []string{fmt.Sprintf("busy machine: other processes kept %.2f of 2 cores busy; numbers are slower and vary more than on a quiet one", 0.3+0.1*float64(repeat))}
						s.change = func(r *results.Record) {
							if r.Index == 5 {
								r.Class, r.Error = bench.Timeout, "llama-server: no answer within 2m0s: raise --request-timeout"
								r.OutputTokens, r.Marks = 0, nil
							}
						}
					}
					f.add(s)
				}
			}
		}
	}
	// A cell that crashed, one that was not run, repeats that disagree, a task
	// range that is missed.
	for repeat := range 3 {
		for _, b := range backends {
			s := cellSpec{task: "qa", mode: "stream", backend: b, concurrency: 1, repeat: repeat, requests: 36, expect: [2]int{10, 30}, maxTokens: 40}
			switch {
			case b == "llama-server" && repeat == 1:
				s.state, s.reason, s.keep = results.CellFailed, "the cell's process was killed by signal 6 (aborted)", 5
			case b == "llama-server" && repeat == 2:
				s.state = results.CellNotRun
			case b == "native" && repeat == 2:
				s.change = func(r *results.Record) { stretch(r, 6, 5) } // a machine that had got slower
			}
			f.add(s)
		}
	}
	// Too few samples for anything; a server whose events hold two tokens each.
	for _, b := range backends {
		f.add(cellSpec{task: "code", mode: "stream", backend: b, concurrency: 1, requests: 3, expect: [2]int{50, 150}, maxTokens: 60, change: func(r *results.Record) {
			if b == "llama-server" {
				half := r.Marks[:0]
				for i, m := range r.Marks {
					if i%2 == 1 {
						half = append(half, m)
					}
				}
				r.Marks, r.Events = half, len(half)
			}
		}})
	}
	f.sweep(backends, []int{64, 256, 512, 896})
	return f.run
}

func (f *fixture) sweep(backends []string, lengths []int) {
	for repeat := range 2 {
		for _, n := range lengths {
			for _, b := range backends {
				f.add(cellSpec{task: "context", mode: "stream", backend: b, concurrency: 1, prompt: n, repeat: repeat, requests: 8, maxTokens: 32})
			}
		}
	}
}

// stretch makes everything of a request take num/den of its time.
func stretch(r *results.Record, num, den int64) {
	scale := func(t int64) int64 { return t * num / den }
	at := func(t int64) int64 {
		if t == 0 {
			return 0
		}
		return r.Start + scale(t-r.Start)
	}
	for i := range r.Marks {
		r.Marks[i].T = at(r.Marks[i].T)
	}
	r.Sent, r.FirstByte, r.FirstLine, r.End = at(r.Sent), at(r.FirstByte), at(r.FirstLine), at(r.End)
	p := r.Phases
	r.Phases = bench.Phases{Tokenize: scale(p.Tokenize), Queue: scale(p.Queue), Prefill: scale(p.Prefill), Decode: scale(p.Decode), Sampling: scale(p.Sampling), Detokenize: scale(p.Detokenize)}
	r.Server.Prefill, r.Server.Decode = scale(r.Server.Prefill), scale(r.Server.Decode)
}

// pairFixture are two runs of the same plan; the second machine is faster, and
// one of its loads asks for other sampling.
func pairFixture() []*results.Run {
	var runs []*results.Run
	for i, dir := range []string{"runs/before", "runs/after"} {
		f := newFixture(dir, "native", "llama-server")
		for repeat := range 2 {
			for _, task := range []string{"chat", "code"} {
				for _, b := range []string{"native", "llama-server"} {
					s := cellSpec{task: task, mode: "stream", backend: b, concurrency: 1, repeat: repeat, requests: 8, maxTokens: 24}
					if i == 1 {
						s.change = func(r *results.Record) { stretch(r, 9, 10) }
						if task == "code" {
							s.maxTokens = 30
						}
					}
					f.add(s)
				}
			}
		}
		f.run.Manifest.Backends[1].Build = []string{"b1234, CPU", "b1300, CPU"}[i]
		runs = append(runs, f.run)
	}
	return runs
}

// oneFixture has one load, a failed request and a request with a warning.
func oneFixture() *results.Run {
	f := newFixture("runs/one", "native", "llama-server")
	for _, b := range []string{"native", "llama-server"} {
		f.add(cellSpec{task: "chat", mode: "stream", backend: b, concurrency: 2, requests: 8, expect: [2]int{10, 20}, maxTokens: 12, change: func(r *results.Record) {
			switch {
			case b == reference:
			case r.Index == 2:
				r.Class, r.Error = bench.Truncated, "llama-server: the stream ended without its end mark"
			case r.Index == 4:
				r.Warn(bench.WarnNoFinish)
			}
		}})
	}
	return f.run
}

// fourFixture has more backends than fit beside each other.
func fourFixture() *results.Run {
	backends := []string{"vllm", "native", "transformers", "tgi"} // native is the reference wherever it stands
	f := newFixture("runs/four", backends...)
	for repeat := range 2 {
		for _, b := range backends {
			f.add(cellSpec{task: "summarization", mode: "stream", backend: b, concurrency: 4, repeat: repeat, requests: 12, expect: [2]int{50, 100}, maxTokens: 60})
		}
	}
	f.sweep(backends, []int{64, 256, 512})
	return f.run
}
