package runner

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/nativebench/nativebench/internal/bench"
	"github.com/nativebench/nativebench/internal/plan"
	"github.com/nativebench/nativebench/internal/results"
)

const (
	// sparePerWorker is how many finished requests of a worker may wait to be
	// written before that worker has to wait for the writer.
	sparePerWorker = 4
	// sameFailures is after how many requests, all failed in one class, a cell
	// is given up: it would only repeat itself.
	sameFailures = 5
	// waitedShare is which share of their time workers may wait for the writer
	// before a reader is told.
	waitedShare = 0.01
	waitedFor   = "waiting for records to be written"
)

// RunCell measures one cell: closed loop, Cell.Concurrency workers, each
// sending its next request when its last one has been answered.
//
// Every worker first sends Cell.Warmup requests, whose records are marked
// Warmup and have negative indices; when the last worker is warm all start
// together and take the next index from one counter until the measured
// requests are used up. Sessions, traces and records are made before that. On
// the clock a worker touches nothing that another one writes; between two of
// its requests it takes an index and hands its record on. One goroutine gives
// the records to sink, one at a time, in the order of their completion; sink
// must not keep the record or anything in it. A slow sink delays only workers
// that are sparePerWorker requests ahead of it, and the event says so.
//
// Garbage is collected once between warm-up and measurement, so that what was
// made before the clock is not collected on it.
//
// With Job.Profile a profiler captures from after that until the last worker has
// ended.
//
// A failed request is recorded and the loop goes on, except when the first
// five requests all failed in one class, and when nobody listened for a measured
// one: the server that was warm is gone, and the cell has failed, though another
// may come in its place. Closing drain lets the requests in
// flight end and sends no more; ctx ends them at their next token. A deadline
// on ctx is the cell's time limit.
//
// The event that is returned has the state, its reason, the measured window
// (first start, last end) and warnings.
func RunCell(ctx context.Context, drain <-chan struct{}, job Job, b bench.Backend, sink func(*results.Record) error) results.CellEvent {
	ev := results.CellEvent{Cell: job.ID, Attempt: job.Attempt, State: results.CellFailed}
	if err := job.check(); err != nil {
		ev.Class, ev.Reason, ev.T = string(bench.Internal), err.Error(), bench.Now()
		return ev
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	c := &cell{job: job, total: int64(Measured(job.Cell)), drain: drain, cancel: cancel, sink: sink, start: make(chan struct{})}
	c.finished = make(chan *slot, job.Cell.Concurrency*sparePerWorker)
	workers := make([]*worker, job.Cell.Concurrency)
	defer func() {
		for _, w := range workers {
			if w != nil {
				w.session.Close()
			}
		}
	}()
	for i := range workers {
		s, err := b.NewSession(job.Limits())
		if err != nil {
			ev.Class, ev.T = string(bench.ClassOf(err)), bench.Now()
			ev.Reason = fmt.Sprintf("no session for worker %d of %d: %v", i+1, len(workers), err)
			return ev
		}
		workers[i] = newWorker(i, s, job.Cell)
	}

	written := make(chan struct{})
	go func() { defer close(written); c.write() }()

	var warm, busy sync.WaitGroup
	warm.Add(len(workers))
	busy.Add(len(workers))
	for _, w := range workers {
		go func() {
			c.warmUp(ctx, w)
			warm.Done()
			<-c.start
			c.measure(ctx, w)
			// Not deferred: while a panic in the backend takes this process
			// down, nobody shall find the cell finished and say so.
			busy.Done()
		}()
	}
	warm.Wait()
	runtime.GC()
	captured, err := capture(ctx, job, b)
	if err != nil {
		c.halt.Store(true) // what cannot be captured need not be done
	}
	passes := passesOf(b)
	close(c.start)
	busy.Wait()
	for i, n := range passesOf(b) {
		passes[i] = n - passes[i]
	}
	ev.Passes, ev.FilledRows = passes[0], passes[1]
	stopErr := captured()
	close(c.finished)
	<-written

	c.judge(ctx, &ev)
	switch {
	case err != nil:
		ev.State, ev.Class, ev.Reason = results.CellFailed, string(bench.ClassOf(err)), fmt.Sprintf("the profiler's capture could not be begun: %v", err)
	case stopErr != nil:
		ev.Warnings = append(ev.Warnings, fmt.Sprintf("the profiler's capture could not be ended: %v", stopErr))
	}
	return ev
}

// passesOf are what a bench.Batched counts; of any other zeros.
func passesOf(b bench.Backend) (n [2]int64) {
	if c, ok := b.(bench.Batched); ok {
		n[0], n[1] = c.Passes()
	}
	return n
}

// captureLimit bounds the end of a capture: a server may write for minutes
// before it answers.
const captureLimit = 15 * time.Minute

// capture begins what a profiler shall see, if the job asks for it; end ends it,
// also when the cell was stopped.
func capture(ctx context.Context, job Job, b bench.Backend) (end func() error, err error) {
	none := func() error { return nil }
	if !job.Profile {
		return none, nil
	}
	p, ok := b.(bench.Profiled)
	if !ok {
		return none, bench.Fail(bench.Internal, "%s cannot tell a profiler where to begin", b.Info().Backend)
	}
	if err := p.StartProfile(ctx); err != nil {
		return none, err
	}
	return func() error {
		limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), captureLimit)
		defer cancel()
		return p.StopProfile(limited)
	}, nil
}

