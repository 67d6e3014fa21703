package hub

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// State is how far a pull is.
type State struct {
	Done, Total int64  // bytes of the whole model that are here, and all
	Fetched     int64  // bytes that came over the network in this pull
	Note        string // what happens besides or instead: "checking …", "rate-limited: …"
}

// Progress hears of a pull, several times a second and once at the end, from
// one goroutine at a time. It may be nil.
type Progress func(State)

// Pull downloads what the plan lacks, checks it against the hub's hashes, and
// makes the snapshot: only when all files are whole do they appear under their
// names. What has arrived is kept when it fails or is stopped, or the process is
// killed; the next pull goes on there. Errors of the hub are *Error.
func (c *Client) Pull(ctx context.Context, plan *Plan, progress Progress) (*Snapshot, error) {
	if plan.Fetch() > 0 {
		if err := plan.CheckSpace(); err != nil {
			return nil, err
		}
	}
	s, err := c.pull(ctx, plan, progress)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", plan.Repo, err)
	}
	return s, nil
}

func (c *Client) pull(ctx context.Context, plan *Plan, progress Progress) (*Snapshot, error) {
	if plan.local != nil {
		return plan.local, nil
	}
	p := &pull{Client: c, plan: plan, buffers: make(chan []byte, c.connections)}
	for range c.connections {
		p.buffers <- nil
	}
	blobs := filepath.Join(repoFolder(c.cache, plan.Repo), "blobs")
	if err := os.MkdirAll(blobs, 0o777); err != nil {
		return nil, diskFailure(c.cache, err)
	}
	for _, f := range plan.Files {
		p.done.Add(f.Here)
	}
	stop := p.report(progress)
	defer stop()
	// Large files first: the small ones then fill the gaps at the end.
	files := slices.Clone(plan.Files)
	slices.SortStableFunc(files, func(a, b PlannedFile) int { return int(min(max(b.Bytes-a.Bytes, -1), 1)) })
	group, inner := errgroup.WithContext(ctx)
	group.SetLimit(c.connections)
	for i, f := range files {
		if !slices.ContainsFunc(files[:i], func(g PlannedFile) bool { return g.Blob == f.Blob }) {
			group.Go(func() error { return p.file(inner, f) })
		}
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	if err := p.link(ctx); err != nil {
		return nil, diskFailure(c.cache, err)
	}
	return openSnapshot(c.cache, plan.Repo, plan.Revision)
}

// pull is one pull at work.
type pull struct {
	*Client
	plan    *Plan
	buffers chan []byte // one per connection: whoever holds one may use the network

	done, fetched atomic.Int64
	note          atomic.Pointer[string]
}

func (p *pull) say(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	p.note.Store(&text)
}

// report calls progress until stop, which calls it once more.
func (p *pull) report(progress Progress) (stop func()) {
	if progress == nil {
		return func() {}
	}
	total := p.plan.Bytes()
	tell := func() {
		s := State{Done: p.done.Load(), Total: total, Fetched: p.fetched.Load()}
		if note := p.note.Swap(nil); note != nil {
			s.Note = *note
		}
		progress(s)
	}
	quit, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		tick := time.NewTicker(250 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				tell()
			case <-quit:
				tell()
				return
			}
		}
	}()
	return func() {
		close(quit)
		<-ended
	}
}

