package measure

import (
	"fmt"
	"slices"
	"strings"

	"github.com/nativebench/nativebench/internal/bench"
)

// Direction says which of two values is the better one.
type Direction string

const (
	Lower   Direction = "lower"
	Higher  Direction = "higher"
	Neither Direction = "" // a fact, not a merit
)

// Tool is how another tool defines the number of the same name, or of the same
// meaning.
type Tool struct{ Name, Definition string }

// Column is one metric: what it is called, what it means, how it is computed.
// Adding a metric is adding a row to Columns: CSV, JSON, explain and its document
// follow. The tables for people have room for some; report's lines chooses them.
type Column struct {
	Key    string // how users, CSV and JSON name it
	Name   string // how reports print it
	Unit   string // base unit: s, B, tok/s, req/s, tokens, requests, J, W, Hz, °C, ratio
	Better Direction

	Definition string // t0, t1, tL, n as in docs/metrics.md
	Clock      string // who stamps what
	TokenCount string // who counts the tokens; "" if none are involved
	Window     string // over what it is taken, and how values are pooled
	Elsewhere  []Tool

	// Exactly one of these computes it.
	Request func(*bench.Trace) (float64, bool)      // one value per successful request
	Gaps    func(*bench.Trace, []float64) []float64 // appends several
	Cell    func(*Group, *Cell) (float64, bool)     // one value per cell
	Count   func(*Group, *Request) bool             // how many requests have it
	// CountsFailed: Count looks at failed requests too.
	CountsFailed bool

	// ByLength: it grows or falls with the length of the answers, so backends
	// that answered at different lengths are not judged by it.
	ByLength bool
	// Prefill: it holds the reading of the prompt, so that it is not judged where
	// a prefix cache that should be off saved some of that.
	Prefill bool

	// Absent says why the metric is not measured for a group; "" if it is. nil:
	// always measured.
	Absent func(*Group) string
}

const (
	clockStamps = "CLOCK_MONOTONIC. In process the engine stamps a token when its id is on the host; over HTTP the kernel stamps the segment that holds the event (SO_TIMESTAMPNS)"
	clockSpan   = "CLOCK_MONOTONIC: t0 just before the request's first byte is written or the engine is called; the end with the last byte of the answer"
	clockCell   = "CLOCK_MONOTONIC, the stamps of the cell's requests"
	clockEngine = "CLOCK_MONOTONIC, inside the engine"
	clockServer = "the server's own, as it reports it; not checked by us"

	countTrust = "in order of trust: the engine's own; the server's usage; TGI's details; token ids; TGI events; a local tokenizer, marked approximate. Never chunks"

	perRequest = "one value per successful request that counts, warm-up apart, pooled over the repeats"
	perCell    = "one value per repeat"
)

func streamOnly(g *Group) string {
	if g.Mode != Stream {
		return "not measured in sync mode: nothing arrives token by token"
	}
	return ""
}

func needsPhases(g *Group) string {
	return anyRequest(g, "this backend does not tell its phases", func(tr *bench.Trace) bool { return tr.Phases != (bench.Phases{}) })
}

func needsServer(g *Group) string {
	return anyRequest(g, "this backend gives no account of its own", func(tr *bench.Trace) bool { return accounted(tr.Server) > 0 })
}

// needsPart makes a column's Absent of one part of a server's account.
func needsPart(of func(bench.Server) int64) func(*Group) string {
	return func(g *Group) string {
		if why := needsServer(g); why != "" {
			return why
		}
		return anyRequest(g, "the server's account does not tell it", func(tr *bench.Trace) bool { return of(tr.Server) > 0 })
	}
}

func needsRange(g *Group) string {
	if g.Expect == [2]int{} {
		return "the task has no expected length"
	}
	return needsTokens(g)
}

func needsTokens(g *Group) string {
	return anyRequest(g, "nobody counted the output tokens", func(tr *bench.Trace) bool { return tr.Counted != bench.CountNone })
}

func streamTokens(g *Group) string {
	if why := streamOnly(g); why != "" {
		return why
	}
	return needsTokens(g)
}

const noFirst = "so how many came after the first is not known, and time per token and decode speed leave them out"

