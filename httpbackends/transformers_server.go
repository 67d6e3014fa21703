package httpbackends

import (
	"fmt"
	"strconv"

	"github.com/nativebench/nativebench/internal/bench"
)

// transformersServer is the row of the small server around Hugging Face
// Transformers that comes with nativebench (scripts/transformers_server.py). It
// speaks vLLM's form of the OpenAI protocol.
func transformersServer() Server {
	return Server{
		Name:    "transformers",
		Engine:  "Transformers",
		Dialect: OpenAICompletions{},
		Route:   "/v1/completions",
		Health:  "/health",
		Tokens:  true,
		Fields:  transformersFields,
		Notes: []string{
			"it works on one request at a time: the others wait, and their waiting is in their time to the first token",
		},
		Identify: transformersIdentify,
		Process:  [][]string{{"transformers_server"}},
		Weights:  HuggingFace,
		Program:  "python",
		Python:   "transformers",
		Argv:     transformersArgv,
		Environ:  transformersEnviron,
	}
}

// transformersFields sends no field that the server does not know, because it
// refuses those; it filters by nothing but temperature and top_p.
func transformersFields(body map[string]any, req *bench.Request, cfg *Config) error {
	body["ignore_eos"] = req.Sampling.IgnoreEOS
	if req.Stream {
		body["stream_options"] = map[string]any{"include_usage": true, "continuous_usage_stats": true}
	}
	if cfg.TokenIDs {
		body["return_token_ids"] = true
	}
	return nil
}

// transformersIdentify reads /version and /v1/models.
func transformersIdentify(info *bench.Info, get func(path string, into any) error) error {
	var version struct {
		Version string `json:"version"`
		Torch   string `json:"torch"`
	}
	if err := get("/version", &version); err != nil {
		return err
	}
	info.Version, info.Build = version.Version, "torch "+version.Torch
	return ownedModels(info, get, "nativebench")
}

func transformersArgv(s Start) ([]string, error) {
	if err := s.check("transformers", "a directory"); err != nil {
		return nil, err
	}
	if s.Script == "" {
		return nil, fmt.Errorf("cannot start transformers: no path of its script was given")
	}
	dtype, err := s.dtype("auto")
	if err != nil {
		return nil, fmt.Errorf("transformers: %w", err)
	}
	argv := []string{
		s.Bin, s.Script, "--model", s.Model,
		"--host", s.host(), "--port", strconv.Itoa(s.Port),
		"--dtype", dtype, "--device", s.device(),
		"--max-model-len", strconv.Itoa(s.Context),
	}
	if s.Name != "" {
		argv = append(argv, "--served-model-name", s.Name)
	}
	if s.Threads > 0 {
		argv = append(argv, "--threads", strconv.Itoa(s.Threads))
	}
	return argv, nil
}

// device is the name that PyTorch has for where to compute.
func (s Start) device() string {
	if s.onCPU() {
		return "cpu"
	}
	return "cuda"
}

func transformersEnviron(s Start, env []string) []string {
	set := []string{"HF_HUB_OFFLINE=1"}
	if s.Threads > 0 {
		set = append(set, "OMP_NUM_THREADS="+strconv.Itoa(s.Threads))
	}
	return setEnv(env, set...)
}
