package report

import (
	"encoding/json"
	"io"
	"math"
	"time"

	"github.com/nativebench/nativebench/internal/bench"
	"github.com/nativebench/nativebench/internal/measure"
	"github.com/nativebench/nativebench/internal/results"
	"github.com/nativebench/nativebench/internal/stats"
)

// jsonSchema is the version of the JSON format: it rises when a field changes
// its meaning or goes; new fields may come without.
const jsonSchema = 1

type jsonReport struct {
	Schema     int          `json:"schema"`
	Kind       string       `json:"kind"`
	Confidence float64      `json:"confidence"` // level of every interval
	Metrics    []jsonMetric `json:"metrics"`
	Runs       []jsonRun    `json:"runs"`
	Across     []jsonAcross `json:"across,omitempty"` // of several runs: the others against the first
}

// jsonAcross is a backend of one run against the same backend of the first run
// under the same load.
type jsonAcross struct {
	Load      string               `json:"load"`
	Backend   string               `json:"backend"`
	Run       string               `json:"run"`       // label
	Reference string               `json:"reference"` // label of the first run
	Versus    map[string]jsonRatio `json:"versus_reference"`
}

// jsonMetric is a definition.
type jsonMetric struct {
	Key        string     `json:"key"`
	Name       string     `json:"name"`
	Unit       string     `json:"unit"`
	Better     string     `json:"better,omitempty"`
	Definition string     `json:"definition"`
	Clock      string     `json:"clock,omitempty"`
	TokenCount string     `json:"token_count,omitempty"`
	Window     string     `json:"window"`
	Elsewhere  []jsonTool `json:"elsewhere,omitempty"`
}

type jsonTool struct {
	Tool       string `json:"tool"`
	Definition string `json:"definition"`
}

type jsonRun struct {
	Label       string                `json:"label,omitempty"`
	Dir         string                `json:"dir"`
	RunID       string                `json:"run_id"`
	Created     time.Time             `json:"created"`
	Tool        results.Tool          `json:"nativebench"`
	Plan        any                   `json:"plan"`
	Environment results.Environment   `json:"environment"`
	Clock       results.Clock         `json:"clock"`
	Models      []results.Model       `json:"models"`
	Counts      []results.PromptCount `json:"prompt_counts"`
	Backends    []results.Backend     `json:"backends"`
	SameModel   []results.SameModel   `json:"same_model,omitempty"`
	Reference   string                `json:"reference"`
	Damage      []string              `json:"damage"`
	Cells       []jsonCell            `json:"cells"`
	Loads       []jsonLoad            `json:"loads"`
	Scaling     []jsonLine            `json:"context_scaling,omitempty"`
	VRAM        []jsonVRAM            `json:"gpu_memory,omitempty"`
}

// jsonCell is where one planned cell stands.
type jsonCell struct {
	ID       string             `json:"id"`
	State    string             `json:"state"`
	Attempts int                `json:"attempts"`
	Why      string             `json:"why,omitempty"`
	Memory   []bench.MemoryPart `json:"memory,omitempty"`
	Host     *results.HostUse   `json:"host,omitempty"`
	Server   *results.ServerUse `json:"server,omitempty"`
	GPU      []results.GPUUse   `json:"gpu,omitempty"`
	NoGPU    string             `json:"gpu_missing,omitempty"`
	Warnings []string           `json:"warnings,omitempty"`
}

type jsonLoad struct {
	Load        string         `json:"load"`
	Model       string         `json:"model"`
	Synthetic   bool           `json:"synthetic_weights"`
	Relative    string         `json:"relative,omitempty"`
	Task        string         `json:"task"`
	Prompt      int            `json:"prompt_tokens,omitempty"`
	Mode        string         `json:"mode"`
	Concurrency int            `json:"concurrency"`
	Sampling    bench.Sampling `json:"sampling"`
	Expect      [2]int         `json:"expect_output_tokens"`
	Backends    []jsonSeat     `json:"backends"`
}