// cell is the state of one RunCell. Workers write next and waited; the writer
// goroutine owns the rest until it has ended.
type cell struct {
	job    Job
	total  int64 // measured requests
	drain  <-chan struct{}
	cancel context.CancelFunc
	sink   func(*results.Record) error

	start    chan struct{}
	finished chan *slot   // holds every slot there is: a send never blocks
	next     atomic.Int64 // measured requests handed out
	waited   atomic.Int64 // nanoseconds that workers waited for the writer
	halt     atomic.Bool  // send no more

	sinkErr  error
	seen     int64       // records, warm-up included
	measured int64       // measured requests that were not cut off
	failed   int64       // of seen
	answered int64       // of measured
	unheard  int64       // of measured: nobody was there to connect to
	gone     string      // of the first measured request for which nobody listened: after how many answers, its error
	class    bench.Class // of the first record
	message  string
	givenUp  bool
	window   [2]int64
	connect  int64 // of the first connection that a request opened, ns
}

type worker struct {
	id      int
	session bench.Session
	free    chan *slot // this worker's slots that are not waiting to be written
	req     bench.Request
}

// slot is the memory of one request, from its preparation until it is written.
type slot struct {
	home  chan *slot
	trace *bench.Trace
	rec   results.Record
	cut   bool // ended by the stop or the time limit of the cell
	gone  bool // nobody listened
}

func newWorker(id int, s bench.Session, c plan.Cell) *worker {
	w := &worker{id: id, session: s, free: make(chan *slot, sparePerWorker)}
	w.req = bench.Request{Sampling: c.Sampling, Stream: c.Mode == plan.Stream}
	for range sparePerWorker {
		w.free <- &slot{home: w.free, trace: bench.NewTrace(c.Sampling.MaxTokens)}
	}
	return w
}

func (c *cell) warmUp(ctx context.Context, w *worker) {
	n := c.job.Cell.Warmup
	for k := range n {
		if c.stopped(ctx) {
			return
		}
		at := w.id*n + k
		c.request(ctx, w, -1-at, c.job.Warmups[at%len(c.job.Warmups)])
	}
}

func (c *cell) measure(ctx context.Context, w *worker) {
	for !c.stopped(ctx) {
		i := c.next.Add(1) - 1
		if i >= c.total {
			return
		}
		c.request(ctx, w, int(i), c.job.Prompts[i])
	}
}

func (c *cell) stopped(ctx context.Context) bool {
	select {
	case <-c.drain:
		return true
	default:
		return c.halt.Load() || ctx.Err() != nil
	}
}

