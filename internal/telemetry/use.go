package telemetry

import (
	"math"
	"sort"
)

// Use sums the samples of a window. Its fields are those of results.HostUse,
// so that one converts to the other. -1: not known.
type Use struct {
	Samples      int     // of the tree, within the window
	PeakRSS      int64   // bytes
	PeakPSS      int64   // bytes
	CPUSeconds   float64 // of the tree
	OtherCores   float64 // mean cores busy with anything else
	StealCores   float64 // mean cores that the hypervisor gave to others
	MeanMHz      float64
	ProbeSeconds float64 // CPU the sampling itself cost
}

// Log keeps samples in memory until the window that they are to be summed over
// is known. The zero Log is ready. One goroutine at a time.
type Log struct {
	series map[seriesKey][]point
}

type seriesKey struct{ subject, name string }

type point struct {
	t int64
	v float64
}

// Add keeps a copy of one sample. It has the form of Emit. Samples of one
// subject come in the order of time.
func (l *Log) Add(t int64, subject string, values map[string]float64) {
	if l.series == nil {
		l.series = map[seriesKey][]point{}
	}
	for name, v := range values {
		if math.IsNaN(v) || math.IsInf(v, 0) {
			continue
		}
		k := seriesKey{subject, name}
		l.series[k] = append(l.series[k], point{t, v})
	}
}

// Use sums the window [from, to], in nanoseconds of the samples' clock, for the
// tree of that subject (BackendSubject).
//
// A level (memory, frequency) is taken from the samples inside the window or,
// when the window is shorter than a period and has none, from its two
// neighbours; PSS, which is sampled seldom, never from before the window. A counter is interpolated at both edges; where the samples do not
// reach an edge, the nearest sample stands for it.
func (l *Log) Use(subject string, window [2]int64) Use {
	rss := l.series[seriesKey{subject, "rss_bytes"}]
	u := Use{
		Samples:      len(inside(rss, window)),
		PeakRSS:      peak(rss, window),
		PeakPSS:      -1,
		CPUSeconds:   -1,
		OtherCores:   -1,
		StealCores:   -1,
		MeanMHz:      mean(l.series[seriesKey{HostSubject, "cpu_mhz"}], window),
		ProbeSeconds: -1,
	}
	if pss := l.series[seriesKey{subject, "pss_bytes"}]; len(pss) > 0 {
		u.PeakPSS = peakSince(pss, rss, window)
	}
	if d, _, ok := rise(l.series[seriesKey{subject, "cpu_seconds"}], window); ok {
		u.CPUSeconds = d
	}
	if d, span, ok := rise(l.series[seriesKey{HostSubject, "other_seconds"}], window); ok {
		u.OtherCores = d / span
	}
	if d, span, ok := rise(l.series[seriesKey{HostSubject, "steal_seconds"}], window); ok {
		u.StealCores = d / span
	}
	if d, _, ok := rise(l.series[seriesKey{SamplerSubject, "cpu_seconds"}], window); ok {
		u.ProbeSeconds = d
	}
	return u
}

// inside returns the points within the window.
func inside(s []point, window [2]int64) []point {
	lo := sort.Search(len(s), func(i int) bool { return s[i].t >= window[0] })
	hi := sort.Search(len(s), func(i int) bool { return s[i].t > window[1] })
	if lo > hi {
		return nil
	}
	return s[lo:hi]
}

// levels returns the points within the window, or its neighbours.
func levels(s []point, window [2]int64) []point {
	if in := inside(s, window); len(in) > 0 {
		return in
	}
	i := sort.Search(len(s), func(i int) bool { return s[i].t >= window[0] })
	return s[max(0, i-1):min(len(s), i+1)]
}

func peak(s []point, window [2]int64) int64 {
	top := -1.0
	for _, p := range levels(s, window) {
		top = max(top, p.v)
	}
	return int64(top)
}

// peakSince is peak for a level that is sampled seldom: a sample from before
// the window may be from before the model was loaded, so that only one from
// after it stands in for a missing one, and only while resident memory (rss)
// had not shrunk by then.
func peakSince(s, rss []point, window [2]int64) int64 {
	in := inside(s, window)
	if len(in) == 0 {
		i := sort.Search(len(s), func(i int) bool { return s[i].t > max(window[0], window[1]) })
		if i == len(s) || float64(peak(rss, [2]int64{s[i].t, s[i].t})) < keptShare*float64(peak(rss, window)) {
			return -1
		}
		in = s[i : i+1]
	}
	return peak(in, [2]int64{in[0].t, in[len(in)-1].t})
}

// keptShare is how much of its memory a process must still have to count as
// one that has not begun to give it back.
const keptShare = 0.95

func mean(s []point, window [2]int64) float64 {
	in := levels(s, window)
	if len(in) == 0 {
		return -1
	}
	sum := 0.0
	for _, p := range in {
		sum += p.v
	}
	return sum / float64(len(in))
}

// rise returns how much a counter rose in the window and over how many seconds
// of it that is known; not ok if no two samples enclose any of it.
func rise(s []point, window [2]int64) (delta, span float64, ok bool) {
	if len(s) < 2 {
		return 0, 0, false
	}
	from, to := max(window[0], s[0].t), min(window[1], s[len(s)-1].t)
	if from >= to {
		return 0, 0, false
	}
	return at(s, to) - at(s, from), float64(to-from) / 1e9, true
}

// at interpolates a counter at t, which lies within the samples.
func at(s []point, t int64) float64 {
	i := sort.Search(len(s), func(i int) bool { return s[i].t >= t })
	if s[i].t == t || i == 0 {
		return s[i].v
	}
	a, b := s[i-1], s[i]
	return a.v + (b.v-a.v)*(float64(t-a.t)/float64(b.t-a.t))
}
