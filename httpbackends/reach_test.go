package httpbackends

import (
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nativebench/nativebench/internal/bench"
)

// A certificate of an unknown CA is refused with advice, on the clock and off
// it, and taken with Insecure, which Info says.
func TestUnknownCA(t *testing.T) {
	srv := httptest.NewUnstartedServer(fakeServer(t).Config.Handler)
	srv.Config.ErrorLog = log.New(io.Discard, "", 0) // of handshakes that fail
	srv.StartTLS()
	defer srv.Close()
	_, err := Open(t.Context(), Config{Server: llamaServer(), Endpoint: srv.URL})
	for _, want := range []string{"cannot trust llama-server at " + srv.URL, "add the CA", "--insecure", "unknown authority"} {
		if bench.ClassOf(err) != bench.Connect || !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("class %q, without %q: %v", bench.ClassOf(err), want, err)
		}
	}
	b, err := Open(t.Context(), Config{Server: llamaServer(), Endpoint: srv.URL, Insecure: true})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	const note = "TLS certificates were not verified (--insecure)"
	if !slices.Contains(b.Info().Notes, note) {
		t.Errorf("notes %q", b.Info().Notes)
	}
	for _, stream := range []bool{true, false} {
		ask(t, openSession(t, b), testRequest(stream))
	}
	plain := newTestServer(t).open(t, func(c *Config) { c.Insecure = true })
	if slices.Contains(plain.Info().Notes, note) {
		t.Error("the note stands where there is no TLS")
	}
}

// A plain server at an https endpoint is told apart from one that is down.
func TestNoTLSThere(t *testing.T) {
	srv := httptest.NewServer(http.NotFoundHandler())
	defer srv.Close()
	_, err := Open(t.Context(), Config{Server: llamaServer(), Endpoint: strings.Replace(srv.URL, "http:", "https:", 1)})
	if bench.ClassOf(err) != bench.Connect || !strings.Contains(fmt.Sprint(err), "speaks no TLS, so try http://") {
		t.Errorf("class %q: %v", bench.ClassOf(err), err)
	}
}

const proxyEnv = "NATIVEBENCH_TEST_PROXY"

// No proxy of the environment is asked, on the clock or off it. The environment
// must be set before net/http first looks, so this runs in a process of its own;
// and the name must not be one that is never proxied, as those of this host.
func TestProxyIsIgnored(t *testing.T) {
	if os.Getenv(proxyEnv) != "" {
		for _, scheme := range []string{"http", "https"} {
			b := &backend{cfg: Config{Server: llamaServer(), Endpoint: scheme + "://nowhere.invalid", ConnectTimeout: time.Minute}}
			if err := b.parse(b.cfg.Endpoint); err != nil {
				t.Fatal(err)
			}
			if _, err := b.dial(context.Background()); err == nil || !strings.Contains(err.Error(), "lookup nowhere.invalid") {
				t.Errorf("dial: %v", err)
			}
			if err := b.call(context.Background(), b.client(), http.MethodGet, "/health", nil, nil); err == nil || !strings.Contains(err.Error(), "lookup nowhere.invalid") {
				t.Errorf("get: %v", err)
			}
			req := httptest.NewRequest(http.MethodGet, b.where(), nil)
			if u, err := http.ProxyFromEnvironment(req); err != nil || u == nil { // this test could not fail
				t.Errorf("the environment has no proxy for %s: %v, %v", b.where(), u, err)
			}
		}
		return
	}
	var asked atomic.Int32
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	proxy := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { asked.Add(1) })}
	go proxy.Serve(l) //nolint:errcheck // ends with Close
	defer proxy.Close()
	cmd := exec.Command(os.Args[0], "-test.run=^TestProxyIsIgnored$", "-test.v")
	cmd.Env = append(os.Environ(), proxyEnv+"=1", "NO_PROXY=", "no_proxy=")
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"} {
		cmd.Env = append(cmd.Env, name+"=http://"+l.Addr().String())
	}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: TestProxyIsIgnored") || asked.Load() != 0 {
		t.Errorf("%v, the proxy was asked %d times\n%s", err, asked.Load(), out)
	}
}
