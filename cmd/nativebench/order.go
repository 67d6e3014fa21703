package main

import (
	"slices"
	"time"

	"github.com/nativebench/nativebench/internal/plan"
)

// alone says that one server runs at a time: others would share a GPU with it.
func (s *setup) alone() bool {
	return (hasGPU() || len(s.gpus.used) > 0) && s.engine.GPULayers != 0
}

// serverInTurn says that the cells of a repeat are run backend by backend:
// where one server runs at a time and some are started here, each would be
// started again for every load otherwise.
func (s *setup) serverInTurn() bool {
	return s.alone() && slices.ContainsFunc(s.holders(), func(b backend) bool { return b.server != nil })
}

// order puts indices of cells into the order in which they run: that of the
// plan, which turns the backends from load to load; or, backend by backend,
// with the backends turned from repeat to repeat. Where time is limited, what
// is worth more comes first within that.
func (s *setup) order(todo []int) []int {
	inTurn := s.serverInTurn()
	key := func(i int) [3]int {
		c := s.cells[i]
		k := [3]int{c.Repeat}
		if inTurn {
			n := len(s.plan.Backends)
			k[1] = ((slices.Index(s.plan.Backends, c.Backend)-c.Repeat)%n + n) % n
		}
		if s.budget > 0 {
			k[2] = worth(c)
		}
		return k
	}
	out := slices.Clone(todo)
	slices.SortStableFunc(out, func(a, b int) int {
		x, y := key(a), key(b)
		return slices.Compare(x[:], y[:])
	})
	return out
}

// worth ranks a load, the smaller the more: streams, which tell all that sync
// answers tell and their parts besides; then few requests at once before many.
func worth(c plan.Cell) int {
	rank := c.Concurrency
	if c.Mode != plan.Stream {
		rank += 1 << 20
	}
	return rank
}

// turn is cells that share in the time of a run as one: a repeat, or one
// backend's part of it.
type turn struct {
	repeat  int
	backend string // "": all
}

func (s *setup) turnOf(c plan.Cell) turn {
	if s.serverInTurn() {
		return turn{c.Repeat, c.Backend}
	}
	return turn{c.Repeat, ""}
}

// shares divides the time of a run among its turns, equally, so that each gets
// to the same loads: what is measured is then measured of all backends, in all
// repeats. What a turn leaves goes to those after it.
type shares struct {
	end    time.Time // of the run; zero: no limit
	now    func() time.Time
	left   []turn            // not yet begun
	until  time.Time         // of the current turn
	at     turn              // current
	begun  bool              // at is one
	chosen map[loadTurn]bool // whether a load runs in a turn
}

type loadTurn struct {
	turn
	load string
}

func (s *setup) newShares(cells []plan.Cell, now func() time.Time) *shares {
	sh := &shares{now: now, chosen: map[loadTurn]bool{}}
	if s.budget > 0 {
		sh.end = now().Add(s.budget)
	}
	for _, c := range cells {
		if t := s.turnOf(c); !slices.Contains(sh.left, t) {
			sh.left = append(sh.left, t)
		}
	}
	return sh
}

// start tells whether a cell of the turn may start. All backends of a load that
// share a turn get the same answer, unless the time of the run is over.
func (sh *shares) start(t turn, load string) bool {
	if sh.end.IsZero() {
		return true
	}
	now := sh.now()
	if !sh.begun || t != sh.at {
		sh.begun, sh.at = true, t
		n := max(len(sh.left), 1)
		sh.until = now.Add(sh.end.Sub(now) / time.Duration(n))
		sh.left = slices.DeleteFunc(sh.left, func(x turn) bool { return x == t })
	}
	k := loadTurn{t, load}
	if _, known := sh.chosen[k]; !known {
		sh.chosen[k] = now.Before(sh.until)
	}
	return sh.chosen[k]
}

// rest tells whether a cell that its turn had no time for may start at the end.
func (sh *shares) rest() bool { return sh.now().Before(sh.end) }
