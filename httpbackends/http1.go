package httpbackends

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// http1 reads HTTP/1.1 responses (RFC 9112) from one connection, one after
// another. It is used in place of net/http because a timed request wants to
// know which bytes came with which read, without goroutines or copies between.
type http1 struct {
	r     io.Reader
	buf   []byte
	i, j  int   // buf[i:j] was read and not used yet
	bytes int64 // of all reads since the response began

	status    int
	reason    string
	header    header
	keepAlive bool
	framing   framing
	left      int64 // bytes left of the body (framedByLength) or of the chunk
	inChunk   bool  // a chunk's size was read
	trailer   int   // bytes of the trailer read so far; -1: it has not begun
	over      bool  // the body was read to its end
}

// header holds the fields of a response that matter here.
type header struct {
	contentType, contentEncoding, retryAfter, location string

	account account
}

// account is what TGI says of a sync answer in its header fields; -1 in all if
// they are not there.
type account struct {
	promptTokens, outputTokens int // x-prompt-tokens, x-generated-tokens
	queue, inference           int // x-queue-time, x-inference-time, in ms
}

// read takes up one header field.
func (a *account) read(name, value []byte) {
	if len(name) < 2 || name[0]|0x20 != 'x' || name[1] != '-' {
		return
	}
	var into *int
	switch {
	case fold(name, "x-prompt-tokens"):
		into = &a.promptTokens
	case fold(name, "x-generated-tokens"):
		into = &a.outputTokens
	case fold(name, "x-queue-time"):
		into = &a.queue
	case fold(name, "x-inference-time"):
		into = &a.inference
	default:
		return
	}
	s := scanner{b: value}
	if n, ok := s.count(); ok && s.end() {
		*into = n
	}
}

type framing int

const (
	framedByLength framing = iota
	framedByChunks
	framedByClose // the body ends where the connection does
)

// errProtocol marks what HTTP does not allow.
var errProtocol = errors.New("the answer is not proper HTTP")

// errCut marks a connection that ended in the middle of a response.
var errCut = errors.New("the connection was closed before the answer was whole")

// errSilent marks a connection that ended before a response began.
var errSilent = errors.New("the connection was closed without an answer")

// errAgain says that there are no bytes now, where reads do not wait.
var errAgain = errors.New("no bytes yet")

func newHTTP1(r io.Reader, size int) *http1 { return &http1{r: r, buf: make([]byte, size)} }

// head reads the status line and the header fields of the next response,
// passing over interim (1xx) ones.
func (h *http1) head() error {
	h.bytes = int64(h.j - h.i)
	for range 8 {
		if err := h.oneHead(); err != nil {
			return err
		}
		if h.status >= 200 {
			return nil
		}
		if h.status == 101 {
			return fmt.Errorf("%w: it switches to another protocol", errProtocol)
		}
	}
	return fmt.Errorf("%w: too many interim answers", errProtocol)
}

func (h *http1) oneHead() error {
	h.header = header{account: account{-1, -1, -1, -1}}
	h.framing, h.left, h.inChunk, h.trailer, h.over = framedByClose, 0, false, -1, false
	line, err := h.line()
	if err != nil {
		if errors.Is(err, errCut) && h.bytes == 0 {
			return errSilent
		}
		return err
	}
	if err := h.statusLine(line); err != nil {
		return err
	}
	length, chunked, closing, keeping := int64(-1), false, false, false
	size := len(line)
	for {
		if line, err = h.line(); err != nil {
			return err
		}
		if size += len(line) + 2; size > 64<<10 {
			return fmt.Errorf("%w: its header is over 64 KiB long", errProtocol)
		}
		if len(line) == 0 {
			break
		}
		colon := bytes.IndexByte(line, ':')
		if colon < 1 || line[0] == ' ' || line[0] == '\t' {
			return fmt.Errorf("%w: header line %s", errProtocol, quote(line))
		}
		name, value := line[:colon], bytes.TrimSpace(line[colon+1:])
		switch {
		case fold(name, "content-length"):
			n, err := strconv.ParseInt(string(value), 10, 64)
			if err != nil || n < 0 || value[0] == '+' || length >= 0 && n != length {
				return fmt.Errorf("%w: content-length %s", errProtocol, quote(value))
			}
			length = n
		case fold(name, "transfer-encoding"):
			if !fold(value, "chunked") {
				return fmt.Errorf("%w: transfer-encoding %s is not supported", errProtocol, quote(value))
			}
			chunked = true
		case fold(name, "connection"):
			for token := range bytes.SplitSeq(value, []byte(",")) {
				token = bytes.TrimSpace(token)
				closing = closing || fold(token, "close")
				keeping = keeping || fold(token, "keep-alive")
			}
		case fold(name, "content-type"):
			h.header.contentType = string(value)
		case fold(name, "content-encoding"):
			h.header.contentEncoding = string(value)
		case fold(name, "retry-after"):
			h.header.retryAfter = string(value)
		case fold(name, "location"):
			h.header.location = string(value)
		default:
			h.header.account.read(name, value)
		}
	}
	h.keepAlive = !closing && (h.keepAlive || keeping)
	switch {
	case h.status < 200 || h.status == 204 || h.status == 304:
		h.framing, h.left = framedByLength, 0
	case chunked:
		h.framing = framedByChunks
		if length >= 0 { // RFC 9112, 6.3: an attempt at smuggling, or a bug
			h.keepAlive = false
		}
	case length >= 0:
		h.framing, h.left = framedByLength, length
	default:
		h.keepAlive = false
	}
	return nil
}

