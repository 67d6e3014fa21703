package report

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/nativebench/nativebench/internal/bench"
	"github.com/nativebench/nativebench/internal/results"
	"github.com/nativebench/nativebench/internal/stats"
)

// slowed makes every part of an answer that many times longer.
func slowed(by float64) func(*results.Record) {
	return func(r *results.Record) {
		at := func(t int64) int64 { return r.Start + int64(by*float64(t-r.Start)) }
		r.End = at(r.End)
		for i := range r.Marks {
			r.Marks[i].T = at(r.Marks[i].T)
		}
	}
}

// experiment is a run of three repeats: vllm twice as fast as llama-server, and
// transformers, which makes requests wait for each other.
func experiment() *fixture {
	f := newFixture("runs/gpt2-tasks", "native", "llama-server", "transformers", "vllm")
	for repeat := range 3 {
		for _, c := range []int{1, 8} {
			for _, b := range []string{"native", "llama-server", "transformers", "vllm"} {
				spec := cellSpec{task: "chat", mode: "stream", backend: b, concurrency: c, repeat: repeat, requests: 16, maxTokens: 30, expect: [2]int{20, 100}}
				switch b {
				case "transformers":
					// As long as c requests one after the other.
					p := paceOf(b, c)
					spec.change = slowed(3 * float64(c) * float64(paceOf(b, 1).decode) / float64(p.decode))
				case "vllm":
					spec.change = slowed(0.5)
				}
				f.add(spec)
			}
		}
	}
	return f
}

func claimOf(t *testing.T, d *document, of Whole, about, text string) claim {
	t.Helper()
	all := d.claims(of)
	i := slices.IndexFunc(all, func(c claim) bool { return c.about == about && strings.Contains(c.text, text) })
	if i < 0 {
		t.Fatalf("no claim about %s with %q", about, text)
	}
	if all[i].why == "" {
		t.Errorf("%s %s: a verdict without a reason", about, all[i].text)
	}
	return all[i]
}

func TestClaims(t *testing.T) {
	f := experiment()
	d, err := newDocument([]*results.Run{f.run})
	if err != nil {
		t.Fatal(err)
	}
	of := Whole{Omitted: []Omission{{"tgi", "it is started in a container only"}}}
	for _, want := range []struct {
		about, text string
		verdict     ruling
		says        string // in the reason or the numbers
	}{
		{"transformers", "one request at a time", borneOut, "in all of 1; of our own server"},
		{"transformers", "limited in speed", borneOut, "behind in 2"},
		{"transformers", "no server that streams", notMeasured, "transformers-serve was not run"},
		{"transformers", "easy", notMeasured, "ready in 1.2 s"},
		{"tgi", "batches", notMeasured, "it is started in a container only"},
		{"tgi", "SSE", notMeasured, "it is started in a container only"},
		{"vllm", "token by token", borneOut, "at ×8"},
		{"vllm", "streams fast", borneOut, "ahead in 2"},
		{"vllm", "low latency", borneOut, "0.50× (gpt2/chat/stream"},
		{"vllm", "context", notMeasured, "context sweep"},
		{"vllm", "PagedAttention", notMeasured, "own account"},
	} {
		c := claimOf(t, d, of, want.about, want.text)
		if c.verdict != want.verdict {
			t.Errorf("%s %s: %s (%s; %q), want %s", want.about, want.text, c.verdict, c.why, c.numbers, want.verdict)
		}
		if all := c.why + strings.Join(c.numbers, "\n"); !strings.Contains(all, want.says) {
			t.Errorf("%s %s: no %q in %s", want.about, want.text, want.says, all)
		}
	}
}

