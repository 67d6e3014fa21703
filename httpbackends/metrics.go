package httpbackends

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

const (
	scrapeTimeout = time.Second
	// maxScrape bounds the page, in bytes: vLLM's has 54 kB.
	maxScrape = 8 << 20
)

// Scraper reads a server's own view of its work from its Prometheus page. It
// is a probe of telemetry with the subject "server". One goroutine at a time.
//
// https://prometheus.io/docs/instrumenting/exposition_formats/
type Scraper struct {
	b      *backend // for the endpoint alone
	client *http.Client
	refuse bool // the server has no such page: it is not asked again
}

// NewScraper returns nil for a server whose row names no metrics.
func NewScraper(cfg Config) (*Scraper, error) {
	if cfg.Server.Metrics.Path == "" {
		return nil, nil
	}
	b := &backend{cfg: cfg}
	if err := b.parse(cfg.Endpoint); err != nil {
		return nil, err
	}
	return &Scraper{b: b, client: &http.Client{
		// A connection that is kept open would occupy one of the server's threads.
		Transport:     &http.Transport{DisableKeepAlives: true, TLSClientConfig: b.tls},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Timeout:       scrapeTimeout,
	}}, nil
}

// Subject is "server".
func (s *Scraper) Subject() string { return "server" }

// Sample asks the server once and puts in the row's series that it shows, by
// their keys, and scrape_seconds, how long asking took. A server that has no
// such page is told once, in an error, and not asked again.
func (s *Scraper) Sample(into map[string]float64) error {
	if s.refuse {
		return nil
	}
	began := time.Now()
	page, err := s.page()
	if err != nil {
		return err
	}
	took := time.Since(began).Seconds()
	values, err := readMetrics(page, s.b.cfg.Server.Metrics)
	if len(values) == 0 && err == nil {
		s.refuse = true
		return fmt.Errorf("%s shows none of its known series at GET %s: another version?", s.b.cfg.Server.Name, s.b.cfg.Server.Metrics.Path)
	}
	if len(values) == 0 {
		return fmt.Errorf("GET %s is not Prometheus text: %w", s.b.cfg.Server.Metrics.Path, err)
	}
	for k, v := range values {
		into[k] = v
	}
	into["scrape_seconds"] = took
	if err != nil {
		return fmt.Errorf("GET %s is Prometheus text in part only: %w", s.b.cfg.Server.Metrics.Path, err)
	}
	return nil
}

func (s *Scraper) page() ([]byte, error) {
	path := s.b.cfg.Server.Metrics.Path
	req, err := http.NewRequest(http.MethodGet, s.b.where()+path, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "text/plain;version=0.0.4")
	if s.b.cfg.APIKey != "" {
		req.Header.Set("Authorization", "Bearer "+s.b.cfg.APIKey)
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("GET %s: %w", path, plainError(err))
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		switch resp.StatusCode / 100 {
		case 3, 4: // nor will it answer the next
			s.refuse = true
		}
		advice := ""
		if resp.StatusCode == http.StatusNotImplemented {
			s.refuse = true
			if s.b.cfg.Server.Name == "llama-server" {
				advice = ": start it with --metrics"
			}
		}
		return nil, fmt.Errorf("the server shows no metrics: GET %s answers %d%s", path, resp.StatusCode, advice)
	}
	page, err := io.ReadAll(io.LimitReader(resp.Body, maxScrape+1))
	if err != nil {
		return nil, fmt.Errorf("GET %s: %w", path, plainError(err))
	}
	if len(page) > maxScrape {
		s.refuse = true
		return nil, fmt.Errorf("GET %s answers with more than %d MiB: left alone", path, maxScrape>>20)
	}
	return page, nil
}

// plainError keeps ports and addresses out of a message, so that an error that
// comes again has the same text.
func plainError(err error) error {
	var timeout interface{ Timeout() bool }
	if errors.As(err, &timeout) && timeout.Timeout() {
		return fmt.Errorf("no whole answer within %s", scrapeTimeout)
	}
	var wrapped *url.Error
	if errors.As(err, &wrapped) {
		err = wrapped.Err
	}
	for inner := errors.Unwrap(err); inner != nil; inner = errors.Unwrap(err) {
		err = inner
	}
	return err
}

// readMetrics picks the series out of a page, by their keys; what the page does
// not show is absent. With an error it returns what stood before the error.
func readMetrics(page []byte, of Metrics) (map[string]float64, error) {
	parser := expfmt.NewTextParser(model.UTF8Validation) // vllm:… and the dots of some
	families, err := parser.TextToMetricFamilies(bytes.NewReader(page))
	values := map[string]float64{}
	for _, s := range of.Series {
		for _, name := range s.Names {
			if v, ok := sum(families, name); ok {
				values[s.Key] = v
				break
			}
		}
	}
	for _, l := range of.Labels {
		if v, ok := labelled(families[l.Name], l.Labels); ok {
			values[l.Key] = v
		}
	}
	return values, err
}

// labelled multiplies the numbers in labels and adds up over the label sets. Not
// ok: one of them is not there, or is no number.
func labelled(family *dto.MetricFamily, names []string) (total float64, ok bool) {
	for _, m := range family.GetMetric() {
		product, found := 1.0, 0
		for _, l := range m.GetLabel() {
			if !slices.Contains(names, l.GetName()) {
				continue
			}
			v, err := strconv.ParseFloat(l.GetValue(), 64)
			if err != nil || v-v != 0 {
				return 0, false
			}
			product *= v
			found++
		}
		if found != len(names) {
			return 0, false
		}
		total, ok = total+product, true
	}
	return total, ok
}

// sum adds a series up over its label sets. NAME_sum and NAME_count are those
// of the histogram or summary NAME. Not ok: it is not there, or no number.
func sum(families map[string]*dto.MetricFamily, name string) (total float64, ok bool) {
	part := func(m *dto.Metric) (float64, bool) {
		switch {
		case m.Counter != nil:
			return m.Counter.GetValue(), true
		case m.Gauge != nil:
			return m.Gauge.GetValue(), true
		case m.Untyped != nil:
			return m.Untyped.GetValue(), true
		}
		return 0, false // a histogram has no value of its own
	}
	family := families[name]
	if family == nil {
		if of, cut := strings.CutSuffix(name, "_sum"); cut {
			family = families[of]
			part = func(m *dto.Metric) (float64, bool) {
				if h := m.Histogram; h != nil && h.SampleSum != nil {
					return h.GetSampleSum(), true
				}
				if s := m.Summary; s != nil && s.SampleSum != nil {
					return s.GetSampleSum(), true
				}
				return 0, false
			}
		} else if of, cut := strings.CutSuffix(name, "_count"); cut {
			family = families[of]
			part = count
		}
	}
	for _, m := range family.GetMetric() {
		v, has := part(m)
		if !has || v-v != 0 { // NaN and infinity are no numbers
			return 0, false
		}
		total, ok = total+v, true
	}
	return total, ok && total-total == 0
}

// count is how many values a histogram or summary has seen.
func count(m *dto.Metric) (float64, bool) {
	switch h, s := m.Histogram, m.Summary; {
	case h != nil && h.SampleCountFloat != nil:
		return h.GetSampleCountFloat(), true
	case h != nil && h.SampleCount != nil:
		return float64(h.GetSampleCount()), true
	case s != nil && s.SampleCount != nil:
		return float64(s.GetSampleCount()), true
	}
	return 0, false
}