func needsFirst(g *Group) string {
	if why := streamTokens(g); why != "" {
		return why
	}
	return anyRequest(g, "events hold several tokens and do not tell how many: how many came after the first is not known", func(tr *bench.Trace) bool {
		_, known := afterFirst(tr)
		return known || len(tr.Marks) < 2
	})
}

// anyRequest returns why when there are successful requests and none of them
// has it.
func anyRequest(g *Group, why string, has func(*bench.Trace) bool) string {
	some := false
	for _, c := range g.Cells {
		for _, r := range c.Requests {
			if r.counts() {
				if has(r.Trace) {
					return ""
				}
				some = true
			}
		}
	}
	if !some {
		return ""
	}
	return why
}

func itlAbsent(g *Group) string {
	if why := streamTokens(g); why != "" {
		return why
	}
	if k := perEvent(g); k > 0 && !oneToken(k) {
		return fmt.Sprintf("%.2f tokens per event: gaps are between chunks, see chunk_gap", k)
	}
	return ""
}

// ByKey finds a column. The error of an unknown key lists the keys.
func ByKey(key string) (Column, error) {
	columns := Columns()
	want := strings.ReplaceAll(strings.ToLower(strings.TrimSpace(key)), "-", "_")
	if alias, ok := aliases()[want]; ok {
		want = alias
	}
	if i := slices.IndexFunc(columns, func(c Column) bool { return c.Key == want }); i >= 0 {
		return columns[i], nil
	}
	keys := make([]string, len(columns))
	for i, c := range columns {
		keys[i] = c.Key
	}
	return Column{}, fmt.Errorf("unknown metric %q: choose from %s", key, strings.Join(keys, ", "))
}

// aliases are other names under which people look for a metric.
func aliases() map[string]string {
	return map[string]string{
		"p2ft": "ttft", "latency": "e2e", "total_latency": "e2e", "tbt": "itl",
		"vram": "gpu_peak_memory", "gpu_memory": "gpu_peak_memory", "energy": "energy_per_token", "power": "gpu_mean_power",
		"throughput": "req_per_s", "rss": "peak_rss", "pss": "peak_pss",
		"tok/s": "speed", "req/s": "req_per_s", "tokens_per_second": "speed",
	}
}

// Columns returns the table of all metrics, in the order in which reports
// print them.
func Columns() []Column {
	return slices.Concat(latencyColumns(), speedColumns(), countColumns(), machineColumns(), gpuColumns(), phaseColumns())
}

