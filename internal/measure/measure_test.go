package measure

import (
	"math"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/nativebench/nativebench/internal/bench"
	"github.com/nativebench/nativebench/internal/stats"
)

const ms = 1_000_000

// answer is a streamed request whose tokens arrive at these milliseconds after
// its start, and which ends end milliseconds after it.
func answer(start, end int64, at ...int64) *bench.Trace {
	tr := &bench.Trace{
		Start: start * ms, End: (start + end) * ms, PromptTokens: 10, OutputTokens: len(at), Counted: bench.CountEngine, Events: len(at),
	}
	for i, t := range at {
		tr.Marks = append(tr.Marks, bench.Mark{T: (start + t) * ms, N: int32(i + 1)})
	}
	return tr
}

// whole is a request whose answer came at once.
func whole(start, end int64, n int) *bench.Trace {
	return &bench.Trace{
		Start: start * ms, End: (start + end) * ms, PromptTokens: 10, OutputTokens: n, Counted: bench.CountUsage, Events: 1,
		Marks: []bench.Mark{{T: (start + end) * ms, N: int32(n)}},
	}
}

func group(mode string, traces ...*bench.Trace) Group {
	c := Cell{}
	for i, tr := range traces {
		c.Requests = append(c.Requests, Request{Trace: tr, Index: i})
	}
	return Group{Mode: mode, Concurrency: 1, Cells: []Cell{c}}
}

func near(t *testing.T, what string, got, want float64) {
	t.Helper()
	if math.Abs(got-want) > 1e-9*math.Max(1, math.Abs(want)) || math.IsNaN(got) {
		t.Errorf("%s = %v, want %v", what, got, want)
	}
}

// TestOneRequest: 4 tokens at 20, 30, 40 and 60 ms, the last byte at 64 ms.
func TestOneRequest(t *testing.T) {
	tr := answer(1000, 64, 20, 30, 40, 60)
	tr.FirstByte, tr.FirstLine = 1018*ms, 1019*ms
	tr.Phases = bench.Phases{Tokenize: 1 * ms, Queue: 2 * ms, Prefill: 15 * ms, Decode: 30 * ms, Sampling: 4 * ms, Detokenize: 3 * ms}
	tr.Server = bench.Server{Prefill: 14 * ms, Decode: 38 * ms}
	s := Summarize(group(Stream, tr))
	for key, want := range map[string]float64{
		"e2e": 0.064, "last_token": 0.060, "ttft": 0.020, "first_byte": 0.018, "first_line": 0.019,
		"tpot": 0.040 / 3, "speed": 4 / 0.064, "output_rate": 4 / 0.064, "decode_speed": 3 / 0.040,
		"itl": 0.010, "chunk_gap": 0.010, "req_per_s": 1 / 0.064, "tok_per_s": 4 / 0.064,
		"output_tokens": 4, "prompt_tokens": 10,
		"phase_tokenize": 0.001, "phase_queue": 0.002, "phase_prefill": 0.015, "phase_decode": 0.030, "phase_sampling": 0.004,
		"phase_detokenize": 0.003, "phase_remainder": 0.009,
		"server_prefill": 0.014, "server_decode": 0.038, "server_rest": 0.012,
	} {
		e := s.Get(key)
		if !e.Known() {
			t.Errorf("%s is missing: %s", key, e.Missing)
			continue
		}
		near(t, key, e.Median, want)
	}
	itl := s.Get("itl")
	if itl.N != 3 || math.Abs(itl.Max-0.020) > 1e-12 || !math.IsNaN(itl.Lo) {
		t.Errorf("itl: %+v", itl.Summary)
	}
}

