package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/urfave/cli/v2"

	"github.com/nativebench/nativebench/internal/bench"
	"github.com/nativebench/nativebench/internal/runner"
)

// cellGC is the garbage collector's target in the process of a cell. What a
// request allocates is small and per request, so that with four times the usual
// room a collection is rare, and it is spread over all requests instead of
// being hidden: it belongs to the client's cost.
const cellGC = 400

// childSpec is what compare and run tell the process of a cell about its
// backend.
type childSpec struct {
	Backend string          `json:"backend"`
	With    json.RawMessage `json:"with"`
	// Pprof is where this process is to be profiled, as name; "": nowhere.
	Pprof string `json:"pprof,omitempty"`
	Name  string `json:"name,omitempty"`
}

// cellCommand is the process of one cell; see runner.Serve.
func cellCommand(known registry) *cli.Command {
	return &cli.Command{
		Name:   "cell",
		Usage:  "run one cell; started by compare and run, not by hand",
		Hidden: true,
		Action: func(c *cli.Context) error {
			out, held, err := runner.Messages()
			if err != nil {
				return usageError{err}
			}
			debug.SetGCPercent(cellGC)
			ctx, cancel := context.WithCancel(c.Context)
			defer cancel()
			drain := make(chan struct{})
			signals := make(chan os.Signal, 4)
			signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
			defer signal.Stop(signals)
			go func() {
				for draining := false; ; {
					select {
					case s := <-signals:
						if s == syscall.SIGTERM {
							cancel()
							return
						}
						if !draining {
							draining = true
							close(drain)
						}
					case <-ctx.Done():
						return
					}
				}
			}()
			profiled := func() error { return nil }
			err = runner.Serve(ctx, drain, c.App.Reader, held, out, func(ctx context.Context, spec json.RawMessage, o runner.Opening) (bench.Backend, error) {
				var child childSpec
				if err := json.Unmarshal(spec, &child); err != nil {
					return nil, err
				}
				b, err := known.find(child.Backend)
				if err != nil {
					return nil, err
				}
				if profiled, err = startPprof(child.Pprof, child.Name); err != nil {
					return nil, fmt.Errorf("--pprof: %w", err)
				}
				return b.open(ctx, child.With, o)
			})
			return errors.Join(err, profiled())
		},
	}
}
