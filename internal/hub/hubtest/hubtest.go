// Package hubtest is a Hugging Face hub on this machine, for tests: the model
// API, files that it serves itself or redirects to a storage host with signed
// addresses, gated and moved repositories, and faults on demand. It answers as
// the hub does as far as huggingface_hub's client looks, which is tested with
// that client.
package hubtest

import (
	"bytes"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// Hub is a hub and its storage host. Repositories are added before it is asked.
type Hub struct {
	URL     string // of the hub
	Storage string // of the host that large files are redirected to
	Token   string // the one that it knows; "" if none

	t       testing.TB
	mu      sync.Mutex
	repos   map[string]*Repo
	moved   map[string]string
	seen    []Request
	faults  []*fault
	content map[string][]byte // large files by SHA-256
	expired int               // how often all signatures have
}

// Repo is a model's repository with one commit.
type Repo struct {
	Commit string
	Refs   []string // branches and tags that point to it; "main" always does
	Files  map[string][]byte
	Large  func(name string) bool // is in large file storage; nil: *.safetensors and *.bin
	Gated  string                 // "", "auto" or "manual"
	Grant  bool                   // Token's account may read it
}

// Request is a request that arrived.
type Request struct {
	Storage       bool   // at the storage host
	Host          string // that was asked
	Method, Path  string
	Range         string
	Authorization string
}

type fault struct {
	storage bool
	match   string
	times   int
	do      func(w http.ResponseWriter, r *http.Request, next http.Handler)
}

// New starts a hub that ends with the test.
func New(t testing.TB) *Hub {
	h := &Hub{t: t, repos: map[string]*Repo{}, moved: map[string]string{}, content: map[string][]byte{}}
	hub := httptest.NewServer(h.handler(false, h.serveHub))
	storage := httptest.NewServer(h.handler(true, h.serveStorage))
	t.Cleanup(hub.Close)
	t.Cleanup(storage.Close)
	h.URL = hub.URL
	// Another name of this machine: an origin of its own in every respect.
	h.Storage = strings.Replace(storage.URL, "127.0.0.1", "localhost", 1)
	return h
}

// Add adds a repository.
func (h *Hub) Add(name string, r *Repo) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if r.Large == nil {
		r.Large = func(name string) bool {
			return strings.HasSuffix(name, ".safetensors") || strings.HasSuffix(name, ".bin")
		}
	}
	for name, content := range r.Files {
		if r.Large(name) {
			h.content[SHA256(content)] = content
		}
	}
	h.repos[name] = r
}

// Repo is the repository of that name, nil if there is none. It may be changed
// until the hub is asked.
func (h *Hub) Repo(name string) *Repo {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.repos[name]
}

// Move makes old another name of a repository, as renaming does.
func (h *Hub) Move(old, name string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.moved[old] = name
}

// Fault has do answer the next so many requests (-1: all) to the hub, or to the
// storage host, whose method and path contain match, as in "GET /api". next is
// what would have answered.
func (h *Hub) Fault(storage bool, match string, times int, do func(w http.ResponseWriter, r *http.Request, next http.Handler)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.faults = append(h.faults, &fault{storage, match, times, do})
}

// Requests gives what has arrived so far.
func (h *Hub) Requests() []Request {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.seen)
}

// Forget forgets the requests that have arrived, and the faults.
func (h *Hub) Forget() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.seen, h.faults = nil, nil
}

// SHA256 names a large file's content.
func SHA256(content []byte) string {
	sum := sha256.Sum256(content)
	return hex.EncodeToString(sum[:])
}

// GitHash names any other file's content: git's hash of the blob.
func GitHash(content []byte) string {
	sum := sha1.Sum(append(fmt.Appendf(nil, "blob %d\x00", len(content)), content...))
	return hex.EncodeToString(sum[:])
}

func (h *Hub) handler(storage bool, serve http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.mu.Lock()
		h.seen = append(h.seen, Request{storage, r.Host, r.Method, r.URL.Path, r.Header.Get("Range"), r.Header.Get("Authorization")})
		var hit *fault
		for _, f := range h.faults {
			if f.storage == storage && f.times != 0 && strings.Contains(r.Method+" "+r.URL.Path, f.match) {
				hit = f
				f.times--
				break
			}
		}
		h.mu.Unlock()
		if hit != nil {
			hit.do(w, r, serve)
			return
		}
		serve(w, r)
	})
}

