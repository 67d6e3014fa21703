package main

import (
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/nativebench/nativebench/internal/hub"
	"github.com/nativebench/nativebench/internal/plan"
)

const (
	flagsWhat    = "What is asked"
	flagsHow     = "How it is measured"
	flagsModel   = "Model and engine (the same for native and llama-server)"
	flagsServers = "Servers"
	flagsOutput  = "Output"
)

// planFlags are the flags that make a plan. Their defaults are those of
// plan.Default; a flag changes the plan only when it is given.
func planFlags() []cli.Flag {
	d := plan.Default()
	return []cli.Flag{
		&cli.StringSliceFlag{Name: "model", Category: flagsWhat, Value: cli.NewStringSlice(d.Models...), Usage: "`MODEL,…`: " + modelKeys()},
		&cli.StringSliceFlag{Name: "task", Category: flagsWhat, Value: cli.NewStringSlice(d.Tasks...), Usage: "`TASK,…`: " + strings.Join(d.Tasks, ", ")},
		&cli.StringSliceFlag{Name: "mode", Category: flagsWhat, Value: cli.NewStringSlice(names(d.Modes)...), Usage: "`MODE,…`: sync (the whole answer at once), stream (token by token)"},
		&cli.IntSliceFlag{Name: "concurrency", Category: flagsWhat, Value: cli.NewIntSlice(d.Concurrency...), Usage: "`N,…`: requests at once, closed loop"},
		&cli.IntSliceFlag{Name: "prompt-tokens", Category: flagsWhat, Usage: "context sweep instead of tasks: prompts of exactly so many tokens; `N,…` for example 32,64,128,256,512"},
		&cli.StringFlag{Name: "prompts", Category: flagsWhat, Usage: "`FILE`: your own prompts, as JSON lines with \"prompt\", or a ShareGPT file"},
		&cli.StringFlag{Name: "vocab", Category: flagsWhat, Usage: "`FILE`: a GGUF file with the model's vocabulary, or its tokenizer.json, to count prompts with where no backend has its weights here", DefaultText: "in the hub's cache, or of those that come with the engine"},
		&cli.IntFlag{Name: "max-tokens", Category: flagsWhat, Usage: "cap of output tokens; 0: the sampling table's, in a sweep 32"},
		&cli.StringSliceFlag{Name: "endpoint", Category: flagsServers, Usage: "`NAME=URL`: drive that server of kind NAME, which runs already, instead of starting one; adds NAME to --backends. A /v1 at the end is dropped"},
		&cli.StringSliceFlag{Name: "served-model", Category: flagsServers, Usage: "`NAME=MODEL`: what the server at --endpoint NAME calls the model, if it serves several"},
		&cli.StringSliceFlag{Name: "api-key-env", Category: flagsServers, Usage: "`NAME=VARIABLE`: environment variable with the API key of --endpoint NAME; the key itself is kept nowhere"},
		&cli.StringFlag{Name: "launch", Category: flagsServers, Value: launchProcess, Usage: "`HOW`: to start servers without an endpoint: process, docker (vllm and tgi in their pinned images, which need a GPU; the others as processes), none"},
		&cli.DurationFlag{Name: "ready-timeout", Category: flagsServers, Value: readyTimeout, Usage: "time limit for a server to become ready and make a token: one that is started here, or one at an --endpoint that is still loading its model"},
		&cli.StringFlag{Name: "route", Category: flagsServers, Value: "completions", Usage: "`ROUTE`: completions (the prompt is rendered here, so that all get the same text), chat (the server renders it)"},
		&cli.BoolFlag{Name: "prefix-cache", Category: flagsServers, Usage: "let servers reuse the KV cache of earlier prompts"},
		&cli.BoolFlag{Name: "no-verify", Category: flagsHow, Usage: "do not check first, with a few prompts, that all backends run the same model"},
		&cli.BoolFlag{Name: "insecure", Category: flagsServers, Usage: "do not verify TLS certificates of endpoints"},
		&cli.BoolFlag{Name: "ignore-eos", Category: flagsWhat, Usage: "go on past end-of-sequence until the cap: answers of equal length"},
		&cli.Uint64Flag{Name: "seed", Category: flagsWhat, Value: d.Seed, Usage: "of the choice of prompts and of sampling; at most 2147483647"},

		&cli.IntFlag{Name: "requests", Category: flagsHow, Value: d.Requests, Usage: "measured requests per cell (at least one per worker is sent)"},
		&cli.IntFlag{Name: "warmup", Category: flagsHow, Value: d.Warmup, Usage: "requests per worker before the measurement of a cell"},
		&cli.IntFlag{Name: "repeat", Category: flagsHow, Value: d.Repeats, Usage: "times the whole set is measured, the order of backends rotated"},
		&cli.DurationFlag{Name: "request-timeout", Category: flagsHow, Value: d.RequestTimeout, Usage: "time limit of one request"},
		&cli.DurationFlag{Name: "first-token-timeout", Category: flagsHow, Value: d.FirstTokenTimeout, Usage: "time limit until the first token of a stream; 0: none of its own"},
		&cli.DurationFlag{Name: "token-timeout", Category: flagsHow, Value: d.TokenTimeout, Usage: "time limit between two tokens of a stream; 0: none of its own"},
		&cli.IntFlag{Name: "retries", Category: flagsHow, Value: d.Retries, Usage: "times a request is sent again when a server is too busy (429, 503) or does not answer at all; such requests are left out of latencies and speeds"},
		&cli.DurationFlag{Name: "cell-timeout", Category: flagsHow, Value: d.CellTimeout, Usage: "time limit of one cell, model load included"},
		&cli.StringFlag{Name: "profile", Category: flagsHow, Usage: "`TOOL`: nsys or ncu: not a measurement, but a profile of each cell's measured window, under RUN/profiles; of native, vllm and sglang on an NVIDIA GPU"},
		&cli.DurationFlag{Name: "cooldown", Category: flagsHow, Value: d.Cooldown, Usage: "pause before each cell"},

		&cli.IntFlag{Name: "threads", Category: flagsModel, Value: d.Engine.Threads, Usage: "CPU threads for decode; 0: the cores of this machine"},
		&cli.IntFlag{Name: "batch-threads", Category: flagsModel, Value: d.Engine.BatchThreads, Usage: "CPU threads for prefill; 0: as --threads"},
		&cli.IntFlag{Name: "ctx", Category: flagsModel, Value: d.Engine.Context, Usage: "context per request in tokens, prompt and output; 0: what the plan needs"},
		&cli.IntFlag{Name: "batch", Category: flagsModel, Value: d.Engine.Batch, Usage: "logical batch in tokens; all engines get the smaller of it and --prefill-chunk"},
		&cli.IntFlag{Name: "ubatch", Category: flagsModel, Value: d.Engine.UBatch, Usage: "physical batch in tokens"},
		&cli.IntFlag{Name: "prefill-chunk", Category: flagsModel, Value: d.Engine.PrefillChunk, Usage: "most prompt tokens computed between two decode steps of other requests"},
		&cli.IntFlag{Name: "gpu-layers", Category: flagsModel, Value: d.Engine.GPULayers, Usage: "layers on the GPU; -1: all, 0: none. Without a GPU it has no effect"},
		&cli.StringFlag{Name: "flash-attn", Category: flagsModel, Value: d.Engine.FlashAttn, Usage: "`WHEN`: auto, on, off"},
		&cli.StringFlag{Name: "cache-type", Category: flagsModel, Value: d.Engine.CacheType, Usage: "`TYPE`: of the KV cache: f16, f32"},
	}
}