// statusLine reads "HTTP/1.1 200 OK"; keepAlive becomes the version's default.
func (h *http1) statusLine(line []byte) error {
	version, rest, _ := bytes.Cut(line, []byte(" "))
	code, reason, _ := bytes.Cut(rest, []byte(" "))
	n, err := strconv.Atoi(string(code))
	if err != nil || len(code) != 3 || n < 100 || string(version) != "HTTP/1.1" && string(version) != "HTTP/1.0" {
		return fmt.Errorf("%w: it begins with %s", errProtocol, quote(line))
	}
	h.status, h.reason = n, string(reason)
	h.keepAlive = string(version) == "HTTP/1.1"
	return nil
}

// body returns the next piece of the response's body, as soon as there is one;
// it is valid until the next call. io.EOF tells that the body is whole. After
// errAgain it can be called again.
func (h *http1) body() ([]byte, error) {
	if h.over {
		return nil, io.EOF
	}
	switch h.framing {
	case framedByLength:
		if h.left == 0 {
			h.over = true
			return nil, io.EOF
		}
	case framedByChunks:
		if h.left == 0 {
			if err := h.nextChunk(); err != nil {
				return nil, err
			}
			if h.over {
				return nil, io.EOF
			}
		}
	}
	if h.i == h.j {
		if err := h.fill(); err != nil {
			if h.framing == framedByClose && errors.Is(err, errCut) {
				h.over = true
				return nil, io.EOF
			}
			return nil, err
		}
	}
	n := h.j - h.i
	if h.framing != framedByClose {
		n = int(min(int64(n), h.left))
		h.left -= int64(n)
	}
	p := h.buf[h.i : h.i+n]
	h.i += n
	return p, nil
}

// nextChunk reads up to the first byte of the next chunk's data; at the last
// chunk it reads the trailer and sets over.
func (h *http1) nextChunk() error {
	if h.trailer >= 0 {
		return h.readTrailer()
	}
	if h.inChunk {
		line, err := h.line()
		if err != nil {
			return err
		}
		if len(line) != 0 {
			return fmt.Errorf("%w: a chunk is longer than it said", errProtocol)
		}
		h.inChunk = false
	}
	line, err := h.line()
	if err != nil {
		return err
	}
	size, _, _ := bytes.Cut(line, []byte(";")) // extensions mean nothing to us
	size = bytes.TrimRight(size, " \t")
	n, ok := hex(size)
	if !ok {
		return fmt.Errorf("%w: chunk size %s", errProtocol, quote(line))
	}
	h.left, h.inChunk = n, true
	if n > 0 {
		return nil
	}
	h.trailer = 0
	return h.readTrailer()
}

func (h *http1) readTrailer() error {
	for {
		line, err := h.line()
		if err != nil {
			return err
		}
		if len(line) == 0 {
			h.over = true
			return nil
		}
		if h.trailer += len(line); h.trailer > 64<<10 {
			return fmt.Errorf("%w: its trailer is over 64 KiB long", errProtocol)
		}
	}
}

// buffered returns how many bytes were read beyond what was used.
func (h *http1) buffered() int { return h.j - h.i }

// line reads up to the next line feed and returns what is before it, without
// the carriage return.
func (h *http1) line() ([]byte, error) {
	seen := 0
	for {
		if k := bytes.IndexByte(h.buf[h.i+seen:h.j], '\n'); k >= 0 {
			line := h.buf[h.i : h.i+seen+k]
			h.i += seen + k + 1
			if n := len(line); n > 0 && line[n-1] == '\r' {
				line = line[:n-1]
			}
			return line, nil
		}
		seen = h.j - h.i
		if seen == len(h.buf) {
			return nil, fmt.Errorf("%w: a line is over %d bytes long", errProtocol, len(h.buf))
		}
		if err := h.fill(); err != nil {
			return nil, err
		}
	}
}

// fill reads once more, after what was not used yet.
func (h *http1) fill() error {
	if h.i > 0 {
		h.j = copy(h.buf, h.buf[h.i:h.j])
		h.i = 0
	}
	n, err := h.r.Read(h.buf[h.j:])
	if n > 0 {
		h.j += n
		h.bytes += int64(n)
		return nil
	}
	if err == nil {
		return io.ErrNoProgress
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errCut
	}
	return err
}

// fold compares ASCII without regard to case; lower must be lower case.
func fold(b []byte, lower string) bool {
	if len(b) != len(lower) {
		return false
	}
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}

// hex reads a chunk size of at most 15 digits.
func hex(b []byte) (n int64, ok bool) {
	if len(b) == 0 || len(b) > 15 {
		return 0, false
	}
	for _, c := range b {
		switch {
		case '0' <= c && c <= '9':
			c -= '0'
		case 'a' <= c && c <= 'f':
			c -= 'a' - 10
		case 'A' <= c && c <= 'F':
			c -= 'A' - 10
		default:
			return 0, false
		}
		n = n<<4 | int64(c)
	}
	return n, true
}

// quote makes b fit for a message: short, and of one line.
func quote(b []byte) string {
	const most = 60
	if len(b) > most {
		return strconv.Quote(string(b[:most])) + "…"
	}
	return strconv.Quote(string(b))
}

// oneLine makes a server's text fit for a message.
func oneLine(text string) string {
	const most = 300
	text = strings.ToValidUTF8(text, "\ufffd")
	text = strings.Join(strings.FieldsFunc(text, func(r rune) bool { return r <= ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 }), " ")
	if len(text) > most {
		cut := most
		for cut > 0 && text[cut]&0xc0 == 0x80 {
			cut--
		}
		text = text[:cut] + "…"
	}
	return text
}