// Refuse answers as the hub does when it refuses: the reason is in two headers.
func Refuse(w http.ResponseWriter, status int, code, message string) {
	if code != "" {
		w.Header().Set("X-Error-Code", code)
	}
	w.Header().Set("X-Error-Message", message)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(map[string]string{"error": message})
}

func (h *Hub) serveHub(w http.ResponseWriter, r *http.Request) {
	bearer, given := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	known := given && h.Token != "" && bearer == h.Token
	if given && !known {
		Refuse(w, http.StatusUnauthorized, "", "Invalid credentials in Authorization header")
		return
	}
	parts := strings.Split(strings.TrimPrefix(r.URL.EscapedPath(), "/"), "/")
	api := len(parts) > 2 && parts[0] == "api" && parts[1] == "models"
	if api {
		parts = parts[2:]
	}
	cache := len(parts) > 3 && parts[0] == "api" && parts[1] == "resolve-cache" && parts[2] == "models"
	if cache {
		parts = parts[3:]
	}
	if len(parts) < 2 {
		http.NotFound(w, r)
		return
	}
	name := parts[0] + "/" + parts[1]
	rest := parts[2:]
	h.mu.Lock()
	to, moved := h.moved[name]
	repo := h.repos[name]
	h.mu.Unlock()
	switch {
	case moved:
		w.Header().Set("Location", strings.Replace(r.URL.RequestURI(), name, to, 1))
		w.WriteHeader(http.StatusTemporaryRedirect)
	case repo == nil && !known:
		Refuse(w, http.StatusUnauthorized, "RepoNotFound", "Invalid username or password.")
	case repo == nil:
		Refuse(w, http.StatusNotFound, "RepoNotFound", "Repository not found")
	case api && len(rest) == 0:
		h.serveInfo(w, name, repo)
	case api && len(rest) == 2 && rest[0] == "revision":
		if h.checkRevision(w, repo, rest[1]) {
			h.serveInfo(w, name, repo)
		}
	case api && len(rest) >= 2 && rest[0] == "tree":
		if h.checkRevision(w, repo, rest[1]) {
			h.serveTree(w, repo)
		}
	case !api && len(rest) >= 3 && rest[0] == "resolve":
		if h.checkRevision(w, repo, rest[1]) {
			file, _ := url.PathUnescape(strings.Join(rest[2:], "/"))
			h.serveFile(w, r, name, repo, known, false, file)
		}
	case cache && len(rest) >= 2 && rest[0] == repo.Commit:
		file, _ := url.PathUnescape(strings.Join(rest[1:], "/"))
		h.serveFile(w, r, name, repo, known, true, file)
	default:
		http.NotFound(w, r)
	}
}

func (h *Hub) checkRevision(w http.ResponseWriter, repo *Repo, escaped string) bool {
	revision, _ := url.PathUnescape(escaped)
	if revision == "main" || revision == repo.Commit || slices.Contains(repo.Refs, revision) {
		return true
	}
	Refuse(w, http.StatusNotFound, "RevisionNotFound", "Invalid rev id: "+revision)
	return false
}

