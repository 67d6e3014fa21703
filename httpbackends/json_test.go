package httpbackends

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"

	"github.com/nativebench/nativebench/internal/bench"
)

var jsonTexts = []string{
	`{}`, `[]`, `null`, `true`, `false`, `0`, `-0.5e+10`, `"a"`, ` [ 1 , {"a" : [ ] } ] `,
	`{"a":{"b":[1,2,{"c":null}]},"d":"\u00e9\ud83d\ude00\\\"\/\b\f\n\r\t"}`,
	`{"a":1,}`, `{,}`, `[1,]`, `[,1]`, `{"a"}`, `{"a":}`, `{a:1}`, `{"a":1 "b":2}`, `[1 2]`, `{"a":1}}`, `[`, `{`, `"`, `"\`, `"\u12`, `"\u12g4"`, `"\x"`,
	"\"a\nb\"", "\"\x00\"", `01`, `-`, `1.`, `.5`, `1e`, `+1`, `tru`, `nulll`, `NaN`, ``, ` `, "\xff", "\"\xff\xc3\"", `"\ud800"`, `"\ud800\u0041"`, `"\udc00\ud800"`,
	"[1]\x00", "\x00", `{"a":1}x`, `1 2`,
	strings.Repeat("[", 500) + strings.Repeat("]", 500),
}

// The scanner accepts what encoding/json accepts.
func FuzzScanner(f *testing.F) {
	for _, s := range jsonTexts {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		s := scanner{b: b}
		s.skip()
		if got, want := s.end(), json.Valid(b); got != want && strings.Count(string(b), "[")+strings.Count(string(b), "{") <= maxDepth {
			t.Errorf("%q: scanner says %v, encoding/json %v", b, got, want)
		}
	})
}

func TestScannerDepth(t *testing.T) {
	for _, b := range []string{strings.Repeat("[", 1<<20), strings.Repeat(`{"a":`, 1<<18), strings.Repeat("[", 2000) + strings.Repeat("]", 2000)} {
		s := scanner{b: []byte(b)}
		if s.skip(); s.end() {
			t.Errorf("%.10s… nested too deep is accepted", b)
		}
	}
}

// appendText understands strings as encoding/json does.
func FuzzText(f *testing.F) {
	for _, s := range []string{`a`, `가나`, `\uac00`, `\ud83d\ude00`, `\ud83d`, `\ude00\ud83d`, `\ud83dx`, `\ud83d\n`, `\ud83d\u0041`, "\xff", "\xed\xa0\x80", "a\xe2\x82", `\"\\\/\b\f\n\r\t`, `\u0000`, `\uFFFF`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		quoted := append(append([]byte{'"'}, raw...), '"')
		var want string
		if json.Unmarshal(quoted, &want) != nil {
			t.Skip()
		}
		s := scanner{b: quoted}
		inside, ok := s.text()
		if !ok || !s.end() {
			t.Fatalf("%q: not accepted", quoted)
		}
		if got := appendText([]byte("before"), inside); string(got) != "before"+want {
			t.Errorf("%q: got %q, want %q", quoted, got, want)
		}
	})
}

func TestTextRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := rapid.String().Draw(t, "text")
		quoted, err := json.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		s := scanner{b: quoted}
		raw, _ := s.text()
		if got := string(appendText(nil, raw)); got != want && utf8.ValidString(want) {
			t.Fatalf("got %q, want %q", got, want)
		}
	})
}

// chunks are events of real servers' shapes, and broken ones.
var chunks = []string{
	`{"choices":[{"text":" the","index":0,"logprobs":null,"finish_reason":null}],"created":1,"model":"m","object":"text_completion","id":"x"}`,
	`{"choices":[{"text":"","index":0,"finish_reason":"length"}],"usage":{"completion_tokens":3,"prompt_tokens":5,"total_tokens":8,"prompt_tokens_details":{"cached_tokens":2}},"timings":{"cache_n":2,"prompt_n":3,"prompt_ms":1.5,"predicted_n":3,"predicted_ms":30.25}}`,
	`{"choices":[],"usage":{"prompt_tokens":7,"total_tokens":39,"completion_tokens":32}}`,
	`{"choices":[{"text":"a","token_ids":[1,2,50256],"finish_reason":"stop"}],"usage":null}`,
	`{"choices":[{"text":"a"},{"text":"b","index":1}]}`,
	`{"choices":[{"text":"first"}],"choices":[{"finish_reason":"stop"}]}`,
	`{"choices":[null,{"text":"b"}]}`, `{"choices":{"text":"a"}}`, `{"choices":[{"text":5}]}`, `{"choices":[[]]}`, `{"choices":"a"}`,
	`{"\u0063hoices":[{"t\u0065xt":"escaped keys"}]}`,
	`{"error":null,"choices":[{"text":"a"}]}`,
	`{"error":{"message":"no","type":"t","code":400}}`,
	`{"usage":{"completion_tokens":1e1,"prompt_tokens":-1}}`, `{"usage":{"completion_tokens":1.5}}`, `{"usage":[1]}`,
	`{"choices":[{"delta":{"role":"assistant","content":""}}]}`, `{"choices":[{"delta":{"content":"a"}}]}`, `{"choices":[{"delta":[]}],"usage":{"completion_tokens":3}}`,
	`{"choices":[{"delta":{"reasoning_content":"a","content":null}}]}`, `{"choices":[{"message":{"content":"a","reasoning":"b"},"finish_reason":"stop"}]}`,
	`{"choices":[{"message":null}]}`, `{"object":"error","message":"a","code":400}`, `{"timings":{"tokenize_ms":1,"queue_ms":2,"prefill_ms":3,"decode_ms":4.5}}`,
	`{}`, `[]`, `"a"`, `{"choices":[{"text":"a"}]`, `{"choices":[{"text":"\ud83d\ude00 \"x\""}]} `,
}

