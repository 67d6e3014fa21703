package main

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/nativebench/nativebench/internal/plan"
	"github.com/nativebench/nativebench/internal/results"
)

// shares chooses the cells of a run for which there is time: as many loads, what
// is worth most first, as can be measured of all backends in all repeats, starts
// of servers included. It chooses anew before every cell, by what starts and
// cells have taken until then. Where not even one load fits, the last repeats
// are left out first, down to two, then the backends that take longest.
type shares struct {
	budget time.Duration // of the run; 0: no limit
	end    time.Time     // of it
	now    func() time.Time
	cost   *costs

	cells  []plan.Cell          // of the run, those that are over included
	left   []int                // indices of those that are to run, in their order
	loads  [][]int              // indices of each load's cells; the load that is worth most first
	turns  map[int]int          // by index of a cell to run: the turn it belongs to, in the order of the run
	group  func(plan.Cell) turn // what a server is started for
	starts func(plan.Cell) bool // whether one is

	at       int             // turn that runs
	inTurn   bool            // one server is up at a time
	up       map[turn]bool   // what servers are up for
	promised []int           // cells of the load and turn that run: others of it have begun
	wanted   map[served]bool // what there is time for, as the last choice was made
	ran      map[turn]bool
}

// turn is what one backend does in one repeat for one model.
type turn struct {
	served
	repeat int
}

func turnOf(c plan.Cell) turn { return turn{served{c.Backend, c.Model}, c.Repeat} }

// spare is the part of the time that is left that is kept for what takes longer
// than foreseen: it goes to loads that have begun, in all repeats of all backends.
const spare = 10 // a tenth

// newShares is for the cells at the indices todo, in that order. It learns from
// those that were run before.
func (s *setup) newShares(todo []int, cost *costs, now func() time.Time) *shares {
	sh := &shares{
		budget: s.budget, end: now().Add(s.budget), now: now, cost: cost,
		cells: s.cells, left: slices.Clone(todo), turns: map[int]int{}, inTurn: s.serverInTurn(), up: map[turn]bool{}, ran: map[turn]bool{},
	}
	var order []turn // with servers in turn; else a repeat is one
	for _, i := range todo {
		t := turn{repeat: s.cells[i].Repeat}
		if sh.inTurn {
			t = turnOf(s.cells[i])
		}
		if !slices.Contains(order, t) {
			order = append(order, t)
		}
		sh.turns[i] = slices.Index(order, t)
	}
	again := sh.inTurn && len(s.plan.Backends) > 1
	sh.group = func(c plan.Cell) turn {
		t := turnOf(c)
		if !again {
			t.repeat = 0
		}
		return t
	}
	sh.starts = func(c plan.Cell) bool { return s.startsServer(c.Backend) }
	if s.resumed != nil {
		sh.learn(s.resumed)
	}
	byWorth := make([]int, len(s.cells))
	for i := range byWorth {
		byWorth[i] = i
	}
	slices.SortStableFunc(byWorth, func(a, b int) int { return worth(s.cells[a]) - worth(s.cells[b]) })
	at := map[string]int{}
	for _, i := range byWorth {
		name := s.cells[i].Load()
		if _, known := at[name]; !known {
			at[name] = len(sh.loads)
			sh.loads = append(sh.loads, nil)
		}
		sh.loads[at[name]] = append(sh.loads[at[name]], i)
	}
	return sh
}

// next is the index of the cell to run now; not ok when none is left, or none for
// which there is time.
func (sh *shares) next() (i int, ok bool) {
	if len(sh.left) == 0 {
		return 0, false
	}
	i = sh.left[0]
	if sh.budget > 0 {
		if i, ok = sh.choose(); !ok {
			return 0, false
		}
	}
	sh.left = slices.DeleteFunc(sh.left, func(x int) bool { return x == i })
	g := sh.group(sh.cells[i])
	if sh.inTurn && !sh.up[g] {
		clear(sh.up)
	}
	sh.at, sh.up[g], sh.ran[turnOf(sh.cells[i])] = sh.turns[i], true, true
	return i, true
}

