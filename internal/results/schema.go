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
	"slices"
	"strings"
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
	// PromptCounts say, by model, how prompts were counted before they were sent.
	PromptCounts []PromptCount `json:"prompt_counts,omitempty"`
	// PromptTokens are the lengths of the rendered prompts by that count, BOS
	// included: by model, by id of the prompt. Absent where it is not exact.
	PromptTokens map[string]map[string]int `json:"prompt_tokens,omitempty"`
	Backends     []Backend                 `json:"backends"` // as they answered; filled as they start
	// SameModel is what was found, before measuring, of whether the backends run
	// the same model; filled as they start. Empty where it was not asked.
	SameModel []SameModel `json:"same_model,omitempty"`
	// NotRun says why parts of the run have not begun.
	NotRun []NotRun `json:"not_run,omitempty"`
}

// NotRun is a backend with a model in one repeat.
type NotRun struct {
	Backend string `json:"backend"`
	Model   string `json:"model"`
	Repeat  int    `json:"repeat"` // from 0
	Reason  string `json:"reason"` // one clause
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
	OS        string   `json:"os"`
	Kernel    string   `json:"kernel"`
	CPU       string   `json:"cpu"`
	Cores     int      `json:"cores"` // usable by this process
	MemoryB   int64    `json:"memory_bytes"`
	Governor  string   `json:"governor"`  // or why it is not known
	Container string   `json:"container"` // "" on bare metal; hypervisor or container kind
	Devices   []string `json:"devices,omitempty"`
	// GPUs are those that were measured; GPUsMissing says why there are none.
	GPUs        []GPU             `json:"gpus,omitempty"`
	GPUsMissing string            `json:"gpus_missing,omitempty"` // "not available: …"
	Versions    map[string]string `json:"versions,omitempty"`
	Warnings    []string          `json:"warnings,omitempty"`
	LoadBefore  float64           `json:"load_before"` // cores busy with other work just before the run
}

// GPU is one that the run may use, as its driver describes it. Texts that are
// not known begin with "not known: ".
type GPU struct {
	Device      string  `json:"device"`        // as telemetry names it: gpu0; gpu0.1 for a part that MIG has cut off
	Engine      string  `json:"engine_device"` // as the engine names it: CUDA0
	Name        string  `json:"name"`
	UUID        string  `json:"uuid"`
	MemoryB     int64   `json:"memory_bytes"` // -1: not known
	PowerLimitW float64 `json:"power_limit_watts"`
	MIG         string  `json:"mig"` // off, on, "part of GPU 0"
	Persistence string  `json:"persistence"`
	ECC         string  `json:"ecc"`
	Processes   string  `json:"processes"` // visible, or why not
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

// TokenizerInFile is Model.Tokenizer where the file holds the model's own.
const TokenizerInFile = "in the model's file"

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
	Tokenizer string `json:"tokenizer,omitempty"` // TokenizerInFile, or what stands in for the model's own
	Layers    int    `json:"layers,omitempty"`
	Width     int    `json:"width,omitempty"` // elements of a token's embedding
	// Relative says in what the shape is not the model's, "2 of 32 layers".
	Relative string `json:"relative,omitempty"`

	Source *Source `json:"source,omitempty"` // of a file that nativebench converted
}

// Source is the Hugging Face directory that a model's file was made from, and
// by what.
type Source struct {
	Path      string       `json:"path"`
	HubID     string       `json:"hub_id,omitempty"`   // "" here and below: the directory is not of the hub's cache
	Revision  string       `json:"revision,omitempty"` // commit
	Files     []SourceFile `json:"files"`
	Converter string       `json:"converter_sha256"` // of the converter's sources, and the quantizer's libraries where it was used
	Python    string       `json:"python"`           // environment that the converter ran in; the name holds the hash of its pins
	Began     time.Time    `json:"began"`
	TookNS    int64        `json:"took_ns"`
}

// SourceFile is one file of a Source.
type SourceFile struct {
	Path   string `json:"path"` // relative to the directory
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256"`
}

