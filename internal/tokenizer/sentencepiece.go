package tokenizer

import (
	"fmt"
	"strings"
)

// space is how SentencePiece writes a space.
const space = "▁"

// sentencePiece is SentencePiece's BPE as Llama has it: any two neighbours
// that make a token can be joined, the token with the highest score first.
type sentencePiece struct {
	prefix   bool             // a space is put in front
	symbols  map[string]int32 // of characters
	single   [0x80]int32      // the same of characters of one byte
	tokens   int              // symbols from here on are no tokens
	chars    []string         // what those are
	fallback [256]int32       // tokens of bytes, for a character that is none
	// cut tells that no token goes on past a space, so that words can be
	// merged one by one with the same result.
	cut bool
}

func (p *sentencePiece) tokenize(m *merger, ids []int32, text string, after bool) (_ []int32, err error) {
	text = strings.ReplaceAll(text, " ", space)
	if p.prefix && after {
		text = space + text
	}
	m.sym = m.sym[:0]
	inWord := false
	for at := 0; at < len(text); {
		end := min(at+charLen(text[at]), len(text))
		isSpace := text[at:end] == space
		if p.cut && isSpace && inWord {
			if ids, err = p.emit(ids, m.merge(), text); err != nil {
				return nil, err
			}
			m.sym = m.sym[:0]
		}
		m.sym = append(m.sym, p.symbol(text[at:end], at))
		at, inWord = end, !isSpace
	}
	return p.emit(ids, m.merge(), text)
}

// symbol returns the symbol of the character at byte at of a text: one below
// none, which says where it is, if no token has that character.
func (p *sentencePiece) symbol(char string, at int) int32 {
	s := none
	if char[0] < 0x80 {
		s = p.single[char[0]]
	} else if known, ok := p.symbols[char]; ok {
		s = known
	}
	if s == none {
		return none - 1 - int32(at)
	}
	return s
}

// emit appends symbols of text as tokens.
func (p *sentencePiece) emit(ids, symbols []int32, text string) ([]int32, error) {
	for _, s := range symbols {
		if s >= 0 && int(s) < p.tokens {
			ids = append(ids, s)
			continue
		}
		var char string
		if s >= 0 {
			char = p.chars[int(s)-p.tokens]
		} else {
			at := int(none - 1 - s)
			char = text[at:min(at+charLen(text[at]), len(text))]
		}
		for i := range len(char) {
			id := p.fallback[char[i]]
			if id == none {
				return nil, fmt.Errorf("the vocabulary has no token for %q", char)
			}
			ids = append(ids, id)
		}
	}
	return ids, nil
}
