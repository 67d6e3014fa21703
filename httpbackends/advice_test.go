package httpbackends

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/nativebench/nativebench/internal/bench"
)

// What is wrong with a key is said as that, whichever path finds it out.
func TestDenied(t *testing.T) {
	to, err := url.Parse("http://" + newTestServer(t).Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	for _, status := range []int{http.StatusUnauthorized, http.StatusForbidden} {
		for _, guarded := range []string{"/health", "/props", "/v1/completions"} {
			guard := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == guarded {
					http.Error(w, "not you", status)
					return
				}
				httputil.NewSingleHostReverseProxy(to).ServeHTTP(w, r)
			}))
			defer guard.Close()
			for key, want := range map[string]string{
				"":       "it wants an API key: give --api-key-env llama-server=VARIABLE",
				"sesame": "it refuses the API key in the variable that --api-key-env llama-server names",
			} {
				err := openAndAsk(t, Config{Server: llamaServer(), Endpoint: guard.URL, APIKey: key})
				if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "not you") || strings.Contains(err.Error(), "another kind") || bench.ClassOf(err) != bench.Refused {
					t.Errorf("%d at %s, key %q: class %q: %v", status, guarded, key, bench.ClassOf(err), err)
				}
			}
		}
	}
}

// openAndAsk is the first error of opening a server and asking it once.
func openAndAsk(t *testing.T, cfg Config) error {
	t.Helper()
	b, err := Open(t.Context(), cfg)
	if err != nil {
		return err
	}
	defer b.Close()
	s, err := b.NewSession(bench.Limits{})
	if err != nil {
		return err
	}
	defer s.Close()
	if err := s.Prepare(testRequest(true)); err != nil {
		return err
	}
	return s.Generate(t.Context(), bench.NewTrace(8))
}

// https at a port that speaks no TLS: silent, or hanging after the handshake of
// TCP.
func TestNoHandshake(t *testing.T) {
	srv := newTestServer(t)
	release := make(chan struct{})
	defer close(release)
	srv.receive(func(net.Conn) { <-release })
	_, err := Open(t.Context(), Config{Server: llamaServer(), Endpoint: "https://" + srv.Addr().String(), ConnectTimeout: 50 * time.Millisecond})
	if err == nil || !strings.Contains(err.Error(), "it accepted the connection, but no TLS handshake came about within 50ms: try http://") || strings.Contains(err.Error(), "is it running") {
		t.Errorf("%v", err)
	}
}

// A server that takes connections and says nothing is named as that.
func TestHangingServer(t *testing.T) {
	hang := make(chan struct{})
	for name, handler := range map[string]http.HandlerFunc{
		"did not answer within 50ms":       func(http.ResponseWriter, *http.Request) { <-hang },
		"answer was not whole within 50ms": func(w http.ResponseWriter, _ *http.Request) { w.(http.Flusher).Flush(); <-hang },
	} {
		srv := httptest.NewServer(handler)
		b := &backend{cfg: Config{Server: llamaServer()}}
		if err := b.parse(srv.URL); err != nil {
			t.Fatal(err)
		}
		client := b.client()
		client.Timeout = 50 * time.Millisecond
		err := b.call(context.Background(), client, "GET", "/health", nil, nil)
		if err == nil || !strings.Contains(err.Error(), name) || strings.Contains(err.Error(), "Client.Timeout") || bench.ClassOf(err) != bench.Timeout {
			t.Errorf("%s: %v", name, err)
		}
		defer srv.Close()
	}
	close(hang)
}

// A server that is still loading is busy, so that it can be waited for.
func TestLoadingIsBusy(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "Loading model", http.StatusServiceUnavailable)
	}))
	defer srv.Close()
	if _, err := Open(t.Context(), Config{Server: llamaServer(), Endpoint: srv.URL}); bench.ClassOf(err) != bench.Busy {
		t.Errorf("class %q: %v", bench.ClassOf(err), err)
	}
}
