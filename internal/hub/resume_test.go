package hub

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/nativebench/nativebench/internal/hub/hubtest"
)

// pullForever makes the test binary a program that pulls, to be killed.
const pullForever = "NATIVEBENCH_TEST_PULL"

func TestMain(m *testing.M) {
	if os.Getenv(pullForever) != "" {
		c, err := NewClient()
		if err != nil {
			panic(err)
		}
		c.blockBytes, c.blocks, c.connections = 1000, 8, 4
		if _, err := pullAll(context.Background(), c, "main"); err != nil {
			panic(err)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// hanging answers so many requests, then none until the client is gone. arrived
// is closed when it hangs.
func hanging(after int) (do fault, arrived chan struct{}) {
	var n atomic.Int64
	arrived = make(chan struct{})
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		switch i := n.Add(1); {
		case i <= int64(after):
			next.ServeHTTP(w, r)
			return
		case i == int64(after)+1:
			close(arrived)
		}
		<-r.Context().Done()
	}, arrived
}

// marked holds the blocks that are marked as here against what they should be,
// and counts their bytes, and those of whole large files.
func marked(t *testing.T, c *Client, repo *hubtest.Repo) (n int64) {
	t.Helper()
	for name, content := range repo.Files {
		blob := filepath.Join(repoFolder(c.cache, "owner/model"), "blobs", hubtest.SHA256(content))
		if got, err := os.ReadFile(blob); err == nil {
			if n += int64(len(got)); !bytes.Equal(got, content) {
				t.Errorf("%s is not whole", name)
			}
			continue
		}
		have := readMarks(blob, int64(len(content)), c.blockBytes)
		if have == nil {
			continue
		}
		got, err := os.ReadFile(incompletePath(blob))
		if err != nil {
			t.Fatal(err)
		}
		for i, b := range have {
			from := i * int(c.blockBytes)
			to := min(from+int(c.blockBytes), len(content))
			if b == here {
				n += int64(to - from)
				if !bytes.Equal(got[from:to], content[from:to]) {
					t.Errorf("block %d of %s is marked as here, and is not", i, name)
				}
			}
		}
	}
	return n
}

func TestResumeAfterKill(t *testing.T) {
	repo := whole()
	h, c := setUp(t, repo)
	do, hangs := hanging(9)
	h.Fault(true, "GET", -1, do)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), pullForever+"=1")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-hangs:
	case <-t.Context().Done():
	}
	cmd.Process.Kill()
	if err := cmd.Wait(); err == nil || stderr.Len() > 0 {
		t.Fatalf("the program ended by itself: %v %s", err, stderr.String())
	}
	if _, err := Find(name, ""); !errors.Is(err, ErrMissing) {
		t.Fatalf("half a model was found: %v", err)
	}
	kept := marked(t, c, repo)
	if kept < 4*8*c.blockBytes { // ten requests, at most four in flight, two may be of a file's short end
		t.Errorf("only %d bytes were kept", kept)
	}
	h.Forget()
	plan, err := c.Plan(t.Context(), name, "")
	if err != nil {
		t.Fatal(err)
	}
	var last State
	made, err := c.Pull(t.Context(), plan, func(s State) { last = s })
	if err != nil {
		t.Fatal(err)
	}
	wantSnapshot(t, made, repo)
	if last.Fetched != plan.Fetch() || last.Fetched > plan.Bytes()-kept {
		t.Errorf("%d bytes fetched of %d planned; %d were kept of %d", last.Fetched, plan.Fetch(), kept, plan.Bytes())
	}
}

// Whenever it is killed, what is marked as here is, and a model that is found is
// whole. That it is whole in the end does not depend on how often.
func TestKilledAtAnyMoment(t *testing.T) {
	repo := whole()
	h, c := setUp(t, repo)
	slow := func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		time.Sleep(2 * time.Millisecond)
		next.ServeHTTP(w, r)
	}
	h.Fault(true, "GET", -1, slow)
	h.Fault(false, "HEAD", -1, slow)
	found := 0
	for i := range 25 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), pullForever+"=1")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(10+i*3) * time.Millisecond)
		cmd.Process.Kill()
		cmd.Wait()
		marked(t, c, repo)
		s, err := Find(name, commit)
		switch {
		case err == nil:
			found++
			wantFiles(t, s, repo)
			// Begin again.
			if err := os.RemoveAll(repoFolder(c.cache, name)); err != nil {
				t.Fatal(err)
			}
		case !errors.Is(err, ErrMissing):
			t.Fatal(err)
		}
	}
	t.Logf("found whole %d times", found)
	s, err := pullAll(t.Context(), c, "")
	if err != nil {
		t.Fatal(err)
	}
	wantSnapshot(t, s, repo)
}

