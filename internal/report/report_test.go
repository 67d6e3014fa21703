package report

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/jedib0t/go-pretty/v6/text"
	"pgregory.net/rapid"

	"github.com/nativebench/nativebench/internal/bench"
	"github.com/nativebench/nativebench/internal/measure"
	"github.com/nativebench/nativebench/internal/results"
)

// tooWide returns the first line that is wider than width columns.
func tooWide(out string, width int) string {
	for line := range strings.Lines(out) {
		if line = strings.TrimSuffix(line, "\n"); text.StringWidthWithoutEscSequences(line) > width {
			return fmt.Sprintf("%d columns: %s", text.StringWidthWithoutEscSequences(line), line)
		}
	}
	return ""
}

// koreanFixture has wide runes and long names everywhere that people choose.
func koreanFixture() *results.Run {
	f := newFixture("runs/첫번째-실험-결과-디렉터리/이름이-아주-길어서-한-줄에-다-들어가지-않는-실험", "native", "아주-긴-이름의-서버-백엔드")
	f.run.Manifest.Environment.CPU = "가상의 아주 빠른 프로세서 " + strings.Repeat("코어", 60)
	for _, b := range []string{"native", "아주-긴-이름의-서버-백엔드"} {
		f.add(cellSpec{task: "자유-대화-과제", mode: "stream", backend: b, concurrency: 4, requests: 8, maxTokens: 20, change: func(r *results.Record) {
			if r.Index == 1 {
				r.Class, r.Error = bench.Reset, strings.Repeat("연결이끊어졌습니다", 30)
			}
		}})
	}
	return f.run
}

func TestNoLineIsTooWide(t *testing.T) {
	all := fixtures()
	all["korean"] = []*results.Run{koreanFixture()}
	all["six"] = []*results.Run{fullFixture(), koreanFixture(), pairFixture()[0], pairFixture()[1], fourFixture(), fullFixture()}
	for name, runs := range all {
		for _, color := range []Color{ColorNever, ColorAlways} {
			out := string(write(t, func(b *bytes.Buffer) error { return Terminal(b, runs, Options{Color: color}) }))
			if line := tooWide(out, 100); line != "" {
				t.Errorf("%s: %s", name, line)
			}
		}
		out := string(write(t, func(b *bytes.Buffer) error { return Terminal(b, runs, Options{Width: 200}) }))
		if line := tooWide(out, 100); line != "" {
			t.Errorf("%s, asked for 200: %s", name, line)
		}
	}
	for _, width := range []int{72, 80} {
		out := string(write(t, func(b *bytes.Buffer) error { return Terminal(b, all["full"], Options{Width: width}) }))
		if line := tooWide(out, width); line != "" {
			t.Errorf("asked for %d: %s", width, line)
		}
	}
}

func TestColor(t *testing.T) {
	runs := fixtures()["full"]
	plain := write(t, func(b *bytes.Buffer) error { return Terminal(b, runs, Options{}) })
	if bytes.ContainsRune(plain, '\x1b') {
		t.Error("escape sequences in what is no terminal")
	}
	colored := write(t, func(b *bytes.Buffer) error { return Terminal(b, runs, Options{Color: ColorAlways}) })
	if !bytes.ContainsRune(colored, '\x1b') {
		t.Error("no colour where it was asked for")
	}
	if got := regexp.MustCompile(`\x1b\[[0-9;]*m`).ReplaceAll(colored, nil); trimmed(got) != trimmed(plain) {
		t.Error("colour changes more than colours")
	}
}

// trimmed is a text without the spaces at the ends of its lines.
func trimmed(b []byte) string { return regexp.MustCompile(` +\n`).ReplaceAllString(string(b), "\n") }

