package timeline

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
)

// event is one object of Chrome's Trace Event Format.
type event struct {
	Phase string `json:"ph"` // M metadata, B and E begin and end of a slice, i instant, C counter
	Pid   int    `json:"pid"`
	Tid   int    `json:"tid,omitempty"`
	T     micros `json:"ts"`
	Name  string `json:"name,omitempty"`
	Kind  string `json:"cat,omitempty"`
	Scope string `json:"s,omitempty"` // of an instant: t, its thread
	Args  any    `json:"args,omitempty"`
}

// micros is nanoseconds that are written as the format wants them, decimal
// microseconds, without loss.
type micros int64

func (n micros) MarshalJSON() ([]byte, error) {
	if n < 0 {
		return nil, fmt.Errorf("%d ns: before the run began", int64(n))
	}
	b := strconv.AppendInt(nil, int64(n)/1000, 10)
	if rest := int64(n) % 1000; rest > 0 {
		b = fmt.Appendf(b, ".%03d", rest)
	}
	return b, nil
}

// args of an event; JSON writes them sorted by name.
type args map[string]any

// set adds an argument that says something: not 0, "" or an empty list.
func (a args) set(name string, value any) {
	switch v := value.(type) {
	case string:
		if v == "" {
			return
		}
	case int:
		if v == 0 {
			return
		}
	case []string:
		if len(v) == 0 {
			return
		}
	}
	a[name] = value
}

// writer writes the events of a trace one by one. Its first error stays.
type writer struct {
	out *bufio.Writer
	n   int
	err error
}

// newWriter begins a trace; about is what viewers show of it as a whole.
func newWriter(w io.Writer, about any) *writer {
	tw := &writer{out: bufio.NewWriterSize(w, 64<<10)}
	tw.write(`{"displayTimeUnit":"ns","otherData":`)
	tw.marshal(about)
	tw.write(`,"traceEvents":[`)
	return tw
}

func (w *writer) write(s string) {
	if w.err == nil {
		_, w.err = w.out.WriteString(s)
	}
}

func (w *writer) marshal(v any) {
	b, err := json.Marshal(v)
	if w.err == nil {
		w.err = err
	}
	if w.err == nil {
		_, w.err = w.out.Write(b)
	}
}

func (w *writer) event(e event) {
	if w.n++; w.n > 1 {
		w.write(",")
	}
	w.write("\n")
	w.marshal(e)
}

func (w *writer) close() error {
	w.write("\n]}\n")
	if w.err == nil {
		w.err = w.out.Flush()
	}
	return w.err
}

// name names a process, or a thread of it.
func (w *writer) name(pid, tid int, name string) {
	what := "process_name"
	if tid != 0 {
		what = "thread_name"
	}
	w.event(event{Phase: "M", Pid: pid, Tid: tid, Name: what, Args: args{"name": name}})
	w.event(event{Phase: "M", Pid: pid, Tid: tid, Name: what[:len(what)-len("name")] + "sort_index", Args: args{"sort_index": max(pid, tid)}})
}

// begin opens a slice; the next end on its track closes it.
func (w *writer) begin(pid, tid int, t int64, kind, name string, a args) {
	e := event{Phase: "B", Pid: pid, Tid: tid, T: micros(t), Kind: kind, Name: name}
	if len(a) > 0 {
		e.Args = a
	}
	w.event(e)
}

func (w *writer) end(pid, tid int, t int64) {
	w.event(event{Phase: "E", Pid: pid, Tid: tid, T: micros(t)})
}

func (w *writer) instant(pid, tid int, t int64, kind, name string, a any) {
	w.event(event{Phase: "i", Pid: pid, Tid: tid, T: micros(t), Kind: kind, Name: name, Scope: "t", Args: a})
}

// counter sets a counter of a process. Perfetto shows "name (unit)".
func (w *writer) counter(pid int, t int64, name, unit string, value float64) {
	w.event(event{Phase: "C", Pid: pid, T: micros(t), Name: name, Args: args{"(" + unit + ")": value}})
}

// endCounter says that a counter is not known from t on: NaN, which JSON has no
// number for. Perfetto reads it (NULL in its SQL) and draws nothing.
func (w *writer) endCounter(pid int, t int64, name, unit string) {
	w.event(event{Phase: "C", Pid: pid, T: micros(t), Name: name, Args: args{"(" + unit + ")": "NaN"}})
}
