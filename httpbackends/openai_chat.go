package httpbackends

import (
	"github.com/nativebench/nativebench/internal/bench"
)

// OpenAIChat is the chat protocol: POST /v1/chat/completions, otherwise as
// OpenAICompletions. The server renders the prompt with the model's own
// template, so its count of prompt tokens may differ from a raw route's.
// https://platform.openai.com/docs/api-reference/chat
type OpenAIChat struct{}

var _ Dialect = OpenAIChat{}

// Name says "OpenAI chat".
func (OpenAIChat) Name() string { return "OpenAI chat" }

func (OpenAIChat) form() form { return openAIForm }

func (OpenAIChat) body(model string, req *bench.Request) map[string]any {
	body := OpenAICompletions{}.body(model, req)
	delete(body, "prompt")
	body["messages"] = []map[string]string{{"role": "user", "content": req.Message}}
	return body
}

// event reads one event. The first often holds a role alone, which is no
// content; reasoning is, as the server spends the same time on it.
func (OpenAIChat) event(a *answer, data []byte) error { return OpenAICompletions{}.event(a, data) }

func (OpenAIChat) whole(a *answer, body []byte) error { return OpenAICompletions{}.whole(a, body) }
