package report

import (
	"fmt"

	"github.com/nativebench/nativebench/internal/results"
)

// serverColumn is one thing that servers say of themselves.
type serverColumn struct {
	head string
	// of joins the values of the repeats, those that are known.
	of    func([]float64) float64
	value func(*results.ServerUse) float64 // negative: not known
	print func(float64) field
}

func serverColumns() []serverColumn {
	number := func(v float64) field { return field{main: fixed(v, 0)} }
	return []serverColumn{
		{"running", average, func(u *results.ServerUse) float64 { return u.RunningMean }, func(v float64) field { return field{main: fixed(v, 1)} }},
		{"most running", highest, func(u *results.ServerUse) float64 { return u.RunningMax }, number},
		{"most waiting", highest, func(u *results.ServerUse) float64 { return u.WaitingMax }, number},
		{"in its queue", average, func(u *results.ServerUse) float64 { return u.QueueMeanSeconds }, func(v float64) field {
			return field{main: fixed(1e3*v, decimals([]float64{1e3 * v})), aside: "ms"}
		}},
		{"KV cache", highest, func(u *results.ServerUse) float64 { return u.KVCacheUsedMax }, func(v float64) field {
			return field{main: fixed(100*v, 1), aside: "%"}
		}},
		{"prefix hits", inAll, func(u *results.ServerUse) float64 { return float64(u.PrefixHits) }, number},
		{"preempted", inAll, func(u *results.ServerUse) float64 { return float64(u.Preemptions) }, number},
		{"scrapes", inAll, func(u *results.ServerUse) float64 { return float64(u.Scrapes) }, number},
		{"per scrape", average, func(u *results.ServerUse) float64 { return u.ScrapeSeconds }, func(v float64) field {
			return field{main: fixed(1e3*v, decimals([]float64{1e3 * v})), aside: "ms"}
		}},
	}
}

func inAll(v []float64) (sum float64) {
	for _, x := range v {
		sum += x
	}
	return sum
}

func average(v []float64) float64 { return inAll(v) / float64(len(v)) }

func highest(v []float64) (top float64) {
	for _, x := range v {
		top = max(top, x)
	}
	return top
}

// servers sets what the servers say of themselves beside what was asked of
// them. Nothing is shown of a backend that does not tell, and no column that
// nobody knows.
func (v *runView) servers() []section {
	type told struct {
		name   string
		seat   *seat
		values [][]float64 // by column, those that are known
	}
	columns := serverColumns()
	var all []told
	known := make([]bool, len(columns))
	for _, l := range v.loads {
		for _, s := range l.seats {
			t := told{fmt.Sprintf("%s, %s ×%d", v.loadName(l), l.Mode, l.Concurrency), s, make([][]float64, len(columns))}
			any := false
			for _, c := range s.cells {
				if c.Event == nil || c.Event.Server == nil || !c.Done() {
					continue
				}
				any = true
				for i, col := range columns {
					if x := col.value(c.Event.Server); x >= 0 {
						t.values[i], known[i] = append(t.values[i], x), true
					}
				}
			}
			if any {
				all = append(all, t)
			}
		}
	}
	if len(all) == 0 {
		return nil
	}
	g := grid{columns: []column{{}}}
	for i, c := range columns {
		if known[i] {
			g.columns = append(g.columns, column{head: c.head})
		}
	}
	last := ""
	for _, t := range all {
		if t.name != last {
			last = t.name
			g.rows = append(g.rows, row{group: true, cells: []field{{main: t.name}}})
		}
		r := row{cells: []field{{main: t.seat.backend}}}
		for i, c := range columns {
			switch {
			case !known[i]:
			case len(t.values[i]) == 0:
				r.cells = append(r.cells, field{main: "—", tone: faint})
			default:
				r.cells = append(r.cells, c.print(c.of(t.values[i])))
			}
		}
		g.rows = append(g.rows, r)
	}
	s := section{
		title: "What the servers say of themselves", rank: 1,
		lead: []string{
			"By their own metrics page, asked once a second and at the edges of the measured window; ×N is how many requests the clients kept under way. Running (mean and most) and waiting requests and the share of the KV cache in use are from the moments asked, so a peak between two is not seen; time in the queue (mean of the repeats' means), prompt tokens from the prefix cache and preemptions from the counters' rise. The beginning's values may be some milliseconds late. — no scrape fell within the window, or the server does not tell.",
		},
		grids: []grid{g},
	}
	if v.label != "" {
		s.title = v.label + " · " + s.title
	}
	return []section{s}
}
