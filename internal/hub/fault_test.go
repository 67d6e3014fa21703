package hub

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nativebench/nativebench/internal/hub/hubtest"
)

type fault = func(w http.ResponseWriter, r *http.Request, next http.Handler)

func status(code int, header ...string) fault {
	return func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
		for i := 0; i < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(code)
	}
}

// changed has next answer, and edit change the answer.
func changed(edit func(r *httptest.ResponseRecorder)) fault {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		rec := httptest.NewRecorder()
		next.ServeHTTP(rec, r)
		edit(rec)
		for k, v := range rec.Header() {
			w.Header()[k] = v
		}
		w.WriteHeader(rec.Code)
		w.Write(rec.Body.Bytes())
	}
}

// listing changes what the hub says of the repository.
func listing(edit func(info map[string]any)) fault {
	return changed(func(r *httptest.ResponseRecorder) {
		var info map[string]any
		if err := json.Unmarshal(r.Body.Bytes(), &info); err != nil {
			panic(err)
		}
		edit(info)
		r.Body.Reset()
		json.NewEncoder(r.Body).Encode(info)
	})
}

func sibling(info map[string]any, i int) map[string]any {
	return info["siblings"].([]any)[i].(map[string]any)
}

// cut ends the connection after so many bytes of the body.
func cut(after int) fault {
	return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		rec := httptest.NewRecorder()
		next.ServeHTTP(rec, r)
		for k, v := range rec.Header() {
			w.Header()[k] = v
		}
		w.WriteHeader(rec.Code)
		w.Write(rec.Body.Bytes()[:min(after, rec.Body.Len())])
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	}
}

// stalled sends a few bytes and then nothing until the client gives up.
func stalled(w http.ResponseWriter, r *http.Request, next http.Handler) {
	rec := httptest.NewRecorder()
	next.ServeHTTP(rec, r)
	for k, v := range rec.Header() {
		w.Header()[k] = v
	}
	w.WriteHeader(rec.Code)
	w.Write(rec.Body.Bytes()[:10])
	w.(http.Flusher).Flush()
	<-r.Context().Done()
}

func noRanges(w http.ResponseWriter, r *http.Request, next http.Handler) {
	r.Header.Del("Range")
	next.ServeHTTP(w, r)
}

func flipped(r *httptest.ResponseRecorder) {
	if b := r.Body.Bytes(); len(b) > 0 {
		b[len(b)/2] ^= 1
	}
}

// cached is where the hub redirects to for small files.
const cached = "/api/resolve-cache/models/" + name + "/" + commit + "/"

const secret = "hf_averysecrettoken"