// The opposite of a claim is seen, too; and one repeat decides nothing that
// needs a test.
func TestClaimsThatDoNotHold(t *testing.T) {
	f := newFixture("runs/x", "llama-server", "transformers", "vllm")
	for repeat := range 3 {
		for _, c := range []int{1, 8} {
			for _, b := range []string{"llama-server", "transformers", "vllm"} {
				spec := cellSpec{task: "chat", mode: "stream", backend: b, concurrency: c, repeat: repeat, requests: 16, maxTokens: 30}
				switch {
				case b == "vllm" && c == 8:
					spec.change = slowed(8) // slower, and no faster at once than alone
				case b == "vllm":
					spec.change = slowed(2)
				}
				f.add(spec)
			}
		}
	}
	for _, n := range []int{64, 256, 64, 256} {
		spec := cellSpec{task: "context", mode: "stream", backend: "vllm", concurrency: 1, requests: 6, maxTokens: 30, prompt: n}
		if n == 256 {
			spec.change = slowed(3)
		}
		spec.repeat = len(f.run.Manifest.Cells) % 4 / 2
		f.add(spec)
	}
	d, err := newDocument([]*results.Run{f.run})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []struct{ about, text, says string }{
		{"transformers", "one request at a time", "in none of 1"},
		{"vllm", "token by token", "in none of 1"},
		{"vllm", "streams fast", "in none of"},
		{"vllm", "context", "a token behind 64 tokens"},
	} {
		if c := claimOf(t, d, Whole{}, want.about, want.text); c.verdict != notBorneOut || !strings.Contains(c.why+strings.Join(c.numbers, "\n"), want.says) {
			t.Errorf("%s %s: %s (%s; %q)", want.about, want.text, c.verdict, c.why, c.numbers)
		}
	}

	one := newFixture("runs/y", "llama-server", "vllm")
	for _, b := range []string{"llama-server", "vllm"} {
		spec := cellSpec{task: "chat", mode: "stream", backend: b, concurrency: 1, requests: 16, maxTokens: 30}
		if b == "vllm" {
			spec.change = slowed(0.1)
		}
		one.add(spec)
	}
	d, err = newDocument([]*results.Run{one.run})
	if err != nil {
		t.Fatal(err)
	}
	if c := claimOf(t, d, Whole{}, "vllm", "low latency"); c.verdict != notMeasured || !strings.Contains(c.why, "one repeat") || len(c.numbers) != 2 {
		t.Errorf("one repeat: %s (%s; %q)", c.verdict, c.why, c.numbers)
	}
}

// The server that comes with Transformers rules over ours.
func TestClaimOfOneAtATime(t *testing.T) {
	f := newFixture("runs/x", "transformers", "transformers-serve")
	for repeat := range 2 {
		for _, c := range []int{1, 8} {
			for _, b := range []string{"transformers", "transformers-serve"} {
				spec := cellSpec{task: "chat", mode: "sync", backend: b, concurrency: c, repeat: repeat, requests: 16, maxTokens: 30}
				if b == "transformers" && c == 8 {
					spec.change = slowed(8)
				}
				f.add(spec)
			}
		}
	}
	d, err := newDocument([]*results.Run{f.run})
	if err != nil {
		t.Fatal(err)
	}
	c := claimOf(t, d, Whole{}, "transformers", "one request at a time")
	if c.verdict != notBorneOut || c.why != "in none of 1" || len(c.numbers) != 2 || !strings.HasPrefix(c.numbers[0], "transformers-serve, ") {
		t.Errorf("%s (%s; %q)", c.verdict, c.why, c.numbers)
	}
}

// A KV cache in use is held against whole blocks for each request.
func TestClaimOfPages(t *testing.T) {
	for _, tc := range []struct {
		used float64
		gpus []results.GPU
		want ruling
	}{
		{513, nil, borneOut}, // four blocks of 128
		{900, nil, notBorneOut},
		{513, []results.GPU{{Device: "gpu0"}}, borneOut}, // 4 requests of some 100 tokens, in blocks of 16
		{900, []results.GPU{{Device: "gpu0"}}, notBorneOut},
	} {
		f := newFixture("runs/x", "vllm")
		f.run.Manifest.Environment.GPUs = tc.gpus
		f.add(cellSpec{task: "chat", mode: "stream", backend: "vllm", concurrency: 4, requests: 16, maxTokens: 30})
		for i := range f.run.Events {
			if e := &f.run.Events[i]; e.State == results.CellDone {
				e.Server = &results.ServerUse{KVCacheUsedMax: tc.used / 10000, KVPoolTokens: 10000, Preemptions: 2}
			}
		}
		d, err := newDocument([]*results.Run{f.run})
		if err != nil {
			t.Fatal(err)
		}
		if c := claimOf(t, d, Whole{}, "vllm", "PagedAttention"); c.verdict != tc.want || len(c.numbers) != 1 || !strings.Contains(c.numbers[0], "2 preemptions") {
			t.Errorf("%.0f tokens in use: %s (%s; %q)", tc.used, c.verdict, c.why, c.numbers)
		}
	}
}

