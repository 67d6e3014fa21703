// Package results keeps a run: a directory that is enough to recompute every
// number later. docs/run-directory.md documents the format.
//
// It is stage 3 of the pipeline plan → runner → results → measure → report.
//
//	manifest.json    Manifest, replaced atomically
//	cells.jsonl      CellEvent, one a line, appended
//	requests.jsonl   Record, one a line, appended
//	telemetry.jsonl  Sample, one a line, appended
//	logs/            what child processes and servers printed
package results

import (
	"time"

	"github.com/nativebench/nativebench/internal/bench"
)

// Schema is the version of the format. A reader takes this one and refuses
// newer ones by name.
const Schema = 1

// Manifest says what was run, on what, by what. It never holds a secret.
type Manifest struct {
	Schema  int       `json:"schema"`
	RunID   string    `json:"run_id"`
	Created time.Time `json:"created"`
	Command []string  `json:"command"` // argv, secrets removed

	Tool        Tool        `json:"nativebench"`
	Plan        any         `json:"plan"`  // plan.Plan; results does not look inside
	Cells       []Cell      `json:"cells"` // every cell the plan asks for, in order
	Environment Environment `json:"environment"`
	Clock       Clock       `json:"clock"`
	Clocks      []Clock     `json:"clocks,omitempty"` // of each time that the run was resumed, in that order
	Models      []Model     `json:"models"`
	Backends    []Backend   `json:"backends"` // as they answered; filled as they start
	// PromptTokens are the lengths of the rendered prompts by the tokenizer
	// here, BOS included: by model, by id of the prompt. Absent for a model
	// whose vocabulary is not here.
	PromptTokens map[string]map[string]int `json:"prompt_tokens,omitempty"`
}

// Cell names one planned cell and what is needed to group it, so that reports
// need not know plan's types.
type Cell struct {
	ID          string         `json:"id"`
	Load        string         `json:"load"` // cells of one load are compared
	Backend     string         `json:"backend"`
	Model       string         `json:"model"`
	Task        string         `json:"task"`
	Mode        string         `json:"mode"`
	Concurrency int            `json:"concurrency"`
	Prompt      int            `json:"prompt_tokens,omitempty"`
	Repeat      int            `json:"repeat"`
	Requests    int            `json:"requests"`
	Sampling    bench.Sampling `json:"sampling"`
	Expect      [2]int         `json:"expect_output_tokens"` // the task's range; [0,0]: none
}

// Tool identifies the nativebench that ran.
type Tool struct {
	Version   string `json:"version"`
	Commit    string `json:"commit,omitempty"`
	Modified  bool   `json:"modified,omitempty"` // built from a changed checkout
	GoVersion string `json:"go"`
	CGO       bool   `json:"cgo"`
}

// Environment is the machine.
type Environment struct {
	OS         string            `json:"os"`
	Kernel     string            `json:"kernel"`
	CPU        string            `json:"cpu"`
	Cores      int               `json:"cores"` // usable by this process
	MemoryB    int64             `json:"memory_bytes"`
	Governor   string            `json:"governor"`  // or why it is not known
	Container  string            `json:"container"` // "" on bare metal; hypervisor or container kind
	Devices    []string          `json:"devices,omitempty"`
	Versions   map[string]string `json:"versions,omitempty"`
	Warnings   []string          `json:"warnings,omitempty"`
	LoadBefore float64           `json:"load_before"` // cores busy with other work just before the run
}

// Clock says how the stamps of one sitting relate: of the run as it was begun,
// or as it was resumed. The clock begins anew when the machine does, so stamps
// of two sittings compare only where their BootID is the same and known.
type Clock struct {
	Source        string `json:"source"` // CLOCK_MONOTONIC
	UncertaintyNS int64  `json:"uncertainty_ns"`
	WallNS        int64  `json:"wall_unix_ns"` // wall clock at MonotonicNS
	MonotonicNS   int64  `json:"monotonic_ns"`
	BootID        string `json:"boot_id,omitempty"` // which start of the machine; "": not known
	// EventsBefore is how many events cells.jsonl had when the sitting began:
	// the attempts that start after them are its own.
	EventsBefore int `json:"events_before,omitempty"`
}

// Model is what was loaded.
type Model struct {
	Key       string `json:"key"`
	HubID     string `json:"hub_id,omitempty"`
	Path      string `json:"path"`
	HFPath    string `json:"hf_path,omitempty"` // Hugging Face directory of the same weights
	SHA256    string `json:"sha256"`
	Bytes     int64  `json:"bytes"`
	DType     string `json:"dtype"`
	Synthetic bool   `json:"synthetic"`
	Seed      uint64 `json:"seed,omitempty"`      // of the synthetic weights
	Tokenizer string `json:"tokenizer,omitempty"` // where the vocabulary came from
}

// Backend is a backend of this run with what it cost to start.
type Backend struct {
	bench.Info
	Command  []string `json:"command,omitempty"` // argv of the server
	Endpoint string   `json:"endpoint,omitempty"`
	Log      string   `json:"log,omitempty"`
	StartNS  int64    `json:"start_to_ready_ns,omitempty"`
	// Settings, nil where nativebench does not set them.
	Settings *Settings `json:"settings,omitempty"`
}

