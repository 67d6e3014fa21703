package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nativebench/nativebench/internal/plan"
	"github.com/nativebench/nativebench/internal/results"
)

// timed is a run on a clock of its own: what starts and cells take is given.
type timed struct {
	*setup
	start, cell map[string]time.Duration // by backend
	late        map[string]time.Duration // how much longer a cell takes in the last repeat
	guess       float64                  // how much of that is foreseen

	now    time.Time
	costs  *costs
	shares *shares
	starts []string       // backend and repeat, in order
	cells  map[string]int // by backend, repeat and load: how often it ran
}

const sec = time.Second

// newTimed has 2 repeats of 4 tasks, streams at 1 and 4 requests at once.
func newTimed(t *testing.T, gpu bool, budget time.Duration, backends ...string) *timed {
	t.Helper()
	device := filepath.Join(t.TempDir(), "nvidia0")
	if gpu {
		if err := os.WriteFile(device, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	pretendGPU(t, device)
	s := &setup{known: testRegistry(), plan: plan.Default(), budget: budget}
	s.engine = s.plan.Engine
	s.plan.Backends, s.plan.Repeats = backends, 2
	s.plan.Modes, s.plan.Concurrency = []plan.Mode{plan.Stream}, []int{1, 4}
	var err error
	if s.cells, err = s.plan.Cells(); err != nil {
		t.Fatal(err)
	}
	// As they were on a machine with an H100.
	r := &timed{
		setup: s, guess: 1, now: time.Unix(0, 0), cells: map[string]int{},
		start: map[string]time.Duration{"llama-server": 1100 * time.Millisecond, "transformers": 24 * sec},
		cell:  map[string]time.Duration{"native": 1500 * time.Millisecond, "llama-server": 1200 * time.Millisecond, "transformers": 19 * sec},
	}
	return r
}

// run runs the cells that are chosen of those that are not done.
func (r *timed) run() {
	foreseen := func(d time.Duration) time.Duration { return time.Duration(float64(d) * r.guess) }
	if r.costs == nil {
		r.costs = newCosts(func(w served) time.Duration { return foreseen(r.start[w.name]) }, func(c plan.Cell) time.Duration { return foreseen(r.cell[c.Backend]) })
	}
	r.shares = r.newShares(r.order(r.todo()), r.costs, func() time.Time { return r.now })
	up := map[string]bool{}
	for {
		i, ok := r.shares.next()
		if !ok {
			return
		}
		c := r.setup.cells[i]
		if r.startsServer(c.Backend) && !up[c.Backend] {
			r.starts = append(r.starts, fmt.Sprintf("%s/%d", c.Backend, c.Repeat))
			r.now = r.now.Add(r.start[c.Backend])
			r.costs.noteStart(served{c.Backend, c.Model}, r.start[c.Backend])
		}
		if r.serverInTurn() {
			clear(up)
		}
		up[c.Backend] = true
		took := r.cell[c.Backend]
		if c.Repeat > 0 {
			took += r.late[c.Backend]
		}
		r.now = r.now.Add(took)
		r.costs.noteCell(c, took)
		r.cells[fmt.Sprintf("%s/%d %s", c.Backend, c.Repeat, c.Load())]++
	}
}

// loads are those that a backend was measured under in a repeat, in the order of
// the plan.
func (r *timed) loads(backend string, repeat int) (list []string) {
	for _, c := range r.setup.cells {
		if c.Backend == backend && c.Repeat == repeat && r.cells[fmt.Sprintf("%s/%d %s", backend, repeat, c.Load())] > 0 {
			list = append(list, c.Load())
		}
	}
	return list
}

// counts are how many loads each backend was measured under, by repeat.
func (r *timed) counts() string {
	var words []string
	for _, b := range r.plan.Backends {
		words = append(words, fmt.Sprintf("%s %d+%d", b, len(r.loads(b, 0)), len(r.loads(b, 1))))
	}
	return strings.Join(words, ", ")
}

var three = []string{"native", "llama-server", "transformers"}

// What is measured is measured of all backends in all repeats, as far as there
// is time; what is left of it goes to loads that fewer backends can do.
func TestTimeGoesToWhatCanBeCompared(t *testing.T) {
	each := []string{"llama-server/0", "transformers/0", "llama-server/1", "transformers/1"}
	for _, tc := range []struct {
		name     string
		gpu      bool
		budget   time.Duration
		guess    float64
		backends []string
		counts   string
		starts   []string
	}{
		{"one load of all", true, 102 * sec, 1, three, "native 1+1, llama-server 1+1, transformers 1+1", each},
		{"two loads of all", true, 155 * sec, 1, three, "native 4+4, llama-server 4+4, transformers 2+2", append(slices.Clone(each), "llama-server/0")},
		{"all", true, 1000 * sec, 1, three, "native 8+8, llama-server 8+8, transformers 8+8", each},
		{"the slow one not twice", true, 80 * sec, 1, three, "native 8+8, llama-server 8+8, transformers 0+0", each[:1]},
		{"not half of the others either", true, 30 * sec, 1, three, "native 4+4, llama-server 4+4, transformers 0+0", each[:1]},
		{"slower than foreseen", true, 102 * sec, 0.3, three, "native 8+8, llama-server 8+8, transformers 1+0", []string{"llama-server/0", "transformers/0", "llama-server/1", "llama-server/0"}},
		{"no time for two", true, 4 * sec, 1, three, "native 1+1, llama-server 0+0, transformers 0+0", nil},
		{"no time for two repeats", true, 2 * sec, 1, three, "native 1+0, llama-server 0+0, transformers 0+0", nil},
		{"nothing is kept from the first load", false, 1600 * time.Millisecond, 1, three[:1], "native 1+0", nil},
		{"nor from its other repeats", true, 3200 * time.Millisecond, 1, three, "native 1+1, llama-server 0+0, transformers 0+0", nil},
		{"no time", true, 1 * sec, 1, three, "native 0+0, llama-server 0+0, transformers 0+0", nil},
		{"one backend, started once", true, 70 * sec, 1, three[2:], "transformers 1+1", each[1:2]},
		{"beside each other", false, 102 * sec, 1, three, "native 7+7, llama-server 7+7, transformers 1+1", each[:2]},
		{"beside each other, slower than foreseen", false, 60 * sec, 0.3, three, "native 2+2, llama-server 2+2, transformers 1+0", each[:2]},
	} {
		r := newTimed(t, tc.gpu, tc.budget, tc.backends...)
		r.guess = tc.guess
		r.run()
		if got := r.counts(); got != tc.counts || !slices.Equal(r.starts, tc.starts) {
			t.Errorf("%s: loads by repeat: %s, want %s; starts %v, want %v", tc.name, got, tc.counts, r.starts, tc.starts)
		}
		if took := r.now.Sub(time.Unix(0, 0)); took > tc.budget {
			t.Errorf("%s: it took %s of %s", tc.name, took, tc.budget)
		}
		for cell, n := range r.cells {
			if n > 1 {
				t.Errorf("%s: %s ran %d times", tc.name, cell, n)
			}
		}
		fastest := r.loads(tc.backends[0], 0)
		for _, b := range tc.backends {
			for repeat := range 2 {
				for _, load := range r.loads(b, repeat) {
					if !slices.Contains(fastest, load) {
						t.Errorf("%s: %s was measured of %s alone", tc.name, load, b)
					}
				}
			}
		}
	}
}

// A server that takes longer in the last repeat does not take the time of the
// others' last cells, and what did not run has its reason.
func TestTimeLeftForTheLastRepeat(t *testing.T) {
	r := newTimed(t, true, 102*sec, three...)
	r.late = map[string]time.Duration{"transformers": 6 * sec}
	r.run()
	if got := r.counts(); got != "native 1+1, llama-server 1+1, transformers 1+1" || len(r.shares.notRun()) > 0 {
		t.Errorf("loads by repeat: %s; not run: %v", got, r.shares.notRun())
	}
	r = newTimed(t, true, 80*sec, three...)
	r.run()
	want := results.NotRun{Backend: "transformers", Model: "gpt2", Reason: "no time: its server takes about 24s to start, its shortest cell 19s, and 36s of the time budget of 1m20s were left"}
	second := want
	second.Repeat = 1
	if got := r.shares.notRun(); !slices.Equal(got, []results.NotRun{want, second}) {
		t.Errorf("not run: %+v", got)
	}
}

// The reason names what decided: two repeats, or what is kept back.
func TestWhyThereIsNoTime(t *testing.T) {
	for _, tc := range []struct {
		budget time.Duration
		says   string
	}{
		{4 * sec, "its shortest cell takes about 1.5s, and 1.0s of the time budget of 4.0s were left"},
		{5 * sec, "its shortest cell takes about 1.5s, two repeats 3.0s, and 2.0s of the time budget of 5.0s were left"},
		{6200 * time.Millisecond, "its shortest cell takes about 1.5s, two repeats 3.0s, and 3.2s of the time budget of 6.2s were left, 0.3s of it kept for what takes longer than foreseen"},
		{6400 * time.Millisecond, ""},
	} {
		r := newTimed(t, false, tc.budget, "native")
		r.plan.Models, r.plan.Tasks, r.plan.Concurrency = []string{"gpt2", "phi-2"}, []string{"chat"}, []int{1}
		var err error
		if r.setup.cells, err = r.plan.Cells(); err != nil {
			t.Fatal(err)
		}
		r.run()
		var want []results.NotRun
		for repeat := range 2 {
			if tc.says != "" {
				want = append(want, results.NotRun{Backend: "native", Model: "phi-2", Repeat: repeat, Reason: "no time: " + tc.says})
			}
		}
		if got := r.shares.notRun(); !slices.Equal(got, want) {
			t.Errorf("of %s: %+v", tc.budget, got)
		}
	}
}

// What starts and cells took is known when a run is taken up again, and what
// they took in another run of the same bench-all.
func TestTimeIsForeseenByWhatWasMeasured(t *testing.T) {
	r := newTimed(t, true, time.Hour, three...)
	run := &results.Run{Manifest: results.Manifest{Models: []results.Model{{Key: "gpt2"}}}}
	run.Manifest.Backends = []results.Backend{{StartNS: int64(20 * sec)}}
	run.Manifest.Backends[0].Info.Backend, run.Manifest.Backends[0].Model = "transformers", "/weights/of/gpt2"
	var first, second, other plan.Cell
	at := int64(1)
	for _, c := range r.setup.cells {
		run.Manifest.Cells = append(run.Manifest.Cells, results.Cell{ID: c.ID(), Backend: c.Backend, Model: c.Model})
		if c.Backend != "transformers" || c.Repeat > 0 || c.Concurrency > 1 {
			continue
		}
		took := 10 * sec
		switch {
		case first.Task == "":
			first, took = c, 32*sec // with the start of the server
		case second.Task == "":
			second = c
		default:
			other = c
			continue
		}
		run.Events = append(run.Events, results.CellEvent{Cell: c.ID(), State: results.CellStarted, T: at}, results.CellEvent{Cell: c.ID(), State: results.CellDone, T: at + int64(took)})
		at += int64(took)
	}
	r.resumed = run
	r.costs = newCosts(func(served) time.Duration { return time.Minute }, func(plan.Cell) time.Duration { return 4 * sec })
	r.newShares(r.todo(), r.costs, func() time.Time { return r.now })
	for _, tc := range []struct {
		what string
		got  time.Duration
		want time.Duration
	}{
		{"the start", r.costs.start(served{"transformers", "gpt2"}), 20 * sec},
		{"the start with another model", r.costs.start(served{"transformers", "phi-2"}), 20 * sec},
		{"the start of another", r.costs.start(served{"llama-server", "gpt2"}), time.Minute},
		{"the first cell", r.costs.cell(first), 12 * sec},
		{"the second cell", r.costs.cell(second), 10 * sec},
		{"a cell that did not run yet", r.costs.cell(other), 11 * sec},
	} {
		if tc.got != tc.want {
			t.Errorf("%s: %s, want %s", tc.what, tc.got, tc.want)
		}
	}
}

// Runs of bench-all get what one load of all backends takes before any gets more.
func TestRunsShareTime(t *testing.T) {
	w := &wholeBench{Runs: []wholeRun{{Name: "a", Seconds: 3600, Least: 90}, {Name: "b", Seconds: 100, Least: 63}, {Name: "c", Seconds: 300, Least: 45}}}
	for _, tc := range []struct {
		rest time.Duration
		want [3]time.Duration // if each takes its share
	}{
		{620 * sec, [3]time.Duration{460 * sec, 80 * sec, 80 * sec}},
		{180 * sec, [3]time.Duration{100 * sec, 70 * sec, 10 * sec}},
	} {
		rest := tc.rest
		for i, want := range tc.want {
			got := w.share(t.TempDir(), i, rest)
			if got.Round(time.Millisecond) != want {
				t.Errorf("of %s, %s gets %s, want %s", tc.rest, w.Runs[i].Name, got, want)
			}
			rest -= got
		}
	}
}

// Time that the last run leaves goes to runs that have cells left, if one of these
// has time.
func TestTimeLeftGoesBackToRuns(t *testing.T) {
	for _, tc := range []struct {
		budget time.Duration
		last   int // status of c
		want   string
	}{
		// a could do more than its share; b takes too long; c is complete at once.
		{100 * sec, exitOK, "a b c a+"},
		{35 * sec, exitOK, "a b c"}, // a's cell has no time any more
		{100 * sec, exitCellsFailed, "a b c a+"},
		{100 * sec, exitInterrupted, "a b c"},
		{0, exitOK, "a b c"},
	} {
		dir := t.TempDir()
		w := &wholeBench{Runs: []wholeRun{{Name: "a", Seconds: 100, Least: 10}, {Name: "b", Seconds: 100, Least: 1000}, {Name: "c", Seconds: 100, Least: 10}}}
		now := time.Unix(0, 0)
		var order []string
		err := w.inTurn(dir, tc.budget, func() time.Time { return now }, func(i int, budget time.Duration, again bool) (int, error) {
			name := w.Runs[i].Name
			if (budget == 0) != (tc.budget == 0) || budget > max(0, tc.budget-now.Sub(time.Unix(0, 0))) {
				t.Errorf("of %s: %s gets %s after %s", tc.budget, name, budget, now.Sub(time.Unix(0, 0)))
			}
			if again {
				order = append(order, name+"+")
				return exitOK, nil
			}
			order = append(order, name)
			now = now.Add(10 * sec)
			m := &results.Manifest{Schema: results.Schema, Cells: []results.Cell{{ID: "1"}, {ID: "2"}}}
			rw, err := results.Create(w.Runs[i].dir(dir), m)
			if err != nil {
				return exitError, err
			}
			for k, c := range m.Cells {
				if name == "b" || name == "a" && k > 0 || name == "c" && tc.last != exitOK && k > 0 {
					break
				}
				for at, state := range []results.CellState{results.CellStarted, results.CellDone} {
					if err := rw.Event(results.CellEvent{Cell: c.ID, Attempt: 1, State: state, T: int64(at+1) * int64(6*sec)}); err != nil {
						return exitError, err
					}
				}
			}
			status := exitOK
			if name == "c" {
				status = tc.last
			}
			return status, rw.Close()
		})
		if got := strings.Join(order, " "); err != nil || got != tc.want {
			t.Errorf("of %s, c ends with %d: %s, want %s; %v", tc.budget, tc.last, got, tc.want, err)
		}
	}
}

// Starts of servers are foreseen apart: libraries and compilers take longest.
func TestStartsAreForeseen(t *testing.T) {
	pretendGPU(t, filepath.Join(t.TempDir(), "no such device"))
	_, s, m := planner("native", "llama-server", "transformers", "vllm")
	var err error
	if s.cells, err = s.plan.Cells(); err != nil {
		t.Fatal(err)
	}
	within := func(name string, least, most float64) {
		t.Helper()
		b, err := s.known.find(name)
		if err != nil {
			t.Fatal(err)
		}
		if got := s.guessStart(b, m); got < least || got > most {
			t.Errorf("%s takes %.1f s to start, not %.0f to %.0f", name, got, least, most)
		}
	}
	within("llama-server", 1, 5)
	within("transformers", 25, 60)
	within("vllm", 110, 135)
	sum, least := s.guess(m)
	if least < 3*30 || least >= sum {
		t.Errorf("one load takes %.0f s of %.0f", least, sum)
	}
}
