package runner

import (
	"errors"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/nativebench/nativebench/internal/bench"
	"github.com/nativebench/nativebench/internal/results"
)

// page is a server's page that a test turns over by hand.
type page struct {
	mu     sync.Mutex
	values map[string]float64
	err    error
	asked  chan struct{} // gets one as each sample begins, if not nil
	told   chan struct{} // gets one as each sample has its values, if not nil
	hold   chan struct{} // an answer waits for it, if not nil
}

func (p *page) Subject() string { return "server" }

func (p *page) Sample(into map[string]float64) error {
	if p.asked != nil {
		p.asked <- struct{}{}
	}
	if p.hold != nil {
		<-p.hold
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for k, v := range p.values {
		into[k] = v
	}
	if p.told != nil {
		p.told <- struct{}{}
	}
	return p.err
}

func (p *page) turn(values map[string]float64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.values = values
}

func watched() []int { return []int{os.Getpid()} }

func TestServerWarnings(t *testing.T) {
	before := map[string]float64{"scrape_seconds": 0.001, "prefix_cache_hits_total": 5, "preemptions_total": 1, "output_tokens_total": 100}
	for _, tc := range []struct {
		name       string
		after      map[string]float64
		prefix     bool
		tokens     int
		wantPieces []string
	}{
		{"nothing to say", map[string]float64{"prefix_cache_hits_total": 5, "preemptions_total": 1, "output_tokens_total": 1100}, false, 1000, nil},
		{"within 2 %", map[string]float64{"output_tokens_total": 1119}, false, 1000, nil},
		{"cache", map[string]float64{"prefix_cache_hits_total": 47}, false, -1, []string{"42 prompt tokens came from the server's prefix cache, which should be off"}},
		{"cache allowed", map[string]float64{"prefix_cache_hits_total": 47}, true, -1, nil},
		{"preempted", map[string]float64{"preemptions_total": 4}, false, -1, []string{"requests at work 3 times"}},
		{"others' tokens", map[string]float64{"output_tokens_total": 1150}, false, 1000, []string{"counts 1050 output tokens in this cell, its warm-up included, the client 1000"}},
		{"client does not know", map[string]float64{"output_tokens_total": 1150}, false, -1, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := &page{values: before, told: make(chan struct{}, 100)}
			w := Watch("cell", watched, p, func(*results.Sample) error { return nil })
			<-p.told
			w.Mark() // the window begins after this
			<-p.told
			client := Client{PrefixCache: tc.prefix, OutputTokens: tc.tokens, FirstStart: bench.Now(), LastEnd: bench.Now()}
			window := [2]int64{client.FirstStart, bench.Now() + 1}
			for bench.Now() <= window[1] { // the last scrape is after the window
			}
			after := map[string]float64{"scrape_seconds": 0.001}
			for k, v := range tc.after {
				after[k] = v
			}
			p.turn(after)
			err := w.Stop(&results.CellEvent{WindowNS: window}, 2, false) // other work is no matter here
			ev := results.CellEvent{WindowNS: window}
			w.Server(&ev, client)
			use, warnings := ev.Server, ev.Warnings
			if doubted := slices.Contains(ev.Doubts, results.DoubtCacheHits); doubted != (tc.name == "cache") {
				t.Errorf("doubts %q", ev.Doubts)
			}
			if err != nil || use == nil || use.Scrapes < 3 {
				t.Fatalf("%+v, %v", use, err)
			}
			if len(warnings) != len(tc.wantPieces) {
				t.Errorf("%q, want %q", warnings, tc.wantPieces)
			}
			for _, piece := range tc.wantPieces {
				if !slices.ContainsFunc(warnings, func(s string) bool { return strings.Contains(s, piece) }) {
					t.Errorf("%q, want …%s…", warnings, piece)
				}
			}
		})
	}
}

// A server that does not answer holds up nobody else, and what it did wrong is
// said once.
func TestASlowServerDelaysNoProbe(t *testing.T) {
	p := &page{err: errors.New("no whole answer within 1s"), asked: make(chan struct{}, 100), hold: make(chan struct{})}
	hosts := make(chan struct{}, 1000)
	w := Watch("cell", watched, p, func(s *results.Sample) error {
		if s.Subject == "host" {
			hosts <- struct{}{}
		}
		return nil
	})
	<-p.asked
	for range 3 { // while the server still owes its first answer
		<-hosts
	}
	close(p.hold)
	window := [2]int64{1, 2}
	err := w.Stop(&results.CellEvent{WindowNS: window}, 2, false)
	ev := results.CellEvent{WindowNS: window}
	w.Server(&ev, Client{})
	use, warnings := ev.Server, ev.Warnings
	if err != nil || use != nil || len(warnings) != 1 || !strings.Contains(warnings[0], "server: no whole answer") {
		t.Errorf("%+v, %q, %v", use, warnings, err)
	}
}

func TestClientNote(t *testing.T) {
	record := func(start, end int64, n int, by bench.TokenSource, class bench.Class) *results.Record {
		return &results.Record{Class: class, Trace: bench.Trace{Start: start, End: end, OutputTokens: n, Counted: by}}
	}
	var c Client
	c.Note(record(20, 90, 5, bench.CountUsage, bench.OK))
	c.Note(record(10, 30, 7, bench.CountEngine, bench.OK))
	warm := record(5, 8, 1, bench.CountUsage, bench.OK)
	warm.Warmup = true
	c.Note(warm)
	if want := (Client{OutputTokens: 13, FirstStart: 5, LastEnd: 90, WarmupEnd: 8}); c != want {
		t.Errorf("%+v, want %+v", c, want)
	}
	// The server may have made tokens for what it did not answer.
	again, redialled := record(1, 2, 3, bench.CountUsage, bench.OK), record(1, 2, 3, bench.CountUsage, bench.OK)
	again.Retries = 1
	redialled.Warn(bench.WarnRedialled)
	for _, r := range []*results.Record{
		again, redialled, record(1, 2, 3, bench.CountTokenizer, bench.OK), record(1, 2, 3, bench.CountNone, bench.OK), record(1, 2, 3, bench.CountUsage, bench.Timeout),
	} {
		unknown := c
		unknown.Note(r)
		unknown.Note(record(20, 90, 5, bench.CountUsage, bench.OK))
		if unknown.OutputTokens != -1 {
			t.Errorf("with %+v: %d tokens", r, unknown.OutputTokens)
		}
	}
}

// The tolerance covers a server that shows six digits.
func TestCountsDiffer(t *testing.T) {
	for _, tc := range []struct {
		server, last, client float64
		want                 bool
	}{
		{100, 100, 100, false},
		{103, 103, 100, true},
		{97, 100, 100, true},
		{200, 12345600, 250, false},
		{0, 1000, 250, true},
	} {
		if got := countsDiffer(tc.server, tc.last, tc.client); got != tc.want {
			t.Errorf("%+v: %v", tc, got)
		}
	}
}
