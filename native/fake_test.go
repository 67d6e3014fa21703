//go:build cgo && linux

package native

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/nativebench/nativebench/internal/bench"
	"github.com/nativebench/nativebench/internal/bench/benchtest"
)

// fakeDir is the folder of the fake engine: the same ABI and loop, no model.
func fakeDir(t testing.TB) string {
	if os.Getenv(EnvDir) == "" {
		t.Skipf("%s is not set: `make test` sets it", EnvDir)
	}
	return filepath.Join(os.Getenv(EnvDir), "fake")
}

func openFake(t testing.TB, program string, slots int) *Engine {
	t.Helper()
	e, err := Open(context.Background(), Config{Dir: fakeDir(t), ModelPath: "fake:" + program, Slots: slots, Threads: 1}, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	return e
}

func request(prompt string, tokens int, stream bool) *bench.Request {
	return &bench.Request{Prompt: prompt, Stream: stream, Sampling: bench.Sampling{TopP: 1, MaxTokens: tokens, IgnoreEOS: true}}
}

func generate(t testing.TB, s bench.Session, req *bench.Request) *bench.Trace {
	t.Helper()
	if err := s.Prepare(req); err != nil {
		t.Fatal(err)
	}
	tr := bench.NewTrace(req.Sampling.MaxTokens)
	if err := s.Generate(context.Background(), tr); err != nil {
		t.Fatal(err)
	}
	return tr
}

func seat(t testing.TB, e *Engine) bench.Session {
	t.Helper()
	s, err := e.NewSession(bench.Limits{PromptBytes: 4096, PromptTokens: 1024, OutputTokens: 1024})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestConformanceOfTheLoop(t *testing.T) {
	benchtest.Run(t, func(t *testing.T) bench.Backend {
		e, err := Open(context.Background(), Config{Dir: fakeDir(t), ModelPath: "fake:step_us=2000", Slots: 8, Threads: 1}, nil)
		if err != nil {
			t.Fatal(err)
		}
		return e
	}, benchtest.Options{})
}

func TestOpenErrorsSayWhatToDo(t *testing.T) {
	dir := fakeDir(t)
	broken := t.TempDir()
	if err := os.WriteFile(filepath.Join(broken, Library), []byte("not a library"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		cfg  Config
		want string
	}{
		"no library":  {Config{Dir: t.TempDir(), ModelPath: "fake:"}, "run `make engine`"},
		"no real one": {Config{Dir: broken, ModelPath: "fake:"}, "cannot open"},
		"no model":    {Config{Dir: dir, ModelPath: "/nonexistent.gguf"}, "no model file"},
		"not a model": {Config{Dir: dir, ModelPath: "fake:fail=model"}, "no model"},
		"memory":      {Config{Dir: dir, ModelPath: "fake:fail=memory"}, "out of memory"},
		"flash":       {Config{Dir: dir, ModelPath: "fake:", FlashAttn: "maybe"}, "auto, on, off"},
		"cache":       {Config{Dir: dir, ModelPath: "fake:", CacheType: "q4"}, "f16, f32"},
		"slots":       {Config{Dir: dir, ModelPath: "fake:", Slots: -1}, "at least one slot"},
	} {
		_, err := Open(context.Background(), c.cfg, nil)
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: got %v, want one line with %q", name, err, c.want)
		}
	}
}

func TestOpenReportsProgressAndCanBeGivenUp(t *testing.T) {
	var seen []float64
	cfg := Config{Dir: fakeDir(t), ModelPath: "fake:load_ms=400", Slots: 1}
	e, err := Open(context.Background(), cfg, func(f float64) { seen = append(seen, f) })
	if err != nil {
		t.Fatal(err)
	}
	e.Close()
	if len(seen) < 2 || seen[len(seen)-1] != 1 {
		t.Errorf("progress was %v", seen)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cfg.ModelPath = "fake:load_ms=600000"
	if _, err := Open(ctx, cfg, func(float64) { cancel() }); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// TestTextIsWholeUTF8 makes the engine cut characters at every token boundary.
func TestTextIsWholeUTF8(t *testing.T) {
	s := seat(t, openFake(t, "", 1))
	held := 0
	for n := 1; n <= 60; n++ {
		tr := generate(t, s, request("hi", n, true))
		if !utf8.Valid(tr.Text) || len(tr.Tokens) != n || len(tr.Text) > n {
			t.Fatalf("%d tokens gave %q", n, tr.Text)
		}
		// A token is one byte here: a mark for each character, and one for the
		// rest if the answer ends inside one.
		marks := utf8.RuneCount(tr.Text)
		if len(tr.Text) < n {
			marks++
		}
		if len(tr.Marks) != marks || int(tr.Marks[marks-1].N) != n {
			t.Fatalf("%d tokens, %q: %d marks %v, want %d", n, tr.Text, len(tr.Marks), tr.Marks, marks)
		}
		if len(tr.Warnings) > 0 {
			held++
		}
	}
	if held == 0 || held == 60 {
		t.Errorf("%d of 60 answers end inside a character", held)
	}
}

func TestPhasesAddUp(t *testing.T) {
	e := openFake(t, "step_us=1000,prompt_us=100", 2)
	s := seat(t, e)
	tr := generate(t, s, request("a prompt of some length", 20, true))
	total := tr.End - tr.Start
	sum := tr.Phases.Sum()
	if sum <= 0 || sum > total {
		t.Fatalf("phases %+v sum to %d of %d ns", tr.Phases, sum, total)
	}
	if tr.Phases.Decode < 19*int64(time.Millisecond) || tr.Phases.Prefill < 2*int64(time.Millisecond) {
		t.Errorf("phases %+v: 19 steps of 1 ms and 23 prompt tokens of 0.1 ms were slept", tr.Phases)
	}
	for i, m := range tr.Marks {
		if m.T < tr.Start || m.T > tr.End || (i > 0 && m.N <= tr.Marks[i-1].N) {
			t.Errorf("mark %d is %+v in [%d, %d]", i, m, tr.Start, tr.End)
		}
	}
}

// TestLongPromptDoesNotStarveOthers: while one slot's prompt of 900 tokens is
// computed in chunks of 64, the other slot gets a token between any two chunks.
func TestLongPromptDoesNotStarveOthers(t *testing.T) {
	e, err := Open(context.Background(), Config{
		Dir: fakeDir(t), ModelPath: "fake:prompt_us=200,step_us=100", Slots: 2, Threads: 1, Context: 1024, PrefillChunk: 64,
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	a, b := seat(t, e), seat(t, e)
	for range 100 { // until the short one was under way when the long one came
		if err := a.Prepare(request("short", 1000, true)); err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(context.Background())
		tra := bench.NewTrace(1000)
		done := make(chan error)
		go func() { done <- a.Generate(ctx, tra) }()
		generate(t, b, request("go", 1, false))
		trb := generate(t, b, request(strings.Repeat("x", 900), 2, true))
		stop()
		<-done
		if first := tra.FirstToken(); first == 0 || first > trb.Start {
			continue
		}
		during := 0
		for _, m := range tra.Marks {
			if m.T > trb.Start && m.T < trb.FirstToken() {
				during++
			}
		}
		if chunks := 900/64 + 1; during < chunks-2 {
			t.Errorf("the decoding slot got %d tokens while the other's %d chunks were computed", during, chunks)
		}
		if trb.Phases.Queue <= 0 {
			t.Errorf("the long prompt waited for the other's decode steps, but its queue phase is %d", trb.Phases.Queue)
		}
		return
	}
	t.Fatal("the short request never came first")
}

// TestNeighboursPromptsGoTogether: with room for two prompts, the oldest that
// waits takes along its neighbour before one that came between the two; and
// nobody but the oldest's neighbours is overtaken.
func TestNeighboursPromptsGoTogether(t *testing.T) {
	e, err := Open(context.Background(), Config{
		Dir: fakeDir(t), ModelPath: "fake:prompt_us=2000", Slots: 6, Threads: 1, Context: 1024, PrefillChunk: 16,
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	seats := make([]bench.Session, 6)
	for i := range seats {
		seats[i] = seat(t, e)
	}
	first := make([]int64, 6)
	submit := func(slot, tokens int) (done chan struct{}, began int64) {
		if err := seats[slot].Prepare(request(strings.Repeat("x", tokens), 1, true)); err != nil {
			t.Fatal(err)
		}
		done, tr := make(chan struct{}), bench.NewTrace(1)
		go func() {
			defer close(done)
			if err := seats[slot].Generate(context.Background(), tr); err != nil {
				t.Error(err)
			}
			first[slot] = tr.FirstToken()
		}()
		time.Sleep(10 * time.Millisecond) // so that they come one after the other
		return done, bench.Now()
	}
	for range 20 { // until all had come before the first was through
		var all []chan struct{}
		last := int64(0)
		for _, slot := range []int{5, 1, 4, 0, 2} { // 5 has a long prompt
			tokens := 8
			if slot == 5 {
				tokens = 160
			}
			done, now := submit(slot, tokens)
			all, last = append(all, done), now
		}
		for _, done := range all {
			<-done
		}
		if last > first[5] {
			continue
		}
		// 5 alone; then 1 with 0, its neighbour that came after 4; then 4 with 2.
		if !(first[5] < min(first[0], first[1]) && max(first[0], first[1]) < min(first[2], first[4])) {
			t.Errorf("first tokens at %v", first)
		}
		return
	}
	t.Fatal("the long prompt was never long enough")
}

// TestNoPromptStarves: two neighbours send long prompts without a pause, each of
// which ends in the middle of a chunk that the other fills. A third slot's prompt
// begins all the same as soon as the one that was being computed is through.
func TestNoPromptStarves(t *testing.T) {
	e, err := Open(context.Background(), Config{
		Dir: fakeDir(t), ModelPath: "fake:prompt_us=20", Slots: 4, Threads: 1, Context: 1024, PrefillChunk: 400,
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	seats := make([]bench.Session, 4)
	for i := range seats {
		seats[i] = seat(t, e)
	}
	const enough = 40 // answers of the neighbours after which the third has been forgotten
	var third atomic.Bool
	var answers, overtook atomic.Int64
	var wg sync.WaitGroup
	for _, s := range seats[:2] {
		wg.Go(func() {
			for answers.Load() < 4 || !third.Load() && overtook.Load() < enough {
				generate(t, s, request(strings.Repeat("x", 901), 1, true))
				if answers.Add(1) > 4 {
					overtook.Add(1)
				}
			}
		})
	}
	for answers.Load() < 4 { // both go round
		time.Sleep(time.Millisecond)
	}
	generate(t, seats[3], request("short", 1, true))
	third.Store(true)
	wg.Wait()
	// Those that were under way when it came, and what ran until it was noticed.
	if n := overtook.Load(); n >= enough {
		t.Errorf("%d answers came before that of the oldest", n)
	}
}

func TestEngineFailureIsThatRequestsAlone(t *testing.T) {
	e := openFake(t, "error_at=5", 1)
	s := seat(t, e)
	if err := s.Prepare(request("hi", 50, true)); err != nil {
		t.Fatal(err)
	}
	tr := bench.NewTrace(50)
	err := s.Generate(context.Background(), tr)
	if bench.ClassOf(err) != bench.Engine || !strings.Contains(err.Error(), "told to fail") {
		t.Fatalf("got %v", err)
	}
	if tr.OutputTokens != 4 || len(tr.Marks) != 4 || tr.Marks[3].N != 4 {
		t.Errorf("%d tokens and %d marks were kept of 4", tr.OutputTokens, len(tr.Marks))
	}
	if tr := generate(t, s, request("hi", 5, true)); tr.OutputTokens != 5 {
		t.Errorf("the next request made %d tokens", tr.OutputTokens)
	}
}

func TestGenerateAllocatesNothingPerToken(t *testing.T) {
	s := seat(t, openFake(t, "", 1))
	tr := bench.NewTrace(1000)
	per := func(tokens int, stream bool) float64 {
		req := request("hi", tokens, stream)
		return testing.AllocsPerRun(20, func() {
			if err := s.Prepare(req); err != nil {
				t.Fatal(err)
			}
			tr.Reset()
			if err := s.Generate(context.Background(), tr); err != nil {
				t.Fatal(err)
			}
		})
	}
	for _, stream := range []bool{false, true} {
		if few, many := per(2, stream), per(900, stream); few != 0 || many != 0 {
			t.Errorf("stream %v: %g allocations for 2 tokens, %g for 900", stream, few, many)
		}
	}
}

// A stream that is too slow for its limits fails; the slot is good again after.
func TestContentLimits(t *testing.T) {
	slow := openFake(t, "step_us=50000,prompt_us=20000", 1)
	for _, c := range []struct {
		limits bench.Limits
		stream bool
		want   string
	}{
		{bench.Limits{FirstToken: 10 * time.Millisecond}, true, "no content within 10ms (limit --first-token-timeout)"},
		{bench.Limits{Gap: 10 * time.Millisecond}, true, "no content for 10ms (limit --token-timeout), after 1 events"},
		{bench.Limits{FirstToken: time.Minute, Gap: time.Minute}, true, ""},
		{bench.Limits{FirstToken: time.Nanosecond, Gap: time.Nanosecond}, false, ""},
	} {
		c.limits.PromptBytes = 100
		s, err := slow.NewSession(c.limits)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Prepare(request("a prompt", 4, c.stream)); err != nil {
			t.Fatal(err)
		}
		tr := bench.NewTrace(4)
		err = s.Generate(context.Background(), tr)
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%+v: %v", c.limits, err)
		case c.want != "" && (bench.ClassOf(err) != bench.Timeout || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%+v: class %q, %v", c.limits, bench.ClassOf(err), err)
		}
		s.Close()
	}
	generate(t, seat(t, slow), request("a prompt", 2, true))
}

func TestSessionsTakeAndReturnSlots(t *testing.T) {
	e := openFake(t, "", 2)
	a, b := seat(t, e), seat(t, e)
	if _, err := e.NewSession(bench.Limits{}); err == nil {
		t.Fatal("a third session on two slots was given out")
	}
	a.Close()
	c := seat(t, e)
	generate(t, b, request("x", 3, false))
	generate(t, c, request("y", 3, false))
}

// Logits are refused, in one line, before anything is computed; they take a
// slot and give it back, and leave a request beside them as it is.
func TestLogitsOfTheLoop(t *testing.T) {
	e := openFake(t, "step_us=200", 2)
	for _, c := range []struct {
		ids  []int32
		last int
		want string
	}{
		{nil, 1, "want at least one"},
		{[]int32{1, 2}, 0, "want at least one"},
		{[]int32{1, 2}, 3, "at most all"},
		{[]int32{1, 257}, 1, "not in the vocabulary of 257"},
		{make([]int32, 1025), 1, "context of 1024"},
	} {
		if _, err := e.Logits(c.ids, c.last); err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%d tokens, last %d: got %v, want one line with %q", len(c.ids), c.last, err, c.want)
		}
	}
	s := seat(t, e)
	want := generate(t, s, request("hi", 100, true)).Tokens
	done := make(chan []int32)
	go func() { done <- generate(t, s, request("hi", 100, true)).Tokens }()
	for range 20 {
		rows, err := e.Logits([]int32{72, 105, 33}, 2)
		if err != nil {
			t.Fatal(err)
		}
		if len(rows) != 2 || len(rows[0]) != 257 || rows[0]['i'] != 3 || rows[1]['n'] != 3 || rows[0][0] != -1 || rows[1][0] != -2 {
			t.Fatalf("%d rows, %v %v", len(rows), rows[0][:2], rows[1][:2])
		}
	}
	if got := <-done; !slices.Equal(got, want) {
		t.Errorf("beside logits a request answered %v, alone %v", got, want)
	}
	seat(t, e)
	if _, err := e.Logits([]int32{1}, 1); err == nil || !strings.Contains(err.Error(), "all 2 slots") {
		t.Errorf("without a free slot: %v", err)
	}
}

func BenchmarkRequestOverhead(b *testing.B) {
	s := seat(b, openFake(b, "", 1))
	tr, req := bench.NewTrace(1000), request("hi", 1000, true)
	b.ReportAllocs()
	for b.Loop() {
		if err := s.Prepare(req); err != nil {
			b.Fatal(err)
		}
		tr.Reset()
		if err := s.Generate(context.Background(), tr); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/1000, "ns/token")
}