// What a busy machine measured rules nothing, however large the difference.
func TestClaimsOnABusyMachine(t *testing.T) {
	f := newFixture("runs/x", "vllm")
	for repeat := range 2 {
		for _, c := range []int{1, 8} {
			spec := cellSpec{task: "chat", mode: "stream", backend: "vllm", concurrency: c, repeat: repeat, requests: 16, maxTokens: 30}
			if c == 8 {
				spec.busy = []string{"busy machine: other programs used 1.9 of its 2 cores meanwhile"}
			}
			f.add(spec)
		}
	}
	d, err := newDocument([]*results.Run{f.run})
	if err != nil {
		t.Fatal(err)
	}
	c := claimOf(t, d, Whole{}, "vllm", "token by token")
	if c.verdict != notMeasured || !strings.Contains(c.why, "busy with something else") || len(c.numbers) != 1 {
		t.Errorf("%s (%s; %q)", c.verdict, c.why, c.numbers)
	}
}

// A mixed outcome is not borne out, and says how often it held.
func TestClaimDecides(t *testing.T) {
	for _, tc := range []struct {
		holds, fails int
		want         ruling
		why          string
	}{
		{3, 0, borneOut, "in all of 3; x"}, {0, 2, notBorneOut, "in none of 2; x"}, {3, 1, notBorneOut, "it holds in 3 of 4; x"}, {0, 0, notMeasured, "x"},
	} {
		var c claim
		if c.decide(tc.holds, tc.fails, "x"); c.verdict != tc.want || c.why != tc.why {
			t.Errorf("%d hold, %d fail: %s, %q", tc.holds, tc.fails, c.verdict, c.why)
		}
	}
}

func TestRanking(t *testing.T) {
	f := experiment()
	f.run.Manifest.SameModel = []results.SameModel{{Model: "gpt2", Reference: "native", Backend: "vllm", Verdict: "different"}}
	d, err := newDocument([]*results.Run{f.run})
	if err != nil {
		t.Fatal(err)
	}
	l := d.runs[0].loads[0]
	for _, tc := range []struct {
		key   string
		among func(*seat) bool
		want  string
	}{
		{"e2e", anyBackend, "native llama-server transformers"}, // vllm ran another model
		{"req_per_s", isServer, "llama-server transformers"},
	} {
		r, ok := l.rank(tc.key, tc.among)
		var names []string
		for _, s := range r.seats {
			names = append(names, s.backend)
		}
		if got := strings.Join(names, " "); !ok || got != tc.want {
			t.Errorf("%s: %s, want %s", tc.key, got, tc.want)
		}
		for i, c := range r.against[1:] {
			if math.IsNaN(c.Ratio) || tc.key == "e2e" && c.Verdict != stats.Differs {
				t.Errorf("%s: %s against the first: %+v", tc.key, names[i+1], c)
			}
		}
	}
}

