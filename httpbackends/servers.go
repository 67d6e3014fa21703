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
	Health  string // path that answers 200 once the server can generate
	Tokens  bool   // honours Config.TokenIDs

	// Fields completes the body that the dialect began, so that the server
	// samples as bench.Sampling says and nothing else. It refuses what the
	// server cannot do.
	Fields func(body map[string]any, req *bench.Request, cfg *Config) error
	// Substitutions says what Fields sends in another form than asked.
	Substitutions []string
	// Notes are facts a reader of this server's numbers must know.
	Notes []string

	// EndsAfterFinish: the end of the stream after a finish_reason is a whole
	// answer; the dialect's end mark is never sent.
	EndsAfterFinish bool

	// ClosesAfterStream: the server closes the connection after each stream,
	// whatever its header said. The next is opened off the clock.
	ClosesAfterStream bool

	// Identify fills in what the server tells of itself. get fetches a path of
	// the endpoint and decodes its JSON.
	Identify func(info *bench.Info, get func(path string, into any) error) error

	// Program is the file name of the server's program; empty if nativebench
	// cannot start it.
	Program string
	// Argv returns the command line that starts the server on s.Port.
	Argv func(s Start) ([]string, error)
	// Environ returns the environment for the server from that of this process
	// (as in os.Environ); nil keeps it.
	Environ func(s Start, env []string) []string
}

// Start says with what a server is started on this machine. It mirrors the
// settings of the engine in process, so that both do the same work; what they
// mean is said in internal/plan.
type Start struct {
	Bin   string // path of the server's program
	Model string // path of the weights
	Name  string // what the server shall call the model
	Host  string // empty: 127.0.0.1
	Port  int

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

	PrefixCache bool // keep what a request left in the KV cache for the next
}

// Servers returns the rows.
func Servers() []Server { return []Server{llamaServer()} }

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
