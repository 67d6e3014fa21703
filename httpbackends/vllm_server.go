package httpbackends

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/nativebench/nativebench/internal/bench"
)

// vllmServer is the row of vLLM's OpenAI-compatible server.
// https://docs.vllm.ai/en/latest/serving/openai_compatible_server/
func vllmServer() Server {
	return Server{
		Name:      "vllm",
		Engine:    "vLLM",
		Dialect:   OpenAICompletions{},
		Route:     "/v1/completions",
		ChatRoute: "/v1/chat/completions",
		Health:    "/health",
		Tokens:    true,
		Fields:    vllmFields,
		Notes: []string{
			"each event carries the server's running token count (continuous_usage_stats), so an event that brings several tokens is counted right",
			"against a server that was not started here each request carries a cache_salt of its own, so that a prefix cache finds nothing",
			"a prompt that leaves less room than the tokens asked for is answered with fewer, without an error: such an answer has the warning cut_short",
		},
		Identify: vllmIdentify,
		Process:  [][]string{{"vllm", "serve"}, {"vllm", "entrypoints"}, {"vllm", "apiserver"}},
		Metrics: Metrics{Path: "/metrics", Series: []Series{
			{"requests_running", []string{"vllm:num_requests_running"}},
			{"requests_waiting", []string{"vllm:num_requests_waiting"}},
			{"kv_cache_used_ratio", []string{"vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"}},
			{"prefix_cache_queries_total", []string{"vllm:prefix_cache_queries_total", "vllm:gpu_prefix_cache_queries_total"}},
			{"prefix_cache_hits_total", []string{"vllm:prefix_cache_hits_total", "vllm:gpu_prefix_cache_hits_total"}},
			{"preemptions_total", []string{"vllm:num_preemptions_total"}},
			{"prompt_tokens_total", []string{"vllm:prompt_tokens_total"}},
			{"output_tokens_total", []string{"vllm:generation_tokens_total"}},
			{"queue_seconds_sum", []string{"vllm:request_queue_time_seconds_sum"}},
			{"queue_seconds_count", []string{"vllm:request_queue_time_seconds_count"}},
			{"prefill_seconds_sum", []string{"vllm:request_prefill_time_seconds_sum"}},
			{"prefill_seconds_count", []string{"vllm:request_prefill_time_seconds_count"}},
			{"decode_seconds_sum", []string{"vllm:request_decode_time_seconds_sum"}},
			{"decode_seconds_count", []string{"vllm:request_decode_time_seconds_count"}},
		}, Labels: []LabelValue{
			{"kv_pool_tokens", "vllm:cache_config_info", []string{"num_gpu_blocks", "block_size"}},
		}},
		Profile: Profile{
			Start: "/start_profile", Stop: "/stop_profile",
			Wants: `--profiler-config '{"profiler": "cuda"}'`,
		},
		Weights:       HuggingFace,
		Program:       "vllm",
		Python:        "vllm",
		Argv:          vllmArgv,
		Environ:       vllmEnviron,
		EnvPrefix:     "VLLM_",
		Image:         "vllm/vllm-openai:v0.30.0",
		ImageNeedsGPU: true,
		ContainerArgv: vllmContainerArgv,
		ContainerEnv:  vllmContainerEnv,
	}
}

// vllmFields sends every field whose default the model's generation_config.json
// could set. min_tokens is not sent: it would forbid the end-of-sequence token,
// where ignore_eos goes on past it.
func vllmFields(body map[string]any, req *bench.Request, cfg *Config) error {
	body["ignore_eos"] = req.Sampling.IgnoreEOS
	body["top_k"] = -1 // off, in all versions
	body["min_p"] = 0.0
	body["repetition_penalty"] = 1.0
	body["presence_penalty"] = 0.0
	body["frequency_penalty"] = 0.0
	if req.Stream {
		body["stream_options"] = map[string]any{"include_usage": true, "continuous_usage_stats": true}
	}
	if cfg.TokenIDs {
		body["return_token_ids"] = true
	}
	if !cfg.PrefixCache && !cfg.Launched {
		// The server's cache may be on: nothing is found under a new salt.
		body["cache_salt"] = rand.Text()
	}
	return nil
}

// vllmIdentify reads /version and /v1/models.
func vllmIdentify(info *bench.Info, get func(path string, into any) error) error {
	var version struct {
		Version string `json:"version"`
	}
	if err := get("/version", &version); err != nil {
		return err
	}
	info.Version, info.Build = version.Version, version.Version
	return ownedModels(info, get, "vllm")
}

// openAIModels reads /v1/models of any owner.
func openAIModels(info *bench.Info, get func(path string, into any) error) error {
	return ownedModels(info, get, "")
}

// ownedModels reads /v1/models, with the additions of vLLM and of our
// Transformers server, and settles which model is asked for. owner is what the
// kind of server writes there of itself; "": anything.
func ownedModels(info *bench.Info, get func(path string, into any) error, owner string) error {
	var models struct {
		Data []struct {
			ID      string `json:"id"`
			Owner   string `json:"owned_by"`
			Root    string `json:"root"`
			Context int    `json:"max_model_len"`
			DType   string `json:"dtype"`
			Params  int64  `json:"n_params"`
		} `json:"data"`
	}
	if err := get("/v1/models", &models); err != nil {
		return err
	}
	var ids []string
	for _, m := range models.Data {
		if owner != "" && m.Owner != owner {
			return fmt.Errorf("its models are owned by %q, not %q", oneLine(m.Owner), owner)
		}
		ids = append(ids, m.ID)
	}
	if err := pickModel(info, ids); err != nil {
		return err
	}
	for _, m := range models.Data {
		if m.ID == info.Model {
			info.Context, info.DType, info.Params = m.Context, m.DType, m.Params
			if info.Weights == "" {
				info.Weights = m.Root
			}
		}
	}
	return nil
}

