//go:build cgo

package main

import (
	"bytes"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nativebench/nativebench/internal/synth"
	"github.com/nativebench/nativebench/internal/verify"
)

// tinyWeights are of a two-layer relative of GPT-2 with its real vocabulary.
func tinyWeights(t *testing.T, seed uint64, dtype string) *synth.Result {
	t.Helper()
	engine := os.Getenv("NATIVEBENCH_ENGINE_DIR")
	if engine == "" {
		t.Skip("NATIVEBENCH_ENGINE_DIR is not set: no engine to verify")
	}
	made, err := synth.Write(t.Context(), synth.Spec{
		Model: "gpt2", Seed: seed, DType: dtype, Layers: 2, Width: 128, VocabDir: filepath.Join(engine, "vocab"),
	}, filepath.Join(t.TempDir(), "model"), nil)
	if err != nil {
		t.Fatal(err)
	}
	return made
}

// llamaServerOf starts the real server on weights.
func llamaServerOf(t *testing.T, gguf string) (endpoint string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()
	var log bytes.Buffer
	cmd := exec.Command(filepath.Join(os.Getenv("NATIVEBENCH_ENGINE_DIR"), "llama-server"),
		"-m", gguf, "--port", strconv.Itoa(port), "-c", "1024", "-np", "1", "-t", "1", "--no-ui")
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { cmd.Wait(); close(ended) }()
	t.Cleanup(func() { cmd.Process.Kill(); <-ended })
	endpoint = "http://127.0.0.1:" + strconv.Itoa(port)
	for range 600 {
		if resp, err := http.Get(endpoint + "/health"); err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return endpoint
			}
		}
		select {
		case <-ended:
			t.Fatalf("llama-server ended:\n%s", log.String())
		case <-time.After(100 * time.Millisecond):
		}
	}
	t.Fatal("llama-server did not get ready")
	return ""
}

// faulty stands before a server and changes the prompts of its completions.
func faulty(t *testing.T, endpoint string, change func(prompt string) string) string {
	t.Helper()
	to, err := url.Parse(endpoint)
	if err != nil {
		t.Fatal(err)
	}
	proxy := httputil.NewSingleHostReverseProxy(to)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v1/completions" {
			var body map[string]any
			if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
				t.Error(err)
			}
			body["prompt"] = change(body["prompt"].(string))
			text, _ := json.Marshal(body)
			r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(text)), int64(len(text))
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(srv.Close)
	return srv.URL
}

func same(prompt string) string { return prompt }

func addBOS(prompt string) string { return "<|endoftext|>" + prompt }

// TestVerifyCatchesFaults makes every fault on purpose, at a real server.
func TestVerifyCatchesFaults(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir()) // for logs that are kept
	good := tinyWeights(t, 1, "f16")
	server := llamaServerOf(t, good.GGUF)
	for _, c := range []struct {
		name, kind string
		endpoint   func() string
		change     func(string) string
		verdicts   []verify.Verdict
		cause      verify.Cause
		by         verify.Compare // of answers
	}{
		{"none", "llama-server", nil, same, []verify.Verdict{verify.Identical}, "", verify.ByIDs},
		{"none, by text", "openai", nil, same, []verify.Verdict{verify.Identical}, "", verify.ByText},
		{"BOS added", "llama-server", nil, addBOS, []verify.Verdict{verify.Different}, verify.CauseBOSAdded, verify.ByIDs},
		{"template", "llama-server", nil, func(p string) string { return "### User:\n" + p + "\n### Assistant:\n" }, []verify.Verdict{verify.Different}, verify.CauseTemplate, verify.ByIDs},
		{"template, by text", "openai", nil, func(p string) string { return "### User:\n" + p + "\n### Assistant:\n" }, []verify.Verdict{verify.Different}, verify.CauseTemplate, verify.ByText},
		{"context", "llama-server", nil, func(p string) string { return p[:len(p)/2] }, []verify.Verdict{verify.Different}, verify.CauseContext, verify.ByIDs},
		{"weights", "llama-server", func() string { return llamaServerOf(t, tinyWeights(t, 2, "f16").GGUF) }, same, []verify.Verdict{verify.Different}, verify.CauseWeights, verify.ByIDs},
		{"weights, by text", "openai", func() string { return llamaServerOf(t, tinyWeights(t, 2, "f16").GGUF) }, same, []verify.Verdict{verify.Different}, verify.CauseWeights, verify.ByText},
		// The same numbers, rounded to 8 bits in place of 11.
		{"dtype", "llama-server", func() string { return llamaServerOf(t, tinyWeights(t, 1, "bf16").GGUF) }, same, []verify.Verdict{verify.Identical, verify.Close}, "", verify.ByIDs},
	} {
		t.Run(c.name, func(t *testing.T) {
			endpoint := server
			if c.endpoint != nil {
				endpoint = c.endpoint()
			}
			code, stdout, stderr := invoke(t, "verify", "--backends", "native", "--endpoint", c.kind+"="+faulty(t, endpoint, c.change),
				"--weights", good.GGUF, "--threads", "1", "--prompts", "4", "--max-tokens", "8", "--format", "json")
			var got struct{ Pairs []verify.Result }
			if err := json.Unmarshal([]byte(stdout), &got); err != nil || len(got.Pairs) != 1 {
				t.Fatalf("status %d, %v: %s%s", code, err, stdout, stderr)
			}
			r := got.Pairs[0]
			ok := false
			for _, v := range c.verdicts {
				ok = ok || r.Verdict == v
			}
			if want := map[bool]int{true: exitOK, false: exitCellsFailed}[c.cause == ""]; !ok || r.Cause != c.cause || code != want || r.AnswersBy != c.by {
				t.Errorf("status %d, %s, %q by %s: %s", code, r.Verdict, r.Cause, r.AnswersBy, r.Why)
			}
			if r.Prompts != 4 || c.cause == "" && r.PromptsEqual != 4 {
				t.Errorf("%d of %d prompts equal", r.PromptsEqual, r.Prompts)
			}
			for _, d := range r.Differ {
				if c.cause == verify.CauseWeights && (!d.Judged || d.Margin < 0 || d.Gap < d.Margin && !d.AtLeast || d.Top[0].Logit < d.Top[1].Logit) {
					t.Errorf("%+v", d)
				}
			}
		})
	}
}

