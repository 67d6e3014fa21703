package stats

import (
	"math"
	"testing"
)

// TestPairedLeavesOutWhatOneSideLacks: a side that failed at the long requests
// is not faster for it.
func TestPairedLeavesOutWhatOneSideLacks(t *testing.T) {
	var ref, xs [][]float64
	for i := range 10 {
		ref = append(ref, []float64{float64(1 + i)})
		xs = append(xs, []float64{1.2 * float64(1+i)})
	}
	for i := 6; i < 10; i++ {
		xs[i] = nil
	}
	c := ComparePaired(xs, ref)
	if math.Abs(c.Ratio-1.2) > 1e-9 || c.Lo < 1.19 || c.Hi > 1.21 {
		t.Errorf("ratio %g [%g, %g]; the six requests that both answered say 1.2", c.Ratio, c.Lo, c.Hi)
	}
}