// file has one file's blob made, unless it is there.
func (p *pull) file(ctx context.Context, f PlannedFile) error {
	blob := filepath.Join(repoFolder(p.cache, p.plan.Repo), "blobs", f.Blob)
	if wholeBlob(blob, f.Bytes) {
		p.done.Add(f.Bytes - f.Here)
		removePartial(blob) // of a pull that ended just after, or before another program made the blob
		return nil          // without a lock: the cache may be one that can only be read
	}
	unlock, err := lockBlob(ctx, p.cache, p.plan.Repo, f.Blob, func() { p.say("waiting for another download of %s", f.Name) })
	if err != nil {
		return diskFailure(p.cache, err)
	}
	defer unlock()
	counted := f.Here
	for range 2 {
		if wholeBlob(blob, f.Bytes) {
			p.done.Add(f.Bytes - counted)
			return nil
		}
		part, err := openPartial(blob, f.Bytes, p.blockBytes)
		if err != nil {
			return diskFailure(p.cache, err)
		}
		now := arrived(blob, f.Bytes, p.blockBytes)
		p.done.Add(now - counted)
		whole, err := p.fill(ctx, f, part)
		switch {
		case err != nil:
		case whole:
			if err = part.finish(); err != nil && wholeBlob(blob, f.Bytes) {
				err = nil // another program was faster
			}
			err = diskFailure(p.cache, err)
		default:
			p.done.Add(-f.Bytes)
			counted = 0
			if err = removePartial(blob); err == nil {
				p.say("%s arrived damaged: fetching it again", f.Name)
			}
		}
		part.close()
		if err != nil || whole {
			return err
		}
	}
	return failure(Corrupted, "%s arrived damaged twice: it is not what the hub's hash says (%.12s…). It was dropped; try again later, or over another network or HF_ENDPOINT", f.Name, f.Blob)
}

// wholeBlob tells whether a blob is there. What has its name was complete when
// it got it; that the size is right is checked all the same.
func wholeBlob(blob string, bytes int64) bool {
	st, err := os.Stat(blob)
	return err == nil && st.Mode().IsRegular() && st.Size() == bytes
}

// fill fetches the missing blocks, and tells whether the content matches its
// hash.
func (p *pull) fill(ctx context.Context, f PlannedFile, part *partial) (bool, error) {
	src := &source{pull: p, file: f}
	group, inner := errgroup.WithContext(ctx)
	for _, run := range part.missing(p.blocks) {
		buffer, err := p.connection(inner)
		if err != nil {
			break
		}
		group.Go(func() error {
			defer func() { p.buffers <- buffer }()
			return p.run(inner, src, part, run, buffer)
		})
	}
	err := group.Wait()
	if errors.Is(err, errNoRanges) {
		var buffer []byte
		if buffer, err = p.connection(ctx); err == nil {
			err = p.whole(ctx, src, part, buffer)
			p.buffers <- buffer
		}
	}
	if err == nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return false, err
	}
	if f.Bytes > 64<<20 {
		p.say("checking %s", f.Name)
	}
	matches, err := part.matches(f)
	return matches, diskFailure(p.cache, err)
}

