package httpbackends

import (
	"fmt"
	"strconv"

	"github.com/nativebench/nativebench/internal/bench"
)

// tgiServer is the row of Hugging Face's Text Generation Inference.
// https://huggingface.co/docs/text-generation-inference
func tgiServer() Server {
	return Server{
		Name:         "tgi",
		Engine:       "TGI",
		Dialect:      TGI{},
		Route:        "/generate",
		StreamRoute:  "/generate_stream",
		ChatRoute:    "/v1/chat/completions",
		Health:       "/health",
		Tokens:       true,
		NoIgnoreEOS:  true,
		MergesTokens: true, // its own events are one token each, and counted
		Fields:       tgiFields,
		Substitutions: []Substitution{
			{"top_p 1: left out, which TGI takes as 1; it refuses the number itself", func(sp bench.Sampling, _ *Config) bool { return sp.TopP == 1 }},
			{"temperature 0: sent as do_sample false without a temperature, because TGI refuses the number", func(sp bench.Sampling, cfg *Config) bool { return greedy(sp, cfg) && !cfg.Chat }},
			{"temperature 0: sent to its chat route as 0, which it takes as greedy, without top_p", func(sp bench.Sampling, cfg *Config) bool { return greedy(sp, cfg) && cfg.Chat }},
		},
		Notes: []string{
			"TGI cannot go on past end-of-sequence, so answers may be shorter than asked",
			"TGI 3 works in steps of 1024 tokens: asked for more than 1024 that are no multiple of it, it makes more than asked, which is a failure here",
			"its prefix cache is on unless it was started with PREFIX_CACHING=0, and it does not tell of hits",
			"it computes in float16 unless it was started with another --dtype, whatever the type of the weights",
			"on its chat route: " + notedMerges,
			"on a stream it answers an error with status 200: the class of a failure is that of the error inside",
		},
		Identify: tgiIdentify,
		Process:  [][]string{{"text-generation-router"}, {"text-generation-launcher"}},
		Metrics: Metrics{Path: "/metrics", Series: []Series{
			{"requests_running", []string{"tgi_batch_current_size"}},
			{"requests_waiting", []string{"tgi_queue_size"}},
			{"kv_held_tokens", []string{"tgi_batch_current_max_tokens"}}, // what the running requests may grow to
			{"prompt_tokens_total", []string{"tgi_request_input_length_sum"}},
			{"output_tokens_total", []string{"tgi_request_generated_tokens_sum"}},
			{"queue_seconds_sum", []string{"tgi_request_queue_duration_sum"}},
			{"queue_seconds_count", []string{"tgi_request_queue_duration_count"}},
		}},
		Weights:       HuggingFace,
		Image:         "ghcr.io/huggingface/text-generation-inference:3.3.5",
		ImageNeedsGPU: true,
		NamedByPath:   true,
		KVPool:        tgiPool,
		ContainerArgv: tgiContainerArgv,
		ContainerEnv:  tgiContainerEnv,
	}
}

func tgiFields(body map[string]any, req *bench.Request, cfg *Config) error {
	if req.Sampling.IgnoreEOS {
		return refuseIgnoreEOS("tgi")
	}
	if cfg.Chat {
		body["model"] = "tgi" // any other name asks for an adapter
		if req.Sampling.TopP == 1 || req.Sampling.Temperature == 0 {
			delete(body, "top_p")
		}
	}
	return nil
}

// refuseIgnoreEOS is what a server says that always ends at end-of-sequence.
func refuseIgnoreEOS(server string) error {
	return bench.Fail(bench.Refused, "%s was asked to go on past end-of-sequence and cannot: ask without ignore-EOS, or leave this server out", server)
}

// tgiIdentify reads /info. TGI has no name for its model but its path.
func tgiIdentify(info *bench.Info, get func(path string, into any) error) error {
	var told struct {
		Model   string `json:"model_id"`
		DType   string `json:"model_dtype"` // until 2.0
		Context int    `json:"max_total_tokens"`
		Version string `json:"version"`
		SHA     string `json:"sha"`
		Docker  string `json:"docker_label"`
	}
	if err := get("/info", &told); err != nil {
		return err
	}
	info.Version, info.Build, info.Context, info.DType = told.Version, told.SHA, told.Context, told.DType
	if told.Docker != "" {
		info.Build = told.Docker
	}
	if told.Model == "" {
		return fmt.Errorf("GET /info names no model_id")
	}
	info.Model = told.Model
	if info.Weights == "" {
		info.Weights = told.Model
	}
	return nil
}

// tgiPool is what all slots may hold at once.
func tgiPool(s Start) int { return s.Slots * s.Context }

func tgiContainerArgv(s Start) ([]string, error) {
	s.Bin = "text-generation-launcher" // the image's entry point
	if err := s.check("tgi", "a directory"); err != nil {
		return nil, err
	}
	if s.Context < 2 {
		return nil, fmt.Errorf("cannot start tgi with a context of %d tokens: it wants room for a prompt and an answer", s.Context)
	}
	num := strconv.Itoa
	argv := []string{
		"--model-id", s.Model,
		"--hostname", s.host(), "--port", num(s.Port),
		"--max-input-tokens", num(s.Context - 1), "--max-total-tokens", num(s.Context),
		"--max-batch-total-tokens", num(tgiPool(s)),
		// Beyond this number it refuses requests at once.
		"--max-concurrent-requests", num(max(128, 2*s.Slots)),
		"--usage-stats", "off",
		"--num-shard", "1", // it would take all GPUs that it sees
	}
	switch s.DType { // its launcher takes no other
	case "":
	case "f16":
		argv = append(argv, "--dtype", "float16")
	case "bf16":
		argv = append(argv, "--dtype", "bfloat16")
	default:
		return nil, fmt.Errorf("tgi cannot compute in %q: choose f16 or bf16", s.DType)
	}
	return argv, nil
}

func tgiContainerEnv(s Start) []string {
	cache := "PREFIX_CACHING=0"
	if s.PrefixCache {
		cache = "PREFIX_CACHING=1"
	}
	return []string{"HF_HUB_OFFLINE=1", cache}
}