// Each row: what goes wrong, and either the class and words of the failure, or
// none where the pull has to succeed all the same.
func TestFaults(t *testing.T) {
	const once, always = 1, -1
	type env struct {
		*testing.T
		hub    *hubtest.Hub
		repo   *hubtest.Repo
		client *Client
	}
	token := func(e env) { e.client.token, e.client.tokenFrom = secret, "HF_TOKEN" }
	for _, test := range []struct {
		name string
		do   func(e env)
		kind Kind
		says []string
	}{
		{name: "nothing wrong", do: func(env) {}},
		{
			"gated, no token", func(e env) { e.repo.Gated = "manual" },
			Gated,
			[]string{"there is no token: accept its terms at {hub}/owner/model", "{hub}/settings/tokens", "HF_TOKEN"},
		},
		{
			"gated, not accepted", func(e env) { e.repo.Gated, e.hub.Token = "auto", secret; token(e) },
			Gated,
			[]string{"the account of the token in HF_TOKEN has no access: accept its terms at {hub}/owner/model"},
		},
		{name: "gated, accepted", do: func(e env) { e.repo.Gated, e.hub.Token, e.repo.Grant = "manual", secret, true; token(e) }},
		{
			"token not accepted", func(e env) { token(e) },
			BadToken,
			[]string{"does not accept the token in HF_TOKEN", "Invalid credentials", "make a new one at {hub}/settings/tokens"},
		},
		{
			"token without rights, echoed", func(e env) {
				e.hub.Token = secret
				token(e)
				e.hub.Fault(false, "GET /api/models", always, status(http.StatusForbidden, "X-Error-Message", "token "+secret+" may not"))
			},
			BadToken,
			[]string{`the hub refuses access ("token … may not")`},
		},
		{
			"missing", func(e env) {
				e.hub.Fault(false, "GET /api/models", always, status(401, "X-Error-Code", "RepoNotFound"))
			},
			NoRepo,
			[]string{"no such repository, or it is private", "{hub}/owner/model"},
		},
		{
			"missing, with a token", func(e env) {
				e.hub.Token = secret
				token(e)
				e.hub.Fault(false, "GET /api/models", always, status(404, "X-Error-Code", "RepoNotFound"))
			},
			NoRepo,
			[]string{"or hides it from the account of the token in HF_TOKEN"},
		},
		{
			"missing revision", func(e env) {
				e.hub.Fault(false, "GET /api/models", always, status(404, "X-Error-Code", "RevisionNotFound"))
			},
			NoRevision,
			[]string{`no revision "main"`},
		},
		{
			"missing file", func(e env) { e.hub.Fault(false, "HEAD", always, status(404, "X-Error-Code", "EntryNotFound")) },
			NoFile,
			[]string{"does not have the file"},
		},
		{name: "rate-limited, briefly", do: func(e env) {
			e.hub.Fault(false, "HEAD", once, status(429, "Retry-After", "1"))
			e.hub.Fault(true, "GET", once, status(429, "RateLimit", `"resolvers";r=0;t=0`))
		}},
		{
			"rate-limited, for long", func(e env) { e.hub.Fault(false, "GET /api/models", always, status(429, "Retry-After", "3600")) },
			RateLimited,
			[]string{"asks to wait 1h0m0s, longer than the 2s that are waited"},
		},
		{
			"rate-limited, by a header", func(e env) {
				e.hub.Fault(false, "HEAD", always, status(429, "RateLimit", `"resolvers";r=0;t=299`, "Retry-After", "1"))
			},
			RateLimited,
			[]string{"asks to wait 5m0s"},
		},
		{
			"rate-limited, without end", func(e env) { e.hub.Fault(true, "GET", always, status(429)) },
			RateLimited,
			[]string{"limits the rate", "tried 5 times"},
		},
		{name: "cut once", do: func(e env) { e.hub.Fault(true, "GET", 3, cut(1500)) }},
		{name: "cut again and again, with progress", do: func(e env) { e.hub.Fault(true, "GET", always, cut(1700)) }},
		{
			"cut without progress", func(e env) { e.hub.Fault(true, "GET", always, cut(0)) },
			Cut,
			[]string{"the connection to {storage} was cut", "what has arrived of files is kept"},
		},
		{
			"listing cut", func(e env) { e.hub.Fault(false, "GET /api/models", always, cut(100)) },
			Cut,
			[]string{"the connection to {host} was cut", "tried 5 times"},
		},
		{name: "small file cut once", do: func(e env) { e.hub.Fault(false, "GET "+cached, 2, cut(5)) }},
		{name: "damaged once", do: func(e env) { e.hub.Fault(true, "GET", once, changed(flipped)) }},
		{name: "small file damaged once", do: func(e env) {
			e.hub.Fault(false, "GET "+cached+"config.json", once, changed(flipped))
		}},
		{
			"damaged always", func(e env) { e.hub.Fault(true, "GET", always, changed(flipped)) },
			Corrupted,
			[]string{"arrived damaged twice", "It was dropped"},
		},
		{
			"index damaged", func(e env) { e.hub.Fault(false, "GET "+cached, once, changed(flipped)) },
			Corrupted,
			[]string{"model.safetensors.index.json arrived damaged"},
		},
		{name: "server error once", do: func(e env) {
			e.hub.Fault(false, "GET /api/models", once, status(502))
			e.hub.Fault(false, "HEAD", once, status(500))
			e.hub.Fault(true, "GET", 2, status(503))
		}},
		{
			"server error", func(e env) { e.hub.Fault(false, "GET /api/models", always, status(503)) },
			Unavailable,
			[]string{"fails with 503 Service Unavailable", "try again later"},
		},
		{
			"refused", func(e env) {
				s := httptest.NewServer(nil)
				e.client.endpoint.Host = s.Listener.Addr().String()
				s.Close()
			},
			NoNetwork,
			[]string{"cannot be reached", "HTTPS_PROXY"},
		},
		{
			"no such host", func(e env) { e.client.endpoint.Host, e.client.tries = "hub.invalid", 1 },
			NoNetwork,
			[]string{"the name hub.invalid cannot be resolved"},
		},
		{
			"certificate of nobody", func(e env) {
				s := httptest.NewUnstartedServer(nil)
				s.Config.ErrorLog = log.New(io.Discard, "", 0)
				s.StartTLS()
				e.Cleanup(s.Close)
				e.client.endpoint.Scheme, e.client.endpoint.Host = "https", s.Listener.Addr().String()
			},
			BadTLS,
			[]string{"cannot be trusted", "SSL_CERT_FILE"},
		},
		{
			"https that is http", func(e env) { e.client.endpoint.Scheme = "https" },
			BadTLS,
			[]string{"{host} speaks http, not https: check HF_ENDPOINT"},
		},
		{
			"no answer", func(e env) {
				e.client.http.Transport.(*http.Transport).ResponseHeaderTimeout = 20 * time.Millisecond
				e.hub.Fault(false, "GET /api/models", always, func(_ http.ResponseWriter, r *http.Request, _ http.Handler) { <-r.Context().Done() })
			},
			Timeout,
			[]string{"does not answer in time"},
		},
		{name: "stalled once", do: func(e env) {
			e.client.stall = 200 * time.Millisecond
			e.hub.Fault(true, "GET", once, stalled)
		}},
		{
			"stalled", func(e env) {
				e.client.stall, e.client.tries = 50*time.Millisecond, 1
				e.hub.Fault(true, "GET", always, stalled)
			},
			Timeout,
			[]string{"{storage} sent nothing for 50ms"},
		},
		{name: "no ranges", do: func(e env) { e.hub.Fault(true, "GET", always, noRanges) }},
		{name: "no ranges, cut", do: func(e env) {
			e.hub.Fault(true, "GET", 2, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				cut(12_345)(w, r, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { noRanges(w, r, next) }))
			})
			e.hub.Fault(true, "GET", always, noRanges)
		}},
		{
			"another range", func(e env) {
				e.hub.Fault(true, "GET", always, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
					r.Header.Set("Range", "bytes=1-8")
					next.ServeHTTP(w, r)
				})
			},
			Corrupted,
			[]string{"sends another part of model-0000", "bytes 1-8/"},
		},
		{
			"too long", func(e env) {
				e.hub.Fault(false, "GET "+cached+"config.json", always, func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
					w.Header().Set("Content-Length", "5000")
					w.Write(make([]byte, 5000))
				})
			},
			Corrupted,
			[]string{"sends 5000 bytes of config.json where 21 were asked for"},
		},
		{
			"too long, without saying so", func(e env) {
				e.hub.Fault(false, "GET "+cached+"config.json", always, func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
					w.(http.Flusher).Flush()
					w.Write([]byte(`{"model_type":"gpt2"} and more`))
				})
			},
			Corrupted,
			[]string{"sends more of config.json than the 21 bytes"},
		},
		{
			"too short", func(e env) {
				e.hub.Fault(false, "GET "+cached+"config.json", always, func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
					w.(http.Flusher).Flush()
					w.Write([]byte(`{}`))
				})
			},
			Cut,
			[]string{"{host} was cut"},
		},
		{
			"name that leads out", func(e env) { e.repo.Files["../x.json"] = []byte("x") },
			Unsafe,
			[]string{`the file name "../x.json" leads out`},
		},
		{
			"absolute name", func(e env) { e.repo.Files["/etc/x"] = []byte("x") },
			Unsafe,
			[]string{`the file name "/etc/x" leads out`},
		},
		{
			"hash that leads out", func(e env) {
				e.hub.Fault(false, "GET /api/models", always, listing(func(info map[string]any) {
					for i := range info["siblings"].([]any) {
						sibling(info, i)["blobId"] = "../../../x"
					}
				}))
			},
			NotAHub,
			[]string{"without its size and hash"},
		},
		{
			"commit that leads out", func(e env) {
				e.hub.Fault(false, "GET /api/models", always, listing(func(info map[string]any) { info["sha"] = "../../x" }))
			},
			NotAHub,
			[]string{"does not answer as the hub does"},
		},
		{
			"sizes left out", func(e env) {
				e.hub.Fault(false, "GET /api/models", always, listing(func(info map[string]any) {
					for i := range info["siblings"].([]any) {
						delete(sibling(info, i), "size")
						delete(sibling(info, i), "blobId")
						delete(sibling(info, i), "lfs")
					}
				}))
			},
			NotAHub,
			[]string{"without its size and hash: does HF_ENDPOINT name a mirror"},
		},
		{
			"answer without end", func(e env) {
				e.hub.Fault(false, "GET /api/models", always, func(w http.ResponseWriter, _ *http.Request, _ http.Handler) {
					for range maxListingBytes>>20 + 1 {
						w.Write(make([]byte, 1<<20))
					}
				})
			},
			NotAHub,
			[]string{"answers with more than 64.0 MiB"},
		},
		{
			"a login page", func(e env) {
				e.hub.Fault(false, "GET /api/models", always, func(w http.ResponseWriter, _ *http.Request, _ http.Handler) { io.WriteString(w, "<html>Log in") })
			},
			NotAHub,
			[]string{"does not answer as the hub does: check HF_ENDPOINT and proxies"},
		},
		{
			"a login page for files", func(e env) { e.hub.Fault(false, "HEAD", always, status(200)) },
			NotAHub,
			[]string{"no X-Repo-Commit"},
		},
		{
			"an error that is none of the hub's", func(e env) { e.hub.Fault(false, "GET /api/models", always, status(418)) },
			NotAHub,
			[]string{"answers 418"},
		},
		{name: "signature expired", do: func(e env) {
			e.hub.Fault(true, "GET", 3, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				e.hub.Expire()
				next.ServeHTTP(w, r)
			})
		}},
		{
			"storage refuses", func(e env) { e.hub.Fault(true, "GET", always, status(403)) },
			Unavailable,
			[]string{"{storage} refuses model-0000", "403 Forbidden"},
		},
		{name: "a mirror that redirects to another hub", do: func(e env) {
			e.hub.Token = secret
			token(e)
			e.hub.Fault(false, "HEAD /owner", always, func(w http.ResponseWriter, r *http.Request, next http.Handler) {
				if strings.HasPrefix(r.Host, "localhost") {
					next.ServeHTTP(w, r)
					return
				}
				http.Redirect(w, r, strings.Replace(e.hub.URL, "127.0.0.1", "localhost", 1)+r.URL.Path, http.StatusPermanentRedirect)
			})
		}},
		{
			"redirect to a file", func(e env) {
				e.hub.Fault(false, "HEAD", always, status(302, "X-Repo-Commit", commit, "Location", "file:///etc/passwd"))
			},
			Unsafe,
			[]string{"redirects to an address that is not valid"},
		},
		{
			"redirect from https to http", func(e env) {
				s := httptest.NewTLSServer(http.RedirectHandler(e.hub.URL, http.StatusTemporaryRedirect))
				e.Cleanup(s.Close)
				e.client.http.Transport = s.Client().Transport
				e.client.endpoint.Scheme, e.client.endpoint.Host = "https", s.Listener.Addr().String()
			},
			Unsafe,
			[]string{"redirects from https to http, which is not followed"},
		},
		{
			"redirect in a circle", func(e env) {
				e.hub.Fault(false, "GET /api/models", always, status(307, "Location", "/api/models/owner/model/revision/main"))
			},
			NotAHub,
			[]string{"redirects more than 5 times"},
		},
		{
			"another file than listed", func(e env) {
				e.hub.Fault(false, "HEAD", always, changed(func(r *httptest.ResponseRecorder) { r.Header().Set("X-Linked-Etag", `"`+strings.Repeat("0", 64)+`"`) }))
			},
			Corrupted,
			[]string{"the hub serves another "},
		},
		{
			"compressed", func(e env) {
				e.hub.Fault(true, "GET", always, changed(func(r *httptest.ResponseRecorder) { r.Header().Set("Content-Encoding", "gzip") }))
			},
			NotAHub,
			[]string{"compresses model-0000"},
		},
		{
			"disk too small", func(e env) {
				e.hub.Fault(false, "GET /api/models", always, listing(func(info map[string]any) {
					for i := range info["siblings"].([]any) {
						if s := sibling(info, i); s["rfilename"] == "model-00001-of-00002.safetensors" {
							s["lfs"].(map[string]any)["size"] = int64(1) << 55
						}
					}
				}))
			},
			NoSpace,
			[]string{"owner/model: 33554432.0 GiB are to be fetched, and the disk of ", " free, ", " too little"},
		},
		{
			"no weights", func(e env) {
				e.repo.Files = map[string][]byte{"config.json": []byte("{}"), "tokenizer.json": []byte("{}"), "model.gguf": []byte("GGUF")}
			},
			NoWeights,
			[]string{"no weights are there"},
		},
		{
			"weights in parts unknown", func(e env) {
				delete(e.repo.Files, "model.safetensors.index.json")
				delete(e.repo.Files, "pytorch_model.bin")
			},
			NoWeights,
			[]string{"there are weights, but neither model.safetensors"},
		},
		{
			"a part missing", func(e env) { delete(e.repo.Files, "model-00002-of-00002.safetensors") },
			NoWeights,
			[]string{`names "model-00002-of-00002.safetensors", which is not there`},
		},
		{
			"offline", func(e env) { e.client.offline = true },
			Offline,
			[]string{"HF_HUB_OFFLINE is set"},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			repo := whole()
			h, c := setUp(t, repo)
			test.do(env{t, h, repo, c})
			s, err := pullAll(t.Context(), c, "main")
			for _, r := range h.Requests() {
				if r.Authorization != "" && (r.Storage || r.Host != strings.TrimPrefix(h.URL, "http://")) {
					t.Errorf("the token went to another host: %+v", r)
				}
			}
			if test.kind == "" {
				if err != nil {
					t.Fatal(err)
				}
				wantSnapshot(t, s, repo)
				return
			}
			var e *Error
			if !errors.As(err, &e) || e.Kind != test.kind {
				t.Fatalf("error %v, want one of kind %q", err, test.kind)
			}
			text := err.Error()
			for _, says := range append(test.says, name+": ") {
				says = strings.NewReplacer("{host}", strings.TrimPrefix(h.URL, "http://"), "{hub}", h.URL, "{storage}", strings.TrimPrefix(h.Storage, "http://")).Replace(says)
				if !strings.Contains(text, says) {
					t.Errorf("%q does not say %q", text, says)
				}
			}
			if strings.Count(text, name+": ") != 1 {
				t.Errorf("%q does not name the model once", text)
			}
			if strings.ContainsAny(text, "\n\r") || strings.Contains(text, secret) || strings.Contains(text, "Signature") {
				t.Errorf("not fit to print: %q", text)
			}
			if _, err := Find(name, "main"); !errors.Is(err, ErrMissing) {
				t.Errorf("after a failure Find says %v", err)
			}
		})
	}
}

