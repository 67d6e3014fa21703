package httpbackends

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nativebench/nativebench/internal/bench"
)

// dialectEvents are events of each dialect with content, as in mid-stream.
var dialectEvents = map[Dialect][]string{
	OpenAICompletions{}: {
		`{"id":"cmpl-1","object":"text_completion","created":1,"model":"gpt2","choices":[{"index":0,"text":" wörd\n","logprobs":null,"finish_reason":null,"stop_reason":null,"prompt_token_ids":null,"token_ids":[8030]}],"usage":{"prompt_tokens":4,"total_tokens":5,"completion_tokens":1}}`,
	},
	OpenAIChat{}: {
		`{"object":"chat.completion.chunk","choices":[{"index":0,"delta":{"role":"assistant","content":" wörd\n"},"logprobs":null,"finish_reason":null}],"usage":null}`,
		`{"object":"chat.completion.chunk","choices":[{"index":0,"delta":{"reasoning_content":"hm","content":null},"finish_reason":null}]}`,
	},
	TGI{}: {
		`{"index":1,"token":{"id":8805,"text":" mad","logprob":-1.5,"special":false},"generated_text":null,"details":null}`,
		`{"index":2,"token":{"id":50256,"text":"<|endoftext|>","logprob":-1.5,"special":true},"generated_text":null,"details":null,"top_tokens":[{"id":1,"text":"a","logprob":-1,"special":false}]}`,
	},
	Ollama{}: {
		`{"model":"a","created_at":"2026-01-01T00:00:00Z","response":" wörd\n","done":false}`,
		`{"model":"a","response":"","thinking":"hm","done":false}`,
	},
}

// No dialect allocates for an event.
func TestEventsDoNotAllocate(t *testing.T) {
	for dialect, events := range dialectEvents {
		for _, e := range events {
			tr := bench.NewTrace(16)
			a, data := newTestAnswer(tr, true), []byte(e)
			fresh := *a
			allocs := testing.AllocsPerRun(100, func() {
				tr.Reset()
				*a = fresh
				if err := dialect.event(a, data); err != nil {
					t.Fatal(err)
				}
			})
			if allocs != 0 || tr.Events != 1 || len(tr.Marks) != 1 {
				t.Errorf("%s: %v allocations, %d events for %s", dialect.Name(), allocs, tr.Events, e)
			}
		}
	}
}