func latencyColumns() []Column {
	return []Column{
		{
			Key: "e2e", Name: "total latency", Unit: "s", Better: Lower, Prefill: true, ByLength: true,
			Definition: "last byte of the answer − t0",
			Clock:      clockSpan, Window: perRequest,
			Request: since(func(tr *bench.Trace) int64 { return tr.End }),
		},
		{
			Key: "last_token", Name: "to last token", Unit: "s", Better: Lower, Prefill: true, ByLength: true,
			Definition: "tL − t0: as total latency, without what follows the last token (end marks, usage)",
			Clock:      clockStamps, Window: perRequest, Absent: streamOnly,
			Request: func(tr *bench.Trace) (float64, bool) {
				if tr.MarksLost > 0 {
					return 0, false
				}
				return seconds(tr.Start, tr.LastToken())
			},
		},
		{
			Key: "ttft", Name: "first token (P2FT)", Unit: "s", Better: Lower, Prefill: true,
			Definition: "t1 − t0: until the first event with content (over HTTP), or the first token (in process). The experiment's prompt-to-first-token. An empty or role-only event is not a token; first_line holds the experiment's literal wording",
			Clock:      clockStamps, Window: perRequest, Absent: streamOnly,
			Request: since((*bench.Trace).FirstToken),
			Elsewhere: []Tool{
				{"vLLM bench serve, vllm-bench, sglang bench_serving", "first SSE message with a choice, even an empty or role-only one"},
				{"guidellm", "first token iteration"},
				{"aiperf", "first non-empty content"},
				{"inference-perf", "first non-empty token"},
				{"inference-benchmarker (HF)", "first non-empty delta"},
				{"LoadGen (MLPerf)", "the first-token callback"},
			},
		},
		{
			Key: "first_line", Name: "first SSE line", Unit: "s", Better: Lower, Prefill: true,
			Definition: "first SSE line − t0, whether it has content or not",
			Clock:      clockStamps, Window: perRequest,
			Absent: func(g *Group) string {
				if why := streamOnly(g); why != "" {
					return why
				}
				return anyRequest(g, "in process there are no SSE lines", func(tr *bench.Trace) bool { return tr.FirstLine != 0 })
			},
			Request: since(func(tr *bench.Trace) int64 { return tr.FirstLine }),
		},
		{
			Key: "first_byte", Name: "first byte", Unit: "s", Better: Lower, Prefill: true,
			Definition: "first byte of the response, headers included − t0",
			Clock:      clockStamps, Window: perRequest,
			Absent: func(g *Group) string {
				return anyRequest(g, "in process there is no response to wait for", func(tr *bench.Trace) bool { return tr.FirstByte != 0 })
			},
			Request: since(func(tr *bench.Trace) int64 { return tr.FirstByte }),
		},
		{
			Key: "tpot", Name: "per token after it", Unit: "s", Better: Lower,
			Definition: "TPOT = (tL − t1)/(tokens that arrived after t1): n − 1, or less by what else the first event brought. Not measured where events hold several tokens and do not tell how many",
			Clock:      clockStamps, TokenCount: countTrust, Window: perRequest, Absent: needsFirst,
			Request: tpot,
			Elsewhere: []Tool{
				{"vLLM bench serve, vllm-bench, sglang bench_serving", "(tL − t0 − TTFT)/(n − 1)"},
				{"guidellm", "(tL − t0)/n, which includes TTFT; its ITL is (tL − t1)/(n − 1)"},
				{"aiperf", "(latency − TTFT)/(n − 1)"},
				{"inference-perf", "(E2E − TTFT)/(n − 1)"},
				{"LoadGen (MLPerf)", "(tL − t1)/(n − 1)"},
			},
		},
		{
			Key: "itl", Name: "between tokens", Unit: "s", Better: Lower,
			Definition: "ITL: gaps between successive token arrivals. Only where an event is a token (0.95 to 1.05 tokens per event), else see chunk_gap",
			Clock:      clockStamps, TokenCount: "arrivals, checked against the output tokens: " + countTrust,
			Window: "all gaps of all requests that count, pooled; compared by each request's own median gap, since gaps of one request depend on each other",
			Absent: itlAbsent, Gaps: tokenGaps,
			Elsewhere: []Tool{
				{"vLLM bench serve, vllm-bench, sglang bench_serving", "gaps between chunks with a choice, pooled"},
				{"guidellm", "(tL − t1)/(n − 1) per request, which here is tpot"},
				{"aiperf", "(latency − TTFT)/(n − 1) per request"},
				{"inference-perf", "gaps of re-tokenized tokens"},
				{"inference-benchmarker (HF)", "mean per request over re-tokenized chunks"},
			},
		},
		{
			Key: "chunk_gap", Name: "between chunks", Unit: "s", Better: Lower,
			Definition: "gaps between successive events with content, however many tokens they hold",
			Clock:      clockStamps, Window: "all gaps of all requests that count, pooled",
			Absent: streamOnly, Gaps: gaps,
		},
	}
}

