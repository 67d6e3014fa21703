package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/nativebench/nativebench/internal/bench"
	"github.com/nativebench/nativebench/internal/plan"
	"github.com/nativebench/nativebench/internal/results"
	"github.com/nativebench/nativebench/internal/runner"
)

// execution runs the cells of a setup into a run directory. It is the only
// writer of the directory.
type execution struct {
	*setup
	stop *stopper
	show *progress

	w        *results.Writer
	manifest *results.Manifest
	costs    *costs
	share    *shares
	attempt  map[string]int // the next one, by cell
	seats    *seats
	vetting  *vetting // nil: not to be done
	command  []string // argv of the process of a cell
	env      []string // its environment; nil: this process's
	failed   int      // cells that failed, or whose requests did or are left out
	left     int      // cells that have not come to their end
	profiles int      // reports of servers that a profiler started
	restless bool     // a GPU was not idle and cool before the last cell, for all the waiting
}

// run measures the cells at the indices todo. Whatever a cell does is its
// result; an error means that results cannot be kept any more.
func (x *execution) run(todo []int) (err error) {
	x.seats = newSeats(x.place)
	for name, at := range x.attached {
		x.seats.taken[name] = &keptSeat{seat: at, model: x.plan.Models[0]} // there is one: checkServers
	}
	x.seats.alone = x.alone()
	x.seats.gpus, x.seats.stopped = x.gpus, x.noteReleased
	x.left = len(todo)
	if err := x.newVetting(); err != nil {
		return err
	}
	defer func() {
		x.vetting.close()
		x.show.clear()
		if stopErr := x.seats.close(); stopErr != nil {
			x.show.note("warning: " + stopErr.Error())
		}
	}()
	x.share = x.newShares(todo, x.costs, time.Now)
	for {
		i, ok := x.share.next()
		if !ok || x.stop.stopped() {
			break
		}
		c := x.cells[i]
		if !x.pause(c.Cooldown) {
			break
		}
		x.show.start(c.ID())
		if err := x.vetModel(c.Model); err != nil {
			return err
		}
		if x.stop.stopped() {
			break
		}
		x.show.start(c.ID()) // anew: making all ready and checking them is not its time
		if err := x.cell(c); err != nil {
			return err
		}
	}
	return x.noteNotRun()
}

// noteNotRun tells of the parts of the run for which there was no time.
func (x *execution) noteNotRun() error {
	var none []results.NotRun
	if x.budget > 0 && !x.stop.stopped() {
		none = x.share.notRun()
	}
	if len(none) == 0 && len(x.manifest.NotRun) == 0 {
		return nil
	}
	for i, n := range none {
		if i > 0 && none[i-1].Reason == n.Reason && none[i-1].Backend == n.Backend && none[i-1].Model == n.Model {
			continue // another repeat
		}
		var repeats []int
		for _, m := range none[i:] {
			if m.Reason == n.Reason && m.Backend == n.Backend && m.Model == n.Model {
				repeats = append(repeats, m.Repeat+1)
			}
		}
		x.show.note(fmt.Sprintf("%s, %s, repeat %s: not run: %s", n.Backend, n.Model, joined(repeats), n.Reason))
	}
	x.manifest.NotRun = none
	return x.w.SetManifest(x.manifest)
}

// pause waits before a cell; false if it was cut short by a stop.
func (x *execution) pause(d time.Duration) bool {
	if d <= 0 {
		return true
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-x.stop.drain:
	case <-x.stop.ctx.Done():
	}
	return false
}

// place says where a backend serves a model, while the run is on.
func (x *execution) place(name, modelKey string) place {
	p := x.setup.place(name, modelKey)
	p.log = filepath.Join(x.w.LogDir(), name+"."+modelKey+".log")
	p.say = x.show.phase
	if x.plan.Profile != "" {
		p.profile = func(command []string) ([]string, error) {
			x.profiles++ // a server may be started again
			return x.underProfiler(fmt.Sprintf("%s.%s.%d", name, modelKey, x.profiles), true, command)
		}
	}
	return p
}

// cell runs one cell and keeps all of it.
func (x *execution) cell(c plan.Cell) error {
	job := x.prompts.job(c, x.attempt[c.ID()])
	job.Profile = x.plan.Profile != ""
	x.attempt[c.ID()]++
	ev := results.CellEvent{Cell: job.ID, Attempt: job.Attempt, State: results.CellStarted, T: bench.Now()}
	if err := x.w.Event(ev); err != nil {
		return err
	}
	b, err := x.known.find(c.Backend)
	if err != nil {
		return err
	}
	x.show.phase("making " + b.name + " ready")
	ctx, cancel := x.stop.either()
	from := time.Now()
	seat, started, died, err := x.seats.get(ctx, b, c.Model)
	if started {
		x.costs.noteStart(served{b.name, c.Model}, time.Since(from))
	}
	stopped := ctx.Err() != nil
	cancel()
	if died != "" {
		x.show.note(fmt.Sprintf("%s: %s; started again", b.name, died))
	}
	if err != nil {
		x.costs.noteCell(c, time.Since(from))
		ev.State, ev.Class, ev.Reason = results.CellFailed, classOf(err), fmt.Sprintf("%s did not become ready: %s", b.name, oneLine(err))
		if stopped {
			ev.State, ev.Class, ev.Reason = results.CellInterrupted, string(bench.Cancelled), "stopped by the user before the backend was ready"
		}
		return x.finish(ev, uncounted{})
	}
	if died != "" {
		ev.Warnings = append(ev.Warnings, "before this cell, "+died+"; it was started again")
	}
	if err := x.vet(b, seat, c.Model); err != nil {
		return err
	}
	if died == "" { // another start is the cell's time: the next cell may need one, too
		from = time.Now()
	}
	err = x.measure(c, job, seat, started, ev.Warnings)
	x.costs.noteCell(c, time.Since(from))
	return err
}

