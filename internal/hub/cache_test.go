package hub

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/nativebench/nativebench/internal/hub/hubtest"
)

// write lays a file into a cache as a program without our care would.
func write(t *testing.T, content []byte, parts ...string) {
	t.Helper()
	p := filepath.Join(parts...)
	if err := os.MkdirAll(filepath.Dir(p), 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p, content, 0o666); err != nil {
		t.Fatal(err)
	}
}

func TestFindTakesNothingHalf(t *testing.T) {
	tree := func(size int64) []byte {
		text, err := json.Marshal(map[string]any{"format_version": 1, "files": map[string]any{
			"config.json": map[string]any{"size": 2}, "tokenizer.json": map[string]any{"size": size}, "tokenizer.model": map[string]any{"size": 9},
			"model.safetensors": map[string]any{"size": len(hubtest.Safetensors(100, 1))}, "generation_config.json": map[string]any{"size": 2}, "README.md": map[string]any{"size": 2},
		}})
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	files := func() map[string][]byte {
		return map[string][]byte{"config.json": []byte("{}"), "tokenizer.json": []byte("{}"), "model.safetensors": hubtest.Safetensors(100, 1)}
	}
	pytorch := func() map[string][]byte {
		f := files()
		delete(f, "model.safetensors")
		f["pytorch_model.bin.index.json"] = []byte(`{"weight_map":{"a":"pytorch_model-1.bin","b":"pytorch_model-2.bin"}}`)
		f["pytorch_model-1.bin"], f["pytorch_model-2.bin"] = []byte("one"), []byte("two")
		return f
	}
	with := func(f map[string][]byte, name string, content []byte) map[string][]byte {
		f[name] = content
		return f
	}
	without := func(f map[string][]byte, name string) map[string][]byte {
		delete(f, name)
		return f
	}
	snapshot := filepath.Join("snapshots", commit)
	for _, test := range []struct {
		name    string
		files   map[string][]byte
		more    func(folder string)
		missing string // what the error says; "" if it is found
		count   int
	}{
		{name: "whole, without links", files: files(), count: 3},
		{name: "PyTorch's format", files: pytorch(), count: 5},
		{name: "both formats", files: with(files(), "pytorch_model.bin", []byte("x")), count: 3},
		{name: "only PyTorch's, in one file", files: with(without(files(), "model.safetensors"), "pytorch_model.bin", []byte("x")), count: 3},
		{name: "no config", files: without(files(), "config.json"), missing: "config.json is not there"},
		{name: "no tokenizer", files: without(files(), "tokenizer.json"), missing: "no tokenizer"},
		{name: "no weights", files: without(files(), "model.safetensors"), missing: "no weights"},
		{name: "GGUF only", files: with(without(files(), "model.safetensors"), "model.gguf", []byte("GGUF")), missing: "no weights"},
		{name: "a part of PyTorch's missing", files: without(pytorch(), "pytorch_model-2.bin"), missing: `names "pytorch_model-2.bin", which is not there`},
		{name: "a part of PyTorch's empty", files: with(pytorch(), "pytorch_model-2.bin", nil), missing: "pytorch_model-2.bin is empty"},
		{name: "an index that leads out", files: with(pytorch(), "pytorch_model.bin.index.json", []byte(`{"weight_map":{"a":"../../x.bin"}}`)), missing: `names "../../x.bin"`},
		{name: "an index of nothing", files: with(pytorch(), "pytorch_model.bin.index.json", []byte(`{}`)), missing: "it names no weights"},
		{name: "a damaged index", files: with(pytorch(), "pytorch_model.bin.index.json", []byte(`{"weight_map`)), missing: "it is damaged"},
		{name: "cut weights", files: with(files(), "model.safetensors", hubtest.Safetensors(100, 1)[:150]), missing: "its header says"},
		{name: "weights cut in the header", files: with(files(), "model.safetensors", hubtest.Safetensors(100, 1)[:20]), missing: "it is cut"},
		{name: "weights cut at once", files: with(files(), "model.safetensors", nil), missing: "too short"},
		{name: "weights with more at the end", files: with(files(), "model.safetensors", append(hubtest.Safetensors(100, 1), 0)), missing: "its header says"},
		{name: "weights that are a page", files: with(files(), "model.safetensors", []byte("<html>not found</html>")), missing: "it is cut"},
		{name: "a link to nowhere", files: without(files(), "model.safetensors"), more: func(folder string) {
			if err := os.Symlink("../../blobs/nothing", filepath.Join(folder, snapshot, "model.safetensors")); err != nil {
				t.Fatal(err)
			}
		}, missing: "model.safetensors is not there"},
		{name: "a branch that points to nothing here", files: files(), more: func(folder string) {
			write(t, []byte(strings.Repeat("c", 40)), folder, "refs/main")
		}, missing: "commit cccccccccccc"},
		{name: "an empty branch", files: files(), more: func(folder string) { write(t, nil, folder, "refs/main") }, missing: "revision main"},
		{name: "a branch that leads out", files: files(), more: func(folder string) { write(t, []byte("../../../x"), folder, "refs/main") }, missing: "revision main"},
		{name: "a branch with an end of line", files: files(), more: func(folder string) { write(t, []byte(commit+"\n"), folder, "refs/main") }, count: 3},
		{name: "sizes as listed; no tokenizer.model beside tokenizer.json", files: with(files(), "generation_config.json", []byte("{}")), more: func(folder string) {
			write(t, tree(2), folder, "trees", commit+".json")
		}, count: 4},
		{name: "a file that the listing has", files: files(), more: func(folder string) {
			write(t, tree(2), folder, "trees", commit+".json")
		}, missing: "generation_config.json is not there"},
		{name: "a size that is not as listed", files: with(files(), "generation_config.json", []byte("{}")), more: func(folder string) {
			write(t, tree(77), folder, "trees", commit+".json")
		}, missing: "tokenizer.json has 2 bytes of 77"},
		{name: "a damaged listing", files: files(), more: func(folder string) { write(t, []byte("{"), folder, "trees", commit+".json") }, count: 3},
	} {
		t.Run(test.name, func(t *testing.T) {
			cache := t.TempDir()
			t.Setenv("HF_HUB_CACHE", cache)
			folder := filepath.Join(cache, "models--owner--model")
			for file, content := range test.files {
				write(t, content, folder, snapshot, file)
			}
			write(t, []byte(commit), folder, "refs/main")
			if test.more != nil {
				test.more(folder)
			}
			s, err := Find(name, "")
			if test.missing != "" {
				if !errors.Is(err, ErrMissing) || !strings.Contains(err.Error(), test.missing) || strings.Contains(err.Error(), "\n") {
					t.Fatalf("%v, want one that says %q", err, test.missing)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if len(s.Files) != test.count || s.Dir != filepath.Join(folder, snapshot) {
				t.Errorf("%+v", s)
			}
			for _, f := range s.Files {
				if f.SHA256 != hubtest.SHA256(test.files[f.Name]) || f.Bytes != int64(len(test.files[f.Name])) {
					t.Errorf("%+v", f)
				}
			}
			if list, err := List(name); err != nil || len(list) != 1 {
				t.Errorf("List: %v %v", list, err)
			}
		})
	}
}

func TestNamesThatAreRefused(t *testing.T) {
	t.Setenv("HF_HUB_CACHE", t.TempDir())
	c, err := NewClient()
	if err != nil {
		t.Fatal(err)
	}
	for _, repo := range []string{"", "/", "a/b/c", "../x", "a/..", "a--b/c", "a/b.git", "a b", "a/b?x=1", "a/b#", "-a/b", ".a", "a/b/", "ä/b", "a/b%2e", strings.Repeat("a", 200)} {
		_, err := Find(repo, "")
		_, err2 := c.Plan(t.Context(), repo, "")
		for _, err := range []error{err, err2} {
			if e := (*Error)(nil); !errors.As(err, &e) || e.Kind != BadInput {
				t.Errorf("repository %q: %v", repo, err)
			}
		}
	}
	for _, revision := range []string{"..", "../x", "a/../b", "/a", "a//b", "a b", "a\nb", "a\x00", "a?b", strings.Repeat("a", 256)} {
		_, err := Find(name, revision)
		_, err2 := c.Plan(t.Context(), name, revision)
		for _, err := range []error{err, err2} {
			if e := (*Error)(nil); !errors.As(err, &e) || e.Kind != BadInput {
				t.Errorf("revision %q: %v", revision, err)
			}
		}
	}
	for _, repo := range []string{"gpt2", "openai-community/gpt2", "meta-llama/Llama-2-7b-chat-hf", "mistralai/Mistral-7B-Instruct-v0.1", "a/b_c.d"} {
		if _, err := Find(repo, "refs/pr/1"); !errors.Is(err, ErrMissing) {
			t.Errorf("repository %q: %v", repo, err)
		}
	}
}

// clearEnvironment unsets what the environment says of the hub, for this test.
func clearEnvironment(t *testing.T) {
	for _, v := range os.Environ() {
		k, _, _ := strings.Cut(v, "=")
		if strings.HasPrefix(k, "HF_") || strings.HasPrefix(k, "HUGGING") || slices.Contains([]string{"XDG_CACHE_HOME", "TRANSFORMERS_OFFLINE"}, k) {
			t.Setenv(k, "")
		}
	}
}

func TestEnvironment(t *testing.T) {
	home := t.TempDir()
	for _, test := range []struct {
		name string
		env  []string
		want string
	}{
		{"none", nil, home + "/.cache/huggingface/hub"},
		{"XDG_CACHE_HOME", []string{"XDG_CACHE_HOME=/x"}, "/x/huggingface/hub"},
		{"HF_HOME", []string{"XDG_CACHE_HOME=/x", "HF_HOME=~/h"}, home + "/h/hub"},
		{"old name", []string{"HF_HOME=/h", "HUGGINGFACE_HUB_CACHE=/old"}, "/old"},
		{"HF_HUB_CACHE", []string{"HF_HOME=/h", "HUGGINGFACE_HUB_CACHE=/old", "HF_HUB_CACHE=$HOME/c"}, home + "/c"},
	} {
		t.Run(test.name, func(t *testing.T) {
			clearEnvironment(t)
			t.Setenv("HOME", home)
			for _, v := range test.env {
				k, value, _ := strings.Cut(v, "=")
				t.Setenv(k, value)
			}
			if got, err := CacheDir(); err != nil || got != test.want {
				t.Errorf("%q %v, want %q", got, err, test.want)
			}
		})
	}
}

func TestToken(t *testing.T) {
	home := t.TempDir()
	write(t, []byte("from_home\n"), home, "token")
	write(t, []byte("from_path"), home, "other")
	write(t, []byte("two words"), home, "bad")
	for _, test := range []struct {
		name        string
		env         []string
		token, from string
		refused     string
	}{
		{"none", nil, "", "", ""},
		{"in HF_HOME", []string{"HF_HOME=" + home}, "from_home", home + "/token", ""},
		{"HF_TOKEN_PATH", []string{"HF_HOME=" + home, "HF_TOKEN_PATH=" + home + "/other"}, "from_path", home + "/other", ""},
		{"HF_TOKEN", []string{"HF_HOME=" + home, "HF_TOKEN= hf_x\n"}, "hf_x", "HF_TOKEN", ""},
		{"old name", []string{"HUGGING_FACE_HUB_TOKEN=hf_old"}, "hf_old", "HUGGING_FACE_HUB_TOKEN", ""},
		{"blanks in it", []string{"HF_TOKEN=hf_x hf_y"}, "", "", "the token in HF_TOKEN has blanks"},
		{"a file with blanks", []string{"HF_TOKEN_PATH=" + home + "/bad"}, "", "", "/bad has blanks"},
		{"a directory", []string{"HF_TOKEN_PATH=" + home}, "", "", "the token file"},
		{"no endpoint", []string{"HF_ENDPOINT=huggingface.co"}, "", "", "HF_ENDPOINT is no address of a hub"},
		{"an endpoint with a secret", []string{"HF_ENDPOINT=https://user:geheim@x"}, "", "", "HF_ENDPOINT is no address of a hub"},
	} {
		t.Run(test.name, func(t *testing.T) {
			clearEnvironment(t)
			t.Setenv("HOME", filepath.Join(home, "nobody"))
			for _, v := range test.env {
				k, value, _ := strings.Cut(v, "=")
				t.Setenv(k, value)
			}
			c, err := NewClient()
			if test.refused != "" {
				if err == nil || !strings.Contains(err.Error(), test.refused) || strings.Contains(err.Error(), "hf_") || strings.Contains(err.Error(), "geheim") {
					t.Fatalf("%v, want %q", err, test.refused)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if c.token != test.token || c.tokenFrom != test.from || c.endpoint.String() != defaultEndpoint {
				t.Errorf("token %q from %q at %s", c.token, c.tokenFrom, c.endpoint)
			}
		})
	}
}

// A cache that can only be read serves what it has.
func TestReadOnlyCache(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("root may write everywhere")
	}
	repo := whole()
	_, c := setUp(t, repo)
	if _, err := pullAll(t.Context(), c, ""); err != nil {
		t.Fatal(err)
	}
	chmod := func(mode os.FileMode) {
		if err := filepath.WalkDir(c.cache, func(p string, d os.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				err = os.Chmod(p, mode)
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	chmod(0o555)
	defer chmod(0o755)
	s, err := pullAll(t.Context(), c, "")
	if err != nil {
		t.Fatal(err)
	}
	wantSnapshot(t, s, repo)
}
