package results

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nativebench/nativebench/internal/bench"
)

var update = flag.Bool("update", false, "write the examples into the documentation")

const documentation = "../../docs/run-directory.md"

// documentedRun is the run whose lines the documentation shows.
func documentedRun(t *testing.T) string {
	t.Helper()
	m := sampleManifest()
	m.Cells = []Cell{m.Cells[1], m.Cells[0]}
	for i := range m.Cells {
		m.Cells[i].Requests = 1
	}
	w := create(t, m)
	a, b := m.Cells[0].ID, m.Cells[1].ID
	answered := sampleRecord(a, 1, 0)
	answered.Phases, answered.Coalesced, answered.Warnings = bench.Phases{}, 0, nil
	broken := &Record{Cell: b, Attempt: 1, Index: 0, Prompt: "chat-03", Seed: answered.Seed}
	tr := bench.NewTrace(4)
	tr.Start, tr.End, tr.PromptTokens, tr.Counted = 6_000_000_000, 6_009_000_000, 24, bench.CountEngine
	tr.Phases = bench.Phases{Tokenize: 41_000, Queue: 12_000, Prefill: 8_800_000}
	broken.Fill(tr, bench.Fail(bench.Engine, "native: decoding failed: out of memory"))

	must(t, w.Event(CellEvent{Cell: a, Attempt: 1, State: CellStarted, T: 4_900_000_000}))
	must(t, w.Request(answered))
	must(t, w.Sample(&Sample{T: 5_010_000_000, Cell: a, Subject: "backend", Values: map[string]float64{"rss_bytes": 412_000_256, "pss_bytes": 398_123_008, "cpu_seconds": 1.87, "threads": 5, "processes": 1}}))
	must(t, w.Sample(&Sample{T: 5_010_200_000, Cell: a, Subject: "host", Values: map[string]float64{"work_seconds": 1203.51, "other_seconds": 0.04, "irq_seconds": 3.2, "steal_seconds": 0, "cpu_mhz": 3400, "memory_available_bytes": 7_301_444_403}}))
	must(t, w.Sample(&Sample{T: 5_010_300_000, Cell: a, Subject: "sampler", Values: map[string]float64{"cpu_seconds": 0.0021}}))
	must(t, w.Sample(&Sample{T: 5_010_400_000, Cell: a, Subject: "server", Values: map[string]float64{"requests_running": 1, "requests_waiting": 0, "prompt_tokens_total": 96, "output_tokens_total": 12, "scrape_seconds": 0.0011}}))
	must(t, w.Event(CellEvent{
		Cell: a, Attempt: 1, State: CellDone, T: 5_040_000_000, FirstConnNS: 310_000, WindowNS: [2]int64{5_000_000_000, 5_031_600_000},
		Host:   &HostUse{Samples: 1, PeakRSS: 412_000_256, PeakPSS: 398_123_008, CPUSeconds: 0.06, OtherCores: 0.02, StealCores: 0, MeanMHz: 3400, ProbeSeconds: 0.0004},
		Server: &ServerUse{Scrapes: 4, RunningMax: -1, RunningMean: -1, WaitingMax: -1, KVCacheUsedMax: -1, PrefixHits: 0, PrefixQueries: -1, Preemptions: -1, QueueMeanSeconds: -1, PromptTokens: 24, OutputTokens: 4, ScrapeSeconds: 0.0011},
	}))
	must(t, w.Event(CellEvent{Cell: b, Attempt: 1, State: CellStarted, T: 5_700_000_000}))
	must(t, w.Request(broken))
	must(t, w.Event(CellEvent{
		Cell: b, Attempt: 1, State: CellFailed, T: 6_100_000_000, Class: "crash", LoadNS: 231_000_000,
		Memory: []bench.MemoryPart{{Device: "CPU", Part: "weights", Bytes: 248_894_464}, {Device: "CPU", Part: "kv", Bytes: 37_748_736}},
		Reason: "the process of the cell: killed by signal 9", Stderr: []string{"llama_context: n_ctx = 1024"},
	}))
	must(t, w.Close())
	return w.Dir()
}

// addSyncAnswer adds a cell in sync mode, with one answer, to a run.
func addSyncAnswer(t *testing.T, dir string) {
	t.Helper()
	w, run, err := Resume(dir)
	must(t, err)
	c := run.Manifest.Cells[0]
	c.ID, c.Load, c.Mode = "gpt2/chat/sync/c1/llama-server/r0", "gpt2/chat/sync/c1", "sync"
	run.Manifest.Cells = append(run.Manifest.Cells, c)
	must(t, w.SetManifest(&run.Manifest))
	must(t, w.Event(CellEvent{Cell: c.ID, Attempt: 1, State: CellStarted, T: 7_000_000_000}))
	must(t, w.Request(sampleRecord(c.ID, 1, 0)))
	must(t, w.Event(CellEvent{Cell: c.ID, Attempt: 1, State: CellDone, T: 7_100_000_000}))
	must(t, w.Close())
}

