package report

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nativebench/nativebench/internal/bench"
	"github.com/nativebench/nativebench/internal/results"
)

func TestLastWords(t *testing.T) {
	for _, c := range []struct {
		log  []string
		want string
	}{
		{[]string{"loading", "GGML_ASSERT(x) failed", "SIGABRT: abort", "PC=0x7f m=0", "rax    0x0"}, "GGML_ASSERT(x) failed"},
		{[]string{"panic: no", "", "goroutine 1 [running]:", "main.main()"}, "panic: no"},
		{[]string{"r15    0x1", "rip    0x7f", "rflags 0x246", "cs     0x33", "fs     0x0", "gs     0x0"}, ""},
		{[]string{"loading", "out of memory", " "}, "out of memory"},
		{nil, ""},
	} {
		if got := lastWords(c.log); got != c.want {
			t.Errorf("%q: %q, want %q", c.log, got, c.want)
		}
	}
}

func TestAlikeKeepsTheWorst(t *testing.T) {
	texts := []string{"busy: 0.3 of 2 cores", "other", "busy: 10.5 of 2 cores", "busy: 0.4 of 2 cores"}
	if got := alike(texts, "repeat"); !slices.Equal(got, []string{"busy: 10.5 of 2 cores (the most of 3 repeats)", "other"}) {
		t.Errorf("%q", got)
	}
	if got := alike(texts, ""); !slices.Equal(got, []string{"busy: 10.5 of 2 cores", "other"}) {
		t.Errorf("%q", got)
	}
}

// answersRun has two repeats of 8 requests; change alters the server's.
func answersRun(change func(*results.Record)) *results.Run {
	f := newFixture("runs/x", "native", "llama-server")
	for repeat := range 2 {
		for _, b := range []string{"native", "llama-server"} {
			s := cellSpec{task: "chat", mode: "stream", backend: b, concurrency: 1, repeat: repeat, requests: 8, maxTokens: 20}
			if b != reference {
				s.change = change
			}
			f.add(s)
		}
	}
	return f.run
}

// TestHitsThatOnlyTheMetricsTell: what a server says of its prefix cache beside
// its answers takes the verdict from what holds prefill, too.
func TestHitsThatOnlyTheMetricsTell(t *testing.T) {
	run := answersRun(nil)
	for i := range run.Events {
		if e := run.Events[i]; e.State == results.CellDone && strings.Contains(e.Cell, "llama-server") {
			run.Events[i].Warn(results.DoubtCacheHits, "320 prompt tokens: whatever the words are")
			break
		}
	}
	d, err := newDocument([]*results.Run{run})
	if err != nil {
		t.Fatal(err)
	}
	ref, s := d.runs[0].loads[0].seats[0], d.runs[0].loads[0].seats[1]
	for key, withheld := range map[string]bool{"ttft": true, "e2e": true, "tpot": false, "itl": false} {
		if c, ok := s.compared(ref, key); !ok || strings.Contains(c.Why, "prefix cache") != withheld {
			t.Errorf("%s: %+v", key, c)
		}
	}
	if !slices.ContainsFunc(s.remarks, func(t string) bool { return strings.Contains(t, "320 prompt tokens") }) {
		t.Errorf("remarks %q", s.remarks)
	}
}

// TestAnswersOfDifferentLength: a backend that answers half as much is not judged
// by how soon it was done, but by its time per token.
func TestAnswersOfDifferentLength(t *testing.T) {
	d, err := newDocument([]*results.Run{answersRun(func(r *results.Record) {
		r.Marks = r.Marks[:10]
		r.OutputTokens, r.Events, r.End = 10, 10, r.Marks[9].T
	})})
	if err != nil {
		t.Fatal(err)
	}
	ref, s := d.runs[0].loads[0].seats[0], d.runs[0].loads[0].seats[1]
	if !slices.ContainsFunc(s.remarks, func(t string) bool { return strings.Contains(t, "0.50× as many tokens") }) {
		t.Errorf("remarks %q", s.remarks)
	}
	if c, _ := s.compared(ref, "e2e"); c.Verdict != "withheld" || !strings.Contains(c.Why, "length") {
		t.Errorf("e2e: %+v", c)
	}
	if c, _ := s.compared(ref, "tpot"); c.Verdict != "differs" {
		t.Errorf("tpot: %+v", c)
	}
}

func TestEveryQuestionMarkHasItsReason(t *testing.T) {
	mark := regexp.MustCompile(`× +\?`)
	reason := regexp.MustCompile(`× +\? +(\[[0-9.]+–[0-9.]+\] )?\[[0-9]+\]`)
	for name, runs := range fixtures() {
		out := string(write(t, func(b *bytes.Buffer) error { return Terminal(b, runs, Options{}) }))
		body, _, _ := strings.Cut(out, "How to read this")
		for line := range strings.Lines(body) {
			if len(mark.FindAllString(line, -1)) != len(reason.FindAllString(line, -1)) {
				t.Errorf("%s: no reason in %q", name, line)
			}
		}
		if (name == "full" || name == "one") && !reason.MatchString(body) {
			t.Errorf("%s: no reason at all", name)
		}
	}
}

// Ratios are explained where there are any.
func TestLegendOfRatios(t *testing.T) {
	for _, backends := range [][]string{{"llama-server"}, {"native", "llama-server"}} {
		f := newFixture("runs/x", backends...)
		for _, b := range backends {
			f.add(cellSpec{task: "chat", mode: "stream", backend: b, concurrency: 1, requests: 6, maxTokens: 20})
		}
		out := string(write(t, func(b *bytes.Buffer) error { return Terminal(b, []*results.Run{f.run}, Options{}) }))
		if got, want := strings.Contains(out, "1.02× [a–b]"), len(backends) > 1; got != want || strings.Contains(out, "The ratio is of") != want {
			t.Errorf("%v: explained: %t", backends, got)
		}
	}
}

