package httpbackends

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/nativebench/nativebench/internal/bench"
)

// Config says which server to drive, and how.
type Config struct {
	Server   Server
	Endpoint string // URL of the server, for example http://127.0.0.1:8080
	Model    string // name to ask for; empty: what the server calls its model

	// Chat asks through the server's chat route with Request.Message: the
	// server renders the prompt with its own template.
	Chat bool
	// Launched tells that nativebench started the server with the flags of its
	// row, so that its prefix cache is off if it is to be off.
	Launched bool

	// APIKey is sent as a bearer token, and shows up nowhere else.
	APIKey string
	// PrefixCache lets the server reuse the KV cache of earlier prompts.
	PrefixCache bool
	// Context is how many tokens a request may hold, prompt and output. It is
	// told to servers that would choose a smaller number themselves and cut
	// the prompt without a word (Ollama); 0: it is not told.
	Context int
	// TokenIDs asks for the token ids of the answer, for comparing backends;
	// it costs the server time, so not for measuring.
	TokenIDs bool
	// ConnectTimeout bounds opening one connection; 0: 10 seconds.
	ConnectTimeout time.Duration
	// Insecure takes any TLS certificate; Info notes it.
	Insecure bool

	Weights   string // for Info, if the caller knows better than the server
	Synthetic bool   // for Info
	Device    string // for Info
}

// backend is a server that was found ready.
type backend struct {
	cfg    Config
	info   bench.Info
	addr   string      // host:port
	host   string      // of the Host field
	path   string      // before the routes
	tls    *tls.Config // nil: plain
	loop   *loop       // of plain connections
	stamps *os.File    // keepStamps

	// closes is 1 if the server was found to close the connection after a sync
	// answer, or a stream, whatever its header said. Atomic.
	closes [2]uint32
}

var _ bench.Backend = (*backend)(nil)

// Open checks that the server at the endpoint is ready and asks it who it is.
// The endpoint is reached directly, never through a proxy of the environment.
func Open(ctx context.Context, cfg Config) (bench.Backend, error) {
	name := cfg.Server.Name
	if cfg.Server.Dialect == nil {
		return nil, fmt.Errorf("cannot open %q: it is no row of a server", name)
	}
	if cfg.ConnectTimeout == 0 {
		cfg.ConnectTimeout = 10 * time.Second
	}
	if cfg.TokenIDs && !cfg.Server.Tokens {
		return nil, fmt.Errorf("%s does not tell token ids: leave that option off", name)
	}
	if cfg.Chat {
		if cfg.Server.ChatRoute == "" {
			return nil, fmt.Errorf("%s has no chat route: ask for --route completions", name)
		}
		cfg.Server.Dialect, cfg.Server.Route, cfg.Server.StreamRoute = OpenAIChat{}, cfg.Server.ChatRoute, ""
	}
	b := &backend{cfg: cfg}
	if err := b.parse(cfg.Endpoint); err != nil {
		return nil, err
	}
	if b.tls == nil {
		l, err := newLoop()
		if err != nil {
			return nil, err
		}
		b.loop = l
	}
	b.stamps = keepStamps()
	if err := b.greet(ctx); err != nil {
		b.Close()
		return nil, err
	}
	return b, nil
}