// TestNumbersByHand prints a run so small that every number can be worked out:
// three requests of 4 tokens, first tokens at 10, 20 and 30 ms and then one
// every 10 ms; on the other side everything takes twice as long.
func TestNumbersByHand(t *testing.T) {
	f := newFixture("runs/tiny", "native", "llama-server")
	for _, b := range []string{"native", "llama-server"} {
		times := int64(1)
		if b != "native" {
			times = 2
		}
		at := int64(1000)
		f.add(cellSpec{task: "chat", mode: "stream", backend: b, concurrency: 1, requests: 3, maxTokens: 4, change: func(r *results.Record) {
			first := times * int64(10*(r.Index+1))
			r.Start, r.FirstByte, r.FirstLine = at*ms, 0, 0
			for k := range r.Marks {
				r.Marks[k].T = (at + first + times*10*int64(k)) * ms
			}
			at += first + times*30
			r.End = at * ms
			r.Phases = bench.Phases{}
		}})
	}
	for i := range f.run.Events { // the window is then that of the requests
		f.run.Events[i].WindowNS = [2]int64{}
	}
	out := string(write(t, func(b *bytes.Buffer) error { return Terminal(b, []*results.Run{f.run}, Options{}) }))
	for _, want := range []string{
		"total latency      ms ↓ 50.0 ±? 100.0 ±? 2.00× ?",       // 40, 50, 60
		"first token (P2FT) ms ↓ 20.00 ±? 40.00 ±? 2.00× ?",      // 10, 20, 30
		"per token after it ms ↓ 10.00 ±? 20.00 ±? 2.00× ?",      // 30 / 3
		"between tokens     ms ↓ 10.00    20.00    2.00× ?",      // nine gaps
		"generation speed   tok/s ↑ 80.00 ±?  40.00 ±?  0.50× ?", // 4 / 50 ms
		"decode speed       tok/s ↑ 100.0 ±? 50.0 ±?  0.50× ?",   // 3 / 30 ms
		"requests           req/s ↑ 20.00    10.00    0.50× ?",   // 3 / 150 ms
		"tokens per answer  tokens  4        4",
	} {
		if !containsRow(out, want) {
			t.Errorf("no row %q in\n%s", want, out)
		}
	}
}

// containsRow looks for a line with the same words, whatever stands between.
func containsRow(out, want string) bool {
	marks := regexp.MustCompile(`\[[0-9]+\]`) // of notes
	for line := range strings.Lines(out) {
		if strings.Join(strings.Fields(marks.ReplaceAllString(strings.ReplaceAll(line, "│", " "), "")), " ") == strings.Join(strings.Fields(want), " ") {
			return true
		}
	}
	return false
}

func TestWarmupIsLeftOut(t *testing.T) {
	run := fullFixture()
	warm := 0
	for _, r := range run.Records {
		if r.Warmup {
			warm++
		}
	}
	d, err := newDocument([]*results.Run{run})
	if err != nil || warm == 0 {
		t.Fatal(err, warm)
	}
	for _, l := range d.runs[0].loads {
		for _, s := range l.seats {
			if e := s.summary.Get("e2e"); e.Known() && e.Max > 5 {
				t.Errorf("%s, %s: a request took %v s: that was the warm-up", l.Load, s.backend, e.Max)
			}
		}
	}
}

func TestSharesAddUp(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		parts := rapid.SliceOfN(rapid.Float64Range(0, 1e6), 1, 10).Draw(t, "parts")
		sum := 0
		for _, s := range shares(parts) {
			if s == "—" {
				return
			}
			tenths, err := strconv.Atoi(strings.Replace(strings.TrimSuffix(s, "%"), ".", "", 1))
			if err != nil {
				t.Fatal(err)
			}
			sum += tenths
		}
		if sum != 1000 {
			t.Fatalf("%v: %d tenths of a percent", shares(parts), sum)
		}
	})
}