func TestResumeAfterStop(t *testing.T) {
	repo := whole()
	h, c := setUp(t, repo)
	do, hangs := hanging(6)
	h.Fault(true, "GET", -1, do)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-hangs
		cancel()
	}()
	if _, err := pullAll(ctx, c, ""); !errors.Is(err, context.Canceled) {
		t.Fatalf("stopped: %v", err)
	}
	kept := marked(t, c, repo)
	h.Forget()
	plan, err := c.Plan(t.Context(), name, "")
	if err != nil {
		t.Fatal(err)
	}
	if kept == 0 || plan.Fetch() > plan.Bytes()-kept {
		t.Errorf("%d bytes kept, %d of %d to fetch", kept, plan.Fetch(), plan.Bytes())
	}
	made, err := c.Pull(t.Context(), plan, nil)
	if err != nil {
		t.Fatal(err)
	}
	wantSnapshot(t, made, repo)
}

// What an earlier download left is not believed when it cannot be right, and
// what is believed wrongly is found out by the hash.
func TestDamagedRemains(t *testing.T) {
	const part = "model-00001-of-00002.safetensors"
	for what, damage := range map[string]func(blob string) error{
		"holes marked as data": func(blob string) error {
			text, err := os.ReadFile(blocksPath(blob))
			if err != nil {
				return err
			}
			return os.WriteFile(blocksPath(blob), bytes.ReplaceAll(text, []byte{notHere}, []byte{here}), 0o666)
		},
		"marks cut":  func(blob string) error { return os.Truncate(blocksPath(blob), 60) },
		"marks gone": func(blob string) error { return os.Remove(blocksPath(blob)) },
		"marks of another block size": func(blob string) error {
			text := append([]byte(marksHeader(int64(len(whole().Files[part])), 2000)), bytes.Repeat([]byte{here}, 51)...)
			return os.WriteFile(blocksPath(blob), text, 0o666)
		},
		"content cut":  func(blob string) error { return os.Truncate(incompletePath(blob), 4321) },
		"content gone": func(blob string) error { return os.Remove(incompletePath(blob)) },
		"content flipped": func(blob string) error {
			f, err := os.OpenFile(incompletePath(blob), os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = f.WriteAt([]byte("flipped"), 100)
			return err
		},
		"a half blob under the whole one's name": func(blob string) error { return os.WriteFile(blob, []byte("half"), 0o666) },
	} {
		t.Run(what, func(t *testing.T) {
			repo := whole()
			h, c := setUp(t, repo)
			do, hangs := hanging(6)
			h.Fault(true, "GET", -1, do)
			ctx, cancel := context.WithCancel(t.Context())
			go func() {
				<-hangs
				cancel()
			}()
			if _, err := pullAll(ctx, c, ""); !errors.Is(err, context.Canceled) {
				t.Fatal(err)
			}
			h.Forget()
			blob := filepath.Join(repoFolder(c.cache, name), "blobs", hubtest.SHA256(repo.Files[part]))
			if err := damage(blob); err != nil {
				t.Fatal(err)
			}
			switch what {
			case "holes marked as data", "content flipped", "a half blob under the whole one's name": // only the hash or the size tells
			default:
				if n := arrived(blob, int64(len(repo.Files[part])), c.blockBytes); n > 0 {
					t.Errorf("%d bytes of the remains are believed", n)
				}
			}
			made, err := pullAll(t.Context(), c, "")
			if err != nil {
				t.Fatal(err)
			}
			wantSnapshot(t, made, repo)
		})
	}
}

func TestTwoPullsAtOnce(t *testing.T) {
	repo := whole()
	setUp(t, repo)
	var group errgroup.Group
	var fetched [2]int64
	for i := range fetched {
		c := client(t)
		group.Go(func() error {
			plan, err := c.Plan(t.Context(), name, "")
			if err != nil {
				return err
			}
			_, err = c.Pull(t.Context(), plan, func(s State) {
				fetched[i] = s.Fetched
				if s.Done > s.Total {
					t.Errorf("progress %+v", s)
				}
			})
			return err
		})
	}
	if err := group.Wait(); err != nil {
		t.Fatal(err)
	}
	s, err := Find(name, "")
	if err != nil {
		t.Fatal(err)
	}
	wantSnapshot(t, s, repo)
	if _, _, want := chosenOf(repo); fetched[0]+fetched[1] != want {
		t.Errorf("fetched %d bytes, want %d in all", fetched, want)
	}
}

// A download by the hub's own client is waited for: the lock is the same.
func TestPullWaitsForTheHubsOwnClient(t *testing.T) {
	cmd := pythonCommand(t, "transformers", `
import sys
from huggingface_hub.utils import WeakFileLock
with WeakFileLock(sys.argv[1]):
    print("locked", flush=True)
    sys.stdin.readline()
    print("unlocking", flush=True)`)
	repo := whole()
	_, c := setUp(t, repo)
	lock := filepath.Join(c.cache, ".locks", folderName(name), hubtest.GitHash(repo.Files["config.json"])+".lock")
	if err := os.MkdirAll(filepath.Dir(lock), 0o777); err != nil {
		t.Fatal(err)
	}
	cmd.Args = append(cmd.Args, lock)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, make([]byte, len("locked\n"))); err != nil {
		t.Fatal(err)
	}
	var once sync.Once
	released := false
	plan, err := c.Plan(t.Context(), name, "")
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Pull(t.Context(), plan, func(s State) {
		if strings.Contains(s.Note, "waiting for another download of config.json") {
			once.Do(func() { released = true; io.WriteString(in, "\n") })
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if !released {
		t.Error("it did not wait")
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// A disk that fills up ends the pull with what has arrived; with room it goes on.
func TestDiskFull(t *testing.T) {
	mount := t.TempDir()
	if err := unix.Mount("tmpfs", mount, "tmpfs", 0, "size=200k"); err != nil {
		t.Skipf("no mount of a small disk: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(mount, unix.MNT_DETACH) })
	repo := whole()
	setUp(t, repo)
	t.Setenv("HF_HUB_CACHE", mount)
	c := client(t)
	plan, err := c.Plan(t.Context(), name, "")
	if err != nil {
		t.Fatal(err)
	}
	if err := plan.CheckSpace(); err != nil {
		t.Fatal(err)
	}
	ballast := filepath.Join(mount, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 100<<10), 0o666); err != nil {
		t.Fatal(err)
	}
	var e *Error
	if err := plan.CheckSpace(); !errors.As(err, &e) || e.Kind != NoSpace {
		t.Fatalf("%v", err)
	}
	// Something else fills the disk after the check.
	p := *plan
	p.Cache = "/"
	_, err = c.Pull(t.Context(), &p, nil)
	if !errors.As(err, &e) || e.Kind != NoSpace || !strings.Contains(err.Error(), "is full (") || !strings.Contains(err.Error(), "what has arrived is kept") {
		t.Fatalf("%v", err)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	kept := marked(t, c, repo)
	if kept == 0 {
		t.Error("nothing was kept")
	}
	s, err := pullAll(t.Context(), c, "")
	if err != nil {
		t.Fatal(err)
	}
	wantSnapshot(t, s, repo)
}

func TestRetryAfterForms(t *testing.T) {
	for _, test := range []struct {
		header, value string
		want          time.Duration
	}{
		{"Retry-After", "120", 2 * time.Minute},
		{"Retry-After", "-1", 0},
		{"Retry-After", "soon", 0},
		{"Retry-After", "Wed, 21 Oct 2015 07:28:00 GMT", 0},
		{"RateLimit", `"api";r=0;t=55`, 56 * time.Second},
		{"RateLimit", `"api";r=12;t=55`, 0},
	} {
		if got := retryAfter(http.Header{http.CanonicalHeaderKey(test.header): {test.value}}); got != test.want {
			t.Errorf("%s: %s: %s, want %s", test.header, test.value, got, test.want)
		}
	}
}
