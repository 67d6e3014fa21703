package hub

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nativebench/nativebench/internal/hub/hubtest"
)

const (
	name   = "owner/model"
	commit = "607a30d783dfa663caf39e06633721c8d4cfcd7e"
)

// whole is a model in parts, among much that loading it does not need.
func whole() *hubtest.Repo {
	return &hubtest.Repo{
		Commit: commit, Refs: []string{"refs/pr/1", "v1.0"},
		Files: map[string][]byte{
			"README.md": []byte("# a model\n"), ".gitattributes": []byte("*.bin lfs\n"),
			"config.json": []byte(`{"model_type":"gpt2"}`), "generation_config.json": []byte(`{"a":1}`),
			"tokenizer.json": []byte(strings.Repeat("token ", 300)), "tokenizer_config.json": []byte(`{"a":1}`), "empty/x.txt": nil,
			"chat_template.jinja": []byte("{{ x }}"), "added_tokens.json": {},
			"model.safetensors.index.json":     []byte(`{"weight_map":{"w1":"model-00001-of-00002.safetensors","w2":"model-00002-of-00002.safetensors"}}`),
			"model-00001-of-00002.safetensors": hubtest.Safetensors(100_000, 1),
			"model-00002-of-00002.safetensors": hubtest.Safetensors(33_333, 2),
			"consolidated.safetensors":         hubtest.Safetensors(500, 3),
			"pytorch_model.bin":                make([]byte, 4000), "tf_model.h5": make([]byte, 4000), "flax_model.msgpack": make([]byte, 400),
			"onnx/config.json": []byte("{}"), "original/model.safetensors": hubtest.Safetensors(10, 4), "model.gguf": make([]byte, 400),
		},
	}
}

func chosenOf(r *hubtest.Repo) (names []string, bytes, fetch int64) {
	for _, n := range []string{
		"added_tokens.json", "chat_template.jinja", "config.json", "generation_config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
		"model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json",
	} {
		names = append(names, n)
		if n != "generation_config.json" { // the same content as another's
			fetch += int64(len(r.Files[n]))
		}
		bytes += int64(len(r.Files[n]))
	}
	return names, bytes, fetch
}

// setUp starts a hub with a repository and gives a client of it, with an empty
// cache, small blocks and short pauses.
func setUp(t *testing.T, repo *hubtest.Repo) (*hubtest.Hub, *Client) {
	t.Helper()
	h := hubtest.New(t)
	h.Add(name, repo)
	for _, v := range []string{"HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"} {
		t.Setenv(v, "")
	}
	t.Setenv("HF_HOME", t.TempDir())
	t.Setenv("HF_ENDPOINT", h.URL)
	return h, client(t)
}

func client(t *testing.T) *Client {
	t.Helper()
	c, err := NewClient()
	if err != nil {
		t.Fatal(err)
	}
	c.blockBytes, c.blocks, c.connections, c.pause, c.longestWait = 1000, 8, 4, time.Millisecond, 2*time.Second
	c.http.Transport.(*http.Transport).Proxy = nil // whatever this machine has
	t.Cleanup(c.http.CloseIdleConnections)
	return c
}

func pullAll(ctx context.Context, c *Client, revision string) (*Snapshot, error) {
	plan, err := c.Plan(ctx, name, revision)
	if err != nil {
		return nil, err
	}
	return c.Pull(ctx, plan, nil)
}

// wantSnapshot holds a snapshot against the repository, byte for byte, and wants
// nothing else left of a pull.
func wantSnapshot(t *testing.T, s *Snapshot, repo *hubtest.Repo) {
	t.Helper()
	wantFiles(t, s, repo)
	leftovers, err := filepath.Glob(filepath.Join(s.Dir, "../../blobs/*nativebench*"))
	if err != nil || len(leftovers) > 0 {
		t.Errorf("left over: %v %v", leftovers, err)
	}
}

func wantFiles(t *testing.T, s *Snapshot, repo *hubtest.Repo) {
	t.Helper()
	names, _, _ := chosenOf(repo)
	var got []string
	for _, f := range s.Files {
		got = append(got, f.Name)
		content, err := os.ReadFile(filepath.Join(s.Dir, f.Name))
		if err != nil {
			t.Fatal(err)
		}
		want := repo.Files[f.Name]
		if string(content) != string(want) || f.Bytes != int64(len(want)) || f.SHA256 != hubtest.SHA256(want) {
			t.Errorf("%s is not what the hub has: %d bytes of %d", f.Name, len(content), len(want))
		}
	}
	if strings.Join(got, " ") != strings.Join(names, " ") {
		t.Errorf("files %q, want %q", got, names)
	}
	if s.Revision != repo.Commit {
		t.Errorf("revision %s", s.Revision)
	}
}