// A chunk is read as encoding/json would read it.
func FuzzCompletionsChunk(f *testing.F) {
	for _, s := range chunks {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		tr := bench.NewTrace(16)
		a := newTestAnswer(tr, true)
		a.at = 100
		err := completionsChunk(a, data)

		var doc map[string]any
		if json.Unmarshal(data, &doc) != nil || doc == nil {
			if err == nil && strings.Count(string(data), "[")+strings.Count(string(data), "{") <= maxDepth {
				t.Fatalf("%q: accepted, but is no JSON object", data)
			}
			return
		}
		if failed := doc["error"] != nil || doc["object"] == "error"; failed != (err != nil) {
			t.Fatalf("%q: error %v, want one: %v", data, err, failed)
		}
		if err != nil {
			return
		}
		var text, finish string
		var ids []any
		if choices, _ := doc["choices"].([]any); len(choices) > 0 {
			choice, _ := choices[0].(map[string]any)
			text, _ = choice["text"].(string)
			for _, key := range []string{"delta", "message"} {
				if inner, there := choice[key]; there {
					if len(choice) > 1 && (choice["text"] != nil || choice["delta"] != nil && choice["message"] != nil) {
						return // the last one counts; which that is, the map does not tell
					}
					message, _ := inner.(map[string]any)
					thought, _ := message["reasoning_content"].(string)
					if r, _ := message["reasoning"].(string); r != "" {
						if thought != "" {
							return
						}
						thought = r
					}
					text, _ = message["content"].(string)
					text = thought + text
				}
			}
			finish, _ = choice["finish_reason"].(string)
			ids, _ = choice["token_ids"].([]any)
		}
		if string(tr.Text) != text {
			t.Errorf("%q: text %q, want %q", data, tr.Text, text)
		}
		if a.finished != (finish != "") {
			t.Errorf("%q: finished %v, want %q", data, a.finished, finish)
		}
		var good int
		for _, id := range ids {
			if x, ok := id.(float64); ok && x >= 0 && x <= 1<<31-1 && x == float64(int(x)) {
				good++
			}
		}
		if a.ids != good {
			t.Errorf("%q: %d token ids, want %d", data, a.ids, good)
		}
		usage, want := doc["usage"], -1
		if u, ok := usage.(map[string]any); ok {
			if x, ok := u["completion_tokens"].(float64); ok && x >= 0 && x <= 1<<31-1 && x == float64(int(x)) {
				want = int(x)
			}
		}
		if a.usage != want {
			t.Errorf("%q: usage %d, want %d", data, a.usage, want)
		}
	})
}

// newTestAnswer is an answer to a request of up to 1000 tokens.
func newTestAnswer(tr *bench.Trace, stream bool) *answer {
	a := &answer{}
	server := llamaServer()
	a.reset(tr, &server, &bench.Request{Stream: stream, Sampling: bench.Sampling{MaxTokens: 1000}}, &Config{})
	return a
}

// A count is a whole number that fits 31 bits, however it is written.
func TestCount(t *testing.T) {
	for text, want := range map[string]int{
		"0": 0, "-0": 0, "7": 7, "999999999": 999999999, "1000000000": 1000000000, "2147483647": 1<<31 - 1, "12e2": 1200, "3.0": 3,
		"2147483648": -1, "99999999999999999999": -1, "1.5": -1, "-1": -1, "1e400": -1, "01": -1, "-": -1, "1.": -1, `"1"`: -1, "null": -1,
	} {
		s := scanner{b: []byte(text)}
		n, ok := s.count()
		end := s.end()
		if !ok || !end {
			n = -1
		}
		if n != want {
			t.Errorf("count of %s: %d, want %d", text, n, want)
		}
		if good := json.Valid([]byte(text)); end != good {
			t.Errorf("%s: read as good JSON %v, want %v", text, !good, good)
		}
	}
}
