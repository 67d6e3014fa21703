package stats

import (
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func near(t *testing.T, what string, got, want, tolerance float64) {
	t.Helper()
	if math.IsNaN(want) != math.IsNaN(got) || math.Abs(got-want) > tolerance {
		t.Errorf("%s = %v, want %v ± %v", what, got, want, tolerance)
	}
}

func TestQuantile(t *testing.T) {
	// R: quantile(x, q, type = 7); NumPy's default gives the same.
	x := []float64{1, 2, 4, 8, 16}
	for _, c := range []struct{ q, want float64 }{
		{0, 1}, {0.1, 1.4}, {0.25, 2}, {0.5, 4}, {0.75, 8}, {0.9, 12.8}, {0.99, 15.68}, {1, 16},
	} {
		near(t, "quantile", Quantile(x, c.q), c.want, 1e-12)
	}
	near(t, "of four", Quantile([]float64{1, 2, 3, 4}, 0.5), 2.5, 0)
	near(t, "of one", Quantile([]float64{7}, 0.99), 7, 0)
	near(t, "of none", Quantile(nil, 0.5), math.NaN(), 0)
}

func TestNeeds(t *testing.T) {
	for q, want := range map[float64]int{0.9: 10, 0.95: 20, 0.99: 100, 0.999: 1000} {
		if got := Needs(q); got != want {
			t.Errorf("Needs(%v) = %d, want %d", q, got, want)
		}
	}
}

// TestMedianInterval uses the binomial table: with n values, order statistics
// l and n+1−l enclose the median with probability 1 − 2·P(B(n, ½) < l).
func TestMedianInterval(t *testing.T) {
	for _, c := range []struct {
		n      int
		lo, hi float64 // order statistics; NaN: there is none
	}{
		{1, math.NaN(), math.NaN()},
		{5, math.NaN(), math.NaN()}, // 93.75 %
		{6, 1, 6},                   // 96.9 %
		{10, 2, 9},                  // 97.9 %; 3 to 8 would be 89.1 %
		{20, 6, 15},                 // 95.9 %
	} {
		x := make([]float64, c.n)
		for i := range x {
			x[i] = float64(i + 1)
		}
		s := Summarize(x)
		near(t, "lo", s.Lo, c.lo, 0)
		near(t, "hi", s.Hi, c.hi, 0)
		warned := slices.ContainsFunc(s.Warnings, func(w string) bool { return strings.Contains(w, "needs 6 samples") })
		if warned != math.IsNaN(c.lo) {
			t.Errorf("n = %d: warnings %q", c.n, s.Warnings)
		}
	}
}

func TestSummarizeSaysWhatIsTooFew(t *testing.T) {
	s := Summarize(make([]float64, 12))
	if !math.IsNaN(s.P99) || !slices.Contains(s.Warnings, "p99 needs 100 samples, has 12") {
		t.Errorf("p99 = %v, warnings %q", s.P99, s.Warnings)
	}
	if s = Summarize(make([]float64, 100)); math.IsNaN(s.P99) || len(s.Warnings) > 0 {
		t.Errorf("with 100: p99 = %v, warnings %q", s.P99, s.Warnings)
	}
	if s = Summarize(nil); s.N != 0 || !math.IsNaN(s.Median) || !math.IsNaN(s.Mean) {
		t.Errorf("of nothing: %+v", s)
	}
}

func TestSummarizeLeavesItsSampleAlone(t *testing.T) {
	x := []float64{3, 1, 2}
	Summarize(x)
	Compare(x, x)
	ComparePaired([][]float64{x}, [][]float64{x})
	if !slices.Equal(x, []float64{3, 1, 2}) {
		t.Errorf("the sample was changed: %v", x)
	}
}

func TestSpread(t *testing.T) {
	ratio, warning := Spread([][]float64{{1, 1}, {1.05}, {0.98, 1, 1.02}})
	near(t, "ratio", ratio, 1.05, 1e-12)
	if warning != "" {
		t.Error("warned of ", warning)
	}
	ratio, warning = Spread([][]float64{{10}, {12}})
	near(t, "ratio", ratio, 1.2, 1e-12)
	if !strings.Contains(warning, "1.20×") {
		t.Errorf("warning %q", warning)
	}
	if ratio, _ = Spread([][]float64{{10}}); !math.IsNaN(ratio) {
		t.Error("one repeat has a spread of ", ratio)
	}
}

// TestFit is Anscombe's quartet (1973): four sets with one line.
func TestFit(t *testing.T) {
	x := []float64{10, 8, 13, 9, 11, 14, 6, 4, 12, 7, 5}
	for _, y := range [][]float64{
		{8.04, 6.95, 7.58, 8.81, 8.33, 9.96, 7.24, 4.26, 10.84, 4.82, 5.68},
		{9.14, 8.14, 8.74, 8.77, 9.26, 8.10, 6.13, 3.10, 9.13, 7.26, 4.74},
		{7.46, 6.77, 12.74, 7.11, 7.81, 8.84, 6.08, 5.39, 8.15, 6.42, 5.73},
	} {
		l, ok := Fit(x, y)
		if !ok {
			t.Fatal("no line")
		}
		near(t, "slope", l.Slope, 0.500, 0.001)
		near(t, "intercept", l.Intercept, 3.00, 0.01)
		near(t, "R²", l.R2, 0.666, 0.001)
	}
	if l, ok := Fit([]float64{1, 2, 3}, []float64{5, 5, 5}); !ok || l.Slope != 0 || l.R2 != 1 {
		t.Errorf("a constant: %+v, %v", l, ok)
	}
	for _, x := range [][]float64{nil, {1}, {1, 2}, {1, 2, 2, 1}} {
		if l, ok := Fit(x, make([]float64, len(x))); ok {
			t.Errorf("a line through x = %v: %+v", x, l)
		}
	}
}

// TestPublishedTests are the examples of R's manual page of wilcox.test
// (Hollander and Wolfe 1973), whose one-sided values are half of these.
func TestPublishedTests(t *testing.T) {
	before := []float64{1.83, 0.50, 1.62, 2.48, 1.68, 1.88, 1.55, 3.06, 1.30}
	after := []float64{0.878, 0.647, 0.598, 2.05, 1.06, 1.29, 1.06, 3.14, 1.29}
	d := make([]float64, len(before))
	for i := range d {
		d[i] = before[i] - after[i]
	}
	near(t, "signed rank", signedRank(d, exactRanks), 0.03906, 1e-5)

	c := Compare(
		[]float64{0.80, 0.83, 1.89, 1.04, 1.45, 1.38, 1.91, 1.64, 0.73, 1.46},
		[]float64{1.15, 0.88, 0.90, 0.74, 1.21})
	near(t, "Mann-Whitney", c.P, 0.2544, 1e-4)
	if c.Verdict != NoneFound {
		t.Errorf("verdict %q", c.Verdict)
	}
	near(t, "ratio", c.Ratio, 1.415/0.90, 1e-12)
}

func TestVerdicts(t *testing.T) {
	low, high := []float64{1, 1.1, 1.2, 1.3, 1.4, 1.5}, []float64{2, 2.1, 2.2, 2.3, 2.4, 2.5}
	for _, c := range []struct {
		name    string
		xs, ref []float64
		want    Verdict
	}{
		{"apart", high, low, Differs},
		{"the same", low, low, NoneFound},
		{"three each", high[:3], low[:3], TooFew},
		{"none", nil, low, TooFew},
	} {
		if got := Compare(c.xs, c.ref); got.Verdict != c.want {
			t.Errorf("%s: %+v, want %s", c.name, got, c.want)
		}
	}
}

// TestPairingSeesThroughItems: items differ by a factor of ten, the sides by
// 5 %. Unpaired, that is lost among the items.
func TestPairingSeesThroughItems(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	var xs, ref [][]float64
	var flatX, flatR []float64
	for i := range 12 {
		base := math.Pow(10, float64(i)/11)
		var x, r []float64
		for range 3 {
			x, r = append(x, 1.05*base*(1+0.005*rng.NormFloat64())), append(r, base*(1+0.005*rng.NormFloat64()))
		}
		xs, ref = append(xs, x), append(ref, r)
		flatX, flatR = append(flatX, x...), append(flatR, r...)
	}
	paired, flat := ComparePaired(xs, ref), Compare(flatX, flatR)
	if paired.Verdict != Differs || paired.Lo < 1.02 || paired.Hi > 1.08 {
		t.Errorf("paired: %+v", paired)
	}
	if flat.Verdict != NoneFound || flat.Hi-flat.Lo < 0.5 {
		t.Errorf("unpaired: %+v", flat)
	}
	if paired.Ratio != flat.Ratio {
		t.Errorf("ratios %v and %v: both are median over median", paired.Ratio, flat.Ratio)
	}
}

func TestPairedNeedsSixItems(t *testing.T) {
	items := func(n int, v float64) (out [][]float64) {
		for i := range n {
			out = append(out, []float64{v + float64(i)/100, v})
		}
		return out
	}
	if c := ComparePaired(items(5, 2), items(5, 1)); c.Verdict != TooFew || !math.IsNaN(c.Lo) {
		t.Errorf("five: %+v", c)
	}
	if c := ComparePaired(items(6, 2), items(6, 1)); c.Verdict != Differs {
		t.Errorf("six: %+v", c)
	}
}

// TestSignedRankIsExact compares with all 2ⁿ ways to give signs.
func TestSignedRankIsExact(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		raw := rapid.SliceOfN(rapid.IntRange(-6, 6), 1, 10).Draw(t, "d") // ties and zeros abound
		var d []float64
		for _, v := range raw {
			if v != 0 {
				d = append(d, float64(v))
			}
		}
		got := signedRank(d, exactRanks)
		if len(d) == 0 {
			if got != 1 {
				t.Fatalf("p of nothing = %v", got)
			}
			return
		}
		rank := func(i int) (r float64) { // midrank of |d[i]|
			below, same := 0, 0
			for _, v := range d {
				switch {
				case math.Abs(v) < math.Abs(d[i]):
					below++
				case math.Abs(v) == math.Abs(d[i]):
					same++
				}
			}
			return float64(below) + float64(same+1)/2
		}
		total, positive := 0.0, 0.0
		for i := range d {
			total += rank(i)
			if d[i] > 0 {
				positive += rank(i)
			}
		}
		least := min(positive, total-positive)
		extreme := 0
		for signs := range 1 << len(d) {
			sum := 0.0
			for i := range d {
				if signs>>i&1 == 1 {
					sum += rank(i)
				}
			}
			if sum <= least {
				extreme++
			}
		}
		want := min(1, 2*float64(extreme)/float64(int(1)<<len(d)))
		if math.Abs(got-want) > 1e-12 {
			t.Fatalf("p = %v, want %v", got, want)
		}
	})
}

