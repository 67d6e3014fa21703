package httpbackends

import (
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/nativebench/nativebench/internal/bench"
)

// llamaServer is the row of llama.cpp's own server.
// https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md
func llamaServer() Server {
	return Server{
		Name:      "llama-server",
		Engine:    "llama.cpp",
		Dialect:   OpenAICompletions{},
		Route:     "/v1/completions",
		ChatRoute: "/v1/chat/completions",
		Health:    "/health",
		Tokens:    true,
		Fields:    llamaFields,
		Substitutions: []Substitution{
			{Text: "llama-server applies top-p before temperature by default, after top-k 40 and with min-p 0.05: sent samplers [temperature, top_p], so that temperature comes first and nothing else filters"},
			{"temperature 0: sent as 0, which the server takes as greedy, with top_p 1 (no effect on the one token left)", greedy},
		},
		Notes: []string{
			"each event carries the server's running token count (timings_per_token), so an event that brings several tokens, after held-back UTF-8, is counted right",
			"tokens are chosen on the host, one sequence after the other, from logits that are copied there: the server's default; its --backend-sampling, experimental by its own help, is not given",
			"the server closes the connection after every stream, so each streaming request goes over a fresh one: it is opened off the clock, but the server's accepting it may fall into the request's time",
		},
		ClosesAfterStream: true, // cpp-httplib takes the end of the content provider for a cancellation
		Identify:          llamaIdentify,
		Tokenize:          llamaTokenize,
		Process:           [][]string{{"llama-server"}},
		Metrics: Metrics{Path: "/metrics", Series: []Series{
			{"requests_running", []string{"llamacpp:requests_processing"}},
			{"requests_waiting", []string{"llamacpp:requests_deferred"}},
			{"kv_cache_used_ratio", []string{"llamacpp:kv_cache_usage_ratio"}}, // until 2025
			{"prompt_tokens_total", []string{"llamacpp:prompt_tokens_total"}},
			{"prefix_cache_hits_total", []string{"llamacpp:prompt_tokens_cached_total"}},
			{"output_tokens_total", []string{"llamacpp:tokens_predicted_total"}},
			{"prefill_seconds_sum", []string{"llamacpp:prompt_seconds_total"}},
			{"decode_seconds_sum", []string{"llamacpp:tokens_predicted_seconds_total"}},
		}},
		Program: "llama-server",
		Argv:    llamaArgv,
		Environ: llamaEnviron,
	}
}

func llamaFields(body map[string]any, req *bench.Request, cfg *Config) error {
	sp := req.Sampling
	body["samplers"] = []string{"temperature", "top_p"}
	if sp.Temperature == 0 {
		body["top_p"] = 1.0
	}
	body["ignore_eos"] = sp.IgnoreEOS
	body["cache_prompt"] = cfg.PrefixCache
	body["timings_per_token"] = req.Stream
	// With the one sampler list above these do nothing; they are sent against
	// a server started with other defaults.
	body["mirostat"] = 0
	body["dynatemp_range"] = 0.0
	body["min_keep"] = 0
	if cfg.TokenIDs {
		if req.Stream {
			return bench.Fail(bench.Refused, "llama-server: token ids are complete in sync answers only, because a stream leaves out those of held-back tokens: ask for them in sync mode")
		}
		body["return_tokens"] = true
		body["verbose"] = true // puts them under "__verbose"
	}
	return nil
}

// llamaTokenize does what /v1/completions does with a prompt that is a text
// (tokenize_input_prompts in tools/server/server-common.cpp).
func llamaTokenize(prompt string, post func(path string, body, into any) error) ([]int32, error) {
	var answer struct {
		Tokens []int32 `json:"tokens"`
	}
	err := post("/tokenize", map[string]any{"content": prompt, "add_special": true, "parse_special": true}, &answer)
	return answer.Tokens, err
}

