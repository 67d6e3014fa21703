package stats

import (
	"cmp"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
)

// ComparePaired sets xs against ref where item i of both was the same thing to
// do: xs[i][r] is its value in repeat r, NaN where there is none. A value counts
// only if the other side has the same item in the same repeat: what one side
// failed at would else make it look faster or slower. Items may differ from each
// other as much as they like (a short prompt, a long one): that cancels, so that
// a small but constant difference is seen, which Compare would have to find among
// the differences between items.
//
// The ratio is that of the medians of all paired values. Its interval is a
// percentile bootstrap that draws repeats and, independently, items, both sides
// together: neither the repeats of an item nor the items of a repeat pass for
// independent samples (the crossed, or pigeonhole, bootstrap of Owen, "The
// pigeonhole bootstrap", 2007). The test is Wilcoxon's signed-rank test of the
// items' log ratios; items with a median that is not positive are left out of
// it. It needs six items. Used and Of are set, in values.
func ComparePaired(xs, ref [][]float64) Comparison {
	nan := math.NaN()
	c := Comparison{Ratio: nan, Lo: nan, Hi: nan, P: nan, Verdict: TooFew, Paired: true}
	c.Of = max(present(xs), present(ref))
	var a, b []pairedValue
	var logs []float64
	repeats, items := 0, min(len(xs), len(ref))
	for i := range items {
		var x, y []float64
		for r := range min(len(xs[i]), len(ref[i])) {
			if !math.IsNaN(xs[i][r]) && !math.IsNaN(ref[i][r]) {
				x, y = append(x, xs[i][r]), append(y, ref[i][r])
				a, b = append(a, pairedValue{xs[i][r], i, r}), append(b, pairedValue{ref[i][r], i, r})
				repeats = max(repeats, r+1)
			}
		}
		if mx, my := Median(Sorted(x)), Median(Sorted(y)); mx > 0 && my > 0 {
			logs = append(logs, math.Log(mx/my))
		}
	}
	c.Used = len(a)
	byValue := func(x, y pairedValue) int { return cmp.Compare(x.v, y.v) }
	slices.SortFunc(a, byValue)
	slices.SortFunc(b, byValue)
	once := func(n int) []int { return slices.Repeat([]int{1}, n) }
	if m := weightedMedian(b, once(items), once(repeats)); m != 0 {
		c.Ratio = weightedMedian(a, once(items), once(repeats)) / m
	}
	if len(logs) < minInterval {
		c.Why = fmt.Sprintf("a verdict needs %d requests that both sides answered, has %d", minInterval, len(logs))
		return c
	}
	c.P = signedRank(logs, exactRanks)
	c.Lo, c.Hi = bootstrapPairs(a, b, items, repeats)
	c.widen()
	c.judge()
	return c
}

// present counts the values of all items.
func present(items [][]float64) (n int) {
	for _, values := range items {
		for _, v := range values {
			if !math.IsNaN(v) {
				n++
			}
		}
	}
	return n
}

// pairedValue is a value, the item it is of and the repeat it is from.
type pairedValue struct {
	v            float64
	item, repeat int
}

// bootstrapPairs returns the middle Confidence of the ratios of medians over
// draws of repeats and items; a and b are sorted by value.
func bootstrapPairs(a, b []pairedValue, items, repeats int) (lo, hi float64) {
	rng := rand.New(rand.NewPCG(0x6e6174697665, 0x62656e6368)) // any constant
	draw := func(times []int) []int {
		clear(times)
		for range times {
			times[rng.IntN(len(times))]++
		}
		return times
	}
	ofItem, ofRepeat := make([]int, items), make([]int, repeats)
	ratios := make([]float64, 0, resamples)
	for range resamples {
		draw(ofItem)
		draw(ofRepeat)
		// Neither side is there when only what was not paired was drawn.
		if r := weightedMedian(a, ofItem, ofRepeat) / weightedMedian(b, ofItem, ofRepeat); !math.IsNaN(r) && !math.IsInf(r, 0) {
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

// weightedMedian is the median of sorted values, each as many times as its item
// was drawn, times its repeat. NaN when none was.
func weightedMedian(sorted []pairedValue, ofItem, ofRepeat []int) float64 {
	n := 0
	for _, x := range sorted {
		n += ofItem[x.item] * ofRepeat[x.repeat]
	}
	if n == 0 {
		return math.NaN()
	}
	low, high := (n-1)/2, n/2 // ranks of the two middle values
	seen, at := 0, -1
	for i, x := range sorted {
		seen += ofItem[x.item] * ofRepeat[x.repeat]
		if at < 0 && seen > low {
			at = i
		}
		if seen > high {
			return sorted[at].v + (x.v-sorted[at].v)/2
		}
	}
	return math.NaN()
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
