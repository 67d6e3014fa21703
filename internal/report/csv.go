package report

import (
	"encoding/csv"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/nativebench/nativebench/internal/measure"
	"github.com/nativebench/nativebench/internal/results"
	"github.com/nativebench/nativebench/internal/stats"
)

// csvHeader names the columns of the CSV format. Numbers are in the unit that
// the row names, never scaled; an empty field is not known, and missing says
// why there is no value. retried and left_out are of ok and in no other number.
func csvHeader() []string {
	return []string{
		"run", "run_id", "load", "model", "synthetic_weights", "relative", "task", "prompt_tokens", "mode", "concurrency", "backend",
		"metric", "unit", "better",
		"n", "median", "median_lo", "median_hi", "mean", "min", "max", "p90", "p99", "count",
		"repeat_spread", "reference", "ratio", "ratio_lo", "ratio_hi", "p_value", "test", "verdict",
		"missing", "warnings",
		"ok", "retried", "left_out", "failed", "cut_off", "repeats_done", "repeats_planned", "paired", "paired_of", "no_verdict_because", "notes",
	}
}

// CSV writes one row per load, backend and metric, in base units.
func CSV(w io.Writer, runs []*results.Run, _ Options) error {
	d, err := newDocument(runs)
	if err != nil {
		return err
	}
	out := csv.NewWriter(w)
	if err := out.Write(csvHeader()); err != nil {
		return err
	}
	for _, v := range d.runs {
		for _, l := range v.loads {
			for _, s := range l.seats {
				for _, e := range s.summary.Estimates {
					if err := out.Write(s.csvRow(e)); err != nil {
						return err
					}
				}
			}
		}
	}
	out.Flush()
	return out.Error()
}

func (s *seat) csvRow(e measure.Estimate) []string {
	l := s.load
	prompt, number := "", ""
	if l.sweep() {
		prompt = strconv.Itoa(l.Prompt)
	}
	if e.Column.Count != nil && e.Known() {
		number = strconv.Itoa(e.Count)
	}
	row := []string{
		l.run.Dir, l.run.Manifest.RunID, l.Load, l.Model, strconv.FormatBool(l.run.synthetic(l.Model)), l.run.model(l.Model).Relative, l.Task, prompt, l.Mode,
		strconv.Itoa(l.Concurrency), s.backend,
		e.Column.Key, e.Column.Unit, string(e.Column.Better),
		strconv.Itoa(e.N), decimal(e.Median), decimal(e.Lo), decimal(e.Hi), decimal(e.Mean), decimal(e.Min), decimal(e.Max),
		decimal(e.P90), decimal(e.P99), number, decimal(e.Spread),
	}
	against, pairing := make([]string, 7), make([]string, 3)
	if ref := s.ref(); ref != nil {
		if c, ok := s.compared(ref, e.Column.Key); ok {
			against = []string{ref.backend, decimal(c.Ratio), decimal(c.Lo), decimal(c.Hi), decimal(c.P), testName(c), string(c.Verdict)}
			pairing = []string{strconv.Itoa(c.Used), strconv.Itoa(c.Of), c.Why}
		}
	}
	row = append(row, against...)
	row = append(row, e.Missing, strings.Join(e.Warnings, "; "),
		strconv.Itoa(s.summary.OK), strconv.Itoa(s.summary.Retried), strconv.Itoa(s.spoilt()), strconv.Itoa(s.summary.Requests-s.summary.OK), strconv.Itoa(s.summary.CutOff),
		strconv.Itoa(s.whole), strconv.Itoa(len(s.cells)))
	return append(append(row, pairing...), strings.Join(slices.Concat(s.trouble, s.summary.Notes, s.remarks), "; "))
}

// spoilt is how many answers, of those that are ok, are in no number for a
// warning.
func (s *seat) spoilt() (n int) {
	for _, of := range s.summary.LeftOut {
		n += of
	}
	return n
}

// testName is the test that a p-value comes from.
func testName(c stats.Comparison) string {
	if c.Paired {
		return "wilcoxon_signed_rank"
	}
	return "mann_whitney_u"
}

// decimal prints a number so that reading it gives the same number; NaN as
// nothing.
func decimal(v float64) string {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return ""
	}
	return strconv.FormatFloat(v, 'g', -1, 64)
}
