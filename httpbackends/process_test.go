package httpbackends

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// What a server does not tell is taken from who started it; what it tells is not.
func TestVersionOfTheEnvironment(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/openapi.json" {
			_, _ = w.Write([]byte(serveAPI))
		}
	}))
	defer srv.Close()
	for _, tc := range []struct{ given, want string }{{"5.23.0", "5.23.0"}, {"", versionNotTold}} {
		b, err := Open(t.Context(), Config{Server: transformersServe(), Endpoint: srv.URL, Version: tc.given, Build: "torch 2"})
		if err != nil {
			t.Fatal(err)
		}
		b.Close()
		if info := b.Info(); info.Version != tc.want || strings.Contains(strings.Join(info.Notes, " "), "packages in the Python environment") != (tc.given != "") {
			t.Errorf("given %q: %q, notes %q", tc.given, info.Version, info.Notes)
		}
	}
	llama, err := Open(t.Context(), Config{Server: llamaServer(), Endpoint: "http://" + newTestServer(t).Addr().String(), Version: "x"})
	if err != nil {
		t.Fatal(err)
	}
	llama.Close()
	if llama.Info().Version != "b1-abc" {
		t.Errorf("%+v", llama.Info())
	}
}

func TestIsProcess(t *testing.T) {
	for line, want := range map[string]string{
		"/opt/llama/llama-server --host 127.0.0.1":                   "llama-server",
		"/env/bin/python3 /env/bin/vllm serve /models/x --port 8000": "vllm",
		"python3 -m vllm.entrypoints.openai.api_server --model x":    "vllm",
		"VLLM::EngineCore_0":                    "",
		"VLLM::APIServer_1":                     "vllm",
		"text-generation-router --port 80":      "tgi",
		"text-generation-launcher --model-id x": "tgi",
		"/env/bin/python /c/scripts/transformers_server-0123456789ab.py --model": "transformers",
		"/env/bin/python /env/bin/transformers serve --host h":                   "transformers-serve",
		"python -m sglang.launch_server --model x":                               "sglang",
		"/usr/local/bin/ollama serve":                                            "ollama",
		"/usr/bin/docker-proxy -proto tcp -host-ip 127.0.0.1":                    "",
		"ssh -N -L 8000:127.0.0.1:8000 vllm":                                     "",
		"nginx: master process /usr/sbin/nginx":                                  "",
		"python proxy.py --to http://127.0.0.1:8000/llama-server":                "",
	} {
		got := ""
		for _, row := range Servers() {
			if row.Name != "openai" && row.IsProcess(strings.Fields(line)) {
				got += row.Name
			}
		}
		if got != want {
			t.Errorf("%s: taken for %q, want %q", line, got, want)
		}
		if openAIServer().IsProcess(strings.Fields(line)) != (want != "") {
			t.Errorf("%s: of any server: %v", line, want == "")
		}
	}
}