// What comes without a text of its own, and in odd shapes.
func TestOddEvents(t *testing.T) {
	for _, tc := range []struct {
		name    string
		dialect Dialect
		events  []string
		text    string
		marks   []int32
		server  bench.Server
	}{
		{"a role alone is no content", OpenAIChat{}, []string{`{"choices":[{"delta":{"role":"assistant","content":""}}],"usage":{"completion_tokens":0}}`, `{"choices":[{"delta":{"role":"assistant"}}]}`}, "", nil, bench.Server{}},
		{"delta is an array, an empty object, null, absent", OpenAIChat{}, []string{`{"choices":[{"delta":[]}]}`, `{"choices":[{"delta":{}}]}`, `{"choices":[{"delta":null}]}`, `{"choices":[{}]}`, `{"choices":[]}`}, "", nil, bench.Server{}},
		{"reasoning, under both names and then the answer", OpenAIChat{}, []string{`{"choices":[{"delta":{"reasoning":"a","reasoning_content":"a"}}]}`, `{"choices":[{"delta":{"reasoning":"b","content":"c"}}]}`, `{"choices":[{"delta":{"content":"d"}}]}`}, "abcd", []int32{1, 2, 3}, bench.Server{}},
		{"a running count goes on without text", OpenAICompletions{}, []string{`{"choices":[{"text":""}],"usage":{"completion_tokens":1}}`, `{"choices":[{"text":"a"}],"usage":{"completion_tokens":3}}`, `{"choices":[{"text":""}],"usage":{"completion_tokens":3}}`}, "a", []int32{1, 3}, bench.Server{}},
		{"ids without text under a running count", OpenAICompletions{}, []string{`{"choices":[{"text":"","token_ids":[5]}],"usage":{"completion_tokens":1}}`, `{"choices":[{"text":"","token_ids":[6]}],"usage":{"completion_tokens":2}}`}, "", []int32{1, 2}, bench.Server{}},
		{
			"phases of our Transformers server",
			OpenAICompletions{},
			[]string{`{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2},"timings":{"tokenize_ms":0.5,"queue_ms":1,"prefill_ms":2,"decode_ms":3.25}}`},
			"", nil,
			bench.Server{Tokenize: 500_000, Queue: 1_000_000, Prefill: 2_000_000, Decode: 3_250_000},
		},
		{"TGI: held back, special", TGI{}, []string{`{"token":{"id":1,"text":""}}`, `{"token":{"id":2,"text":"é"}}`, `{"token":{"id":3,"text":"</s>","special":true}}`}, "é", []int32{1, 2, 3}, bench.Server{}},
		{
			"Ollama: durations over 2 s",
			Ollama{},
			[]string{`{"response":"a","done":false}`, `{"response":"","done":true,"done_reason":"stop","prompt_eval_count":7,"prompt_eval_duration":3000000000,"eval_count":2,"eval_duration":5000000001}`},
			"a",
			[]int32{1},
			bench.Server{PromptTokens: 7, OutputTokens: 2, Prefill: 3_000_000_000, Decode: 5_000_000_001},
		},
	} {
		tr := bench.NewTrace(16)
		a := newTestAnswer(tr, true)
		for i, e := range tc.events {
			a.at = int64(100 * (i + 1))
			if err := tc.dialect.event(a, []byte(e)); err != nil {
				t.Errorf("%s: %v", tc.name, err)
			}
		}
		var marks []int32
		for _, m := range tr.Marks {
			marks = append(marks, m.N)
		}
		if string(tr.Text) != tc.text || !slices.Equal(marks, tc.marks) || tr.Server != tc.server {
			t.Errorf("%s: text %q, marks %v, server %+v; want %q, %v, %+v", tc.name, tr.Text, marks, tr.Server, tc.text, tc.marks, tc.server)
		}
	}
}

// What is told of an answer in several ways, or of more than came, is warned of.
func TestCountsThatDisagree(t *testing.T) {
	const a, b, c = `{"choices":[{"text":"a"}],"usage":{"completion_tokens":1}}`, `{"choices":[{"text":"b"}]}`, `{"choices":[{"text":"","finish_reason":"length"}],"usage":{"completion_tokens":8}}`
	stop := strings.Replace(c, "length", "stop", 1)
	textless := `{"choices":[{"text":""}],"timings":{"predicted_n":7}}`
	for _, tc := range []struct {
		name   string
		stream bool
		events []string
		want   []bench.Warning
	}{
		{"most of a counted stream never came", true, []string{a, c}, []bench.Warning{bench.WarnCount}},
		{"nor here, where it ended by itself", true, []string{a, stop}, []bench.Warning{bench.WarnCount}},
		{"a character of which three tokens were held back", true, []string{strings.Replace(a, "1", "5", 1), c}, []bench.Warning{bench.WarnHeldBack}},
		{"and then the end of the sequence", true, []string{strings.Replace(a, "1", "4", 1), stop}, []bench.Warning{bench.WarnHeldBack}},
		{"only the end of the sequence", true, []string{strings.Replace(a, "1", "7", 1), stop}, nil},
		{"tokens without text that were told one by one", true, []string{`{"choices":[{"text":"a"}],"timings":{"predicted_n":1}}`, textless, strings.Replace(c, `8}}`, `8},"timings":{"predicted_n":8}}`, 1)}, []bench.Warning{bench.WarnHeldBack}},
		{"more events than tokens were asked for, counted by nobody", true, append(slices.Repeat([]string{b}, 9), `{"choices":[{"text":"b","finish_reason":"length"}]}`), []bench.Warning{bench.WarnTokenCount, bench.WarnCount}},
		{"as many events as were asked for, counted by nobody", true, append(slices.Repeat([]string{b}, 7), `{"choices":[{"text":"b","finish_reason":"length"}]}`), []bench.Warning{bench.WarnTokenCount}},
		{"a text of no tokens", false, []string{`{"choices":[{"text":"b","finish_reason":"stop"}],"usage":{"completion_tokens":0}}`}, []bench.Warning{bench.WarnCount}},
		{"usage and timings differ", false, []string{`{"choices":[{"text":"b","finish_reason":"stop"}],"usage":{"completion_tokens":3},"timings":{"predicted_n":4}}`}, []bench.Warning{bench.WarnCount}},
	} {
		tr := bench.NewTrace(16)
		got := newTestAnswer(tr, tc.stream)
		got.limit, got.account.inference = 8, -1 // no header of TGI
		for _, e := range tc.events {
			if err := (OpenAICompletions{}).event(got, []byte(e)); err != nil {
				t.Fatal(err)
			}
		}
		if err := got.close(); err != nil || !slices.Equal(tr.Warnings, tc.want) {
			t.Errorf("%s: %v, warnings %v, want %v", tc.name, err, tr.Warnings, tc.want)
		}
	}
}