// What a server tells of tokenizing and queueing is not in its rest.
func TestServersAccount(t *testing.T) {
	waits, comes := answer(1000, 64, 20, 60), answer(2000, 64, 20, 60)
	waits.Server = bench.Server{Tokenize: 2 * ms, Queue: 10 * ms, Prefill: 14 * ms, Decode: 30 * ms}
	comes.Server = bench.Server{Tokenize: 2 * ms, Prefill: 14 * ms, Decode: 30 * ms} // nothing before it
	s := Summarize(group(Stream, waits, comes))
	for key, want := range map[string]float64{"server_tokenize": 0.002, "server_queue": 0.005, "server_prefill": 0.014, "server_decode": 0.030, "server_rest": 0.013} {
		near(t, key, s.Get(key).Mean, want)
	}
	if e := s.Get("server_inference"); e.Known() || e.Missing != "the server's account does not tell it" {
		t.Errorf("%+v", e)
	}
	tgi := whole(1000, 64, 4)
	tgi.Server = bench.Server{Queue: 1 * ms, Inference: 60 * ms}
	s = Summarize(group(Sync, tgi))
	near(t, "server_inference", s.Get("server_inference").Mean, 0.060)
	near(t, "server_rest", s.Get("server_rest").Mean, 0.003)
	if s.Get("server_prefill").Known() {
		t.Error("a prefill that nobody told")
	}
}

func TestSyncModeMeasuresNoTokens(t *testing.T) {
	s := Summarize(group(Sync, whole(1000, 500, 20), whole(1600, 400, 20)))
	near(t, "e2e", s.Get("e2e").Median, 0.45)
	near(t, "output_rate", s.Get("output_rate").Median, (20/0.5+20/0.4)/2)
	near(t, "tok_per_s", s.Get("tok_per_s").Median, 40/1.0)
	if e := s.Get("speed"); !strings.Contains(e.Missing, "output_rate") {
		t.Errorf("speed in sync mode is missing without a word of what is not: %q", e.Missing)
	}
	for _, key := range []string{"ttft", "last_token", "first_line", "tpot", "itl", "chunk_gap", "speed", "decode_speed"} {
		if e := s.Get(key); e.Known() || !strings.Contains(e.Missing, "sync mode") || !math.IsNaN(e.Median) {
			t.Errorf("%s in sync mode: %+v", key, e)
		}
	}
}

func TestFailuresAreCountedAndNothingElse(t *testing.T) {
	g := group(Stream, answer(1000, 50, 10, 50), answer(1100, 9000), answer(11000, 70, 10, 70), answer(12000, 30, 10))
	g.Cells[0].Requests[1].Class, g.Cells[0].Requests[1].Error = bench.Timeout, "no answer"
	g.Cells[0].Requests[3].Class = bench.Truncated
	s := Summarize(g)
	if s.Requests != 4 || s.OK != 2 || s.Failures[bench.Timeout] != 1 || s.Failures[bench.Truncated] != 1 {
		t.Errorf("%+v", s)
	}
	near(t, "e2e", s.Get("e2e").Median, 0.060)
	if e := s.Get("e2e"); e.N != 2 || e.Max > 0.071 {
		t.Errorf("a failure was averaged in: %+v", e.Summary)
	}
	if e := s.Get("failed"); e.Count != 2 || e.N != 4 {
		t.Errorf("failed: %+v", e)
	}
	near(t, "req_per_s", s.Get("req_per_s").Median, 2/11.03) // the window holds what failed
	if !slices.ContainsFunc(s.Notes, func(n string) bool { return n == "1 of 4 requests failed: timeout (no answer)" }) {
		t.Errorf("notes %q", s.Notes)
	}
}