func TestSignedRankOfManyIsNormal(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	for _, shift := range []float64{0, 0.1, -0.2} {
		d := make([]float64, 150)
		for i := range d {
			d[i] = math.Round(10*(rng.NormFloat64()+shift)) / 10 // with ties
		}
		near(t, "p", signedRank(d, 0), signedRank(d, exactRanks), 0.002)
	}
}

// TestMedianDraw: the short way to the median of a resample has the same
// distribution as the long one.
func TestMedianDraw(t *testing.T) {
	for _, n := range []int{6, 7, 30, 31} {
		x := make([]float64, n)
		for i := range x {
			x[i] = float64(i * i)
		}
		const draws = 40000
		short := medianDraw(rand.NewPCG(1, 1), x)
		rng := rand.New(rand.NewPCG(2, 2))
		var a, b []float64
		for range draws {
			a = append(a, short())
			r := make([]float64, n)
			for i := range r {
				r[i] = x[rng.IntN(n)]
			}
			b = append(b, Median(Sorted(r)))
		}
		// Kolmogorov and Smirnov's distance; 1.95·√(2/draws) is passed once in
		// a thousand times, and the seeds are fixed.
		a, b = Sorted(a), Sorted(b)
		worst := 0.0
		for _, v := range slices.Concat(x, a[:0]) {
			at := func(s []float64) float64 {
				i, _ := slices.BinarySearch(s, math.Nextafter(v, math.Inf(1)))
				return float64(i) / draws
			}
			worst = max(worst, math.Abs(at(a)-at(b)))
		}
		if worst > 1.95*math.Sqrt(2.0/draws) {
			t.Errorf("n = %d: distributions are %.4f apart", n, worst)
		}
	}
}

