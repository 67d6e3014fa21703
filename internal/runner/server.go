package runner

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/nativebench/nativebench/internal/bench"
	"github.com/nativebench/nativebench/internal/results"
	"github.com/nativebench/nativebench/internal/telemetry"
)

// scrapePeriod is how often a server is asked about itself while a cell runs:
// writing its page costs some servers milliseconds of their main thread.
const scrapePeriod = time.Second

// serverWatch asks a server about itself, in a goroutine of its own: a slow
// answer must not delay the other probes.
type serverWatch struct {
	mark  chan struct{}
	ended chan struct{}

	// Of the goroutine until ended is closed:
	log     telemetry.Log
	cost    telemetry.Cost
	keepErr error
}

func watchServer(ctx context.Context, cell string, probe telemetry.Probe, keep func(*results.Sample) error) *serverWatch {
	w := &serverWatch{mark: make(chan struct{}, 1), ended: make(chan struct{})}
	s := telemetry.Sampler{Now: bench.Now, Mark: w.mark, Period: scrapePeriod, Probes: []telemetry.Probe{probe}}
	go func() {
		defer close(w.ended)
		w.cost = s.Run(ctx, func(t int64, subject string, values map[string]float64) {
			if subject == telemetry.SamplerSubject {
				return // that is the other sampler's; scrape_seconds is ours
			}
			w.log.Add(t, subject, values)
			if w.keepErr == nil {
				w.keepErr = keep(&results.Sample{T: t, Cell: cell, Subject: subject, Values: values})
			}
		})
	}()
	return w
}

// Client is what the clients of a cell know, to be held against what the
// server says.
type Client struct {
	PrefixCache bool // the server may use its prefix cache
	// Of all requests, the warm-up's included:
	OutputTokens int   // -1: not known of every request
	FirstStart   int64 // when the first began
	LastEnd      int64
	WarmupEnd    int64 // when the last of the warm-up ended; 0: there was none
}

// Note takes one request into account; the zero Client has seen none.
func (c *Client) Note(r *results.Record) {
	if c.FirstStart == 0 || r.Start < c.FirstStart {
		c.FirstStart = r.Start
	}
	c.LastEnd = max(c.LastEnd, r.End)
	if r.Warmup {
		c.WarmupEnd = max(c.WarmupEnd, r.End)
	}
	exact := r.Counted != bench.CountNone && r.Counted != bench.CountTokenizer
	switch {
	case c.OutputTokens < 0:
	case r.Class != bench.OK || !exact || r.Retries > 0 || slices.Contains(r.Warnings, bench.WarnRedialled):
		c.OutputTokens = -1 // what the server made of it is not known
	default:
		c.OutputTokens += r.OutputTokens
	}
}

// Server sums what the server said of itself into the event, after Stop: nothing
// if it said nothing. The warnings are what a reader of the cell's numbers must
// know.
func (w *Watcher) Server(ev *results.CellEvent, client Client) {
	if w.server == nil {
		return
	}
	say := func(format string, args ...any) { ev.Warnings = append(ev.Warnings, fmt.Sprintf(format, args...)) }
	for _, e := range w.server.cost.Errors {
		say("telemetry: %s", e)
	}
	log := &w.server.log
	use := results.ServerUse(log.Server(ev.WindowNS, client.WarmupEnd))
	if use.Scrapes == 0 || ev.WindowNS[1] <= ev.WindowNS[0] {
		return
	}
	ev.Server = &use
	if use.PrefixHits > 0 && !client.PrefixCache {
		ev.Warn(results.DoubtCacheHits, fmt.Sprintf("%d prompt tokens came from the server's prefix cache, which should be off", use.PrefixHits))
	}
	if use.Preemptions > 0 {
		say("the server took the KV cache away from requests at work %d times and had to compute it again: it has too little for this many at once", use.Preemptions)
	}
	// Over the whole cell: at its ends the server is idle, so that no request is
	// counted in part.
	if rise, last, ok := log.Rise("output_tokens_total", client.FirstStart, client.LastEnd); ok && client.OutputTokens > 0 && countsDiffer(rise, last, float64(client.OutputTokens)) {
		say("the server counts %.0f output tokens in this cell, its warm-up included, the client %d: somebody else uses it, or the counts differ", rise, client.OutputTokens)
	}
}

// countsDiffer tells whether the server's count differs from the client's by
// more than 2 %, and by more than how finely the server shows it: llama-server
// prints six digits of a counter (last is its value).
func countsDiffer(server, last, client float64) bool {
	d := server - client
	return max(d, -d) > 0.02*client+last*1e-5
}