func (sh *shares) choose() (int, bool) {
	rest := sh.end.Sub(sh.now())
	if rest <= 0 {
		return 0, false
	}
	if len(sh.promised) > 0 {
		i := sh.promised[0]
		sh.promised = sh.promised[1:]
		return i, true
	}
	for _, from := range []int{sh.at, 0} { // at the end, once more from the beginning
		var ahead []int
		for _, i := range sh.left {
			if sh.turns[i] >= from {
				ahead = append(ahead, i)
			}
		}
		chosen := sh.fitting(ahead, rest)
		sh.wanted = map[served]bool{}
		for i := range chosen {
			sh.wanted[turnOf(sh.cells[i]).served] = true
		}
		for k, i := range ahead {
			if !chosen[i] {
				continue
			}
			for _, j := range ahead[k+1:] {
				if chosen[j] && sh.turns[j] == sh.turns[i] && sh.cells[j].Load() == sh.cells[i].Load() {
					sh.promised = append(sh.promised, j)
				}
			}
			return i, true
		}
	}
	return 0, false
}

// foresees says that there is time for a cell of w, as far as can be told.
func (sh *shares) foresees(w served) bool { return sh.budget == 0 || sh.wanted[w] }

// isUp notes a server that was started before its first cell: that has no start
// in it any more.
func (sh *shares) isUp(w served) {
	for _, c := range sh.cells {
		if turnOf(c).served == w && sh.starts(c) {
			sh.up[sh.group(c)] = true
			return
		}
	}
}

// fitting are the cells of those ahead for which there is time.
func (sh *shares) fitting(ahead []int, rest time.Duration) map[int]bool {
	isLeft, isAhead := map[int]bool{}, map[int]bool{}
	for _, i := range sh.left {
		isLeft[i] = true
	}
	for _, i := range ahead {
		isAhead[i] = true
	}
	cheap := sh.byPrice(ahead)
	all, measured := 0, len(sh.left) < len(sh.cells)
	for _, c := range sh.cells {
		all = max(all, c.Repeat+1)
	}
	chosen, started := map[int]bool{}, map[turn]bool{}
	var sum time.Duration
	// level chooses loads of the n backends that take least, in so many repeats.
	level := func(n, repeats int, fresh bool) {
		for _, load := range sh.loads {
			var cells []int
			begun, whole := false, true
			for _, i := range load {
				c := sh.cells[i]
				begun = begun || !isLeft[i]
				if c.Repeat >= repeats || !slices.Contains(cheap[:n], c.Backend) {
					continue
				}
				whole = whole && (isAhead[i] || !isLeft[i])
				if isAhead[i] && !chosen[i] {
					cells = append(cells, i)
				}
			}
			if !whole || !begun && !fresh {
				continue
			}
			price, starts := time.Duration(0), map[turn]bool{}
			for _, i := range cells {
				price += sh.cost.cell(sh.cells[i])
				if g := sh.group(sh.cells[i]); sh.starts(sh.cells[i]) && !sh.up[g] && !started[g] && !starts[g] {
					price, starts[g] = price+sh.cost.start(g.served), true
				}
			}
			limit := rest
			if first := len(chosen) == 0 && (begun || !measured); !first && (!begun || n < len(cheap) || repeats < all) {
				limit -= rest / spare // else there is nobody to keep it for
			}
			if sum+price <= limit {
				sum += price
				maps.Copy(started, starts)
				for _, i := range cells {
					chosen[i] = true
				}
			}
		}
	}
	// New loads are chosen of the most backends and repeats of which any fit, and
	// what has begun goes on with fewer, too. A load of one backend or in one repeat
	// tells little: that is for when there is time for nothing else.
	enough := min(2, all)
	for n := len(cheap); n > 0; n-- {
		for r := all; r >= enough; r-- {
			level(n, r, len(chosen) == 0 && (n >= min(2, len(cheap)) || !measured))
		}
	}
	for n := len(cheap); n > 0 && len(chosen) == 0; n-- {
		level(n, 1, !measured)
	}
	return chosen
}

