package telemetry

import "testing"

// served is a log of scrapes: before the warm-up, at the edges of the window
// [1000, 4000], within it, and after it.
func served(values map[string][6]float64) *Log {
	var l Log
	for i, t := range []int64{100, 1002, 2000, 3000, 4001, 4100} {
		sample := map[string]float64{"scrape_seconds": float64(i + 1)}
		for name, v := range values {
			sample[name] = v[i]
		}
		l.Add(t, ServerSubject, sample)
	}
	return &l
}

func TestServerUse(t *testing.T) {
	l := served(map[string][6]float64{
		"requests_running":        {0, 9, 3, 4, 0, 0}, // at the edges it says nothing of the window
		"requests_waiting":        {7, 0, 0, 2, 7, 7},
		"kv_cache_used_ratio":     {0, 0, 0.5, 0.25, 0.9, 0},
		"prefix_cache_hits_total": {0, 10, 10, 12, 12, 12},
		"preemptions_total":       {5, 5, 5, 5, 5, 5},
		"prompt_tokens_total":     {0, 40, 40, 90, 90, 100},
		"output_tokens_total":     {100, 150, 150, 10, 20, 20}, // started again meanwhile
		"kv_held_tokens":          {900, 0, 300, 500, 900, 0},
		"kv_pool_tokens":          {4096, 4096, 4096, 4096, 4096, 4096},
		"queue_seconds_sum":       {0, 1, 1, 1.5, 2, 3},
		"queue_seconds_count":     {0, 2, 2, 3, 5, 6},
	})
	want := ServerUse{
		Scrapes: 6, RunningMax: 4, RunningMean: 3.5, WaitingMax: 2, KVCacheUsedMax: 0.5, KVHeldMax: 500, KVPoolTokens: 4096,
		PrefixHits: 2, PrefixQueries: -1, Preemptions: 0, QueueMeanSeconds: 0.5, PromptTokens: 60, OutputTokens: -1, ScrapeSeconds: 3.5,
	}
	if got := l.Server([2]int64{1000, 4000}, 0); got != want {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	unknown := ServerUse{
		RunningMax: -1, RunningMean: -1, WaitingMax: -1, KVCacheUsedMax: -1, PrefixHits: -1, PrefixQueries: -1,
		Preemptions: -1, QueueMeanSeconds: -1, PromptTokens: -1, OutputTokens: -1, ScrapeSeconds: -1,
	}
	if got := (&Log{}).Server([2]int64{1000, 4000}, 0); got != unknown {
		t.Errorf("of nothing: %+v", got)
	}
	// No scrape between the warm-up and the window's end but one within it.
	if got := l.Server([2]int64{1000, 2500}, 1500); got.PromptTokens != 60 {
		t.Errorf("with a late scrape: %+v", got)
	}
	if got := l.Server([2]int64{1000, 1500}, 1100); got.PromptTokens != -1 {
		t.Errorf("with none after the warm-up: %+v", got)
	}
	// Nobody answered after the window: what rose is not known.
	if got := l.Server([2]int64{1000, 5000}, 0); got.PromptTokens != -1 || got.PrefixHits != -1 {
		t.Errorf("of a window that is not over: %+v", got)
	}
}

func TestRise(t *testing.T) {
	l := served(map[string][6]float64{"x": {5, 6, 7, 8, 9, 11}, "y": {5, 0, 0, 0, 0, 1}})
	for _, tc := range []struct {
		name     string
		from, to int64
		rise     float64
		ok       bool
	}{
		{"x", 200, 4050, 6, true},
		{"x", 100, 4050, 0, false}, // a request may have begun before the first scrape
		{"x", 200, 4101, 0, false}, // one ended after the last
		{"y", 200, 4050, 0, false}, // the server began anew
		{"z", 200, 4050, 0, false},
	} {
		rise, _, ok := l.Rise(tc.name, tc.from, tc.to)
		if rise != tc.rise || ok != tc.ok {
			t.Errorf("%s from %d to %d: %v, %v", tc.name, tc.from, tc.to, rise, ok)
		}
	}
}
