package stats

import (
	"cmp"
	"math"
	"slices"

	"gonum.org/v1/gonum/stat/distuv"
)

// leastExpected is how many observations a cell of a chi-square test must expect
// (Cochran, "Some methods for strengthening the common χ² tests", 1954).
const leastExpected = 5

// Homogeneity is a chi-square test of two samples of one discrete distribution.
type Homogeneity struct {
	ChiSquare float64
	Cells     int     // after pooling
	DF        int     // Cells − 1
	P         float64 // NaN with fewer than two cells: nothing can be told
	Pooled    int     // outcomes that were too rare for a cell of their own
}

// Homogeneous tests whether two samples come from one distribution, by Pearson's
// chi-square test of homogeneity; a and b are how often each outcome came.
// Outcomes that expect fewer than 5 in either sample share one cell, which takes
// in the next rarest until it expects as many.
func Homogeneous[K cmp.Ordered](a, b map[K]int) Homogeneity {
	var na, nb float64
	total := map[K]int{}
	for k, n := range a {
		na += float64(n)
		total[k] += n
	}
	for k, n := range b {
		nb += float64(n)
		total[k] += n
	}
	h := Homogeneity{P: math.NaN()}
	if na == 0 || nb == 0 {
		return h
	}
	least := leastExpected * (na + nb) / min(na, nb) // of both together
	keys := make([]K, 0, len(total))
	for k := range total {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(x, y K) int { return cmp.Or(cmp.Compare(total[y], total[x]), cmp.Compare(x, y)) })
	cells := make([][2]float64, 0, len(keys))
	var rest [2]float64
	for _, k := range keys {
		cell := [2]float64{float64(a[k]), float64(b[k])}
		if float64(total[k]) >= least {
			cells = append(cells, cell)
			continue
		}
		h.Pooled++
		rest[0] += cell[0]
		rest[1] += cell[1]
	}
	for h.Pooled > 0 && rest[0]+rest[1] < least && len(cells) > 0 {
		last := cells[len(cells)-1]
		cells = cells[:len(cells)-1]
		rest[0] += last[0]
		rest[1] += last[1]
		h.Pooled++
	}
	if h.Pooled > 0 {
		cells = append(cells, rest)
	}
	h.Cells = len(cells)
	if h.DF = h.Cells - 1; h.DF < 1 {
		return h
	}
	for _, c := range cells {
		both := c[0] + c[1]
		for i, n := range []float64{na, nb} {
			expect := both * n / (na + nb)
			h.ChiSquare += (c[i] - expect) * (c[i] - expect) / expect
		}
	}
	h.P = distuv.ChiSquared{K: float64(h.DF)}.Survival(h.ChiSquare)
	return h
}
