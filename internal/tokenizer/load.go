package tokenizer

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/nativebench/nativebench/internal/gguf"
)

// Types of tokens, tokenizer.ggml.token_type.
const (
	TypeNormal = 1 + iota // of text; the others are not
	typeUnknown
	typeControl
	typeUserDefined
	typeUnused
	typeByte
)

// New reads the vocabulary in the metadata of f.
func New(f *gguf.File) (*Tokenizer, error) {
	l := loader{file: f}
	kind, err := gguf.Get[string](f, "tokenizer.ggml.model")
	if err != nil {
		return nil, err
	}
	// Models of these names strip white space around some tokens in ways that
	// no key tells.
	name := strings.ToLower(l.text("general.name"))
	if strings.Contains(name, "modern-bert") {
		return nil, fmt.Errorf("%w: %s", ErrUnsupported, name)
	}
	if err := l.readTokens(); err != nil {
		return nil, err
	}
	t := &Tokenizer{}
	bos, addBOS := none, false
	switch kind {
	case "gpt2":
		bos = 11 // llama.cpp's default
		addBOS, err = l.byteLevel(t)
	case "llama":
		bos, addBOS = 1, true
		err = l.sentencePiece(t)
	default:
		err = fmt.Errorf("%w: its kind is %q; gpt2 and llama are known", ErrUnsupported, kind)
	}
	if err != nil {
		return nil, err
	}
	if err := l.findSpecials(t, strings.Contains(name, "phi-3") || strings.Contains(name, "phi3")); err != nil {
		return nil, err
	}
	return t, l.countAround(t, bos, addBOS)
}

// loader reads one file's vocabulary.
type loader struct {
	file   *gguf.File
	tokens []string         // by id
	types  []int32          // by id
	ids    map[string]int32 // of tokens
}

// text is the string at key, "" if there is none.
func (l *loader) text(key string) string {
	s, _ := gguf.Get[string](l.file, key)
	return s
}

func (l *loader) readTokens() (err error) {
	list, err := gguf.Get[[]string](l.file, "tokenizer.ggml.tokens")
	if err != nil {
		return err
	}
	l.tokens = slices.Clone(list)
	l.ids = make(map[string]int32, len(list))
	for id, s := range l.tokens {
		if s == "" {
			s = fmt.Sprintf("[EMPTY_%d]", id) // what llama.cpp calls it
			l.tokens[id] = s
		}
		if first, twice := l.ids[s]; twice {
			return fmt.Errorf("tokens %d and %d are both %q", first, id, s)
		}
		l.ids[s] = int32(id)
	}
	const key = "tokenizer.ggml.token_type"
	if _, ok := l.file.Value(key); !ok {
		l.types = slices.Repeat([]int32{TypeNormal}, len(list))
		return nil
	}
	types, err := gguf.Get[[]int32](l.file, key)
	if err != nil {
		return err
	}
	if len(types) < len(list) {
		return fmt.Errorf("it has %d tokens and %d token types", len(list), len(types))
	}
	l.types = slices.Clone(types)
	return nil
}

// byteLevel makes t a byte-level BPE tokenizer; addBOS is llama.cpp's default.
func (l *loader) byteLevel(t *Tokenizer) (addBOS bool, err error) {
	pre := l.text("tokenizer.ggml.pre")
	split, ok := splitters[pre]
	if !ok {
		return false, fmt.Errorf("%w: its pre-tokenizer is %q", ErrUnsupported, pre)
	}
	merges, err := gguf.Get[[]string](l.file, "tokenizer.ggml.merges")
	if err != nil {
		return false, err
	}
	b := &byteLevel{words: split.words, tokens: len(l.tokens), pieces: map[int32][]int32{}}
	t.model, t.pairs = b, make(pairs, len(merges))
	// Symbols by the bytes that they are. Tokens that are not written in the
	// alphabet of bytes are never the result of a merge.
	symbols := make(map[string]int32, len(l.tokens))
	for id, s := range l.tokens {
		if raw, ok := rawBytes(s); ok {
			symbols[raw] = int32(id)
		}
	}
	if split.ignoreMerges {
		b.whole = make(map[string]int32, len(symbols))
		for raw, id := range symbols {
			b.whole[raw] = id
		}
	}
	symbol := func(raw string) int32 {
		s, ok := symbols[raw]
		if !ok {
			s = int32(b.tokens + len(b.pieces))
			symbols[raw] = s
			b.pieces[s] = l.loose(raw)
		}
		return s
	}
	for i := range b.symbols {
		b.symbols[i] = symbol(string([]byte{byte(i)}))
	}
	for rank, m := range merges {
		left, right, ok := cutMerge(m)
		if !ok {
			continue
		}
		key := pairOf(symbol(left), symbol(right))
		if _, twice := t.pairs[key]; !twice {
			t.pairs[key] = join{uint32(rank), symbol(left + right)}
		}
	}
	return split.addBOS, nil
}

// cutMerge returns the two sides of a merge, as bytes; false if it can never
// be done.
func cutMerge(m string) (left, right string, ok bool) {
	if len(m) < 2 {
		return "", "", false
	}
	at := strings.IndexByte(m[1:], ' ') + 1
	if at < 1 || at+1 == len(m) {
		return "", "", false
	}
	left, okLeft := rawBytes(m[:at])
	right, okRight := rawBytes(m[at+1:])
	return left, right, okLeft && okRight
}

// loose returns the tokens of bytes that make no token together. llama.cpp
// looks up the bytes of how they are written, and drops those that are no
// token: all but printable ASCII.
func (l *loader) loose(raw string) (ids []int32) {
	var written []byte
	for i := range len(raw) {
		written = append(written, string(alphabet[raw[i]])...)
	}
	for _, c := range written {
		if id, ok := l.ids[string([]byte{c})]; ok {
			ids = append(ids, id)
		}
	}
	return ids
}

