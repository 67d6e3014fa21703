package tokenizer

import (
	"path/filepath"
	"testing"

	"github.com/nativebench/nativebench/native"
)

// FuzzTokenize: whatever the text, the ids and the count are the engine's. In
// the client-only build it looks for crashes alone.
func FuzzTokenize(f *testing.F) {
	type subject struct {
		tok *Tokenizer
		ref *native.Vocab
	}
	var subjects []subject
	for _, name := range known {
		s := subject{tok: open(f, name)}
		if ref, err := native.OpenVocab(filepath.Dir(vocabDir(f)), filepath.Join(vocabDir(f), "ggml-vocab-"+name+".gguf")); err == nil {
			f.Cleanup(func() { ref.Close() })
			s.ref = ref
		}
		subjects = append(subjects, s)
	}
	f.Add("Hello, world!")
	f.Fuzz(func(t *testing.T, text string) {
		for _, s := range subjects {
			if s.ref != nil {
				same(t, s.tok, s.ref, text)
			} else if _, err := s.tok.CountTokens(text); err != nil {
				t.Log(err)
			}
		}
	})
}