// A failed pull leaves nothing that another program would take for a model.
func TestNoSnapshotBeforeAllIsHere(t *testing.T) {
	h, c := setUp(t, whole())
	h.Fault(true, "GET", -1, changed(flipped))
	if _, err := pullAll(t.Context(), c, "main"); err == nil {
		t.Fatal("damaged weights were taken")
	}
	folder := repoFolder(c.cache, name)
	for _, sub := range []string{"snapshots", "refs"} {
		if _, err := os.Stat(filepath.Join(folder, sub)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is there", sub)
		}
	}
	blobs, err := os.ReadDir(filepath.Join(folder, "blobs"))
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range blobs {
		content, err := os.ReadFile(filepath.Join(folder, "blobs", b.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if sum := b.Name(); !strings.Contains(sum, ".nativebench.") && hubtest.SHA256(content) != sum && hubtest.GitHash(content) != sum {
			t.Errorf("the blob %s has other content", sum)
		}
	}
}

// config.json, without which nothing is a model, gets its name last.
func TestConfigIsLinkedLast(t *testing.T) {
	repo := whole()
	_, c := setUp(t, repo)
	dir := filepath.Join(repoFolder(c.cache, name), "snapshots", commit)
	if err := os.MkdirAll(filepath.Join(dir, "config.json", "in the way"), 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := pullAll(t.Context(), c, ""); err == nil || !strings.Contains(err.Error(), "config.json") {
		t.Fatalf("with a directory in the way of config.json: %v", err)
	}
	names, _, _ := chosenOf(repo)
	for _, n := range names {
		if st, err := os.Stat(filepath.Join(dir, n)); err != nil || n != "config.json" && st.Size() != int64(len(repo.Files[n])) {
			t.Errorf("%s: %v", n, err)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "../../refs/main")); !errors.Is(err, os.ErrNotExist) {
		t.Error("the branch points to it")
	}
}

func TestMovedRepository(t *testing.T) {
	repo := whole()
	h, c := setUp(t, repo)
	h.Token, repo.Gated, repo.Grant = secret, "auto", true
	c.token = secret
	h.Move("old/name", name)
	plan, err := c.Plan(t.Context(), "old/name", "v1.0")
	if err != nil {
		t.Fatal(err)
	}
	if plan.Repo != "old/name" || plan.MovedTo != name || !plan.Gated {
		t.Errorf("plan %+v", plan)
	}
	made, err := c.Pull(t.Context(), plan, nil)
	if err != nil {
		t.Fatal(err)
	}
	wantSnapshot(t, made, repo)
	if _, err := Find("old/name", "v1.0"); err != nil {
		t.Error(err)
	}
}

// The token goes to the endpoint's host and port alone, whatever it redirects to.
func TestTokenStaysAtTheEndpoint(t *testing.T) {
	h, c := setUp(t, whole())
	h.Token, c.token, c.tokenFrom = secret, secret, "HF_TOKEN"
	var got []string
	other := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		got = append(got, r.Header.Get("Authorization"), r.Header.Get("Cookie"))
	}))
	defer other.Close()
	h.Fault(false, "GET /api/models", -1, status(307, "Location", other.URL+"/api"))
	if _, err := c.Plan(t.Context(), name, ""); err == nil || strings.Contains(err.Error(), secret) {
		t.Fatalf("error %v", err)
	}
	if len(got) == 0 || strings.Join(got, "") != "" {
		t.Errorf("another host got %q", got)
	}
	if err := filepath.WalkDir(os.Getenv("HF_HOME"), func(p string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			var b []byte
			if b, err = os.ReadFile(p); bytes.Contains(b, []byte(secret)) {
				t.Errorf("the token is in %s", p)
			}
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if s := fmt.Sprintf("%v %+v", c.endpoint, mustPlan(t, h)); strings.Contains(s, secret) {
		t.Error("the token is in a plan")
	}
}

func mustPlan(t *testing.T, h *hubtest.Hub) *Plan {
	t.Helper()
	h.Forget()
	c := client(t)
	p, err := c.Plan(context.Background(), name, "")
	if err != nil {
		t.Fatal(err)
	}
	return p
}
