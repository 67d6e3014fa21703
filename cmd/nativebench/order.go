package main

import (
	"slices"

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
	key := func(i int) [4]int {
		c := s.cells[i]
		k := [4]int{c.Repeat}
		if inTurn {
			n := len(s.plan.Backends)
			k[1] = ((slices.Index(s.plan.Backends, c.Backend)-c.Repeat)%n + n) % n
			k[2] = slices.Index(s.plan.Models, c.Model) // another model is another start
		}
		if s.budget > 0 {
			k[3] = worth(c)
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
