package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/nativebench/nativebench/httpbackends"
	"github.com/nativebench/nativebench/internal/bench"
	"github.com/nativebench/nativebench/internal/launch"
	"github.com/nativebench/nativebench/internal/plan"
	"github.com/nativebench/nativebench/internal/results"
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
	// check says, before anything is started, why it cannot work here and what
	// to do.
	check func(engineDir string) error
	// ready makes it ready to be measured, in the parent: a server is started,
	// an engine in process needs nothing. What the child must know goes into
	// the seat.
	ready func(ctx context.Context, p place) (*seat, error)
	// open is the child's side of ready.
	open func(ctx context.Context, spec json.RawMessage, loading func(float64)) (bench.Backend, error)
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

	// The rest is nil for an engine in process.
	pids    func() []int    // roots of its process tree
	died    <-chan struct{} // closed when it ended
	exit    func() string   // how it ended; may be nil
	lastLog func(n int) []string
	stop    func(context.Context) error
	metrics telemetry.Probe // what the server says of itself
}

// backends returns the rows. A row of httpbackends with a Program is taken up
// by itself if that program lies in the engine directory and loads a GGUF file
// onto this machine, as all of them do now; a server that is found elsewhere or
// holds its weights in another form needs a function like serverBackend.
func backends() registry {
	rows := registry{nativeBackend()}
	for _, s := range httpbackends.Servers() {
		if s.Program != "" && s.Python == "" {
			rows = append(rows, serverBackend(s))
		}
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
		open: func(ctx context.Context, spec json.RawMessage, loading func(float64)) (bench.Backend, error) {
			var cfg native.Config
			if err := json.Unmarshal(spec, &cfg); err != nil {
				return nil, err
			}
			e, err := native.Open(ctx, cfg, loading)
			if err != nil {
				return nil, bench.Fail(bench.Engine, "%w", err)
			}
			return e, nil
		},
	}
}

// serverBackend is a server that is started here, kept while cells use it, and
// stopped at the end.
func serverBackend(row httpbackends.Server) backend {
	program := func(engineDir string) (string, error) {
		path := filepath.Join(engineDir, row.Program)
		if st, err := os.Stat(path); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return path, nil
		}
		// $PATH is not searched: a server of another build would be compared.
		return "", fmt.Errorf("%s: no program %s in %s: run `make engine` to build it, set %s to its folder, or choose other --backends", row.Name, row.Program, engineDir, native.EnvDir)
	}
	return backend{
		name:         row.Name,
		about:        fmt.Sprintf("%s behind its HTTP server, started and stopped by nativebench", row.Engine),
		holdsWeights: true,
		check:        func(engineDir string) error { _, err := program(engineDir); return err },
		ready: func(ctx context.Context, p place) (*seat, error) {
			bin, err := program(p.engineDir)
			if err != nil {
				return nil, err
			}
			e := p.engine
			start := httpbackends.Start{
				Bin: bin, Model: p.weights.Path, Name: p.model.Key,
				Slots: p.slots, Context: p.context, Batch: e.Batch, UBatch: e.UBatch, PrefillChunk: e.PrefillChunk,
				Threads: e.Threads, BatchThreads: e.BatchThreads, GPULayers: e.GPULayers,
				FlashAttn: e.FlashAttn, CacheType: e.CacheType,
			}
			var argv []string
			spec := launch.Spec{
				Name: row.Name, LogPath: p.log, Health: row.Health,
				Argv: func(port int) ([]string, error) {
					start.Port = port
					argv, err = row.Argv(start)
					return argv, err
				},
			}
			if row.Environ != nil {
				spec.Env = row.Environ(start, os.Environ())
			}
			server, err := launch.Start(ctx, spec)
			if err != nil {
				return nil, err
			}
			scraper, err := httpbackends.NewScraper(httpbackends.Config{Server: row, Endpoint: server.Endpoint()})
			if err != nil {
				return nil, errors.Join(err, server.Stop(ctx))
			}
			var metrics telemetry.Probe
			if scraper != nil {
				metrics = scraper
			}
			return &seat{
				metrics: metrics,
				spec: serverSpec{
					Endpoint: server.Endpoint(), Model: p.model.Key,
					Weights: p.weights.Path, Synthetic: p.weights.Synthetic,
				},
				entry: results.Backend{
					Command: argv, Endpoint: server.Endpoint(), Log: p.log,
					StartNS: server.StartToReady().Nanoseconds(), Settings: p.settings(),
				},
				pids:    server.Root,
				died:    server.Done(),
				exit:    server.Exit,
				lastLog: server.LastLog,
				stop:    server.Stop,
			}, nil
		},
		open: func(ctx context.Context, spec json.RawMessage, _ func(float64)) (bench.Backend, error) {
			var at serverSpec
			if err := json.Unmarshal(spec, &at); err != nil {
				return nil, err
			}
			return httpbackends.Open(ctx, httpbackends.Config{
				Server: row, Endpoint: at.Endpoint, Model: at.Model, Weights: at.Weights, Synthetic: at.Synthetic,
			})
		},
	}
}

// serverSpec is what the child must know of a server that the parent started.
type serverSpec struct {
	Endpoint  string `json:"endpoint"`
	Model     string `json:"model"`
	Weights   string `json:"weights"`
	Synthetic bool   `json:"synthetic"`
}