func speedColumns() []Column {
	return []Column{
		{
			Key: "speed", Name: "generation speed", Unit: "tok/s", Better: Higher, Prefill: true,
			Definition: "n/(last byte of the answer − t0): the experiment's token generation speed, prefill included. The experiment has none in sync mode; output_rate is the same quotient there",
			Clock:      clockSpan, TokenCount: countTrust, Window: perRequest,
			Absent: func(g *Group) string {
				if g.Mode != Stream {
					return "not in sync mode, as the experiment has it; output_rate (CSV, JSON) is the same quotient there"
				}
				return needsTokens(g)
			},
			Request: outputRate,
		},
		{
			Key: "decode_speed", Name: "decode speed", Unit: "tok/s", Better: Higher,
			Definition: "(tokens that arrived after t1)/(tL − t1), the inverse of tpot: without prefill",
			Clock:      clockStamps, TokenCount: countTrust, Window: perRequest, Absent: needsFirst,
			Request: decodeSpeed,
			Elsewhere: []Tool{
				{"llama-bench", "n tokens / time of a decode test (tg): exact, without tokenizer and sampler"},
			},
		},
		{
			Key: "output_rate", Name: "output rate", Unit: "tok/s", Better: Higher, Prefill: true,
			Definition: "n/(last byte of the answer − t0), in either mode. When streaming it equals speed",
			Clock:      clockSpan, TokenCount: countTrust, Window: perRequest, Absent: needsTokens,
			Request: outputRate,
		},
		{
			Key: "req_per_s", Name: "requests", Unit: "req/s", Better: Higher, Prefill: true, ByLength: true,
			Definition: "requests that count / (last end − first start): what failed, was sent again or is left out for a warning took its time of the window and is not counted",
			Clock:      clockCell, Window: "the whole cell with ramp and drain; " + perCell,
			Cell: wholeRequests,
			Elsewhere: []Tool{
				{"vLLM bench serve, sglang bench_serving, inference-perf", "the same: whole run with ramp and drain"},
				{"guidellm", "over its measured window"},
				{"aiperf", "first to last response"},
				{"inference-benchmarker (HF)", "first start of a completed request to last end"},
			},
		},
		{
			Key: "tok_per_s", Name: "output tokens", Unit: "tok/s", Better: Higher, Prefill: true,
			Definition: "output tokens of the requests that count / (last end − first start)",
			Clock:      clockCell, TokenCount: countTrust, Window: "the whole cell with ramp and drain; " + perCell,
			Absent: needsTokens, Cell: wholeTokens,
		},
		{
			Key: "steady_req_per_s", Name: "requests, steady", Unit: "req/s", Better: Higher, Prefill: true, ByLength: true,
			Definition: "requests that count / steady part, each counted with the share of its own time that lies inside",
			Clock:      clockCell, Window: "the steady part: from the moment the last worker started its first request until the first worker ended its last one; " + perCell,
			Absent: parallelOnly, Cell: steadyRequests,
		},
		{
			Key: "steady_tok_per_s", Name: "output tokens, steady", Unit: "tok/s", Better: Higher, Prefill: true,
			Definition: "output tokens of the requests that count that arrived in the steady part / steady part; of an answer that came whole, the share of its tokens as in steady_req_per_s",
			Clock:      clockCell, TokenCount: countTrust, Window: "the steady part: see steady_req_per_s; " + perCell,
			Absent: func(g *Group) string {
				if why := parallelOnly(g); why != "" {
					return why
				}
				return needsTokens(g)
			},
			Cell: steadyTokens,
		},
	}
}

func parallelOnly(g *Group) string {
	if g.Concurrency < 2 {
		return "with one worker the whole window is the steady part"
	}
	for i := range g.Cells {
		if _, _, ok := g.steady(&g.Cells[i]); ok {
			return ""
		}
	}
	if len(g.Cells) == 0 {
		return ""
	}
	return "the workers were never all busy at once"
}

func countColumns() []Column {
	return []Column{
		{
			Key: "output_tokens", Name: "tokens per answer", Unit: "tokens",
			Definition: "n: output tokens of a request",
			TokenCount: countTrust, Window: perRequest, Absent: needsTokens,
			Request: func(tr *bench.Trace) (float64, bool) { return float64(tr.OutputTokens), tr.Counted != bench.CountNone },
			Elsewhere: []Tool{
				{"vLLM bench serve, sglang bench_serving", "usage, else re-tokenized"},
				{"guidellm", "usage, else iterations"},
				{"aiperf", "re-tokenized (the server's on request)"},
				{"inference-perf, inference-benchmarker (HF)", "re-tokenized"},
				{"LoadGen (MLPerf)", "as the system under test reports"},
				{"llama-bench", "exact"},
			},
		},
		{
			Key: "prompt_tokens", Name: "tokens per prompt", Unit: "tokens",
			Definition: "tokens of the rendered prompt, a beginning-of-sequence token included",
			TokenCount: "the backend's own", Window: perRequest,
			Request: func(tr *bench.Trace) (float64, bool) { return float64(tr.PromptTokens), tr.PromptTokens > 0 },
		},
		{
			Key: "outside_range", Name: "outside task range", Unit: "requests",
			Definition: "answers whose n is not in the task's range. The sampling table's cap may lie outside of it, so this is a fact about the experiment, not a fault",
			TokenCount: countTrust, Window: "requests of all repeats that count", Absent: needsRange, Count: outside,
		},
		{
			Key: "failed", Name: "failed", Unit: "requests",
			Definition: "requests without a usable answer. HTTP 200 is not success: an empty, broken or unfinished stream is a failure. Counted by class, never averaged into anything. Requests cut off when the run was stopped are no failures and are not counted at all. One that succeeded only after a retry, or whose warning spoils it, is no failure either, but is left out of every other number",
			Window:     "measured requests of all repeats", CountsFailed: true,
			Count: func(_ *Group, r *Request) bool { return r.Class != bench.OK },
		},
	}
}

