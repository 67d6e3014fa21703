package httpbackends

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nativebench/nativebench/internal/bench"
	"github.com/nativebench/nativebench/internal/bench/benchtest"
	"github.com/nativebench/nativebench/internal/launch"
	"github.com/nativebench/nativebench/internal/synth"
)

// startReal starts the server of a row with a tiny relative of GPT-2 of real
// shape and vocabulary, and returns its endpoint and the model's name. bin holds
// the row's program.
func startReal(t *testing.T, row Server, bin string) (endpoint, model string) {
	t.Helper()
	dir := os.Getenv("NATIVEBENCH_ENGINE_DIR")
	if dir == "" {
		t.Skip("NATIVEBENCH_ENGINE_DIR is not set: no vocabulary for a model")
	}
	weights, err := synth.Write(t.Context(), synth.Spec{
		Model: "gpt2", Seed: 1, DType: "f32", Layers: 2, Width: 128, VocabDir: filepath.Join(dir, "vocab"),
	}, t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	script, err := filepath.Abs("../scripts/transformers_server.py")
	if err != nil {
		t.Fatal(err)
	}
	start := Start{
		Bin: filepath.Join(bin, row.Program), Script: script, Model: weights.HFDir, Name: "test-model",
		Slots: 4, Context: 1024, Threads: 2, DType: "f32",
	}
	if row.Weights == GGUF {
		start.Model, start.GPULayers, start.Batch, start.UBatch = weights.GGUF, 0, 512, 512
	}
	spec := launch.Spec{
		Name: row.Name, Health: row.Health, LogPath: filepath.Join(t.TempDir(), "server.log"), ReadyTimeout: 10 * time.Minute,
		Argv: func(port int) ([]string, error) {
			start := start
			start.Port = port
			return row.Argv(start)
		},
	}
	if row.Environ != nil {
		spec.Env = row.Environ(start, os.Environ())
	}
	s, err := launch.Start(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s: ready after %.1f s", row.Name, s.StartToReady().Seconds())
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the server's last words:\n%s", strings.Join(s.LastLog(40), "\n"))
		}
		if err := s.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return s.Endpoint(), start.Name
}

// TestRealServersConform runs the conformance suite against the servers named
// in NATIVEBENCH_TEST_SERVERS, as NAME=DIR with the directory of the row's
// program, and against those that run already, in NATIVEBENCH_TEST_ENDPOINTS as
// NAME=URL; several are separated by blanks. scripts/test-servers.sh sets them.
func TestRealServersConform(t *testing.T) {
	started, running := os.Getenv("NATIVEBENCH_TEST_SERVERS"), os.Getenv("NATIVEBENCH_TEST_ENDPOINTS")
	if started == "" && running == "" {
		t.Skip("neither NATIVEBENCH_TEST_SERVERS nor NATIVEBENCH_TEST_ENDPOINTS names a server")
	}
	conform := func(name string, launched bool, where func(*testing.T, Server) (string, string)) {
		t.Run(name, func(t *testing.T) {
			row, err := ServerByName(name)
			if err != nil {
				t.Fatal(err)
			}
			endpoint, model := where(t, row)
			benchtest.Run(t, func(t *testing.T) bench.Backend {
				b, err := Open(t.Context(), Config{Server: row, Endpoint: endpoint, Model: model, Launched: launched})
				if err != nil {
					t.Fatal(err)
				}
				return b
			}, benchtest.Options{NoIgnoreEOS: row.NoIgnoreEOS, NoSeed: row.NoSeed})
		})
	}
	for _, pair := range strings.Fields(started) {
		name, bin, _ := strings.Cut(pair, "=")
		conform(name, true, func(t *testing.T, row Server) (string, string) { return startReal(t, row, bin) })
	}
	for _, pair := range strings.Fields(running) {
		name, url, _ := strings.Cut(pair, "=")
		conform(name, false, func(*testing.T, Server) (string, string) { return url, "" })
	}
}
