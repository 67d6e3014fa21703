package verify

import (
	"fmt"

	"github.com/nativebench/nativebench/internal/stats"
)

// Counts is how often each token id came first.
type Counts map[int32]int

// Sampled is what a pair's first tokens say.
type Sampled struct {
	Reference string  `json:"reference"`
	Backend   string  `json:"backend"`
	Verdict   Verdict `json:"verdict"`
	Says      string  `json:"says"` // the verdict in words for distributions
	Why       string  `json:"why"`
	ChiSquare float64 `json:"chi_square"`
	DF        int     `json:"df"`
	P         float64 `json:"p"`
	Cells     int     `json:"cells"`
	Pooled    int     `json:"pooled"` // tokens too rare for a cell of their own
}

// PairSampled tests whether the first tokens of two backends come from one
// distribution: if they do, counts as unlike as these are less likely than alpha
// with the probability alpha. The two draw by other generators, so the counts
// are independent.
func PairSampled(ref, other Side, a, b Counts, alpha float64) Sampled {
	r := Sampled{Reference: ref.Backend, Backend: other.Backend, Verdict: Failed}
	for _, side := range []Side{ref, other} {
		if side.Failed != "" {
			r.Why = side.Backend + ": " + side.Failed
			return r
		}
	}
	h := stats.Homogeneous(a, b)
	r.ChiSquare, r.DF, r.Cells, r.Pooled = h.ChiSquare, h.DF, h.Cells, h.Pooled
	if h.DF < 1 {
		if len(a) == 1 && len(b) == 1 {
			r.P, r.Verdict, r.Says = 1, Identical, "one distribution"
			r.Why = "both draw one and the same token, always: another prompt says more"
			return r
		}
		r.Why = "all tokens are too rare to be counted apart: draw more seeds"
		return r
	}
	r.P = h.P
	r.Why = fmt.Sprintf("chi-square %.1f with %d degrees of freedom (%d tokens, those with fewer than 5 expected pooled): p = %.3g", h.ChiSquare, h.DF, h.Cells+h.Pooled-min(h.Pooled, 1), h.P)
	if h.P < alpha {
		r.Verdict, r.Says = Different, "other distributions"
		return r
	}
	r.Verdict, r.Says = Close, "one distribution"
	return r
}