// request sends one request and hands its record to the writer.
func (c *cell) request(ctx context.Context, w *worker, i int, p Prompt) {
	var s *slot
	select {
	case s = <-w.free:
	default:
		since := bench.Now()
		s = <-w.free
		c.waited.Add(bench.Now() - since)
	}
	s.trace.Reset()
	w.req.Prompt, w.req.Message = p.Text, p.Message
	w.req.Sampling.Seed = plan.RequestSeed(c.job.Cell.Seed, i)
	s.rec = results.Record{
		Cell: c.job.ID, Attempt: c.job.Attempt, Index: i, Warmup: i < 0, Worker: w.id,
		Prompt: p.ID, Seed: w.req.Sampling.Seed,
	}
	err := c.send(ctx, w, s.trace)
	s.cut = false
	for n := 0; n < c.job.Cell.Retries && again(err, s.trace); n++ {
		wait := pauseLength(err, n)
		if outlasts(ctx, wait) {
			err = bench.Fail(bench.ClassOf(err), "%w; not sent again: that would be in %v, after the time limit of the cell, %v: raise --cell-timeout", err, wait.Round(time.Millisecond), c.job.Cell.CellTimeout)
			break
		}
		if !c.pause(ctx, wait) {
			err, s.cut = c.cutOff(ctx, err, s.trace), true
			break
		}
		s.rec.Retries, s.rec.Earlier = n+1, append(s.rec.Earlier, bench.ClassOf(err))
		s.trace.Reset()
		err = c.send(ctx, w, s.trace)
	}
	s.cut = s.cut || err != nil && ctx.Err() != nil
	s.gone = errors.Is(err, syscall.ECONNREFUSED)
	if err != nil {
		s.rec.Class, s.rec.Error = bench.ClassOf(err), err.Error()
		if n := s.rec.Retries; n > 0 {
			s.rec.Error += fmt.Sprintf(" (sent %d times)", n+1)
		}
	}
	c.finished <- s
}

// send sends a request once.
func (c *cell) send(ctx context.Context, w *worker, tr *bench.Trace) error {
	if err := w.session.Prepare(&w.req); err != nil {
		return err
	}
	return c.generate(ctx, w, tr)
}

// again tells whether a request that failed may be sent again: nothing was
// computed for it, as far as can be known.
func again(err error, tr *bench.Trace) bool {
	switch bench.ClassOf(err) {
	case bench.Busy:
		return len(tr.Marks) == 0
	case bench.Connect, bench.Reset:
		return len(tr.Marks) == 0 && tr.FirstByte == 0
	}
	return false
}

const (
	firstPause   = 100 * time.Millisecond // before the first retry; doubled each time
	longestPause = 30 * time.Second       // of our own choice
)

// pauseLength is how long to wait before retry n, from 0: as long as the server
// asked, or else longer each time, up to longestPause.
func pauseLength(err error, n int) time.Duration {
	var f *bench.Failure
	if errors.As(err, &f) && f.RetryAfter > 0 {
		return f.RetryAfter
	}
	if n >= 10 {
		return longestPause
	}
	return min(firstPause<<n, longestPause)
}

// outlasts tells whether a pause would end after the cell's time limit.
func outlasts(ctx context.Context, pause time.Duration) bool {
	deadline, limited := ctx.Deadline()
	return limited && time.Until(deadline) < pause
}

// pause waits before a retry; false when the cell is over before.
func (c *cell) pause(ctx context.Context, wait time.Duration) bool {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-c.drain:
	case <-ctx.Done():
	}
	return !c.stopped(ctx)
}

// generate runs the prepared request under its time limit and names the limit
// that ended it, if one did.
func (c *cell) generate(ctx context.Context, w *worker, tr *bench.Trace) error {
	limit := c.job.Cell.RequestTimeout
	rctx := ctx
	if limit > 0 {
		var cancel context.CancelFunc
		rctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	err := w.session.Generate(rctx, tr)
	if err == nil {
		return nil
	}
	switch {
	case ctx.Err() != nil:
		return c.cutOff(ctx, err, tr)
	case rctx.Err() != nil:
		return bench.Fail(bench.Timeout, "no whole answer within the request time limit of %v (%d of at most %d tokens were there): %w",
			limit, arrived(tr), c.job.Cell.Sampling.MaxTokens, err)
	}
	return err
}

// cutOff is the failure of a request that ended with its cell or the run; err
// is how far it had got.
func (c *cell) cutOff(ctx context.Context, err error, tr *bench.Trace) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return bench.Fail(bench.Timeout, "the time limit of the cell, %v, passed with %d tokens of this answer there: %w", c.job.Cell.CellTimeout, arrived(tr), err)
	}
	return bench.Fail(bench.Cancelled, "stopped with the run: %w", err)
}

