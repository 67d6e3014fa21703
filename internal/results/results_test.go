package results

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/nativebench/nativebench/internal/bench"
)

// tempDir is a directory in memory where there is one: a run flushes to the
// disk at every cell event, which is slow on a busy machine, and no test here
// depends on the disk.
func tempDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "results-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func create(t *testing.T, m *Manifest) *Writer {
	t.Helper()
	w, err := Create(filepath.Join(tempDir(t), "runs", "one"), m)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	return w
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, dir string) *Run {
	t.Helper()
	run, err := Read(dir)
	if err != nil {
		t.Fatal(err)
	}
	return run
}

func wantError(t *testing.T, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want one with %q", parts)
	}
	for _, p := range parts {
		if !strings.Contains(err.Error(), p) {
			t.Errorf("error %q does not say %q", err, p)
		}
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("error %q is not one line", err)
	}
}

func TestWhatIsWrittenIsRead(t *testing.T) {
	m := sampleManifest()
	m.NotRun = []NotRun{{Backend: "native", Model: "gpt2", Repeat: 0, Reason: "it has run since"}, {Backend: "native", Model: "gpt2", Repeat: 1, Reason: "no time: 2 s were left"}}
	w := create(t, m)
	id := m.Cells[0].ID
	events := []CellEvent{
		{Cell: id, Attempt: 1, State: CellStarted, T: 10},
		{
			Cell: id, Attempt: 1, State: CellDone, T: 20, LoadNS: 5, WindowNS: [2]int64{11, 19},
			Memory: []bench.MemoryPart{{Device: "CPU", Part: "weights", Bytes: 1 << 40}},
			Host:   &HostUse{Samples: 3, PeakRSS: 1 << 33, PeakPSS: -1, CPUSeconds: 1.25, OtherCores: 0.5, MeanMHz: -1},
			Doubts: []Doubt{DoubtBusy},
		},
	}
	records := []Record{*sampleRecord(id, 1, -1), *sampleRecord(id, 1, 0), *failedRecord(id, 1, 1)}
	must(t, w.Event(events[0]))
	for i := range records {
		must(t, w.Request(&records[i]))
	}
	sample := Sample{T: 15, Cell: id, Subject: "host", Values: map[string]float64{"cpu_mhz": 2500.5}}
	must(t, w.Sample(&sample))
	must(t, w.Event(events[1]))
	must(t, w.Close())

	run := read(t, w.Dir())
	if len(run.Damage) > 0 {
		t.Errorf("damage in a whole run: %q", run.Damage)
	}
	if d := cmp.Diff(events, run.Events); d != "" {
		t.Errorf("events (-written +read):\n%s", d)
	}
	if d := cmp.Diff(records, run.Records, cmpopts.EquateEmpty()); d != "" {
		t.Errorf("records (-written +read):\n%s", d)
	}
	m.Schema = Schema
	if d := cmp.Diff(m, &run.Manifest, cmpopts.IgnoreFields(Manifest{}, "Plan"), cmpopts.EquateEmpty()); d != "" {
		t.Errorf("manifest (-written +read):\n%s", d)
	}
	for s, err := range run.Telemetry() {
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(sample, s); d != "" {
			t.Errorf("sample (-written +read):\n%s", d)
		}
	}
	cells := run.Cells()
	if c := cells[0]; !c.Done() || len(c.Records) != 3 || len(c.Measured()) != 2 || c.Missing != 0 {
		t.Errorf("first cell: %s, %d records, %d measured, %d missing", c.State, len(c.Records), len(c.Measured()), c.Missing)
	}
	if c := cells[0]; c.NotRun != "" || c.Why() != "" {
		t.Errorf("a cell that was run: %q", c.Why())
	}
	if c := cells[3]; c.State != CellNotRun || c.Why() != "not run: no time: 2 s were left" {
		t.Errorf("cell %s: %s, %q", c.ID, c.State, c.Why())
	}
	for _, c := range cells[1:3] {
		if c.State != CellNotRun || c.Why() != "not run" {
			t.Errorf("cell %s: %s, %q", c.ID, c.State, c.Why())
		}
	}
}

func TestThePlanKeepsItsSeeds(t *testing.T) {
	type plan struct{ Seed uint64 }
	want := plan{Seed: 1<<63 + 1} // no float64 holds it
	m := sampleManifest()
	m.Plan = want
	w := create(t, m)
	must(t, w.Close())
	run := read(t, w.Dir())
	for range 2 { // the second time through a rewritten manifest
		var got plan
		must(t, run.Manifest.DecodePlan(&got))
		if got != want {
			t.Fatalf("plan %v, want %v", got, want)
		}
		w, again, err := Resume(w.Dir())
		must(t, err)
		must(t, w.SetManifest(&again.Manifest))
		must(t, w.Close())
		run = read(t, w.Dir())
	}
}