func machineColumns() []Column {
	return []Column{
		{
			Key: "peak_rss", Name: "peak RSS", Unit: "B", Better: Lower,
			Definition: "largest resident set of the backend's process tree; pages shared within the tree count once per process",
			Clock:      "sampled while the cell was measured; a peak between two samples is missed", Window: perCell,
			Cell: func(_ *Group, c *Cell) (float64, bool) { return float64(c.PeakRSS), c.PeakRSS > 0 },
		},
		{
			Key: "peak_pss", Name: "peak PSS", Unit: "B", Better: Neither,
			Definition: "largest proportional set of the backend's process tree: shared pages divided among the processes that share them then, an idle server with the same weights file mapped among them; so processes add up, but cells are not to be compared by it",
			Clock:      "sampled while the cell was measured; a peak between two samples is missed", Window: perCell,
			Cell: func(_ *Group, c *Cell) (float64, bool) { return float64(c.PeakPSS), c.PeakPSS > 0 },
		},
		{
			Key: "cpu_seconds", Name: "CPU time", Unit: "s", Better: Neither,
			Definition: "CPU seconds of the backend's process tree in a cell's window, all cores added up. In process that holds the client's work too, of a server it does not: no merit is read from it",
			Clock:      "the kernel's account of each process, read while the cell was measured", Window: perCell,
			Cell: func(_ *Group, c *Cell) (float64, bool) { return c.CPUSeconds, c.CPUSeconds > 0 },
		},
		{
			Key: "first_connection", Name: "first connection", Unit: "s", Better: Lower,
			Definition: "opening the first connection, which warm-up does; no request's time holds it",
			Clock:      "CLOCK_MONOTONIC", Window: perCell,
			Cell: func(_ *Group, c *Cell) (float64, bool) { return float64(c.FirstConnNS) / 1e9, c.FirstConnNS > 0 },
		},
		{
			Key: "load_time", Name: "model load", Unit: "s", Better: Lower,
			Definition: "loading the model in the cell's process, mostly from the page cache. In process only: a server has loaded its model before its first cell, and how long it took to be ready stands beside its name",
			Clock:      "CLOCK_MONOTONIC", Window: perCell,
			Cell: func(_ *Group, c *Cell) (float64, bool) { return float64(c.LoadNS) / 1e9, c.LoadNS > 0 },
		},
		{
			Key: "passes", Name: "passes over the weights", Unit: "passes", Better: Neither,
			Definition: "how often the engine read all weights in a cell's window, for prompts and for tokens. In process, with tokens chosen on a GPU, only: elsewhere llama.cpp divides the batches itself, and servers do not tell",
			Clock:      "counted by the engine", Window: perCell,
			Cell:   func(_ *Group, c *Cell) (float64, bool) { return float64(c.Passes), c.Passes > 0 },
			Absent: func(*Group) string { return "only the engine in process counts them, where it chooses tokens on a GPU" },
		},
		{
			Key: "filled_rows", Name: "rows for nobody", Unit: "rows", Better: Neither,
			Definition: "rows that the engine computed in these passes for nobody, so that the passes are fewer: in gaps between slots that generate, and behind the shorter of two prompts. Their time and energy are in every number beside it",
			Clock:      "counted by the engine", Window: perCell,
			Cell:   func(_ *Group, c *Cell) (float64, bool) { return float64(c.FilledRows), c.Passes > 0 },
			Absent: func(*Group) string { return "only the engine in process counts them, where it chooses tokens on a GPU" },
		},
	}
}

