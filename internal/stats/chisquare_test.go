package stats

import (
	"math"
	"math/rand/v2"
	"testing"
)

func TestHomogeneousByHand(t *testing.T) {
	// By hand; with two degrees of freedom P is exp(-chi-square/2).
	h := Homogeneous(map[string]int{"a": 30, "b": 50, "c": 20}, map[string]int{"a": 45, "b": 35, "c": 20})
	if math.Abs(h.ChiSquare-5.647058823529412) > 1e-12 || h.DF != 2 || math.Abs(h.P-math.Exp(-h.ChiSquare/2)) > 1e-12 || h.Pooled != 0 {
		t.Errorf("%+v", h)
	}
}

func TestHomogeneousPoolsRareOutcomes(t *testing.T) {
	a := map[int]int{1: 100, 2: 60, 3: 3, 4: 1, 5: 2}
	b := map[int]int{1: 95, 2: 66, 3: 2, 6: 3}
	h := Homogeneous(a, b)
	if h.Cells != 3 || h.Pooled != 4 || h.DF != 2 || !(h.P > 0.5) {
		t.Errorf("%+v", h)
	}
	// Too few to be a cell even together: the next rarest joins them.
	h = Homogeneous(map[int]int{1: 100, 2: 60, 3: 1}, map[int]int{1: 95, 2: 66})
	if h.Cells != 2 || h.Pooled != 2 {
		t.Errorf("%+v", h)
	}
	for _, one := range []Homogeneity{Homogeneous(map[int]int{1: 50}, map[int]int{1: 70}), Homogeneous(nil, map[int]int{1: 3})} {
		if !math.IsNaN(one.P) {
			t.Errorf("one outcome tells nothing: %+v", one)
		}
	}
}

// P is uniform when the distributions are one, and small when they are not.
func TestHomogeneousIsCalibrated(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	draw := func(bias float64) map[int]int {
		m := map[int]int{}
		for range 2000 {
			m[int(rng.ExpFloat64()*(8+bias))]++
		}
		return m
	}
	low, caught := 0, 0
	for range 400 {
		if Homogeneous(draw(0), draw(0)).P < 0.05 {
			low++
		}
		if Homogeneous(draw(0), draw(3)).P < 0.001 {
			caught++
		}
	}
	if low < 8 || low > 36 {
		t.Errorf("%d of 400 p-values below 0.05, expected about 20", low)
	}
	if caught < 360 {
		t.Errorf("%d of 400 other distributions were caught", caught)
	}
}
