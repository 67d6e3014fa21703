package hub

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Plan is what a pull would do.
type Plan struct {
	Repo     string // as it was asked for; the cache keeps it under this name
	MovedTo  string // what the repository is called now, if that is something else
	Asked    string // branch, tag or commit
	Revision string // the commit that it means, 40 hexadecimal digits
	Gated    bool   // the hub asks for accepted terms
	Files    []PlannedFile
	Cache    string // the directory

	local *Snapshot // what the cache has, where the hub may not be asked
}

// PlannedFile is a file that loading the model needs.
type PlannedFile struct {
	Name  string
	Bytes int64
	// Blob names the content: the SHA-256 of files in large file storage, else
	// git's hash (SHA-1) of the blob. The cache's blobs have this name. It is ""
	// where the hub may not be asked.
	Blob   string
	Cached bool  // is in the cache, whole
	Here   int64 // bytes of it in the cache, of an earlier pull too
}

// Bytes is the size of all files.
func (p *Plan) Bytes() (n int64) {
	for _, f := range p.Files {
		n += f.Bytes
	}
	return n
}

// Fetch is how many bytes are not in the cache.
func (p *Plan) Fetch() (n int64) {
	for _, f := range p.Files {
		n += f.Bytes - f.Here
	}
	return n
}

// CheckSpace is an error of Kind NoSpace where the cache's disk does not have
// the room for what is to be fetched.
func (p *Plan) CheckSpace() error {
	dir := p.Cache
	for {
		var st unix.Statfs_t
		err := unix.Statfs(dir, &st)
		if err == nil {
			free := int64(st.Bavail) * int64(st.Bsize)
			if need := p.Fetch(); need > free {
				return failure(NoSpace, "%s: %s are to be fetched, and the disk of %s has %s free, %s too little: make room, or set HF_HUB_CACHE to a directory on another disk",
					p.Repo, size(need), p.Cache, size(free), size(need-free))
			}
			return nil
		}
		if !os.IsNotExist(err) || filepath.Dir(dir) == dir {
			return fmt.Errorf("the free space of %s: %w", dir, err)
		}
		dir = filepath.Dir(dir)
	}
}

// size prints bytes for people.
func size(n int64) string {
	switch {
	case n >= 1<<30:
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	}
	return fmt.Sprintf("%d bytes", n)
}

// modelInfo is the answer to GET /api/models/REPO/revision/REVISION?blobs=true
// (model_info in hf_api.py).
type modelInfo struct {
	ID       string          `json:"id"`
	SHA      string          `json:"sha"`
	Gated    json.RawMessage `json:"gated"` // false, "auto" or "manual"
	Siblings []struct {
		Name string `json:"rfilename"`
		Size *int64 `json:"size"`
		Blob string `json:"blobId"` // git's hash
		LFS  *struct {
			SHA256 string `json:"sha256"`
			Size   int64  `json:"size"`
		} `json:"lfs"`
	} `json:"siblings"`
}

// Plan asks the hub what a revision holds, chooses what loading the model needs,
// and looks what of it is in the cache. Nothing is written. "" is the default
// branch. With HF_HUB_OFFLINE only what is whole in the cache has a plan. Errors of
// the hub are *Error.
func (c *Client) Plan(ctx context.Context, repo, revision string) (*Plan, error) {
	if revision == "" {
		revision = DefaultRevision
	}
	if err := checkRepo(repo); err != nil {
		return nil, err
	}
	if err := checkRevision(revision); err != nil {
		return nil, err
	}
	p, err := c.plan(ctx, repo, revision)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", repo, err)
	}
	return p, nil
}

