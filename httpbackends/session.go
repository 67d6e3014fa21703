package httpbackends

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"os"
	"strconv"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/nativebench/nativebench/internal/bench"
)

const (
	readBuffer = 32 << 10 // bytes per read at most, and longest header line
	maxLine    = 4 << 20  // longest line or event of a stream
	maxError   = 64 << 10 // of a failed response's body is read

	// idleLimit is how long a connection may have rested and still be used:
	// servers close those that rest longer (uvicorn and llama-server after
	// 5 s), and a request sent into that moment would be lost.
	idleLimit = int64(time.Second)
	// lingerLimit is how long, off the clock, the end of a response is awaited
	// after the end of the answer, so that the connection can be used again.
	lingerLimit = time.Second
)

// session is one client's seat: one connection, used for one request at a time.
type session struct {
	b      *backend
	conn   *wire // nil: none open
	used   int64 // when conn was opened or last used
	unused bool  // conn has carried no request yet
	stream bool  // the last answer on conn was a stream
	http   *http1
	events *events
	answer answer
	req    *bench.Request // prepared, nil otherwise
	out    bytes.Buffer   // the prepared request, head and body
	sync   []byte         // the body of a sync answer
	most   int64          // longest response that is read, in bytes
	watch  watch
	closed bool
}

var _ bench.Session = (*session)(nil)

func newSession(b *backend, limits bench.Limits) *session {
	s := &session{b: b, events: newEvents(maxLine), sync: make([]byte, 0, 16<<10)}
	// An event of one token is some hundred bytes; a server that sends a
	// hundred times as much is not answering the question.
	s.most = 8<<20 + int64(limits.OutputTokens)*64<<10
	s.watch.first, s.watch.gap = limits.FirstToken, limits.Gap
	s.out.Grow(1024 + 2*limits.PromptBytes)
	return s
}

// Prepare writes the request into the session's buffer, and opens a connection
// if the one there is has had its time.
func (s *session) Prepare(req *bench.Request) error {
	s.req = nil
	if s.closed {
		return bench.Fail(bench.Internal, "%s: Prepare on a closed session", s.name())
	}
	if err := s.check(req); err != nil {
		return err
	}
	body := s.b.cfg.Server.Dialect.body(s.b.cfg.Model, req)
	if fields := s.b.cfg.Server.Fields; fields != nil {
		if err := fields(body, req, &s.b.cfg); err != nil {
			return err
		}
	}
	var encoded bytes.Buffer
	enc := json.NewEncoder(&encoded)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(body); err != nil {
		return bench.Fail(bench.Internal, "cannot write the request for %s: %w", s.name(), err)
	}
	row := &s.b.cfg.Server
	accept, route := row.Dialect.form().whole, row.Route
	if req.Stream {
		accept = row.Dialect.form().stream
		if row.StreamRoute != "" {
			route = row.StreamRoute
		}
	}
	s.out.Reset()
	fmt.Fprintf(&s.out, "POST %s%s HTTP/1.1\r\nHost: %s\r\nUser-Agent: nativebench\r\nAccept: %s\r\nAccept-Encoding: identity\r\nContent-Type: application/json\r\nContent-Length: %d\r\n",
		s.b.path, route, s.b.host, accept, encoded.Len())
	if s.b.cfg.APIKey != "" {
		fmt.Fprintf(&s.out, "Authorization: Bearer %s\r\n", s.b.cfg.APIKey)
	}
	s.out.WriteString("\r\n")
	s.out.Write(encoded.Bytes())

	if err := s.connect(context.Background()); err != nil { // dial has its own limit
		return err
	}
	s.req = req
	return nil
}

// check refuses what no server could answer.
func (s *session) check(req *bench.Request) error {
	sp := req.Sampling
	switch {
	case s.b.cfg.Chat && req.Message == "":
		return bench.Fail(bench.Refused, "%s was asked on its chat route without a message: give one, or ask on the raw route", s.name())
	case req.Prompt == "":
		return bench.Fail(bench.Refused, "%s was asked with an empty prompt: give a text", s.name())
	case !utf8.ValidString(req.Prompt):
		return bench.Fail(bench.Refused, "%s was asked with a prompt that is not UTF-8: JSON cannot carry it", s.name())
	case sp.MaxTokens < 1:
		return bench.Fail(bench.Refused, "%s was asked for %d tokens: ask for at least 1", s.name(), sp.MaxTokens)
	case !(sp.Temperature >= 0) || math.IsInf(sp.Temperature, 0):
		return bench.Fail(bench.Refused, "%s was asked with temperature %v: give 0 (greedy) or more", s.name(), sp.Temperature)
	case !(sp.TopP > 0 && sp.TopP <= 1):
		return bench.Fail(bench.Refused, "%s was asked with top_p %v: give a number over 0 and at most 1", s.name(), sp.TopP)
	case sp.Seed > math.MaxInt32:
		return bench.Fail(bench.Refused, "%s was asked with seed %d: give at most %d", s.name(), sp.Seed, math.MaxInt32)
	}
	return nil
}

