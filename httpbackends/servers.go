// Package httpbackends drives servers that generate text over HTTP: one file
// per wire protocol (dialect), servers as rows.
//
// A request is timed on one HTTP/1.1 connection per session by a small client
// of ours (http1.go) over a socket that reports when the kernel received the
// bytes (conn.go); a stream is cut into events by sse.go, whose JSON json.go
// picks apart. None of that allocates once a session is warm.
package httpbackends

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/nativebench/nativebench/internal/bench"
)

// Server is one kind of server: what it speaks, how it wants to be asked, and
// how it is started. Rows are data: adding a server is adding a row.
type Server struct {
	Name    string // key of the backend, for example "llama-server"
	Engine  string // what computes behind it
	Dialect Dialect
	Route   string // path that generates
	// StreamRoute is the path that generates in a stream; empty: Route.
	StreamRoute string
	// ChatRoute is the path of its OpenAI chat route, for Config.Chat; empty:
	// it has none.
	ChatRoute string
	Health    string // path that answers 200 once the server can generate
	Tokens    bool   // honours Config.TokenIDs

	// What it cannot do, so that a plan can be refused before it runs.
	NoIgnoreEOS bool // Sampling.IgnoreEOS: Fields refuses it
	NoSeed      bool // does not promise to repeat a seeded answer

	// Fields completes the body that the dialect began, so that the server
	// samples as bench.Sampling says and nothing else. It refuses what the
	// server cannot do.
	Fields func(body map[string]any, req *bench.Request, cfg *Config) error
	// Substitutions says what Fields sends in another form than asked.
	Substitutions []Substitution
	// Notes are facts a reader of this server's numbers must know.
	Notes []string

	// EndsAfterFinish: the end of the stream after a finish_reason is a whole
	// answer; the dialect's end mark is never sent.
	EndsAfterFinish bool

	// MergesTokens: an event of its streams may hold several tokens, after UTF-8
	// that was held back for one, and does not tell how many; so fewer events than
	// tokens are no warning. Where events do count, that is not looked at. A note
	// says so: notedMerges.
	MergesTokens bool

	// ClosesAfterStream: the server closes the connection after each stream,
	// whatever its header said. The next is opened off the clock.
	ClosesAfterStream bool

	// Identify fills in what the server tells of itself. info.Model is the name
	// that was asked for, or empty. get fetches a path of the endpoint and
	// decodes its JSON.
	Identify func(info *bench.Info, get func(path string, into any) error) error

	// Tokenize asks the server for the ids of a prompt as its Route would have
	// them, BOS included; nil: it does not tell, or tells in the answer itself.
	// post sends a body as JSON to a path of the endpoint and decodes the answer.
	Tokenize func(prompt string, post func(path string, body, into any) error) ([]int32, error)

	// Metrics are the series in which the server tells its own view.
	Metrics Metrics

	// Weights is the form in which the server reads a model from disk.
	Weights WeightsForm
	// Program is the file name of the server's program; empty if nativebench
	// cannot start it as a process.
	Program string
	// Python names the Python environment (scripts/python-env.sh) whose bin/
	// holds Program; empty: Program lies in the engine directory.
	Python string
	// Argv returns the command line that starts the server on s.Port.
	Argv func(s Start) ([]string, error)
	// Environ returns the environment for the server from that of this process
	// (as in os.Environ); nil keeps it.
	Environ func(s Start, env []string) []string
	// Process are groups of words by which its processes are known: see
	// IsProcess. Empty: by none.
	Process [][]string
	// EnvPrefix begins the names of the variables by which users change what
	// the server does; those that Environ lets through are told.
	EnvPrefix string
	// Distribution is the Python package whose version is the server's, where
	// the server does not tell it.
	Distribution string
	// Image is the pinned container image; empty if there is none. It needs a
	// GPU if ImageNeedsGPU.
	Image         string
	ImageNeedsGPU bool
	// KVPool returns for how many tokens the server's KV cache has room when it
	// is started so; nil: it does not follow from that.
	KVPool func(s Start) int
	// ContainerArgv returns what stands after the image's name; inside, the
	// weights are at s.Model and the server listens on s.Host and s.Port.
	ContainerArgv func(s Start) ([]string, error)
	// ContainerEnv are the container's variables, as NAME=value; s.Model is the
	// weights' path outside.
	ContainerEnv func(s Start) []string
	// Profile are the paths that begin and end what a profiler of CUDA captures of
	// the server, by POST.
	Profile Profile
	// NamedByPath: the server knows its model by the path that it was started
	// with and by no other name.
	NamedByPath bool
}

// Substitution is a setting that a server is sent in another form than asked.
type Substitution struct {
	Text string
	// For tells whether it is made of that sampling; nil: of any.
	For func(sp bench.Sampling, cfg *Config) bool
}

// substitutions are the texts of those that are made of any of the samplings of
// the configuration; all of them where it has none.
func (s Server) substitutions(cfg *Config) (texts []string) {
	for _, sub := range s.Substitutions {
		made := func(sp bench.Sampling) bool { return sub.For(sp, cfg) }
		if sub.For == nil || len(cfg.Samplings) == 0 || slices.ContainsFunc(cfg.Samplings, made) {
			texts = append(texts, sub.Text)
		}
	}
	return texts
}

func greedy(sp bench.Sampling, _ *Config) bool { return sp.Temperature == 0 }

// Profile is how a server is told to begin and to end a capture; the zero one:
// it cannot be told.
type Profile struct {
	Start, Stop string // paths
	Body        any    // of Start, as JSON; nil: none
	Wants       string // how the server must have been started
}