func (c *Client) plan(ctx context.Context, repo, revision string) (*Plan, error) {
	if c.offline {
		if s, err := find(c.cache, repo, revision); err == nil {
			p := &Plan{Repo: repo, Asked: revision, Revision: s.Revision, Cache: c.cache, local: s}
			for _, f := range s.Files {
				p.Files = append(p.Files, PlannedFile{Name: f.Name, Bytes: f.Bytes, Cached: true, Here: f.Bytes})
			}
			return p, nil
		}
		return nil, failure(Offline, "the hub may not be asked, HF_HUB_OFFLINE is set: unset it, or use a model that is in the cache (%s)", c.cache)
	}
	text, err := c.getSmall(ctx, c.at("blobs=true", "api/models", repo, "revision", url.PathEscape(revision)), target{repo: repo, revision: revision}, maxListingBytes)
	if err != nil {
		return nil, err
	}
	var info modelInfo
	if err := json.Unmarshal(text, &info); err != nil || !isCommit(info.SHA) {
		return nil, failure(NotAHub, "%s does not answer as the hub does: check HF_ENDPOINT and proxies", c.endpoint.Host)
	}
	p := &Plan{Repo: repo, Asked: revision, Revision: info.SHA, Cache: c.cache, Gated: len(info.Gated) > 0 && string(info.Gated) != "false" && string(info.Gated) != "null"}
	if info.ID != "" && info.ID != repo && checkRepo(info.ID) == nil {
		p.MovedTo = info.ID
	}
	listed := map[string]PlannedFile{}
	var names []string
	for _, s := range info.Siblings {
		if err := checkName(s.Name); err != nil {
			return nil, failure(Unsafe, "%w: nothing is taken from such a repository", err)
		}
		f := PlannedFile{Name: s.Name, Blob: s.Blob, Bytes: -1}
		if s.Size != nil {
			f.Bytes = *s.Size
		}
		if s.LFS != nil {
			f.Blob, f.Bytes = s.LFS.SHA256, s.LFS.Size
			if !isSHA256(f.Blob) {
				f.Bytes = -1
			}
		} else if !isCommit(f.Blob) { // git's hashes all look alike
			f.Bytes = -1
		}
		if _, twice := listed[f.Name]; !twice {
			names = append(names, f.Name)
		}
		listed[f.Name] = f
	}
	var failed error
	chosen, err := choose(names, func(index string) ([]byte, error) {
		var text []byte
		text, failed = c.readIndex(ctx, p, listed[index])
		return text, failed
	})
	switch {
	case failed != nil:
		return nil, failed
	case err != nil:
		return nil, failure(NoWeights, "it cannot be loaded: %w; choose another repository or --revision", err)
	}
	for _, name := range chosen {
		f := listed[name]
		if err := c.checkListed(f); err != nil {
			return nil, err
		}
		f.Here, f.Cached = c.here(p, f)
		if slices.ContainsFunc(p.Files, func(g PlannedFile) bool { return g.Blob == f.Blob }) {
			f.Here = f.Bytes // the same content is fetched once
		}
		p.Files = append(p.Files, f)
	}
	// A gated repository's listing is public, its files are not: whoever has no
	// access should learn it before anything is decided.
	if i := slices.IndexFunc(p.Files, func(f PlannedFile) bool { return !f.Cached }); i >= 0 && p.Gated {
		if err := c.persist(ctx, func(string) {}, func() (bool, error) {
			_, err := c.locate(ctx, p, p.Files[i])
			return false, err
		}); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// name is what the repository is called in addresses.
func (p *Plan) name() string { return cmp.Or(p.MovedTo, p.Repo) }

// here tells how much of a file is in the cache, and whether all of it is.
func (c *Client) here(p *Plan, f PlannedFile) (int64, bool) {
	blob := filepath.Join(repoFolder(c.cache, p.Repo), "blobs", f.Blob)
	if wholeBlob(blob, f.Bytes) {
		return f.Bytes, true
	}
	return arrived(blob, f.Bytes, c.blockBytes), false
}

// checkListed refuses a file that could not be checked.
func (c *Client) checkListed(f PlannedFile) error {
	if f.Bytes < 0 {
		return failure(NotAHub, "%s lists %s without its size and hash: does HF_ENDPOINT name a mirror that leaves them out?", c.endpoint.Host, f.Name)
	}
	return nil
}

// readIndex gives the content of an index of weights, from the cache or the hub.
func (c *Client) readIndex(ctx context.Context, p *Plan, f PlannedFile) ([]byte, error) {
	if err := c.checkListed(f); err != nil {
		return nil, err
	}
	if f.Bytes > maxIndexBytes {
		return nil, failure(NotAHub, "%s has %d bytes: too large for an index of weights", f.Name, f.Bytes)
	}
	if _, cached := c.here(p, f); cached {
		if text, err := readBounded(filepath.Join(repoFolder(c.cache, p.Repo), "blobs", f.Blob), maxIndexBytes); err == nil && matches(f, text) {
			return text, nil
		}
	}
	text, err := c.getSmall(ctx, c.resolveURL(p, f), target{p.name(), p.Revision, f.Name}, maxIndexBytes)
	if err != nil {
		return nil, err
	}
	if !matches(f, text) {
		return nil, failure(Corrupted, "%s arrived damaged: it is not what the hub's hash says; try again", f.Name)
	}
	return text, nil
}

func matches(f PlannedFile, content []byte) bool {
	h := blobHash(f)
	h.Write(content)
	return hex.EncodeToString(h.Sum(nil)) == f.Blob
}

// blobHash is the hash that names a file's blob: SHA-256, or git's, which is the
// SHA-1 of "blob LENGTH", a zero byte and the content.
func blobHash(f PlannedFile) hash.Hash {
	if isSHA256(f.Blob) {
		return sha256.New()
	}
	h := sha1.New()
	fmt.Fprintf(h, "blob %d\x00", f.Bytes)
	return h
}

// resolveURL is where the hub serves a file (hf_hub_url in file_download.py).
func (c *Client) resolveURL(p *Plan, f PlannedFile) *url.URL {
	parts := strings.Split(f.Name, "/")
	for i := range parts {
		parts[i] = url.PathEscape(parts[i])
	}
	return c.at("", p.name(), "resolve", p.Revision, strings.Join(parts, "/"))
}

// getSmall reads an answer of at most limit bytes.
func (c *Client) getSmall(ctx context.Context, from *url.URL, what target, limit int64) (text []byte, err error) {
	err = c.persist(ctx, func(string) {}, func() (bool, error) {
		ctx, watched, stop := c.watch(ctx)
		defer stop()
		r, err := c.send(ctx, http.MethodGet, from, nil, true)
		if err != nil {
			return false, err
		}
		defer r.Body.Close()
		if r.StatusCode != http.StatusOK {
			return false, c.statusFailure(r, what)
		}
		var b bytes.Buffer
		_, err = b.ReadFrom(http.MaxBytesReader(nil, io.NopCloser(watched(r.Body)), limit))
		if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
			return false, failure(NotAHub, "%s answers with more than %s: check HF_ENDPOINT", r.Request.URL.Host, size(limit))
		}
		if err != nil {
			return false, c.netFailure(ctx, r.Request.URL.Host, err)
		}
		text = b.Bytes()
		return true, nil
	})
	return text, err
}
