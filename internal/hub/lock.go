package hub

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// lockBlob waits until this process alone may write a blob. It is the lock that
// huggingface_hub takes: flock on .locks/FOLDER/BLOB.lock (WeakFileLock in
// utils/_fixes.py), so that its downloads and ours wait for each other.
func lockBlob(ctx context.Context, cache, repo, blob string, waiting func()) (unlock func(), err error) {
	path := filepath.Join(cache, ".locks", folderName(repo), blob+".lock")
	if err := os.MkdirAll(filepath.Dir(path), 0o777); err != nil {
		return nil, err
	}
	for first := true; ; first = false {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o664)
		if err != nil {
			return nil, err
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil && samePath(f, path) {
			return func() { f.Close() }, nil
		}
		f.Close()
		switch {
		case errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EOPNOTSUPP):
			return nil, &os.PathError{Op: "flock", Path: path, Err: errors.New("this file system has no locks; set HF_HUB_CACHE to a directory on another one")}
		case err != nil && !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR):
			return nil, &os.PathError{Op: "flock", Path: path, Err: err}
		}
		if first {
			waiting()
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// samePath tells whether an open file is still the one at path: a lock on one
// that was deleted holds nobody off.
func samePath(f *os.File, path string) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Stat(path)
	return err == nil && os.SameFile(a, b)
}
