package httpbackends

import "github.com/nativebench/nativebench/internal/bench"

// openAIServer is the row of any server with OpenAI's protocol: it is sent the
// standard fields and nothing else.
// https://platform.openai.com/docs/api-reference
func openAIServer() Server {
	return Server{
		Name:         "openai",
		Engine:       "any OpenAI-compatible server",
		Dialect:      OpenAICompletions{},
		Route:        "/v1/completions",
		ChatRoute:    "/v1/chat/completions",
		Health:       "/v1/models",
		NoIgnoreEOS:  true,
		NoSeed:       true,
		MergesTokens: true,
		Fields: func(_ map[string]any, req *bench.Request, _ *Config) error {
			if req.Sampling.IgnoreEOS {
				return refuseIgnoreEOS("openai")
			}
			return nil
		},
		Notes: []string{
			"only OpenAI's standard fields are sent: filters that the server applies by itself (top-k, min-p, penalties) are as it likes",
			"the seed is sent; whether the server follows it is not known",
			"it may have a prefix cache",
			notedMerges,
		},
		Process: knownProcesses(),
		Identify: func(info *bench.Info, get func(path string, into any) error) error {
			info.Engine, info.Version = "an OpenAI-compatible server", "(it does not tell which)"
			return openAIModels(info, get)
		},
	}
}

// knownProcesses are those of all servers that have a row of their own.
func knownProcesses() (all [][]string) {
	for _, row := range []Server{llamaServer(), vllmServer(), tgiServer(), transformersServer(), transformersServe(), sglangServer(), ollamaServer()} {
		all = append(all, row.Process...)
	}
	return all
}