// A backend that failed many requests is not the fastest for the few it answered.
func TestFailuresAreNotRanked(t *testing.T) {
	f := newFixture("runs/x", "native", "vllm")
	for repeat := range 2 {
		f.add(cellSpec{task: "chat", mode: "sync", backend: "native", concurrency: 1, repeat: repeat, requests: 10, maxTokens: 30})
		f.add(cellSpec{task: "chat", mode: "sync", backend: "vllm", concurrency: 1, repeat: repeat, requests: 10, maxTokens: 30, change: func(r *results.Record) {
			slowed(0.1)(r)
			if r.Index < 3 {
				r.Class, r.Error = bench.Refused, "too many"
			}
		}})
	}
	d, err := newDocument([]*results.Run{f.run})
	if err != nil {
		t.Fatal(err)
	}
	if r, ok := d.runs[0].loads[0].rank("e2e", anyBackend); !ok || len(r.seats) != 1 || r.seats[0].backend != "native" {
		t.Errorf("%d are ranked", len(r.seats))
	}
	var md bytes.Buffer
	if err := WholeMarkdown(&md, []*results.Run{f.run}, Whole{}); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(md.String(), "vllm: 6 of 20 requests failed or are left out: not ranked") || strings.Contains(md.String(), "◀ |") {
		t.Errorf("in\n%s", md.String())
	}
}

// Nor is one whose answers were cut short for most of what was asked.
func TestCutAnswersAreNotRanked(t *testing.T) {
	f := newFixture("runs/x", "native", "vllm")
	for repeat := range 2 {
		f.add(cellSpec{task: "chat", mode: "sync", backend: "native", concurrency: 1, repeat: repeat, requests: 10, maxTokens: 30})
		f.add(cellSpec{task: "chat", mode: "sync", backend: "vllm", concurrency: 1, repeat: repeat, requests: 10, maxTokens: 30, change: func(r *results.Record) {
			slowed(0.1)(r)
			if r.Index < 3 {
				r.Warnings = append(r.Warnings, bench.WarnCut)
			}
		}})
	}
	d, err := newDocument([]*results.Run{f.run})
	if err != nil {
		t.Fatal(err)
	}
	l := d.runs[0].loads[0]
	if r, ok := l.rank("e2e", anyBackend); !ok || len(r.seats) != 1 || r.seats[0].backend != "native" {
		t.Errorf("%d are ranked", len(r.seats))
	}
	if why := l.of("vllm").unranked(); why != "vllm: 6 of 20 requests failed or are left out: not ranked" {
		t.Errorf("%q", why)
	}
}

// A window in which a request failed, or a prefix cache that should be off had
// hits, rules nothing, as it has no verdict against another backend.
func TestClaimsOfSpoiltWindows(t *testing.T) {
	for says, spoil := range map[string]func(*results.Record){
		"took part of the window": func(r *results.Record) { r.Class, r.Error = bench.Refused, "too many" },
		"from a prefix cache":     func(r *results.Record) { r.Warnings = append(r.Warnings, bench.WarnCacheHit) },
	} {
		f := newFixture("runs/x", "vllm")
		for repeat := range 2 {
			for _, c := range []int{1, 8} {
				f.add(cellSpec{task: "chat", mode: "stream", backend: "vllm", concurrency: c, repeat: repeat, requests: 16, maxTokens: 30, change: func(r *results.Record) {
					if r.Index == 15 && c == 8 {
						spoil(r)
					}
				}})
			}
		}
		d, err := newDocument([]*results.Run{f.run})
		if err != nil {
			t.Fatal(err)
		}
		if c := claimOf(t, d, Whole{}, "vllm", "token by token"); c.verdict != notMeasured || !strings.Contains(c.why, says) {
			t.Errorf("%s (%s; %q)", c.verdict, c.why, c.numbers)
		}
	}
}

// What was run is not said to be left out because a part of it was.
func TestClaimOfAPartLeftOut(t *testing.T) {
	f := newFixture("runs/x", "vllm")
	f.add(cellSpec{task: "chat", mode: "stream", backend: "vllm", concurrency: 1, requests: 16, maxTokens: 30})
	d, err := newDocument([]*results.Run{f.run})
	if err != nil {
		t.Fatal(err)
	}
	of := Whole{Omitted: []Omission{{"phi-2-tasks on vllm", "does not fit"}}}
	if c := claimOf(t, d, of, "vllm", "token by token"); c.verdict != notMeasured || strings.Contains(c.why, "not run") || !strings.Contains(c.why, "no load of vllm has what it takes") {
		t.Errorf("%s (%s)", c.verdict, c.why)
	}
}