// applyPlanFlags changes p by the flags that were given.
func applyPlanFlags(c *cli.Context, p *plan.Plan) {
	for _, f := range c.Command.Flags {
		if name := f.Names()[0]; c.IsSet(name) {
			applyOneFlag(c, name, p)
		}
	}
	// A limit of the request that was raised alone raises that of the cell,
	// which must hold at least one request.
	if c.IsSet("request-timeout") && !c.IsSet("cell-timeout") {
		p.CellTimeout = max(p.CellTimeout, p.RequestTimeout)
	}
	// The physical batch and the prefill chunk are parts of a batch.
	if c.IsSet("batch") {
		if !c.IsSet("ubatch") {
			p.Engine.UBatch = min(p.Engine.UBatch, p.Engine.Batch)
		}
		if !c.IsSet("prefill-chunk") {
			p.Engine.PrefillChunk = min(p.Engine.PrefillChunk, p.Engine.Batch)
		}
	}
}

// applyOneFlag changes p by one flag; one that is not about the plan changes
// nothing.
func applyOneFlag(c *cli.Context, name string, p *plan.Plan) {
	switch name {
	case "model":
		p.Models = c.StringSlice(name)
	case "task":
		p.Tasks = c.StringSlice(name)
	case "backends":
		p.Backends = c.StringSlice(name)
	case "backend":
		p.Backends = []string{c.String(name)}
	case "mode":
		p.Modes = nil
		for _, m := range c.StringSlice(name) {
			p.Modes = append(p.Modes, plan.Mode(m))
		}
	case "concurrency":
		p.Concurrency = c.IntSlice(name)
	case "prompt-tokens":
		p.PromptTokens = c.IntSlice(name)
	case "prompts":
		p.PromptFile = absolute(c.String(name))
	case "vocab":
		p.Vocab = absolute(c.String(name))
	case "max-tokens":
		p.MaxTokens = c.Int(name)
	case "endpoint":
		p.Endpoints = pairs(c.StringSlice(name))
		for _, pair := range c.StringSlice(name) {
			if backend, _, _ := strings.Cut(pair, "="); backend != "" && !slices.Contains(p.Backends, backend) {
				p.Backends = append(slices.Clone(p.Backends), backend)
			}
		}
	case "served-model":
		p.ServedModels = pairs(c.StringSlice(name))
	case "api-key-env":
		p.KeyVariables = pairs(c.StringSlice(name))
	case "launch":
		p.Launch = c.String(name)
	case "route":
		p.Route = c.String(name)
	case "prefix-cache":
		p.PrefixCache = c.Bool(name)
	case "no-verify":
		p.NoVerify = c.Bool(name)
	case "insecure":
		p.Insecure = c.Bool(name)
	case "ignore-eos":
		p.IgnoreEOS = c.Bool(name)
	case "seed":
		p.Seed = c.Uint64(name)
	case "requests":
		p.Requests = c.Int(name)
	case "warmup":
		p.Warmup = c.Int(name)
	case "repeat":
		p.Repeats = c.Int(name)
	case "request-timeout":
		p.RequestTimeout = c.Duration(name)
	case "first-token-timeout":
		p.FirstTokenTimeout = c.Duration(name)
	case "token-timeout":
		p.TokenTimeout = c.Duration(name)
	case "retries":
		p.Retries = c.Int(name)
	case "cell-timeout":
		p.CellTimeout = c.Duration(name)
	case "profile":
		p.Profile = c.String(name)
	case "cooldown":
		p.Cooldown = c.Duration(name)
	case "threads":
		p.Engine.Threads = c.Int(name)
	case "batch-threads":
		p.Engine.BatchThreads = c.Int(name)
	case "ctx":
		p.Engine.Context = c.Int(name)
	case "batch":
		p.Engine.Batch = c.Int(name)
	case "ubatch":
		p.Engine.UBatch = c.Int(name)
	case "prefill-chunk":
		p.Engine.PrefillChunk = c.Int(name)
	case "gpu-layers":
		p.Engine.GPULayers = c.Int(name)
	case "flash-attn":
		p.Engine.FlashAttn = c.String(name)
	case "cache-type":
		p.Engine.CacheType = c.String(name)
	}
}

