package report

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// scale is a unit to print in and what a base unit is of it.
type scale struct {
	unit   string
	factor float64
}

// scaleFor chooses the unit of a row or column from the base unit and the
// values in it, so that the smallest is at least 1 where that can be. Where that
// would give the largest five digits or more, it is the next larger unit, if the
// smallest keeps two digits of its three decimals there.
func scaleFor(unit string, values []float64) scale {
	const long, short = 1e4, 0.01
	least, most := math.Inf(1), 0.0
	for _, v := range values {
		if a := math.Abs(v); a > 0 && !math.IsInf(a, 0) { // false for NaN
			least, most = min(least, a), max(most, a)
		}
	}
	var steps []scale
	switch unit {
	case "s":
		steps = []scale{{"s", 1}, {"ms", 1e3}, {"µs", 1e6}}
	case "B":
		steps = []scale{{"GiB", 1.0 / (1 << 30)}, {"MiB", 1.0 / (1 << 20)}, {"KiB", 1.0 / (1 << 10)}}
	default:
		return scale{unit, 1}
	}
	if math.IsInf(least, 1) {
		return steps[1]
	}
	i := slices.IndexFunc(steps, func(s scale) bool { return least*s.factor >= 1 })
	if i < 0 {
		i = len(steps) - 1
	}
	if i > 0 && most*steps[i].factor >= long && least*steps[i-1].factor >= short {
		i--
	}
	return steps[i]
}

// decimals chooses how many decimals a row is printed with: four significant
// digits for its largest value, and at least three for its smallest.
func decimals(values []float64) int {
	least, most := math.Inf(1), 0.0
	for _, v := range values {
		if a := math.Abs(v); a > 0 && !math.IsInf(a, 0) {
			least, most = min(least, a), max(most, a)
		}
	}
	if most == 0 {
		return 0
	}
	places := func(v float64, digits int) int { return digits - 1 - int(math.Floor(math.Log10(v))) }
	return min(max(places(most, 4), places(least, 3), 0), 3)
}

func fixed(v float64, decimals int) string {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return "—"
	}
	return fmt.Sprintf("%.*f", decimals, v)
}

// percent prints a share in as few digits as it deserves: "±3%", "±0.4%".
func percent(share float64) string {
	p := 100 * share
	switch {
	case p < 0.05:
		return "0%"
	case p < 0.95:
		return fmt.Sprintf("%.1f%%", p)
	}
	return fmt.Sprintf("%.0f%%", p)
}

// spread prints an interval as the larger distance of its ends from the middle.
func spread(mid, lo, hi float64) string {
	if math.IsNaN(lo) || math.IsNaN(hi) || mid <= 0 {
		return "±?"
	}
	return "±" + percent(max(hi-mid, mid-lo)/mid)
}

// ratioText prints a ratio and its interval, if there is one, with as many
// decimals as the interval bears.
func ratioText(r, lo, hi float64) (ratio, interval string) {
	if math.IsNaN(r) {
		return "—", ""
	}
	places := 2
	switch {
	case r >= 100:
		places = 0
	case r >= 10:
		places = 1
	case r < 0.0995, hi-lo < 0.02*r: // false for NaN
		places = 3
	}
	if !math.IsNaN(lo) && !math.IsNaN(hi) {
		interval = "[" + fixed(lo, places) + "–" + fixed(hi, places) + "]"
	}
	return fixed(r, places) + "×", interval
}

// times prints a ratio without an interval.
func times(r float64) string {
	text, _ := ratioText(r, math.NaN(), math.NaN())
	return text
}

// bytesText prints a size by itself.
func bytesText(b int64) string {
	s := scaleFor("B", []float64{float64(b)})
	v := float64(b) * s.factor
	return fixed(v, decimals([]float64{v})) + " " + s.unit
}

// shares turns parts into percentages with one decimal that add up to exactly
// 100.0: what rounding leaves goes to those it took most from.
func shares(parts []float64) []string {
	total := 0.0
	for _, p := range parts {
		total += p
	}
	out := make([]string, len(parts))
	if total <= 0 || math.IsNaN(total) {
		for i := range out {
			out[i] = "—"
		}
		return out
	}
	exact := make([]float64, len(parts))
	for i, p := range parts {
		exact[i] = 1000 * p / total
	}
	for i, t := range apportion(exact) {
		out[i] = fmt.Sprintf("%.1f%%", float64(t)/10)
	}
	return out
}

// apportion rounds numbers to whole ones that add up to their rounded sum: what
// rounding down leaves goes to those it took most from.
func apportion(exact []float64) []int {
	out, rest, sum := make([]int, len(exact)), make([]float64, len(exact)), 0.0
	floors := 0
	for i, x := range exact {
		sum += x
		out[i] = int(math.Floor(x))
		rest[i] = x - math.Floor(x)
		floors += out[i]
	}
	for left := int(math.Round(sum)) - floors; left > 0; left-- {
		best := 0
		for i := range rest {
			if rest[i] > rest[best] {
				best = i
			}
		}
		out[best]++
		rest[best] = -1
	}
	return out
}

// count prints a number of things: "1 request", "3 requests".
func count(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

// list prints numbers as a list: "1, 4, 16".
func list[T any](xs []T) string {
	s := make([]string, len(xs))
	for i, x := range xs {
		s[i] = fmt.Sprint(x)
	}
	return strings.Join(s, ", ")
}
