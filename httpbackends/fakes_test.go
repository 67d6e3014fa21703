package httpbackends

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"
	"time"

	"github.com/nativebench/nativebench/internal/bench"
	"github.com/nativebench/nativebench/internal/bench/benchtest"
)

// fakeGenerate answers a request by a Fake.
func fakeGenerate(ctx context.Context, fake *benchtest.Fake, prompt string, sp bench.Sampling) (*bench.Trace, error) {
	se, err := fake.NewSession(bench.Limits{})
	if err != nil {
		return nil, err
	}
	defer se.Close()
	tr := bench.NewTrace(sp.MaxTokens)
	if err := se.Prepare(&bench.Request{Prompt: prompt, Stream: true, Sampling: sp}); err != nil {
		return nil, err
	}
	return tr, se.Generate(ctx, tr)
}

// answerer writes answers in one server's form.
type answerer interface {
	read(body []byte, path string) (prompt string, stream bool, sp bench.Sampling, err error)
	refuse(w http.ResponseWriter, stream bool, message string)
	whole(w http.ResponseWriter, tr *bench.Trace)
	// stream writes the i-th of n pieces; the first with the header before it,
	// the last with what ends the stream.
	stream(w http.ResponseWriter, tr *bench.Trace, piece []byte, i, n int)
}

// fakeOf serves a Fake in the form of an answerer; told are its answers to GET.
func fakeOf(t *testing.T, form answerer, told map[string]string) *httptest.Server {
	fake := benchtest.NewFake(benchtest.FakeConfig{Virtual: true})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			if body, ok := told[r.URL.Path]; ok {
				fmt.Fprint(w, body)
			} else {
				http.NotFound(w, r)
			}
			return
		}
		var body json.RawMessage
		if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
			t.Error(err)
		}
		prompt, stream, sp, err := form.read(body, r.URL.Path)
		if err != nil {
			t.Errorf("%s: %v", body, err)
		}
		tr, err := fakeGenerate(r.Context(), fake, prompt, sp)
		switch {
		case err != nil:
			form.refuse(w, stream, err.Error())
			return
		case !stream:
			form.whole(w, tr)
			return
		}
		i := 0
		for piece := range slices.Chunk(tr.Text, len(tr.Text)/tr.OutputTokens) {
			form.stream(w, tr, piece, i, tr.OutputTokens)
			if w.(http.Flusher).Flush(); r.Context().Err() != nil {
				return
			}
			i++
			time.Sleep(100 * time.Microsecond)
		}
	}))
	t.Cleanup(srv.Close)
	return srv
}

// TGI's forms are those of testdata/captures/tgi.
type fakeTGI struct{}

func (fakeTGI) read(body []byte, path string) (prompt string, stream bool, sp bench.Sampling, err error) {
	var in struct {
		Inputs     string
		Parameters struct {
			MaxNewTokens int  `json:"max_new_tokens"`
			DoSample     bool `json:"do_sample"`
			Temperature  *float64
			TopP         *float64 `json:"top_p"`
			Seed         uint64
			Details      bool
		}
	}
	if err := json.Unmarshal(body, &in); err != nil {
		return "", false, sp, err
	}
	p := in.Parameters
	sp = bench.Sampling{MaxTokens: p.MaxNewTokens, TopP: 1, Seed: p.Seed}
	switch {
	case !p.Details:
		err = fmt.Errorf("details were not asked for")
	case p.DoSample != (p.Temperature != nil), p.Temperature != nil && *p.Temperature <= 0, p.TopP != nil && *p.TopP >= 1:
		err = fmt.Errorf("TGI would refuse the parameters")
	}
	if p.Temperature != nil {
		sp.Temperature = *p.Temperature
	}
	if p.TopP != nil {
		sp.TopP = *p.TopP
	}
	return in.Inputs, path == "/generate_stream", sp, err
}

