package synth

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// least is the smallest relative there is, for tests that look at files only.
func least(t testing.TB) Spec {
	s := tiny(t)
	s.Layers, s.Width = 1, 64
	return s
}

func TestReuse(t *testing.T) {
	s, dir := least(t), filepath.Join(t.TempDir(), "made", "here")
	var last, total int64
	first, err := Write(t.Context(), s, dir, func(done, of int64) { last, total = done, of })
	if err != nil || first.Reused || last != total || total < first.Bytes {
		t.Fatalf("%+v, %v; progress ended at %d of %d", first, err, last, total)
	}
	if r := write(t, s, dir); !r.Reused || r.CRC32C != first.CRC32C {
		t.Errorf("the same spec again: %+v", r)
	}

	// A file of another size, or none, is written again.
	for _, spoil := range []func(string) error{
		func(path string) error { return os.Truncate(path, 10) },
		os.Remove,
	} {
		if err := spoil(filepath.Join(first.HFDir, "config.json")); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(dir); err == nil {
			t.Error("Open takes a spoiled directory")
		}
		if r := write(t, s, dir); r.Reused || r.CRC32C != first.CRC32C {
			t.Errorf("after a file was spoiled: %+v", r)
		}
	}

	// Another spec replaces it and leaves nothing of it.
	s.DType, s.Seed = "f32", 2
	second := write(t, s, dir)
	if second.Reused || second.GGUF == first.GGUF {
		t.Errorf("another spec: %+v", second)
	}
	if names := list(t, dir); strings.Join(names, " ") != "gpt2-synthetic-F32.gguf hf synth.json" {
		t.Errorf("the directory holds %q", names)
	}
	if err := second.Verify(t.Context()); err != nil {
		t.Error(err)
	}
}

func list(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestVerifyFindsChangedBytes(t *testing.T) {
	r := write(t, least(t), t.TempDir())
	f, err := os.OpenFile(r.GGUF, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte{0xff}, r.Bytes-1); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if err := r.Verify(t.Context()); err == nil || !strings.Contains(err.Error(), "is not what was written") {
		t.Errorf("error %v", err)
	}
}

// TestLeftovers: what a killed write has left is neither taken for whole nor
// kept.
func TestLeftovers(t *testing.T) {
	s, dir := least(t), t.TempDir()
	old := filepath.Join(dir, tempStart+"123")
	if err := os.MkdirAll(filepath.Join(old, hfDir), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "gpt2-synthetic-F16.gguf"), []byte("half"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(dir, hfDir, "more"), 0o755); err != nil {
		t.Fatal(err)
	}
	r := write(t, s, dir)
	if names := list(t, dir); strings.Join(names, " ") != "gpt2-synthetic-F16.gguf hf synth.json" || r.Reused {
		t.Errorf("the directory holds %q", names)
	}
	if err := r.Verify(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestOtherGenerator: files of an earlier generator's numbers are not taken for
// this one's, even if all else is the same.
func TestOtherGenerator(t *testing.T) {
	s, dir := least(t), t.TempDir()
	first := write(t, s, dir)
	path := filepath.Join(dir, sidecar)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	old := strings.Replace(string(b), fmt.Sprintf(`"generator": %d`, Generator), fmt.Sprintf(`"generator": %d`, Generator-1), 1)
	if old == string(b) {
		t.Fatalf("the sidecar does not name its generator: %s", b)
	}
	if err := os.WriteFile(path, []byte(old), 0o644); err != nil {
		t.Fatal(err)
	}
	if n, err := s.ToWrite(dir); n == 0 || err != nil {
		t.Errorf("%d bytes are to be written, %v", n, err)
	}
	if r := write(t, s, dir); r.Reused || r.Generator != Generator || r.CRC32C != first.CRC32C {
		t.Errorf("over files of another generator: %+v", r)
	}
}

func TestTwoAtOnce(t *testing.T) {
	s, dir := least(t), t.TempDir()
	var wg sync.WaitGroup
	results := make([]*Result, 3)
	for i := range results {
		wg.Go(func() {
			r, err := Write(t.Context(), s, dir, nil)
			if err != nil {
				t.Error(err)
				return
			}
			results[i] = r
		})
	}
	wg.Wait()
	wrote := 0
	for _, r := range results {
		if r != nil && !r.Reused {
			wrote++
		}
	}
	if wrote != 1 {
		t.Errorf("%d of 3 wrote; the others should have found the files", wrote)
	}
}

func TestSpaceIsCheckedFirst(t *testing.T) {
	if err := checkSpace(t.TempDir(), 1<<62); err == nil || !strings.Contains(err.Error(), "no space") {
		t.Errorf("error %v", err)
	}
	if err := checkSpace(t.TempDir(), 0); err != nil {
		t.Error(err)
	}
}

func TestFirstErrorStopsTheOthers(t *testing.T) {
	w := &writer{dir: t.TempDir()}
	broken := errors.New("broken")
	err := w.together(t.Context(), [][]content{
		{{"a", 0, func(ctx context.Context, out io.Writer) error { return broken }}},
		{{"b", 0, func(ctx context.Context, out io.Writer) error {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(time.Minute):
				return errors.New("not stopped")
			}
		}}},
	})
	if !errors.Is(err, broken) {
		t.Errorf("error %v", err)
	}
}

func TestOpenRefusesPathsThatLeadOutside(t *testing.T) {
	dir := t.TempDir()
	text := `{"files": [{"path": "../a.gguf", "bytes": 0}]}`
	if err := os.WriteFile(filepath.Join(dir, sidecar), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir); err == nil || !strings.Contains(err.Error(), "outside") {
		t.Errorf("error %v", err)
	}
}