// greet checks that the server is ready and asks it who it is.
func (b *backend) greet(ctx context.Context) error {
	cfg, name := &b.cfg, b.cfg.Server.Name
	conn, err := b.dial(ctx)
	if err != nil {
		return err
	}
	opened := conn.opened
	conn.Close()

	client := b.client()
	get := func(path string, into any) error { return b.get(ctx, client, path, into) }
	if err := get(cfg.Server.Health, nil); err != nil {
		return fmt.Errorf("%s at %s is not ready: %w", name, b.where(), err)
	}
	b.info = bench.Info{
		Backend: name, Engine: cfg.Server.Engine, Device: cfg.Device,
		Model: cfg.Model, Weights: cfg.Weights, Synthetic: cfg.Synthetic,
		Substitutions: cfg.Server.Substitutions, Notes: append([]string(nil), cfg.Server.Notes...),
	}
	if cfg.Server.Identify != nil {
		if err := cfg.Server.Identify(&b.info, get); err != nil {
			return fmt.Errorf("%s at %s does not say who it is, so it may be another kind of server: %w", name, b.where(), err)
		}
	}
	if cfg.Model != "" && b.info.Model != "" && cfg.Model != b.info.Model {
		return fmt.Errorf("%s at %s serves model %q, not %q: start it with that model, or give another endpoint", name, b.where(), b.info.Model, cfg.Model)
	}
	if b.tls != nil && cfg.Insecure {
		b.info.Notes = append(b.info.Notes, "TLS certificates were not verified (--insecure)")
	}
	if b.cfg.Model == "" {
		b.cfg.Model = b.info.Model
	}
	b.info.Notes = append(b.info.Notes, fmt.Sprintf("opening a connection took %.3f ms (the first one; not part of any request's time)", float64(opened)/1e6))
	return nil
}

// CheckEndpoint says what is wrong with the URL of a server's endpoint.
func CheckEndpoint(row Server, endpoint string) error {
	return (&backend{cfg: Config{Server: row}}).parse(endpoint)
}

// parse takes the endpoint apart.
func (b *backend) parse(endpoint string) error {
	u, err := url.Parse(endpoint)
	if err != nil {
		// The error of url.Parse quotes the URL, which may hold a password.
		return fmt.Errorf("the endpoint of %s is not a URL: give one such as http://127.0.0.1:8080", b.cfg.Server.Name)
	}
	port := "80"
	switch u.Scheme {
	case "http":
	case "https":
		port = "443"
		b.tls = &tls.Config{ServerName: u.Hostname(), NextProtos: []string{"http/1.1"}, MinVersion: tls.VersionTLS12, InsecureSkipVerify: b.cfg.Insecure}
	default:
		return fmt.Errorf("the endpoint of %s, %s, is not an http or https URL: give one such as http://127.0.0.1:8080", b.cfg.Server.Name, u.Redacted())
	}
	switch {
	case u.Hostname() == "":
		return fmt.Errorf("the endpoint of %s, %s, names no host: give a URL such as http://127.0.0.1:8080", b.cfg.Server.Name, u.Redacted())
	case u.User != nil:
		return fmt.Errorf("the endpoint of %s has a user name or password in it: give an API key instead", b.cfg.Server.Name)
	case u.RawQuery != "" || u.Fragment != "":
		return fmt.Errorf("the endpoint of %s, %s, has a query or fragment: give a URL such as http://127.0.0.1:8080", b.cfg.Server.Name, u.Redacted())
	}
	if u.Port() != "" {
		port = u.Port()
	}
	b.addr, b.host = net.JoinHostPort(u.Hostname(), port), u.Host
	b.path = strings.TrimSuffix(u.EscapedPath(), "/")
	return nil
}

// where is the endpoint as it may be shown.
func (b *backend) where() string {
	scheme := "http"
	if b.tls != nil {
		scheme = "https"
	}
	return scheme + "://" + b.host + b.path
}

// dial opens a connection for timed requests.
func (b *backend) dial(ctx context.Context) (*wire, error) {
	limited, cancel := context.WithTimeout(ctx, b.cfg.ConnectTimeout)
	defer cancel()
	conn, err := open(limited, b.addr, b.tls, b.loop)
	if err == nil {
		return conn, nil
	}
	if ctx.Err() == nil && limited.Err() != nil {
		err = fmt.Errorf("nobody answered within %s", b.cfg.ConnectTimeout)
	}
	if ctx.Err() != nil {
		return nil, stopped(ctx, "cannot connect to %s at %s", b.cfg.Server.Name, b.where())
	}
	var untrusted *tls.CertificateVerificationError
	var foreign tls.RecordHeaderError
	switch {
	case errors.As(err, &untrusted):
		return nil, bench.Fail(bench.Connect, "cannot trust %s at %s: add the CA of its certificate to those of this system, or take any certificate with --insecure: %w", b.cfg.Server.Name, b.where(), err)
	case errors.As(err, &foreign):
		return nil, bench.Fail(bench.Connect, "cannot connect to %s at %s: what answers there speaks no TLS, so try http:// (%w)", b.cfg.Server.Name, b.where(), err)
	}
	return nil, bench.Fail(bench.Connect, "cannot connect to %s at %s: is it running there? %w", b.cfg.Server.Name, b.where(), err)
}

