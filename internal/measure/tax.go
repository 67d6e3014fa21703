package measure

import "github.com/nativebench/nativebench/internal/bench"

// Tax splits what requests take over a server and in process into parts that add
// up to the total latency on both sides: what serving costs, and where. Times are
// sums over the pairs, in nanoseconds; Mean makes seconds of them.
type Tax struct {
	Pairs int // requests that both sides answered and gave an account of
	Of    int // requests that both sides answered and that count

	Spans          []Span
	Native, Server int64 // total latency

	NativeTokens, ServerTokens int   // output tokens
	Differ                     int   // pairs whose answers have different lengths
	Connect                    int64 // opening connections, before the clock starts: in no total
}

// Span is a stretch of the server's time that its account and our stamps bound,
// beside the parts of it that the engine in process stamps one by one.
type Span struct {
	Parts  []Part
	Server int64
	Source string // what the server's time is taken from
}

// Native is the time in process of all parts.
func (s Span) Native() (sum int64) {
	for _, p := range s.Parts {
		sum += p.Native
	}
	return sum
}

// Part is a part of a request's time. Served ones exist over a server only.
type Part struct {
	Key    string
	Native int64
	Served bool
}

// Mean makes of a sum over the pairs the mean in seconds.
func (t *Tax) Mean(sum int64) float64 { return float64(sum) / 1e9 / float64(t.Pairs) }

// TaxOf splits a server's time against that of the engine in this process, over
// the requests (by index and repeat) that both answered. It is not ok when no
// pair has what it takes: phases on one side, the server's own times on the other.
func TaxOf(native, server Group) (t Tax, ok bool) {
	answers := map[place]*bench.Trace{}
	for _, c := range native.Cells {
		for _, r := range c.Requests {
			if r.counts() {
				answers[place{r.Index, c.Repeat}] = r.Trace
			}
		}
	}
	for _, c := range server.Cells {
		for _, r := range c.Requests {
			if n := answers[place{r.Index, c.Repeat}]; n != nil && r.counts() {
				t.Of++
				if splits(n, r.Trace, server.Mode) {
					t.add(n, r.Trace, server.Mode)
				}
			}
		}
	}
	return t, t.Pairs > 0
}

// splits tells whether both traces have the stamps that a split needs. An
// answer whose first event brings several tokens, because the bytes of the first
// were held back, holds decode steps before that event.
func splits(native, server *bench.Trace, mode string) bool {
	_, timed := seconds(native.Start, native.End)
	_, sent := seconds(server.Start, server.Sent)
	_, ended := seconds(server.Sent, server.End)
	return timed && sent && ended && native.Phases != (bench.Phases{}) && server.Server.Prefill > 0 && server.Server.Decode > 0 &&
		(mode != Stream || len(server.Marks) > 0 && server.Marks[0].N == 1)
}

// add adds a pair. What llama.cpp's server calls prompt_ms runs from the moment
// a slot takes the prompt up, tokenized and out of the queue, until the first
// token is chosen; predicted_ms from there until the last token is chosen. So
// the sampling of all tokens but the first, the detokenizing of all but the last
// and handing them to the thread that writes HTTP lie in predicted_ms.
// https://github.com/ggml-org/llama.cpp/blob/master/tools/server/server-context.cpp
func (t *Tax) add(native, server *bench.Trace, mode string) {
	p, s := native.Phases, server.Server
	inProcess, served := native.End-native.Start, server.End-server.Start
	spans := []Span{
		{[]Part{{"send", 0, true}}, server.Sent - server.Start, "our stamps"},
		{[]Part{{"tokenize", p.Tokenize, false}, {"queue", p.Queue, false}, {"http", 0, true}}, server.End - server.Sent - s.Prefill - s.Decode, "rest"},
		{[]Part{{"prefill", p.Prefill, false}}, s.Prefill, "prompt_ms"},
		{
			[]Part{{"decode", p.Decode, false}, {"sampling", p.Sampling, false}, {"detokenize", p.Detokenize, false}, {"hand_over", inProcess - p.Sum(), false}},
			s.Decode, "predicted_ms",
		},
	}
	if mode == Stream {
		after := server.End - server.FirstToken() - s.Decode
		spans[1].Server -= after
		spans[1].Source = "rest to t1"
		spans = append(spans, Span{[]Part{{"http_after", 0, true}}, after, "rest after t1"})
	}
	if t.Pairs++; t.Pairs == 1 {
		t.Spans = spans
	} else {
		for i, s := range spans {
			t.Spans[i].Server += s.Server
			for j, p := range s.Parts {
				t.Spans[i].Parts[j].Native += p.Native
			}
		}
	}
	t.Native += inProcess
	t.Server += served
	t.NativeTokens += native.OutputTokens
	t.ServerTokens += server.OutputTokens
	if native.OutputTokens != server.OutputTokens {
		t.Differ++
	}
	t.Connect += server.Connect
}