func TestNumbers(t *testing.T) {
	for _, c := range []struct {
		unit   string
		values []float64
		want   string
	}{
		{"s", []float64{0.4123, 0.4208}, "412.3 420.8 ms"},
		{"s", []float64{0.01231, 0.1402}, "12.3 140.2 ms"},
		{"s", []float64{0.0000451}, "45.10 µs"},
		{"s", []float64{2.5, 12.25}, "2.50 12.25 s"},
		{"s", []float64{math.NaN(), 0.5}, "— 500.0 ms"},
		{"s", []float64{0}, "0 ms"},
		{"s", []float64{0.0005, 0.623}, "0.500 623.000 ms"},
		{"s", []float64{0.02, 15}, "0.020 15.000 s"},
		{"s", []float64{0.002, 15}, "2.00 15000.00 ms"}, // 0.002 s has one digit
		{"s", []float64{0.000005, 0.623}, "5.00 623000.00 µs"},
		{"B", []float64{3 << 30}, "3.000 GiB"},
		{"B", []float64{300 << 20, 3 << 30}, "300 3072 MiB"},
		{"tok/s", []float64{1234.5}, "1234 tok/s"},
	} {
		sc := scaleFor(c.unit, c.values)
		scaled := make([]float64, len(c.values))
		for i, v := range c.values {
			scaled[i] = v * sc.factor
		}
		var got []string
		for _, v := range scaled {
			got = append(got, fixed(v, decimals(scaled)))
		}
		if s := strings.Join(append(got, sc.unit), " "); s != c.want {
			t.Errorf("%v %s: %q, want %q", c.values, c.unit, s, c.want)
		}
	}
	for _, c := range []struct {
		r, lo, hi float64
		want      string
	}{
		{1.023, 0.98, 1.07, "1.02× [0.98–1.07]"},
		{1.0234, 1.021, 1.026, "1.023× [1.021–1.026]"},
		{12.34, math.NaN(), math.NaN(), "12.3× "},
		{0.0123, math.NaN(), math.NaN(), "0.012× "},
		{345.6, 300, 400, "346× [300–400]"},
		{math.NaN(), 1, 2, "— "},
	} {
		if ratio, interval := ratioText(c.r, c.lo, c.hi); ratio+" "+interval != c.want {
			t.Errorf("%v: %q, want %q", c.r, ratio+" "+interval, c.want)
		}
	}
}

func TestFormats(t *testing.T) {
	for _, name := range []string{"terminal", "markdown", "md", "csv", "json"} {
		if _, err := ByName(name); err != nil {
			t.Error(err)
		}
	}
	if _, err := ByName("html"); err == nil || err.Error() != `unknown format "html": choose from terminal, markdown, csv, json` {
		t.Errorf("error of an unknown format: %v", err)
	}
	for _, f := range Formats() {
		if err := f.Write(&bytes.Buffer{}, nil, Options{}); err == nil {
			t.Errorf("%s: no error for no run", f.Name)
		}
	}
}

func TestCSVAndJSONAgree(t *testing.T) {
	runs := fixtures()["full"]
	rows, err := csv.NewReader(bytes.NewReader(write(t, func(b *bytes.Buffer) error { return CSV(b, runs, Options{}) }))).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	var report jsonReport
	if err := json.Unmarshal(write(t, func(b *bytes.Buffer) error { return JSON(b, runs, Options{}) }), &report); err != nil {
		t.Fatal(err)
	}
	column := map[string]int{}
	for i, name := range rows[0] {
		column[name] = i
	}
	seats := 0
	for _, l := range report.Runs[0].Loads {
		for range l.Backends {
			seats++
		}
	}
	if want := seats * len(measure.Columns()); len(rows)-1 != want {
		t.Errorf("%d rows of CSV, want %d", len(rows)-1, want)
	}
	for _, row := range rows[1:] {
		for _, l := range report.Runs[0].Loads {
			for _, s := range l.Backends {
				if l.Load != row[column["load"]] || s.Backend != row[column["backend"]] {
					continue
				}
				e := s.Metrics[row[column["metric"]]]
				same := func(name string, v *float64) {
					text := ""
					if v != nil {
						text = strconv.FormatFloat(*v, 'g', -1, 64)
					}
					if row[column[name]] != text {
						t.Errorf("%s %s %s: %s is %q in CSV and %q in JSON", l.Load, s.Backend, row[column["metric"]], name, row[column[name]], text)
					}
				}
				same("median", e.Median)
				same("p99", e.P99)
				same("ratio", s.Versus[row[column["metric"]]].Ratio)
				if row[column["median"]] == "" && row[column["count"]] == "" && e.Missing == "" {
					t.Errorf("%s %s %s has no value and no reason", l.Load, s.Backend, row[column["metric"]])
				}
			}
		}
	}
	if len(report.Runs[0].Scaling) != 6 {
		t.Errorf("%d fitted lines, want 3 metrics of 2 backends", len(report.Runs[0].Scaling))
	}
}