// A pause before a run was resumed, after a restart of the machine even, is not its
// time.
func TestCellsTook(t *testing.T) {
	const second = int64(time.Second)
	v := &runView{Run: &results.Run{}}
	if text := v.when(); strings.Contains(text, "took") {
		t.Errorf("nothing ran: %q", text)
	}
	for _, e := range []struct {
		cell    string
		attempt int
		state   results.CellState
		at      int64
	}{
		{"a", 1, results.CellStarted, 9000},
		{"a", 1, results.CellDone, 9010},
		{"b", 1, results.CellStarted, 9011}, // cut off
		{"b", 2, results.CellStarted, 100},
		{"b", 2, results.CellFailed, 105},
	} {
		v.Events = append(v.Events, results.CellEvent{Cell: e.cell, Attempt: e.attempt, State: e.state, T: e.at * second})
	}
	if text := v.when(); !strings.HasSuffix(text, ", cells took 15s") {
		t.Errorf("%q", text)
	}
}

// Of a cell that broke off, what is said to count is what the numbers are of.
func TestTroubleCountsWhatCounts(t *testing.T) {
	record := func(class bench.Class, retries int, warnings ...bench.Warning) *results.Record {
		return &results.Record{Class: class, Retries: retries, Trace: bench.Trace{Warnings: warnings}}
	}
	c := results.CellResult{State: results.CellCutOff, Cell: results.Cell{Requests: 9}, Records: []*results.Record{
		record(bench.OK, 0), record(bench.OK, 0, bench.WarnHeldBack), record(bench.OK, 1), record(bench.OK, 0, bench.WarnCut), record(bench.Reset, 0), record(bench.Cancelled, 0),
	}}
	if text := troubleText(c); !strings.HasSuffix(text, "; 2 of 9 requests were answered and count") {
		t.Errorf("%q", text)
	}
}

func TestCutOffRequestsAreNotFailed(t *testing.T) {
	run := answersRun(func(r *results.Record) {
		if r.Index == 7 {
			r.Class, r.Error = bench.Cancelled, "stopped with the run"
		}
	})
	out := string(write(t, func(b *bytes.Buffer) error { return Terminal(b, []*results.Run{run}, Options{}) }))
	if !strings.Contains(out, "14 ok, 2 cut off") || strings.Contains(out, "failed:") {
		t.Errorf("not said:\n%s", out)
	}
	if !strings.Contains(out, "ratios are over what both sides have: 14 of 16 requests") {
		t.Errorf("the pairing is not said:\n%s", out)
	}
}

// What was sent again is said, and is in no number nor ratio.
func TestRetriedRequestsAreSaid(t *testing.T) {
	run := answersRun(func(r *results.Record) {
		if r.Index == 7 {
			r.Retries, r.Earlier = 2, []bench.Class{bench.Busy, bench.Reset}
		}
	})
	out := string(write(t, func(b *bytes.Buffer) error { return Terminal(b, []*results.Run{run}, Options{}) }))
	for _, want := range []string{"16 ok (2 retried)", "2 of 16 requests succeeded only after a retry", "14 of 16 requests"} {
		if !strings.Contains(strings.Join(strings.Fields(out), " "), want) {
			t.Errorf("%q is not said:\n%s", want, out)
		}
	}
	if js := string(write(t, func(b *bytes.Buffer) error { return JSON(b, []*results.Run{run}, Options{}) })); !strings.Contains(js, `"retried": 2`) {
		t.Error("JSON does not say it")
	}
	if rows := string(write(t, func(b *bytes.Buffer) error { return CSV(b, []*results.Run{run}, Options{}) })); !strings.Contains(rows, ",16,2,0,0,0,2,2,") {
		t.Error("CSV does not say it")
	}
}

// TestMachineFormatsQualify: what a reader needs to judge a number is in its row,
// and JSON compares runs as the terminal does.
func TestMachineFormatsQualify(t *testing.T) {
	runs := fixtures()["full"]
	rows, err := csv.NewReader(bytes.NewReader(write(t, func(b *bytes.Buffer) error { return CSV(b, runs, Options{}) }))).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	at := func(row []string, name string) string { return row[slices.Index(rows[0], name)] }
	found := false
	for _, row := range rows[1:] {
		if at(row, "load") == "gpt2/qa/stream/c1" && at(row, "backend") == "llama-server" && at(row, "metric") == "e2e" {
			found = true
			got := []string{at(row, "ok"), at(row, "failed"), at(row, "repeats_done"), at(row, "repeats_planned"), at(row, "paired"), at(row, "paired_of")}
			if !slices.Equal(got, []string{"41", "0", "1", "3", "41", "108"}) || !strings.Contains(at(row, "notes"), "killed by signal 6") {
				t.Errorf("%q, notes %q", got, at(row, "notes"))
			}
		}
	}
	if !found {
		t.Error("no row of the cell that crashed")
	}
	var report jsonReport
	if err := json.Unmarshal(write(t, func(b *bytes.Buffer) error { return JSON(b, pairFixture(), Options{}) }), &report); err != nil {
		t.Fatal(err)
	}
	if len(report.Across) != 2 { // code asks something else
		t.Fatalf("%d comparisons across runs, want one per backend", len(report.Across))
	}
	for _, a := range report.Across {
		if r := a.Versus["e2e"].Ratio; a.Run != "B" || a.Reference != "A" || r == nil || *r > 0.95 || *r < 0.85 {
			t.Errorf("%+v", a)
		}
	}
}
