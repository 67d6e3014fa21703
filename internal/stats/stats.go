// Package stats is the mathematics of the measurements: quantiles, intervals,
// tests, a straight line. It knows nothing of what was measured.
//
// No distribution is assumed anywhere: latencies have long tails, steps and
// ties. A sample is a []float64 of finite numbers; functions that want it
// sorted say so. What cannot be said from a sample is NaN, never 0, and the
// reason is a warning beside it.
package stats

import (
	"cmp"
	"fmt"
	"math"
	"slices"

	"golang.org/x/perf/benchmath"
)

// Confidence is the level of every interval, and 1 − Confidence that of every
// test.
const Confidence = 0.95

// Sorted returns a sorted copy of xs.
func Sorted(xs []float64) []float64 {
	s := slices.Clone(xs)
	slices.Sort(s)
	return s
}

// Quantile returns the q-quantile, 0 ≤ q ≤ 1, of a sorted sample: type 7 of
// Hyndman and Fan, "Sample Quantiles in Statistical Packages", 1996, which is
// the default of R and NumPy. It is exact: all values are kept, no histogram is
// involved. NaN for an empty sample.
func Quantile(sorted []float64, q float64) float64 {
	n := len(sorted)
	if n == 0 || math.IsNaN(q) {
		return math.NaN()
	}
	h := min(max(q, 0), 1) * float64(n-1)
	i := int(h)
	if i+1 >= n {
		return sorted[n-1]
	}
	// In this form equal neighbours give themselves, without rounding.
	return sorted[i] + (h-float64(i))*(sorted[i+1]-sorted[i])
}

// Median is the 0.5-quantile of a sorted sample.
func Median(sorted []float64) float64 { return Quantile(sorted, 0.5) }

// Needs returns how many samples the q-quantile, q > 0.5, takes before it is
// more than the maximum by another name: 1/(1−q), 100 for p99.
func Needs(q float64) int { return int(math.Ceil(1/(1-q) - 1e-9)) }

// Summary describes a sample. Fields that the sample is too small for are NaN.
type Summary struct {
	N              int // values
	Items          int // of them independent: see SummarizeItems
	Mean, Min, Max float64
	Median         float64 // = P50
	Lo, Hi         float64 // interval of the median at level Confidence or a little above
	P90, P99       float64 // NaN below 10 and 100 samples
	Warnings       []string
}

// Summarize describes a sample of independent values. The interval of the median
// is the distribution-free one by order statistics (binomial): it needs 6 samples
// at 95 %.
func Summarize(xs []float64) Summary {
	items := make([][]float64, len(xs))
	for i := range xs {
		items[i] = xs[i : i+1]
	}
	return SummarizeItems(items)
}

// SummarizeItems describes the values of all items pooled, where the values of an
// item are repeats of one thing and do not count as independent: the interval is
// that of the items' medians, widened to hold the pooled median, and p90 and p99
// need that many items. Items without values do not count.
func SummarizeItems(items [][]float64) Summary {
	nan := math.NaN()
	sorted := Sorted(slices.Concat(items...))
	s := Summary{N: len(sorted), Mean: nan, Min: nan, Max: nan, Median: nan, Lo: nan, Hi: nan, P90: nan, P99: nan}
	if s.N == 0 {
		return s
	}
	medians := make([]float64, 0, len(items))
	for _, values := range items {
		if len(values) > 0 {
			medians = append(medians, Median(Sorted(values)))
		}
	}
	s.Items = len(medians)
	s.Mean = Mean(sorted)
	s.Min, s.Max, s.Median = sorted[0], sorted[s.N-1], Median(sorted)
	t := benchmath.DefaultThresholds
	b := benchmath.AssumeNothing.Summary(benchmath.NewSample(Sorted(medians), &t), Confidence)
	if math.IsInf(b.Lo, 0) || math.IsInf(b.Hi, 0) {
		s.Warnings = append(s.Warnings, fmt.Sprintf("a %g %% interval of the median needs %d samples, has %d", 100*Confidence, minInterval, s.Items))
	} else {
		s.Lo, s.Hi = min(b.Lo, s.Median), max(b.Hi, s.Median)
	}
	if s.Items >= Needs(0.9) {
		s.P90 = Quantile(sorted, 0.9)
	}
	if need := Needs(0.99); s.Items >= need {
		s.P99 = Quantile(sorted, 0.99)
	} else {
		s.Warnings = append(s.Warnings, fmt.Sprintf("p99 needs %d samples, has %d", need, s.Items))
	}
	return s
}

// minInterval is the smallest sample whose extremes enclose the median with
// probability Confidence: 1 − 2·0.5ⁿ ≥ 0.95.
const minInterval = 6

// Mean returns the arithmetic mean, NaN for an empty sample.
func Mean(xs []float64) float64 {
	if len(xs) == 0 {
		return math.NaN()
	}
	// The mean of the distances from the first value: it does not overflow
	// where the sum would, and is exact for equal values.
	sum := 0.0
	for _, x := range xs {
		sum += (x - xs[0]) / float64(len(xs))
	}
	return xs[0] + sum
}

// Disagree is the ratio of the largest to the smallest repeat median above
// which repeats of one measurement are said to disagree.
const Disagree = 1.1

// Spread compares repeats of one measurement. It returns the largest median of
// a repeat over the smallest, NaN if fewer than two repeats have a positive one,
// and a warning if that is more than Disagree: pooled, such samples do not come
// from one distribution, and an interval over them is too narrow.
func Spread(repeats [][]float64) (ratio float64, warning string) {
	var medians []float64
	for _, r := range repeats {
		if m := Median(Sorted(r)); m > 0 {
			medians = append(medians, m)
		}
	}
	if len(medians) < 2 {
		return math.NaN(), ""
	}
	ratio = slices.MaxFunc(medians, cmp.Compare) / slices.MinFunc(medians, cmp.Compare)
	if ratio > Disagree {
		warning = fmt.Sprintf("repeats disagree: the largest median of a repeat is %.2f× the smallest", ratio)
	}
	return ratio, warning
}
