package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"

	"github.com/nativebench/nativebench/internal/gguf"
)

// Everything that is refused is refused in one line that says what to do, with
// status 2, before anything is started or written.
func TestRefusals(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("XDG_CACHE_HOME", filepath.Join(dir, "cache"))
	pretendGPU(t, filepath.Join(dir, "no such device"))
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	run := filepath.Join(dir, "run")
	if code, _, stderr := invoke(t, "run", "--backend", "fake", "--task", "chat", "--mode", "sync", "--repeat", "1", "--requests", "1", "--out", run, "--format", "none"); code != 0 {
		t.Fatalf("code %d: %s", code, stderr)
	}
	if err := os.Mkdir(filepath.Join(dir, "there"), 0o755); err != nil {
		t.Fatal(err)
	}
	text := file("text.txt", "not a model")
	prompts := file("prompts.jsonl", `{"prompt":"a","task":"code"}`+"\n")
	badPrompts := file("bad.jsonl", `{"promt":"a"}`+"\n")

	none := filepath.Join(dir, "none")
	whole := writeGGUF(t, filepath.Join(dir, "whole.gguf"), "gpt2", 1024, 64, true)
	cut := file("cut.gguf", string(whole[:len(whole)-1]))
	broken := append([]byte(nil), whole...)
	copy(broken[24:], "\xff\xff\xff\xff\xff\xff\xff\x7f") // the length of the first key
	corrupted := file("corrupted.gguf", string(broken))
	writeGGUF(t, filepath.Join(dir, "llama.gguf"), "llama", 1024, 64, true)
	writeGGUF(t, filepath.Join(dir, "short.gguf"), "gpt2", 64, 64, true)
	writeGGUF(t, filepath.Join(dir, "vocab.gguf"), "gpt2", 1024, 64, false)

	t.Setenv("HF_HUB_CACHE", filepath.Join(dir, "hub"))
	t.Setenv("HF_ENDPOINT", "http://127.0.0.1:1") // nothing listens there
	hf := filepath.Join(dir, "hf")
	if err := os.Mkdir(hf, 0o755); err != nil {
		t.Fatal(err)
	}
	file("hf/config.json", "{}")
	const header = `{"a":{"dtype":"F16","shape":[1],"data_offsets":[0,2]}}`
	file("hf/model.safetensors", string(rune(len(header)))+"\x00\x00\x00\x00\x00\x00\x00"+header+"xx")

	// An engine with the converter in it; no Python environment for it.
	tools := filepath.Join(dir, "tools")
	if err := os.MkdirAll(filepath.Join(tools, "convert"), 0o755); err != nil {
		t.Fatal(err)
	}
	file("tools/convert/convert_hf_to_gguf.py", "")
	file("tools/llama-quantize", "")
	t.Setenv(pythonVariable(convertEnv), none)

	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	weights := func(path string) []string { return []string{"compare", "--backends", "holder", "--weights", path} }

	lines := [][]string{
		{"bogus"},
		{"--bogus"},
		{"compare", "chat"},
		{"compare", "--modle", "gpt2"},
		{"compare", "--repeat"},
		{"compare", "--repeat", "0"},
		{"compare", "--repeat", "many"},
		{"compare", "--cooldown", "5"},
		{"compare", "--model", "gpt3"},
		{"compare", "--task", "chatt"},
		{"compare", "--task", "chat,chat"},
		{"compare", "--backends", "natve"},
		{"compare", "--backends", "fake,absent"},
		{"compare", "--endpoint", "vllm"},
		{"compare", "http://me:PASSw0rd@127.0.0.1:1"},
		{"http://me:PASSw0rd@127.0.0.1:1"},
		{"compare", "--endpoint", "http://me:PASSw0rd@127.0.0.1:1"},
		{"compare", "--endpoint", "http://127.0.0.1:1/?key=PASSw0rd"},
		{"compare", "--endpoint", "openai=http://127.0.0.1:1/?key=PASSw0rd"},
		{"compare", "--weights", "https://me:PASSw0rd@127.0.0.1/x.gguf"},
		{"compare", "--endpoint", "vllm=http://127.0.0.1:1", "--endpoint", "vllm=http://127.0.0.1:2"},
		{"compare", "--endpoint", "openai=http://127.0.0.1:1", "--backends", "fake", "--api-key-env", "openai=hf_PASSw0rd"},
		{"compare", "--backends", "fake,tgi"},
		{"compare", "--endpoint", "vlm=http://127.0.0.1:1"},
		{"compare", "--endpoint", "native=http://127.0.0.1:1"},
		{"compare", "--endpoint", "vllm=127.0.0.1:1"},
		{"compare", "--endpoint", "vllm=http://me:secret@127.0.0.1:1"},
		{"compare", "--endpoint", "tgi=http://127.0.0.1:1", "--backends", "fake", "--ignore-eos"},
		{"compare", "--endpoint", "tgi=http://127.0.0.1:1", "--backends", "fake", "--model", "gpt2,phi-2"},
		{"compare", "--endpoint", "ollama=http://127.0.0.1:1", "--backends", "fake", "--route", "chat"},
		{"compare", "--backends", "fake", "--route", "raw"},
		{"compare", "--backends", "fake", "--api-key-env", "vllm=NATIVEBENCH_NO_SUCH_KEY"},
		{"compare", "--endpoint", "vllm=http://127.0.0.1:1", "--backends", "fake", "--api-key-env", "vllm=NATIVEBENCH_NO_SUCH_KEY"},
		{"compare", "--backends", "fake,ollama"},
		{"compare", "--backends", "fake,vllm", "--launch", "none"},
		{"compare", "--backends", "fake,vllm", "--launch", "podman"},
		{"compare", "--backends", "fake,vllm", "--launch", "docker"},
		{"compare", "--backends", "fake,tgi", "--launch", "docker"},
		{"compare", "--backends", "fake", "--ready-timeout", "0s"},
		{"compare", "--backends", "fake", "--vocab", none},
		{"compare", "--backends", "fake", "--vocab", text},
		{"compare", "--backends", "fake", "--vocab", filepath.Join(dir, "llama.gguf")},
		{"compare", "--backends", "fake", "--vocab", filepath.Join(dir, "vocab.gguf")},
		{"compare", "--backends", "fake", "--vocab", filepath.Join(dir, "vocab.gguf"), "--model", "gpt2,phi-2"},
		{"compare", "--backends", "fake", "--weights", filepath.Join(dir, "vocab.gguf")},
		{"compare", "--backends", "fake,holder", "--vocab", filepath.Join(dir, "vocab.gguf")},
		{"compare", "--mode", "async"},
		{"compare", "--concurrency", "0"},
		{"compare", "--concurrency", "1,x"},
		{"compare", "--requests", "0"},
		{"compare", "--warmup", "-1"},
		{"compare", "--seed", "-1"},
		{"compare", "--seed", "4294967296"},
		{"compare", "--max-tokens", "2000"},
		{"compare", "--ctx", "5000"},
		{"compare", "--flash-attn", "maybe"},
		{"compare", "--cache-type", "q4"},
		{"compare", "--request-timeout", "0s"},
		{"compare", "--first-token-timeout", "3m"},
		{"compare", "--token-timeout", "-1s"},
		{"compare", "--retries", "101"},
		{"compare", "--format", "pdf", "--backends", "fake"},
		{"compare", "--backends", "fake", "--out", run},
		{"compare", "--backends", "fake", "--out", filepath.Join(dir, "there")},
		{"compare", "--backends", "fake", "--out", text},
		{"compare", "--backends", "fake", "--out", filepath.Join(text, "run")},
		{"compare", "--backends", "fake", "--out", "/proc/run"},
		{"compare", "--backends", "fake", "--prompts", filepath.Join(dir, "none.jsonl")},
		{"compare", "--backends", "fake", "--prompts", badPrompts},
		{"compare", "--backends", "fake", "--prompts", prompts, "--task", "chat"},
		{"compare", "--backends", "fake", "--prompt-tokens", "32", "--engine-dir", none},
		weights(none),
		weights(dir),
		weights(text),
		weights(cut),
		weights(corrupted),
		weights(filepath.Join(dir, "llama.gguf")),
		weights(filepath.Join(dir, "short.gguf")),
		weights(filepath.Join(dir, "vocab.gguf")),
		append(weights(filepath.Join(dir, "whole.gguf")), "--model", "gpt2,phi-2"),
		{"compare", "--backends", "holder", "--weights", "synthetic", "--engine-dir", none},
		{"compare", "--backends", "holder", "--weights", "synthetic", "--model", "phi-2", "--engine-dir", none},
		{"compare", "--backends", "holder", "--weights", "synthetic", "--dtype", "q4", "--engine-dir", none},
		{"compare", "--backends", "holder", "--weights", "synthetic", "--model", "llama-2-7b-chat", "--width", "100", "--engine-dir", none},
		{"compare", "--backends", "holder", "--weights", "synthetic", "--model", "mistral-7b-instruct", "--layers", "2", "--width", "128", "--engine-dir", none},
		{"compare", "--backends", "holder", "--weights", "synthetic", "--layers", "-2", "--engine-dir", none},
		{"compare", "--backends", "openai,tgi", "--endpoint", "openai=http://127.0.0.1:1", "--endpoint", "tgi=http://127.0.0.1:2", "--weights", "synthetic"},
		{"run", "--backend", "openai", "--endpoint", "openai=http://127.0.0.1:1", "--weights", "synthetic", "--layers", "2"},
		append(weights(filepath.Join(dir, "whole.gguf")), "--layers", "2"),
		{"compare", "--backends", "holder", "--layers", "2"},
		{"compare", "--backends", "holder", "--hf-dir", hf, "--width", "768"},
		{"compare", "--backends", "holder", "--hf-dir", hf, "--weights", "synthetic"},
		{"compare", "--backends", "holder", "--hf-dir", hf, "--revision", "v1"},
		{"compare", "--backends", "holder", "--revision", "v1", "--model", "gpt2,phi-2"},
		{"compare", "--backends", "holder", "--revision", "../v1"},
		append(weights(filepath.Join(dir, "whole.gguf")), "--dtype", "bf16"),
		append(weights(filepath.Join(dir, "whole.gguf")), "--revision", "v1"),
		{"compare", "--backends", "holder", "--offline"},
		{"run", "--backend", "holder", "--offline", "--model", "phi-2"},
		{"verify", "--backends", "fake,holder", "--offline"},
		{"compare", "--backends", "holder", "--dtype", "f32"},
		{"compare", "--backends", "holder", "--engine-dir", none},
		{"compare", "--backends", "holder", "--engine-dir", tools},
		{"compare", "--backends", "holder", "--hf-dir", hf, "--engine-dir", tools},
		{"compare", "--backends", "holder", "--gguf", none},
		{"compare", "--backends", "holder", "--gguf", text, "--weights", text},
		{"compare", "--backends", "holder", "--hf-dir", none},
		{"compare", "--backends", "holder", "--hf-dir", hf, "--dtype", "f32"},
		{"compare", "--backends", "holder", "--hf-dir", hf, "--model", "gpt2,phi-2"},
		{"compare", "--backends", "holder", "--hf-dir", hf, "--engine-dir", none},
		{"compare", "--resume", none},
		{"compare", "--resume", run, "--out", filepath.Join(dir, "new")},
		{"compare", "--resume", run, "--requests", "7", "--task", "qa"},
		{"compare", "--resume", run, "--backends", "twin"},
		{"compare", "--resume", run, "--layers", "2"},
		{"run", "--backend", "natve"},
		{"models", "list"},
		{"models", "show"},
		{"models", "show", "gpt3"},
		{"models", "show", text},
		{"models", "show", filepath.Join(dir, "vocab.gguf")},
		{"models", "show", filepath.Join(dir, "there")},
		{"models", "show", hf},
		{"models", "show", none},
		{"models", "show", "gpt2", "--concurrency", "0"},
		{"models", "pull"},
		{"models", "pull", "gpt3"},
		{"models", "pull", "gpt2", "--revision", "../main"},
		{"models", "synth", "gpt2", "-o", run},
		{"models", "convert"},
		{"models", "convert", none},
		{"models", "convert", "phi-2"},
		{"models", "convert", filepath.Join(dir, "there")},
		{"models", "convert", hf, "--type", "q5_k_m"},
		{"models", "convert", hf, "--out", text},
		{"models", "convert", hf, "--engine-dir", none},
		{"completion"},
		{"completion", "tcsh"},
		{"cell"},
		{"verify", "chat"},
		{"verify", "--backends", "fake"},
		{"verify", "--backends", "fake,twin", "--prompts", "0"},
		{"verify", "--backends", "fake,twin", "--format", "pdf"},
		{"verify", "--backends", "fake,twin", "--temperature", "0"},
		{"verify", "--backends", "fake,twin", "--sampled", "--seeds", "10"},
		{"verify", "--backends", "fake,absent"},
		{"verify", "--backends", "fake,twin", "--model", "gpt3"},
		{"ask"},
	}
	var got strings.Builder
	for _, args := range lines {
		code, stdout, stderr := invoke(t, args...)
		if code != exitUsage || stdout != "" || strings.Count(stderr, "\n") != 1 {
			t.Errorf("%q: status %d, stdout %q, stderr %q", args, code, stdout, stderr)
		}
		if strings.Contains(stderr, "PASSw0rd") {
			t.Errorf("a secret is printed: %s", stderr)
		}
		fmt.Fprintf(&got, "$ nativebench %s\n%s", strings.Join(args, " "), stderr)
	}
	golden(t, "refusals.golden", strings.ReplaceAll(got.String(), dir, "DIR"))
	if now, _ := os.ReadDir(dir); len(now) != len(files) {
		t.Errorf("something was written: %v", now)
	}
}

