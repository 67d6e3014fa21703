package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nativebench/nativebench/internal/bench"
	"github.com/nativebench/nativebench/internal/results"
)

// writeRun makes a run directory of one cell with three requests.
func writeRun(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "run")
	cell := results.Cell{
		ID: "gpt2/chat/sync/c1/native/r0", Load: "gpt2/chat/sync/c1", Backend: "native", Model: "gpt2", Task: "chat", Mode: "sync",
		Concurrency: 1, Requests: 3, Sampling: bench.Sampling{TopP: 1, MaxTokens: 8},
	}
	w, err := results.Create(dir, &results.Manifest{
		Schema: results.Schema, RunID: "id", Created: time.Unix(1e9, 0).UTC(), Cells: []results.Cell{cell},
		Models: []results.Model{{Key: "gpt2", Synthetic: true}},
	})
	if err != nil {
		t.Fatal(err)
	}
	const ms = 1_000_000
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	check(w.Event(results.CellEvent{Cell: cell.ID, Attempt: 1, State: results.CellStarted, T: 1000 * ms}))
	for i := range int64(3) {
		start := (1000 + 200*i) * ms
		end := start + (100+10*i)*ms
		check(w.Request(&results.Record{Cell: cell.ID, Attempt: 1, Index: int(i), Prompt: "p", Trace: bench.Trace{
			Start: start, End: end, Marks: []bench.Mark{{T: end, N: 8}}, PromptTokens: 5, OutputTokens: 8, Counted: bench.CountEngine, Events: 1,
		}}))
	}
	check(w.Event(results.CellEvent{Cell: cell.ID, Attempt: 1, State: results.CellDone, T: 2000 * ms, WindowNS: [2]int64{1000 * ms, 1520 * ms}}))
	check(w.Close())
	return dir
}

func TestReportCommand(t *testing.T) {
	dir := writeRun(t)
	for format, want := range map[string]string{
		"terminal": "110.0 ±?", "markdown": "| total latency (ms ↓) | 110.0 ±? |", "md": "synthetic weights",
		"csv": ",native,e2e,s,lower,3,0.11,", "json": `"median": 0.11`,
	} {
		code, out, errs := invoke(t, "report", dir, "--format", format)
		if code != 0 || !strings.Contains(out, want) || errs != "" {
			t.Errorf("%s: exit %d, no %q in:\n%s%s", format, code, want, out, errs)
		}
	}
	file := filepath.Join(t.TempDir(), "report.csv")
	if code, out, errs := invoke(t, "report", "--format", "csv", "-o", file, dir, dir); code != 0 || out != "" {
		t.Errorf("exit %d: %s%s", code, out, errs)
	}
	if b, err := os.ReadFile(file); err != nil || strings.Count(string(b), ",e2e,") != 2 {
		t.Errorf("%v: %s", err, b)
	}
}

func TestReportRefuses(t *testing.T) {
	dir := writeRun(t)
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"report"}, exitUsage, "no run directory was given"},
		{[]string{"report", dir, "--format", "html"}, exitUsage, "choose from terminal, markdown, csv, json"},
		{[]string{"report", filepath.Join(dir, "nowhere")}, exitError, "nowhere"},
		{[]string{"report", dir, "-o", filepath.Join(dir, "no", "such", "folder")}, exitError, "no such file"},
	} {
		code, out, errs := invoke(t, c.args...)
		if code != c.code || !strings.Contains(errs, c.want) || out != "" {
			t.Errorf("%q: exit %d, %q, %q", c.args, code, out, errs)
		}
	}
}

func TestExplainCommand(t *testing.T) {
	doc, err := os.ReadFile("../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	if code, out, _ := invoke(t, "explain", "--format", "md"); code != 0 || out != string(doc) {
		t.Errorf("exit %d; docs/metrics.md is not what explain --format md prints: write it anew with that", code)
	}
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"explain"}, exitOK, "steady_tok_per_s"},
		{[]string{"explain", "p2ft", "tpot"}, exitOK, "(tL − t1)/(n − 1)"},
		{[]string{"explain", "ttft", "nothing"}, exitUsage, "choose from e2e"},
		{[]string{"explain", "--format", "html"}, exitUsage, "choose from terminal, md"},
		{[]string{"explain", "--format", "md", "ttft"}, exitUsage, "leave out"},
	} {
		code, out, errs := invoke(t, c.args...)
		if code != c.code || !strings.Contains(out+errs, c.want) || (code != exitOK && out != "") {
			t.Errorf("%q: exit %d, %q, %q", c.args, code, out, errs)
		}
	}
}