// TestDamagedRuns: of a run any line may be lost; every format still says what
// is there.
func TestDamagedRuns(t *testing.T) {
	whole := fullFixture()
	for _, keep := range []int{0, 3, 20, 60, 98} { // percent
		run := *whole
		rng := rand.New(rand.NewPCG(uint64(keep), 9))
		kept := func() bool { return rng.IntN(100) < keep }
		run.Events, run.Records = nil, nil
		for _, e := range whole.Events {
			if kept() {
				run.Events = append(run.Events, e)
			}
		}
		for _, r := range whole.Records {
			if kept() {
				run.Records = append(run.Records, r)
			}
		}
		switch keep {
		case 0:
			run.Manifest.Cells = nil
		case 3, 60:
			run.Manifest.Backends, run.Manifest.Models = nil, nil
		}
		for _, f := range Formats() {
			out := string(write(t, func(b *bytes.Buffer) error { return f.Write(b, []*results.Run{&run}, Options{}) }))
			if line := tooWide(out, 100); f.Name == "terminal" && line != "" {
				t.Errorf("%d %% kept: %s", keep, line)
			}
		}
	}
}

func TestSyntheticWeightsAreNamed(t *testing.T) {
	run := fullFixture()
	for _, f := range Formats() {
		out := string(write(t, func(b *bytes.Buffer) error { return f.Write(b, []*results.Run{run}, Options{}) }))
		if f.Name == "terminal" && strings.Count(out, "synthetic weights") < 5 || !strings.Contains(out, "synthetic") {
			t.Errorf("%s does not say that weights were synthetic", f.Name)
		}
	}
	for i := range run.Manifest.Backends {
		run.Manifest.Backends[i].Synthetic = false
	}
	run.Manifest.Models[0].Synthetic = false
	if out := write(t, func(b *bytes.Buffer) error { return Terminal(b, []*results.Run{run}, Options{}) }); bytes.Contains(out, []byte("synthetic")) {
		t.Error("real weights are called synthetic")
	}
}

// What was found of the models stands in the head of a report; a mismatch also
// at every table and row.
func TestSameModelIsSaid(t *testing.T) {
	for _, c := range []struct {
		found results.SameModel
		want  string
		notes bool
	}{
		{results.SameModel{OK: true, Verdict: "identical", Prompts: 4, PromptsBy: "ids", AnswersEqual: 4}, "llama-server = native (gpt2): identical, 4 prompts, the same prompt tokens, 4 of 4 greedy answers equal", false},
		{results.SameModel{OK: true, Verdict: "numerically close", Prompts: 4, PromptsBy: "counts", AnswersEqual: 3, Why: "a tie"}, "the same number of prompt tokens, 3 of 4 greedy answers equal; a tie", false},
		{results.SameModel{Verdict: "different", Cause: "weights", Why: "other weights"}, "llama-server does NOT run the same model as native (gpt2), so that their numbers must not be compared: other weights", true},
		{results.SameModel{Verdict: "not verified", Why: "it crashed"}, "whether llama-server runs the same model as native (gpt2) could not be verified: it crashed", true},
	} {
		c.found.Model, c.found.Reference, c.found.Backend = "gpt2", "native", "llama-server"
		run := answersRun(func(*results.Record) {})
		run.Manifest.SameModel = []results.SameModel{c.found}
		for _, f := range Formats() {
			out := string(write(t, func(b *bytes.Buffer) error { return f.Write(b, []*results.Run{run}, Options{}) }))
			said := strings.Contains(strings.Join(strings.Fields(out), " "), c.want)
			if inRows := f.Name == "csv" || f.Name == "json"; said != (c.notes || !inRows) {
				t.Errorf("%s: %q is said: %v\n%s", f.Name, c.want, said, out)
			}
		}
	}
}

