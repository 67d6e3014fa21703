package stats

import (
	"math"
	"math/rand/v2"
	"strings"
	"testing"
)

// TestPairedLeavesOutWhatOneSideLacks: a side that failed at the long requests
// is not faster for it, and a repeat that one side lacks has no say either.
func TestPairedLeavesOutWhatOneSideLacks(t *testing.T) {
	nan := math.NaN()
	var ref, xs [][]float64
	for i := range 10 {
		ref = append(ref, []float64{float64(1 + i), float64(1 + i), 100})
		xs = append(xs, []float64{1.2 * float64(1+i), 1.2 * float64(1+i), nan})
	}
	for i := 6; i < 10; i++ {
		xs[i] = []float64{nan, nan, nan}
	}
	c := ComparePaired(xs, ref)
	if math.Abs(c.Ratio-1.2) > 1e-9 || c.Lo < 1.19 || c.Hi > 1.21 || c.Used != 12 || c.Of != 30 {
		t.Errorf("%+v; the six requests that both answered say 1.2", c)
	}
	for i := 5; i < 10; i++ {
		xs[i] = []float64{nan, nan, nan}
	}
	if c := ComparePaired(xs, ref); c.Verdict != TooFew || !strings.Contains(c.Why, "has 5") {
		t.Errorf("five pairs: %+v", c)
	}
}

// TestPairedDrawsRepeats: in one repeat of two a side is 4 % slower at every
// request, in the other 2 % faster. Requests by the hundred do not make that a
// difference.
func TestPairedDrawsRepeats(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	var xs, ref [][]float64
	for range 200 {
		noise := func() float64 { return 1 + 0.002*rng.NormFloat64() }
		ref = append(ref, []float64{noise(), noise()})
		xs = append(xs, []float64{1.04 * noise(), 0.98 * noise()})
	}
	if c := ComparePaired(xs, ref); c.Verdict != NoneFound || c.Lo > 0.985 || c.Hi < 1.035 {
		t.Errorf("%+v", c)
	}
}

// TestItemsAreNotMultipliedByRepeats: 20 repeats of five things are five.
func TestItemsAreNotMultipliedByRepeats(t *testing.T) {
	items := func(n int) (out [][]float64) {
		for i := range n {
			values := make([]float64, 20)
			for r := range values {
				values[r] = float64(i) + float64(r)/100
			}
			out = append(out, values)
		}
		return out
	}
	if s := SummarizeItems(items(5)); s.N != 100 || s.Items != 5 || !math.IsNaN(s.Lo) || !math.IsNaN(s.P90) || !math.IsNaN(s.P99) {
		t.Errorf("five: %+v", s)
	}
	if s := SummarizeItems(items(6)); s.Lo > 0.1 || s.Hi < 5 || s.Lo > s.Median || s.Hi < s.Median {
		t.Errorf("six: %+v", s)
	}
}

func TestWithhold(t *testing.T) {
	c := Comparison{Verdict: Differs}
	c.Withhold("first")
	c.Withhold("second")
	if c.Verdict != Withheld || c.Why != "first; and second" {
		t.Errorf("%+v", c)
	}
	c = Comparison{Verdict: TooFew, Why: "few"}
	if c.Withhold("more"); c.Verdict != TooFew || c.Why != "few; and more" {
		t.Errorf("%+v", c)
	}
}
