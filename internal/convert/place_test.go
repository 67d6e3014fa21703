package convert

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The disk's space is compared with what the type takes, F16 on the way
// included.
func TestSpace(t *testing.T) {
	p, err := openPlace(t.Context(), filepath.Join(t.TempDir(), "a.gguf"), func() {})
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	huge := &directory{path: "/models/huge", matrices: 1 << 60, params: 1 << 60}
	for typ, part := range map[string]string{
		"f16":    "/models/huge needs about 2147483648.0 GiB of disk in " + p.dir + " (2147483648.0 GiB of F16), but ",
		"q4_k_m": "(1140850688.0 GiB of Q4_K_M and 2147483648.0 GiB of F16 made on the way), but ",
	} {
		if err := p.checkSpace(typ, huge); err == nil || !strings.Contains(err.Error(), part) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want %q", typ, err, part)
		}
	}
	if err := p.checkSpace("f16", &directory{matrices: 1, params: 1}); err != nil {
		t.Error(err)
	}
}

// Only one converts into a directory; who waits can be called off.
func TestOnlyOneConverts(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.gguf")
	first, err := openPlace(t.Context(), path, func() {})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := openPlace(ctx, path, cancel); !errors.Is(err, context.Canceled) {
		t.Errorf("the second: %v", err)
	}
	first.close()
	again, err := openPlace(t.Context(), path, func() { t.Error("it waits for nobody") })
	if err != nil {
		t.Fatal(err)
	}
	again.close()
}

// A directory of the hub's cache tells what it is of; a synthetic one says that
// it is.
func TestIdentity(t *testing.T) {
	const revision = "607a30d783dfa663caf39e06633721c8d4cfcd7e"
	const header = `{"a":{"dtype":"F16","shape":[2,3],"data_offsets":[0,12]},"h.0.attn.bias":{"dtype":"F16","shape":[1,1,2,2],"data_offsets":[0,8]},"b":{"dtype":"F16","shape":[3],"data_offsets":[0,6]}}`
	for _, c := range []struct {
		dir, config string
		want        directory
	}{
		{"hub/models--openai-community--gpt2/snapshots/" + revision, `{}`, directory{name: "gpt2", hubID: "openai-community/gpt2", revision: revision}},
		{"phi-2", `{}`, directory{name: "phi-2"}},
		{"hf", `{"model_type":"gpt2","nativebench":{"synthetic":true,"seed":3}}`, directory{name: "gpt2, synthetic weights", synthetic: true, seed: 3}},
	} {
		path := filepath.Join(t.TempDir(), c.dir)
		if err := os.MkdirAll(path, 0o755); err != nil {
			t.Fatal(err)
		}
		for name, text := range map[string]string{
			"config.json": c.config, "README.md": "x",
			"model.safetensors": string(binary.LittleEndian.AppendUint64(nil, uint64(len(header)))) + header + "0123456789ab",
		} {
			if err := os.WriteFile(filepath.Join(path, name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		d, err := readDirectory(path)
		if err != nil {
			t.Fatal(err)
		}
		if d.name != c.want.name || d.hubID != c.want.hubID || d.revision != c.want.revision || d.synthetic != c.want.synthetic || d.seed != c.want.seed {
			t.Errorf("%s: %+v", c.dir, d)
		}
		if d.matrices != 6 || d.singles != 3 || len(d.files) != 3 {
			t.Errorf("%s: %d and %d numbers, files %v", c.dir, d.matrices, d.singles, d.files)
		}
	}
}
