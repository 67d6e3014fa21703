package httpbackends

import (
	"fmt"
	"maps"
	"math"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/nativebench/nativebench/internal/bench"
)

// What the pages of real servers say under the names of their rows.
func TestReadMetricsOfRealServers(t *testing.T) {
	for _, tc := range []struct {
		capture string
		row     Server
		want    map[string]float64
	}{
		{"vllm/metrics.txt", vllmServer(), map[string]float64{
			"requests_running": 0, "requests_waiting": 0, "kv_cache_used_ratio": 0, "prefix_cache_queries_total": 0, "prefix_cache_hits_total": 0,
			"preemptions_total": 0, "kv_pool_tokens": 113 * 128, "prompt_tokens_total": 21, "output_tokens_total": 38, "queue_seconds_sum": 0.00019607900139817502, "queue_seconds_count": 6,
		}},
		{"tgi/metrics.txt", tgiServer(), map[string]float64{
			"requests_running": 0, "requests_waiting": 0, "output_tokens_total": 42, "queue_seconds_count": 7,
		}},
	} {
		got, err := readMetrics(bodyOf(t, tc.capture), tc.row.Metrics)
		if err != nil {
			t.Errorf("%s: %v", tc.capture, err)
		}
		if want := len(tc.row.Metrics.Series) + len(tc.row.Metrics.Labels); len(got) != want {
			t.Errorf("%s: %d of %d series: %v", tc.capture, len(got), want, got)
		}
		for k, v := range tc.want {
			if have, ok := got[k]; !ok || have != v {
				t.Errorf("%s: %s = %v (%v), want %v", tc.capture, k, have, ok, v)
			}
		}
	}
}

func TestReadMetrics(t *testing.T) {
	series := []Series{{"x_total", []string{"new:x_total", "old.x"}}, {"q_sum", []string{"q_sum"}}, {"q_count", []string{"q_count"}}}
	labels := []LabelValue{{"pool", "info", []string{"blocks", "size"}}}
	for _, tc := range []struct {
		name, page string
		want       map[string]float64
		failed     bool
	}{
		{"summed over labels", "new:x_total{a=\"1\"} 2\nnew:x_total{a=\"2\"} 3\n", map[string]float64{"x_total": 5}, false},
		{"an older name", "{\"old.x\"} 7\n", map[string]float64{"x_total": 7}, false},
		{"the newest name counts", "{\"old.x\"} 7\nnew:x_total 1\n", map[string]float64{"x_total": 1}, false},
		{"histogram", "# TYPE q histogram\nq_bucket{le=\"+Inf\"} 4\nq_sum 1.5\nq_count 4\n", map[string]float64{"q_sum": 1.5, "q_count": 4}, false},
		{"summary", "# TYPE q summary\nq{quantile=\"0.5\"} 9\nq_sum 1.5\nq_count 4\n", map[string]float64{"q_sum": 1.5, "q_count": 4}, false},
		{"half a histogram", "# TYPE q histogram\nq_bucket{le=\"+Inf\"} 4\n", map[string]float64{}, false},
		{"untyped sums", "q_sum 1.5\nq_count 4\n", map[string]float64{"q_sum": 1.5, "q_count": 4}, false},
		{"no number", "new:x_total NaN\nq_sum +Inf\n", map[string]float64{}, false},
		{"a histogram where a counter is asked for", "# TYPE new:x_total histogram\nnew:x_total_sum 3\nnew:x_total_count 2\n", map[string]float64{}, false},
		{"labels", "info{blocks=\"3\",size=\"16\",other=\"x\"} 1\n", map[string]float64{"pool": 48}, false},
		{"labels of two engines", "info{blocks=\"3\",engine=\"0\",size=\"16\"} 1\ninfo{blocks=\"2\",engine=\"1\",size=\"16\"} 1\n", map[string]float64{"pool": 80}, false},
		{"a label that is no number", "info{blocks=\"None\",size=\"16\"} 1\n", map[string]float64{}, false},
		{"a label that is not there", "info{blocks=\"3\"} 1\n", map[string]float64{}, false},
		{"nothing", "", map[string]float64{}, false},
		{"broken at its end", "new:x_total 3\n<html>\n", map[string]float64{"x_total": 3}, true},
	} {
		got, err := readMetrics([]byte(tc.page), Metrics{Series: series, Labels: labels})
		if !maps.Equal(got, tc.want) || (err != nil) != tc.failed {
			t.Errorf("%s: %v, %v; want %v", tc.name, got, err, tc.want)
		}
	}
}

// scraperOf returns a scraper of a server that answers so, and how often it was
// asked.
func scraperOf(t *testing.T, answer http.HandlerFunc) (*Scraper, *atomic.Int32) {
	t.Helper()
	var asked atomic.Int32
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		answer(w, r)
	}))
	t.Cleanup(srv.Close)
	s, err := NewScraper(Config{Server: llamaServer(), Endpoint: srv.URL + "/base", APIKey: "secret"})
	if err != nil {
		t.Fatal(err)
	}
	return s, &asked
}