// anyRecord draws records of every shape, sensible or not.
func anyRecord(t *rapid.T) Record {
	i64 := rapid.Int64()
	r := Record{
		Cell:    rapid.StringN(1, 20, 60).Draw(t, "cell"),
		Attempt: rapid.IntRange(1, 1<<40).Draw(t, "attempt"),
		Index:   rapid.Int().Draw(t, "i"),
		Warmup:  rapid.Bool().Draw(t, "warmup"),
		Worker:  rapid.Int().Draw(t, "worker"),
		Prompt:  rapid.String().Draw(t, "prompt"),
		Seed:    rapid.Uint64().Draw(t, "seed"),
		Class:   rapid.SampledFrom([]bench.Class{bench.OK, bench.Timeout}).Draw(t, "class"),
		Error:   rapid.String().Draw(t, "error"),
		Text:    string(rapid.SliceOf(rapid.Byte()).Draw(t, "text")), // often not UTF-8
		Tokens:  rapid.SliceOf(rapid.Int32()).Draw(t, "tokens"),
	}
	r.Start, r.Sent, r.FirstByte = i64.Draw(t, "start"), i64.Draw(t, "sent"), i64.Draw(t, "first")
	r.FirstLine, r.End = i64.Draw(t, "line"), i64.Draw(t, "end")
	r.Marks = rapid.SliceOf(rapid.Custom(func(t *rapid.T) bench.Mark {
		return bench.Mark{T: i64.Draw(t, "t"), N: rapid.Int32().Draw(t, "n")}
	})).Draw(t, "marks")
	r.PromptTokens, r.OutputTokens = rapid.Int().Draw(t, "in"), rapid.Int().Draw(t, "out")
	r.Phases.Prefill, r.Server.Decode = i64.Draw(t, "prefill"), i64.Draw(t, "decode")
	r.MarksLost = rapid.Int().Draw(t, "lost")
	r.Retries = rapid.IntRange(0, 3).Draw(t, "retries")
	for range r.Retries {
		r.Earlier = append(r.Earlier, rapid.SampledFrom([]bench.Class{bench.Busy, bench.Reset}).Draw(t, "earlier"))
	}
	r.Warnings = rapid.SliceOf(rapid.SampledFrom([]bench.Warning{bench.WarnShort, bench.WarnCount})).Draw(t, "warnings")
	return r
}

func TestEveryRecordSurvivesItsLine(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := anyRecord(t)
		line, err := encodeLine(&want)
		if err != nil {
			t.Fatal(err)
		}
		if n := strings.Count(string(line), "\n"); n != 1 || line[len(line)-1] != '\n' {
			t.Fatalf("not one line: %q", line)
		}
		got, err := decodeRecord(line[:len(line)-1])
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, got, cmpopts.EquateEmpty()); d != "" {
			t.Fatalf("(-written +read):\n%s\n%s", d, line)
		}
	})
}

func TestValuesThatAreNoNumbersDoNotLoseTheRest(t *testing.T) {
	nan := func() float64 { z := 0.0; return z / z }()
	w := create(t, sampleManifest())
	id := sampleManifest().Cells[0].ID
	must(t, w.Sample(&Sample{T: 1, Subject: "host", Values: map[string]float64{"bad": nan, "good": 2}}))
	must(t, w.Event(CellEvent{Cell: id, Attempt: 1, State: CellStarted}))
	must(t, w.Event(CellEvent{Cell: id, Attempt: 1, State: CellDone, Host: &HostUse{OtherCores: nan, MeanMHz: 3}}))
	must(t, w.Close())
	run := read(t, w.Dir())
	for s, err := range run.Telemetry() {
		if err != nil || len(s.Values) != 1 || s.Values["good"] != 2 {
			t.Errorf("sample %v, %v", s, err)
		}
	}
	if h := run.Events[1].Host; h.OtherCores != -1 || h.MeanMHz != 3 {
		t.Errorf("host use %+v", h)
	}
}

