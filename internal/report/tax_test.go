package report

import (
	"bytes"
	"encoding/json"
	"math"
	"slices"
	"strconv"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/nativebench/nativebench/internal/bench"
	"github.com/nativebench/nativebench/internal/measure"
	"github.com/nativebench/nativebench/internal/results"
)

// TestTaxAddsUpAsPrinted: what is printed adds up to the last digit, down the
// columns and across the rows.
func TestTaxAddsUpAsPrinted(t *testing.T) {
	d, err := newDocument(fixtures()["full"])
	if err != nil {
		t.Fatal(err)
	}
	number := func(text string) int { // of its last digit
		if text == "" || text == "—" {
			return 0
		}
		v, err := strconv.Atoi(strings.Trim(strings.Replace(text, ".", "", 1), "+%"))
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	totals := 0
	for _, s := range d.runs[0].taxes() {
		for _, g := range s.grids {
			var sum [4]int
			for _, r := range g.rows {
				if r.group {
					sum = [4]int{}
					continue
				}
				now := [4]int{number(r.at(1).main), number(r.at(2).main), number(r.at(3).main), number(r.at(3).aside)}
				if strings.TrimSpace(r.at(0).main) != "total" {
					for i := range sum {
						sum[i] += now[i]
					}
					continue
				}
				totals++
				if now != sum || now[1]-now[0] != now[2] || now[0] == 0 || now[1] == 0 {
					t.Errorf("total %v, the rows make %v", now, sum)
				}
			}
		}
	}
	if totals != 5 { // chat: two modes by two concurrencies; qa; code is left out, whose events hold two tokens
		t.Errorf("%d totals", totals)
	}
}

// TestTaxSignsAgree: a difference and its share are never of opposite signs, and
// what rounds to 0 has none.
func TestTaxSignsAgree(t *testing.T) {
	d, err := newDocument([]*results.Run{answersRun(nil)})
	if err != nil {
		t.Fatal(err)
	}
	s := d.runs[0].loads[0].seats[1]
	value := func(t *rapid.T, text string) float64 {
		v, err := strconv.ParseFloat(strings.TrimSuffix(text, "%"), 64)
		if err != nil {
			t.Fatal(err)
		}
		if strings.ContainsAny(text[:1], "+-") == (v == 0) {
			t.Fatalf("the sign of %s", text)
		}
		return v
	}
	rapid.Check(t, func(t *rapid.T) {
		most := rapid.SampledFrom([]int64{1e4, 1e6, 1e7, 1e9, 1e11}).Draw(t, "most") // ns
		tax := measure.Tax{Pairs: rapid.IntRange(1, 20).Draw(t, "pairs")}
		for range rapid.IntRange(1, 5).Draw(t, "spans") {
			sp := measure.Span{Server: rapid.Int64Range(-most/100, most).Draw(t, "server")}
			for range rapid.IntRange(1, 4).Draw(t, "parts") {
				p := measure.Part{Key: "decode", Native: rapid.Int64Range(0, most).Draw(t, "native")}
				sp.Parts = append(sp.Parts, p)
			}
			if rapid.Bool().Draw(t, "close") { // to what it is in process
				sp.Server = sp.Native() + rapid.Int64Range(-most/1000, most/1000).Draw(t, "off")
			}
			tax.Spans = append(tax.Spans, sp)
			tax.Native, tax.Server = tax.Native+sp.Native(), tax.Server+sp.Server
		}
		if tax.Native == 0 {
			t.Skip("nothing was measured")
		}
		for _, r := range s.taxRows(&tax, &notebook{}) {
			f := r.at(3)
			if f.main == "" {
				continue
			}
			if v, share := value(t, f.main), value(t, f.aside); v*share < 0 || v == 0 && share != 0 {
				t.Fatalf("%s %s", f.main, f.aside)
			}
		}
	})
}

func TestApportion(t *testing.T) {
	for _, c := range []struct {
		exact []float64
		want  []int
	}{
		{[]float64{0.5, 0.25, 0.25}, []int{1, 0, 0}},
		{[]float64{-0.4, -0.4, 10.8}, []int{0, -1, 11}},
		{[]float64{3, 4}, []int{3, 4}},
		{nil, []int{}},
	} {
		if got := apportion(c.exact); !slices.Equal(got, c.want) {
			t.Errorf("%v: %v, want %v", c.exact, got, c.want)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		exact := rapid.SliceOf(rapid.Float64Range(-1e6, 1e6)).Draw(t, "exact")
		sum, whole := 0.0, 0
		for i, v := range apportion(exact) {
			if math.Abs(float64(v)-exact[i]) > 1+1e-6 {
				t.Fatalf("%v became %d", exact[i], v)
			}
			sum, whole = sum+exact[i], whole+v
		}
		if int(math.Round(sum)) != whole {
			t.Fatalf("%v add up to %v and, rounded, to %d", exact, sum, whole)
		}
	})
}

// TestTaxSaysWhatIsNotAlike: answers of other lengths, left-out requests, waiting
// that is booked elsewhere, a busy machine.
func TestTaxSaysWhatIsNotAlike(t *testing.T) {
	text := func(run *results.Run) string {
		out := string(write(t, func(b *bytes.Buffer) error { return Terminal(b, []*results.Run{run}, Options{}) }))
		_, out, _ = strings.Cut(out, "Where the milliseconds go")
		out, _, _ = strings.Cut(out, "── Memory")
		return strings.Join(strings.Fields(out), " ")
	}
	alike := text(answersRun(nil))
	if !strings.Contains(alike, "mean of 16") {
		t.Fatalf("no table:\n%s", alike)
	}
	for want, run := range map[string]*results.Run{
		"8 of 16 answers differ in length, native has 20.0 tokens on average and llama-server 15.0": answersRun(func(r *results.Record) {
			if r.Index < 4 {
				r.OutputTokens = 10
			}
		}),
		"2 of 16 requests that both answered are left out": answersRun(func(r *results.Record) {
			if r.Index == 3 {
				r.Server = bench.Server{}
			}
		}),
		"prompt tokens came from a prefix cache that should be off": answersRun(func(r *results.Record) {
			if r.Index == 3 {
				r.Warn(bench.WarnCacheHit)
			}
		}),
		"code · stream ×1 is not here: 3 of 3 requests":               fullFixture(),
		"beside other requests waiting is booked in different places": fullFixture(),
		"the machine was busy with something else":                    fullFixture(),
	} {
		if !strings.Contains(text(run), want) {
			t.Errorf("not said: %s", want)
		}
		if strings.Contains(alike, strings.SplitN(want, ",", 2)[0]) {
			t.Errorf("said without need: %s", want)
		}
	}
}

// TestTaxInsteadOfAccounts: a load is in the table of taxes or in those of the
// backends' own accounts.
func TestTaxInsteadOfAccounts(t *testing.T) {
	titles := func(run *results.Run) (all []string) {
		d, err := newDocument([]*results.Run{run})
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range append(d.runs[0].taxes(), d.runs[0].phases()...) {
			all = append(all, s.title)
		}
		return all
	}
	alone := newFixture("runs/x", "native")
	alone.add(cellSpec{task: "chat", mode: "stream", backend: "native", concurrency: 1, requests: 8, maxTokens: 20})
	sweep := newFixture("runs/x", "native", "llama-server")
	sweep.sweep([]string{"native", "llama-server"}, []int{64, 256})
	tax, native, server := "Where the milliseconds go: llama-server against native", "Where the milliseconds of native go", "Where the milliseconds of llama-server go"
	for _, c := range []struct {
		run  *results.Run
		want []string
	}{
		{answersRun(nil), []string{tax}},
		{alone.run, []string{native}},
		{sweep.run, []string{native, server}},
		{answersRun(func(r *results.Record) { r.Server = bench.Server{} }), []string{native}},
	} {
		if got := titles(c.run); !slices.Equal(got, c.want) {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
}

// TestTaxJSON: the parts add up to the totals in JSON, too.
func TestTaxJSON(t *testing.T) {
	var report jsonReport
	if err := json.Unmarshal(write(t, func(b *bytes.Buffer) error { return JSON(b, fixtures()["full"], Options{}) }), &report); err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, l := range report.Runs[0].Loads {
		for _, s := range l.Backends {
			if s.Tax == nil {
				continue
			}
			found++
			reference, server, share := 0.0, 0.0, 0.0
			for _, p := range s.Tax.Parts {
				for _, v := range p.Reference {
					if v != nil {
						reference += *v
					}
				}
				server, share = server+p.Server, share+p.Share
			}
			for _, d := range []float64{reference - s.Tax.ReferenceTotal, server - s.Tax.Total, share - s.Tax.Share, server - reference - s.Tax.Difference} {
				if math.Abs(d) > 1e-9 || math.IsNaN(d) {
					t.Errorf("%s: off by %v: %+v", l.Load, d, s.Tax)
				}
			}
		}
	}
	if found != 9 { // as in the terminal, and the four lengths of the sweep
		t.Errorf("%d taxes", found)
	}
}

// All that a server tells of its time is shown, and no part that it does not tell.
func TestServersOwnAccount(t *testing.T) {
	f := newFixture("runs/x", "transformers")
	f.add(cellSpec{task: "chat", mode: "stream", backend: "transformers", concurrency: 4, requests: 8, maxTokens: 20, change: func(r *results.Record) {
		r.Server.Tokenize, r.Server.Queue = 2*ms, int64(r.Index)*10*ms
	}})
	d, err := newDocument([]*results.Run{f.run})
	if err != nil {
		t.Fatal(err)
	}
	all := d.runs[0].phases()
	if len(all) != 1 || all[0].title != "Where the milliseconds of transformers go" {
		t.Fatalf("%+v", all)
	}
	var heads []string
	for _, c := range all[0].grids[0].columns {
		heads = append(heads, c.head)
	}
	if want := []string{"", "total", "tokenize", "queue", "prefill", "decode", "rest"}; !slices.Equal(heads, want) {
		t.Errorf("columns %q, want %q", heads, want)
	}
	if cells := all[0].grids[0].rows[0].cells; cells[2].main != "2.00" || cells[3].main != "35.0" {
		t.Errorf("%+v, want 2 and 35 ms", cells)
	}
}