// Tokens without any text are no answer, in process neither.
func TestTokensWithoutTextAreEmpty(t *testing.T) {
	for _, stream := range []bool{true, false} {
		a := newTestAnswer(bench.NewTrace(16), stream)
		if err := (OpenAICompletions{}).event(a, []byte(`{"choices":[{"text":"","token_ids":[5,6],"finish_reason":"length"}],"usage":{"completion_tokens":2}}`)); err != nil {
			t.Fatal(err)
		}
		if err := a.close(); bench.ClassOf(err) != bench.Empty {
			t.Errorf("stream %v: %v", stream, err)
		}
	}
}

// An answer of TGI may end inside a character, but not with a special token.
func TestTGIHeldBack(t *testing.T) {
	for token, want := range map[string]bool{`{"id":1,"text":""}`: true, `{"id":1,"text":"a"}`: false, `{"id":1,"text":"</s>","special":true}`: false} {
		tr := bench.NewTrace(16)
		a := newTestAnswer(tr, true)
		if err := (TGI{}).event(a, []byte(`{"token":`+token+`,"generated_text":"a"}`)); err != nil {
			t.Fatal(err)
		}
		if got := slices.Contains(tr.Warnings, bench.WarnHeldBack); got != want || !a.done {
			t.Errorf("%s: held back %v, want %v; done %v", token, got, want, a.done)
		}
	}
}

// What TGI says of its own time stands in the header of a sync answer.
func TestTGIAccount(t *testing.T) {
	c := readCapture(t, "testdata/captures/tgi/generate-details.txt")
	srv := newCaptureServer(t)
	b := &backend{cfg: Config{Server: tgiServer(), Endpoint: "http://" + srv.Addr().String(), ConnectTimeout: time.Minute}, loop: testLoop(t)}
	if err := b.parse(b.cfg.Endpoint); err != nil {
		t.Fatal(err)
	}
	srv.exchanges <- c.exchanges[0]
	s := openSession(t, b)
	if err := s.Prepare(&bench.Request{Prompt: "p", Sampling: bench.Sampling{TopP: 1, MaxTokens: 4}}); err != nil {
		t.Fatal(err)
	}
	tr := bench.NewTrace(4)
	if err := s.Generate(t.Context(), tr); err != nil {
		t.Fatal(err)
	}
	if want := (bench.Server{PromptTokens: 4, OutputTokens: 4, Inference: 134_000_000}); tr.Server != want {
		t.Errorf("got %+v, want %+v", tr.Server, want)
	}
	if want := []int32{28295, 9059, 7705, 1099}; !slices.Equal(tr.Tokens, want) {
		t.Errorf("ids %v, want %v", tr.Tokens, want)
	}
}

