package httpbackends

import (
	"encoding/json"
	"fmt"
	"strconv"

	"github.com/nativebench/nativebench/internal/bench"
)

// transformersServe is the row of the server that comes with Hugging Face
// Transformers. https://huggingface.co/docs/transformers/main/en/serving
func transformersServe() Server {
	return Server{
		Name:      "transformers-serve",
		Engine:    "Transformers",
		Dialect:   OpenAICompletions{},
		Route:     "/v1/completions",
		ChatRoute: "/v1/chat/completions",
		Health:    "/health",
		Fields:    serveFields,
		Substitutions: []Substitution{
			{Text: "sampling is set by generation_config, a JSON text with do_sample and top_k 0: without it temperature, top_p and seed do nothing"},
			{"ignore EOS: sent as min_new_tokens, which forbids the end-of-sequence token where other servers go on past it", func(sp bench.Sampling, _ *Config) bool { return sp.IgnoreEOS }},
		},
		Notes: []string{
			"without continuous batching it works on one request at a time: the others wait, and their waiting is in their time to the first token; with it, it samples all requests as the first one asked",
			"a stream's header is sent before the prompt is read, so the first byte says nothing of the first token",
			"the seed is that of the whole process: answers repeat only while one request runs at a time",
			notedMerges,
		},
		MergesTokens:    true,
		EndsAfterFinish: true,
		Identify:        serveIdentify,
		Process:         [][]string{{"transformers", "serve"}},
		Weights:         HuggingFace,
		Program:         "transformers",
		Python:          "transformers",
		Distribution:    "transformers",
		Argv:            serveArgv,
		Environ:         transformersEnviron,
	}
}

// serveIdentify reads the description that FastAPI makes of the server's routes,
// because the server tells of itself nowhere: /load_model and /reset are its
// own.
func serveIdentify(info *bench.Info, get func(path string, into any) error) error {
	var api struct {
		Paths map[string]any `json:"paths"`
	}
	if err := get("/openapi.json", &api); err != nil {
		return err
	}
	for _, path := range []string{"/v1/completions", "/load_model", "/reset"} {
		if api.Paths[path] == nil {
			return fmt.Errorf("GET /openapi.json names no route %s, which transformers serve has", path)
		}
	}
	info.Version = versionNotTold
	return nil
}

func serveFields(body map[string]any, req *bench.Request, cfg *Config) error {
	sp := req.Sampling
	generation := map[string]any{"do_sample": sp.Temperature > 0, "top_k": 0}
	if sp.IgnoreEOS {
		generation["min_new_tokens"] = sp.MaxTokens
	}
	text, err := json.Marshal(generation)
	if err != nil {
		return bench.Fail(bench.Internal, "cannot write the request for transformers-serve: %w", err)
	}
	body["generation_config"] = string(text)
	delete(body, "stream_options") // usage comes unasked
	if cfg.Launched {
		// It was started for one model and knows it by its path alone.
		delete(body, "model")
	}
	return nil
}

func serveArgv(s Start) ([]string, error) {
	if err := s.check("transformers-serve", "a directory"); err != nil {
		return nil, err
	}
	dtype, err := s.dtype("auto")
	if err != nil {
		return nil, fmt.Errorf("transformers-serve: %w", err)
	}
	return []string{
		s.Bin, "serve", "--host", s.host(), "--port", strconv.Itoa(s.Port),
		"--device", s.device(), "--dtype", dtype, s.Model,
	}, nil
}