// client is for requests off the clock. Like a session it asks no proxy and
// follows no redirect.
func (b *backend) client() *http.Client {
	return &http.Client{
		Transport:     &http.Transport{DisableKeepAlives: true, TLSClientConfig: b.tls},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Timeout:       30 * time.Second,
	}
}

// get fetches a path of the endpoint off the clock; into may be nil.
func (b *backend) get(ctx context.Context, client *http.Client, path string, into any) (err error) {
	defer func() {
		// net/http and encoding/json quote what they could not read.
		if err != nil && b.hide(err.Error()) != err.Error() {
			err = errors.New(b.hide(err.Error()))
		}
	}()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, b.where()+path, nil)
	if err != nil {
		return err
	}
	if b.cfg.APIKey != "" {
		req.Header.Set("Authorization", "Bearer "+b.cfg.APIKey)
	}
	resp, err := client.Do(req)
	if err != nil {
		var wrapped *url.Error
		if errors.As(err, &wrapped) {
			err = wrapped.Err
		}
		return fmt.Errorf("GET %s: %w", path, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 8<<20))
	if err != nil {
		return fmt.Errorf("GET %s: %w", path, err)
	}
	if resp.StatusCode != http.StatusOK {
		message, _, _ := errorText(body)
		return fmt.Errorf("GET %s answers %d: %s", path, resp.StatusCode, message)
	}
	if into == nil {
		return nil
	}
	if err := json.Unmarshal(body, into); err != nil {
		return fmt.Errorf("GET %s answers with what is not the expected JSON: %w", path, err)
	}
	return nil
}

// hide takes the API key out of a text, also where it was escaped as JSON may
// be, quoted by us, or cut short.
func (b *backend) hide(text string) string {
	const hidden = "[API key]"
	if b.cfg.APIKey == "" {
		return text
	}
	inside := func(key string) string { // of a string
		quoted := strconv.Quote(key)
		return quoted[1 : len(quoted)-1]
	}
	forms := []string{b.cfg.APIKey, inside(b.cfg.APIKey)}
	for _, key := range forms {
		forms = append(forms, strings.ReplaceAll(key, "/", `\/`))
	}
	for _, key := range forms {
		forms = append(forms, inside(key))
	}
	for _, key := range forms {
		text = strings.ReplaceAll(text, key, hidden)
	}
	if !strings.Contains(text, "…") {
		return text
	}
	for _, key := range forms {
		for n := len(key) - 1; n >= 4; n-- { // fewer characters tell nothing
			text = strings.NewReplacer(key[:n]+"…", hidden+"…", key[:n]+"\"…", hidden+"\"…").Replace(text)
		}
	}
	return text
}

func (b *backend) Info() bench.Info {
	info := b.info
	info.Substitutions = append([]string(nil), info.Substitutions...)
	info.Notes = append([]string(nil), info.Notes...)
	return info
}

// Close ends what the sessions wait with: close them before.
func (b *backend) Close() error {
	b.stamps.Close()
	if b.loop == nil {
		return nil
	}
	return b.loop.close()
}

// NewSession opens the session's connection.
func (b *backend) NewSession(limits bench.Limits) (bench.Session, error) {
	s := newSession(b, limits)
	if err := s.connect(context.Background()); err != nil { // dial has its own limit
		return nil, err
	}
	return s, nil
}

// stopped makes the failure for a context that has ended.
func stopped(ctx context.Context, format string, args ...any) error {
	what := fmt.Sprintf(format, args...)
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return bench.Fail(bench.Timeout, "%s: the time limit passed", what)
	}
	return bench.Fail(bench.Cancelled, "%s: cancelled", what)
}
