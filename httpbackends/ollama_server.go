package httpbackends

import (
	"slices"

	"github.com/nativebench/nativebench/internal/bench"
)

// ollamaServer is the row of Ollama. https://github.com/ollama/ollama
//
// Its OpenAI chat route is no ChatRoute: it cannot switch off its own top-k and
// repetition penalty there.
func ollamaServer() Server {
	return Server{
		Name:         "ollama",
		Engine:       "Ollama",
		Dialect:      Ollama{},
		Route:        "/api/generate",
		Health:       "/api/version",
		NoIgnoreEOS:  true,
		MergesTokens: true,
		Fields:       ollamaFields,
		Substitutions: []Substitution{
			{Text: "top-k off: sent as top_k 0; min_p 0 and repeat_penalty 1 are sent, because Ollama's own defaults are others"},
		},
		Notes: []string{
			"Ollama cannot go on past end-of-sequence, so answers may be shorter than asked",
			"it keeps the KV cache of the last prompt of each slot and takes a common beginning from it; this cannot be switched off, and it does not tell of hits",
			notedMerges,
			"the first request loads the model",
		},
		Identify: ollamaIdentify,
		Process:  [][]string{{"ollama", "serve"}},
	}
}

func ollamaFields(body map[string]any, req *bench.Request, cfg *Config) error {
	if req.Sampling.IgnoreEOS {
		return refuseIgnoreEOS("ollama")
	}
	options := body["options"].(map[string]any)
	options["top_k"] = 0 // off
	options["min_p"] = 0.0
	options["typical_p"] = 1.0
	options["repeat_penalty"] = 1.0
	options["presence_penalty"] = 0.0
	options["frequency_penalty"] = 0.0
	if cfg.Context > 0 {
		options["num_ctx"] = cfg.Context
	}
	// An error instead of a prompt cut without a word; older versions do not
	// know these and cut it.
	body["truncate"], body["shift"] = false, false
	return nil
}

// ollamaIdentify reads /api/version and /api/tags.
func ollamaIdentify(info *bench.Info, get func(path string, into any) error) error {
	var version struct {
		Version string `json:"version"`
	}
	if err := get("/api/version", &version); err != nil {
		return err
	}
	info.Version, info.Build = version.Version, version.Version
	var tags struct {
		Models []struct {
			Name    string `json:"name"`
			Digest  string `json:"digest"`
			Details struct {
				Quantization string `json:"quantization_level"`
			} `json:"details"`
		} `json:"models"`
	}
	if err := get("/api/tags", &tags); err != nil {
		return err
	}
	var names []string
	for _, m := range tags.Models {
		names = append(names, m.Name)
	}
	if latest := info.Model + ":latest"; slices.Contains(names, latest) {
		names = append(names, info.Model) // another name of the same
	}
	if err := pickModel(info, names); err != nil {
		return err
	}
	for _, m := range tags.Models {
		if m.Name == info.Model || m.Name == info.Model+":latest" {
			info.DType = m.Details.Quantization
			if info.Weights == "" {
				info.Weights = m.Digest
			}
		}
	}
	return nil
}
