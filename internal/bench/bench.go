// Package bench is the vocabulary that every part of nativebench shares: what
// a backend is, what is asked of it, and what was stamped while it answered.
//
// It is stage 0 of the pipeline plan → runner → results → measure → report and
// imports the standard library only.
package bench

import (
	"context"
	"time"
)

// Backend is something that generates text: the engine in this process, or a
// server. One value serves one model.
//
// Backend's methods may be called from several goroutines at once.
type Backend interface {
	// Info describes the backend as it really is (not as it was asked to be).
	// It is stored with every result.
	Info() Info
	// NewSession makes a seat for one worker. All buffers that Generate will
	// need, and the connection if there is one, are made here.
	NewSession(Limits) (Session, error)
	// Close gives everything back. Sessions must be closed before.
	Close() error
}

// Profiled is a Backend that can tell a profiler which part of its work to look
// at. Both are called off the clock, while no request is under way.
type Profiled interface {
	StartProfile(ctx context.Context) error
	// StopProfile may take minutes: some servers write what was seen before they
	// answer.
	StopProfile(ctx context.Context) error
}

// Batched is a Backend that counts how it batches what its sessions ask for.
type Batched interface {
	// Passes are how often all weights were read since the backend was opened, and
	// how many rows were computed in these passes for nobody, so that they are
	// fewer. Both 0: it does not know. Any goroutine may call it.
	Passes() (passes, filled int64)
}

// Session is one client's seat at a backend. One goroutine at a time.
type Session interface {
	// Prepare readies req off the clock: the body is built, the prompt is in
	// place. A sampling field that the backend cannot honour is an error here,
	// or a Substitution in Info, never a silent drop. req must not change
	// until Generate has returned.
	Prepare(req *Request) error
	// Generate runs the prepared request on the clock and fills tr, which the
	// caller has Reset. It returns nil or a *Failure; what was stamped before
	// a failure stays in tr. Cancelling ctx ends it at the next token.
	Generate(ctx context.Context, tr *Trace) error
	// Close frees the seat.
	Close() error
}

// Limits bounds what a session will be asked, so that it can allocate once.
type Limits struct {
	PromptBytes  int // longest rendered prompt, in bytes
	PromptTokens int // longest prompt, in tokens (an upper bound is fine)
	OutputTokens int // largest Sampling.MaxTokens

	// Time limits of a streamed answer beside that of the whole request, which
	// is the context's; 0: none. One that passes is a failure of class Timeout.
	FirstToken time.Duration // from the start until the first content
	Gap        time.Duration // from content until the next, or until the end of the answer
}

// Request is one prompt and how to answer it.
type Request struct {
	Prompt   string // rendered for the model, without BOS
	Message  string // what the user says, before the template: what a chat route is sent
	Sampling Sampling
	Stream   bool // deliver token by token; otherwise only the whole answer
}

// Sampling is how tokens are chosen. The zero Temperature means greedy.
// Order of application: temperature, then top-p (as in Transformers and vLLM).
type Sampling struct {
	Temperature float64 `json:"temperature"`
	TopP        float64 `json:"top_p"` // in (0, 1]; 1 keeps every token
	MaxTokens   int     `json:"max_tokens"`
	Seed        uint64  `json:"seed"`       // at most 2^31-1, so that every server takes it
	IgnoreEOS   bool    `json:"ignore_eos"` // go on past end-of-sequence until MaxTokens
}

// Info is a backend's identity, stored in the manifest and shown in reports.
type Info struct {
	Backend string `json:"backend"` // key of the backend: native, llama-server, …
	Engine  string `json:"engine"`  // what computes: llama.cpp, vLLM, …
	Version string `json:"version"` // of the engine, as it says itself
	Build   string `json:"build"`   // commit, flags, shim hash: what tells two builds of a version apart
	Device  string `json:"device"`  // "CPU: AMD EPYC …", "CUDA0: NVIDIA H200"

	Model     string `json:"model"`            // the backend's own name for the model
	Weights   string `json:"weights"`          // path, or what the server says it serves
	Synthetic bool   `json:"synthetic"`        // random weights of the real shape
	DType     string `json:"dtype"`            // F16, Q4_K_M, …
	Params    int64  `json:"params,omitempty"` // number of parameters, 0 if not known
	Context   int    `json:"context"`          // tokens a request may hold, prompt and output; 0 if not known
	Slots     int    `json:"slots"`            // requests served at once; 0 if not known

	// Memory says where the engine's bytes are. Empty when it cannot tell.
	Memory []MemoryPart `json:"memory,omitempty"`
	// Substitutions are requested settings that the backend takes in another,
	// equivalent or nearly equivalent, form. Reports print them.
	Substitutions []string `json:"substitutions,omitempty"`
	// Notes are facts a reader of the numbers must know (for example what is
	// not promised about reproducibility).
	Notes []string `json:"notes,omitempty"`
}

// MemoryPart is one purpose's bytes on one device, as the engine counts them.
type MemoryPart struct {
	Device string `json:"device"` // CPU, CUDA0, …
	Part   string `json:"part"`   // weights, kv, compute
	Bytes  int64  `json:"bytes"`
}
