package httpbackends

import (
	"github.com/nativebench/nativebench/internal/bench"
)

// OpenAICompletions is the raw-completion protocol that OpenAI published first
// and most servers speak: POST /v1/completions, data-only server-sent events,
// "[DONE]" at the end. https://platform.openai.com/docs/api-reference/completions
//
// Beyond it, these extensions are read where a server sends them: token_ids and
// prompt_token_ids in a choice and usage on every event (vLLM; in its chat
// protocol the latter ids lie beside the choices), timings and __verbose.tokens
// (llama-server), timings by phase (our Transformers server).
type OpenAICompletions struct{}

var _ Dialect = OpenAICompletions{}

// Name says "OpenAI completions".
func (OpenAICompletions) Name() string { return "OpenAI completions" }

func (OpenAICompletions) form() form { return openAIForm }

func (OpenAICompletions) body(model string, req *bench.Request) map[string]any {
	body := map[string]any{
		"prompt":      req.Prompt,
		"max_tokens":  req.Sampling.MaxTokens,
		"temperature": req.Sampling.Temperature,
		"top_p":       req.Sampling.TopP,
		"seed":        req.Sampling.Seed,
		"stream":      req.Stream,
	}
	if model != "" {
		body["model"] = model
	}
	if req.Stream {
		body["stream_options"] = map[string]any{"include_usage": true}
	}
	return body
}

func (OpenAICompletions) event(a *answer, data []byte) error {
	if string(data) == "[DONE]" {
		a.done = true
		return nil
	}
	return completionsChunk(a, data)
}

func (OpenAICompletions) whole(a *answer, body []byte) error {
	if err := completionsChunk(a, body); err != nil {
		return err
	}
	a.done = true
	return nil
}

// completionsChunk reads one event of a stream, or a whole answer, of the
// completions or the chat protocol: a choice holds "text",
// "delta" or "message". Only the first choice is looked at, because one is
// asked for.
func completionsChunk(a *answer, data []byte) error {
	var (
		s                      = scanner{b: data}
		c                      choice
		failure, verbose, ids  []byte
		choices, counted, flat bool
		u                      = usage{output: -1}
		t                      = timings{predicted: -1}
	)
	if s.peek() != '{' {
		return notJSON(a, data)
	}
	for key := range s.members() {
		switch string(key) {
		case "choices":
			c = choice{}
			for n := range s.elements() {
				if n == 0 {
					c, choices = scanChoice(&s), true
				} else {
					s.skip()
				}
			}
		case "prompt_token_ids":
			ids = s.raw()
		case "error":
			failure = s.raw()
		case "object":
			kind, _ := s.text()
			flat = string(kind) == "error" // older vLLM, TensorRT-LLM: the error's fields lie beside
		case "usage":
			u = scanUsage(&s)
		case "timings":
			t = scanTimings(&s)
		case "__verbose":
			for key := range s.members() {
				if string(key) == "tokens" {
					verbose = s.raw()
				} else {
					s.skip()
				}
			}
		default:
			s.skip()
		}
	}
	if failure != nil || flat {
		return a.serverError(data, 0) // the whole event: kinds and codes may lie beside
	}
	if !s.end() {
		return notJSON(a, data)
	}
	if verbose != nil && !a.stream {
		c.ids = verbose
	}
	a.tr.PromptIDs = ints(ints(a.tr.PromptIDs, ids), c.promptIDs)
	had := len(a.tr.Tokens)
	a.tr.Tokens = ints(a.tr.Tokens, c.ids)
	a.ids = len(a.tr.Tokens)
	if u.output >= 0 {
		a.usage = u.output
		a.tr.PromptTokens = u.prompt
		a.tr.Server.CachedTokens = max(a.tr.Server.CachedTokens, u.cached)
		// On an event in mid-stream it is a running count; but on the last
		// event it may be the total, which says nothing of the events before.
		if a.stream && u.output > a.told && (a.told > 0 || choices && !c.finished) {
			a.told = u.output
			counted = !c.finished
		}
	}
	if t.phases {
		a.tr.Server.Tokenize, a.tr.Server.Queue = t.tokenize, t.queue
		a.tr.Server.Prefill, a.tr.Server.Decode = t.prefill, t.decode
	}
	if t.predicted >= 0 {
		a.told = t.predicted
		a.tr.Server = bench.Server{
			PromptTokens: t.prompt, OutputTokens: t.predicted, CachedTokens: t.cached,
			Prefill: t.prefill, Decode: t.decode,
		}
	}
	// An event that only counts a token on delivers one, too: its text is held
	// back, or it has none.
	if len(c.text) > 0 || len(c.thought) > 0 || a.ids > had || counted {
		a.content(c.thought, c.text)
	}
	if c.finished {
		a.finish(c.reason)
	}
	if a.seen = max(a.seen, a.ids); !a.finished {
		a.seen = max(a.seen, a.told)
	}
	return nil
}