func TestFillCopies(t *testing.T) {
	tr := sampleTrace()
	var r Record
	r.Fill(tr, nil)
	before := r
	before.Marks, before.Tokens = append([]bench.Mark(nil), r.Marks...), append([]int32(nil), r.Tokens...)
	for i := range tr.Marks {
		tr.Marks[i] = bench.Mark{}
	}
	for i := range tr.Text {
		tr.Text[i] = 'x'
	}
	tr.Tokens[0] = -1
	tr.Reset()
	if d := cmp.Diff(before, r); d != "" {
		t.Errorf("the record changed with the trace:\n%s", d)
	}
	if full := r.FullTrace(); string(full.Text) != r.Text || len(full.Tokens) != len(r.Tokens) {
		t.Errorf("full trace: %q %v", full.Text, full.Tokens)
	}
	r.Fill(tr, errors.New("plain"))
	if r.Class != bench.Internal || r.Error != "plain" || r.OK() {
		t.Errorf("class %q, error %q", r.Class, r.Error)
	}
}

func TestTheManifestHoldsNoSecret(t *testing.T) {
	m := sampleManifest()
	m.Command = append(m.Command, "--api-key", "sesame", "HF_TOKEN=sesame")
	m.Backends[0].Command = append(m.Backends[0].Command, "--api-key=sesame")
	m.Backends[0].Endpoint = "http://me:sesame@host:1/v1"
	w := create(t, m)
	must(t, w.SetManifest(m))
	b, err := os.ReadFile(filepath.Join(w.Dir(), manifestFile))
	must(t, err)
	if strings.Contains(string(b), "sesame") {
		t.Errorf("a secret is in the manifest:\n%s", b)
	}
	if m.Backends[0].Endpoint != "http://me:sesame@host:1/v1" {
		t.Error("the caller's manifest was changed")
	}
}

func TestScrubArgs(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{"compare --model gpt2 --max-tokens 100 --prompt-tokens 32,64", "compare --model gpt2 --max-tokens 100 --prompt-tokens 32,64"},
		{"--token abc --seed 1", "--token [removed] --seed 1"},
		{"--token=abc", "--token=[removed]"},
		{"--hf-token abc", "--hf-token [removed]"},
		{"--api-key abc", "--api-key [removed]"},
		{"--api_key=abc", "--api_key=[removed]"},
		{"--token-file path --tokenizer x --key-file y", "--token-file path --tokenizer x --key-file y"},
		{"--header|Authorization: Bearer abc", "--header|Authorization: [removed]"},
		{"--header=X-Api-Key: abc", "--header=X-Api-Key: [removed]"},
		{"-H|X-Other: abc", "-H|X-Other: [removed]"},
		{"-HAuthorization: abc", "-HAuthorization: [removed]"},
		{"--password p", "--password [removed]"},
		{"HF_TOKEN=abc serve", "HF_TOKEN=[removed] serve"},
		{"env|OPENAI_API_KEY=abc|MAX_TOKENS=5", "env|OPENAI_API_KEY=[removed]|MAX_TOKENS=5"},
		{"--endpoint http://u:p@h:80/v1?x=1", "--endpoint http://[removed]@h:80/v1?x=1"},
		{"--endpoint=https://u@h", "--endpoint=https://[removed]@h"},
		{"https://h/m.gguf?X-Amz-Signature=abc&n=1&token=t#f", "https://h/m.gguf?X-Amz-Signature=[removed]&n=1&token=[removed]"},
		{"--note hf_abcdefghijklmnopqrst", "--note [removed]"},
		{"run|curl -H 'Authorization: Bearer abc.def' x", "run|curl -H 'Authorization: [removed]' x"},
	} {
		t.Run(tt.in, func(t *testing.T) {
			split := func(s string) []string {
				if strings.Contains(s, "|") {
					return strings.Split(s, "|")
				}
				if strings.HasPrefix(s, "--header=") || strings.HasPrefix(s, "-HA") {
					return []string{s}
				}
				return strings.Fields(s)
			}
			got := ScrubArgs(split(tt.in))
			if d := cmp.Diff(split(tt.want), got); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
			if d := cmp.Diff(got, ScrubArgs(got)); d != "" {
				t.Errorf("scrubbing twice changes more:\n%s", d)
			}
		})
	}
}

func TestMarksArePairsRelativeToTheStart(t *testing.T) {
	b, err := json.Marshal(sampleRecord("c", 1, 0))
	must(t, err)
	if want := `"marks":[[12000000,1],[18500000,2],[25100000,3],[31400000,4]]`; !strings.Contains(string(b), want) {
		t.Errorf("%s\ndoes not hold %s", b, want)
	}
	for _, bad := range []string{`[[1]]`, `[[1,2,3]]`, `[[1,3000000000]]`, `[1,2]`, `[[1,"2"]]`} {
		var r Record
		if err := json.Unmarshal([]byte(`{"cell":"c","attempt":1,"marks":`+bad+`}`), &r); err == nil {
			t.Errorf("marks %s were taken", bad)
		}
	}
}