// scripts/gpu-check.sh reads the JSON of a run with tools that every machine
// has: what it looks for is there, as it looks for it.
func TestGPUCheckFindsItsKeys(t *testing.T) {
	script, err := os.ReadFile(filepath.Join("..", "..", "scripts", "gpu-check.sh"))
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	run := gpuFixture()
	for i := range run.Events {
		for j := range run.Events[i].GPU {
			run.Events[i].GPU[j].Throttled = map[string]float64{"power cap": 0.35}
		}
	}
	if err := JSON(&out, []*results.Run{run}, Options{}); err != nil {
		t.Fatal(err)
	}
	keys := map[string]bool{}
	for _, pattern := range []string{`numbers (\w+) "\$report"`, `(?m)^from_run \S+ "[^"]*" (\w+)`} {
		for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(string(script), -1) {
			keys[m[1]] = true
		}
	}
	if len(keys) < 8 {
		t.Fatalf("the script names %v only", keys)
	}
	for key := range keys {
		if !regexp.MustCompile(`"` + key + `": -?[0-9]`).MatchString(out.String()) {
			t.Errorf("no number %q in the JSON of a run on a GPU", key)
		}
	}
	for _, text := range []string{`"throttled": {` + "\n", `"energy_source": "counter"`} {
		if !strings.Contains(out.String(), text) || !strings.Contains(string(script), strings.Fields(text)[0]) {
			t.Errorf("no %q in the JSON of a run on a GPU, or in the script", text)
		}
	}
	native := regexp.MustCompile(`"backend": "native"(?s:(.{0,400}))`).FindStringSubmatch(out.String())
	if native == nil || !strings.Contains(native[1], `"device": "`) {
		t.Errorf("the device of native does not follow its name: %q", native)
	}
}

func TestWholeReport(t *testing.T) {
	f := experiment()
	sweep := newFixture("runs/gpt2-context", "native", "vllm")
	for _, n := range []int{64, 128, 256} {
		for _, b := range []string{"native", "vllm"} {
			sweep.add(cellSpec{task: "context", mode: "stream", backend: b, concurrency: 1, requests: 6, maxTokens: 30, prompt: n})
		}
	}
	sweep.add(cellSpec{task: "context", mode: "stream", backend: "vllm", concurrency: 1, requests: 6, maxTokens: 30, prompt: 512, state: results.CellNotRun})
	runs := []*results.Run{f.run, sweep.run}
	f.run.Manifest.Command = []string{"nativebench", "compare", "--model", "gpt2", "--time-budget", "40.32s", "--out", "runs/gpt2-tasks"}
	of := Whole{Command: []string{"nativebench", "bench-all", "--time-budget=2h", "--models", "gpt2"}, Omitted: []Omission{{"tgi", "no container"}, {"phi-2", "no weights"}}}
	var md, term, js bytes.Buffer
	if err := WholeMarkdown(&md, runs, of); err != nil {
		t.Fatal(err)
	}
	if err := WholeTerminal(&term, runs, of, Options{}); err != nil {
		t.Fatal(err)
	}
	if err := WholeJSON(&js, runs, of); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{md.String(), term.String()} {
		for _, want := range []string{
			"tgi: no container", "phi-2: no weights", "1 cell never started", "synthetic weights", "vllm 2 of 2 (2)", "llama-server", "◀",
			"nativebench bench-all --models gpt2", "nativebench compare --model gpt2 --out runs/gpt2-tasks",
			"At what memory", "how it scales with requests at once", "context scaling", "per 1000 tokens", "128 tokens", "not measured", "borne out", "What to doubt",
		} {
			if !strings.Contains(text, want) {
				t.Errorf("no %q in:\n%s", want, text)
			}
		}
	}
	if all := md.String() + term.String() + js.String(); strings.Contains(all, "time-budget") {
		t.Error("a command has the time budget of the call that began")
	}
	for line := range strings.Lines(term.String()) {
		if n := len([]rune(strings.TrimRight(line, "\n"))); n > maxWidth {
			t.Errorf("%d columns: %s", n, line)
		}
	}
	var out struct {
		Answers []struct {
			Load, Metric, First string
			Medians             map[string]float64
		}
		Claims []struct {
			About, Claim, Verdict, Why string
			Numbers                    []string
		}
		Omitted []Omission
	}
	if err := json.Unmarshal(js.Bytes(), &out); err != nil {
		t.Fatal(err)
	}
	if len(out.Claims) < 10 || len(out.Omitted) != 2 {
		t.Errorf("%d claims, %d omitted", len(out.Claims), len(out.Omitted))
	}
	i := slices.IndexFunc(out.Answers, func(a struct {
		Load, Metric, First string
		Medians             map[string]float64
	},
	) bool {
		return a.Load == "gpt2/chat/stream/c8" && a.Metric == "e2e"
	})
	if i < 0 || out.Answers[i].First != "vllm" || len(out.Answers[i].Medians) != 4 {
		t.Errorf("answers %+v", out.Answers)
	}
}