// A request that was sent again is counted and is in no other number.
func TestRetriedRequestsAreInNoNumber(t *testing.T) {
	g := group(Stream, answer(1000, 50, 10, 50), answer(1100, 9000, 400, 9000), answer(11000, 70, 10, 70), answer(12000, 30, 10))
	g.Cells[0].Requests[1].Retries = 2
	g.Cells[0].Requests[3].Retries, g.Cells[0].Requests[3].Class = 3, bench.Busy
	g.Expect = [2]int{5, 9}
	s := Summarize(g)
	if s.Requests != 4 || s.OK != 3 || s.Retried != 1 || s.Failures[bench.Busy] != 1 {
		t.Errorf("%+v", s)
	}
	for _, e := range s.Estimates {
		switch {
		case e.Column.Key == "failed":
			if e.Count != 1 || e.N != 4 {
				t.Errorf("failed: %+v", e)
			}
		case e.Column.Cell == nil && e.Known() && e.N > 2:
			t.Errorf("%s: %d values from 2 requests that succeeded at once", e.Column.Key, e.N)
		}
	}
	near(t, "e2e", s.Get("e2e").Median, 0.060)
	near(t, "req_per_s", s.Get("req_per_s").Median, 2/11.03)
	near(t, "tok_per_s", s.Get("tok_per_s").Median, 4/11.03)
	g.Concurrency = 2 // worker 1 is busy with the one that was sent again
	g.Cells[0].Requests[1].Worker = 1
	if e := Summarize(g).Get("steady_req_per_s"); e.Known() { // only that one lies in the steady part
		t.Errorf("steady_req_per_s = %v", e.Median)
	}
	want := "1 of 4 requests succeeded only after a retry; they are left out of latencies, speeds and rates, so the load was lower than asked"
	if !slices.Contains(s.Notes, want) {
		t.Errorf("notes %q", s.Notes)
	}
}

func TestChunksAreNotTokens(t *testing.T) {
	tr := answer(1000, 100, 20, 40, 60, 80)
	tr.OutputTokens = 8
	for i := range tr.Marks {
		tr.Marks[i].N *= 2
	}
	s := Summarize(group(Stream, tr))
	if e := s.Get("itl"); e.Known() || e.Missing != "2.00 tokens per event: gaps are between chunks, see chunk_gap" {
		t.Errorf("itl: %+v", e)
	}
	near(t, "chunk_gap", s.Get("chunk_gap").Median, 0.020)
	near(t, "tpot", s.Get("tpot").Median, 0.060/6) // the first event brought two
	near(t, "decode_speed", s.Get("decode_speed").Median, 6/0.060)
}

// Events of several tokens that do not tell how many: nobody knows how many came
// with the first.
func TestEventsWithoutCountsHaveNoTimePerToken(t *testing.T) {
	tr := answer(1000, 100, 20, 40, 60, 80)
	tr.OutputTokens = 8
	s := Summarize(group(Stream, tr))
	for _, key := range []string{"tpot", "decode_speed"} {
		if e := s.Get(key); e.Known() || !strings.Contains(e.Missing, "do not tell how many") {
			t.Errorf("%s: %+v", key, e)
		}
	}
	near(t, "speed", s.Get("speed").Median, 8/0.1)
	one := answer(2000, 100, 20, 40, 60, 80)
	one.OutputTokens, one.Finish = 5, bench.FinishStop // the end-of-sequence token has no event
	s = Summarize(group(Stream, tr, one, answer(3000, 100, 20, 40, 60, 80)))
	if e := s.Get("tpot"); e.N != 2 || e.Min != 0.020 || e.Max != 0.020 {
		t.Errorf("tpot: %+v", e)
	}
	if len(s.Notes) != 1 || !strings.HasPrefix(s.Notes[0], "1 answers do not tell how many tokens each event brought") {
		t.Errorf("notes %q", s.Notes)
	}
}

// Where nobody counted the tokens of some answers, those are in nothing that is
// of tokens: not even in the gaps, as their events may hold any number.
func TestSomeUncountedAnswers(t *testing.T) {
	uncounted := answer(2000, 900, 300, 600, 900)
	uncounted.OutputTokens, uncounted.Counted = 0, bench.CountNone
	uncounted.Warn(bench.WarnTokenCount)
	g := group(Stream, answer(1000, 100, 20, 40, 60, 80), uncounted, answer(3000, 100, 20, 40, 60, 80))
	g.Expect = [2]int{1, 9}
	s := Summarize(g)
	if e := s.Get("itl"); e.N != 6 || math.Abs(e.Max-0.020) > 1e-9 {
		t.Errorf("itl: %+v", e.Summary)
	}
	if e := s.Get("outside_range"); e.Count != 0 || e.N != 2 {
		t.Errorf("outside_range: %+v", e)
	}
	for key, n := range map[string]int{"e2e": 3, "chunk_gap": 8, "tpot": 2, "speed": 2, "output_tokens": 2} {
		if e := s.Get(key); e.N != n {
			t.Errorf("%s of %d, want %d", key, e.N, n)
		}
	}
	if s.Get("tok_per_s").Known() {
		t.Error("tokens per second, of which some were not counted")
	}
}

