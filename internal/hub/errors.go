package hub

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Kind is the class of a failure: what the user can do about it differs.
type Kind string

// The classes.
const (
	Gated       Kind = "gated"        // terms to accept, or a token to give
	BadToken    Kind = "bad token"    // the hub does not take the token
	NoRepo      Kind = "no repo"      // missing, or private
	NoRevision  Kind = "no revision"  // the repository has no such branch, tag or commit
	NoFile      Kind = "no file"      // listed, but not served
	NoWeights   Kind = "no weights"   // nothing in it that could be loaded
	RateLimited Kind = "rate-limited" // and not soon over
	Cut         Kind = "cut"          // the connection ended early, again and again
	Corrupted   Kind = "corrupted"    // the content is not what the hub's hash says
	Unavailable Kind = "unavailable"  // the server fails (5xx)
	NoNetwork   Kind = "no network"   // no such host, no route, refused
	BadTLS      Kind = "tls"          // the certificate cannot be trusted
	Timeout     Kind = "timeout"      // no answer in time
	NotAHub     Kind = "not a hub"    // it answers, but not as the hub does
	NoSpace     Kind = "no space"     // the disk is too small
	Unsafe      Kind = "unsafe"       // a name or address that must not be followed
	Offline     Kind = "offline"      // HF_HUB_OFFLINE is set
	BadInput    Kind = "bad input"    // no name of a repository, no revision
)

// Error is a failure of the hub or of the way to it. Its text is one line that
// says what to do; it has no token and no signed address in it.
type Error struct {
	Kind      Kind
	text      string
	cause     error
	temporary bool          // trying again may help
	wait      time.Duration // that the server asked for
}

func (e *Error) Error() string { return e.text }

func (e *Error) Unwrap() error { return e.cause }

func failure(kind Kind, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Kind: kind, text: oneLine(err.Error()), cause: errors.Unwrap(err)}
}

// again marks a failure that may be over at the next try.
func (e *Error) again() *Error {
	e.temporary = true
	return e
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

// netFailure says what went wrong on the way to host. Addresses may be signed:
// of those in err nothing is repeated.
func (c *Client) netFailure(ctx context.Context, host string, err error) error {
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, errStalled) {
		return cause
	}
	var inURL *url.Error
	if errors.As(err, &inURL) {
		err = inURL.Err
	}
	var (
		dns       *net.DNSError
		timeout   net.Error
		authority x509.UnknownAuthorityError
		hostname  x509.HostnameError
		invalid   x509.CertificateInvalidError
		verify    *tls.CertificateVerificationError
		record    tls.RecordHeaderError
		alert     tls.AlertError
	)
	switch {
	case errors.Is(err, errStalled) || errors.Is(context.Cause(ctx), errStalled):
		return failure(Timeout, "%s sent nothing for %s: the network or the server is too slow; try again, what has arrived of files is kept", host, c.stall).again()
	case errors.As(err, &dns):
		e := failure(NoNetwork, "the name %s cannot be resolved (%w): check the network, or set HF_ENDPOINT to a mirror, or use a model that is in the cache", host, err)
		e.temporary = dns.IsTemporary && !dns.IsNotFound
		return e
	case errors.Is(err, http.ErrSchemeMismatch):
		return failure(BadTLS, "%s speaks http, not https: check HF_ENDPOINT", host)
	case errors.As(err, &authority), errors.As(err, &hostname), errors.As(err, &invalid), errors.As(err, &verify), errors.As(err, &record), errors.As(err, &alert):
		return failure(BadTLS, "the TLS connection to %s cannot be trusted (%w): if a proxy of yours stands between, set SSL_CERT_FILE to its certificates", host, err)
	case errors.As(err, &timeout) && timeout.Timeout():
		return failure(Timeout, "%s does not answer in time (%w): try again later", host, err).again()
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return failure(NoNetwork, "%s cannot be reached (%w): check the network, a proxy (HTTPS_PROXY) and HF_ENDPOINT", host, err).again()
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return failure(Cut, "the connection to %s was cut (%w): try again; what has arrived of files is kept", host, err).again()
	}
	return failure(NoNetwork, "%s: %w: check the network, a proxy (HTTPS_PROXY) and HF_ENDPOINT", host, err).again()
}

