package httpbackends

import "github.com/nativebench/nativebench/internal/bench"

// Ollama is Ollama's own protocol: POST /api/generate, one JSON object per
// line, the last of them with "done": true and the server's account.
// https://github.com/ollama/ollama/blob/main/docs/api.md
type Ollama struct{}

var _ Dialect = Ollama{}

// Name says "Ollama".
func (Ollama) Name() string { return "Ollama" }

func (Ollama) form() form {
	return form{lines: true, stream: "application/x-ndjson", whole: "application/json"}
}

func (Ollama) body(model string, req *bench.Request) map[string]any {
	sp := req.Sampling
	return map[string]any{
		"model": model, "prompt": req.Prompt, "stream": req.Stream,
		"raw": true, // the prompt is rendered
		"options": map[string]any{
			"num_predict": sp.MaxTokens, "temperature": sp.Temperature, "top_p": sp.TopP, "seed": sp.Seed,
		},
	}
}

// event reads one line. They carry no count, so that their number stands for
// it until the last.
func (Ollama) event(a *answer, data []byte) error {
	var (
		s                     = scanner{b: data}
		text, thought, reason []byte
		failed, done          bool
		output, prompt        = -1, 0
		prefill, decode       int64
	)
	if s.peek() != '{' {
		return notJSON(a, data)
	}
	for key := range s.members() {
		switch string(key) {
		case "response":
			text, _ = s.text()
		case "thinking":
			thought, _ = s.text()
		case "done":
			done = string(s.raw()) == "true"
		case "done_reason":
			reason, _ = s.text()
		case "prompt_eval_count":
			prompt, _ = s.count()
		case "eval_count":
			if n, ok := s.count(); ok {
				output = n
			}
		case "prompt_eval_duration":
			prefill = nanos(&s)
		case "eval_duration":
			decode = nanos(&s)
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
	if len(text) > 0 || len(thought) > 0 {
		a.content(thought, text)
	}
	if !done {
		return nil
	}
	if output >= 0 {
		a.usage = output
	}
	a.tr.PromptTokens = prompt
	a.tr.Server = bench.Server{PromptTokens: prompt, OutputTokens: max(output, 0), Prefill: prefill, Decode: decode}
	if reason != nil {
		a.finish(reason)
	}
	a.done = true
	return nil
}

// whole reads a sync answer: one object, as the last line of a stream, with
// all of the text.
func (o Ollama) whole(a *answer, body []byte) error {
	if err := o.event(a, body); err != nil {
		return err
	}
	a.done = true
	return nil
}

// nanos consumes a duration in nanoseconds.
func nanos(s *scanner) int64 {
	ns, ok := s.number()
	if !ok || ns < 0 || ns > 1e18 {
		return 0
	}
	return int64(ns)
}