// choice is one of a chunk's choices, its strings raw.
type choice struct {
	text, thought, ids, promptIDs, reason []byte
	finished                              bool
}

func scanChoice(s *scanner) choice {
	var c choice
	for key := range s.members() {
		switch string(key) {
		case "text":
			c.text, _ = s.text()
		case "delta", "message":
			c.text, c.thought = scanMessage(s)
		case "token_ids":
			c.ids = s.raw()
		case "prompt_token_ids":
			c.promptIDs = s.raw()
		case "finish_reason":
			c.reason, c.finished = s.text()
			c.finished = c.finished && len(c.reason) > 0 // TGI: "" until the end
		default:
			s.skip()
		}
	}
	return c
}

// scanMessage reads what a chat has in place of text: an object, but also [] or
// null.
func scanMessage(s *scanner) (text, thought []byte) {
	for key := range s.members() {
		switch string(key) {
		case "content":
			text, _ = s.text()
		case "reasoning", "reasoning_content":
			// vLLM sends one of them, or both alike.
			if t, ok := s.text(); ok && len(t) > 0 {
				thought = t
			}
		default:
			s.skip()
		}
	}
	return text, thought
}

// notJSON reports an event that cannot be read; some servers (transformers
// serve) write their errors without escaping them.
func notJSON(a *answer, data []byte) error {
	if len(data) > 9 && string(data[:9]) == `{"error":` {
		return a.serverError(data[9:], 0)
	}
	return malformed(a.server.Name, "an event that is no JSON object: %s", quote(data))
}

type usage struct{ prompt, output, cached int }

func scanUsage(s *scanner) usage {
	u := usage{output: -1}
	for key := range s.members() {
		switch string(key) {
		case "prompt_tokens":
			u.prompt, _ = s.count()
		case "completion_tokens":
			u.output = -1
			if n, ok := s.count(); ok {
				u.output = n
			}
		case "prompt_tokens_details":
			for key := range s.members() {
				if string(key) == "cached_tokens" {
					u.cached, _ = s.count()
				} else {
					s.skip()
				}
			}
		default:
			s.skip()
		}
	}
	return u
}

// timings is the server's account of a request, in tokens and ns: that of
// llama-server (predicted >= 0), or that of our Transformers server (phases).
type timings struct {
	cached, prompt, predicted        int
	phases                           bool
	tokenize, queue, prefill, decode int64
}

func scanTimings(s *scanner) timings {
	t := timings{predicted: -1}
	for key := range s.members() {
		switch string(key) {
		case "cache_n":
			t.cached, _ = s.count()
		case "prompt_n":
			t.prompt, _ = s.count()
		case "prompt_ms":
			t.prefill = millis(s)
		case "predicted_n":
			if n, ok := s.count(); ok {
				t.predicted = n
			}
		case "predicted_ms":
			t.decode = millis(s)
		case "tokenize_ms":
			t.tokenize, t.phases = millis(s), true
		case "queue_ms":
			t.queue, t.phases = millis(s), true
		case "prefill_ms":
			t.prefill, t.phases = millis(s), true
		case "decode_ms":
			t.decode, t.phases = millis(s), true
		default:
			s.skip()
		}
	}
	return t
}

func millis(s *scanner) int64 {
	ms, ok := s.number()
	if !ok || ms < 0 || ms > 1e12 {
		return 0
	}
	return int64(ms * 1e6)
}