func positives(label string, t *rapid.T, least int) []float64 {
	return rapid.SliceOfN(rapid.Float64Range(1e-6, 1e6), least, 40).Draw(t, label)
}

func TestProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		x, y := positives("x", t, 1), positives("y", t, 1)
		s := Summarize(x)
		if s.Min > s.Median || s.Median > s.Max || s.Mean < s.Min*(1-1e-9) || s.Mean > s.Max*(1+1e-9) {
			t.Fatalf("out of order: %+v", s)
		}
		if s.Lo > s.Median || s.Hi < s.Median {
			t.Fatalf("the interval does not hold the median: %+v", s)
		}
		sorted, last := Sorted(x), math.Inf(-1)
		for q := 0.0; q <= 1; q += 0.05 {
			v := Quantile(sorted, q)
			if v < last {
				t.Fatalf("quantiles fall at %v", q)
			}
			last = v
		}
		c := Compare(x, y)
		if c != Compare(slices.Clone(x), slices.Clone(y)) && !math.IsNaN(c.Lo) && !math.IsNaN(c.P) {
			t.Fatal("the same samples gave another comparison")
		}
		if c.Lo > c.Ratio || c.Hi < c.Ratio {
			t.Fatalf("the interval does not hold the ratio: %+v", c)
		}
		if c.P < 0 || c.P > 1+1e-9 {
			t.Fatalf("p = %v", c.P)
		}
		if c.Verdict == Differs && c.Lo <= 1 && c.Hi >= 1 {
			t.Fatalf("differs, with 1 in the interval: %+v", c)
		}
		if same := Compare(x, x); same.Ratio != 1 || same.Verdict == Differs {
			t.Fatalf("a sample differs from itself: %+v", same)
		}
		if back := Compare(y, x); math.Abs(back.Ratio*c.Ratio-1) > 1e-9 {
			t.Fatalf("ratios %v and %v", c.Ratio, back.Ratio)
		}
	})
}

func TestPairedProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(0, 20).Draw(t, "items")
		items := func(label string) (out [][]float64) {
			for range n {
				out = append(out, rapid.SliceOfN(rapid.OneOf(rapid.Float64Range(0, 100), rapid.Just(math.NaN())), 0, 3).Draw(t, label))
			}
			return out
		}
		xs, ref := items("xs"), items("ref")
		c := ComparePaired(xs, ref)
		if c.Lo > c.Ratio || c.Hi < c.Ratio {
			t.Fatalf("the interval does not hold the ratio: %+v", c)
		}
		if c.Verdict == Differs && !(c.P < 0.05) {
			t.Fatalf("differs with p = %v", c.P)
		}
		if same := ComparePaired(xs, xs); same.Verdict == Differs {
			t.Fatalf("a sample differs from itself: %+v", same)
		}
	})
}
