package httpbackends

import (
	"bytes"
	"iter"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
	"unsafe"
)

// scanner walks one JSON text (RFC 8259) and hands out the values that are
// asked for, without copying or allocating. It accepts exactly what
// encoding/json accepts. Strings come out raw, that is still escaped.
//
// After the first fault bad is set and every method returns at once.
type scanner struct {
	b     []byte
	i     int
	bad   bool
	depth int
}

// maxDepth bounds nesting, as encoding/json does with a larger number.
const maxDepth = 1000

func (s *scanner) fail() { s.bad, s.i = true, len(s.b) }

// peek returns the first byte of the next value or punctuation; 0 at the end.
func (s *scanner) peek() byte {
	if s.i < len(s.b) && s.b[s.i] > ' ' { // nearly always
		return s.b[s.i]
	}
	return s.pass()
}

// pass is peek where there may be white space.
func (s *scanner) pass() byte {
	for s.i < len(s.b) {
		switch c := s.b[s.i]; c {
		case ' ', '\t', '\n', '\r':
			s.i++
		default:
			return c
		}
	}
	return 0
}

// end reports whether the whole text was one good value.
func (s *scanner) end() bool { return s.peek() == 0 && s.i == len(s.b) && !s.bad }

// members enters an object and yields its keys; the loop's body must consume
// each value. Anything but an object is skipped and yields nothing.
func (s *scanner) members() iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		if s.peek() != '{' {
			s.skip()
			return
		}
		s.i++
		if s.depth++; s.depth > maxDepth {
			s.fail()
		}
		for first := true; !s.bad; first = false {
			c := s.peek()
			if c == '}' {
				break
			}
			if !first {
				if c != ',' {
					s.fail()
					return
				}
				s.i++
				s.peek()
			}
			key, ok := s.text()
			if !ok || s.peek() != ':' {
				s.fail()
				return
			}
			s.i++
			if bytes.IndexByte(key, '\\') >= 0 {
				key = appendText(nil, key)
			}
			if !yield(key) {
				return
			}
		}
		s.leave()
	}
}

// leave passes the bracket that closes an object or array.
func (s *scanner) leave() {
	if !s.bad {
		s.i++
		s.depth--
	}
}

// elements enters an array and yields the index of each element; the loop's
// body must consume the element. Anything but an array is skipped and yields
// nothing.
func (s *scanner) elements() iter.Seq[int] {
	return func(yield func(int) bool) {
		if s.peek() != '[' {
			s.skip()
			return
		}
		s.i++
		if s.depth++; s.depth > maxDepth {
			s.fail()
		}
		for n := 0; !s.bad; n++ {
			c := s.peek()
			if c == ']' {
				break
			}
			if n > 0 {
				if c != ',' {
					s.fail()
					return
				}
				s.i++
			}
			if !yield(n) {
				return
			}
		}
		s.leave()
	}
}

// text consumes the next value and returns what is between the quotes of a
// string; false if it is something else.
func (s *scanner) text() (raw []byte, ok bool) {
	if s.peek() != '"' {
		s.skip()
		return nil, false
	}
	start := s.i + 1
	b := s.b
	for i := start; i < len(b); {
		c := b[i]
		if !special[c] {
			i++
			continue
		}
		if c == '"' {
			s.i = i + 1
			return b[start:i], true
		}
		n := 0
		if c == '\\' {
			n = escapeLen(b[i:])
		}
		if n == 0 {
			break
		}
		i += n
	}
	s.fail()
	return nil, false
}

// special are the bytes that do not stand for themselves inside a string.
var special = func() (t [256]bool) {
	for c := range byte(' ') {
		t[c] = true
	}
	t['"'], t['\\'] = true, true
	return t
}()

// escapeLen returns the length of the escape at the start of b, 0 if it is no
// good one.
func escapeLen(b []byte) int {
	if len(b) < 2 {
		return 0
	}
	switch b[1] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		return 2
	case 'u':
		if len(b) >= 6 {
			if _, ok := hex(b[2:6]); ok {
				return 6
			}
		}
	}
	return 0
}

// number consumes the next value and returns it if it is a number.
func (s *scanner) number() (x float64, ok bool) {
	raw := s.numeral()
	if raw == nil {
		return 0, false
	}
	x, err := strconv.ParseFloat(unsafe.String(&raw[0], len(raw)), 64)
	return x, err == nil
}