// pickModel sets info.Model to the one of a server's models that is asked for.
func pickModel(info *bench.Info, ids []string) error {
	switch {
	case slices.Contains(ids, info.Model):
	case len(ids) == 1:
		info.Model = ids[0]
	case info.Model == "":
		return fmt.Errorf("it has %d models (%s): name the one to ask for", len(ids), strings.Join(ids, ", "))
	default:
		info.Model = strings.Join(ids, ", ") // none of them: Open says so
	}
	return nil
}

func vllmArgv(s Start) ([]string, error) {
	if err := s.check("vllm", "a directory"); err != nil {
		return nil, err
	}
	flags, err := vllmFlags(s)
	if err != nil {
		return nil, err
	}
	return append([]string{s.Bin, "serve", s.Model}, flags...), nil
}

// vllmContainerArgv: the image's entry point is the server.
func vllmContainerArgv(s Start) ([]string, error) {
	s.Bin = "vllm" // inside
	if err := s.check("vllm", "a directory"); err != nil {
		return nil, err
	}
	flags, err := vllmFlags(s)
	if err != nil {
		return nil, err
	}
	return append([]string{"--model", s.Model}, flags...), nil
}

func vllmFlags(s Start) ([]string, error) {
	dtype, err := s.dtype("auto")
	if err != nil {
		return nil, fmt.Errorf("vllm: %w", err)
	}
	flags := []string{
		"--host", s.host(), "--port", strconv.Itoa(s.Port),
		"--dtype", dtype,
		"--max-model-len", strconv.Itoa(s.Context), "--max-num-seqs", strconv.Itoa(s.Slots),
		"--generation-config", "vllm", // no defaults from the model's directory
	}
	if s.Name != "" {
		flags = append(flags, "--served-model-name", s.Name)
	}
	if s.Profile {
		flags = append(flags, "--profiler-config", `{"profiler": "cuda"}`)
	}
	if s.PrefixCache {
		return append(flags, "--enable-prefix-caching"), nil
	}
	return append(flags, "--no-enable-prefix-caching"), nil
}

// vllmEnviron drops what would have the server ask for a key, and other secrets
// that are no business of a benchmark.
func vllmEnviron(s Start, env []string) []string {
	env = slices.DeleteFunc(slices.Clone(env), func(kv string) bool {
		name, _, _ := strings.Cut(kv, "=")
		return strings.HasPrefix(name, "VLLM_") && secretName.MatchString(name)
	})
	set := []string{"HF_HUB_OFFLINE=1", "VLLM_NO_USAGE_STATS=1"}
	if s.onCPU() {
		if gib := vllmCacheGiB(s); gib > 0 {
			set = append(set, "VLLM_CPU_KVCACHE_SPACE="+strconv.FormatInt(gib, 10))
		}
		if s.Threads > 0 {
			// With a binding, vLLM counts the cores bound, not this variable.
			set = append(set, "OMP_NUM_THREADS="+strconv.Itoa(s.Threads), "VLLM_CPU_OMP_THREADS_BIND=nobind")
		}
	}
	return setEnv(env, set...)
}

// secretName is of variables whose values are nobody's to read.
var secretName = regexp.MustCompile(`KEY|TOKEN|SECRET|PASSW`)

func vllmContainerEnv(s Start) []string { return vllmEnviron(s, nil) }

// vllmCacheGiB is the room that the KV cache of all slots takes, in whole GiB:
// vLLM on a CPU takes all of it at the start. 0 if the model does not say.
func vllmCacheGiB(s Start) int64 {
	var shape struct {
		Layers   int64 `json:"num_hidden_layers"`
		LayersN  int64 `json:"n_layer"`
		Hidden   int64 `json:"hidden_size"`
		HiddenN  int64 `json:"n_embd"`
		Heads    int64 `json:"num_attention_heads"`
		HeadsN   int64 `json:"n_head"`
		KVHeads  int64 `json:"num_key_value_heads"`
		HeadSize int64 `json:"head_dim"`
	}
	text, err := os.ReadFile(filepath.Join(s.Model, "config.json"))
	if err != nil || json.Unmarshal(text, &shape) != nil {
		return 0
	}
	layers, heads, hidden := max(shape.Layers, shape.LayersN), max(shape.Heads, shape.HeadsN), max(shape.Hidden, shape.HiddenN)
	if layers < 1 || heads < 1 || hidden < 1 {
		return 0
	}
	kv, size := shape.KVHeads, shape.HeadSize
	if kv == 0 {
		kv = heads
	}
	if size == 0 {
		size = hidden / heads
	}
	const width = 4 // bytes of a value, at most
	need := 2 * layers * kv * size * width * int64(s.Slots) * int64(s.Context)
	return max(1, (need+need/8)>>30+1) // cache blocks are not filled to the last
}