// alphabet is how GPT-2's vocabulary writes bytes: printable characters of
// Latin-1 stand for themselves, the others for what is from U+0100 on.
var alphabet, unwritten = func() (to [256]rune, from map[rune]byte) {
	from = map[rune]byte{}
	more := rune(0x100)
	for b := range 256 {
		r := rune(b)
		if r < '!' || '~' < r && r < '¡' || r == '\u00ad' {
			r = more
			more++
		}
		to[b], from[r] = r, byte(b)
	}
	return to, from
}()

// rawBytes undoes that; false if s is not written so.
func rawBytes(s string) (string, bool) {
	raw := make([]byte, 0, len(s))
	for _, r := range s {
		b, ok := unwritten[r]
		if !ok {
			return "", false
		}
		raw = append(raw, b)
	}
	return string(raw), true
}

// sentencePiece makes t a SentencePiece BPE tokenizer.
func (l *loader) sentencePiece(t *Tokenizer) error {
	ranks, err := l.ranks()
	if err != nil {
		return err
	}
	p := &sentencePiece{prefix: true, tokens: len(l.tokens), cut: true, symbols: map[string]int32{}}
	t.model, t.pairs = p, make(pairs, 4*len(l.tokens))
	if p.prefix, err = l.flag("tokenizer.ggml.add_space_prefix", true); err != nil {
		return err
	}
	// First all characters, so that each has a symbol wherever it is seen.
	for _, s := range l.tokens {
		seen := false
		for rest := s; rest != ""; {
			var char string
			char, rest = firstChar(rest)
			if _, ok := p.symbols[char]; !ok {
				id, ok := l.ids[char]
				if !ok {
					id = int32(p.tokens + len(p.chars))
					p.chars = append(p.chars, char)
				}
				p.symbols[char] = id
			}
			if char != space {
				seen = true
			} else if seen {
				p.cut = false
			}
		}
	}
	symbol := func(s string) (int32, bool) {
		if id, ok := l.ids[s]; ok {
			return id, true
		}
		id, ok := p.symbols[s]
		return id, ok
	}
	for id, s := range l.tokens {
		for at := 0; at < len(s); {
			at = min(at+charLen(s[at]), len(s))
			left, okLeft := symbol(s[:at])
			right, okRight := symbol(s[at:])
			if okLeft && okRight && at < len(s) {
				t.pairs[pairOf(left, right)] = join{ranks[id], int32(id)}
			}
		}
	}
	for b := range p.single {
		p.single[b] = none
		if s, ok := p.symbols[string(rune(b))]; ok {
			p.single[b] = s
		}
	}
	for b := range p.fallback {
		p.fallback[b] = none
		if id, ok := l.ids[fmt.Sprintf("<0x%02X>", b)]; ok {
			p.fallback[b] = id
		} else if id, ok := l.ids[string([]byte{byte(b)})]; ok && b != 0 {
			p.fallback[b] = id
		}
	}
	return nil
}

func firstChar(s string) (char, rest string) {
	n := min(charLen(s[0]), len(s))
	return s[:n], s[n:]
}

// ranks orders tokens by score: the highest is 0, equal ones are equal.
func (l *loader) ranks() ([]uint32, error) {
	const key = "tokenizer.ggml.scores"
	scores := make([]float32, len(l.tokens))
	if v, ok := l.file.Value(key); ok {
		switch v := v.(type) {
		case []float32:
			scores = v
		case []int32:
			scores = nil
			for _, n := range v {
				scores = append(scores, float32(n))
			}
		default:
			return nil, fmt.Errorf("the metadata's %q are neither float32 nor int32", key)
		}
	}
	if len(scores) < len(l.tokens) {
		return nil, fmt.Errorf("it has %d tokens and %d scores", len(l.tokens), len(scores))
	}
	scores = scores[:len(l.tokens)]
	if slices.ContainsFunc(scores, func(s float32) bool { return s != s }) {
		return nil, errors.New("a score is not a number")
	}
	order := slices.Clone(scores)
	slices.SortFunc(order, func(a, b float32) int { return cmp.Compare(b, a) })
	order = slices.Compact(order)
	ranks := make([]uint32, len(scores))
	for id, s := range scores {
		at, _ := slices.BinarySearchFunc(order, s, func(a, b float32) int { return cmp.Compare(b, a) })
		ranks[id] = uint32(at)
	}
	return ranks, nil
}

// flag is the bool at key, or what it is by default.
func (l *loader) flag(key string, byDefault bool) (bool, error) {
	if _, ok := l.file.Value(key); !ok {
		return byDefault, nil
	}
	return gguf.Get[bool](l.file, key)
}

// countAround counts the BOS and EOS that a prompt gets.
func (l *loader) countAround(t *Tokenizer, bos int32, addBOS bool) error {
	for _, of := range []struct {
		name      string
		id        int32
		byDefault bool
	}{{"bos", bos, addBOS}, {"eos", 0, false}} {
		add, err := l.flag("tokenizer.ggml.add_"+of.name+"_token", of.byDefault)
		if err != nil {
			return err
		}
		if !add {
			continue
		}
		if n, err := l.file.Int("tokenizer.ggml." + of.name + "_token_id"); err == nil && n >= 0 && n < int64(len(l.tokens)) {
			of.id = int32(n)
		}
		if int(of.id) >= len(l.tokens) {
			return fmt.Errorf("a prompt gets a %s, and it has no such token", strings.ToUpper(of.name))
		}
		t.around++
	}
	return nil
}