// An event of TGI is read as encoding/json would read it.
func FuzzTGI(f *testing.F) {
	for _, e := range dialectEvents[TGI{}] {
		f.Add([]byte(e))
	}
	for _, e := range []string{
		`{"index":5,"token":{"id":5144,"text":" princ","special":false},"generated_text":" a","details":{"finish_reason":"length","generated_tokens":5,"seed":1,"input_length":4}}`,
		`{"error":"Model is overloaded","error_type":"overloaded"}`, `{"token":null,"details":5}`, `{"token":{"id":-1,"special":1}}`, `[]`, `{"generated_text":""}`,
		`[{"generated_text":"a"}]`, `{"generated_text":"a","details":{"tokens":[{"id":1},5,{"id":"x"}]}}`,
	} {
		f.Add([]byte(e))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		tr := bench.NewTrace(16)
		_ = TGI{}.whole(newTestAnswer(tr, false), data)
		tr.Reset()
		a := newTestAnswer(tr, true)
		err := TGI{}.event(a, data)
		doc, ok := fuzzObject(t, data, err)
		if !ok {
			return
		}
		token, isToken := doc["token"].(map[string]any)
		text, _ := token["text"].(string)
		if token["special"] == true {
			text = ""
		}
		_, last := doc["generated_text"].(string)
		if string(tr.Text) != text || (tr.Events == 1) != isToken || a.done != last {
			t.Errorf("%q: text %q, %d events, done %v; want %q, %v, %v", data, tr.Text, tr.Events, a.done, text, isToken, last)
		}
	})
}

// A line of Ollama is read as encoding/json would read it.
func FuzzOllama(f *testing.F) {
	for _, e := range dialectEvents[Ollama{}] {
		f.Add([]byte(e))
	}
	for _, e := range []string{
		`{"response":"","done":true,"done_reason":"length","prompt_eval_count":7,"prompt_eval_duration":3000000000,"eval_count":2,"eval_duration":-1}`,
		`{"error":"model not found"}`, `{"response":null,"done":"true"}`, `[]`, `{"eval_count":1e400,"done":true}`,
	} {
		f.Add([]byte(e))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		tr := bench.NewTrace(16)
		a := newTestAnswer(tr, true)
		err := Ollama{}.event(a, data)
		doc, ok := fuzzObject(t, data, err)
		if !ok {
			return
		}
		text, _ := doc["response"].(string)
		thought, _ := doc["thinking"].(string)
		done, _ := doc["done"].(bool)
		if string(tr.Text) != thought+text || a.done != done || tr.Server.Prefill < 0 || tr.Server.Decode < 0 {
			t.Errorf("%q: text %q, done %v, server %+v; want %q, %v", data, tr.Text, a.done, tr.Server, thought+text, done)
		}
	})
}

// fuzzObject checks that err is there exactly if data is no good event, and
// returns the event as encoding/json reads it, if it is one.
func fuzzObject(t *testing.T, data []byte, err error) (map[string]any, bool) {
	var doc map[string]any
	if json.Unmarshal(data, &doc) != nil || doc == nil {
		// A number out of float64's range is good JSON all the same.
		object := json.Valid(data) && bytes.TrimSpace(data)[0] == '{'
		if err == nil && !object && strings.Count(string(data), "[")+strings.Count(string(data), "{") <= maxDepth {
			t.Fatalf("%q: accepted, but is no JSON object", data)
		}
		return nil, false
	}
	if (doc["error"] != nil) != (err != nil) {
		t.Fatalf("%q: error %v, want one: %v", data, err, doc["error"] != nil)
	}
	return doc, err == nil
}
