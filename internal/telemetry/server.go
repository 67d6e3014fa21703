package telemetry

// ServerSubject is the server's own account of itself.
const ServerSubject = "server"

// ServerUse sums what a server told of itself over a window. Its fields are
// those of results.ServerUse, so that one converts to the other. -1: not known.
type ServerUse struct {
	Scrapes        int     // of the whole cell
	RunningMax     float64 // requests, over the scrapes within the window
	RunningMean    float64
	WaitingMax     float64
	KVCacheUsedMax float64 // share, 0 to 1
	KVHeldMax      float64 // tokens that are set aside for the running requests; 0: not known
	KVPoolTokens   float64 // that the cache has room for; 0: not known
	KVTokenBytes   int64   // of keys and values of one token; the caller's to fill in
	// Differences between the edges of the window:
	PrefixHits       int64 // prompt tokens
	PrefixQueries    int64 // prompt tokens
	Preemptions      int64
	QueueMeanSeconds float64
	PromptTokens     int64 // as the server counts them
	OutputTokens     int64
	ScrapeSeconds    float64 // mean time of one scrape
}

// Server sums the window [from, to], in nanoseconds of the samples' clock, for
// ServerSubject.
//
// A level (running, waiting, KV cache) is taken from the scrapes within the
// window, without those at its edges: there the server has just got its first
// requests, or has none left. A counter is that of the last scrape of all,
// since the server does nothing for us after the window and counters may lag,
// less that of the scrape nearest to the window's beginning, which must be from
// after settled, when the warm-up's last request ended.
func (l *Log) Server(window [2]int64, settled int64) ServerUse {
	of := func(name string) []point { return l.series[seriesKey{ServerSubject, name}] }
	scrapes := of("scrape_seconds")
	u := ServerUse{
		Scrapes: len(scrapes), RunningMax: -1, RunningMean: -1, WaitingMax: -1, KVCacheUsedMax: -1,
		PrefixHits: -1, PrefixQueries: -1, Preemptions: -1, QueueMeanSeconds: -1, PromptTokens: -1, OutputTokens: -1, ScrapeSeconds: -1,
	}
	if len(scrapes) == 0 {
		return u
	}
	total := 0.0
	for _, p := range scrapes {
		total += p.v
	}
	u.ScrapeSeconds = total / float64(len(scrapes))

	before := nearest(inside(scrapes, [2]int64{settled, window[1]}), window[0])
	level := func(name string) []point {
		in := inside(of(name), window)
		if len(in) > 0 && in[0].t == before {
			in = in[1:]
		}
		return in
	}
	top := func(name string) float64 {
		most := -1.0
		for _, p := range level(name) {
			most = max(most, p.v)
		}
		return most
	}
	u.RunningMax, u.WaitingMax, u.KVCacheUsedMax = top("requests_running"), top("requests_waiting"), top("kv_cache_used_ratio")
	u.KVHeldMax = max(0, top("kv_held_tokens"))
	if pool := of("kv_pool_tokens"); len(pool) > 0 {
		u.KVPoolTokens = pool[len(pool)-1].v
	}
	if in := level("requests_running"); len(in) > 0 {
		u.RunningMean = mean(in, window)
	}
	rose := func(name string) float64 { return roseSince(of(name), before, window[1]) }
	u.PrefixHits, u.PrefixQueries = int64(rose("prefix_cache_hits_total")), int64(rose("prefix_cache_queries_total"))
	u.Preemptions = int64(rose("preemptions_total"))
	u.PromptTokens, u.OutputTokens = int64(rose("prompt_tokens_total")), int64(rose("output_tokens_total"))
	if n, sum := rose("queue_seconds_count"), rose("queue_seconds_sum"); n > 0 && sum >= 0 {
		u.QueueMeanSeconds = sum / n
	}
	return u
}

// Rise returns by how much a counter of ServerSubject rose from the first
// sample to the last, and its last value; ok if the first was taken before
// from and the last after to.
func (l *Log) Rise(name string, from, to int64) (rise, last float64, ok bool) {
	s := l.series[seriesKey{ServerSubject, name}]
	if len(s) < 2 || s[0].t >= from || s[len(s)-1].t < to || s[len(s)-1].v < s[0].v {
		return 0, 0, false
	}
	last = s[len(s)-1].v
	return last - s[0].v, last, true
}

// nearest returns the time of the sample nearest to t; -1: there is none.
func nearest(s []point, t int64) int64 {
	if len(s) == 0 {
		return -1
	}
	best := s[0].t
	for _, p := range s {
		if max(p.t-t, t-p.t) < max(best-t, t-best) {
			best = p.t
		}
	}
	return best
}

// roseSince is how much a counter rose from its sample at before to its last,
// which must be from after the window; -1: not known, as after a restart of the
// server, which begins to count anew.
func roseSince(s []point, before, end int64) float64 {
	if len(s) == 0 || s[len(s)-1].t < end {
		return -1
	}
	for i, p := range s {
		if p.t != before {
			continue
		}
		for j := i + 1; j < len(s); j++ {
			if s[j].v < s[j-1].v {
				return -1
			}
		}
		if i == len(s)-1 {
			return -1
		}
		return s[len(s)-1].v - p.v
	}
	return -1
}