func (fakeTGI) refuse(w http.ResponseWriter, stream bool, message string) {
	body := fmt.Sprintf(`{"error":%q,"error_type":"validation"}`, "Input validation error: "+message)
	if stream {
		w.Header().Set("Content-Type", "text/event-stream")
		fmt.Fprintf(w, "data: %s\n\n", body)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusUnprocessableEntity)
	fmt.Fprint(w, body)
}

func (fakeTGI) whole(w http.ResponseWriter, tr *bench.Trace) {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("x-prompt-tokens", fmt.Sprint(tr.PromptTokens))
	h.Set("x-generated-tokens", fmt.Sprint(tr.OutputTokens))
	h.Set("x-queue-time", "0")
	h.Set("x-inference-time", "3")
	fmt.Fprintf(w, `{"generated_text":%q,"details":{"finish_reason":"length","generated_tokens":%d,"seed":null,"prefill":[],"tokens":[]}}`, tr.Text, tr.OutputTokens)
}

func (fakeTGI) stream(w http.ResponseWriter, tr *bench.Trace, piece []byte, i, n int) {
	end := `"generated_text":null,"details":null`
	if i == 0 {
		w.Header().Set("Content-Type", "text/event-stream")
	}
	if i == n-1 {
		end = fmt.Sprintf(`"generated_text":%q,"details":{"finish_reason":"length","generated_tokens":%d,"seed":null,"input_length":%d}`, tr.Text, n, tr.PromptTokens)
	}
	fmt.Fprintf(w, "data: {\"index\":%d,\"token\":{\"id\":%d,\"text\":%q,\"logprob\":-1.5,\"special\":false},%s}\n\n", i+1, 100+i, piece, end)
}

// Ollama's forms are those of its docs/api.md.
type fakeOllama struct{}

func (fakeOllama) read(body []byte, _ string) (prompt string, stream bool, sp bench.Sampling, err error) {
	var in struct {
		Prompt      string
		Raw, Stream bool
		Options     struct {
			NumPredict  int `json:"num_predict"`
			Temperature float64
			TopP        float64 `json:"top_p"`
			Seed        uint64
		}
	}
	if err := json.Unmarshal(body, &in); err != nil {
		return "", false, sp, err
	}
	if !in.Raw {
		err = fmt.Errorf("it would be put into the model's template")
	}
	o := in.Options
	return in.Prompt, in.Stream, bench.Sampling{MaxTokens: o.NumPredict, Temperature: o.Temperature, TopP: o.TopP, Seed: o.Seed}, err
}

func (fakeOllama) refuse(w http.ResponseWriter, _ bool, message string) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(http.StatusBadRequest)
	fmt.Fprintf(w, `{"error":%q}`, message)
}

func ollamaLine(text []byte, tr *bench.Trace, done bool) string {
	end := ""
	if done {
		end = fmt.Sprintf(`,"done_reason":"length","total_duration":9000000000,"load_duration":1000000,"prompt_eval_count":%d,"prompt_eval_duration":3000000000,"eval_count":%d,"eval_duration":5000000000`, tr.PromptTokens, tr.OutputTokens)
	}
	return fmt.Sprintf(`{"model":"a","created_at":"2026-01-01T00:00:00Z","response":%q,"done":%v%s}`, text, done, end)
}

func (fakeOllama) whole(w http.ResponseWriter, tr *bench.Trace) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	fmt.Fprint(w, ollamaLine(tr.Text, tr, true))
}

func (fakeOllama) stream(w http.ResponseWriter, tr *bench.Trace, piece []byte, i, n int) {
	if i == 0 {
		w.Header().Set("Content-Type", "application/x-ndjson")
	}
	fmt.Fprintln(w, ollamaLine(piece, tr, false))
	if i == n-1 {
		fmt.Fprintln(w, ollamaLine(nil, tr, true))
	}
}

// fakeVLLM is vLLM on its chat route: a role first, a running usage on each
// event, the usage again in an event of its own.
type fakeVLLM struct{}

