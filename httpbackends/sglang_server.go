package httpbackends

import "github.com/nativebench/nativebench/internal/bench"

// sglangServer is the row of SGLang. https://docs.sglang.io
func sglangServer() Server {
	return Server{
		Name:         "sglang",
		Engine:       "SGLang",
		Dialect:      OpenAICompletions{},
		Route:        "/v1/completions",
		ChatRoute:    "/v1/chat/completions",
		Health:       "/health",
		NoSeed:       true,
		MergesTokens: true,
		Fields:       sglangFields,
		Notes: []string{
			"its prefix cache is on unless it was started with --disable-radix-cache; hits are told only with --enable-cache-report",
			"it follows the seed only if it was started with --enable-deterministic-inference",
			"unless it counts tokens in each event, as it is asked to: " + notedMerges,
			"its metrics are there only if it was started with --enable-metrics",
		},
		Identify: sglangIdentify,
		Process:  [][]string{{"sglang", "launch_server"}, {"sglang", "serve"}},
		Metrics: Metrics{Path: "/metrics", Series: []Series{
			{"requests_running", []string{"sglang:num_running_reqs"}},
			{"requests_waiting", []string{"sglang:num_queue_reqs"}},
			{"kv_cache_used_ratio", []string{"sglang:token_usage"}},
			{"prefix_cache_hits_total", []string{"sglang:cached_tokens_total"}},
			{"prompt_tokens_total", []string{"sglang:prompt_tokens_total"}},
			{"output_tokens_total", []string{"sglang:generation_tokens_total"}},
			{"queue_seconds_sum", []string{"sglang:queue_time_seconds_sum"}},
			{"queue_seconds_count", []string{"sglang:queue_time_seconds_count"}},
		}},
		Weights: HuggingFace,
	}
}

func sglangFields(body map[string]any, req *bench.Request, _ *Config) error {
	body["ignore_eos"] = req.Sampling.IgnoreEOS
	body["top_k"] = -1 // off
	body["min_p"] = 0.0
	body["repetition_penalty"] = 1.0
	body["presence_penalty"] = 0.0
	body["frequency_penalty"] = 0.0
	if req.Stream {
		body["stream_options"] = map[string]any{"include_usage": true, "continuous_usage_stats": true}
	}
	return nil
}

// sglangIdentify reads /get_server_info and /v1/models.
func sglangIdentify(info *bench.Info, get func(path string, into any) error) error {
	var told struct {
		Version string `json:"version"`
		DType   string `json:"dtype"`
		Slots   int    `json:"max_running_requests"`
	}
	if err := get("/get_server_info", &told); err != nil {
		if get("/server_info", &told) != nil { // its newer name
			return err
		}
	}
	if err := openAIModels(info, get); err != nil {
		return err
	}
	info.Version, info.Build, info.DType, info.Slots = told.Version, told.Version, told.DType, told.Slots
	return nil
}