// gpuColumn is one value of a cell that its GPUs gave.
func gpuColumn(c Column, of func(*Group, *Cell) float64) Column {
	c.Window = perCell
	c.Cell = func(g *Group, cell *Cell) (float64, bool) {
		if cell.GPU.Devices == 0 {
			return 0, false
		}
		v := of(g, cell)
		return v, v >= 0
	}
	c.Absent = func(g *Group) string {
		why := ""
		for i := range g.Cells {
			cell := &g.Cells[i]
			if _, ok := c.Cell(g, cell); ok {
				return ""
			}
			for _, reason := range []string{cell.GPUMissing, cell.GPU.Missing[c.Key]} {
				if why == "" {
					why = reason
				}
			}
		}
		return why
	}
	return c
}

const (
	clockNVML = "the GPU driver's (NVML), sampled while the cell was measured"
	wholeGPU  = "of the whole board, idle power and what else it does included; summed over the GPUs on which the backend holds memory"
)

func gpuColumns() []Column {
	return []Column{
		gpuColumn(Column{
			Key: "gpu_peak_memory", Name: "peak GPU memory", Unit: "B", Better: Neither,
			Definition: "most GPU memory that the backend held in the window: that of its processes, or, where the driver does not show them, the rise of the device above what was in use before the backend was started. A server that reserves a pool holds all of it, used or not, so no merit is read from it",
			Clock:      clockNVML + ", every 8 ms; a peak between two samples is missed",
		}, func(_ *Group, c *Cell) float64 { return float64(c.GPU.PeakBytes) }),
		gpuColumn(Column{
			Key: "energy_per_request", Name: "energy per request", Unit: "J", Better: Lower, Prefill: true, ByLength: true,
			Definition: "energy of the GPUs in the window / successful requests without a warning that spoils them; what the others took is in it: " + wholeGPU,
			Clock:      clockNVML + ": its energy counter, or, where there is none, its power integrated",
		}, func(g *Group, c *Cell) float64 {
			n, _ := answered(c)
			return perUnit(c.GPU.EnergyJ, n)
		}),
		gpuColumn(Column{
			Key: "energy_per_token", Name: "energy per token", Unit: "J", Better: Lower, Prefill: true,
			Definition: "energy of the GPUs in the window / output tokens of successful requests without a warning that spoils them; what the others took is in it: " + wholeGPU,
			Clock:      clockNVML + ": its energy counter, or, where there is none, its power integrated", TokenCount: countTrust,
		}, func(_ *Group, c *Cell) float64 {
			_, tokens := answered(c)
			return perUnit(c.GPU.EnergyJ, tokens)
		}),
		gpuColumn(Column{
			Key: "gpu_mean_power", Name: "mean GPU power", Unit: "W", Better: Neither,
			Definition: "energy in the window / its length: " + wholeGPU, Clock: clockNVML,
		}, func(_ *Group, c *Cell) float64 { return c.GPU.MeanW }),
		gpuColumn(Column{
			Key: "gpu_peak_power", Name: "peak GPU power", Unit: "W", Better: Neither,
			Definition: "largest power seen in the window; with several GPUs the sum of each one's largest. Older drivers tell means over a second only",
			Clock:      clockNVML + ", every 100 ms",
		}, func(_ *Group, c *Cell) float64 { return c.GPU.PeakW }),
		gpuColumn(Column{
			Key: "gpu_busy", Name: "GPU busy", Unit: "ratio", Better: Neither,
			Definition: "share of time in which at least one kernel ran, 0 to 1; it does not tell how much of the GPU it used",
			Clock:      clockNVML + "; the driver renews it a few times a second",
		}, func(_ *Group, c *Cell) float64 { return c.GPU.Busy }),
		gpuColumn(Column{
			Key: "gpu_sm_clock", Name: "SM clock", Unit: "Hz", Better: Neither,
			Definition: "mean clock of the GPU's multiprocessors in the window", Clock: clockNVML + ", every 100 ms",
		}, func(_ *Group, c *Cell) float64 { return 1e6 * c.GPU.SMMHz }),
		gpuColumn(Column{
			Key: "gpu_temperature", Name: "GPU temperature", Unit: "°C", Better: Neither,
			Definition: "highest temperature of the GPU in the window", Clock: clockNVML + ", every 500 ms",
		}, func(_ *Group, c *Cell) float64 { return c.GPU.MaxCelsius }),
	}
}

