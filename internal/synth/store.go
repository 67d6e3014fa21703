package synth

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

const (
	sidecar   = "synth.json" // written last: its presence says that the rest is whole
	hfDir     = "hf"
	tempStart = ".synth-" // directories of unfinished writes
)

// store is a directory that this process alone may change.
type store struct {
	dir  string
	lock *os.File // the directory itself, under flock
}

// openStore makes dir if need be and waits until no other Write is at it.
func openStore(ctx context.Context, dir string) (*store, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("a directory for synthetic weights: %w", err)
	}
	f, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("a directory for synthetic weights: %w", err)
	}
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return &store{dir: dir, lock: f}, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			f.Close()
			return nil, fmt.Errorf("locking %s: %w", dir, err)
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("waiting for another process that writes to %s: %w", dir, ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (s *store) close() { s.lock.Close() } // which unlocks

// write makes the files that are not in had in a temporary directory and then
// gives them their names, the sidecar last.
func (s *store) write(ctx context.Context, j *job, had []File, progress Progress) error {
	// No one else is writing, so what unfinished writes have left is garbage.
	stale, err := filepath.Glob(filepath.Join(s.dir, tempStart+"*"))
	if err != nil {
		return err
	}
	for _, d := range stale {
		if err := os.RemoveAll(d); err != nil {
			return err
		}
	}
	temp, err := os.MkdirTemp(s.dir, tempStart)
	if err != nil {
		return err
	}
	defer os.RemoveAll(temp)
	files, err := j.write(ctx, temp, had, progress)
	if err != nil {
		return err
	}
	files = append(files, had...)
	sortFiles(files)
	return s.publish(temp, &Result{Identity: j.identity(), Params: j.params(), Files: files})
}

// publish moves the files into place. Whatever is interrupted here leaves no
// sidecar, and so nothing that counts as whole.
func (s *store) publish(temp string, r *Result) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(temp, sidecar), append(b, '\n'), 0o644); err != nil {
		return err
	}
	old, err := Open(s.dir)
	if err := os.Remove(filepath.Join(s.dir, sidecar)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err == nil && old.Files[0].Path != r.Files[0].Path {
		if err := os.Remove(old.GGUF); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	// A directory cannot be renamed onto one with files in it.
	if err := os.Rename(filepath.Join(s.dir, hfDir), filepath.Join(temp, "old")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for _, name := range []string{r.Files[0].Path, hfDir, sidecar} {
		// What was there already, or is not wanted, is not in temp.
		if err := os.Rename(filepath.Join(temp, name), filepath.Join(s.dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// Open reads what an earlier Write left in dir and compares the files' sizes.
func Open(dir string) (*Result, error) {
	b, err := os.ReadFile(filepath.Join(dir, sidecar))
	if err != nil {
		return nil, fmt.Errorf("no whole synthetic weights in %s: %w", dir, err)
	}
	r := &Result{}
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, sidecar), err)
	}
	if len(r.Files) == 0 || !strings.HasSuffix(r.Files[0].Path, ".gguf") {
		return nil, fmt.Errorf("%s: it names no GGUF file", filepath.Join(dir, sidecar))
	}
	for _, f := range r.Files {
		if !filepath.IsLocal(f.Path) {
			return nil, fmt.Errorf("%s: it names %q, which lies outside", filepath.Join(dir, sidecar), f.Path)
		}
		st, err := os.Stat(filepath.Join(dir, f.Path))
		switch {
		case err != nil:
			return nil, fmt.Errorf("synthetic weights: %w", err)
		case st.Size() != f.Bytes:
			return nil, fmt.Errorf("synthetic weights: %s has %d bytes, not %d as when it was written", filepath.Join(dir, f.Path), st.Size(), f.Bytes)
		}
	}
	r.GGUF = filepath.Join(dir, r.Files[0].Path)
	if slices.ContainsFunc(r.Files, func(f File) bool { return strings.HasPrefix(f.Path, hfDir+"/") }) {
		r.HFDir = filepath.Join(dir, hfDir)
	}
	r.CRC32C, r.Bytes = r.Files[0].CRC32C, r.Files[0].Bytes
	return r, nil
}

// Checksum is the CRC-32C (Castagnoli's polynomial) of what was written to it. It
// finds damage, not malice, in a twentieth of the time of a SHA-256, which
// would cost more than making the numbers and writing them.
type Checksum uint32

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Write never fails.
func (c *Checksum) Write(b []byte) (int, error) {
	*c = Checksum(crc32.Update(uint32(*c), castagnoli, b))
	return len(b), nil
}

// String gives 8 hexadecimal digits.
func (c Checksum) String() string { return fmt.Sprintf("%08x", uint32(c)) }

// Verify reads all files and compares their checksums with those of the writing.
func (r *Result) Verify(ctx context.Context) error {
	for _, f := range r.Files {
		path := filepath.Join(filepath.Dir(r.GGUF), f.Path)
		sum, err := checksum(ctx, path)
		if err != nil {
			return err
		}
		if sum.String() != f.CRC32C {
			return fmt.Errorf("synthetic weights: %s is not what was written: CRC-32C %s, not %s", path, sum, f.CRC32C)
		}
	}
	return nil
}

func checksum(ctx context.Context, path string) (sum Checksum, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	buf := make([]byte, 1<<20)
	for {
		n, err := f.Read(buf)
		sum.Write(buf[:n])
		switch {
		case err == io.EOF:
			return sum, nil
		case err != nil:
			return 0, err
		case ctx.Err() != nil:
			return 0, ctx.Err()
		}
	}
}