// measure runs the cell's process beside its telemetry.
func (x *execution) measure(c plan.Cell, job runner.Job, seat *keptSeat, started bool, warnings []string) error {
	with, err := json.Marshal(seat.spec)
	if err != nil {
		return err
	}
	spec, err := json.Marshal(childSpec{Backend: c.Backend, With: with, Pprof: x.pprof, Name: attemptName(job)})
	if err != nil {
		return err
	}
	log, err := os.OpenFile(filepath.Join(x.w.LogDir(), "cells.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return fmt.Errorf("the log of the cells: %w", err)
	}
	defer log.Close()
	fmt.Fprintf(log, "--- %s, attempt %d\n", job.ID, job.Attempt)

	if job.Profile {
		warnings = append(warnings, "profiled under "+x.plan.Profile+": not a measurement")
	}
	shared, hot := x.waitIdle()
	warnings = append(warnings, hot...)
	gpus, held, noGPU := x.gpus.watched(seat)

	var watch *runner.Watcher
	var keepErr error // of the manifest
	var not uncounted
	client := runner.Client{PrefixCache: x.plan.PrefixCache}
	warmups, measured := c.Warmup*c.Concurrency, runner.Measured(c) // still to come
	command, ending := x.command, time.Duration(0)
	if job.Profile && seat.pids == nil { // in process
		if command, err = x.underProfiler(attemptName(job), false, command); err != nil {
			return err
		}
		ending = profileEnding
		fmt.Fprintf(log, "%s\n", strings.Join(command, " "))
	}
	drain, release := x.drainFor(seat)
	defer release()
	child := runner.Child{
		Command: command, Env: x.env, Log: log,
		Spec:  runner.Spec{Job: job, Backend: spec},
		Limit: c.CellTimeout + hangGrace + ending, Ending: ending,
		Started: func(pid int) {
			roots := seat.pids
			if roots == nil {
				own := []int{pid}
				roots = func() []int { return own }
			}
			watch = runner.Watch(job.ID, roots, seat.metrics, x.w.Sample, gpus(roots)...)
		},
		Loading: func(share float64) { x.show.phase(fmt.Sprintf("loading the model, %.0f %%", 100*share)) },
		Hold:    func(mark string) { watch.Hold(mark) },
		Info: func(info bench.Info) {
			entry := seat.entry
			entry.Info = info
			entry.Notes = append(slices.Clip(entry.Notes), seat.notes...)
			keepErr = x.noteBackend(entry, started)
			if warmups == 0 {
				watch.Mark()
			}
		},
		Record: func(r *results.Record) error {
			left := &measured
			if r.Warmup {
				left = &warmups
			}
			if *left--; *left == 0 {
				watch.Mark() // the window begins about now, or is over
			}
			if !r.Warmup {
				not.note(r)
			}
			client.Note(r)
			x.show.request(r.Warmup)
			return x.w.Request(r)
		},
	}
	ev, err := runner.Supervise(x.stop.ctx, drain, child)
	ev.Warnings = append(warnings, ev.Warnings...)
	ev.Warn(results.DoubtBusy, shared...)
	if watch != nil {
		keepErr = firstError(keepErr, watch.Stop(&ev, x.machine.Cores, seat.hidden))
		if ev.State != results.CellDone {
			client.OutputTokens = -1 // the server may have made more
		}
		watch.Server(&ev, client)
		x.noteCache(ev.Server, c.Model, seat)
		watch.GPUs(&ev)
	}
	ev.GPUMissing = noGPU
	ev.Warnings = append(ev.Warnings, x.gpus.released(held, ev.GPU)...)
	if gone := seat.ended(not.failed > 0); gone != "" {
		x.serverDied(&ev, seat, gone, not.failed)
	}
	if ev.State == results.CellDone && not.failed > 0 {
		x.show.phase("asking whether the server is still there")
		if gone := seat.silent(x.stop.ctx); gone != nil {
			ev.State, ev.Class = results.CellFailed, classOf(gone)
			ev.Reason = fmt.Sprintf("the server is gone: after the cell it made no token any more; %d of %d requests had been answered; %s", x.show.requests()-not.failed, x.show.planned(), oneLine(gone))
		}
	}
	if err := firstError(err, keepErr); err != nil {
		return err
	}
	return x.finish(ev, not)
}

// attemptName names files about one attempt at a cell.
func attemptName(job runner.Job) string {
	return fmt.Sprintf("%s.a%d", strings.ReplaceAll(job.ID, "/", "."), job.Attempt)
}

// noteCache adds to a server's account of itself what it does not tell: for how
// many tokens its KV cache has room, and what one takes.
func (x *execution) noteCache(said *results.ServerUse, modelKey string, seat *keptSeat) {
	if said == nil {
		return
	}
	if said.KVPoolTokens == 0 {
		said.KVPoolTokens = float64(seat.kvPool)
	}
	if m := x.models[modelKey]; m != nil {
		said.KVTokenBytes = m.shape.KVPerToken * int64(seat.kvElement)
	}
}

// noteReleased writes into the manifest what a server that was stopped left in
// use on the GPUs.
func (x *execution) noteReleased(k *keptSeat, warnings []string) {
	for _, w := range warnings {
		x.show.note("warning: " + w)
	}
	x.manifest.Environment.Warnings = append(x.manifest.Environment.Warnings, warnings...)
	for i := range x.manifest.Backends {
		b := &x.manifest.Backends[i]
		if b.Endpoint == k.entry.Endpoint && b.StartNS == k.entry.StartNS {
			b.GPU = k.held
		}
	}
	if err := x.w.SetManifest(x.manifest); err != nil {
		x.show.note("warning: " + err.Error()) // the next write tells
	}
}

// hangGrace is how long after its own time limit the process of a cell is
// taken to hang.
const hangGrace = 10 * time.Second

// drainFor is closed when the user stops the run and also when the server of
// the seat ends by itself: there is nobody left to ask. release frees it.
func (x *execution) drainFor(seat *keptSeat) (drain <-chan struct{}, release func()) {
	if seat.died == nil {
		return x.stop.drain, func() {}
	}
	both, released := make(chan struct{}), make(chan struct{})
	go func() {
		select {
		case <-x.stop.drain:
			close(both)
		case <-seat.died:
			close(both)
		case <-released:
		}
	}()
	return both, func() { close(released) }
}

// serverDied makes the server's end the reason of the cell's failure, whatever
// the process of the cell made of it: requests that were answered before do not
// make a whole cell.
func (x *execution) serverDied(ev *results.CellEvent, seat *keptSeat, gone string, failedRequests int) {
	said := ""
	if ev.State == results.CellFailed && ev.Class != string(bench.Connect) { // what else, when nobody listens
		said = "; " + ev.Reason
	}
	ev.State, ev.Class = results.CellFailed, string(bench.Crash)
	ev.Reason = fmt.Sprintf("%s; %d of %d requests had been answered%s", gone, x.show.requests()-failedRequests, x.show.planned(), said)
	if seat.lastLog != nil {
		if last := seat.lastLog(20); len(last) > 0 {
			ev.Stderr = last // what the client printed is in its own log
		}
	}
}

// failedShare is which share of a cell's requests may fail, or be left out of the
// numbers for a warning, before the run's exit status tells of it: a cell with
// more has measured something else.
const failedShare = 0.10

func (x *execution) finish(ev results.CellEvent, not uncounted) error {
	ev.T = bench.Now()
	if ev.State == results.CellFailed || float64(not.failed+not.leftOut) > failedShare*float64(x.show.requests()) {
		x.failed++
	}
	if ev.State != results.CellInterrupted {
		x.left--
	}
	x.show.end(ev, not)
	return x.w.Event(ev)
}

// noteBackend adds a backend to the manifest when it is new there: another
// start of a server is, another process with the same engine is not.
func (x *execution) noteBackend(entry results.Backend, started bool) error {
	same := func(have results.Backend) bool {
		a, b := have.Info, entry.Info
		a.Memory, b.Memory, a.Notes, b.Notes = nil, nil, nil, nil // these may differ from cell to cell
		return fmt.Sprint(a) == fmt.Sprint(b)
	}
	for _, have := range x.manifest.Backends {
		if same(have) && !(started && entry.StartNS > 0) {
			return nil
		}
	}
	if entry.Log != "" {
		entry.Log = filepath.Join("logs", filepath.Base(entry.Log))
	}
	x.manifest.Backends = append(x.manifest.Backends, entry)
	return x.w.SetManifest(x.manifest)
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// oneLine joins the lines of an error.
func oneLine(err error) string {
	return strings.Join(strings.FieldsFunc(err.Error(), func(r rune) bool { return r == '\n' }), "; ")
}

// cellProcess is the command line of the process of a cell: this program
// again.
func cellProcess() ([]string, error) { return thisProgram("cell") }

// thisProgram is the command line of a hidden command of this program.
func thisProgram(command string) ([]string, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("this program's own file, which it runs again for every backend, is not known: %w", err)
	}
	return []string{exe, command}, nil
}