// answered are the requests of a cell that were answered soundly, if only after
// a retry, and their output tokens; -1 tokens: nobody counted those of one.
func answered(c *Cell) (requests, tokens int) {
	for _, r := range c.Requests {
		if r.Class != bench.OK || Spoilt(r.Trace) != "" {
			continue
		}
		requests++
		switch {
		case tokens < 0:
		case r.Counted == bench.CountNone:
			tokens = -1
		default:
			tokens += r.OutputTokens
		}
	}
	return requests, tokens
}

// perUnit is -1 where a quotient has no meaning.
func perUnit(sum float64, n int) float64 {
	if sum < 0 || n <= 0 {
		return -1
	}
	return sum / float64(n)
}

func phaseColumns() []Column {
	part := func(key, name, definition string, of func(bench.Phases) int64) Column {
		return Column{
			Key: "phase_" + key, Name: name, Unit: "s",
			Definition: definition + ". Phases are shown as means, since means add up", Clock: clockEngine, Window: perRequest,
			Absent: needsPhases, Request: phase(of),
		}
	}
	told := func(key, definition string, of func(bench.Server) int64) Column {
		return Column{
			Key: "server_" + key, Name: "server: " + key, Unit: "s",
			Definition: definition, Clock: clockServer, Window: perRequest,
			Absent: needsPart(of), Request: serverPhase(of),
		}
	}
	return []Column{
		part("tokenize", "tokenize", "text to token ids", func(p bench.Phases) int64 { return p.Tokenize }),
		part("queue", "queue", "waiting for a slot or for room in a batch", func(p bench.Phases) int64 { return p.Queue }),
		part("prefill", "prefill", "batches that held prompt tokens of this request; other requests' tokens in them cost it time too", func(p bench.Phases) int64 { return p.Prefill }),
		part("decode", "decode", "batches that held one sampled token of this request", func(p bench.Phases) int64 { return p.Decode }),
		part("sampling", "sampling", "choosing tokens: temperature, top-p, the draw", func(p bench.Phases) int64 { return p.Sampling }),
		part("detokenize", "detokenize", "token ids to text", func(p bench.Phases) int64 { return p.Detokenize }),
		{
			Key: "phase_remainder", Name: "remainder", Unit: "s",
			Definition: "total latency − all phases: the engine's loop working for other slots, and hand-over between threads",
			Clock:      clockEngine, Window: perRequest, Absent: needsPhases, Request: remainder,
		},
		told("tokenize", "text to token ids by the server's own account (our Transformers server: timings.tokenize_ms)", func(s bench.Server) int64 { return s.Tokenize }),
		told("queue", "waiting for its turn by the server's own account (our Transformers server: timings.queue_ms; TGI: x-queue-time, whole milliseconds, of sync answers)", func(s bench.Server) int64 { return s.Queue }),
		told("prefill", "prompt processing by the server's own account (llama-server: timings.prompt_ms; Ollama: prompt_eval_duration; our Transformers server: timings.prefill_ms)", func(s bench.Server) int64 { return s.Prefill }),
		told("decode", "generation by the server's own account, its sampling included (llama-server: timings.predicted_ms; Ollama: eval_duration; our Transformers server: timings.decode_ms)", func(s bench.Server) int64 { return s.Decode }),
		told("inference", "prefill and decode by the server's own account, where it does not tell them apart (TGI: x-inference-time, whole milliseconds, of sync answers)", func(s bench.Server) int64 { return s.Inference }),
		{
			Key: "server_rest", Name: "server: rest", Unit: "s",
			Definition: "total latency − all that the server's own account tells: HTTP, JSON, transport, and what it does not tell of tokenizing and queueing. What serving adds by the server's own books",
			Clock:      "CLOCK_MONOTONIC less the server's own clock", Window: perRequest, Absent: needsServer, Request: serverRest,
		},
	}
}
