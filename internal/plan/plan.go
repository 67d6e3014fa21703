// Package plan holds the experiment as typed tables (models, tasks, sampling),
// the prompts, and the expansion of a user's choice into cells.
//
// It is stage 1 of the pipeline plan → runner → results → measure → report.
package plan

import (
	"fmt"
	"time"

	"github.com/nativebench/nativebench/internal/bench"
)

// Mode is how an answer is delivered.
type Mode string

const (
	Sync   Mode = "sync"   // the whole answer at once
	Stream Mode = "stream" // token by token
)

// Plan is everything that decides what a run does. It is stored in the
// manifest; the same plan on the same machine asks for the same requests.
type Plan struct {
	Models      []string `json:"models"`
	Tasks       []string `json:"tasks"`
	Backends    []string `json:"backends"` // in the order given; the first is the reference of ratios unless native is there
	Modes       []Mode   `json:"modes"`
	Concurrency []int    `json:"concurrency"` // closed-loop workers
	Repeats     int      `json:"repeats"`     // the whole set again, order of backends rotated
	Requests    int      `json:"requests"`    // measured requests per cell; at least the concurrency is sent
	Warmup      int      `json:"warmup"`      // requests per worker before the clock of a cell starts
	Seed        uint64   `json:"seed"`

	// PromptTokens, when not empty, makes a context-scaling sweep: prompts of
	// exactly these lengths in tokens, MaxTokens output tokens, EOS ignored.
	PromptTokens []int `json:"prompt_tokens,omitempty"`
	// MaxTokens overrides the sampling table's cap; 0 keeps it.
	MaxTokens int `json:"max_tokens,omitempty"`
	// IgnoreEOS makes every answer MaxTokens long.
	IgnoreEOS bool `json:"ignore_eos"`
	// Endpoints are URLs, by backend, of servers that run already; KeyVariables
	// the environment variables that hold their API keys; ServedModels the names
	// under which they serve the model, where that is not the only one.
	Endpoints    map[string]string `json:"endpoints,omitempty"`
	KeyVariables map[string]string `json:"key_variables,omitempty"`
	ServedModels map[string]string `json:"served_models,omitempty"`
	// Launch is how servers without an endpoint are started: "process", "docker"
	// (those that have an image; the others as processes), "none". "" is process.
	Launch string `json:"launch,omitempty"`
	// Route is what servers are asked through: "completions", with the prompt
	// rendered here, or "chat", where the server renders it. "" is completions.
	Route string `json:"route,omitempty"`
	// PrefixCache lets servers reuse the KV cache of earlier prompts.
	PrefixCache bool `json:"prefix_cache,omitempty"`
	// NoVerify leaves out the check that all backends run the same model.
	NoVerify bool `json:"no_verify,omitempty"`
	// Insecure takes any TLS certificate.
	Insecure bool `json:"insecure,omitempty"`
	// PromptFile is a user's own prompts in place of the built-in ones.
	PromptFile string `json:"prompt_file,omitempty"`
	// Vocab is a GGUF file with the model's vocabulary, to count prompts with
	// where no backend has its weights.
	Vocab string `json:"vocab,omitempty"`

	RequestTimeout time.Duration `json:"request_timeout_ns"`
	CellTimeout    time.Duration `json:"cell_timeout_ns"`
	Cooldown       time.Duration `json:"cooldown_ns"` // pause before each cell

	// FirstTokenTimeout is how long a stream may take until its first content,
	// TokenTimeout from content to the next; 0: no limit of their own.
	FirstTokenTimeout time.Duration `json:"first_token_timeout_ns,omitempty"`
	TokenTimeout      time.Duration `json:"token_timeout_ns,omitempty"`
	// Retries is how many times more a request is sent that a server was too
	// busy for, or whose connection failed before any answer.
	Retries int `json:"retries,omitempty"`

	// Profile names the profiler under which cells run ("nsys", "ncu"): such a
	// run is no measurement. "" is none.
	Profile string `json:"profile,omitempty"`

	Engine Engine `json:"engine"`
}

