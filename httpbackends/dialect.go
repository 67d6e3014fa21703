package httpbackends

import (
	"bytes"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/nativebench/nativebench/internal/bench"
)

// Dialect is a wire protocol: how a request is written and how its answer is
// read. One file each; a value has no state, what is learned goes into the
// answer.
type Dialect interface {
	// Name is the protocol's name, for messages and results.
	Name() string
	// body returns the request's JSON fields that every server of the dialect
	// takes; Server.Fields completes them.
	body(model string, req *bench.Request) map[string]any
	// form says how a stream is cut into events and what content types an
	// answer may have.
	form() form
	// event reads the data of one event of a stream. It must not allocate.
	event(a *answer, data []byte) error
	// whole reads the body of a sync answer.
	whole(a *answer, body []byte) error
}

// form is the outer shape of a dialect's answers.
type form struct {
	lines  bool   // a stream's event is one line of JSON; else server-sent events
	stream string // content type of a stream
	whole  string // content type of a sync answer
}

// openAIForm is the form of all OpenAI protocols.
var openAIForm = form{stream: "text/event-stream", whole: "application/json"}

// answer is what is known of the answer under way. Dialects report to it what
// they read; it keeps the trace's account.
type answer struct {
	tr     *bench.Trace
	server *Server
	limit  int  // Sampling.MaxTokens
	ignore bool // Sampling.IgnoreEOS
	stream bool
	cached bool // prefix-cache hits are wanted

	at       int64             // when the bytes now being read arrived
	lastAt   int64             // stamp of the last event with content
	told     int               // tokens so far, as the stream says; 0: it does not
	ids      int               // token ids received
	seen     int               // tokens that had come, as the stream said, before the finish reason
	usage    int               // output tokens by the usage object, -1: none came
	source   bench.TokenSource // who said told and usage
	account  account           // from the header
	finished bool              // a finish reason came
	finishAt int64             // stamp of its event
	reason   string
	done     bool // the end mark came
}

func (a *answer) reset(tr *bench.Trace, server *Server, req *bench.Request, cfg *Config) {
	*a = answer{
		tr: tr, server: server, limit: req.Sampling.MaxTokens, ignore: req.Sampling.IgnoreEOS,
		stream: req.Stream, cached: cfg.PrefixCache, usage: -1, source: bench.CountUsage,
	}
}

// content reports that generated output arrived; in a stream that is a mark.
// raws are the insides of JSON strings, appended to the answer's text.
func (a *answer) content(raws ...[]byte) {
	a.tr.Events++
	if a.stream {
		if a.tr.Events > 1 && a.at == a.lastAt {
			a.tr.Coalesced++
		}
		a.lastAt = a.at
		n := a.tr.Events
		switch {
		case a.told > 0:
			n = a.told
		case a.ids > 0:
			n = a.ids
		}
		a.tr.Mark(a.at, n)
	}
	for _, raw := range raws {
		a.tr.Text = appendText(a.tr.Text, raw)
	}
}

// finish reports why the generation ended, in the server's words.
func (a *answer) finish(raw []byte) {
	a.finished, a.finishAt = true, a.at
	switch string(raw) {
	case "length":
		a.tr.Finish = bench.FinishLength
	case "stop", "eos_token", "eos", "stop_sequence":
		a.tr.Finish = bench.FinishStop
	default: // "error", "abort", "content_filter", …: no usable answer
		a.reason = string(raw)
	}
}

// heldTokens is how many tokens a server may hold back at the end of an answer:
// the first three bytes of a character of four, a token each.
const heldTokens = 3