// Of energy it is said what failed requests do to it only where it was measured.
func TestSharedWindowIsToldOfWhatWasMeasured(t *testing.T) {
	for want, gpu := range map[string]GPU{
		"rates are of the whole window, of which requests that do not count (1 of 2) took a part: they are lower than without them":                                                       {},
		"rates and energy are of the whole window, of which requests that do not count (1 of 2) took a part: rates are lower, and energy per request and token higher, than without them": {Devices: 1, EnergyJ: 12},
	} {
		g := group(Stream, answer(1000, 50, 10, 50), answer(11000, 70, 10, 70))
		g.Cells[0].Requests[1].Class, g.Cells[0].GPU = bench.Timeout, gpu
		if s := Summarize(g); !slices.Contains(s.Notes, want) {
			t.Errorf("%q, want %q", s.Notes, want)
		}
	}
	g := group(Stream, answer(1000, 50, 10, 50), answer(11000, 70, 10, 70))
	g.Cells[0].Requests[1].Class, g.Cells[0].GPU = bench.Timeout, GPU{Devices: 1, EnergyJ: -1} // a driver that does not tell
	if s := Summarize(g); slices.ContainsFunc(s.Notes, func(n string) bool { return strings.Contains(n, "energy") }) {
		t.Errorf("%q", s.Notes)
	}
}

// Answers with a warning that spoils them are counted by class and are in no
// other number; others stay in.
func TestSpoiltAnswersAreInNoNumber(t *testing.T) {
	for w, spoilt := range map[bench.Warning]bool{
		bench.WarnCut: true, bench.WarnShort: true, bench.WarnCount: true, bench.WarnNoFinish: true, bench.WarnRedialled: true,
		bench.WarnHeldBack: false, bench.WarnTokenCount: false, bench.WarnCacheHit: false,
	} {
		odd := answer(1100, 9000, 400, 9000)
		odd.Warn(bench.WarnHeldBack)
		odd.Warn(w)
		g := group(Stream, answer(1000, 50, 10, 50), odd, answer(11000, 70, 10, 70))
		g.Expect = [2]int{5, 9}
		g.Cells[0].GPU = GPU{Devices: 1, EnergyJ: 12}
		s := Summarize(g)
		want := 3
		if spoilt {
			want = 2
		}
		if s.OK != 3 || s.Warnings[w] != 1 || (s.LeftOut[w] == 1) != spoilt || len(s.Failures) != 0 {
			t.Errorf("%s: %+v", w, s)
		}
		for _, e := range s.Estimates {
			if e.Column.Cell == nil && e.Column.Key != "failed" && e.Known() && e.N != want {
				t.Errorf("%s: %s has %d values, want %d", w, e.Column.Key, e.N, want)
			}
		}
		near(t, "req_per_s", s.Get("req_per_s").Median, float64(want)/10.07)
		near(t, "tok_per_s", s.Get("tok_per_s").Median, float64(2*want)/10.07)
		near(t, "energy_per_token", s.Get("energy_per_token").Median, 12/float64(2*want))
		if said := slices.ContainsFunc(s.Notes, func(n string) bool {
			return strings.HasSuffix(n, "("+string(w)+"): left out of latencies, speeds, rates and comparisons")
		}); said != spoilt {
			t.Errorf("%s: notes %q", w, s.Notes)
		}
		native, server := g, group(Stream, odd, odd, odd)
		for _, c := range []*Cell{&native.Cells[0], &server.Cells[0]} {
			for i := range c.Requests {
				tr := *c.Requests[i].Trace
				tr.Sent, tr.Phases, tr.Server = tr.Start+1, bench.Phases{Decode: 1}, bench.Server{Prefill: 1, Decode: 1}
				c.Requests[i].Trace = &tr
			}
		}
		if tax, ok := TaxOf(native, server); ok == spoilt || !spoilt && tax.Of != 3 {
			t.Errorf("%s: tax %+v", w, tax)
		}
		s = Summarize(group(Stream, odd))
		if e := s.Get("e2e"); e.Known() == spoilt || spoilt && e.Missing != "none of the 1 answers counts, see the warnings" {
			t.Errorf("%s alone: %+v", w, e)
		}
	}
}

