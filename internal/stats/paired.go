package stats

import (
	"cmp"
	"math"
	"math/rand/v2"
	"slices"
)

// ComparePaired sets xs against ref where item i of both was the same thing to
// do: the values of an item, one or more, are its repeats. Items may differ
// from each other as much as they like (a short prompt, a long one): that
// cancels, so that a small but constant difference is seen, which Compare would
// have to find among the differences between items.
//
// Items that one side lacks are left out of everything: a side that failed at
// the long ones must not look faster for it. The ratio is that of the medians of
// all values that are left. Its interval is a percentile bootstrap that draws
// items, both sides together, so repeats of an item do not pass for independent
// samples. The test is Wilcoxon's signed-rank test of the items' log ratios;
// items with a median that is not positive are left out of it. It needs six
// items.
func ComparePaired(xs, ref [][]float64) Comparison {
	xs, ref = matched(xs, ref)
	nan := math.NaN()
	c := Comparison{Ratio: nan, Lo: nan, Hi: nan, P: nan, Verdict: TooFew, Paired: true}
	all := func(items [][]float64) float64 { return Median(Sorted(slices.Concat(items...))) }
	if m := all(ref); m != 0 {
		c.Ratio = all(xs) / m
	}
	items := max(len(xs), len(ref))
	a, b := itemValues(xs), itemValues(ref)
	var logs []float64
	for i := range min(len(xs), len(ref)) {
		if x, y := Median(Sorted(xs[i])), Median(Sorted(ref[i])); x > 0 && y > 0 {
			logs = append(logs, math.Log(x/y))
		}
	}
	if len(logs) < minInterval {
		return c
	}
	c.P = signedRank(logs, exactRanks)
	c.Lo, c.Hi = bootstrapItems(a, b, items)
	c.widen()
	c.judge()
	return c
}

// matched returns the items that both sides have.
func matched(xs, ref [][]float64) (a, b [][]float64) {
	for i := range min(len(xs), len(ref)) {
		if len(xs[i]) > 0 && len(ref[i]) > 0 {
			a, b = append(a, xs[i]), append(b, ref[i])
		}
	}
	return a, b
}

// itemValue is a value and the item it is of.
type itemValue struct {
	v    float64
	item int
}

func itemValues(items [][]float64) (out []itemValue) {
	for i, values := range items {
		for _, v := range values {
			out = append(out, itemValue{v, i})
		}
	}
	return out
}

func bootstrapItems(a, b []itemValue, items int) (lo, hi float64) {
	byValue := func(x, y itemValue) int { return cmp.Compare(x.v, y.v) }
	slices.SortFunc(a, byValue)
	slices.SortFunc(b, byValue)
	rng := rand.New(rand.NewPCG(0x6e6174697665, 0x62656e6368)) // any constant
	sizeA, sizeB := itemSizes(a, items), itemSizes(b, items)
	times := make([]int, items)
	ratios := make([]float64, 0, resamples)
	for range resamples {
		clear(times)
		for range items {
			times[rng.IntN(items)]++
		}
		// Neither side is there when only items that it lacks were drawn.
		if r := weightedMedian(a, sizeA, times) / weightedMedian(b, sizeB, times); !math.IsNaN(r) && !math.IsInf(r, 0) {
			ratios = append(ratios, r)
		}
	}
	if len(ratios) == 0 {
		return math.NaN(), math.NaN()
	}
	slices.Sort(ratios)
	tail := (1 - Confidence) / 2
	return Quantile(ratios, tail), Quantile(ratios, 1-tail)
}

// itemSizes counts the values of each item.
func itemSizes(values []itemValue, items int) []int {
	sizes := make([]int, items)
	for _, x := range values {
		sizes[x.item]++
	}
	return sizes
}

// weightedMedian is the median of sorted values, each as many times as its item
// was drawn.
func weightedMedian(sorted []itemValue, sizes, times []int) float64 {
	n := 0
	for i, t := range times {
		n += t * sizes[i]
	}
	if n == 0 {
		return math.NaN()
	}
	low, high := (n-1)/2, n/2 // ranks of the two middle values
	seen, at := 0, -1
	for i, x := range sorted {
		seen += times[x.item]
		if at < 0 && seen > low {
			at = i
		}
		if seen > high {
			return sorted[at].v + (x.v-sorted[at].v)/2
		}
	}
	return math.NaN() // no item of it was drawn
}

// exactRanks is where the exact distribution begins to take longer than it is
// worth.
const exactRanks = 200

// signedRank is the two-sided p of Wilcoxon's signed-rank test that the
// differences lie symmetrically about 0. Zeros are left out, ties share their
// ranks. The distribution is exact, given the ties, up to that many differences;
// beyond it is normal.
func signedRank(d []float64, exact int) float64 {
	d = slices.DeleteFunc(slices.Clone(d), func(x float64) bool { return x == 0 || math.IsNaN(x) })
	n := len(d)
	if n == 0 {
		return 1
	}
	slices.SortFunc(d, func(a, b float64) int { return cmp.Compare(math.Abs(a), math.Abs(b)) })
	// Twice the ranks, so that shared ones are whole numbers too.
	ranks := make([]int, n)
	for i := 0; i < n; {
		j := i
		for j < n && math.Abs(d[j]) == math.Abs(d[i]) {
			j++
		}
		for k := i; k < j; k++ {
			ranks[k] = i + 1 + j
		}
		i = j
	}
	total, positive, squares := 0, 0, 0.0
	for i, r := range ranks {
		total += r
		squares += float64(r) * float64(r)
		if d[i] > 0 {
			positive += r
		}
	}
	least := min(positive, total-positive)
	if n > exact {
		z := (float64(least) + 1 - float64(total)/2) / math.Sqrt(squares/4) // + 1 is half a rank, for continuity
		return min(1, math.Erfc(-z/math.Sqrt2))
	}
	// chance[s] that the positive ranks add up to s, every sign being as likely.
	chance := make([]float64, total+1)
	chance[0] = 1
	reach := 0
	for _, r := range ranks {
		reach += r
		for s := reach; s >= 0; s-- {
			chance[s] /= 2
			if s >= r {
				chance[s] += chance[s-r] / 2
			}
		}
	}
	p := 0.0
	for s := range least + 1 {
		p += chance[s]
	}
	return min(1, 2*p)
}
