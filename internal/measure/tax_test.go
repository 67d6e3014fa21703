package measure

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/nativebench/nativebench/internal/bench"
)

// inProcess is an answer of 3 tokens in 64 ms, of which 9 ms are in no phase.
func inProcess() *bench.Trace {
	tr := answer(1000, 64, 20, 30, 40)
	tr.Phases = bench.Phases{Tokenize: 1 * ms, Queue: 2 * ms, Prefill: 15 * ms, Decode: 30 * ms, Sampling: 4 * ms, Detokenize: 3 * ms}
	return tr
}

// overHTTP is an answer of the same 3 tokens in 80 ms.
func overHTTP(mode string) *bench.Trace {
	tr := answer(5000, 80, 26, 50, 75)
	if mode == Sync {
		tr = whole(5000, 80, 3)
	}
	tr.Sent, tr.Connect = 5001*ms, 7*ms
	tr.Server = bench.Server{Prefill: 18 * ms, Decode: 47 * ms}
	return tr
}

func TestTaxParts(t *testing.T) {
	native := []Span{
		{Parts: []Part{{"send", 0, true}}, Server: 1 * ms, Source: "our stamps"},
		{Parts: []Part{{"tokenize", 1 * ms, false}, {"queue", 2 * ms, false}, {"http", 0, true}}},
		{Parts: []Part{{"prefill", 15 * ms, false}}, Server: 18 * ms, Source: "prompt_ms"},
		{
			Parts:  []Part{{"decode", 30 * ms, false}, {"sampling", 4 * ms, false}, {"detokenize", 3 * ms, false}, {"hand_over", 9 * ms, false}},
			Server: 47 * ms, Source: "predicted_ms",
		},
	}
	for mode, want := range map[string][]Span{
		Sync:   slices.Clone(native), // 80 − 1 − 18 − 47
		Stream: append(slices.Clone(native), Span{Parts: []Part{{"http_after", 0, true}}, Server: 7 * ms, Source: "rest after t1"}),
	} {
		want[1].Server, want[1].Source = 14*ms, "rest"
		if mode == Stream {
			want[1].Server, want[1].Source = 7*ms, "rest to t1" // 26 − 1 − 18, and then 80 − 26 − 47
		}
		tax, ok := TaxOf(group(mode, inProcess()), group(mode, overHTTP(mode)))
		if !ok || tax.Pairs != 1 || tax.Of != 1 || tax.Native != 64*ms || tax.Server != 80*ms || tax.Connect != 7*ms || tax.Differ != 0 {
			t.Errorf("%s: %+v %v", mode, tax, ok)
		}
		if diff := cmp.Diff(want, tax.Spans); diff != "" {
			t.Errorf("%s (-want +got):\n%s", mode, diff)
		}
	}
}

// TestTaxAddsUp: whatever was stamped, the parts are the totals, to the
// nanosecond.
func TestTaxAddsUp(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ns := func(what string) int64 { return rapid.Int64Range(1, 1e12).Draw(t, what) }
		mode := rapid.SampledFrom([]string{Sync, Stream}).Draw(t, "mode")
		var natives, servers []*bench.Trace
		total, served := int64(0), int64(0)
		for range rapid.IntRange(1, 5).Draw(t, "requests") {
			n := &bench.Trace{Start: ns("start")}
			n.End = n.Start + ns("total")
			n.Phases = bench.Phases{Tokenize: ns("tokenize"), Queue: ns("queue"), Prefill: ns("prefill"), Decode: ns("decode"), Sampling: ns("sampling"), Detokenize: ns("detokenize")}
			s := &bench.Trace{Start: ns("start"), Server: bench.Server{Prefill: ns("prefill"), Decode: ns("decode")}}
			s.Sent = s.Start + ns("send")
			s.Marks = []bench.Mark{{T: s.Sent + ns("first"), N: 1}}
			s.End = s.Marks[0].T + ns("last")
			natives, servers = append(natives, n), append(servers, s)
			total, served = total+n.End-n.Start, served+s.End-s.Start
		}
		tax, ok := TaxOf(group(mode, natives...), group(mode, servers...))
		if !ok || tax.Pairs != len(natives) || tax.Native != total || tax.Server != served {
			t.Fatalf("%+v %v, want %d pairs of %d and %d ns", tax, ok, len(natives), total, served)
		}
		for _, s := range tax.Spans {
			total, served = total-s.Native(), served-s.Server
		}
		if total != 0 || served != 0 {
			t.Fatalf("parts miss the totals by %d and %d ns", total, served)
		}
	})
}

// TestTaxPairs: only what both sides answered and gave an account of counts.
func TestTaxPairs(t *testing.T) {
	change := func(mode string, f func(n, s *bench.Trace)) (Tax, bool) {
		n, s := inProcess(), overHTTP(mode)
		f(n, s)
		return TaxOf(group(mode, inProcess(), n), group(mode, overHTTP(mode), s))
	}
	for name, f := range map[string]func(n, s *bench.Trace){
		"no phases":         func(n, _ *bench.Trace) { n.Phases = bench.Phases{} },
		"no prompt_ms":      func(_, s *bench.Trace) { s.Server.Prefill = 0 },
		"no predicted_ms":   func(_, s *bench.Trace) { s.Server.Decode = 0 },
		"sending not known": func(_, s *bench.Trace) { s.Sent = 0 },
		"held-back token":   func(_, s *bench.Trace) { s.Marks = s.Marks[1:] },
	} {
		if tax, ok := change(Stream, f); !ok || tax.Pairs != 1 || tax.Of != 2 || tax.Server != 80*ms {
			t.Errorf("%s: %+v", name, tax)
		}
	}
	if tax, _ := change(Sync, func(_, s *bench.Trace) { s.OutputTokens = 5 }); tax.Pairs != 2 || tax.Differ != 1 || tax.NativeTokens != 6 || tax.ServerTokens != 8 {
		t.Errorf("other lengths: %+v", tax)
	}
	failed := group(Sync, overHTTP(Sync), overHTTP(Sync))
	failed.Cells[0].Requests[0].Class = bench.Timeout
	if tax, ok := TaxOf(group(Sync, inProcess(), inProcess()), failed); !ok || tax.Pairs != 1 || tax.Of != 1 {
		t.Errorf("a failed answer: %+v", tax)
	}
	failed.Cells[0].Repeat = 1
	if tax, ok := TaxOf(group(Sync, inProcess(), inProcess()), failed); ok || tax.Of != 0 {
		t.Errorf("another repeat: %+v", tax)
	}
}