// PromptCount is how the prompts of a model were counted when they were chosen
// or made. What the backends counted is in the requests.
type PromptCount struct {
	Model      string `json:"model"`
	Vocabulary string `json:"vocabulary,omitempty"` // path of the file; "" and Exact: recorded with the built-in prompts
	SHA256     string `json:"sha256,omitempty"`     // of the file
	Exact      bool   `json:"exact"`
	Note       string `json:"note,omitempty"` // why it is not exact
}

// Backend is a backend of this run with what it cost to start.
type Backend struct {
	bench.Info
	Command  []string `json:"command,omitempty"` // argv of the server
	Endpoint string   `json:"endpoint,omitempty"`
	Log      string   `json:"log,omitempty"`
	StartNS  int64    `json:"start_to_ready_ns,omitempty"`
	// GPU is what a server that was started here held, by device.
	GPU []GPUHeld `json:"gpu,omitempty"`
	// Settings, nil where nativebench does not set them.
	Settings *Settings `json:"settings,omitempty"`
}

// SameModel is a backend set against the reference before it was measured: the
// same prompts, greedily.
type SameModel struct {
	Model     string `json:"model"`
	Reference string `json:"reference"`
	Backend   string `json:"backend"`
	OK        bool   `json:"ok"`              // their numbers are of one model
	Verdict   string `json:"verdict"`         // identical, numerically close, different, not verified
	Cause     string `json:"cause,omitempty"` // of different: bos_twice, template, weights, dtype, …
	Why       string `json:"why,omitempty"`   // one clause

	Prompts      int    `json:"prompts"`       // that both answered
	PromptsBy    string `json:"prompts_by"`    // prompt tokens were compared by: ids, counts; "": not told
	PromptsEqual int    `json:"prompts_equal"` // of Prompts
	AnswersBy    string `json:"answers_by"`    // ids, text
	AnswersEqual int    `json:"answers_equal"` // of Prompts
	Tokens       int    `json:"tokens"`        // equal ones, before a first difference
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
	CellFailed      CellState = "failed"      // could not run, or it or its server died; Reason says why
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
	Passes      int64              `json:"passes,omitempty"`        // over the weights, in the measured window
	FilledRows  int64              `json:"filled_rows,omitempty"`   // computed in them for nobody
	Memory      []bench.MemoryPart `json:"memory,omitempty"`
	Host        *HostUse           `json:"host,omitempty"`
	Server      *ServerUse         `json:"server,omitempty"`
	GPU         []GPUUse           `json:"gpu,omitempty"`         // one for each GPU that the run may use
	GPUMissing  string             `json:"gpu_missing,omitempty"` // why there is none: "not available: …"
	Warnings    []string           `json:"warnings,omitempty"`    // cell-wide, for people
	// Doubts are what of the warnings keeps numbers from a verdict. A reader
	// finds them in the texts of directories that are older than the field.
	Doubts []Doubt `json:"doubts,omitempty"`
}

// Doubt is why the numbers of a cell are not to be judged.
type Doubt string

const (
	DoubtBusy      Doubt = "busy"         // other work used the machine, or a GPU
	DoubtCacheHits Doubt = "prefix_cache" // prompt tokens came from a prefix cache that should be off
)

// Warn adds warnings, all of which give rise to the doubt.
func (e *CellEvent) Warn(d Doubt, texts ...string) {
	e.Warnings = append(e.Warnings, texts...)
	if len(texts) > 0 && !slices.Contains(e.Doubts, d) {
		e.Doubts = append(e.Doubts, d)
	}
}

// doubtsOf are the doubts in warnings as they were written before events had
// them by themselves.
func doubtsOf(warnings []string) (doubts []Doubt) {
	var e CellEvent
	for _, w := range warnings {
		switch {
		case strings.HasPrefix(w, "busy machine"), strings.HasPrefix(w, "shared GPU"):
			e.Warn(DoubtBusy, w)
		case strings.Contains(w, "prompt tokens came from the server's prefix cache"):
			e.Warn(DoubtCacheHits, w)
		}
	}
	return e.Doubts
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
	KVCacheUsedMax   float64 `json:"kv_cache_used_max"`            // share, 0 to 1
	KVHeldMax        float64 `json:"kv_held_max_tokens,omitempty"` // set aside for the running requests
	KVPoolTokens     float64 `json:"kv_pool_tokens,omitempty"`     // that the cache has room for
	KVTokenBytes     int64   `json:"kv_token_bytes,omitempty"`     // keys and values of one token, from the model's shape
	PrefixHits       int64   `json:"prefix_cache_hits"`            // prompt tokens
	PrefixQueries    int64   `json:"prefix_cache_queries"`         // prompt tokens
	Preemptions      int64   `json:"preemptions"`
	QueueMeanSeconds float64 `json:"queue_mean_seconds"`
	PromptTokens     int64   `json:"prompt_tokens"`  // as the server counts them
	OutputTokens     int64   `json:"output_tokens"`  // as the server counts them
	ScrapeSeconds    float64 `json:"scrape_seconds"` // mean time of one scrape
}