type jsonSeat struct {
	Backend  string                    `json:"backend"`
	Requests int                       `json:"requests"` // measured, failures included
	OK       int                       `json:"ok"`
	Retried  int                       `json:"retried,omitempty"` // of ok: only after a retry; in no metric
	LeftOut  map[bench.Warning]int     `json:"left_out"`          // of ok: in no metric for this warning
	CutOff   int                       `json:"cut_off"`           // when the run was stopped; not in requests
	Done     int                       `json:"repeats_done"`
	Planned  int                       `json:"repeats_planned"`
	Failures map[bench.Class]int       `json:"failures"`
	Warnings map[bench.Warning]int     `json:"warnings"`
	Counted  map[bench.TokenSource]int `json:"output_tokens_counted_by"`
	Trouble  []string                  `json:"trouble"`
	Notes    []string                  `json:"notes"`
	Metrics  map[string]jsonEstimate   `json:"metrics"`
	Versus   map[string]jsonRatio      `json:"versus_reference,omitempty"`
	Tax      *jsonTax                  `json:"tax,omitempty"`
}

// jsonEstimate is a metric of one backend under one load; a field that is
// not known is left out.
type jsonEstimate struct {
	N        int       `json:"n"`
	Median   *float64  `json:"median,omitempty"`
	Lo       *float64  `json:"median_lo,omitempty"`
	Hi       *float64  `json:"median_hi,omitempty"`
	Mean     *float64  `json:"mean,omitempty"`
	Min      *float64  `json:"min,omitempty"`
	Max      *float64  `json:"max,omitempty"`
	P90      *float64  `json:"p90,omitempty"`
	P99      *float64  `json:"p99,omitempty"`
	Count    *int      `json:"count,omitempty"`
	Repeats  []float64 `json:"repeats,omitempty"` // medians by repeat; of a count, the counts
	Spread   *float64  `json:"repeat_spread,omitempty"`
	Missing  string    `json:"missing,omitempty"`
	Warnings []string  `json:"warnings,omitempty"`
}

type jsonRatio struct {
	Ratio   *float64      `json:"ratio,omitempty"`
	Lo      *float64      `json:"ratio_lo,omitempty"`
	Hi      *float64      `json:"ratio_hi,omitempty"`
	P       *float64      `json:"p_value,omitempty"`
	Test    string        `json:"test"`
	Verdict stats.Verdict `json:"verdict"`
	Why     string        `json:"no_verdict_because,omitempty"`
	Used    int           `json:"paired"`
	Of      int           `json:"paired_of"`
}

// jsonLine is a fitted line of a context sweep: metric = intercept + slope ·
// prompt tokens.
type jsonLine struct {
	Model       string  `json:"model"`
	Mode        string  `json:"mode"`
	Concurrency int     `json:"concurrency"`
	Backend     string  `json:"backend"`
	Metric      string  `json:"metric"`
	Lengths     int     `json:"lengths"`
	Intercept   float64 `json:"intercept"`
	Slope       float64 `json:"slope_per_token"`
	R2          float64 `json:"r2"`
}

// JSON writes everything, definitions included, in base units.
func JSON(w io.Writer, runs []*results.Run, _ Options) error {
	d, err := newDocument(runs)
	if err != nil {
		return err
	}
	r := jsonReport{Schema: jsonSchema, Kind: "nativebench report", Confidence: stats.Confidence}
	for _, c := range measure.Columns() {
		m := jsonMetric{
			Key: c.Key, Name: c.Name, Unit: c.Unit, Better: string(c.Better), Definition: c.Definition,
			Clock: c.Clock, TokenCount: c.TokenCount, Window: c.Window,
		}
		for _, t := range c.Elsewhere {
			m.Elsewhere = append(m.Elsewhere, jsonTool{t.Name, t.Definition})
		}
		r.Metrics = append(r.Metrics, m)
	}
	for _, v := range d.runs {
		r.Runs = append(r.Runs, v.json())
	}
	r.Across = d.acrossJSON()
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(r)
}