// llamaIdentify reads /props and /v1/models.
func llamaIdentify(info *bench.Info, get func(path string, into any) error) error {
	var props struct {
		Settings struct {
			Context int `json:"n_ctx"`
		} `json:"default_generation_settings"`
		Slots int    `json:"total_slots"`
		Alias string `json:"model_alias"`
		Ftype string `json:"model_ftype"`
		Path  string `json:"model_path"`
		Build string `json:"build_info"`
	}
	if err := get("/props", &props); err != nil {
		return err
	}
	if props.Slots == 0 {
		return fmt.Errorf("GET /props tells no total_slots")
	}
	info.Context, info.Slots = props.Settings.Context, props.Slots
	info.Model, info.DType = props.Alias, props.Ftype
	info.Version, info.Build = props.Build, props.Build
	if info.Weights == "" {
		info.Weights = props.Path
	}
	var models struct {
		Data []struct {
			ID   string `json:"id"`
			Meta struct {
				Params int64 `json:"n_params"`
			} `json:"meta"`
		} `json:"data"`
	}
	if err := get("/v1/models", &models); err != nil {
		return err
	}
	if len(models.Data) > 0 {
		info.Params = models.Data[0].Meta.Params
		if info.Model == "" {
			info.Model = models.Data[0].ID
		}
	}
	return nil
}

func llamaArgv(s Start) ([]string, error) {
	if err := s.check("llama-server", "GGUF"); err != nil {
		return nil, err
	}
	num := strconv.Itoa
	argv := []string{
		s.Bin,
		"--host", s.host(), "--port", num(s.Port),
		"--model", s.Model,
		"--parallel", num(s.Slots),
		// The flag is the sum over slots; without a unified cache each slot has
		// its equal, own share, as in process.
		"--ctx-size", num(s.Context * s.Slots), "--no-kv-unified",
		"--fit", "off", // settings are what is asked, or an error
		"--no-ui", "--metrics", "--offline",
		"--sse-ping-interval", "-1",
		"--slot-prompt-similarity", "0", // any free slot
	}
	if s.Name != "" {
		argv = append(argv, "--alias", s.Name)
	}
	if s.Threads > 0 {
		argv = append(argv, "--threads", num(s.Threads))
	}
	if s.BatchThreads > 0 {
		argv = append(argv, "--threads-batch", num(s.BatchThreads))
	}
	// The server computes at most one logical batch of prompt tokens between
	// two decode steps: its batch is our prefill chunk.
	batch := s.Batch
	if s.PrefillChunk > 0 && (batch == 0 || s.PrefillChunk < batch) {
		batch = s.PrefillChunk
	}
	if batch > 0 {
		argv = append(argv, "--batch-size", num(batch))
	}
	if s.UBatch > 0 {
		argv = append(argv, "--ubatch-size", num(s.UBatch))
	}
	layers := "all"
	if s.GPULayers >= 0 {
		layers = num(s.GPULayers)
	}
	argv = append(argv, "--gpu-layers", layers)
	if s.FlashAttn != "" {
		argv = append(argv, "--flash-attn", s.FlashAttn)
	}
	if s.CacheType != "" {
		argv = append(argv, "--cache-type-k", s.CacheType, "--cache-type-v", s.CacheType)
	}
	if !s.PrefixCache {
		argv = append(argv, "--no-cache-prompt", "--cache-ram", "0", "--no-cache-idle-slots", "--ctx-checkpoints", "0")
	}
	return argv, nil
}

// llamaEnviron drops the variables by which llama-server's flags can be set
// behind our back, and lets it find the libraries beside it.
func llamaEnviron(s Start, env []string) []string {
	dir := filepath.Dir(s.Bin)
	path := "LD_LIBRARY_PATH=" + dir
	out := slices.DeleteFunc(slices.Clone(env), func(kv string) bool {
		if v, ok := strings.CutPrefix(kv, "LD_LIBRARY_PATH="); ok {
			if v != "" {
				path += string(filepath.ListSeparator) + v
			}
			return true
		}
		return strings.HasPrefix(kv, "LLAMA_ARG_") || strings.HasPrefix(kv, "LLAMA_API_KEY=")
	})
	return append(out, path)
}