// connection waits for the right to use the network, which is a buffer for a
// block; it goes back to p.buffers.
func (p *pull) connection(ctx context.Context) ([]byte, error) {
	select {
	case buffer := <-p.buffers:
		if buffer == nil {
			buffer = make([]byte, p.blockBytes)
		}
		return buffer, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// errNoRanges says that the server sends whole files only.
var errNoRanges = errors.New("the server sends no ranges")

// run fetches the bytes [run[0], run[1]) of a file; both are at blocks' ends.
func (p *pull) run(ctx context.Context, src *source, part *partial, run [2]int64, buffer []byte) error {
	at := run[0]    // the next byte
	filled := 0     // bytes before it in the buffer
	start := run[0] // where the buffer's block begins
	return p.persist(ctx, func(why string) { p.say("%s", why) }, func() (bool, error) {
		before := at
		err := src.read(ctx, at, run[1], func(r io.Reader) error {
			for at < run[1] {
				block := min(p.blockBytes, run[1]-start)
				n, err := r.Read(buffer[filled:block])
				filled += n
				at += int64(n)
				p.done.Add(int64(n))
				p.fetched.Add(int64(n))
				if int64(filled) == block {
					if err := part.write(start, buffer[:block]); err != nil {
						return diskFailure(p.cache, err)
					}
					start, filled = at, 0
				}
				if err != nil && at < run[1] {
					return err
				}
			}
			return nil
		})
		if err != nil && ctx.Err() != nil {
			p.done.Add(-int64(filled)) // is lost
		}
		return at > before, err
	})
}

// whole fetches a file from its beginning, from a server without ranges.
func (p *pull) whole(ctx context.Context, src *source, part *partial, buffer []byte) error {
	return p.persist(ctx, func(why string) { p.say("%s", why) }, func() (bool, error) {
		return false, src.read(ctx, 0, src.file.Bytes, func(r io.Reader) error {
			for at := int64(0); at < src.file.Bytes; at += p.blockBytes {
				block := buffer[:min(p.blockBytes, src.file.Bytes-at)]
				n, err := io.ReadFull(r, block)
				p.fetched.Add(int64(n))
				if err != nil {
					return err
				}
				if part.has(at) {
					continue
				}
				if err := part.write(at, block); err != nil {
					return diskFailure(p.cache, err)
				}
				p.done.Add(int64(n))
			}
			return nil
		})
	})
}

// source is where a file's bytes come from: the endpoint itself, or an address
// that it redirects to and that is signed, for a while.
type source struct {
	pull *pull
	file PlannedFile

	mu sync.Mutex
	at *url.URL
}

func (s *source) locate(ctx context.Context) (*url.URL, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.at == nil {
		at, err := s.pull.locate(ctx, s.pull.plan, s.file)
		if err != nil {
			return nil, err
		}
		s.at = at
	}
	return s.at, nil
}

// forget drops an address that is no good any more.
func (s *source) forget(at *url.URL) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.at == at {
		s.at = nil
	}
}

// locate asks the hub where a file's bytes are, and that it is the file that was
// planned (get_hf_file_metadata in file_download.py).
func (c *Client) locate(ctx context.Context, p *Plan, f PlannedFile) (*url.URL, error) {
	r, err := c.send(ctx, http.MethodHead, c.resolveURL(p, f), nil, false)
	if err != nil {
		return nil, err
	}
	r.Body.Close()
	if r.StatusCode >= 400 || r.StatusCode < 200 {
		return nil, c.statusFailure(r, target{p.name(), p.Revision, f.Name})
	}
	if r.Header.Get("X-Repo-Commit") == "" {
		return nil, failure(NotAHub, "%s does not answer as the hub does (no X-Repo-Commit): check HF_ENDPOINT and proxies", r.Request.URL.Host)
	}
	blob := strings.Trim(strings.TrimPrefix(cmp.Or(r.Header.Get("X-Linked-Etag"), r.Header.Get("ETag")), "W/"), `"`)
	length := r.Header.Get("X-Linked-Size")
	if (isSHA256(blob) || isCommit(blob)) && blob != f.Blob || length != "" && length != strconv.FormatInt(f.Bytes, 10) {
		return nil, failure(Corrupted, "the hub serves another %s than it listed: try again; if it stays so, the mirror in HF_ENDPOINT is out of step", f.Name)
	}
	if location := r.Header.Get("Location"); location != "" && r.StatusCode >= 300 {
		at, err := r.Request.URL.Parse(location) // send has found it valid
		if err != nil {
			return nil, failure(Unsafe, "the hub redirects to an address that is not valid")
		}
		return at, nil
	}
	return r.Request.URL, nil
}

// read requests the bytes [from, to) of the file and has take read exactly
// those. Whatever is wrong with the answer is an error before take is called.
func (s *source) read(ctx context.Context, from, to int64, take func(io.Reader) error) error {
	p := s.pull
	at, err := s.locate(ctx)
	if err != nil {
		return err
	}
	ctx, watched, stop := p.watch(ctx)
	defer stop()
	header := http.Header{}
	all := from == 0 && to == s.file.Bytes
	if !all {
		header.Set("Range", fmt.Sprintf("bytes=%d-%d", from, to-1))
	}
	r, err := p.send(ctx, http.MethodGet, at, header, true)
	if err != nil {
		return err
	}
	defer r.Body.Close()
	host := r.Request.URL.Host
	switch {
	case !p.atEndpoint(r.Request.URL) && r.StatusCode >= 400 && r.StatusCode < 500 && r.StatusCode != http.StatusTooManyRequests && r.StatusCode != http.StatusRequestTimeout:
		s.forget(at) // its signature may have expired
		return failure(Unavailable, "%s refuses %s with %s: try again later", host, s.file.Name, r.Status).again()
	case r.StatusCode >= 400:
		return p.statusFailure(r, target{p.plan.name(), p.plan.Revision, s.file.Name})
	case r.Header.Get("Content-Encoding") != "" && r.Header.Get("Content-Encoding") != "identity":
		return failure(NotAHub, "%s compresses %s though it was asked not to: is a proxy in between?", host, s.file.Name)
	case r.StatusCode == http.StatusOK && !all:
		return errNoRanges
	case r.StatusCode == http.StatusPartialContent && !all:
		if want := fmt.Sprintf("bytes %d-%d/%d", from, to-1, s.file.Bytes); r.Header.Get("Content-Range") != want {
			return failure(Corrupted, "%s sends another part of %s than was asked for (%.60q, not %q): try again later", host, s.file.Name, r.Header.Get("Content-Range"), want).again()
		}
	case r.StatusCode != http.StatusOK:
		return failure(NotAHub, "%s answers %s to a request for %s: check HF_ENDPOINT and proxies", host, r.Status, s.file.Name)
	}
	if r.ContentLength >= 0 && r.ContentLength != to-from {
		return failure(Corrupted, "%s sends %d bytes of %s where %d were asked for: try again later", host, r.ContentLength, s.file.Name, to-from).again()
	}
	body := watched(r.Body)
	if err = take(body); err == nil {
		// The end of the body also frees the connection for the next request.
		if n, _ := io.ReadFull(body, make([]byte, 1)); n > 0 {
			return failure(Corrupted, "%s sends more of %s than the %d bytes that were asked for: try again later", host, s.file.Name, to-from)
		}
	}
	var known *Error
	var path *os.PathError
	if err == nil || errors.As(err, &known) || errors.As(err, &path) {
		return err
	}
	return p.netFailure(ctx, host, err)
}

// link makes the snapshot out of the blobs: weights first, config.json last, so
// that what looks like a model is one. Then the branch points to it. What is in
// place is left alone, and then nothing is written.
func (p *pull) link(ctx context.Context) error {
	folder := repoFolder(p.cache, p.plan.Repo)
	files := slices.Clone(p.plan.Files)
	slices.SortStableFunc(files, func(a, b PlannedFile) int { return linkOrder(a) - linkOrder(b) })
	type entry struct {
		path   string
		create func(temporary string) error
	}
	var todo []entry
	for _, f := range files {
		path := filepath.Join(folder, "snapshots", p.plan.Revision, filepath.FromSlash(f.Name))
		if st, err := os.Stat(path); err == nil && st.Size() == f.Bytes {
			continue // of an earlier download, or a copy on a disk without links
		}
		target, err := filepath.Rel(filepath.Dir(path), filepath.Join(folder, "blobs", f.Blob))
		if err != nil {
			return err
		}
		todo = append(todo, entry{path, func(temporary string) error { return os.Symlink(target, temporary) }})
	}
	if p.plan.Asked != p.plan.Revision {
		ref := filepath.Join(folder, "refs", filepath.FromSlash(p.plan.Asked))
		if text, err := os.ReadFile(ref); err != nil || string(text) != p.plan.Revision {
			todo = append(todo, entry{ref, func(temporary string) error { return os.WriteFile(temporary, []byte(p.plan.Revision), 0o666) }})
		}
	}
	if len(todo) == 0 {
		return nil
	}
	unlock, err := lockBlob(ctx, p.cache, p.plan.Repo, "nativebench", func() { p.say("waiting for another pull") })
	if err != nil {
		return err
	}
	defer unlock()
	temporary := filepath.Join(folder, "blobs", "link.nativebench.tmp")
	for _, e := range todo {
		if err := os.MkdirAll(filepath.Dir(e.path), 0o777); err != nil {
			return err
		}
		if err := os.Remove(temporary); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err // of a process that was killed
		}
		if err := e.create(temporary); err != nil {
			return err
		}
		if err := os.Rename(temporary, e.path); err != nil {
			return err
		}
		if err := syncDir(filepath.Dir(e.path)); err != nil {
			return err
		}
	}
	return nil
}

func linkOrder(f PlannedFile) int {
	switch {
	case f.Name == "config.json":
		return 2
	case isSHA256(f.Blob):
		return 0
	}
	return 1
}
