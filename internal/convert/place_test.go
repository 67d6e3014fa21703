package convert

import (
	"context"
	"errors"
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
