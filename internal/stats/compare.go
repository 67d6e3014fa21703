package stats

import (
	"fmt"
	"math"
	"math/rand/v2"

	"golang.org/x/perf/benchmath"
	"gonum.org/v1/gonum/stat/distuv"
)

// Verdict is what a comparison of two samples can say.
type Verdict string

const (
	Differs   Verdict = "differs"    // p < 1 − Confidence, and the interval of the ratio leaves out 1
	NoneFound Verdict = "none_found" // samples of this size could have shown a difference and did not
	TooFew    Verdict = "too_few"    // samples of this size cannot show one, however far apart
	Withheld  Verdict = "withheld"   // the samples would do, but something else forbids a verdict: see Why
)

// Comparison is one sample against a reference.
type Comparison struct {
	Ratio   float64 // median of the sample / median of the reference
	Lo, Hi  float64 // percentile-bootstrap interval of Ratio; NaN with too few samples
	P       float64 // two-sided; NaN without samples
	Verdict Verdict
	// Why there is no verdict, of TooFew and Withheld: for people, a clause for each
	// reason, the first to be mended first.
	Why    string
	Paired bool // by ComparePaired
	// Used is how many values of either side went in, Of how many the side with
	// more had: the others have no partner. Set by whoever matched them.
	Used, Of int
}

// Withhold takes the verdict back, if there is one, and adds why there is none.
func (c *Comparison) Withhold(why string) {
	if c.Verdict == Differs || c.Verdict == NoneFound {
		c.Verdict = Withheld
	}
	if c.Why != "" {
		c.Why += "; and "
	}
	c.Why += why
}

// resamples of the bootstrap: the 2.5 % point then rests on 50 of them.
const resamples = 2000

// Compare sets xs against ref; the samples are independent of each other. The
// test is Mann and Whitney's (exact for small samples, ties included). The
// interval of the ratio of medians comes from a percentile bootstrap (Efron
// 1979) of fixed seed: both samples are drawn anew, each for itself, so the same
// samples give the same interval, always. It needs 6 values on either side.
func Compare(xs, ref []float64) Comparison {
	nan := math.NaN()
	c := Comparison{Ratio: nan, Lo: nan, Hi: nan, P: nan, Verdict: TooFew, Why: "nothing to compare"}
	if len(xs) == 0 || len(ref) == 0 {
		return c
	}
	a, b := Sorted(xs), Sorted(ref)
	if m := Median(b); m != 0 {
		c.Ratio = Median(a) / m
	}
	t := benchmath.DefaultThresholds
	t.CompareAlpha = 1 - Confidence
	u := benchmath.AssumeNothing.Compare(benchmath.NewSample(a, &t), benchmath.NewSample(b, &t))
	c.P = u.P
	if len(a) >= minInterval && len(b) >= minInterval && c.Ratio > 0 {
		c.Lo, c.Hi = bootstrap(a, b)
		c.widen()
	}
	if leastP(len(a), len(b)) < 1-Confidence {
		c.judge()
	} else {
		c.Why = fmt.Sprintf("one value per repeat: %d against %d cannot show a difference (from 4 repeats on)", len(a), len(b))
	}
	return c
}

// widen makes the interval hold the ratio itself, which with few values and
// ties a percentile bootstrap need not.
func (c *Comparison) widen() { c.Lo, c.Hi = min(c.Lo, c.Ratio), max(c.Hi, c.Ratio) }

// judge decides from test and interval, of samples that could show a
// difference. Both must see one: they ask slightly different things, and a
// difference beside an interval that holds 1 would be read as a mistake.
func (c *Comparison) judge() {
	c.Verdict = NoneFound
	if c.P < 1-Confidence && !(c.Lo <= 1 && 1 <= c.Hi) { // an interval that is not known has no say
		c.Verdict = Differs
	}
}

// leastP is the smallest p that the U test can give for samples of these sizes:
// two of the C(n+m, n) equally likely orders are the most extreme.
func leastP(n, m int) float64 {
	orders := 1.0
	for i := 1; i <= min(n, m); i++ {
		orders *= float64(max(n, m)+i) / float64(i)
	}
	return min(1, 2/orders)
}

// bootstrap draws both samples anew, with replacement, and returns the middle
// Confidence of the ratios of medians.
func bootstrap(a, b []float64) (lo, hi float64) {
	src := rand.NewPCG(0x6e6174697665, 0x62656e6368) // any constant
	drawA, drawB := medianDraw(src, a), medianDraw(src, b)
	ratios := make([]float64, 0, resamples)
	for range resamples {
		if x, y := drawA(), drawB(); y != 0 {
			ratios = append(ratios, x/y)
		}
	}
	if len(ratios) == 0 {
		return math.NaN(), math.NaN()
	}
	s := Sorted(ratios)
	tail := (1 - Confidence) / 2
	return Quantile(s, tail), Quantile(s, 1-tail)
}

// medianDraw returns a function that draws the median of a resample without
// drawing the resample. A value drawn with replacement is sorted[⌊n·U⌋] with U
// uniform, so the k-th smallest of n draws is the same with U's k-th order
// statistic, which is Beta(k, n+1−k); and given that one, the next is the least
// of n−k uniforms above it. Exact, and of the same cost for any n.
func medianDraw(src rand.Source, sorted []float64) func() float64 {
	n := len(sorted)
	k := (n + 1) / 2
	beta := distuv.Beta{Alpha: float64(k), Beta: float64(n + 1 - k), Src: src}
	rng := rand.New(src)
	at := func(u float64) float64 { return sorted[min(int(u*float64(n)), n-1)] }
	if n%2 == 1 {
		return func() float64 { return at(beta.Rand()) }
	}
	return func() float64 {
		u := beta.Rand()
		next := 1 - (1-u)*math.Pow(rng.Float64(), 1/float64(n-k))
		x, y := at(u), at(next)
		return x + (y-x)/2
	}
}