// arrived counts the tokens (or events, where nothing better is known) that an
// unfinished answer had.
func arrived(tr *bench.Trace) int {
	if n := len(tr.Marks); n > 0 {
		return int(tr.Marks[n-1].N)
	}
	return 0
}

// write gives finished records to the sink until there are no more, and gives
// the cell up when it can only repeat one failure.
func (c *cell) write() {
	for s := range c.finished {
		s.rec.Trace = *s.trace
		s.rec.Text = string(s.trace.Text)
		s.rec.Tokens = s.trace.Tokens
		c.note(s)
		if c.sinkErr == nil {
			if c.sinkErr = c.sink(&s.rec); c.sinkErr != nil {
				c.cancel() // what cannot be kept need not be measured
			}
		}
		s.home <- s
	}
}

func (c *cell) note(s *slot) {
	r := &s.rec
	c.seen++
	if c.seen == 1 {
		c.class, c.message = r.Class, r.Error
	}
	if r.Class != bench.OK {
		c.failed++
	}
	if c.connect == 0 {
		c.connect = r.Connect
	}
	if r.Class != c.class {
		c.class = bench.OK // not all alike
	}
	if c.class != bench.OK && !s.cut && c.failed == sameFailures && c.seen == sameFailures {
		c.givenUp = true
		c.halt.Store(true)
	}
	if r.Warmup {
		return
	}
	if !s.cut {
		c.measured++
	}
	if r.Class == bench.OK {
		c.answered++
	}
	if s.gone && c.gone == "" {
		c.gone = fmt.Sprintf("%d of %d requests had been answered: %s", c.answered, c.total, r.Error)
		c.halt.Store(true)
	}
	if r.Class == bench.Connect {
		if c.unheard++; c.unheard == c.measured {
			c.message = r.Error
		}
	}
	if r.Start > 0 && (c.window[0] == 0 || r.Start < c.window[0]) {
		c.window[0] = r.Start
	}
	c.window[1] = max(c.window[1], r.End)
}

// judge says how the cell ended.
func (c *cell) judge(ctx context.Context, ev *results.CellEvent) {
	ev.T = bench.Now()
	if c.window[0] > 0 && c.window[1] > 0 {
		ev.WindowNS = c.window
	}
	ev.FirstConnNS = c.connect
	worked := (c.window[1] - c.window[0]) * int64(c.job.Cell.Concurrency)
	if share := float64(c.waited.Load()) / float64(max(worked, 1)); share >= waitedShare {
		ev.Warnings = append(ev.Warnings, fmt.Sprintf("workers spent %.0f %% of the time %s: throughput is understated", 100*share, waitedFor))
	}
	progress := fmt.Sprintf("%d of %d requests were measured", c.measured, c.total)
	switch {
	case c.sinkErr != nil:
		ev.Class, ev.Reason = string(bench.Internal), fmt.Sprintf("records could not be kept: %v; %s", c.sinkErr, progress)
	case c.givenUp:
		ev.Class, ev.Reason = string(c.class), fmt.Sprintf("given up: the first %d requests all failed alike: %s", sameFailures, c.message)
	case c.gone != "":
		ev.Class, ev.Reason = string(bench.Connect), "the server is gone: nobody listened any more when "+c.gone
	case c.measured >= c.total && c.total > 0 && c.unheard == c.measured:
		// The server went during the warm-up: nothing was measured, a resumed run
		// is to do it again.
		ev.Class, ev.Reason = string(bench.Connect), fmt.Sprintf("none of %d requests found anybody to connect to: %s", c.measured, c.message)
	case c.measured >= c.total:
		ev.State = results.CellDone
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		ev.Class, ev.Reason = string(bench.Timeout), fmt.Sprintf("the time limit of the cell, %v, passed: %s", c.job.Cell.CellTimeout.Round(time.Millisecond), progress)
	default:
		ev.State, ev.Class, ev.Reason = results.CellInterrupted, string(bench.Cancelled), "stopped by the user: "+progress
	}
}