// GPUUse sums the telemetry of one GPU over a cell's window. -1: not known;
// Missing says why, by series: memory, processes, energy, power, clocks,
// reasons, temperature, utilization, pcie.
type GPUUse struct {
	Device string `json:"device"`        // gpu0
	Engine string `json:"engine_device"` // CUDA0
	Name   string `json:"name"`

	Reads         int     `json:"reads"`          // of the memory in use, within the window
	PeriodSeconds float64 `json:"period_seconds"` // mean time between two of them
	GapSeconds    float64 `json:"gap_seconds"`    // the longest

	// Memory in use on the device, by all processes: before the backend was
	// started, when it was loaded and stood still, the most in its window, and
	// after the backend had ended (-1 while it goes on).
	Before   int64 `json:"before_bytes"`
	Loaded   int64 `json:"loaded_bytes"`
	Peak     int64 `json:"peak_bytes"`
	Released int64 `json:"released_bytes"`
	// The backend's own, by Source: "processes" (what the driver lists under its
	// process tree) or "device" (the rise of the device above Before, for the
	// reason in SourceWhy).
	OwnContext int64  `json:"own_context_bytes"` // before its weights came, while it stood still
	OwnLoaded  int64  `json:"own_loaded_bytes"`
	OwnPeak    int64  `json:"own_peak_bytes"`
	Source     string `json:"own_source,omitempty"`
	SourceWhy  string `json:"own_source_why,omitempty"`
	Foreign    int64  `json:"foreign_peak_bytes"` // most that other processes held
	ForeignN   int    `json:"foreign_processes"`  // most of them at once

	EnergyJ      float64 `json:"energy_joules"`           // of the whole board
	EnergySource string  `json:"energy_source,omitempty"` // "counter", or "power": its integral
	EnergyStep   float64 `json:"energy_step_seconds"`     // mean time between two steps of it
	MeanW        float64 `json:"mean_watts"`
	PeakW        float64 `json:"peak_watts"`
	PowerMean    bool    `json:"power_is_mean,omitempty"` // peak_watts is of means over a second

	SMMHz      float64            `json:"sm_mhz"` // mean
	SMMinMHz   float64            `json:"sm_min_mhz"`
	MemoryMHz  float64            `json:"memory_mhz"`
	MaxCelsius float64            `json:"max_celsius"`
	Throttled  map[string]float64 `json:"throttled,omitempty"` // share of the samples by reason
	Busy       float64            `json:"busy"`                // share of time in which a kernel ran

	PCIeSent     float64 `json:"pcie_sent_bytes"`
	PCIeReceived float64 `json:"pcie_received_bytes"`
	PCIeSource   string  `json:"pcie_source,omitempty"` // "counter", or "rates": of moments, times the window

	CallSeconds  map[string]float64 `json:"call_seconds,omitempty"` // mean time of one call, by series
	SamplerCores float64            `json:"sampler_cores"`          // share of a core that sampling all GPUs took
	Missing      map[string]string  `json:"missing,omitempty"`
}

// GPUHeld is the memory in use on a GPU around the life of a server, in bytes.
// -1: not known.
type GPUHeld struct {
	Device   string `json:"device"`
	Before   int64  `json:"before_bytes"`   // it was started
	Ready    int64  `json:"ready_bytes"`    // it had made its first token
	Released int64  `json:"released_bytes"` // it had ended, waited for; -1 while it runs
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
	Subject string             `json:"subject"` // host, backend, server, sampler, gpu0 …, gpu_sampler
	Values  map[string]float64 `json:"v"`       // base units in the names: rss_bytes, cpu_seconds
}
