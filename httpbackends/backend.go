package httpbackends

import (
	"bytes"
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

	// Version and Build are for Info, if the server does not tell its version:
	// of the Python environment that it was started from.
	Version, Build string

	// Samplings are what will be asked for, so that Info names the substitutions
	// that are made and no other; none: that is not known, and it names all.
	Samplings []bench.Sampling

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
	get := func(path string, into any) error { return b.call(ctx, client, http.MethodGet, path, nil, into) }
	if err := get(cfg.Server.Health, nil); errors.As(err, new(*deniedError)) {
		return bench.Fail(bench.Refused, "%s at %s: %w", name, b.where(), err)
	} else if errors.As(err, new(*missingError)) {
		return b.stranger(err)
	} else if err != nil {
		return notReady(err, fmt.Errorf("%s at %s is not ready: %w", name, b.where(), err))
	}
	b.info = bench.Info{
		Backend: name, Engine: cfg.Server.Engine, Device: cfg.Device,
		Model: cfg.Model, Weights: cfg.Weights, Synthetic: cfg.Synthetic,
		Substitutions: cfg.Server.substitutions(cfg), Notes: append([]string(nil), cfg.Server.Notes...),
	}
	if cfg.Server.Identify != nil {
		if err := cfg.Server.Identify(&b.info, get); errors.As(err, new(*deniedError)) {
			return bench.Fail(bench.Refused, "%s at %s: %w", name, b.where(), err)
		} else if err != nil {
			return b.stranger(err)
		}
	}
	if cfg.Version != "" && b.info.Version == versionNotTold {
		b.info.Version, b.info.Build = cfg.Version, cfg.Build
		b.info.Notes = append(b.info.Notes, "it does not tell its version: that is of the packages in the Python environment it was started from")
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

// stranger is the error of a server that lacks what servers of the row have.
func (b *backend) stranger(err error) error {
	advice := ""
	if b.cfg.Server.Name != "openai" {
		advice = " (--endpoint openai=URL takes any with OpenAI's protocol)"
	}
	return notReady(err, fmt.Errorf("%s at %s does not say that it is one, so it may be another kind of server%s: %w", b.cfg.Server.Name, b.where(), advice, err))
}

// versionNotTold is the version of servers that do not tell it.
const versionNotTold = "version not told"

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
	shown := ""
	if u.Host != "" { // a user, a query and what is no such URL may hold secrets
		shown = ", " + u.Scheme + "://" + u.Host + u.EscapedPath() + ","
	}
	port := "80"
	switch u.Scheme {
	case "http":
	case "https":
		port = "443"
		b.tls = &tls.Config{ServerName: u.Hostname(), NextProtos: []string{"http/1.1"}, MinVersion: tls.VersionTLS12, InsecureSkipVerify: b.cfg.Insecure}
	default:
		return fmt.Errorf("the endpoint of %s%s is not an http or https URL: give one such as http://127.0.0.1:8080", b.cfg.Server.Name, shown)
	}
	switch {
	case u.Hostname() == "":
		return fmt.Errorf("the endpoint of %s names no host: give a URL such as http://127.0.0.1:8080", b.cfg.Server.Name)
	case u.User != nil:
		return fmt.Errorf("the endpoint of %s has a user name or password in it: give an API key instead", b.cfg.Server.Name)
	case u.RawQuery != "" || u.Fragment != "":
		return fmt.Errorf("the endpoint of %s%s has a query or fragment: give a URL such as http://127.0.0.1:8080", b.cfg.Server.Name, shown)
	}
	if u.Port() != "" {
		port = u.Port()
	}
	b.addr, b.host = net.JoinHostPort(u.Hostname(), port), u.Host
	// The routes of the rows begin with /v1 themselves.
	b.path = strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(u.EscapedPath(), "/"), "/v1"), "/")
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
	var secured *handshakeError
	if ctx.Err() == nil && limited.Err() != nil {
		if errors.As(err, &secured) {
			return nil, bench.Fail(bench.Connect, "cannot connect to %s at %s: it accepted the connection, but no TLS handshake came about within %s: try http://", b.cfg.Server.Name, b.where(), b.cfg.ConnectTimeout)
		}
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

// getTimeout bounds one request off the clock.
const getTimeout = 30 * time.Second

// client is for requests off the clock. Like a session it asks no proxy and
// follows no redirect.
func (b *backend) client() *http.Client {
	return &http.Client{
		Transport:     &http.Transport{DisableKeepAlives: true, TLSClientConfig: b.tls},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Timeout:       getTimeout,
	}
}

// Tokenize returns the server's own token ids of a prompt, BOS included, off
// the clock; nil if its kind does not tell.
func (b *backend) Tokenize(ctx context.Context, prompt string) ([]int32, error) {
	if b.cfg.Server.Tokenize == nil || b.cfg.Chat {
		return nil, nil
	}
	client := b.client()
	return b.cfg.Server.Tokenize(prompt, func(path string, body, into any) error {
		return b.call(ctx, client, http.MethodPost, path, body, into)
	})
}

// call asks a path of the endpoint off the clock, with a body as JSON if it is
// not nil; into may be nil.
func (b *backend) call(ctx context.Context, client *http.Client, method, path string, send, into any) (err error) {
	defer func() {
		// net/http and encoding/json quote what they could not read.
		if err == nil || b.hide(err.Error()) == err.Error() {
			return
		}
		text := b.hide(err.Error())
		switch {
		case errors.As(err, new(*deniedError)):
			err = &deniedError{text}
		case errors.As(err, new(*missingError)):
			err = &missingError{text}
		default:
			err = notReady(err, errors.New(text))
		}
	}()
	var content []byte
	if send != nil {
		if content, err = json.Marshal(send); err != nil {
			return err
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, b.where()+path, bytes.NewReader(content))
	if err != nil {
		return err
	}
	if send != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if b.cfg.APIKey != "" {
		req.Header.Set("Authorization", "Bearer "+b.cfg.APIKey)
	}
	resp, err := client.Do(req)
	if err != nil {
		var wrapped *url.Error
		if errors.As(err, &wrapped) {
			if err = wrapped.Err; wrapped.Timeout() && ctx.Err() == nil {
				return bench.Fail(bench.Timeout, "%s %s: it took the connection, but did not answer within %s: see its log", method, path, client.Timeout)
			}
		}
		switch text := err.Error(); { // net/http has no types for these
		case strings.Contains(text, "readLoopPeekFail"):
			return fmt.Errorf("%s %s: what answers there does not speak HTTP (it speaks before it is asked): give the server's own port", method, path)
		case strings.Contains(text, "malformed HTTP"):
			return fmt.Errorf("%s %s: what answers there does not speak HTTP (%w): give the server's own port", method, path, err)
		}
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 8<<20))
	if late := net.Error(nil); errors.As(err, &late) && late.Timeout() && ctx.Err() == nil {
		return bench.Fail(bench.Timeout, "%s %s: its answer was not whole within %s: see its log", method, path, client.Timeout)
	} else if err != nil {
		return fmt.Errorf("%s %s: %w", method, path, err)
	}
	if resp.StatusCode != http.StatusOK {
		message, _, _ := errorText(body)
		if message == "" {
			message = "no reason given"
		}
		if advice := b.keyAdvice(resp.StatusCode); advice != "" {
			return &deniedError{fmt.Sprintf("%s %s answers %d (%s)%s", method, path, resp.StatusCode, message, advice)}
		}
		err := fmt.Errorf("%s %s answers %d: %s", method, path, resp.StatusCode, message)
		if resp.StatusCode == http.StatusNotFound {
			return &missingError{err.Error()}
		}
		if resp.StatusCode == http.StatusServiceUnavailable {
			return bench.Fail(bench.Busy, "%w", err)
		}
		return err
	}
	if into == nil {
		return nil
	}
	if err := json.Unmarshal(body, into); err != nil {
		return fmt.Errorf("%s %s answers with what is not the expected JSON: %w", method, path, err)
	}
	return nil
}

// deniedError says that a server wants another API key, or one at all.
type deniedError struct{ message string }

func (e *deniedError) Error() string { return e.message }

// missingError says that a server has no such path.
type missingError struct{ message string }

func (e *missingError) Error() string { return e.message }

// keyAdvice is what to do about a status that denies access; "" for another.
func (b *backend) keyAdvice(status int) string {
	switch {
	case status != http.StatusUnauthorized && status != http.StatusForbidden:
		return ""
	case b.cfg.APIKey == "":
		return fmt.Sprintf(": it wants an API key: give --api-key-env %s=VARIABLE", b.cfg.Server.Name)
	}
	return fmt.Sprintf(": it refuses the API key in the variable that --api-key-env %s names", b.cfg.Server.Name)
}

// notReady gives err the class of why: busy, for a server that is still
// loading its model, or timeout.
func notReady(why, err error) error {
	var f *bench.Failure
	if errors.As(why, &f) {
		return bench.Fail(f.Class, "%w", err)
	}
	return err
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