func (fakeVLLM) read(body []byte, path string) (prompt string, stream bool, sp bench.Sampling, err error) {
	var in struct {
		Messages    []struct{ Role, Content string }
		MaxTokens   int `json:"max_tokens"`
		Temperature float64
		TopP        float64 `json:"top_p"`
		Seed        uint64
		IgnoreEOS   bool `json:"ignore_eos"`
		Stream      bool
	}
	if err := json.Unmarshal(body, &in); err != nil {
		return "", false, sp, err
	}
	if path != "/v1/chat/completions" || len(in.Messages) != 1 || in.Messages[0].Role != "user" {
		return "", false, sp, fmt.Errorf("%s is no question on the chat route", path)
	}
	return in.Messages[0].Content, in.Stream, bench.Sampling{MaxTokens: in.MaxTokens, Temperature: in.Temperature, TopP: in.TopP, Seed: in.Seed, IgnoreEOS: in.IgnoreEOS}, nil
}

func (fakeVLLM) refuse(w http.ResponseWriter, _ bool, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusBadRequest)
	fmt.Fprintf(w, `{"error":{"message":%q,"type":"BadRequestError","param":null,"code":400}}`, message)
}

func (fakeVLLM) whole(w http.ResponseWriter, tr *bench.Trace) {
	w.Header().Set("Content-Type", "application/json")
	fmt.Fprintf(w, `{"object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":%q,"reasoning":null},"finish_reason":"length"}],"usage":{"prompt_tokens":%d,"completion_tokens":%d}}`, tr.Text, tr.PromptTokens, tr.OutputTokens)
}

func (fakeVLLM) stream(w http.ResponseWriter, tr *bench.Trace, piece []byte, i, n int) {
	usage := func(n int) string {
		return fmt.Sprintf(`"usage":{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d}`, tr.PromptTokens, tr.PromptTokens+n, n)
	}
	if i == 0 {
		w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
		fmt.Fprintf(w, "data: {\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"finish_reason\":null}],%s}\n\n", usage(0))
	}
	finish := "null"
	if i == n-1 {
		finish = `"length"`
	}
	fmt.Fprintf(w, "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":%q},\"finish_reason\":%s}],%s}\n\n", piece, finish, usage(i+1))
	if i == n-1 {
		fmt.Fprintf(w, "data: {\"choices\":[],%s}\n\ndata: [DONE]\n\n", usage(n))
	}
}

// Each dialect's row passes the suite against a fake of its server.
func TestDialectsConform(t *testing.T) {
	for _, tc := range []struct {
		form answerer
		told map[string]string
		cfg  Config
	}{
		{fakeTGI{}, map[string]string{"/health": "", "/info": `{"model_id":"/data","max_total_tokens":1024,"version":"3.3.6","sha":"a"}`}, Config{Server: tgiServer()}},
		{fakeOllama{}, map[string]string{"/api/version": `{"version":"0.12.0"}`, "/api/tags": `{"models":[{"name":"a:latest"}]}`}, Config{Server: ollamaServer(), Model: "a"}},
		{fakeVLLM{}, map[string]string{"/health": "", "/version": `{"version":"0.32.0"}`, "/v1/models": `{"data":[{"id":"m","owned_by":"vllm","max_model_len":1024}]}`}, Config{Server: vllmServer(), Chat: true}},
	} {
		t.Run(tc.cfg.Server.Name, func(t *testing.T) {
			tc.cfg.Endpoint = fakeOf(t, tc.form, tc.told).URL
			benchtest.Run(t, func(t *testing.T) bench.Backend {
				b, err := Open(t.Context(), tc.cfg)
				if err != nil {
					t.Fatal(err)
				}
				return b
			}, benchtest.Options{Invariant: true, NoIgnoreEOS: tc.cfg.Server.NoIgnoreEOS})
		})
	}
}
