package httpbackends

import "github.com/nativebench/nativebench/internal/bench"

// TGI is the own protocol of Text Generation Inference: POST /generate and
// /generate_stream, one server-sent event per token, the last of them with
// "generated_text" in place of an end mark.
// https://github.com/huggingface/text-generation-inference/blob/main/docs/openapi.json
//
// A stream that fails still begins with a status of 200: the error is an event.
type TGI struct{}

var _ Dialect = TGI{}

// Name says "TGI".
func (TGI) Name() string { return "TGI" }

func (TGI) form() form { return openAIForm }

func (TGI) body(_ string, req *bench.Request) map[string]any {
	sp := req.Sampling
	// Left out, "parameters" would mean sampling, and each of these its own
	// default; top_k left out is off.
	parameters := map[string]any{
		"max_new_tokens": sp.MaxTokens, "seed": sp.Seed, "do_sample": sp.Temperature > 0,
		"details": true, "return_full_text": false,
	}
	// Temperature 0 and top_p 1 are refused, and are what leaving them out means.
	if sp.Temperature > 0 {
		parameters["temperature"] = sp.Temperature
		if sp.TopP < 1 {
			parameters["top_p"] = sp.TopP
		}
	}
	return map[string]any{"inputs": req.Prompt, "parameters": parameters}
}

func (TGI) event(a *answer, data []byte) error {
	var (
		s      = scanner{b: data}
		token  tgiToken
		end    = tgiDetails{output: -1}
		failed bool
		last   bool
	)
	if s.peek() != '{' {
		return notJSON(a, data)
	}
	for key := range s.members() {
		switch string(key) {
		case "token":
			token = scanToken(&s)
		case "generated_text":
			_, last = s.text()
		case "details":
			end = scanDetails(&s, nil)
		case "error":
			failed = s.raw() != nil
		default:
			s.skip()
		}
	}
	if failed {
		return a.serverError(data, 0)
	}
	if !s.end() {
		return notJSON(a, data)
	}
	if token.there {
		// Every event is one token: its text may be held back or, if it is a
		// special one, not part of the answer.
		a.tr.Tokens = append(a.tr.Tokens, token.id)
		a.ids = len(a.tr.Tokens)
		a.told, a.source = a.told+1, bench.CountEvents
		a.content(token.text)
	}
	a.details(end)
	if last {
		if token.there && len(token.text) == 0 && !token.special {
			a.tr.Warn(bench.WarnHeldBack)
		}
		a.done = true
	}
	return nil
}

// whole reads the answer of /generate, an object, or of /, an array of one.
func (TGI) whole(a *answer, body []byte) error {
	s := scanner{b: body}
	var text []byte
	failed, end := false, tgiDetails{output: -1}
	object := func() {
		for key := range s.members() {
			switch string(key) {
			case "generated_text":
				text, _ = s.text()
			case "error":
				failed = s.raw() != nil
			case "details":
				end = scanDetails(&s, &a.tr.Tokens)
			default:
				s.skip()
			}
		}
	}
	switch s.peek() {
	case '{':
		object()
	case '[':
		for n := range s.elements() {
			if n == 0 {
				object()
			} else {
				s.skip()
			}
		}
	default:
		return notJSON(a, body)
	}
	if failed {
		return a.serverError(body, 0)
	}
	if !s.end() {
		return notJSON(a, body)
	}
	a.ids = len(a.tr.Tokens)
	if len(text) > 0 {
		a.content(text)
	}
	if end.output < 0 {
		end.output = a.account.outputTokens
	}
	if end.input <= 0 {
		end.input = a.account.promptTokens
	}
	a.details(end)
	a.done = true
	return nil
}

// tgiToken is the "token" of an event.
type tgiToken struct {
	there   bool
	id      int32
	text    []byte // raw; nil for a special token
	special bool
}

func scanToken(s *scanner) tgiToken {
	t := tgiToken{there: s.peek() == '{'}
	for key := range s.members() {
		switch string(key) {
		case "id":
			id, _ := s.count()
			t.id = int32(id)
		case "text":
			t.text, _ = s.text()
		case "special":
			t.special = string(s.raw()) == "true"
		default:
			s.skip()
		}
	}
	if t.special {
		t.text = nil
	}
	return t
}

// tgiDetails are the "details" at the end of an answer.
type tgiDetails struct {
	output int // generated_tokens, -1 if not told
	input  int // input_length, 0 if not told
	reason []byte
}

// scanDetails appends the ids of the answer's tokens to ids if it is not nil.
func scanDetails(s *scanner, ids *[]int32) tgiDetails {
	d := tgiDetails{output: -1}
	for key := range s.members() {
		switch string(key) {
		case "finish_reason":
			d.reason, _ = s.text()
		case "generated_tokens":
			d.output = -1
			if n, ok := s.count(); ok {
				d.output = n
			}
		case "input_length":
			d.input, _ = s.count()
		case "tokens":
			if ids == nil {
				s.skip()
				continue
			}
			for range s.elements() {
				*ids = append(*ids, scanToken(s).id)
			}
		default:
			s.skip()
		}
	}
	return d
}

// details takes up what TGI says at the end.
func (a *answer) details(d tgiDetails) {
	if d.output >= 0 {
		a.usage, a.source = d.output, bench.CountDetails
	}
	if d.input > 0 {
		a.tr.PromptTokens = d.input
	}
	if d.reason != nil {
		a.finish(d.reason)
	}
}