func (s *session) name() string { return s.b.cfg.Server.Name }

// connect makes sure that there is a connection fit for a request.
func (s *session) connect(ctx context.Context) error {
	if s.conn != nil {
		if bench.Now()-s.used < idleLimit && s.http.buffered() == 0 {
			if s.conn.fresh() {
				return nil
			}
			s.learn()
		}
		s.drop()
	}
	conn, err := s.b.dial(ctx)
	if err != nil {
		return err
	}
	s.conn, s.used, s.unused = conn, bench.Now(), true
	if s.http == nil {
		s.http = newHTTP1(conn, readBuffer)
	} else {
		s.http.r, s.http.i, s.http.j = conn, 0, 0
	}
	return nil
}

// drop closes the connection.
func (s *session) drop() {
	if s.conn != nil {
		s.conn.Close()
		s.conn = nil
	}
}

// learn notes that the server has closed a connection that it said it would keep.
func (s *session) learn() {
	if !s.unused {
		atomic.StoreUint32(s.closes(s.stream), 1)
	}
}

// closes is what was learned of connections after a stream or a sync answer.
func (s *session) closes(stream bool) *uint32 {
	if stream {
		return &s.b.closes[1]
	}
	return &s.b.closes[0]
}

// Generate sends the prepared request and reads the answer to its end. If the
// connection, used before, dies before a byte of the answer comes, the server had
// closed it when the request was on its way (RFC 9112, 9.3.1): then the request is
// sent once more on a new one, with all stamps anew, and the trace is marked.
func (s *session) Generate(ctx context.Context, tr *bench.Trace) error {
	req := s.req
	s.req = nil
	if req == nil {
		return bench.Fail(bench.Internal, "%s: Generate without a prepared request", s.name())
	}
	if err := ctx.Err(); err != nil {
		return stopped(ctx, "%s was not asked", s.name())
	}
	err := s.ask(ctx, req, tr)
	if errors.Is(err, errStale) {
		tr.Reset()
		if err = s.ask(ctx, req, tr); err == nil {
			tr.Warn(bench.WarnRedialled)
		}
	}
	return err
}

// errStale tells that a connection was closed before the request came.
var errStale = errors.New("the connection was closed by the server")

// ask sends the request once; errStale if it is to be sent again.
func (s *session) ask(ctx context.Context, req *bench.Request, tr *bench.Trace) error {
	// Prepare may be a while ago. This is before the clock starts.
	if err := s.connect(ctx); err != nil {
		return err
	}
	reused := !s.unused
	s.answer.reset(tr, &s.b.cfg.Server, req, &s.b.cfg)
	conn := s.conn
	if s.unused {
		tr.Connect, s.unused = conn.opened, false
	}
	conn.in.begin()
	stop := context.AfterFunc(ctx, func() {
		// Ends a read or write under way at once.
		_ = conn.SetDeadline(time.Unix(1, 0))
	})
	if req.Stream && s.watch.on() {
		s.watch.begin(conn)
	}
	err := s.exchange(tr)
	passed := s.watch.end()
	tr.Unstamped = conn.in.unstamped
	if err == nil {
		err = s.answer.close()
	}
	if err != nil {
		s.drop()
		if reused && s.stale(err, tr) {
			s.learn()
			stop()
			return errStale
		}
		if tr.Start != 0 && tr.End == 0 {
			tr.End = max(bench.Now(), tr.LastToken())
		}
		stop()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return s.interrupted(ctx, tr, passed) // nobody else sets a deadline
		}
		return s.failure(err)
	}
	if s.finish(stop); passed != noLimit {
		s.drop() // the answer was whole just before, but the connection has a deadline
	}
	return nil
}

// stale tells whether the error of a connection is of one that was closed before
// the request came: it could not be sent, or not a byte came back.
func (s *session) stale(err error, tr *bench.Trace) bool {
	if !errors.Is(err, errSilent) && !errors.Is(err, unix.EPIPE) && !errors.Is(err, unix.ECONNRESET) {
		return false
	}
	return tr.FirstByte == 0 && (tr.Sent == 0 || s.http.bytes == 0)
}