// byPrice are the backends, those first whose starts and shortest cells ahead
// take least.
func (sh *shares) byPrice(ahead []int) []string {
	var names []string
	price := map[string]time.Duration{}
	for _, c := range sh.cells {
		if !slices.Contains(names, c.Backend) {
			names = append(names, c.Backend)
		}
	}
	for _, name := range names {
		for _, i := range ahead {
			if sh.cells[i].Backend != name {
				continue
			}
			if p := sh.least(i); price[name] == 0 || p < price[name] {
				price[name] = p
			}
		}
	}
	slices.SortStableFunc(names, func(a, b string) int { return cmp.Compare(price[a], price[b]) })
	return names
}

// least is a cell with the start of its server.
func (sh *shares) least(i int) time.Duration {
	c := sh.cells[i]
	d := sh.cost.cell(c)
	if g := sh.group(c); sh.starts(c) && !sh.up[g] {
		d += sh.cost.start(g.served)
	}
	return d
}

// notRun are the parts of the run that did not begin, with the reason.
func (sh *shares) notRun() (list []results.NotRun) {
	parts := map[served][]turn{}
	least := map[served]int{} // the cell that takes least
	var order []served
	for _, i := range sh.left {
		t := turnOf(sh.cells[i])
		if sh.ran[t] {
			continue
		}
		if parts[t.served] == nil {
			order, least[t.served] = append(order, t.served), i
		}
		if !slices.Contains(parts[t.served], t) {
			parts[t.served] = append(parts[t.served], t)
		}
		if sh.cost.cell(sh.cells[i]) < sh.cost.cell(sh.cells[least[t.served]]) {
			least[t.served] = i
		}
	}
	rest := max(0, sh.end.Sub(sh.now()))
	for _, w := range order {
		c := sh.cells[least[w]]
		cell := sh.cost.cell(c)
		each := "its shortest cell takes about " + short(cell)
		if sh.starts(c) {
			each = fmt.Sprintf("its server takes about %s to start, its shortest cell %s", short(sh.cost.start(w)), short(cell))
		}
		one, both, kept := sh.least(least[w]), time.Duration(0), ""
		repeats := parts[w][:min(2, len(parts[w]))] // fewer of several tell little
		for k, t := range repeats {
			c.Repeat = t.repeat
			both += cell
			if g := sh.group(c); sh.starts(c) && !sh.up[g] && (k == 0 || g.repeat > 0) {
				both += sh.cost.start(w)
			}
		}
		if one <= rest && len(repeats) > 1 {
			each += fmt.Sprintf(", two repeats %s", short(both))
		}
		if both <= rest && both > rest-rest/spare {
			kept = fmt.Sprintf(", %s of it kept for what takes longer than foreseen", short(rest/spare))
		}
		for _, t := range parts[w] {
			list = append(list, results.NotRun{Backend: w.name, Model: w.model, Repeat: t.repeat, Reason: fmt.Sprintf("no time: %s, and %s of the time budget of %s were left%s", each, short(rest), short(sh.budget), kept)})
		}
	}
	return list
}

// costs is what starts of servers and cells take: what they took, else a guess.
type costs struct {
	guessStart func(served) time.Duration
	guessCell  func(plan.Cell) time.Duration // without its cooldown

	starts         map[served]time.Duration // without a model: of the last one
	cells          map[string]time.Duration // by load and backend
	took, foreseen map[served]time.Duration // of all its cells
}

func newCosts(start func(served) time.Duration, cell func(plan.Cell) time.Duration) *costs {
	return &costs{guessStart: start, guessCell: cell, starts: map[served]time.Duration{}, cells: map[string]time.Duration{}, took: map[served]time.Duration{}, foreseen: map[served]time.Duration{}}
}

