package results

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"unicode/utf8"

	"github.com/nativebench/nativebench/internal/bench"
)

// MaxLine is the longest line, in bytes with its newline, that a writer writes
// and a reader takes. A request of 100,000 tokens needs about 4 MB.
const MaxLine = 64 << 20

// Fill puts into r what was stamped of its request and how it ended; err is
// what Prepare or Generate returned. It copies everything that the trace owns,
// so the trace may be reused at once.
func (r *Record) Fill(tr *bench.Trace, err error) {
	r.Trace = *tr
	r.Trace.Marks = slices.Clone(tr.Marks)
	r.Trace.Warnings = slices.Clone(tr.Warnings)
	r.Text, r.Tokens = string(tr.Text), slices.Clone(tr.Tokens)
	r.Trace.Text, r.Trace.Tokens = nil, nil // hidden by Record's own
	r.Class, r.Error = bench.ClassOf(err), ""
	if err != nil {
		r.Error = err.Error()
	}
}

// FullTrace returns the trace with the text and token ids back in it.
func (r *Record) FullTrace() bench.Trace {
	tr := r.Trace
	tr.Text, tr.Tokens = []byte(r.Text), r.Tokens
	return tr
}

// OK says whether the request gave a usable answer.
func (r *Record) OK() bool { return r.Class == bench.OK }

type plainRecord Record // Record without its methods

// recordWire is a Record as a line holds it: marks as pairs relative to
// start_ns, and the exact bytes of a text that is not UTF-8.
type recordWire struct {
	*plainRecord
	Marks  []wireMark `json:"marks"`
	Text   string     `json:"text"`
	Binary []byte     `json:"text_b64,omitempty"`
}

// wireMark is [nanoseconds since start_ns, cumulative tokens].
type wireMark [2]int64

// UnmarshalJSON takes exactly two numbers; an array of Go would take any count.
func (m *wireMark) UnmarshalJSON(b []byte) error {
	var pair []int64
	if err := json.Unmarshal(b, &pair); err != nil {
		return err
	}
	if len(pair) != 2 {
		return fmt.Errorf("a mark has %d numbers instead of 2", len(pair))
	}
	if pair[1] < math.MinInt32 || pair[1] > math.MaxInt32 {
		return fmt.Errorf("a mark counts %d tokens", pair[1])
	}
	*m = wireMark{pair[0], pair[1]}
	return nil
}

// MarshalJSON writes the form described in docs/run-directory.md.
func (r Record) MarshalJSON() ([]byte, error) {
	plain := plainRecord(r)
	w := recordWire{plainRecord: &plain, Text: r.Text, Marks: make([]wireMark, len(r.Marks))}
	for i, m := range r.Marks {
		// Differences may wrap around for stamps of no clock; adding wraps back.
		w.Marks[i] = wireMark{m.T - r.Start, int64(m.N)}
	}
	if !utf8.ValidString(r.Text) {
		w.Text = string(bytes.ToValidUTF8([]byte(r.Text), []byte("\uFFFD")))
		w.Binary = []byte(r.Text)
	}
	return marshal(w)
}

// UnmarshalJSON reads what MarshalJSON writes.
func (r *Record) UnmarshalJSON(b []byte) error {
	var plain plainRecord
	w := recordWire{plainRecord: &plain}
	if err := json.Unmarshal(b, &w); err != nil {
		return err
	}
	*r = Record(plain)
	r.Text = w.Text
	if len(w.Binary) > 0 {
		r.Text = string(w.Binary)
	}
	r.Trace.Marks = nil
	if len(w.Marks) > 0 {
		r.Trace.Marks = make([]bench.Mark, len(w.Marks))
		for i, m := range w.Marks {
			r.Trace.Marks[i] = bench.Mark{T: r.Start + m[0], N: int32(m[1])}
		}
	}
	return nil
}

type plainManifest Manifest

type manifestWire struct {
	*plainManifest
	Plan json.RawMessage `json:"plan"`
}

// UnmarshalJSON keeps the plan as it was written (a json.RawMessage in Plan):
// a generic decode would turn its 64-bit seeds into floating-point numbers.
func (m *Manifest) UnmarshalJSON(b []byte) error {
	var plain plainManifest
	w := manifestWire{plainManifest: &plain}
	if err := json.Unmarshal(b, &w); err != nil {
		return err
	}
	*m = Manifest(plain)
	m.Plan = nil
	if len(w.Plan) > 0 && string(w.Plan) != "null" {
		m.Plan = w.Plan
	}
	return nil
}

// DecodePlan decodes the plan into a value of its own type, whether the
// manifest was read from a file or still holds the value itself.
func (m *Manifest) DecodePlan(into any) error {
	if m.Plan == nil {
		return errors.New("the manifest holds no plan")
	}
	b, err := marshal(m.Plan)
	if err != nil {
		return fmt.Errorf("the manifest's plan: %w", err)
	}
	if err := json.Unmarshal(b, into); err != nil {
		return fmt.Errorf("the manifest's plan: %w", err)
	}
	return nil
}

type plainSample Sample

// MarshalJSON leaves out values that are not finite numbers: JSON has no way
// to write them and they say nothing.
func (s Sample) MarshalJSON() ([]byte, error) {
	values := make(map[string]float64, len(s.Values))
	for k, v := range s.Values {
		if !math.IsNaN(v) && !math.IsInf(v, 0) {
			values[k] = v
		}
	}
	s.Values = values
	return marshal(plainSample(s))
}

type plainHostUse HostUse

// MarshalJSON writes -1, "not known", for a value that is not a finite number.
func (h HostUse) MarshalJSON() ([]byte, error) {
	for _, v := range []*float64{&h.CPUSeconds, &h.OtherCores, &h.MeanMHz, &h.ProbeSeconds} {
		if math.IsNaN(*v) || math.IsInf(*v, 0) {
			*v = -1
		}
	}
	return marshal(plainHostUse(h))
}

// marshal is json.Marshal without the escapes meant for HTML, so that the text
// in a line can be searched for as it is.
func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// encodeLine makes the line of v, newline included.
func encodeLine(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	if b.Len() > MaxLine {
		return nil, fmt.Errorf("it needs a line of %d bytes, more than the %d that a reader takes", b.Len(), MaxLine)
	}
	return b.Bytes(), nil
}

// marshalIndent makes the readable form of manifest.json.
func marshalIndent(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}