// interrupted is the failure of a request whose context ended or that passed a
// limit of its watch.
func (s *session) interrupted(ctx context.Context, tr *bench.Trace, passed limit) error {
	switch {
	case passed == firstLimit:
		came := "no whole header"
		if tr.FirstByte != 0 {
			came = strconv.FormatInt(s.http.bytes, 10) + " bytes without any"
		}
		return bench.Fail(bench.Timeout, "%s sent no content within %v (limit --first-token-timeout), %s: raise the limit, or see the server's log", s.name(), s.watch.first, came)
	case passed == gapLimit:
		return bench.Fail(bench.Timeout, "%s sent no content for %v (limit --token-timeout), after %d events with content: raise the limit, or see the server's log", s.name(), s.watch.gap, tr.Events)
	case tr.FirstByte == 0:
		return stopped(ctx, "%s had not answered yet", s.name())
	case tr.Events == 0:
		return stopped(ctx, "%s had sent no content yet", s.name())
	default:
		return stopped(ctx, "%s had sent %d events with content", s.name(), tr.Events)
	}
}

// failure gives an error of the connection its class.
func (s *session) failure(err error) error {
	var f *bench.Failure
	if errors.As(err, &f) {
		f.Message = s.b.hide(f.Message)
		return f
	}
	class := bench.Reset
	if errors.Is(err, errProtocol) {
		class = bench.Malformed
	}
	f = bench.Fail(class, "%s: %w", s.name(), err)
	f.Message = s.b.hide(f.Message)
	return f
}

// finish readies the connection for the next request, or closes it.
func (s *session) finish(stop func() bool) {
	s.used, s.stream = bench.Now(), s.answer.stream
	reusable := s.http.keepAlive && !(s.stream && s.b.cfg.Server.ClosesAfterStream) && atomic.LoadUint32(s.closes(s.stream)) == 0
	if reusable && !s.http.over {
		// The answer is over; the response's end mark may be still under way.
		_ = s.conn.SetReadDeadline(time.Now().Add(lingerLimit))
		for err := error(nil); err == nil; {
			if _, err = s.http.body(); err != nil && err != io.EOF {
				reusable = false
			}
			if s.http.bytes > s.most {
				err, reusable = errProtocol, false
			}
		}
		_ = s.conn.SetReadDeadline(time.Time{})
	}
	// If the context ended meanwhile, the connection has a deadline.
	if !stop() || !reusable {
		s.drop()
	}
}

// exchange is the timed path.
func (s *session) exchange(tr *bench.Trace) error {
	tr.Start = bench.Now()
	if _, err := s.conn.Write(s.out.Bytes()); err != nil {
		return err
	}
	tr.Sent = bench.Now()
	if err := s.http.head(); err != nil {
		return err
	}
	tr.FirstByte = s.conn.in.first
	s.answer.account = s.http.header.account
	if s.http.status != http.StatusOK {
		return s.refused()
	}
	if e := s.http.header.contentEncoding; e != "" && e != "identity" {
		return malformed(s.name(), "an answer in content-encoding %s, which was not asked for", quote([]byte(e)))
	}
	if s.answer.stream {
		return s.readStream(tr)
	}
	return s.readWhole(tr)
}

func (s *session) readStream(tr *bench.Trace) error {
	dialect := s.b.cfg.Server.Dialect
	form := dialect.form()
	if !hasType(s.http.header.contentType, form.stream) {
		return s.wrongType("a stream")
	}
	s.events.reset(form.lines)
	err := s.eachEvent(tr)
	if err != io.EOF {
		return err
	}
	// The stream ended without its end mark. What is left may be an event cut
	// short of its empty line.
	data, ok, err := s.events.end()
	if err != nil {
		return malformed(s.name(), "what cannot be read: %v", err)
	}
	if ok {
		if err := dialect.event(&s.answer, data); err != nil {
			return err
		}
	}
	tr.End = s.answer.at
	if !s.answer.done && !(s.b.cfg.Server.EndsAfterFinish && s.answer.finished) {
		if tr.Events == 0 {
			return bench.Fail(bench.Empty, "%s ended the stream without any content", s.name())
		}
		return bench.Fail(bench.Truncated, "%s ended the stream after %d events with content, without its end mark: the answer is not whole", s.name(), tr.Events)
	}
	s.answer.done = true
	return nil
}

// eachEvent reads events until the last (nil), the end of the body (io.EOF) or
// an error.
func (s *session) eachEvent(tr *bench.Trace) error {
	if s.conn.loop == nil {
		return s.takeEvents(tr)
	}
	var err error
	waited := s.conn.loop.each(func() (done, shared bool) {
		before := tr.Coalesced
		err = s.takeEvents(tr)
		return err != errAgain, tr.Coalesced > before
	})
	if waited != nil {
		return waited
	}
	return err
}