// Engine holds the settings of llama.cpp, in process and served alike.
type Engine struct {
	Threads      int    `json:"threads"`       // for decode; 0: the physical cores
	BatchThreads int    `json:"batch_threads"` // for prefill; 0: as Threads
	Context      int    `json:"context"`       // tokens per slot, prompt and output; 0: what the plan needs
	Batch        int    `json:"batch"`         // largest logical batch, tokens; see Resolve
	UBatch       int    `json:"ubatch"`        // largest physical batch, tokens
	PrefillChunk int    `json:"prefill_chunk"` // prompt tokens computed between two decode steps of other slots
	GPULayers    int    `json:"gpu_layers"`    // -1: all
	FlashAttn    string `json:"flash_attn"`    // auto, on, off
	CacheType    string `json:"cache_type"`    // of K and V: f16, f32
}

// Resolve returns the settings that every engine of the plan is given, in
// process and served alike, for so many slots of so many tokens of context each.
//
// llama.cpp's server computes up to one logical batch of prompt tokens between
// two decode steps, so that the prefill chunk is the batch there; it is made so
// everywhere. A batch holds at least one token of each slot, and llama.cpp cuts
// it down to the whole context (llama_context's constructor).
func (e Engine) Resolve(slots, context int) Engine {
	e.Context = context
	e.Batch = min(max(min(e.Batch, e.PrefillChunk), slots), slots*context)
	e.UBatch = min(e.UBatch, e.Batch)
	e.PrefillChunk = e.Batch
	return e
}

// Cell is one thing to measure: a backend under one load.
type Cell struct {
	Backend     string `json:"backend"`
	Model       string `json:"model"`
	Task        string `json:"task"` // chat, …; "context" in a sweep
	Mode        Mode   `json:"mode"`
	Concurrency int    `json:"concurrency"`
	Prompt      int    `json:"prompt_tokens,omitempty"` // exact prompt length in a sweep, 0 otherwise
	Repeat      int    `json:"repeat"`                  // 0-based

	Requests int            `json:"requests"`
	Warmup   int            `json:"warmup"`   // per worker
	Sampling bench.Sampling `json:"sampling"` // Seed is the cell's; a request's seed is RequestSeed(Seed, i)
	Seed     uint64         `json:"seed"`

	RequestTimeout time.Duration `json:"request_timeout_ns"`
	CellTimeout    time.Duration `json:"cell_timeout_ns"`
	Cooldown       time.Duration `json:"cooldown_ns"`

	FirstTokenTimeout time.Duration `json:"first_token_timeout_ns,omitempty"`
	TokenTimeout      time.Duration `json:"token_timeout_ns,omitempty"`
	Retries           int           `json:"retries,omitempty"`
}

// ID names the cell within its run, for example
// "gpt2/chat/stream/c4/native/r0" or "gpt2/context-256/stream/c1/native/r1".
func (c Cell) ID() string { return fmt.Sprintf("%s/%s/r%d", c.Load(), c.Backend, c.Repeat) }

// Load names what is asked, without who answers and which repetition: cells of
// one Load are compared with each other.
func (c Cell) Load() string {
	task := c.Task
	if c.Prompt > 0 {
		task = fmt.Sprintf("%s-%d", task, c.Prompt)
	}
	return fmt.Sprintf("%s/%s/%s/c%d", c.Model, task, c.Mode, c.Concurrency)
}

// RequestSeed is the sampling seed of request i of a cell: the same for every
// backend, below 2^31 so that every server takes it. Warm-up requests have
// negative i. (SplitMix64, Steele et al., OOPSLA 2014.)
func RequestSeed(seed uint64, i int) uint64 {
	z := seed + (uint64(int64(i))+1)*0x9e3779b97f4a7c15
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return (z ^ z>>31) & 0x7fffffff
}