// TestRelativesAreNamed: no format shows numbers of a shortened relative as the
// model's, and what stands in for a vocabulary is told.
func TestRelativesAreNamed(t *testing.T) {
	run := fullFixture()
	m := &run.Manifest.Models[0]
	m.Relative, m.Tokenizer = "2 of 32 layers", "another's vocabulary"
	for _, f := range Formats() {
		out := string(write(t, func(b *bytes.Buffer) error { return f.Write(b, []*results.Run{run}, Options{}) }))
		if !strings.Contains(out, "2 of 32 layers") || f.Name == "terminal" && (strings.Count(out, "relative: 2 of 32 layers") < 3 || strings.Contains(out, "real shape") || !strings.Contains(out, "vocabulary: another's vocabulary")) {
			t.Errorf("%s does not say that a relative was measured:\n%.3000s", f.Name, out)
		}
	}
}

func TestPromptsThatDiffer(t *testing.T) {
	f := newFixture("runs/x", "native", "llama-server")
	for _, b := range []string{"native", "llama-server"} {
		f.add(cellSpec{task: "chat", mode: "sync", backend: b, concurrency: 1, requests: 4, maxTokens: 4, change: func(r *results.Record) {
			if b != "native" && r.Index == 2 {
				r.PromptTokens++
			}
		}})
	}
	out := write(t, func(b *bytes.Buffer) error { return Terminal(b, []*results.Run{f.run}, Options{}) })
	if plain := strings.Join(strings.Fields(string(out)), " "); !strings.Contains(plain, "prompt tokens differ from those of native in 1 of 4 requests, by +1 to +1 (median +1): not the same") {
		t.Errorf("not said:\n%s", out)
	}
}

// Without native, what servers count is held against our own tokenizer.
func TestPromptsThatDifferFromOurs(t *testing.T) {
	f := newFixture("runs/x", "vllm")
	f.add(cellSpec{task: "chat", mode: "sync", backend: "vllm", concurrency: 1, requests: 4, maxTokens: 4})
	own := map[string]int{}
	for _, c := range f.run.Cells() {
		for _, r := range c.Measured() {
			own[r.Prompt] = r.PromptTokens - 3*r.Index // by 0, 3, 6 and 9 tokens
		}
	}
	f.run.Manifest.PromptTokens = map[string]map[string]int{"gpt2": own}
	out := write(t, func(b *bytes.Buffer) error { return Terminal(b, []*results.Run{f.run}, Options{}) })
	if plain := strings.Join(strings.Fields(string(out)), " "); !strings.Contains(plain, "prompt tokens differ from those of our tokenizer in 3 of 4 requests, by +3 to +9 (median +6): not the same") {
		t.Errorf("not said:\n%s", out)
	}
}

const designPreface = `# The report

This file is the terminal report as it is meant to be, and as it is: it is written
from a fixture by "go test ./internal/report -update", and a test compares them. The
run is invented; its numbers say nothing about anything.

What it is made for:

- The first screen answers the question: what ran, and what does each backend cost
  over the reference, load by load.
- One table per task, backends side by side, a group of lines per mode and number of
  parallel requests. Rows are metrics: a reader compares backends, so these are close.
- A number never stands alone: its unit and direction are in its row, its interval
  behind it, its ratio to the reference beside it, what is wrong with it in a note.
- What was not measured is "—" with the reason. What failed is counted, with why.
- At most 100 columns; no colour when piped; nothing is said by colour alone.

`

