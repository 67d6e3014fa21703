package stats

import (
	"math"

	"gonum.org/v1/gonum/stat"
)

// Line is y = Intercept + Slope·x, fitted by least squares.
type Line struct {
	N                int
	Intercept, Slope float64
	R2               float64 // share of the variance of y that the line explains
}

// Fit fits a line. ok is false, and the line means nothing, when there are
// fewer than three different x: two points always lie on a line.
func Fit(x, y []float64) (l Line, ok bool) {
	if len(x) != len(y) || !threeDifferent(x) {
		return Line{}, false
	}
	l.N = len(x)
	l.Intercept, l.Slope = stat.LinearRegression(x, y, nil, false)
	// Where y is constant, the line explains all there is.
	if l.R2 = stat.RSquared(x, y, nil, l.Intercept, l.Slope); math.IsNaN(l.R2) || stat.Variance(y, nil) == 0 {
		l.R2 = 1
	}
	return l, true
}

func threeDifferent(x []float64) bool {
	var seen []float64
	for _, v := range x {
		known := false
		for _, s := range seen {
			known = known || s == v
		}
		if !known {
			seen = append(seen, v)
		}
		if len(seen) == 3 {
			return true
		}
	}
	return false
}
