package hub

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const (
	defaultEndpoint = "https://huggingface.co"
	maxRedirects    = 5
	maxListingBytes = 64 << 20

	stallTime = 30 * time.Second // without a byte, then the connection is given up
)

var errStalled = errors.New("no data")

// Client downloads models from the hub into the cache. It may be used by
// several goroutines.
type Client struct {
	cache     string
	endpoint  *url.URL
	token     string
	tokenFrom string // where the token was found, for messages
	tokenPath string // where a token may be put
	offline   bool
	http      *http.Client

	// What tests make smaller.
	blockBytes  int64         // of which it is known whether they are on the disk
	blocks      int64         // most blocks of one request
	connections int           // at once
	tries       int           // of a request, without progress
	pause       time.Duration // before the second try; doubled after each
	longestWait time.Duration // that a server may ask for
	stall       time.Duration
}

// NewClient is set up by the environment, as the hub's own clients are:
// HF_ENDPOINT, HF_TOKEN (else the file $HF_TOKEN_PATH, else token in HF_HOME),
// HF_HUB_OFFLINE, CacheDir, and HTTPS_PROXY, NO_PROXY and SSL_CERT_FILE.
func NewClient() (*Client, error) {
	cache, err := CacheDir()
	if err != nil {
		return nil, err
	}
	text := strings.TrimRight(cmp.Or(os.Getenv("HF_ENDPOINT"), defaultEndpoint), "/")
	endpoint, err := url.Parse(text)
	if err != nil || endpoint.Host == "" || endpoint.Scheme != "http" && endpoint.Scheme != "https" || endpoint.User != nil || endpoint.RawQuery != "" || endpoint.Fragment != "" {
		return nil, errors.New("HF_ENDPOINT is no address of a hub: give https://HOST")
	}
	c := &Client{
		cache: cache, endpoint: endpoint, offline: Forbidden(),
		blockBytes: 4 << 20, blocks: 16, connections: 8, tries: 5, pause: time.Second, longestWait: 5 * time.Minute, stall: stallTime,
	}
	if err := c.findToken(); err != nil {
		return nil, err
	}
	transport := &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		TLSHandshakeTimeout:    10 * time.Second,
		ResponseHeaderTimeout:  30 * time.Second,
		MaxIdleConnsPerHost:    c.connections,
		IdleConnTimeout:        30 * time.Second,
		DisableCompression:     true, // ranges and lengths are of the content itself
		MaxResponseHeaderBytes: 1 << 20,
		// One TCP connection for each range: HTTP/2 would send all over one.
		Protocols: new(http.Protocols),
	}
	transport.Protocols.SetHTTP1(true)
	c.http = &http.Client{
		Transport: transport,
		// Redirects are followed by hand: the token must not go along.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return c, nil
}

// Forbidden tells that the environment forbids to ask the hub: HF_HUB_OFFLINE, or
// Transformers' name for it.
func Forbidden() bool { return isTrue("HF_HUB_OFFLINE") || isTrue("TRANSFORMERS_OFFLINE") }

// isTrue reads a variable as _is_true in constants.py does.
func isTrue(name string) bool {
	switch strings.ToUpper(os.Getenv(name)) {
	case "1", "ON", "YES", "TRUE":
		return true
	}
	return false
}

// findToken reads the token as get_token in utils/_auth.py does.
func (c *Client) findToken() error {
	home, err := homeDir()
	if err != nil {
		return err
	}
	c.tokenPath = filepath.Join(home, "token")
	if p := os.Getenv("HF_TOKEN_PATH"); p != "" {
		if c.tokenPath, err = expand(p); err != nil {
			return err
		}
	}
	for _, name := range []string{"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"} {
		if c.token = strings.TrimSpace(os.Getenv(name)); c.token != "" {
			c.tokenFrom = name
			break
		}
	}
	if c.token == "" {
		text, err := readBounded(c.tokenPath, 64<<10)
		if err != nil {
			if errors.Is(err, os.ErrNotExist) {
				return nil
			}
			return fmt.Errorf("the token file: %w; make it readable, or set HF_TOKEN", err)
		}
		c.token, c.tokenFrom = strings.TrimSpace(string(text)), c.tokenPath
	}
	if strings.ContainsFunc(c.token, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return fmt.Errorf("the token in %s has blanks or unprintable characters in it: copy it again from %s/settings/tokens", c.tokenFrom, c.endpoint)
	}
	return nil
}

// target is what a request is about, for messages.
type target struct{ repo, revision, file string }

