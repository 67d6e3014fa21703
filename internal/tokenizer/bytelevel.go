package tokenizer

import (
	"errors"
	"unicode"
	"unicode/utf8"
)

// byteLevel is GPT-2's BPE: text is cut into words, a word into bytes, and
// bytes are merged as a list says.
type byteLevel struct {
	words   splitter
	symbols [256]int32       // of bytes
	whole   map[string]int32 // words that are tokens whatever the merges say; may be nil
	tokens  int              // symbols from here on are no tokens
	pieces  map[int32][]int32
}

func (b *byteLevel) tokenize(m *merger, ids []int32, text string, _ bool) ([]int32, error) {
	text, err := repair(text)
	if err != nil {
		return nil, err
	}
	for at := 0; at < len(text); {
		end := b.words(text, at)
		word := text[at:end]
		at = end
		if id, ok := b.whole[word]; ok {
			ids = append(ids, id)
			continue
		}
		m.sym = m.sym[:0]
		for i := range len(word) {
			m.sym = append(m.sym, b.symbols[word[i]])
		}
		for _, s := range m.merge() {
			if int(s) < b.tokens {
				ids = append(ids, s)
			} else {
				ids = append(ids, b.pieces[s]...)
			}
		}
	}
	return ids, nil
}

// splitter returns the end of the word that begins at i < len(s).
type splitter func(s string, i int) int

// splitters are the pre-tokenizers by tokenizer.ggml.pre, with what else
// llama.cpp derives from the name. Their patterns are in the models'
// tokenizer.json; llama.cpp's readings of them decide where they differ.
var splitters = map[string]struct {
	words        splitter
	ignoreMerges bool // a word that is a token is not merged
	addBOS       bool // if the file does not say
}{
	"gpt-2":            {words: gpt2Word},
	"phi-2":            {words: gpt2Word},
	"mpt":              {words: gpt2Word},
	"olmo":             {words: gpt2Word},
	"llama3":           {llama3Word, true, true},
	"llama-v3":         {llama3Word, true, true},
	"llama-bpe":        {llama3Word, true, true},
	"dbrx":             {words: llama3Word},
	"smaug-bpe":        {words: llama3Word},
	"qwen2":            {words: qwen2Word},
	"stablelm2":        {words: qwen2Word},
	"deepseek-r1-qwen": {words: qwen2Word},
}

// gpt2Word is the pattern
//
//	's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
func gpt2Word(s string, i int) int {
	if n := contraction(s[i:], false); n > 0 {
		return i + n
	}
	c, end := classAt(s, i)
	if s[i] == ' ' && end < len(s) {
		if after, e := classAt(s, end); after != blank {
			c, end = after, e
		}
	}
	if c == blank {
		return blanks(s, i, false)
	}
	return run(s, end, c)
}

// llama3Word is the pattern
//
//	(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+
func llama3Word(s string, i int) int { return modernWord(s, i, 3) }

// qwen2Word is the same with numbers of one digit.
func qwen2Word(s string, i int) int { return modernWord(s, i, 1) }

func modernWord(s string, i, digits int) int {
	if n := contraction(s[i:], true); n > 0 {
		return i + n
	}
	c, end := classAt(s, i)
	after, afterEnd := blank, end
	if end < len(s) {
		after, afterEnd = classAt(s, end)
	}
	switch {
	case c == letter:
		return run(s, end, letter)
	case c == number:
		for n := 1; n < digits && end < len(s); n++ {
			if after, afterEnd = classAt(s, end); after != number {
				break
			}
			end = afterEnd
		}
		return end
	case after == letter && s[i] != '\r' && s[i] != '\n':
		return run(s, afterEnd, letter)
	case c == other || s[i] == ' ' && after == other:
		end = run(s, end, other)
		for end < len(s) && (s[end] == '\r' || s[end] == '\n') {
			end++
		}
		return end
	}
	return blanks(s, i, true)
}

// contraction is the length of an English one at the beginning of s.
func contraction(s string, fold bool) int {
	if len(s) < 2 || s[0] != '\'' {
		return 0
	}
	lower := func(b byte) byte {
		if fold && 'A' <= b && b <= 'Z' {
			b += 'a' - 'A'
		}
		return b
	}
	switch a := lower(s[1]); a {
	case 's', 't', 'm', 'd':
		return 2
	case 'r', 'v', 'l':
		if len(s) > 2 {
			if b := lower(s[2]); a == 'l' && b == 'l' || a != 'l' && b == 'e' {
				return 3
			}
		}
	}
	return 0
}