func (repo *Repo) names() (names []string) {
	for name := range repo.Files {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func (h *Hub) serveInfo(w http.ResponseWriter, name string, repo *Repo) {
	siblings := []map[string]any{}
	for _, file := range repo.names() {
		content := repo.Files[file]
		s := map[string]any{"rfilename": file, "size": len(content), "blobId": GitHash(content)}
		if repo.Large(file) {
			s["blobId"] = GitHash([]byte("pointer to " + SHA256(content)))
			s["lfs"] = map[string]any{"sha256": SHA256(content), "size": len(content), "pointerSize": 134}
		}
		siblings = append(siblings, s)
	}
	var gated any = false
	if repo.Gated != "" {
		gated = repo.Gated
	}
	writeJSON(w, map[string]any{
		"_id": "621ffdc036468d709f17434d", "id": name, "modelId": name, "sha": repo.Commit, "private": false, "gated": gated,
		"disabled": false, "downloads": 1, "likes": 1, "tags": []string{}, "createdAt": "2022-03-02T23:29:04.000Z", "siblings": siblings,
	})
}

func (h *Hub) serveTree(w http.ResponseWriter, repo *Repo) {
	list := []map[string]any{}
	for _, file := range repo.names() {
		content := repo.Files[file]
		f := map[string]any{"type": "file", "path": file, "size": len(content), "oid": GitHash(content)}
		if repo.Large(file) {
			f["oid"] = GitHash([]byte("pointer to " + SHA256(content)))
			f["lfs"] = map[string]any{"oid": SHA256(content), "size": len(content), "pointerSize": 134}
		}
		list = append(list, f)
	}
	writeJSON(w, list)
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	json.NewEncoder(w).Encode(v)
}

// serveFile answers for a file: a small one is redirected to an address on the
// same host under which it is cached, a large one to the storage host.
func (h *Hub) serveFile(w http.ResponseWriter, r *http.Request, repoName string, repo *Repo, known, cached bool, name string) {
	w.Header().Set("X-Repo-Commit", repo.Commit)
	content, ok := repo.Files[name]
	switch {
	case repo.Gated != "" && !known:
		Refuse(w, http.StatusUnauthorized, "GatedRepo", "Access to this model is restricted. You must have access to it and be authenticated to access it. Please log in.")
	case repo.Gated != "" && !repo.Grant:
		Refuse(w, http.StatusForbidden, "GatedRepo", "Access to this model is restricted and you are not in the authorized list.")
	case !ok:
		Refuse(w, http.StatusNotFound, "EntryNotFound", "Entry not found")
	case !cached && !repo.Large(name):
		w.Header().Set("X-Linked-Size", fmt.Sprint(len(content)))
		w.Header().Set("X-Linked-Etag", `"`+GitHash(content)+`"`)
		w.Header().Set("Location", "/api/resolve-cache/models/"+repoName+"/"+repo.Commit+"/"+(&url.URL{Path: name}).EscapedPath()+"?etag=%22"+GitHash(content)+"%22")
		w.WriteHeader(http.StatusTemporaryRedirect)
	case repo.Large(name):
		sum := SHA256(content)
		w.Header().Set("X-Linked-Size", fmt.Sprint(len(content)))
		w.Header().Set("X-Linked-Etag", `"`+sum+`"`)
		w.Header().Set("Accept-Ranges", "bytes")
		w.Header().Set("Location", h.Storage+"/"+sum+"?X-Amz-Signature="+h.signature(sum))
		w.WriteHeader(http.StatusFound)
	default:
		w.Header().Set("ETag", `"`+GitHash(content)+`"`)
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
	}
}

// Expire makes all signed addresses that were given out invalid.
func (h *Hub) Expire() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.expired++
}

func (h *Hub) signature(sum string) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return SHA256(fmt.Appendf(nil, "signed %s %d", sum, h.expired))
}

func (h *Hub) serveStorage(w http.ResponseWriter, r *http.Request) {
	sum := strings.TrimPrefix(r.URL.Path, "/")
	h.mu.Lock()
	content, ok := h.content[sum]
	h.mu.Unlock()
	switch {
	case r.Header.Get("Authorization") != "":
		http.Error(w, "Only one auth mechanism allowed", http.StatusBadRequest)
	case r.URL.Query().Get("X-Amz-Signature") != h.signature(sum):
		http.Error(w, "AccessDenied", http.StatusForbidden)
	case !ok:
		http.Error(w, "NoSuchKey", http.StatusNotFound)
	default:
		w.Header().Set("Content-Type", "binary/octet-stream")
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(content))
	}
}

// Safetensors makes a safetensors file with one tensor of so many bytes, whose
// content differs by seed.
func Safetensors(n int, seed byte) []byte {
	header := fmt.Sprintf(`{"__metadata__":{"format":"pt"},"w":{"dtype":"U8","shape":[%d],"data_offsets":[0,%d]}}`, n, n)
	out := make([]byte, 8, 8+len(header)+n)
	for i := range 8 {
		out[i] = byte(len(header) >> (8 * i))
	}
	out = append(out, header...)
	for x := uint32(seed) + 1; n > 0; n-- {
		x = x*1664525 + 1013904223
		out = append(out, byte(x>>24))
	}
	return out
}