// IsProcess tells whether a command line is recognisably of this server: all
// words of a group are in the file name of its program or in its first arguments
// (an interpreter's script or module, and what that is told to do).
func (s Server) IsProcess(argv []string) bool {
	var words []string
	for _, arg := range argv[:min(len(argv), 4)] {
		if strings.Contains(arg, "://") {
			continue // somebody who speaks to one
		}
		words = append(words, strings.FieldsFunc(strings.ToLower(path.Base(arg)), func(r rune) bool { return strings.ContainsRune(".: ", r) })...)
	}
	has := func(word string) bool {
		return slices.ContainsFunc(words, func(w string) bool {
			w = strings.TrimRight(w, "0123456789") // the third of them, say
			return w == word || w == word+"_" || strings.HasPrefix(w, word+"-")
		})
	}
	return slices.ContainsFunc(s.Process, func(group []string) bool {
		return !slices.ContainsFunc(group, func(word string) bool { return !has(word) })
	})
}

// notedMerges is the note of a server that MergesTokens.
const notedMerges = "its events do not tell how many tokens they hold, and may hold several (a character of several tokens comes at once): an answer of fewer events than tokens has no warning for it, its gaps are between events, and its time per token is not measured"

// WeightsForm is how a model lies on disk.
type WeightsForm int

const (
	GGUF        WeightsForm = iota // one file
	HuggingFace                    // a directory: config, safetensors, tokenizer
)

// Metrics says where a server shows Prometheus series and which of them matter.
type Metrics struct {
	Path string // empty: it has none
	// Series maps our name of a value (with its unit; counters end in _total)
	// to the names under which versions of the server show it, newest first.
	Series []Series
	// Labels are values that stand in the labels of a series.
	Labels []LabelValue
}

// LabelValue is a value that a server shows in labels: the product of those of a
// label set, summed over the sets.
type LabelValue struct {
	Key    string // ours: kv_pool_tokens
	Name   string // of their series
	Labels []string
}

// Series is one value of a server's metrics.
type Series struct {
	Key   string   // ours: requests_running, kv_cache_used_ratio, queue_seconds_sum, …
	Names []string // theirs; the first that is there counts, summed over its labels
}

// Start says with what a server is started on this machine. It mirrors the
// settings of the engine in process, so that both do the same work; what they
// mean is said in internal/plan.
type Start struct {
	Bin    string // path of the server's program
	Script string // path of our Transformers server (scripts/transformers_server.py)
	Model  string // path of the weights, in the form of Server.Weights
	DType  string // f16, f32, bf16: in which to compute, where the server can choose; empty: as the weights
	Name   string // what the server shall call the model
	Host   string // empty: 127.0.0.1
	Port   int

	Slots        int // requests served at once
	Context      int // tokens per slot, prompt and output
	Threads      int // 0: the server's own choice
	BatchThreads int // 0: as Threads
	Batch        int // 0: the server's own choice; so for UBatch
	UBatch       int
	PrefillChunk int    // 0: Batch
	GPULayers    int    // -1: all
	FlashAttn    string // auto, on, off; empty: auto
	CacheType    string // f16, f32; empty: f16

	Profile     bool // be ready for Server.Profile
	PrefixCache bool // keep what a request left in the KV cache for the next
}

// check refuses what no server can be started with. what names the program;
// form says what the weights are.
func (s Start) check(what, form string) error {
	switch {
	case s.Bin == "":
		return fmt.Errorf("cannot start %s: no path of its program was given", what)
	case s.Model == "":
		return fmt.Errorf("cannot start %s: no path of a model (%s) was given", what, form)
	case s.Slots < 1:
		return fmt.Errorf("cannot start %s with %d slots: at least 1 is needed", what, s.Slots)
	case s.Context < 1:
		return fmt.Errorf("cannot start %s with a context of %d tokens per slot: at least 1 is needed", what, s.Context)
	case s.Port < 1 || s.Port > 65535:
		return fmt.Errorf("cannot start %s on port %d: choose 1 to 65535", what, s.Port)
	}
	return nil
}

func (s Start) host() string {
	if s.Host == "" {
		return "127.0.0.1"
	}
	return s.Host
}

// onCPU reports whether nothing is put on a GPU.
func (s Start) onCPU() bool { return s.GPULayers == 0 }

// dtype is the name that PyTorch has for s.DType. Without one, a CPU computes
// in float32, as not all of them are quick in less; a GPU as other says.
func (s Start) dtype(other string) (string, error) {
	switch s.DType {
	case "f16":
		return "float16", nil
	case "bf16":
		return "bfloat16", nil
	case "f32":
		return "float32", nil
	case "":
		if s.onCPU() {
			return "float32", nil
		}
		return other, nil
	}
	return "", fmt.Errorf("cannot compute in %q: choose f16, bf16 or f32", s.DType)
}

// setEnv returns env with the given variables (NAME=value) in place of those
// of the same names.
func setEnv(env []string, set ...string) []string {
	out := slices.DeleteFunc(slices.Clone(env), func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		return slices.ContainsFunc(set, func(s string) bool { return strings.HasPrefix(s, name+"=") })
	})
	return append(out, set...)
}

// Servers returns the rows.
func Servers() []Server {
	return []Server{
		llamaServer(), vllmServer(), tgiServer(), transformersServer(), transformersServe(),
		sglangServer(), ollamaServer(), openAIServer(),
	}
}

// ServerByName returns the row of that name; the error lists the names.
func ServerByName(name string) (Server, error) {
	rows := Servers()
	names := make([]string, len(rows))
	for i, s := range rows {
		if s.Name == name {
			return s, nil
		}
		names[i] = s.Name
	}
	return Server{}, fmt.Errorf("unknown server %q: choose one of %s", name, strings.Join(names, ", "))
}