// Settings are what an engine was started with, numbers resolved: the engines
// of one model have the same. Sizes are in tokens.
type Settings struct {
	Slots        int    `json:"slots"`
	Context      int    `json:"context"`         // per slot
	Threads      int    `json:"threads"`         // for decode
	BatchThreads int    `json:"batch_threads"`   // for prefill
	Batch        int    `json:"batch"`           // logical
	UBatch       int    `json:"ubatch"`          // physical
	PrefillChunk int    `json:"prefill_chunk"`   // most prompt tokens between two decode steps
	GPULayers    int    `json:"gpu_layers"`      // -1: all
	FlashAttn    string `json:"flash_attention"` // auto, on, off
	CacheType    string `json:"cache_type"`      // of K and V
}

// CellState is where a cell stands.
type CellState string

const (
	CellStarted     CellState = "started"
	CellDone        CellState = "done"        // ran to its end; its requests may still have failed
	CellFailed      CellState = "failed"      // could not run or died; Reason says why
	CellInterrupted CellState = "interrupted" // stopped by the user
)

// CellEvent is one line of cells.jsonl. The last one of a cell counts; a cell
// whose last event is "started" was cut off by a crash of nativebench itself.
// On resume a cell that was not done is run again: Attempt tells its records
// from those of the earlier try, which are kept but not used.
type CellEvent struct {
	Cell    string    `json:"cell"`
	Attempt int       `json:"attempt"`
	State   CellState `json:"state"`
	T       int64     `json:"t_ns"`
	Reason  string    `json:"reason,omitempty"` // one line
	Class   string    `json:"class,omitempty"`  // crash, timeout, refused, …
	Stderr  []string  `json:"stderr,omitempty"` // last lines of a dead child

	// Of a cell that ran:
	LoadNS      int64              `json:"load_ns,omitempty"`       // model load in the child
	FirstConnNS int64              `json:"first_conn_ns,omitempty"` // opening the first connection
	WindowNS    [2]int64           `json:"window_ns,omitzero"`      // measured window: first start, last end
	Memory      []bench.MemoryPart `json:"memory,omitempty"`
	Host        *HostUse           `json:"host,omitempty"`
	Server      *ServerUse         `json:"server,omitempty"`
	Warnings    []string           `json:"warnings,omitempty"` // cell-wide, for people
}

// HostUse sums the host telemetry of a cell's window. -1: not known.
type HostUse struct {
	Samples      int     `json:"samples"`
	PeakRSS      int64   `json:"peak_rss_bytes"` // process tree of the backend
	PeakPSS      int64   `json:"peak_pss_bytes"` // the same, shared pages divided among sharers
	CPUSeconds   float64 `json:"cpu_seconds"`    // of the tree
	OtherCores   float64 `json:"other_cores"`    // mean cores busy with anything else
	StealCores   float64 `json:"steal_cores"`    // mean cores that the hypervisor gave to others
	MeanMHz      float64 `json:"mean_mhz"`
	ProbeSeconds float64 `json:"probe_seconds"` // CPU the sampling itself cost
}

// ServerUse sums what a server told of itself (its Prometheus page) over a
// cell's window. -1: not known. Counters may lag behind the requests, and the
// scrape that begins the window may be some milliseconds late.
type ServerUse struct {
	Scrapes          int     `json:"scrapes"`     // of the whole cell
	RunningMax       float64 `json:"running_max"` // requests, over the scrapes within the window
	RunningMean      float64 `json:"running_mean"`
	WaitingMax       float64 `json:"waiting_max"`
	KVCacheUsedMax   float64 `json:"kv_cache_used_max"`    // share, 0 to 1
	PrefixHits       int64   `json:"prefix_cache_hits"`    // prompt tokens
	PrefixQueries    int64   `json:"prefix_cache_queries"` // prompt tokens
	Preemptions      int64   `json:"preemptions"`
	QueueMeanSeconds float64 `json:"queue_mean_seconds"`
	PromptTokens     int64   `json:"prompt_tokens"`  // as the server counts them
	OutputTokens     int64   `json:"output_tokens"`  // as the server counts them
	ScrapeSeconds    float64 `json:"scrape_seconds"` // mean time of one scrape
}

// Record is one request, one line of requests.jsonl.
type Record struct {
	Cell    string `json:"cell"`
	Attempt int    `json:"attempt"`
	Index   int    `json:"i"` // place in the cell's sequence; negative in warm-up
	Warmup  bool   `json:"warmup,omitempty"`
	Worker  int    `json:"worker"`
	Prompt  string `json:"prompt"` // id of the prompt
	Seed    uint64 `json:"seed"`

	Class bench.Class `json:"class,omitempty"` // "" is success
	Error string      `json:"error,omitempty"`

	// Retries is how many times the request was sent again; all else is of the
	// last time. Earlier are the failures before, in order.
	Retries int           `json:"retries,omitempty"`
	Earlier []bench.Class `json:"earlier,omitempty"`

	bench.Trace
	Text   string  `json:"text"`
	Tokens []int32 `json:"token_ids,omitempty"`
}

// Sample is one line of telemetry.jsonl: what a probe saw of one subject.
type Sample struct {
	T       int64              `json:"t_ns"`
	Cell    string             `json:"cell,omitempty"`
	Subject string             `json:"subject"` // host, backend, server, sampler
	Values  map[string]float64 `json:"v"`       // base units in the names: rss_bytes, cpu_seconds
}