// writeGGUF writes a file with the header of a model of one layer.
func writeGGUF(t *testing.T, path, arch string, context, width uint32, tensors bool) []byte {
	t.Helper()
	kv := []gguf.KV{
		{Key: "general.architecture", Value: arch},
		{Key: arch + ".context_length", Value: context},
		{Key: arch + ".block_count", Value: uint32(1)},
		{Key: arch + ".embedding_length", Value: width},
		{Key: arch + ".attention.head_count", Value: uint32(1)},
		{Key: "general.file_type", Value: uint32(1)},
		{Key: gguf.SyntheticKey, Value: true},
		{Key: gguf.SeedKey, Value: uint64(3)},
	}
	var list []gguf.Tensor
	if tensors {
		list = append(list, gguf.Tensor{Name: "token_embd.weight", Dims: []int64{32}})
	}
	var b bytes.Buffer
	err := gguf.Write(&b, kv, list, func(t gguf.Tensor, w io.Writer) error {
		_, err := w.Write(make([]byte, t.Bytes()))
		return err
	})
	if err == nil {
		err = os.WriteFile(path, b.Bytes(), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// Need and free memory are compared before anything is loaded; --yes goes on.
func TestTooLittleMemoryIsRefused(t *testing.T) {
	dir := t.TempDir()
	writeGGUF(t, filepath.Join(dir, "wide.gguf"), "gpt2", 1024, 1<<20, true) // 4 MiB of cache for a token
	args := []string{"compare", "--backends", "holder", "--weights", filepath.Join(dir, "wide.gguf"), "--task", "chat", "--concurrency", "1,4096", "--out", filepath.Join(dir, "run"), "--dry-run"}
	code, _, stderr := invoke(t, args...)
	for _, part := range []string{
		"gpt2/chat/sync/c4096 cannot run: it needs about 41", " GiB of memory (weights 0 MiB, and for each of 1 engines of llama.cpp: KV cache 4096.0 GiB = 4096 slots × 256 tokens × 4 MiB, and buffers ",
		" is free; what would fit: --concurrency up to ", "(of those asked for: 1); or free memory, or give --yes to try\n",
	} {
		if code != exitUsage || !strings.Contains(stderr, part) || strings.Count(stderr, "\n") != 1 {
			t.Errorf("status %d: %s\nlacks %q", code, stderr, part)
		}
	}
	if code, _, stderr := invoke(t, append(args, "--yes")...); code != exitOK {
		t.Errorf("with --yes: status %d: %s", code, stderr)
	}
}

func TestHelp(t *testing.T) {
	app := newApp(backends())
	everyCommand(app.Commands, app.Name, func(cmd *cli.Command, path string) {
		args := append(strings.Fields(path)[1:], "--help")
		code, stdout, stderr := invoke(t, args...)
		if code != exitOK || stderr != "" || !strings.HasPrefix(stdout, path+": ") {
			t.Errorf("%s --help: status %d, stdout %q, stderr %q", path, code, stdout, stderr)
		}
		if !cmd.Hidden && !strings.Contains(stdout, "nativebench "+strings.Fields(path)[1]) {
			t.Errorf("%s --help shows no example", path)
		}
		for line := range strings.Lines(stdout) {
			if n := len([]rune(strings.TrimRight(line, "\n"))); n > helpWidth {
				t.Errorf("%s --help: a line of %d columns: %s", path, n, line)
			}
		}
	})
	for _, args := range [][]string{{}, {"--help"}} {
		code, stdout, _ := invoke(t, args...)
		if code != exitOK || !strings.Contains(stdout, "compare") || strings.Contains(stdout, "\n  cell") {
			t.Errorf("%q: status %d: %s", args, code, stdout)
		}
	}
}

func TestVersionStatesTheBuild(t *testing.T) {
	code, stdout, _ := invoke(t, "--version")
	for _, want := range []string{"nativebench", "go1.", "cgo", "engine:"} {
		if code != exitOK || !strings.Contains(stdout, want) {
			t.Errorf("status %d, no %q in %q", code, want, stdout)
		}
	}
}

func TestCompletionScripts(t *testing.T) {
	for shell, check := range map[string][]string{
		"bash": {"bash", "-n"},
		"zsh":  {"zsh", "-n"},
		"fish": {"fish", "--no-execute"},
	} {
		t.Run(shell, func(t *testing.T) {
			code, script, _ := invoke(t, "completion", shell)
			if code != exitOK || !strings.Contains(script, "nativebench") {
				t.Fatalf("status %d: %q", code, script)
			}
			if _, err := exec.LookPath(check[0]); err != nil {
				t.Skipf("the script was printed, but there is no %s here to parse it", shell)
			}
			path := filepath.Join(t.TempDir(), "script")
			if err := os.WriteFile(path, []byte(script), 0o644); err != nil {
				t.Fatal(err)
			}
			if out, err := exec.Command(check[0], append(check[1:], path)...).CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
		})
	}
}

// The bash script, asked as bash asks it, offers commands, flags and shells.
func TestBashCompletes(t *testing.T) {
	if _, err := exec.LookPath("bash"); err != nil {
		t.Skip("no bash here")
	}
	bin := t.TempDir()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(exe, filepath.Join(bin, "nativebench")); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		words string // typed so far, the last one being completed
		want  string
	}{
		{"nativebench com", "compare"},
		{"nativebench compare --conc", "--concurrency"},
		{"nativebench completion f", "fish"},
	} {
		script := fmt.Sprintf(`source <(nativebench completion bash); COMP_WORDS=(%s); COMP_CWORD=$((${#COMP_WORDS[@]}-1)); _nativebench; printf '%%s\n' "${COMPREPLY[@]}"`, tc.words)
		cmd := exec.Command("bash", "-c", script)
		cmd.Env = append(os.Environ(), asProgram+"=1", "GORACE="+noSleep, "PATH="+bin+":"+os.Getenv("PATH"))
		out, err := cmd.CombinedOutput()
		if err != nil || !slices.Contains(strings.Fields(string(out)), tc.want) {
			t.Errorf("%q: %v, offered %q, want %q", tc.words, err, out, tc.want)
		}
	}
}

func TestFlagsMayComeAfterArguments(t *testing.T) {
	app := newApp(backends())
	for _, tc := range []struct{ in, want string }{
		{"nb models synth gpt2 -o d --dtype f32", "nb models synth -o d --dtype f32 gpt2"},
		{"nb models synth --out=d gpt2 --seed 3", "nb models synth --out=d --seed 3 gpt2"},
		{"nb compare --yes --model gpt2", "nb compare --yes --model gpt2"},
		{"nb compare x --ignore-eos y", "nb compare --ignore-eos x y"},
		{"nb compare x -- --yes", "nb compare -- x --yes"},
		{"nb", "nb"},
		{"nb --version", "nb --version"},
		{"nb compare --b --generate-bash-completion", "nb compare --b --generate-bash-completion"},
	} {
		if got := strings.Join(flagsFirst(app, strings.Fields(tc.in)), " "); got != tc.want {
			t.Errorf("%q: got %q, want %q", tc.in, got, tc.want)
		}
	}
}

// Only --version opens the engine library: one that is opened early decides
// which llama.cpp all later ones in the process are linked to.
func TestNoEngineIsOpenedBeforeItIsAskedFor(t *testing.T) {
	app := newApp(testRegistry())
	if strings.Contains(app.Version, "engine") {
		t.Errorf("the version line is made with the app: %q", app.Version)
	}
	for _, flag := range []string{"--version", "-v"} {
		if code, stdout, stderr := invoke(t, flag); code != exitOK || !strings.Contains(stdout, "engine: ") || stderr != "" {
			t.Errorf("%s: status %d, %q, %q", flag, code, stdout, stderr)
		}
	}
}