// checkValues refuses values that would be read otherwise than meant. A URL is
// not quoted: it may hold a password.
func checkValues(c *cli.Context) error {
	for _, flag := range []string{"weights", "hf-dir", "prompts", "engine-dir", "out", "resume", "pprof"} {
		if strings.Contains(c.String(flag), "://") {
			return refuse("--%s: a URL stands where a path should: fetch the file and give its path", flag)
		}
	}
	for _, flag := range []string{"endpoint", "served-model", "api-key-env"} {
		seen := map[string]bool{}
		for _, pair := range c.StringSlice(flag) {
			name, _, _ := strings.Cut(pair, "=")
			switch {
			case strings.Contains(name, "://"):
				return refuse("--%s: a URL stands where NAME= should: write --%s NAME=…, for example --endpoint vllm=http://127.0.0.1:8000", flag, flag)
			case seen[name]:
				return refuse("--%s %s: given twice; give it once (two servers of one kind are two runs: nativebench report DIR DIR sets them side by side)", flag, name)
			}
			seen[name] = true
		}
	}
	return nil
}

// pairs takes NAME=VALUE apart; what has no "=" gets the value "", which
// checkServers refuses.
func pairs(list []string) map[string]string {
	m := map[string]string{}
	for _, pair := range list {
		name, value, _ := strings.Cut(pair, "=")
		m[name] = value
	}
	return m
}