// TestDocs keeps the written documents up to date.
func TestDocs(t *testing.T) {
	golden(t, "../../docs/metrics.md", write(t, func(b *bytes.Buffer) error { return MetricsDoc(b) }))
	golden(t, "../../docs/report.txt", write(t, func(b *bytes.Buffer) error {
		b.WriteString(designPreface)
		return Terminal(b, fixtures()["full"], Options{})
	}))
}

func TestExplain(t *testing.T) {
	for _, c := range measure.Columns() {
		out := string(write(t, func(b *bytes.Buffer) error { return Explain(b, []string{c.Key}, Options{}) }))
		flat := strings.Join(strings.Fields(out), " ")
		for _, want := range []string{c.Definition, c.Window} {
			if !strings.Contains(flat, strings.Join(strings.Fields(want), " ")) {
				t.Errorf("%s: no %q in\n%s", c.Key, want, out)
			}
		}
		if line := tooWide(out, 100); line != "" {
			t.Error(line)
		}
	}
	var b bytes.Buffer
	if err := Explain(&b, []string{"ttft", "nothing"}, Options{}); err == nil || b.Len() > 0 {
		t.Errorf("error %v, written %q", err, b.String())
	}
	if err := ExplainAll(&b, Options{}); err != nil || tooWide(b.String(), 100) != "" {
		t.Error(err, tooWide(b.String(), 100))
	}
}

// What is left out stands by its class beside what is ok and what failed.
func TestWhatIsLeftOutIsShown(t *testing.T) {
	run := oneFixture()
	out := string(write(t, func(b *bytes.Buffer) error { return Terminal(b, []*results.Run{run}, Options{}) }))
	for _, want := range []string{"6 ok, 1 no_finish, 1 failed", "(no_finish): left out of latencies, speeds, rates and comparisons"} {
		if !strings.Contains(strings.Join(strings.Fields(out), " "), want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
}

// A table that is a little too wide has its heads in two lines; one that is much
// too wide is cut into pieces of as many columns, none of them of one column alone.
func TestWideTables(t *testing.T) {
	for columns, want := range map[int][]int{6: {6}, 8: {8}, 11: {6, 5}} {
		g := grid{columns: []column{{}}}
		r := row{cells: []field{{main: "llama-server"}}}
		for i := range columns {
			g.columns = append(g.columns, column{head: fmt.Sprintf("wait head%d", i)})
			r.cells = append(r.cells, field{main: "1.5", aside: "ms"})
		}
		g.rows = []row{r}
		p := newPrinter(&bytes.Buffer{}, Options{})
		p.grid(g)
		var got []int
		for line := range strings.Lines(p.out.String()) {
			if strings.Contains(line, "llama-server") {
				got = append(got, strings.Count(line, "│"))
			}
		}
		if fmt.Sprint(got) != fmt.Sprint(want) || tooWide(p.out.String(), 100) != "" {
			t.Errorf("%d columns: in pieces of %v, want %v\n%s", columns, got, want, p.out.String())
		}
	}
}

// Two backends stay in one table: rather without intervals of the ratios.
func TestTwoBackendsStandSideBySide(t *testing.T) {
	out := string(write(t, func(b *bytes.Buffer) error { return Terminal(b, fixtures()["full"], Options{}) }))
	_, out, _ = strings.Cut(out, "── qa · gpt2")
	if head, _, _ := strings.Cut(out, "stream, 1 at a time"); !strings.Contains(head, "native") || !strings.Contains(head, "llama-server    vs native") {
		t.Errorf("the table begins with\n%s", head)
	}
}
