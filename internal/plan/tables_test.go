package plan_test

import (
	"strings"
	"testing"

	"github.com/nativebench/nativebench/internal/bench"
	"github.com/nativebench/nativebench/internal/plan"
)

func TestSamplingTable(t *testing.T) {
	type row struct{ chat, summarization, qa, code bench.Sampling }
	s := func(temperature, topP float64, maxTokens int) bench.Sampling {
		return bench.Sampling{Temperature: temperature, TopP: topP, MaxTokens: maxTokens}
	}
	want := map[string]row{
		"gpt2":                {s(0.9, 0.95, 100), s(0.5, 0.9, 60), s(0.3, 1.0, 40), s(0.8, 0.9, 100)},
		"phi-2":               {s(0.8, 0.9, 100), s(0.4, 0.9, 60), s(0.2, 1.0, 40), s(0.7, 0.9, 90)},
		"llama-2-7b-chat":     {s(0.7, 0.95, 150), s(0.3, 0.9, 80), s(0.1, 1.0, 50), s(0.6, 0.85, 120)},
		"mistral-7b-instruct": {s(0.8, 0.95, 120), s(0.3, 0.9, 70), s(0.2, 1.0, 50), s(0.7, 0.9, 110)},
	}
	var beyond []string
	for _, m := range plan.Models() {
		if _, ok := want[m.Key]; ok == m.Beyond() {
			t.Errorf("%s: beyond the experiment: %v", m.Key, m.Beyond())
		} else if m.Beyond() {
			want[m.Key] = want[m.SamplingOf]
			beyond = append(beyond, m.Key)
		}
	}
	if len(plan.Models()) != 4+len(beyond) || len(want) != 4+len(beyond) || len(plan.Tasks()) != 4 {
		t.Fatalf("%d models, of them %q beyond the experiment, and %d tasks", len(plan.Models()), beyond, len(plan.Tasks()))
	}
	for model, row := range want {
		for task, want := range map[string]bench.Sampling{"chat": row.chat, "summarization": row.summarization, "qa": row.qa, "code": row.code} {
			if got, err := plan.SamplingFor(model, task); err != nil || got != want {
				t.Errorf("%s %s: %+v, %v; want %+v", model, task, got, err, want)
			}
		}
	}
}

func TestModelTable(t *testing.T) {
	for _, want := range []plan.Model{
		{Key: "gpt2", HubID: "openai-community/gpt2", Size: "124M", Context: 1024},
		{Key: "phi-2", HubID: "microsoft/phi-2", Size: "2.7B", Context: 2048},
		{Key: "llama-2-7b-chat", HubID: "meta-llama/Llama-2-7b-chat-hf", Size: "6.7B", Context: 4096, Gated: true, AddBOS: true},
		{Key: "mistral-7b-instruct", HubID: "mistralai/Mistral-7B-Instruct-v0.1", Size: "7.3B", Context: 32768, SlidingWindow: 4096, Gated: true, AddBOS: true},
	} {
		got, err := plan.ModelByKey(want.Key)
		if err != nil {
			t.Error(err)
		}
		got.Params, got.Name, got.Arch, got.HFType, got.Shape = 0, "", "", "", plan.Shape{}
		got.Before, got.After, got.TrimText = "", "", false
		if got != want {
			t.Errorf("%+v\nwant %+v", got, want)
		}
	}
}

// Params come from the architectures' shapes, which are written out here.
func TestModelParams(t *testing.T) {
	const V, D = 50257, 768
	gpt2 := V*D + 1024*D + 12*(4*D*D+4*D+8*D*D+5*D+4*D) + 2*D // output tied to the embedding
	phi := func(v, d, ff, layers int) int {
		return 2*v*d + v + layers*(4*d*d+4*d+2*d*ff+ff+d+2*d) + 2*d
	}
	llama := func(v, d, kv, ff, layers int) int {
		return 2*v*d + layers*(2*d*d+2*d*kv+3*d*ff+2*d) + d
	}
	for key, want := range map[string]int{
		"gpt2":                gpt2,
		"phi-2":               phi(51200, 2560, 10240, 32),
		"llama-2-7b-chat":     llama(32000, 4096, 4096, 11008, 32),
		"mistral-7b-instruct": llama(32000, 4096, 1024, 14336, 32),
		"llama-3-8b-instruct": llama(128256, 4096, 1024, 14336, 32),
	} {
		if m, err := plan.ModelByKey(key); err != nil || m.Params != int64(want) {
			t.Errorf("%s: %d parameters, %v; its shapes have %d", key, m.Params, err, want)
		}
	}
}

func TestTaskTable(t *testing.T) {
	for key, want := range map[string][4]int{
		"chat":          {20, 100, 20, 100},
		"summarization": {200, 800, 50, 100},
		"qa":            {100, 500, 10, 30},
		"code":          {10, 50, 50, 150},
	} {
		task, err := plan.TaskByKey(key)
		if err != nil {
			t.Error(err)
		}
		if got := [4]int{task.InputTokens[0], task.InputTokens[1], task.OutputTokens[0], task.OutputTokens[1]}; got != want {
			t.Errorf("%s: %v, want %v", key, got, want)
		}
	}
}

func TestRender(t *testing.T) {
	for key, want := range map[string]string{
		"gpt2":                " Hi?\n",
		"phi-2":               "Instruct:  Hi?\n\nOutput:",
		"llama-2-7b-chat":     "[INST] Hi? [/INST]", // its template strips the text
		"mistral-7b-instruct": "[INST]  Hi?\n [/INST]",
	} {
		m, err := plan.ModelByKey(key)
		if err != nil {
			t.Fatal(err)
		}
		if got := m.Render(" Hi?\n"); got != want {
			t.Errorf("%s: %q, want %q", key, got, want)
		}
	}
}

func TestUnknownNames(t *testing.T) {
	_, model := plan.ModelByKey("phi2")
	_, task := plan.TaskByKey("sumarization")
	_, far := plan.TaskByKey("translation")
	_, sweep := plan.TaskByKey(plan.ContextTask)
	_, sampling := plan.SamplingFor("gpt2", "Code")
	_, capital := plan.ModelByKey("GPT2")
	for _, c := range []struct {
		err  error
		want string
	}{
		{model, `unknown model "phi2": did you mean "phi-2"? choose from gpt2, phi-2, llama-2-7b-chat, mistral-7b-instruct, llama-3-8b-instruct`},
		{task, `unknown task "sumarization": did you mean "summarization"? choose from chat, summarization, qa, code`},
		{far, `unknown task "translation": choose from chat, summarization, qa, code`},
		{sweep, `unknown task "context": choose from chat, summarization, qa, code`},
		{sampling, `unknown task "Code": did you mean "code"? choose from chat, summarization, qa, code`},
		{capital, `did you mean "gpt2"?`},
	} {
		if c.err == nil || !strings.Contains(c.err.Error(), c.want) {
			t.Errorf("got  %v\nwant %s", c.err, c.want)
		}
	}
}