func names[S ~string](list []S) []string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = string(s)
	}
	return out
}

func modelKeys() string {
	var keys []string
	for _, m := range plan.Models() {
		keys = append(keys, m.Key)
	}
	return strings.Join(keys, ", ")
}

// weightFlags say where the model's weights come from.
func weightFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "weights", Category: flagsModel, Value: fromHub, Usage: "`WHERE`: hub (the model's own, of the Hugging Face hub: what its cache lacks is downloaded, then converted to GGUF, once), synthetic (random numbers in the real shape, written once into the cache), or a GGUF file"},
		&cli.BoolFlag{Name: "offline", Category: flagsModel, Usage: "download nothing: what is not on this machine is refused. HF_HUB_OFFLINE=1 does the same"},
		&cli.StringFlag{Name: "revision", Category: flagsModel, Usage: "`REV`: of --weights hub: branch, tag or commit", DefaultText: hub.DefaultRevision},
		&cli.StringFlag{Name: "gguf", Category: flagsModel, Usage: "`FILE`: the same as --weights FILE"},
		&cli.StringFlag{Name: "hf-dir", Category: flagsModel, Usage: "`DIR`: a Hugging Face directory instead of the hub's; it is converted to GGUF, once. Beside --gguf: the same weights for the servers that want a directory (vllm, transformers)"},
		&cli.StringFlag{Name: "dtype", Category: flagsModel, Value: "f16", Usage: "`TYPE`: to convert to: f16, bf16, q8_0, q4_k_m; of synthetic weights: f16, f32, bf16"},
		&cli.IntFlag{Name: "layers", Category: flagsModel, Usage: "`N` layers of --weights synthetic instead of the model's: a small relative, for trying things out"},
		&cli.IntFlag{Name: "width", Category: flagsModel, Usage: "`N` numbers per token of --weights synthetic instead of the model's"},
		&cli.StringFlag{Name: "engine-dir", Category: flagsModel, Usage: "`DIR`: where the engine library and llama-server are", DefaultText: "$NATIVEBENCH_ENGINE_DIR, or engine/ beside this program"},
	}
}

// outputFlags say where a run goes and how it is shown.
func outputFlags() []cli.Flag {
	return []cli.Flag{
		&cli.DurationFlag{Name: "time-budget", Category: flagsHow, Usage: "start no cell after so long, and as many loads as can be measured of all backends in all repeats until then, starts of servers included; what is worth most first: streams before sync, few requests at once before many. The run is completed with --resume. 0: no limit"},
		&cli.StringFlag{Name: "out", Aliases: []string{"o"}, Category: flagsOutput, Usage: "`DIR`: run directory to make", DefaultText: "runs/<time>-<model>"},
		&cli.StringFlag{Name: "resume", Category: flagsOutput, Usage: "`DIR`: complete the run in it: only its cells that are not done are run"},
		&cli.StringFlag{Name: "format", Category: flagsOutput, Value: "terminal", Usage: "`FORMAT`: of the report at the end: terminal, markdown, csv, json, or none"},
		&cli.StringFlag{Name: "trace", Category: flagsOutput, Usage: "`FILE`: write the run as a trace for Perfetto when it ends, as nativebench trace does"},
		&cli.BoolFlag{Name: "yes", Aliases: []string{"y"}, Category: flagsOutput, Usage: "go on where nativebench would stop at an estimate: memory that may not suffice"},
		&cli.StringFlag{Name: "pprof", Category: flagsOutput, Usage: "profile nativebench's own processes: CPU and heap of each into files of a directory, or, at an address (127.0.0.1:6060), net/http/pprof in the process of the cell that runs: `DIR|ADDR`"},
		&cli.BoolFlag{Name: "dry-run", Category: flagsOutput, Usage: "check everything, say what would be run, and stop"},
	}
}

// answerFlags are of commands that answer one question and keep no run.
func answerFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "format", Category: flagsOutput, Value: "terminal", Usage: "`FORMAT`: terminal, json"},
		&cli.BoolFlag{Name: "yes", Aliases: []string{"y"}, Category: flagsOutput, Usage: "go on where nativebench would stop at an estimate: memory that may not suffice"},
	}
}