// send sends one request and follows redirects; the token goes along while they
// stay on the endpoint's host, and nowhere else. Without follow, the redirect
// from the hub to the host that stores the file is the answer: it says which
// file that is. The caller closes the body.
func (c *Client) send(ctx context.Context, method string, to *url.URL, header http.Header, follow bool) (*http.Response, error) {
	for range maxRedirects {
		req, err := http.NewRequestWithContext(ctx, method, to.String(), nil)
		if err != nil {
			return nil, failure(Unsafe, "an address that the hub named is not valid")
		}
		for k, v := range header {
			req.Header[k] = v
		}
		req.Header.Set("User-Agent", "nativebench")
		req.Header.Set("Accept-Encoding", "identity")
		if c.token != "" && c.atEndpoint(to) {
			req.Header.Set("Authorization", "Bearer "+c.token)
		}
		r, err := c.http.Do(req)
		if err != nil {
			return nil, c.netFailure(ctx, to.Host, err)
		}
		if r.StatusCode < 300 || r.StatusCode > 399 || r.Header.Get("Location") == "" {
			return r, nil
		}
		next, err := to.Parse(r.Header.Get("Location"))
		switch {
		case err != nil || next.Host == "" || next.Scheme != "http" && next.Scheme != "https" || next.User != nil:
			r.Body.Close()
			return nil, failure(Unsafe, "%s redirects to an address that is not valid: check HF_ENDPOINT and proxies", to.Host)
		case to.Scheme == "https" && next.Scheme != "https":
			r.Body.Close()
			return nil, failure(Unsafe, "%s redirects from https to http, which is not followed: check HF_ENDPOINT and proxies", to.Host)
		case !c.atEndpoint(next) && !follow && r.Header.Get("X-Repo-Commit") != "":
			return r, nil // not the next hub of a mirror, but the storage host
		}
		r.Body.Close()
		to = next
	}
	return nil, failure(NotAHub, "%s redirects more than %d times: check HF_ENDPOINT", to.Host, maxRedirects)
}

// Ping is an error where the endpoint gives no answer at all. It tries once.
func (c *Client) Ping(ctx context.Context) error {
	r, err := c.send(ctx, http.MethodHead, c.at(""), nil, true)
	if err != nil {
		return err
	}
	return r.Body.Close()
}

// watch makes a context that ends when a body stalls: reading it through
// watched must yield bytes every c.stall. stop frees both.
func (c *Client) watch(parent context.Context) (ctx context.Context, watched func(io.Reader) io.Reader, stop func()) {
	ctx, cancel := context.WithCancelCause(parent)
	var timer *time.Timer
	watched = func(r io.Reader) io.Reader {
		timer = time.AfterFunc(c.stall, func() { cancel(errStalled) })
		return watchedReader{r, timer, c.stall}
	}
	return ctx, watched, func() {
		if timer != nil {
			timer.Stop()
		}
		cancel(nil)
	}
}

type watchedReader struct {
	io.Reader
	timer *time.Timer
	limit time.Duration
}

func (w watchedReader) Read(p []byte) (int, error) {
	n, err := w.Reader.Read(p)
	if n > 0 {
		w.timer.Reset(w.limit)
	}
	return n, err
}

// atEndpoint tells whether an address is on the endpoint's own host and port:
// only there the token is sent.
func (c *Client) atEndpoint(u *url.URL) bool {
	return u.Scheme == c.endpoint.Scheme && strings.EqualFold(u.Host, c.endpoint.Host)
}

// at is an address at the endpoint; the parts are escaped.
func (c *Client) at(query string, parts ...string) *url.URL {
	text := c.endpoint.String()
	for _, p := range parts {
		text += "/" + p
	}
	u, err := url.Parse(text)
	if err != nil {
		panic(err) // the endpoint was parsed, the parts are escaped
	}
	u.RawQuery = query
	return u
}

// persist calls do until it succeeds, fails for good, or has failed tries times
// in a row without progress. It waits as long as the server asks, if that is
// not too long. say hears why it waits.
func (c *Client) persist(ctx context.Context, say func(string), do func() (progress bool, err error)) error {
	pause := c.pause
	for failed := 0; ; {
		moved, err := do()
		if err == nil {
			return nil
		}
		var e *Error
		if !errors.As(err, &e) || !e.temporary {
			return err
		}
		if failed++; moved {
			failed, pause = 1, c.pause
		}
		switch {
		case failed >= c.tries && failed == 1:
			return err
		case failed >= c.tries:
			return fmt.Errorf("%w (tried %d times)", err, failed)
		}
		wait := pause
		pause *= 2
		if e.wait > 0 {
			wait = e.wait
		}
		if wait > c.longestWait {
			return fmt.Errorf("%w (it asks to wait %s, longer than the %s that are waited)", err, wait.Round(time.Second), c.longestWait)
		}
		say(fmt.Sprintf("%s: trying again in %s", e.Kind, wait.Round(time.Second)))
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
