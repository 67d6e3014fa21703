package report

import (
	"fmt"
	"io"
	"strings"

	"github.com/nativebench/nativebench/internal/measure"
)

// Explain writes what metrics mean: definition, clock, token count, window, and
// how other tools define them. The error of an unknown key lists the keys; then
// nothing was written.
func Explain(w io.Writer, keys []string, opt Options) error {
	p := newPrinter(w, opt)
	for i, key := range keys {
		c, err := measure.ByKey(key)
		if err != nil {
			return err
		}
		if i > 0 {
			p.blank()
		}
		p.section(explanation(c))
	}
	_, err := io.WriteString(w, p.out.String())
	return err
}

func explanation(c measure.Column) section {
	s := section{title: c.Name + " · " + c.Key, rank: 2}
	say := func(name, text string) {
		if text != "" {
			s.facts = append(s.facts, fact{name: name, text: text})
		}
	}
	say("definition", c.Definition)
	say("unit", unitText(c))
	say("window", c.Window)
	say("clock", c.Clock)
	say("tokens", c.TokenCount)
	say("sync mode", syncText(c))
	for i, t := range c.Elsewhere {
		name := ""
		if i == 0 {
			name = "elsewhere"
		}
		s.facts = append(s.facts, fact{name: name, text: t.Name + ": " + t.Definition})
	}
	return s
}

// ExplainAll lists the metrics with their definitions in short.
func ExplainAll(w io.Writer, opt Options) error {
	p := newPrinter(w, opt)
	s := section{title: "metrics", rank: 1}
	for _, c := range measure.Columns() {
		s.facts = append(s.facts, fact{name: c.Key, text: fmt.Sprintf("%s, %s: %s", c.Name, unitText(c), firstSentence(c.Definition))})
	}
	p.section(s)
	p.blank()
	p.wrapped("  ", "  ", symbols, faint)
	p.wrapped("  ", "  ", "nativebench explain METRIC says more: clock, token count, window, and how other tools define it.", faint)
	_, err := io.WriteString(w, p.out.String())
	return err
}

const symbols = "t0 is just before the request's first byte is written (over HTTP) or the engine is called (in process); t1 and tL are the arrivals of the first and the last token; n is the number of output tokens."

func unitText(c measure.Column) string {
	switch c.Better {
	case measure.Lower:
		return c.Unit + ", lower is better"
	case measure.Higher:
		return c.Unit + ", higher is better"
	}
	return c.Unit
}

// syncText says what the metric is in sync mode, when it is not measured there.
func syncText(c measure.Column) string {
	if c.Absent == nil {
		return ""
	}
	if why := c.Absent(&measure.Group{Mode: measure.Sync, Concurrency: 2, Expect: [2]int{1, 2}}); why != "" {
		return "—: " + why
	}
	return ""
}

// MetricsDoc writes docs/metrics.md.
func MetricsDoc(w io.Writer) error {
	var b strings.Builder
	b.WriteString("# What the numbers mean\n\n" +
		"<!-- Written by `nativebench explain --format md`; a test compares them. -->\n\n")
	fmt.Fprintf(&b, "%s All times are nanoseconds of CLOCK_MONOTONIC inside; reports scale them. Warm-up requests are in none of the numbers. "+
		"Failed requests are counted by class and are in none of the others, except that a worker is busy while it waits for one.\n\n", symbols)
	b.WriteString("A request counts when it succeeded at once and its answer is what was asked for, as far as can be known. Answers with one of these warnings are counted by class beside the succeeded and the failed, kept in `requests.jsonl`, and left out of latencies, speeds, rates, token counts and comparisons: " +
		"`cut_short` (ended for length before the asked length), `short_output` (too short with end-of-sequence ignored), `count_mismatch` (the server's token count and its events, ids or text disagree, or more events came than tokens were asked for), `no_finish` (no word on why it ended), `redialled` (sent again on a new connection, since the server had closed the old one without saying so). " +
		"These qualify an answer that counts: `held_back` (the answer ended inside a UTF-8 sequence: all its tokens were made and stamped), `no_usage` (nobody counted the tokens: times count, what is per token has no value of it, and its length was not checked), " +
		"`prefix_cache` (prompt tokens came from a cache that should be off: its times count, but what holds prefill, that is all but time per token, gaps, decode speed and memory, gets no verdict). " +
		"Rates and energy are of the whole window, of which failed, retried and left-out requests took their part: they are then lower (energy per request and token higher) than without those, and get no verdict. Tables count under `ok` what succeeded and is not left out, and name the retried; `ok` of CSV and JSON is all that succeeded, of which `retried` and `left_out` do not count.\n\n")
	b.WriteString("Values of requests are pooled over the repeats. Quantiles are exact (type 7 of Hyndman and Fan). The median has the distribution-free 95 % interval by order statistics over the medians of different requests, from 6 on; p99 is given from 100 different requests on (of gaps: 20 requests and 100 gaps). " +
		"The interval takes different requests as independent; repeats ask the same requests again and add none, so it speaks of requests like these more than of the machine's mood, for which the repeats' own spread is there: above 1.10 a report says so.\n\n" +
		"A ratio is median over median. Requests of two backends are paired: the same place in the same load is the same prompt, seed and cap. Only what both sides answered in the same repeat goes into the ratio, its interval and the test. The 95 % interval is a percentile bootstrap that draws repeats and requests, both sides together; " +
		"the test is Wilcoxon's signed-rank test of the log ratios per request. Of gaps, each request's own median gap is compared. Throughput has one value per repeat, of repeats that both sides ran to their end, and is compared unpaired (bootstrap, Mann-Whitney U). A difference counts when p < 0.05 and the interval leaves out 1. There is no verdict with one repeat, where repeats disagree, where a cell was warned of a busy machine or of prefix-cache hits, for rates and energy where requests failed, were retried or are left out, and, for total latency and requests/s, where the answers' lengths differ by more than 2 %. Seeds of the bootstrap are fixed: the same directory gives the same report.\n\n")
	b.WriteString("| metric | name | unit | better | sync | stream |\n|---|---|---|---|---|---|\n")
	for _, c := range measure.Columns() {
		sync := "yes"
		if syncText(c) != "" {
			sync = "—"
		}
		fmt.Fprintf(&b, "| [`%s`](#%s) | %s | %s | %s | %s | yes |\n", c.Key, c.Key, escape(c.Name), c.Unit, c.Better, sync)
	}
	for _, c := range measure.Columns() {
		fmt.Fprintf(&b, "\n## %s\n\n%s\n\n", c.Key, escape(upper(c.Definition)+"."))
		for _, f := range explanation(c).facts[1:] {
			switch {
			case f.name == "elsewhere":
				fmt.Fprintf(&b, "- elsewhere:\n  - %s\n", escape(f.text))
			case f.name == "":
				fmt.Fprintf(&b, "  - %s\n", escape(f.text))
			default:
				fmt.Fprintf(&b, "- %s: %s\n", f.name, escape(f.text))
			}
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// upper makes the first letter a capital, but not of a formula.
func upper(s string) string {
	if word, _, _ := strings.Cut(s, " "); len(word) > 2 && !strings.ContainsAny(word, "/()−") {
		return strings.ToUpper(s[:1]) + s[1:]
	}
	return s
}
