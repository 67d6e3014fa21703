package tokenizer

import (
	"fmt"
	"slices"
	"strings"
)

// special is a token that is found in the text before anything else is done.
type special struct {
	id      int32
	text    string
	control bool // parsed only where control tokens are
	strip   bool // white space after it belongs to it
}

// fragment is a special token, or (id is none) text between such tokens.
type fragment struct {
	id   int32
	text string
}

// partition takes special tokens out of text, as llama.cpp does: longest ones
// first, wherever in the text they are, of equal length those with the lowest
// id.
func (t *Tokenizer) partition(text string, control bool) []fragment {
	if text == "" {
		return nil
	}
	list := []fragment{{none, text}}
	if !t.anySpecial(text) {
		return list
	}
	for _, s := range t.specials {
		if s.control && !control || !strings.Contains(text, s.text) {
			continue
		}
		var cut []fragment
		for _, f := range list {
			rest := f.text
			for f.id == none {
				at := strings.Index(rest, s.text)
				if at < 0 {
					break
				}
				if at > 0 {
					cut = append(cut, fragment{none, rest[:at]})
				}
				cut = append(cut, fragment{id: s.id})
				rest = rest[at+len(s.text):]
				if s.strip {
					rest = strings.TrimLeft(rest, " \t\n\v\f\r") // isspace of the C locale
				}
			}
			if f.id != none || rest != "" {
				cut = append(cut, fragment{f.id, rest})
			}
		}
		list = cut
	}
	return list
}

// anySpecial is false if text holds the beginning of no special token: there
// may be hundreds of them, with few beginnings.
func (t *Tokenizer) anySpecial(text string) bool {
	for _, p := range t.prefixes {
		if strings.Contains(text, p) {
			return true
		}
	}
	return false
}

// Tokens that llama.cpp takes for control tokens by their text, whatever their
// type says. Of a group with a key the file's key decides, if it is there.
var controlTexts = []struct {
	key   string
	texts []string
}{
	{"", strings.Fields("<|eot_id|> <|im_end|> <|end|> <|return|> <|call|> <|flush|> <|calls|> <end_of_turn> <|endoftext|> </s> <|eom_id|> <EOT> _<EOT> [EOT] [EOS] <|end_of_text|> <end_of_utterance> <eos> <turn|> <|tool_response> <｜end▁of▁sentence｜> [e~[")},
	{"fim_pre", strings.Fields("<|fim_prefix|> <fim-prefix> <fim_prefix> <｜fim▁begin｜> <PRE> ▁<PRE> <|code_prefix|> <|prefix|>")},
	{"fim_suf", strings.Fields("<|fim_suffix|> <fim-suffix> <fim_suffix> <｜fim▁hole｜> <SUF> ▁<SUF> <|code_suffix|> <|suffix|>")},
	{"fim_mid", strings.Fields("<|fim_middle|> <fim-middle> <fim_middle> <｜fim▁end｜> <MID> ▁<MID> <|code_middle|> <|middle|>")},
	{"fim_pad", strings.Fields("<|fim_pad|> <fim-pad> <fim_pad> <PAD> [PAD]")},
	{"fim_rep", strings.Fields("<|fim_repo|> <|repo_name|> <fim-repo> <REPO> <reponame>")},
	{"fim_sep", strings.Fields("<|file_sep|>")},
}

// Tokens that it takes for text that is always parsed.
var textTokens = strings.Fields("<|channel|> <|message|> <|start|> <|constrain|>")

// findSpecials makes t's list of special tokens. strip tells that the model is
// a Phi-3, most of whose special tokens take the white space after them.
func (l *loader) findSpecials(t *Tokenizer, strip bool) error {
	if l.has("<|end|>") && (l.has("<|call|>") || l.has("<|calls|>")) || l.has("<|tool_response>") && l.has("</s>") {
		return fmt.Errorf("%w: whether its <|end|> or </s> is special depends on the model", ErrUnsupported)
	}
	control := map[string]bool{}
	for _, group := range controlTexts {
		if group.key != "" && l.declared(group.key) {
			continue
		}
		var here []string
		plain := 0
		for _, s := range group.texts {
			if l.has(s) {
				here = append(here, s)
				if l.types[l.ids[s]] != typeControl {
					plain++
				}
			}
		}
		if group.key != "" && len(here) > 1 && plain > 0 {
			return fmt.Errorf("%w: any of %s may be its %s token", ErrUnsupported, strings.Join(here, " "), group.key)
		}
		for _, s := range here {
			control[s] = true
		}
	}
	for id, s := range l.tokens {
		sp := special{id: int32(id), text: s, control: l.types[id] == typeControl || l.types[id] == typeUnknown || control[s]}
		if slices.Contains(textTokens, s) {
			sp.control = false
		} else if !sp.control && l.types[id] != typeUserDefined {
			continue
		}
		sp.strip = strip && !slices.Contains([]string{"<unk>", "<s>", "<|endoftext|>"}, s)
		t.specials = append(t.specials, sp)
		if p := s[:min(2, len(s))]; !slices.Contains(t.prefixes, p) {
			t.prefixes = append(t.prefixes, p)
		}
	}
	slices.SortStableFunc(t.specials, func(a, b special) int { return len(b.text) - len(a.text) })
	return nil
}

func (l *loader) has(token string) bool { _, ok := l.ids[token]; return ok }

// declared tells whether the file itself names the token for a purpose.
func (l *loader) declared(purpose string) bool {
	keys := map[string]string{"fim_pre": "prefix", "fim_suf": "suffix", "fim_mid": "middle"} // older names
	for _, key := range []string{purpose, keys[purpose]} {
		if n, err := l.file.Int("tokenizer.ggml." + key + "_token_id"); err == nil && n >= 0 && n < int64(len(l.tokens)) {
			return true
		}
	}
	return false
}