// takeEvents reads events as eachEvent says; errAgain: until there were none, and
// there may be more.
func (s *session) takeEvents(tr *bench.Trace) error {
	for {
		piece, err := s.http.body()
		s.answer.at = s.conn.in.last
		if err != nil {
			return err
		}
		if s.http.bytes > s.most {
			return s.tooLong()
		}
		s.events.feed(piece)
		for {
			data, ok, err := s.events.next()
			if tr.FirstLine == 0 && s.events.lines > 0 {
				tr.FirstLine = s.answer.at
			}
			if err != nil {
				return malformed(s.name(), "what cannot be read: %v", err)
			}
			if !ok {
				break
			}
			if err := s.b.cfg.Server.Dialect.event(&s.answer, data); err != nil {
				return err
			}
			if s.watch.on() {
				s.watch.content.Store(s.answer.lastAt)
			}
			if s.answer.done {
				tr.End = s.answer.at
				return nil
			}
		}
	}
}

func (s *session) readWhole(tr *bench.Trace) error {
	if !hasType(s.http.header.contentType, s.b.cfg.Server.Dialect.form().whole) {
		return s.wrongType("JSON")
	}
	if err := s.readBody(s.most); err != nil {
		return err
	}
	tr.End = s.conn.in.last
	s.answer.at = tr.End
	if len(s.sync) == 0 {
		return bench.Fail(bench.Empty, "%s answers 200 with an empty body", s.name())
	}
	return s.b.cfg.Server.Dialect.whole(&s.answer, s.sync)
}

// readBody reads the rest of the response into s.sync.
func (s *session) readBody(most int64) error {
	s.sync = s.sync[:0]
	for {
		piece, err := s.http.body()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if int64(len(s.sync)+len(piece)) > most {
			return s.tooLong()
		}
		s.sync = append(s.sync, piece...)
	}
}

func (s *session) tooLong() error {
	return malformed(s.name(), "an answer of over %d bytes, more than any answer to this request can have", s.most)
}

// wrongType reports a 200 that is not what was asked for: an error in disguise
// is told apart from a foreign body.
func (s *session) wrongType(want string) error {
	// What can be read of it is welcome; the type is wrong anyway.
	if err := s.readBody(maxError); err != nil && len(s.sync) == 0 {
		return err
	}
	scan := scanner{b: s.sync}
	if scan.peek() == '{' {
		for key := range scan.members() {
			if string(key) == "error" && scan.raw() != nil {
				return s.answer.serverError(s.sync, 0)
			} else if string(key) != "error" {
				scan.skip()
			}
		}
	}
	return malformed(s.name(), "content-type %s where %s was asked for: %s", quote([]byte(s.http.header.contentType)), want, quote(s.sync))
}

// refused makes the failure for a response that is not 200.
func (s *session) refused() error {
	// What can be read of the reason is welcome; the status stands anyway.
	if err := s.readBody(maxError); err != nil && len(s.sync) == 0 {
		s.sync = append(s.sync[:0], s.http.reason...)
	}
	code, header := s.http.status, s.http.header
	if code >= 300 && code < 400 {
		return bench.Fail(bench.Refused, "%s redirects (%d) to another place: give that one as the endpoint", s.name(), code)
	}
	if code < 300 {
		return malformed(s.name(), "status %d where 200 was expected", code)
	}
	err := s.answer.serverError(s.sync, code)
	var f *bench.Failure
	if errors.As(err, &f) {
		f.Message += s.b.keyAdvice(code) + " (status " + strconv.Itoa(code)
		if header.retryAfter != "" {
			f.Message += ", retry after " + oneLine(header.retryAfter)
			f.RetryAfter = retryAfter(header.retryAfter, time.Now())
		}
		f.Message += ")"
	}
	return err
}

// retryAfter reads the field of that name (RFC 9110, 10.2.3): seconds, or the
// date until when. 0: there is nothing to wait for, or it is neither.
func retryAfter(value string, now time.Time) time.Duration {
	if n, err := strconv.ParseUint(value, 10, 31); err == nil {
		return time.Duration(n) * time.Second
	}
	if date, err := http.ParseTime(value); err == nil {
		return max(0, date.Sub(now))
	}
	return 0
}

// Close closes the connection.
func (s *session) Close() error {
	s.closed, s.req = true, nil
	s.drop()
	return nil
}
