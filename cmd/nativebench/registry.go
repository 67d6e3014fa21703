package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/nativebench/nativebench/httpbackends"
	"github.com/nativebench/nativebench/internal/bench"
	"github.com/nativebench/nativebench/internal/plan"
	"github.com/nativebench/nativebench/internal/results"
	"github.com/nativebench/nativebench/internal/runner"
	"github.com/nativebench/nativebench/internal/telemetry"
	"github.com/nativebench/nativebench/native"
)

// registry is the table of backends, in the order in which they are listed.
type registry []backend

// backend is one row: how to check, ready and open something that generates.
type backend struct {
	name  string
	about string
	// holdsWeights: it loads the model's file into this machine's memory.
	holdsWeights bool
	server       *httpbackends.Server // its row, if it is a server; nil otherwise
	profiles     bool                 // it opens as a bench.Profiled
	// check says, before anything is started, why it cannot work here and what
	// to do.
	check func(engineDir string) error
	// ready makes it ready to be measured, in the parent: a server is started,
	// an engine in process needs nothing. What the child must know goes into
	// the seat.
	ready func(ctx context.Context, p place) (*seat, error)
	// open is the child's side of ready.
	open func(ctx context.Context, spec json.RawMessage, o runner.Opening) (bench.Backend, error)
}

// place is where and how a backend serves one model.
type place struct {
	model     plan.Model
	weights   results.Model
	engine    plan.Engine // resolved: what every engine is given
	engineDir string
	slots     int // requests at once, the most that the plan asks for
	context   int // tokens per slot
	log       string

	// Of servers:
	endpoint    string // of one that runs already; "": it is started here
	servedModel string // name to ask that one for; "": what it has
	keyVariable string
	docker      bool              // in a container, if its row has an image
	wait        time.Duration     // until a server is ready, at most
	say         func(what string) // tells what takes its time
	chat        bool
	prefixCache bool
	insecure    bool
	samplings   []bench.Sampling // of the cells; seeds and lengths left out
	// profile returns the command line that has a profiler start another; nil:
	// none is asked for.
	profile func(command []string) ([]string, error)
}

// settings are those that an engine at this place is started with.
func (p place) settings() *results.Settings {
	e := p.engine
	return &results.Settings{
		Slots: p.slots, Context: p.context, Threads: e.Threads, BatchThreads: e.BatchThreads,
		Batch: e.Batch, UBatch: e.UBatch, PrefillChunk: e.PrefillChunk,
		GPULayers: e.GPULayers, FlashAttn: e.FlashAttn, CacheType: e.CacheType,
	}
}

// seat is a backend that is ready.
type seat struct {
	spec  any             // for open, as JSON
	entry results.Backend // Command, Endpoint, Log, StartNS, Settings

	notes []string // for Info: what of it is known here only

	// The rest is nil for an engine in process.
	pids    func() []int    // roots of its process tree
	hidden  bool            // it may work on this machine in processes that pids does not tell
	died    <-chan struct{} // closed when it ended
	exit    func() string   // how it ended; may be nil
	lastLog func(n int) []string
	// generates is an error where a server that nativebench did not start, and
	// which has no died, makes no token any more.
	generates func(context.Context) error
	stop      func(context.Context) error
	metrics   telemetry.Probe // what the server says of itself

	kvPool    int  // tokens that its KV cache was started with; 0: not known
	kvElement int  // bytes of an element in it; 0: not known
	elsewhere bool // on another machine: what this one's GPUs do says nothing
}

// backends returns the rows: the engine in process, and every server.
func backends() registry {
	rows := registry{nativeBackend()}
	for _, s := range httpbackends.Servers() {
		rows = append(rows, serverBackend(s))
	}
	return rows
}

func (r registry) names() (names []string) {
	for _, b := range r {
		names = append(names, b.name)
	}
	return names
}

func (r registry) find(name string) (backend, error) {
	for _, b := range r {
		if b.name == name {
			return b, nil
		}
	}
	return backend{}, fmt.Errorf("unknown backend %q: choose from %s", name, strings.Join(r.names(), ", "))
}

func nativeBackend() backend {
	return backend{
		name:         "native",
		about:        "llama.cpp in process: the bare model",
		holdsWeights: true,
		profiles:     true,
		check:        native.Available,
		ready: func(_ context.Context, p place) (*seat, error) {
			e := p.engine
			return &seat{spec: native.Config{
				Dir: p.engineDir, ModelPath: p.weights.Path, Model: p.model.Key, Synthetic: p.weights.Synthetic,
				Slots: p.slots, Context: p.context, Batch: e.Batch, UBatch: e.UBatch, PrefillChunk: e.PrefillChunk,
				Threads: e.Threads, BatchThreads: e.BatchThreads, GPULayers: e.GPULayers,
				FlashAttn: e.FlashAttn, CacheType: e.CacheType,
			}, entry: results.Backend{Settings: p.settings()}}, nil
		},
		open: func(ctx context.Context, spec json.RawMessage, o runner.Opening) (bench.Backend, error) {
			var cfg native.Config
			if err := json.Unmarshal(spec, &cfg); err != nil {
				return nil, err
			}
			if err := native.Begin(cfg.Dir); err != nil {
				return nil, bench.Fail(bench.Engine, "%w", err)
			}
			o.Hold(telemetry.ContextMark) // the GPUs hold this process's contexts, and nothing else of it
			e, err := native.Open(ctx, cfg, o.Loading)
			if err != nil {
				return nil, bench.Fail(bench.Engine, "%w", err)
			}
			return e, nil
		},
	}
}