func TestScraper(t *testing.T) {
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:1")
	s, _ := scraperOf(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/base/metrics" || r.Header.Get("Authorization") != "Bearer secret" {
			t.Errorf("asked for %s with %v", r.URL, r.Header)
		}
		fmt.Fprintln(w, "llamacpp:requests_processing 3")
	})
	got := map[string]float64{}
	if err := s.Sample(got); err != nil || got["requests_running"] != 3 || got["scrape_seconds"] <= 0 || len(got) != 2 {
		t.Errorf("%v, %v", got, err)
	}
	if s, err := NewScraper(Config{Server: Server{Name: "mute"}, Endpoint: "http://127.0.0.1:1"}); s != nil || err != nil {
		t.Errorf("a row without metrics: %v, %v", s, err)
	}
}

// A server whose page is not there or not right gives no value, and an error.
func TestScraperOfBrokenServers(t *testing.T) {
	for _, tc := range []struct {
		name   string
		answer http.HandlerFunc
		want   string
		once   bool // it is not asked again
	}{
		{"404", http.NotFound, "the server shows no metrics: GET /metrics answers 404", true},
		{"not switched on", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(501) }, "answers 501: start it with --metrics", true},
		{"redirect", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/elsewhere", http.StatusFound) }, "answers 302", true},
		{"busy", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) }, "answers 503", false},
		{"another page", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "<html>hello</html>") }, "not Prometheus text", false},
		{"others' series", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "up 1") }, "none of its known series", true},
		{"endless", func(w http.ResponseWriter, _ *http.Request) {
			line := []byte(strings.Repeat("# comment\n", 100000))
			for range 10 {
				if _, err := w.Write(line); err != nil {
					return
				}
			}
		}, "more than 8 MiB", true},
		{"cut off", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			fmt.Fprintln(w, "llamacpp:requests_processing 3")
		}, "unexpected EOF", false},
		{"slow", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, "no whole answer within 1s", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, asked := scraperOf(t, tc.answer)
			got := map[string]float64{}
			err := s.Sample(got)
			if err == nil || !strings.Contains(err.Error(), tc.want) || len(got) > 0 {
				t.Errorf("%v, %v; want …%s…", got, err, tc.want)
			}
			again := s.Sample(got)
			if n := asked.Load(); tc.once && (n != 1 || again != nil) || !tc.once && (n != 2 || again == nil || again.Error() != err.Error()) {
				t.Errorf("asked %d times, then %v", n, again)
			}
		})
	}
}

// A real llama-server counts what its client counts, and takes nothing from its
// prefix cache.
func TestScraperOfLlamaServer(t *testing.T) {
	srv := llamaServerForTest(t, 2)
	cfg := Config{Server: llamaServer(), Endpoint: srv.Endpoint(), Model: "test-model"}
	s, err := NewScraper(cfg)
	if err != nil {
		t.Fatal(err)
	}
	sample := func() map[string]float64 {
		v := map[string]float64{}
		if err := s.Sample(v); err != nil {
			t.Fatal(err)
		}
		return v
	}
	before := sample()
	b, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	session, err := b.NewSession(bench.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	prompt, output := 0, 0
	for range 3 { // the same prompt, which a prefix cache would know
		req := bench.Request{Prompt: "Once upon a time there was a server that counted", Sampling: bench.Sampling{TopP: 1, MaxTokens: 12, IgnoreEOS: true}}
		tr := bench.NewTrace(16)
		if err := session.Prepare(&req); err != nil {
			t.Fatal(err)
		}
		if err := session.Generate(t.Context(), tr); err != nil {
			t.Fatal(err)
		}
		prompt, output = prompt+tr.PromptTokens, output+tr.OutputTokens
	}
	after := sample()
	for key, want := range map[string]int{"prompt_tokens_total": prompt, "output_tokens_total": output, "prefix_cache_hits_total": 0} {
		a, ok := after[key]
		if !ok || int(a-before[key]) != want {
			t.Errorf("%s rose by %v, want %d", key, a-before[key], want)
		}
	}
	for _, key := range []string{"requests_running", "requests_waiting"} {
		if v, ok := after[key]; !ok || v != 0 {
			t.Errorf("%s = %v (%v) when idle", key, v, ok)
		}
	}
}

func FuzzReadMetrics(f *testing.F) {
	f.Add([]byte("# TYPE vllm:request_queue_time_seconds histogram\nvllm:request_queue_time_seconds_sum{a=\"b\"} 1\nvllm:num_requests_running 3\n"))
	f.Add([]byte("vllm:num_requests_running NaN\n{\"vllm:num_requests_waiting\"} 1e309\n"))
	f.Add([]byte("# TYPE vllm:prompt_tokens_total summary\nvllm:prompt_tokens_total{quantile=\"x\"} 1\n"))
	f.Add([]byte("# HELP vllm:prompt_tokens_total \\\n# HELP vllm:prompt_tokens_total again\n"))
	series := vllmServer().Metrics.Series
	f.Fuzz(func(t *testing.T, page []byte) {
		values, _ := readMetrics(page, Metrics{Series: series})
		for k, v := range values {
			if math.IsNaN(v) || math.IsInf(v, 0) {
				t.Errorf("%s = %v", k, v)
			}
		}
	})
}