// run returns the end of the characters of class c from i on.
func run(s string, i int, c class) int {
	for i < len(s) {
		got, end := classAt(s, i)
		if got != c {
			break
		}
		i = end
	}
	return i
}

// blanks returns the end of the white space at i that is a word: up to the
// last line break in it if lines is set, else all of it, without the last
// character if something else follows and it is not alone.
func blanks(s string, i int, lines bool) int {
	start, last, lineEnd := i, i, 0
	for i < len(s) {
		c, end := classAt(s, i)
		if c != blank {
			break
		}
		if s[i] == '\r' || s[i] == '\n' {
			lineEnd = end
		}
		last, i = i, end
	}
	switch {
	case lines && lineEnd > 0:
		return lineEnd
	case last > start && i < len(s):
		return last
	}
	return i
}

// class is what pre-tokenizers tell characters apart by.
type class uint8

const (
	other  class = iota
	letter       // \p{L}
	number       // \p{N}
	blank        // \s: Unicode's White_Space
)

var ascii = func() (table [utf8.RuneSelf]class) {
	for r := range table {
		table[r] = classOf(rune(r))
	}
	return table
}()

// classAt returns the class of the character at i, and its end. s is a result
// of repair.
func classAt(s string, i int) (class, int) {
	b := s[i]
	switch {
	case b < 0x80:
		return ascii[b], i + 1
	case b < 0xe0:
		return classOf(rune(b&0x1f)<<6 | rune(s[i+1]&0x3f)), i + 2
	case b < 0xf0:
		return classOf(rune(b&0xf)<<12 | rune(s[i+1]&0x3f)<<6 | rune(s[i+2]&0x3f)), i + 3
	}
	return classOf(rune(b&7)<<18 | rune(s[i+1]&0x3f)<<12 | rune(s[i+2]&0x3f)<<6 | rune(s[i+3]&0x3f)), i + 4
}

// classOf has the data of Unicode 15.1, as llama.cpp has. The standard library
// has those of 15.0, which lack the CJK ideographs of extension I.
func classOf(r rune) class {
	switch {
	case unicode.IsLetter(r), 0x2ebf0 <= r && r <= 0x2ee5d:
		return letter
	case unicode.IsNumber(r):
		return number
	case unicode.IsSpace(r):
		return blank
	}
	return other
}

// repair makes invalid UTF-8 what llama.cpp makes of it before it looks for
// words: overlong forms are shortened, surrogates are kept, a byte that begins
// no character becomes U+FFFD. It is an error if a character lies beyond
// U+10FFFF.
func repair(s string) (string, error) {
	if utf8.ValidString(s) {
		return s, nil
	}
	out := make([]byte, 0, len(s)+16)
	for i := 0; i < len(s); {
		n, b := charLen(s[i]), s[i]
		valid := i+n <= len(s) && b < 0xf8 && (b < 0x80 || b >= 0xc0)
		r := rune(b)
		if n > 1 {
			r = rune(b & (0xff >> (n + 1)))
		}
		for k := 1; valid && k < n; k++ {
			valid = s[i+k]&0xc0 == 0x80
			r = r<<6 | rune(s[i+k]&0x3f)
		}
		switch {
		case !valid:
			out = utf8.AppendRune(out, utf8.RuneError)
			i++
			continue
		case r > unicode.MaxRune:
			return "", errors.New("the text has a character beyond U+10FFFF: it is not UTF-8")
		case 0xd800 <= r && r < 0xe000:
			out = append(out, 0xe0|byte(r>>12), 0x80|byte(r>>6&0x3f), 0x80|byte(r&0x3f))
		default:
			out = utf8.AppendRune(out, r)
		}
		i += n
	}
	return string(out), nil
}

// charLen is how many bytes a character takes that begins with b; 1 for a byte
// that begins none.
func charLen(b byte) int {
	switch {
	case b < 0xc0:
		return 1
	case b < 0xe0:
		return 2
	case b < 0xf0:
		return 3
	}
	return 4
}