func (k *costs) start(w served) time.Duration {
	for _, w := range []served{w, {w.name, ""}} {
		if d, known := k.starts[w]; known {
			return d
		}
	}
	return k.guessStart(w)
}

// cell is what a cell takes: as long as in another repeat, else as much longer
// than foreseen as others of the backend.
func (k *costs) cell(c plan.Cell) time.Duration {
	d, known := k.cells[c.Load()+"/"+c.Backend]
	if !known {
		d = k.guessCell(c)
		if w := (served{c.Backend, c.Model}); k.foreseen[w] > 0 {
			d = time.Duration(float64(d) * float64(k.took[w]) / float64(k.foreseen[w]))
		}
	}
	return d + c.Cooldown
}

func (k *costs) noteStart(w served, took time.Duration) {
	k.starts[w], k.starts[served{w.name, ""}] = took, took
}

func (k *costs) noteCell(c plan.Cell, took time.Duration) {
	w := served{c.Backend, c.Model}
	k.cells[c.Load()+"/"+c.Backend] = took
	k.took[w] += took
	k.foreseen[w] += k.guessCell(c)
}

// learnStarts takes from a run what starts of servers took.
func (k *costs) learnStarts(run *results.Run) {
	for _, b := range run.Manifest.Backends {
		model := b.Model
		if len(run.Manifest.Models) == 1 {
			model = run.Manifest.Models[0].Key // a server may name it otherwise
		}
		if b.StartNS > 0 {
			k.noteStart(served{b.Backend, model}, time.Duration(b.StartNS))
		}
	}
}

// learn takes from what a run has what its starts and cells took. The first cell
// of a server has its start in it.
func (sh *shares) learn(run *results.Run) {
	sh.cost.learnStarts(run)
	byID := map[string]plan.Cell{}
	for _, c := range sh.cells {
		byID[c.ID()] = c
	}
	began, started := map[string]int64{}, map[turn]bool{}
	for _, e := range run.Events {
		c, known := byID[e.Cell]
		if e.State == results.CellStarted {
			began[e.Cell] = e.T
		}
		if !known || e.State != results.CellDone || began[e.Cell] == 0 {
			continue
		}
		took := time.Duration(e.T - began[e.Cell])
		if g := sh.group(c); sh.starts(c) && !started[g] {
			took, started[g] = took-sh.cost.start(g.served), true
		}
		if took > 0 {
			sh.cost.noteCell(c, took)
		}
	}
}

// newCosts is what is foreseen of a setup that is prepared.
func (s *setup) newCosts() *costs {
	models := map[string]*model{}
	maps.Copy(models, s.models)
	of := func(key string) *model {
		if m := models[key]; m != nil {
			return m
		}
		m, err := s.foreseen(key) // of an endpoint's, by the table
		if err != nil {
			m = &model{}
		}
		models[key] = m
		return m
	}
	seconds := func(d float64) time.Duration { return time.Duration(d * float64(time.Second)) }
	return newCosts(func(w served) time.Duration {
		b, err := s.known.find(w.name)
		if err != nil {
			return 0
		}
		return seconds(s.guessStart(b, of(w.model)))
	}, func(c plan.Cell) time.Duration { return seconds(s.guessCell(c, of(c.Model))) })
}

// startsKey is for the runs from which a compare within bench-all learns what
// starts of servers take.
type startsKey struct{}

func withStarts(ctx context.Context, runs []*results.Run) context.Context {
	return context.WithValue(ctx, startsKey{}, runs)
}

// inWhole says that a compare is one within bench-all.
func inWhole(ctx context.Context) bool {
	_, is := ctx.Value(startsKey{}).([]*results.Run)
	return is
}

func startsOf(ctx context.Context) []*results.Run {
	runs, _ := ctx.Value(startsKey{}).([]*results.Run)
	return runs
}