func (v *runView) json() jsonRun {
	m := v.Manifest
	r := jsonRun{
		Label: v.label, Dir: v.Dir, RunID: m.RunID, Created: m.Created, Tool: m.Tool, Plan: m.Plan, Environment: m.Environment,
		Clock: m.Clock, Models: orEmpty(m.Models), Counts: orEmpty(m.PromptCounts), Backends: orEmpty(m.Backends), Damage: orEmpty(v.Damage),
		Cells: []jsonCell{}, Loads: []jsonLoad{},
	}
	if len(v.backends) > 0 {
		r.Reference = v.backends[0]
	}
	for _, c := range v.cells {
		j := jsonCell{ID: c.ID, State: string(c.State), Attempts: c.Attempts, Why: c.Why()}
		if e := c.Event; e != nil {
			j.Memory, j.Host, j.Server, j.GPU, j.NoGPU, j.Warnings = e.Memory, e.Host, e.Server, e.GPU, e.GPUMissing, e.Warnings
		}
		r.Cells = append(r.Cells, j)
	}
	for _, l := range v.loads {
		j := jsonLoad{
			Load: l.Load, Model: l.Model, Synthetic: v.synthetic(l.Model), Relative: v.model(l.Model).Relative, Task: l.Task, Prompt: l.Prompt, Mode: l.Mode,
			Concurrency: l.Concurrency, Sampling: l.Sampling, Expect: l.Expect, Backends: []jsonSeat{},
		}
		for _, s := range l.seats {
			j.Backends = append(j.Backends, s.json())
		}
		r.Loads = append(r.Loads, j)
	}
	r.VRAM = v.vramJSON()
	for _, sweep := range v.sweepLoads() {
		for _, b := range v.backends {
			for _, key := range sweepMetrics() {
				if f, ok := fit(sweep, b, key); ok {
					r.Scaling = append(r.Scaling, jsonLine{
						Model: sweep[0].Model, Mode: sweep[0].Mode, Concurrency: sweep[0].Concurrency, Backend: b, Metric: key,
						Lengths: f.N, Intercept: f.Intercept, Slope: f.Slope, R2: f.R2,
					})
				}
			}
		}
	}
	return r
}

func (s *seat) json() jsonSeat {
	j := jsonSeat{
		Backend: s.backend, Requests: s.summary.Requests, OK: s.summary.OK, Retried: s.summary.Retried, LeftOut: s.summary.LeftOut, CutOff: s.summary.CutOff, Done: s.whole, Planned: len(s.cells), Failures: s.summary.Failures,
		Warnings: s.summary.Warnings, Counted: s.summary.Counted, Trouble: orEmpty(s.trouble),
		Notes: append(orEmpty(s.summary.Notes), s.remarks...), Metrics: map[string]jsonEstimate{},
	}
	ref := s.ref()
	j.Tax = s.taxJSON()
	for _, e := range s.summary.Estimates {
		out := jsonEstimate{
			N: e.N, Median: known(e.Median), Lo: known(e.Lo), Hi: known(e.Hi), Mean: known(e.Mean), Min: known(e.Min), Max: known(e.Max),
			P90: known(e.P90), P99: known(e.P99), Repeats: e.Repeats, Spread: known(e.Spread), Missing: e.Missing, Warnings: e.Warnings,
		}
		if e.Column.Count != nil && e.Known() {
			out.Count = &e.Count
		}
		j.Metrics[e.Column.Key] = out
		if ref == nil {
			continue
		}
		if c, ok := s.compared(ref, e.Column.Key); ok {
			if j.Versus == nil {
				j.Versus = map[string]jsonRatio{}
			}
			j.Versus[e.Column.Key] = ratioJSON(c)
		}
	}
	return j
}

func ratioJSON(c stats.Comparison) jsonRatio {
	return jsonRatio{known(c.Ratio), known(c.Lo), known(c.Hi), known(c.P), testName(c), c.Verdict, c.Why, c.Used, c.Of}
}

// acrossJSON sets every later run against the first.
func (d *document) acrossJSON() (all []jsonAcross) {
	first := d.runs[0]
	for _, l := range first.loads {
		for _, ref := range l.seats {
			for _, v := range d.runs[1:] {
				s := v.same(ref, &notebook{})
				if s == nil {
					continue
				}
				j := jsonAcross{Load: l.Load, Backend: ref.backend, Run: v.label, Reference: first.label, Versus: map[string]jsonRatio{}}
				for _, e := range s.summary.Estimates {
					if c, ok := s.compared(ref, e.Column.Key); ok {
						j.Versus[e.Column.Key] = ratioJSON(c)
					}
				}
				all = append(all, j)
			}
		}
	}
	return all
}

// known is a number, or nothing where there is none.
func known(v float64) *float64 {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return nil
	}
	return &v
}

// orEmpty makes an empty list where there is none, so that readers need not
// know the difference.
func orEmpty[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}