// close checks a whole answer and settles its account.
func (a *answer) close() error {
	tr := a.tr
	if a.reason != "" {
		return bench.Fail(bench.ServerFail, "%s ended the generation with finish_reason %q", a.server.Name, oneLine(a.reason))
	}
	if c := a.account; c.inference >= 0 {
		tr.Server.PromptTokens, tr.Server.OutputTokens = c.promptTokens, c.outputTokens
		tr.Server.Queue, tr.Server.Inference = int64(max(c.queue, 0))*1e6, int64(c.inference)*1e6
	}
	switch {
	case a.usage >= 0:
		tr.OutputTokens, tr.Counted = a.usage, a.source
	case a.told > 0:
		tr.OutputTokens, tr.Counted = a.told, a.source
	case a.ids > 0:
		tr.OutputTokens, tr.Counted = a.ids, bench.CountTokenIDs
	default:
		tr.Warn(bench.WarnTokenCount)
	}
	n := tr.OutputTokens
	if len(tr.Text) == 0 {
		return bench.Fail(bench.Empty, "%s sent a whole answer without any content (%d tokens by its own count)", a.server.Name, n)
	}
	if !a.finished {
		tr.Warn(bench.WarnNoFinish)
	}
	if tr.Server.CachedTokens > 0 && !a.cached {
		tr.Warn(bench.WarnCacheHit)
	}
	if tr.Counted == bench.CountNone {
		if !a.stream {
			tr.Mark(tr.End, 0)
		} else if tr.Events > a.limit { // each brings a token at least
			tr.Warn(bench.WarnCount)
		}
		return nil
	}
	if n > a.limit {
		return bench.Fail(bench.ServerFail, "%s made %d tokens where at most %d were asked: it does not honour max_tokens", a.server.Name, n, a.limit)
	}
	switch {
	case n >= a.limit:
	case tr.Finish == bench.FinishLength:
		// vLLM, for one, lowers max_tokens to what its context leaves.
		tr.Warn(bench.WarnCut)
	case a.ignore:
		tr.Warn(bench.WarnShort)
	}
	if own := tr.Server.OutputTokens; own > 0 && own != n {
		tr.Warn(bench.WarnCount) // it counts in two ways
	}
	if !a.stream {
		if n == 0 || a.ids > 0 && a.ids != n {
			tr.Warn(bench.WarnCount)
		}
		tr.Mark(tr.End, n)
		return nil
	}
	switch last := int(tr.Marks[len(tr.Marks)-1].N); {
	case a.told > 0 || a.ids > 0:
		if last > n || max(a.told, a.ids) != n {
			tr.Warn(bench.WarnCount)
			break
		}
		// Tokens without text of their own: the end-of-sequence token, or the
		// held-back start of a character that was never completed.
		if last < n {
			eos := 0
			if tr.Finish == bench.FinishStop {
				eos = 1
			}
			if n-max(last, a.seen) > heldTokens+eos { // they never came
				tr.Warn(bench.WarnCount)
				break
			}
			tr.Mark(max(a.finishAt, a.lastAt), n)
			if n-last > eos {
				tr.Warn(bench.WarnHeldBack)
			}
		}
	case n == last, n == last+1 && tr.Finish == bench.FinishStop: // the end-of-sequence token has no text
	case a.server.MergesTokens && n > last && n <= len(tr.Text)+1: // every other token is a byte of it at least
	default:
		tr.Warn(bench.WarnCount)
	}
	return nil
}

// serverError turns the value of an "error" field, or the body of a failed
// response, into a failure. status is 0 inside a stream.
//
// Known shapes: {"error":{"message","type","code"}}, {"error":"…",
// "error_type":"…"} (TGI; its chat stream has only the message), {"object":"error","message","code"} (older vLLM),
// {"detail":…} (FastAPI), and plain text.
func (a *answer) serverError(body []byte, status int) error {
	message, kind, code := errorText(body)
	if status == 0 {
		status = code
	}
	class := bench.ServerFail
	switch {
	case status == http.StatusFailedDependency: // TGI: its model shard failed
	case status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable || kind == "overloaded" || message == "Model is overloaded":
		class = bench.Busy
	case status >= 400 && status < 500 || kind == "validation" || strings.HasPrefix(message, "Input validation error"):
		class = bench.Refused
	}
	if message == "" {
		message = "no reason given"
	}
	return bench.Fail(class, "%s answers with an error: %s", a.server.Name, message)
}

// errorText finds the message, the kind and the code in an error.
func errorText(body []byte) (message, kind string, code int) {
	body = bytes.TrimSpace(body)
	valid := scanner{b: body}
	if valid.skip(); !valid.end() {
		return oneLine(string(body)), "", 0
	}
	s := scanner{b: body}
	if s.peek() != '{' {
		if raw, ok := s.text(); ok {
			return oneLine(string(appendText(nil, raw))), "", 0
		}
		return oneLine(string(body)), "", 0
	}
	for key := range s.members() {
		switch string(key) {
		case "error", "detail", "message":
			value := s.raw()
			if value == nil {
				continue
			}
			if m, k, c := errorText(value); message == "" || string(key) == "error" {
				message = m
				if k != "" {
					kind = k
				}
				if c != 0 {
					code = c
				}
			}
		case "type", "error_type":
			if raw, ok := s.text(); ok && kind == "" {
				kind = oneLine(string(raw))
			}
		case "code":
			if n, ok := s.count(); ok && code == 0 {
				code = n
			}
		default:
			s.skip()
		}
	}
	if message == "" {
		message = oneLine(string(body))
	}
	return message, kind, code
}

// ints appends the numbers of a JSON array of token ids.
func ints(dst []int32, raw []byte) []int32 {
	s := scanner{b: raw}
	for range s.elements() {
		if n, ok := s.count(); ok {
			dst = append(dst, int32(n))
		}
	}
	return dst
}

// malformed says that what came is not what the dialect allows.
func malformed(server, format string, args ...any) error {
	return bench.Fail(bench.Malformed, "%s sent %s", server, fmt.Sprintf(format, args...))
}

// hasType reports whether a content type is one of those; none at all passes.
func hasType(contentType string, want ...string) bool {
	kind, _, _ := strings.Cut(contentType, ";")
	kind = strings.ToLower(strings.TrimSpace(kind))
	return kind == "" || slices.Contains(want, kind)
}