func TestUncountedTokens(t *testing.T) {
	tr := answer(1000, 100, 20, 40)
	tr.OutputTokens, tr.Counted = 0, bench.CountNone
	tr.Warn(bench.WarnTokenCount)
	s := Summarize(group(Stream, tr))
	near(t, "ttft", s.Get("ttft").Median, 0.020)
	for _, key := range []string{"tpot", "speed", "output_rate", "decode_speed", "tok_per_s", "itl", "output_tokens"} {
		if e := s.Get(key); e.Known() {
			t.Errorf("%s of tokens that nobody counted: %v", key, e.Median)
		}
	}
	if s.Warnings[bench.WarnTokenCount] != 1 || len(s.Notes) != 1 {
		t.Errorf("warnings %v, notes %q", s.Warnings, s.Notes)
	}
}

func TestLostMarksLeaveTokenTimingsOut(t *testing.T) {
	tr := answer(1000, 100, 20, 40, 60)
	tr.MarksLost = 2
	s := Summarize(group(Stream, tr))
	near(t, "ttft", s.Get("ttft").Median, 0.020)
	for _, key := range []string{"last_token", "tpot", "itl", "decode_speed"} {
		if e := s.Get(key); e.Known() {
			t.Errorf("%s from lost marks: %v", key, e.Median)
		}
	}
	if len(s.Notes) != 1 {
		t.Errorf("notes %q", s.Notes)
	}
}

func TestOneTokenHasNoGap(t *testing.T) {
	s := Summarize(group(Stream, answer(1000, 25, 20)))
	near(t, "ttft", s.Get("ttft").Median, 0.020)
	for _, key := range []string{"tpot", "decode_speed", "itl"} {
		if e := s.Get(key); e.Known() {
			t.Errorf("%s of one token: %v", key, e.Median)
		}
	}
}

// TestSteadyPart: two workers; the second starts 100 ms late and goes on 300 ms
// alone. In the 700 ms between, both are busy.
//
//	worker 0  |0 ---- 400|400 ---- 800|
//	worker 1     |100 ------- 600|600 ------- 1100|
func TestSteadyPart(t *testing.T) {
	g := Group{Mode: Sync, Concurrency: 2, Cells: []Cell{{Requests: []Request{
		{Trace: whole(1000, 400, 8), Worker: 0},
		{Trace: whole(1100, 500, 10), Worker: 1},
		{Trace: whole(1400, 400, 8), Worker: 0},
		{Trace: whole(1600, 500, 10), Worker: 1},
	}}}}
	s := Summarize(g)
	near(t, "req_per_s", s.Get("req_per_s").Median, 4/1.1)
	near(t, "tok_per_s", s.Get("tok_per_s").Median, 36/1.1)
	near(t, "steady_req_per_s", s.Get("steady_req_per_s").Median, (300.0/400+1+1+200.0/500)/0.7)
	near(t, "steady_tok_per_s", s.Get("steady_tok_per_s").Median, (8*300.0/400+8+10+10*200.0/500)/0.7)

	// A stream's tokens are counted by when they arrived: of 4, at 1050, 1150,
	// 1250 and 1350, three.
	g.Mode = Stream
	g.Cells[0].Requests[0].Trace = answer(1000, 400, 50, 150, 250, 350)
	near(t, "steady_tok_per_s", Summarize(g).Get("steady_tok_per_s").Median, (3+8+10+10*200.0/500)/0.7)

	// A failed request keeps its worker busy and gives nothing.
	g.Cells[0].Requests[3].Class = bench.Timeout
	near(t, "steady_tok_per_s", Summarize(g).Get("steady_tok_per_s").Median, (3+8+10)/0.7)

	g.Cells[0].Requests = g.Cells[0].Requests[:1]
	if e := Summarize(g).Get("steady_req_per_s"); e.Missing != "the workers were never all busy at once" {
		t.Errorf("one worker of two: %+v", e)
	}
	g.Concurrency = 1
	if e := Summarize(g).Get("steady_req_per_s"); e.Known() {
		t.Errorf("one worker: %+v", e)
	}
}