// numeral consumes the next value and returns its text if it is a number; nil
// if it is something else.
func (s *scanner) numeral() []byte {
	if c := s.peek(); c != '-' && (c < '0' || c > '9') {
		s.skip()
		return nil
	}
	b, i := s.b, s.i
	if b[i] == '-' {
		i++
	}
	good := true
	if i < len(b) && b[i] == '0' {
		i++
	} else {
		i, good = digits(b, i)
	}
	if good && i < len(b) && b[i] == '.' {
		i, good = digits(b, i+1)
	}
	if good && i < len(b) && (b[i] == 'e' || b[i] == 'E') {
		i++
		if i < len(b) && (b[i] == '+' || b[i] == '-') {
			i++
		}
		i, good = digits(b, i)
	}
	if !good {
		s.fail()
		return nil
	}
	raw := b[s.i:i]
	s.i = i
	return raw
}

// digits returns where the digits from b[i] on end, and whether there are any.
func digits(b []byte, i int) (end int, ok bool) {
	from := i
	for i < len(b) && '0' <= b[i] && b[i] <= '9' {
		i++
	}
	return i, i > from
}

// count consumes the next value and returns it if it is a number of things.
func (s *scanner) count() (n int, ok bool) {
	raw := s.numeral()
	if raw == nil {
		return 0, false
	}
	if end, _ := digits(raw, 0); end == len(raw) && end < 10 { // nearly always
		for _, c := range raw {
			n = n*10 + int(c-'0')
		}
		return n, true
	}
	x, err := strconv.ParseFloat(unsafe.String(&raw[0], len(raw)), 64)
	if err != nil || x < 0 || x > 1<<31-1 || x != float64(int(x)) {
		return 0, false
	}
	return int(x), true
}

// raw consumes the next value and returns its text; nil for null.
func (s *scanner) raw() []byte {
	s.peek()
	start := s.i
	s.skip()
	if s.bad || string(s.b[start:s.i]) == "null" {
		return nil
	}
	return s.b[start:s.i]
}

// skip consumes the next value, whatever it is.
func (s *scanner) skip() {
	switch c := s.peek(); {
	case s.bad:
	case c == '{':
		for range s.members() {
			s.skip()
		}
	case c == '[':
		for range s.elements() {
			s.skip()
		}
	case c == '"':
		s.text()
	case c == '-' || '0' <= c && c <= '9':
		s.numeral()
	case c == 't':
		s.word("true")
	case c == 'f':
		s.word("false")
	case c == 'n':
		s.word("null")
	default:
		s.fail()
	}
}

func (s *scanner) word(w string) {
	if len(s.b)-s.i < len(w) || string(s.b[s.i:s.i+len(w)]) != w {
		s.fail()
		return
	}
	s.i += len(w)
}

// appendText appends a raw JSON string's meaning to dst, as encoding/json
// understands it: what is no UTF-8 and lone surrogates become U+FFFD.
func appendText(dst, raw []byte) []byte {
	for i := 0; i < len(raw); {
		c := raw[i]
		if c != '\\' {
			if c < utf8.RuneSelf {
				from := i
				for i++; i < len(raw) && raw[i] < utf8.RuneSelf && raw[i] != '\\'; i++ {
				}
				dst = append(dst, raw[from:i]...)
				continue
			}
			r, n := utf8.DecodeRune(raw[i:])
			dst = utf8.AppendRune(dst, r)
			i += n
			continue
		}
		n := escapeLen(raw[i:])
		if n == 0 {
			return dst // no raw string of a scanner
		}
		switch c := raw[i+1]; c {
		case 'b':
			dst = append(dst, '\b')
		case 'f':
			dst = append(dst, '\f')
		case 'n':
			dst = append(dst, '\n')
		case 'r':
			dst = append(dst, '\r')
		case 't':
			dst = append(dst, '\t')
		case 'u':
			r := unit(raw[i:])
			if utf16.IsSurrogate(r) {
				pair := utf16.DecodeRune(r, unit(raw[i+n:]))
				if r = pair; pair != utf8.RuneError {
					n += 6
				}
			}
			dst = utf8.AppendRune(dst, r)
		default:
			dst = append(dst, c)
		}
		i += n
	}
	return dst
}

// unit reads the \uXXXX at the start of b; -1 if there is none.
func unit(b []byte) rune {
	if len(b) < 6 || b[0] != '\\' || b[1] != 'u' {
		return -1
	}
	n, ok := hex(b[2:6])
	if !ok {
		return -1
	}
	return rune(n)
}