func TestPullMakesASnapshotThatFindFinds(t *testing.T) {
	repo := whole()
	h, c := setUp(t, repo)
	if _, err := Find(name, ""); !errors.Is(err, ErrMissing) {
		t.Fatalf("Find in an empty cache: %v", err)
	}
	plan, err := c.Plan(t.Context(), name, "")
	if err != nil {
		t.Fatal(err)
	}
	_, want, fetch := chosenOf(repo)
	if plan.Bytes() != want || plan.Fetch() != fetch || plan.Revision != commit {
		t.Fatalf("plan of %d bytes, %d to fetch, commit %s; want %d", plan.Bytes(), plan.Fetch(), plan.Revision, want)
	}
	var last State
	made, err := c.Pull(t.Context(), plan, func(s State) { last = s })
	if err != nil {
		t.Fatal(err)
	}
	wantSnapshot(t, made, repo)
	if last.Done != want || last.Total != want || last.Fetched != fetch {
		t.Errorf("progress ended at %+v, want %d", last, want)
	}
	ranges := 0
	for _, r := range h.Requests() {
		if r.Range != "" {
			ranges++
		}
	}
	if ranges < 134/8 {
		t.Errorf("%d requests of ranges", ranges)
	}
	h.Forget()
	found, err := Find(name, "")
	if err != nil {
		t.Fatal(err)
	}
	wantSnapshot(t, found, repo)
	if _, err := Find(name, commit); err != nil {
		t.Error(err)
	}
	if list, err := List(name); err != nil || len(list) != 1 {
		t.Errorf("List: %v, %v", list, err)
	}
	if seen := h.Requests(); len(seen) > 0 {
		t.Errorf("Find asked the network: %v", seen)
	}
	plan, err = c.Plan(t.Context(), name, "main")
	if err != nil {
		t.Fatal(err)
	}
	if plan.Fetch() != 0 {
		t.Errorf("%d bytes to fetch again", plan.Fetch())
	}
	h.Forget()
	if _, err := c.Pull(t.Context(), plan, nil); err != nil {
		t.Fatal(err)
	}
	if seen := h.Requests(); len(seen) > 0 {
		t.Errorf("a pull of what is here asked the network: %v", seen)
	}
	if err := found.Verify(t.Context(), func(s State) { last = s }); err != nil || last.Done != want || last.Total != want {
		t.Errorf("Verify: %v, %+v", err, last)
	}
	// Where the hub may not be asked, what is here is all there is.
	c.offline = true
	if s, err := pullAll(t.Context(), c, ""); err != nil || len(s.Files) != len(found.Files) {
		t.Errorf("offline: %+v, %v", s, err)
	}
	c.offline = false
	// Another name of the same commit costs the listing alone.
	h.Forget()
	if _, err := pullAll(t.Context(), c, "refs/pr/1"); err != nil {
		t.Fatal(err)
	}
	if seen := h.Requests(); len(seen) != 1 {
		t.Errorf("another name of what is here: asked for %v", seen)
	}
	if found, err := Find(name, "refs/pr/1"); err != nil || found.Revision != commit {
		t.Errorf("found %+v, %v", found, err)
	}
}

func TestVerifyFindsDamage(t *testing.T) {
	repo := whole()
	_, c := setUp(t, repo)
	s, err := pullAll(t.Context(), c, "")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{"model-00002-of-00002.safetensors", "tokenizer.json"} {
		path := filepath.Join(s.Dir, file)
		damaged := bytes.Clone(repo.Files[file])
		damaged[len(damaged)-1] ^= 1
		if err := os.WriteFile(path, damaged, 0o666); err != nil {
			t.Fatal(err)
		}
		blob, err := filepath.EvalSymlinks(path)
		if err != nil {
			t.Fatal(err)
		}
		err = s.Verify(t.Context(), nil)
		if e := (*Error)(nil); !errors.As(err, &e) || e.Kind != Corrupted || !strings.Contains(err.Error(), file+" is damaged") || !strings.Contains(err.Error(), "delete "+blob+" and pull") {
			t.Fatalf("%v", err)
		}
		// As it says:
		if err := os.Remove(blob); err != nil {
			t.Fatal(err)
		}
		if s, err = pullAll(t.Context(), c, ""); err != nil {
			t.Fatal(err)
		}
		wantSnapshot(t, s, repo)
	}
}