func TestOutsideRange(t *testing.T) {
	g := group(Sync, whole(1000, 100, 9), whole(1000, 100, 10), whole(1000, 100, 30), whole(1000, 100, 31))
	if e := Summarize(g).Get("outside_range"); e.Known() {
		t.Error("no range, but some are outside of it")
	}
	g.Expect = [2]int{10, 30}
	if e := Summarize(g).Get("outside_range"); e.Count != 2 || e.N != 4 {
		t.Errorf("%+v", e)
	}
}

func TestRepeatsThatDisagree(t *testing.T) {
	g := Group{Mode: Sync, Concurrency: 1, Cells: []Cell{
		group(Sync, whole(1000, 100, 5)).Cells[0], group(Sync, whole(1000, 130, 5)).Cells[0],
	}}
	g.Cells[1].Repeat = 1
	e := Summarize(g).Get("e2e")
	near(t, "spread", e.Spread, 1.3)
	if !slices.ContainsFunc(e.Warnings, func(w string) bool { return strings.Contains(w, "repeats disagree") }) {
		t.Errorf("warnings %q", e.Warnings)
	}
}

// TestCompareIsPaired: requests take 100 to 1200 ms, and 10 ms more on the other
// side.
func TestCompareIsPaired(t *testing.T) {
	var a, b []*bench.Trace
	for i := range int64(12) {
		b = append(b, whole(1000, 100+100*i, 5))
		a = append(a, whole(1000, 110+100*i, 5))
	}
	slices.Reverse(a)
	g := group(Sync, a...)
	for i := range g.Cells[0].Requests { // written in another order, as parallel requests are
		g.Cells[0].Requests[i].Index = len(a) - 1 - i
	}
	ref := group(Sync, b...)
	for _, again := range []*Group{&g, &ref} {
		again.Cells = append(again.Cells, again.Cells[0])
		again.Cells[1].Repeat = 1
	}
	c := Compare(Summarize(g).Get("e2e"), Summarize(ref).Get("e2e"))
	near(t, "ratio", c.Ratio, 660.0/650)
	if c.Verdict != stats.Differs || !c.Paired {
		t.Errorf("%+v", c)
	}
}