// What people read.
func TestVerifySaysWhatItFound(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir()) // for logs that are kept
	good := tinyWeights(t, 1, "f16")
	args := []string{"verify", "--backends", "native,llama-server", "--weights", good.GGUF, "--threads", "1", "--prompts", "3", "--max-tokens", "6"}
	code, stdout, stderr := invoke(t, args...)
	for _, want := range []string{"gpt2: 3 prompts, greedy, at most 6 tokens each", "llama-server and native: IDENTICAL", "3 of 3 have the same token ids", "3 of 3 equal"} {
		if code != exitOK || !strings.Contains(stdout, want) {
			t.Errorf("status %d, no %q in:\n%s%s", code, want, stdout, stderr)
		}
	}
	code, stdout, stderr = invoke(t, append(args, "--endpoint", "llama-server="+llamaServerOf(t, tinyWeights(t, 2, "f16").GGUF))...)
	for _, want := range []string{"llama-server and native: DIFFERENT", "other weights", "no tie", "margin", "of the spread"} {
		if code != exitCellsFailed || !strings.Contains(stdout, want) {
			t.Errorf("status %d, no %q in:\n%s%s", code, want, stdout, stderr)
		}
	}
	if !strings.Contains(stderr, "logs of the servers") {
		t.Errorf("%q", stderr)
	}
	code, stdout, _ = invoke(t, "verify", "--backends", "fake,unready", "--prompts", "1")
	if code != exitCellsFailed || !strings.Contains(stdout, "unready and fake: NOT VERIFIED") || !strings.Contains(stdout, "no answer on its port") {
		t.Errorf("status %d: %s", code, stdout)
	}
	code, stdout, _ = invoke(t, "verify", "--backends", "fake,crash", "--prompts", "4")
	if code != exitCellsFailed || !strings.Contains(stdout, "panic: the engine fell over") {
		t.Errorf("status %d: %s", code, stdout)
	}
	code, stdout, stderr = invoke(t, "verify", "--backends", "native,llama-server", "--weights", good.GGUF, "--threads", "1", "--sampled", "--seeds", "300")
	if code != exitOK || !strings.Contains(stdout, "llama-server and native: ONE DISTRIBUTION") || !strings.Contains(stdout, "p = ") {
		t.Errorf("status %d: %s%s", code, stdout, stderr)
	}
}

// compare checks before it measures: the verdict is in the header, the manifest
// and the report, a mismatch also in the last words, and a resumed run keeps it.
func TestCompareVerifiesFirst(t *testing.T) {
	good := tinyWeights(t, 1, "f16")
	server := llamaServerOf(t, good.GGUF)
	const alarm = "WARNING: llama-server does NOT run the same model as native"
	for _, c := range []struct {
		name   string
		change func(string) string
		more   []string
		ok     bool
		cause  string
		header string
	}{
		{"the same", same, nil, true, "", "llama-server = native (gpt2): identical"},
		{"a fault", addBOS, nil, false, "bos_added", alarm},
		{"left out", addBOS, []string{"--no-verify"}, false, "", "was not checked (--no-verify)"},
	} {
		t.Run(c.name, func(t *testing.T) {
			out := filepath.Join(t.TempDir(), "run")
			args := append(small("native", out, "--endpoint", "llama-server="+faulty(t, server, c.change), "--weights", good.GGUF,
				"--threads", "1", "--mode", "sync", "--max-tokens", "6", "--format", "terminal"), c.more...)
			code, stdout, stderr := invoke(t, args...)
			if code != exitOK {
				t.Fatalf("status %d: %s", code, stderr)
			}
			header, rest, _ := strings.Cut(stderr, "[1/2]")
			if !strings.Contains(header, c.header) {
				t.Errorf("no %q in the header:\n%s", c.header, header)
			}
			found := readRun(t, out).Manifest.SameModel
			if c.more != nil {
				if len(found) != 0 || !strings.Contains(stdout, c.header) {
					t.Errorf("%+v\n%s", found, stdout)
				}
				return
			}
			if len(found) != 1 || found[0].OK != c.ok || found[0].Cause != c.cause || found[0].Prompts != vetPrompts {
				t.Fatalf("%+v", found)
			}
			if c.ok == strings.Contains(stdout, "does NOT run the same model") || c.ok == strings.Contains(rest, alarm) {
				t.Errorf("report:\n%s\nlast words:\n%s", stdout, rest)
			}
			code, _, stderr = invoke(t, "compare", "--resume", out, "--format", "none")
			if again := readRun(t, out).Manifest.SameModel; code != exitOK || len(again) != 1 || again[0] != found[0] || c.ok == strings.Contains(stderr, alarm) {
				t.Errorf("resumed: status %d, %+v\n%s", code, again, stderr)
			}
		})
	}
}