// statusFailure says what the hub's answer means. The hub tells in X-Error-Code
// and X-Error-Message (hf_raise_for_status in utils/_http.py); without a token it
// answers 401 for what is missing, too.
func (c *Client) statusFailure(r *http.Response, what target) error {
	code, said := r.Header.Get("X-Error-Code"), c.quoteServer(r.Header.Get("X-Error-Message"))
	page := c.endpoint.String() + "/" + what.repo
	tokens := c.endpoint.String() + "/settings/tokens"
	switch {
	case code == "RevisionNotFound":
		return failure(NoRevision, "the repository has no revision %q: choose a branch, tag or commit from %s/commits/main", what.revision, page)
	case code == "EntryNotFound":
		return failure(NoFile, "the hub does not have the file %s of commit %s: try again, the repository may have changed", what.file, what.revision)
	case code == "GatedRepo" && c.token == "":
		return failure(Gated, "it is gated, and there is no token: accept its terms at %s, make a token of that account at %s, and put it into HF_TOKEN (or %s)", page, tokens, c.tokenPath)
	case code == "GatedRepo":
		return failure(Gated, "it is gated, and the account of the token in %s has no access: accept its terms at %s with that account (some owners then take days to grant it), and let the token read gated repositories (%s)", c.tokenFrom, page, tokens)
	case r.StatusCode == http.StatusUnauthorized && c.token != "" && code != "RepoNotFound":
		return failure(BadToken, "the hub does not accept the token in %s%s: make a new one at %s", c.tokenFrom, said, tokens)
	case code == "RepoNotFound", r.StatusCode == http.StatusUnauthorized, r.StatusCode == http.StatusNotFound && code == "" && what.file == "":
		if c.token == "" {
			return failure(NoRepo, "the hub has no such repository, or it is private: check the name at %s; for a private one put a token into HF_TOKEN", page)
		}
		return failure(NoRepo, "the hub has no such repository, or hides it from the account of the token in %s: check the name at %s", c.tokenFrom, page)
	case r.StatusCode == http.StatusForbidden:
		return failure(BadToken, "the hub refuses access%s: check what the token in %s may read (%s)", said, cmp.Or(c.tokenFrom, "HF_TOKEN"), tokens)
	case r.StatusCode == http.StatusTooManyRequests:
		advice := ""
		if c.token == "" {
			advice = "; with a token in HF_TOKEN the limit is higher"
		}
		e := failure(RateLimited, "the hub limits the rate%s: try again later%s", said, advice).again()
		e.wait = retryAfter(r.Header)
		return e
	case r.StatusCode >= 500 || r.StatusCode == http.StatusRequestTimeout:
		e := failure(Unavailable, "%s fails with %s%s: try again later", r.Request.URL.Host, r.Status, said).again()
		e.wait = retryAfter(r.Header)
		return e
	}
	return failure(NotAHub, "%s answers %s%s: is that a Hugging Face hub? Check HF_ENDPOINT and proxies", r.Request.URL.Host, r.Status, said)
}

// quoteServer makes a server's words fit to print: short, one line, and without
// the token, should it be in them.
func (c *Client) quoteServer(s string) string {
	if c.token != "" {
		s = strings.ReplaceAll(s, c.token, "…")
	}
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if s = oneLine(s); s == "" {
		return ""
	}
	if r := []rune(s); len(r) > 200 {
		s = string(r[:200]) + "…"
	}
	return fmt.Sprintf(" (%q)", s)
}

// rateLimit is the header `ratelimit: "api";r=0;t=55`: r requests remain, t
// seconds to the reset (parse_ratelimit_headers in utils/_http.py).
var rateLimit = regexp.MustCompile(`"\w+"\s*;\s*r\s*=\s*(\d+)\s*;\s*t\s*=\s*(\d+)`)

// retryAfter is how long the server wants us to wait, 0 if it does not say.
func retryAfter(h http.Header) time.Duration {
	if m := rateLimit.FindStringSubmatch(h.Get("RateLimit")); m != nil && m[1] == "0" {
		if n, err := strconv.ParseInt(m[2], 10, 32); err == nil {
			return time.Duration(n+1) * time.Second // it counts whole seconds
		}
	}
	text := h.Get("Retry-After")
	if n, err := strconv.ParseInt(text, 10, 32); err == nil && n >= 0 {
		return time.Duration(n) * time.Second
	}
	if at, err := http.ParseTime(text); err == nil {
		return max(time.Until(at), 0)
	}
	return 0
}

// diskFailure says what went wrong with the cache's directory.
func diskFailure(cache string, err error) error {
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return failure(NoSpace, "the disk of %s is full (%w): make room and pull again, what has arrived is kept; or set HF_HUB_CACHE to a directory on another disk", cache, err)
	case errors.Is(err, os.ErrPermission), errors.Is(err, syscall.EROFS):
		return fmt.Errorf("%w: the cache cannot be written; set HF_HUB_CACHE to a directory of yours", err)
	}
	return err
}