func TestColumnTable(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range Columns() {
		if seen[c.Key] || c.Key != strings.ToLower(c.Key) || strings.ContainsAny(c.Key, " -") {
			t.Errorf("key %q is there twice or is not in lower case", c.Key)
		}
		seen[c.Key] = true
		if c.Name == "" || c.Unit == "" || c.Definition == "" || c.Window == "" || (c.Clock == "" && c.TokenCount == "" && c.Count == nil) {
			t.Errorf("%s does not say what it means: %+v", c.Key, c)
		}
		if strings.HasSuffix(c.Definition, ".") {
			t.Errorf("%s: its definition ends in a full stop", c.Key)
		}
		ways := 0
		for _, has := range []bool{c.Request != nil, c.Gaps != nil, c.Cell != nil, c.Count != nil} {
			if has {
				ways++
			}
		}
		if ways != 1 {
			t.Errorf("%s is computed in %d ways", c.Key, ways)
		}
		if !slices.Contains([]string{"s", "B", "tok/s", "req/s", "tokens", "requests", "J", "W", "Hz", "°C", "ratio", "passes", "rows"}, c.Unit) {
			t.Errorf("%s is in %q, which is no base unit", c.Key, c.Unit)
		}
		if got, err := ByKey(c.Key); err != nil || got.Key != c.Key {
			t.Errorf("ByKey(%q) = %q, %v", c.Key, got.Key, err)
		}
	}
	for alias, key := range aliases() {
		if !seen[key] || seen[alias] {
			t.Errorf("alias %s of %s", alias, key)
		}
	}
	if _, err := ByKey("nothing"); err == nil || !strings.Contains(err.Error(), "ttft") {
		t.Errorf("the error of an unknown key lists no keys: %v", err)
	}
}

// TestAnyTrace: whatever was stamped, nothing panics, nothing is negative but
// remainders, and nothing that is missing has a value.
func TestAnyTrace(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := Group{Mode: rapid.SampledFrom([]string{Sync, Stream}).Draw(t, "mode"), Concurrency: rapid.IntRange(0, 3).Draw(t, "c"), Expect: [2]int{1, 3}}
		stamp := rapid.Int64Range(0, 50)
		for repeat := range rapid.IntRange(0, 3).Draw(t, "cells") {
			c := Cell{Repeat: repeat, Window: [2]int64{stamp.Draw(t, "w0"), stamp.Draw(t, "w1")}}
			for range rapid.IntRange(0, 4).Draw(t, "requests") {
				tr := &bench.Trace{
					Start: stamp.Draw(t, "start"), FirstByte: stamp.Draw(t, "byte"), FirstLine: stamp.Draw(t, "line"), End: stamp.Draw(t, "end"),
					OutputTokens: rapid.IntRange(0, 4).Draw(t, "n"), MarksLost: rapid.IntRange(0, 1).Draw(t, "lost"),
					Counted: rapid.SampledFrom([]bench.TokenSource{bench.CountNone, bench.CountUsage, bench.CountTokenizer}).Draw(t, "counted"),
					Phases:  bench.Phases{Decode: stamp.Draw(t, "decode")}, Server: bench.Server{Decode: stamp.Draw(t, "server")},
				}
				at, n := int64(0), int32(0)
				for range rapid.IntRange(0, 4).Draw(t, "marks") {
					at, n = at+stamp.Draw(t, "step"), n+rapid.Int32Range(0, 2).Draw(t, "tokens")
					tr.Marks = append(tr.Marks, bench.Mark{T: at, N: n})
				}
				c.Requests = append(c.Requests, Request{
					Trace: tr, Worker: rapid.IntRange(0, 2).Draw(t, "worker"), Index: rapid.IntRange(0, 5).Draw(t, "index"),
					Class: rapid.SampledFrom([]bench.Class{bench.OK, bench.OK, bench.Empty, bench.Cancelled}).Draw(t, "class"),
				})
			}
			g.Cells = append(g.Cells, c)
		}
		s := Summarize(g)
		for _, e := range s.Estimates {
			if e.Known() && e.Column.Count == nil && (math.IsNaN(e.Median) || math.IsInf(e.Median, 0)) {
				t.Fatalf("%s is known to be %v", e.Column.Key, e.Median)
			}
			if !e.Known() && (!math.IsNaN(e.Median) || e.Count != 0) {
				t.Fatalf("%s is missing (%s) and %v", e.Column.Key, e.Missing, e.Median)
			}
			if e.Min < 0 && !strings.HasSuffix(e.Column.Key, "remainder") && !strings.HasSuffix(e.Column.Key, "rest") {
				t.Fatalf("%s is negative: %v", e.Column.Key, e.Min)
			}
			Compare(e, e)
		}
	})
}