// Every footnote of a table is referred to in it, also where loads have no row
// since nobody answered them.
func TestNotesAreReferredTo(t *testing.T) {
	refused := func(r *results.Record) { r.Class, r.Error = bench.Refused, "too many" }
	f := newFixture("runs/x", "native", "vllm")
	for repeat := range 2 {
		for _, b := range []string{"native", "vllm"} {
			f.add(cellSpec{task: "chat", mode: "stream", backend: b, concurrency: 1, repeat: repeat, requests: 6, maxTokens: 30})
			f.add(cellSpec{task: "chat", mode: "stream", backend: b, concurrency: 8, repeat: repeat, requests: 16, maxTokens: 30, change: refused})
			f.add(cellSpec{task: "context", mode: "stream", backend: b, concurrency: 1, repeat: repeat, prompt: 64, requests: 6, maxTokens: 30})
			f.add(cellSpec{task: "context", mode: "stream", backend: b, concurrency: 1, repeat: repeat, prompt: 128, requests: 6, maxTokens: 30, change: refused})
			f.add(cellSpec{task: "context", mode: "sync", backend: b, concurrency: 1, repeat: repeat, prompt: 64, requests: 6, maxTokens: 30, change: refused})
			f.add(cellSpec{task: "context", mode: "sync", backend: b, concurrency: 1, repeat: repeat, prompt: 128, requests: 6, maxTokens: 30, change: refused})
		}
	}
	d, err := newDocument([]*results.Run{f.run})
	if err != nil {
		t.Fatal(err)
	}
	noted := 0
	for _, s := range d.whole(Whole{}) {
		var said strings.Builder
		for _, g := range s.grids {
			for _, r := range g.rows {
				for _, c := range r.cells {
					said.WriteString(c.main + " " + c.aside + " ")
				}
			}
		}
		for i, text := range s.notes {
			noted++
			if !strings.Contains(said.String(), fmt.Sprintf("[%d]", i+1)) {
				t.Errorf("%s: nothing refers to [%d] %s", s.title, i+1, text)
			}
		}
	}
	if noted == 0 {
		t.Error("there are no notes")
	}
}

// The table of firsts speaks of servers alone where it has a row of them.
func TestServersAloneAreSpokenOf(t *testing.T) {
	for _, tc := range []struct {
		backends []string
		want     bool
	}{
		{[]string{"native", "vllm"}, false},
		{[]string{"native", "llama-server", "vllm"}, true},
	} {
		f := newFixture("runs/x", tc.backends...)
		for _, b := range tc.backends {
			f.add(cellSpec{task: "chat", mode: "stream", backend: b, concurrency: 1, requests: 6, maxTokens: 30})
		}
		d, err := newDocument([]*results.Run{f.run})
		if err != nil {
			t.Fatal(err)
		}
		s := d.inShort()
		row := slices.ContainsFunc(s.grids[0].rows, func(r row) bool { return strings.Contains(r.cells[0].main, "servers alone") })
		if lead := strings.Contains(s.lead[0], "of the servers alone"); row != tc.want || lead != tc.want || !strings.Contains(s.lead[0], "the best median") {
			t.Errorf("%v: a row of servers alone: %t; %s", tc.backends, row, s.lead[0])
		}
	}
}
