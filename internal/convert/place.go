package convert

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// tempStart begins the names of directories of unfinished conversions.
const tempStart = ".nativebench-convert-"

// place is a directory that this process alone converts into.
type place struct {
	dir  string
	path string   // of the GGUF file
	lock *os.File // the directory itself, under flock
}

// openPlace makes the file's directory if need be and waits until no other
// conversion is at it; waiting, which it tells of, ends with ctx.
func openPlace(ctx context.Context, path string, waits func()) (*place, error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("a directory for the GGUF file: %w", err)
	}
	f, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("a directory for the GGUF file: %w", err)
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return &place{dir: dir, path: path, lock: f}, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, fmt.Errorf("locking %s: %w", dir, err)
		}
		waits()
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("waiting for another process that converts to %s: %w", dir, context.Cause(ctx))
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (p *place) close() { p.lock.Close() } // which unlocks

// clean removes what conversions that were killed have left: nobody else is
// converting here.
func (p *place) clean() error {
	stale, err := filepath.Glob(filepath.Join(p.dir, tempStart+"*"))
	if err != nil {
		return err
	}
	for _, dir := range stale {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	return nil
}

// checkSpace compares what is needed with what the file system has for us.
func (p *place) checkSpace(typ string, d *directory) error {
	need := d.bytes(typ)
	how := fmt.Sprintf("%s of %s", size(need), strings.ToUpper(typ))
	if typ != "f16" && typ != "bf16" {
		need += d.bytes("f16")
		how += fmt.Sprintf(" and %s of F16 made on the way", size(d.bytes("f16")))
	}
	var st unix.Statfs_t
	if err := unix.Statfs(p.dir, &st); err != nil {
		return fmt.Errorf("asking for the free space of %s: %w", p.dir, err)
	}
	if free := int64(st.Bavail) * st.Bsize; free < need {
		return fmt.Errorf("converting %s needs about %s of disk in %s (%s), but %s is free: free some, or write elsewhere (--out FILE)", d.path, size(need), p.dir, how, size(free))
	}
	return nil
}

func size(bytes int64) string {
	if bytes < 1<<30 {
		return fmt.Sprintf("%.0f MiB", float64(bytes)/(1<<20))
	}
	return fmt.Sprintf("%.1f GiB", float64(bytes)/(1<<30))
}

// publish gives the file its name, and then its description. Interrupted in
// between there is a whole file without description, which is made again where
// it lies in the cache.
func (p *place) publish(made string, r *Result) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	described := made + Suffix
	if err := os.WriteFile(described, append(b, '\n'), 0o644); err != nil {
		return err
	}
	if err := os.Remove(p.path + Suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, to := range []struct{ from, to string }{{made, p.path}, {described, p.path + Suffix}} {
		if err := sync(to.from); err != nil {
			return err
		}
		if err := os.Rename(to.from, to.to); err != nil {
			return err
		}
	}
	return sync(p.dir)
}

// sync makes the disk hold a file, so that its name does not outlive its data
// in a power cut.
func sync(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