// The examples in the documentation are what a writer writes.
func TestTheDocumentationShowsRealLines(t *testing.T) {
	dir := documentedRun(t)
	doc, err := os.ReadFile(documentation)
	must(t, err)
	block := regexp.MustCompile("(?s)<!-- example: ([a-z.]+) -->\n```json\n(.*?)```\n")
	shown := map[string]bool{}
	renewed := block.ReplaceAllStringFunc(string(doc), func(s string) string {
		name := block.FindStringSubmatch(s)[1]
		shown[name] = true
		b, err := os.ReadFile(filepath.Join(dir, name))
		must(t, err)
		return "<!-- example: " + name + " -->\n```json\n" + string(b) + "```\n"
	})
	for _, name := range []string{manifestFile, cellsFile, requestsFile, telemetryFile} {
		if !shown[name] {
			t.Errorf("no example of %s", name)
		}
	}
	if *update {
		must(t, os.WriteFile(documentation, []byte(renewed), 0o644))
		return
	}
	if d := cmp.Diff(renewed, string(doc)); d != "" {
		t.Errorf("the documentation is not up to date: go test ./internal/results -run Documentation -update\n(-real +shown):\n%s", d)
	}
}

// Every field of every type is explained by its name.
func TestTheDocumentationNamesEveryField(t *testing.T) {
	doc, err := os.ReadFile(documentation)
	must(t, err)
	var check func(ty reflect.Type)
	seen := map[reflect.Type]bool{}
	check = func(ty reflect.Type) {
		for ty.Kind() == reflect.Pointer || ty.Kind() == reflect.Slice || ty.Kind() == reflect.Array {
			ty = ty.Elem()
		}
		if ty.Kind() != reflect.Struct || seen[ty] || ty.PkgPath() == "time" {
			return
		}
		seen[ty] = true
		for f := range ty.Fields() {
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			if name == "-" {
				continue
			}
			if name != "" && !bytes.Contains(doc, []byte("`"+name+"`")) {
				t.Errorf("%s.%s: `%s` is not explained", ty, f.Name, name)
			}
			if f.Name != "Plan" {
				check(f.Type)
			}
		}
	}
	for _, v := range []any{Manifest{}, CellEvent{}, Record{}, recordWire{}, Sample{}} {
		check(reflect.TypeOf(v))
	}
	if len(seen) < 15 {
		t.Errorf("only %d types were looked at", len(seen))
	}
}

// The recipes of the documentation run and say what they promise.
func TestTheRecipesWork(t *testing.T) {
	doc, err := os.ReadFile(documentation)
	must(t, err)
	dir := documentedRun(t)
	want := map[string][]string{
		"sh": {
			"gpt2/chat/stream/c1/llama-server/r0\t1\tstarted\t\ngpt2/chat/stream/c1/llama-server/r0\t1\tdone\t\n" +
				"gpt2/chat/stream/c1/native/r0\t1\tstarted\t\ngpt2/chat/stream/c1/native/r0\t1\tfailed\tthe process of the cell: killed by signal 9\n",
			"gpt2/chat/stream/c1/llama-server/r0\t0\t31.6\tok\ngpt2/chat/stream/c1/native/r0\t0\t9\tengine\n",
		},
		"python": {"[12.0] ms\n"},
	}
	for _, lang := range []string{"sh", "python"} {
		outputs := want[lang]
		blocks := regexp.MustCompile("(?s)```"+lang+"\n(.*?)```").FindAllStringSubmatch(string(doc), -1)
		if len(blocks) != len(outputs) {
			t.Fatalf("%d recipes in %s, want %d", len(blocks), lang, len(outputs))
		}
		for i, b := range blocks {
			t.Run(lang, func(t *testing.T) {
				args := map[string][]string{"sh": {"sh", "-c", b[1]}, "python": {"python3", "-c", b[1]}}[lang]
				for _, tool := range []string{args[0], map[string]string{"sh": "jq", "python": "python3"}[lang]} {
					if _, err := exec.LookPath(tool); err != nil {
						t.Skipf("%s is not here", tool)
					}
				}
				cmd := exec.Command(args[0], args[1:]...)
				cmd.Dir = dir
				if lang == "python" { // its recipe is about streams only
					addSyncAnswer(t, dir)
				}
				out, err := cmd.CombinedOutput()
				if err != nil {
					t.Fatalf("%v:\n%s", err, out)
				}
				if d := cmp.Diff(outputs[i], string(out)); d != "" {
					t.Errorf("(-want +got):\n%s", d)
				}
			})
		}
	}
}

// A reader in another language sees what the documentation says: each line is
// one JSON object.
func TestEachLineIsOneObject(t *testing.T) {
	dir := documentedRun(t)
	for _, name := range []string{cellsFile, requestsFile, telemetryFile} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		must(t, err)
		for line := range bytes.Lines(b) {
			var object map[string]json.RawMessage
			if err := json.Unmarshal(line, &object); err != nil {
				t.Errorf("%s: %v: %s", name, err, line)
			}
		}
	}
}
