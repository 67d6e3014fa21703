package tokenizer

import "math"

// pairs says which two symbols can be joined, by both: what to, and how early.
// Symbols are tokens, by id; those that are none have ids from the number of
// tokens on.
type pairs map[uint64]join

type join struct {
	rank uint32 // the lowest is joined first, of equal ones the leftmost
	into int32
}

func pairOf(left, right int32) uint64 { return uint64(uint32(left))<<32 | uint64(uint32(right)) }

// merger joins symbols. Its slices are kept from one text to the next; a
// goroutine has its own.
type merger struct {
	pairs pairs

	sym        []int32 // the text; set by the caller
	prev, next []int32 // neighbours in sym, -1 and len(sym) where there is none
	best       []join  // of the pair that begins there
	heap       []uint64
}

// never is the rank of what cannot be joined.
const never = math.MaxUint32

// merge joins the symbols in m.sym until no two neighbours can be, and returns
// what is left of them. The result lies in m.sym.
func (m *merger) merge() []int32 {
	n := len(m.sym)
	m.prev, m.next, m.best, m.heap = m.prev[:0], m.next[:0], m.best[:0], m.heap[:0]
	for i := range n {
		m.prev, m.next = append(m.prev, int32(i-1)), append(m.next, int32(i+1))
		m.best = append(m.best, join{rank: never})
	}
	for i := range n - 1 {
		m.look(i)
	}
	for len(m.heap) > 0 {
		top := m.pop()
		i := int(uint32(top))
		if m.best[i].rank != uint32(top>>32) {
			continue // one of the two was joined with another meanwhile
		}
		j := m.next[i]
		after := m.next[j]
		m.sym[i], m.next[i], m.best[j].rank = m.best[i].into, after, never
		if int(after) < n {
			m.prev[after] = int32(i)
		}
		m.look(i)
		if p := m.prev[i]; p >= 0 {
			m.look(int(p))
		}
	}
	out := m.sym[:0]
	for i := 0; i < n; i = int(m.next[i]) {
		out = append(out, m.sym[i])
	}
	return out
}

// look finds out how symbol i and the next one can be joined.
func (m *merger) look(i int) {
	m.best[i].rank = never
	j := int(m.next[i])
	if j >= len(m.sym) || m.sym[i] < 0 || m.sym[j] < 0 {
		return
	}
	if p, ok := m.pairs[pairOf(m.sym[i], m.sym[j])]; ok {
		m.best[i] = p
		m.push(uint64(p.rank)<<32 | uint64(i))
	}
}

// push and pop keep the least value at the front of the heap.
func (m *merger) push(v uint64) {
	h := append(m.heap, v)
	i := len(h) - 1
	for i > 0 {
		up := (i - 1) / 2
		if h[up] <= v {
			break
		}
		h[i], i = h[up], up
	}
	h[i] = v
	m.heap = h
}

func (m *merger) pop() uint64 {
	h := m.heap
	top, v := h[0], h[len(h)-1]
	h = h[:len(h)-1]
	i := 0
	for {
		down := 2*i + 1
		if down >= len(h) {
			break
		}
		if down+1 < len(h) && h[down+1] < h[down] {
			down++
		}
		if h[down] >= v {
			break
		}
		h[i], i = h[down], down
	}
	if len(h) > 0 {
		h[i] = v
	}
	m.heap = h
	return top
}
