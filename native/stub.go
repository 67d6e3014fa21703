//go:build !cgo || !linux

package native

import (
	"context"

	"github.com/nativebench/nativebench/internal/bench"
)

// Engine is left out of this build.
type Engine struct{}

// Vocab is left out of this build.
type Vocab struct{}

// Build describes an engine library.
type Build struct{ Engine, Build, SourceHash string }

// Available returns ErrLeftOut.
func Available(string) error { return ErrLeftOut }

// Describe returns ErrLeftOut.
func Describe(string) (Build, error) { return Build{}, ErrLeftOut }

// Begin returns ErrLeftOut.
func Begin(string) error { return ErrLeftOut }

// Open returns ErrLeftOut.
func Open(context.Context, Config, func(fraction float64)) (*Engine, error) { return nil, ErrLeftOut }

// OpenVocab returns ErrLeftOut.
func OpenVocab(dir, gguf string) (*Vocab, error) { return nil, ErrLeftOut }

// Info describes nothing.
func (*Engine) Info() bench.Info { return bench.Info{Backend: "native"} }

// NewSession returns ErrLeftOut.
func (*Engine) NewSession(bench.Limits) (bench.Session, error) { return nil, ErrLeftOut }

// CountTokens returns ErrLeftOut.
func (*Engine) CountTokens(string) (int, error) { return 0, ErrLeftOut }

// Tokenize returns ErrLeftOut.
func (*Engine) Tokenize(string) ([]int32, error) { return nil, ErrLeftOut }

// Vocab returns ErrLeftOut.
func (*Engine) Vocab() (*Vocab, error) { return nil, ErrLeftOut }

// Logits returns ErrLeftOut.
func (*Engine) Logits([]int32, int) ([][]float32, error) { return nil, ErrLeftOut }

// Watch returns ErrLeftOut.
func (*Engine) Watch(Work, int) (Watched, error) { return Watched{}, ErrLeftOut }

// Memory returns nothing.
func (*Engine) Memory() []bench.MemoryPart { return nil }

// Close does nothing.
func (*Engine) Close() error { return nil }

// Tokenize returns ErrLeftOut.
func (*Vocab) Tokenize(string) ([]int32, error) { return nil, ErrLeftOut }

// CountTokens returns ErrLeftOut.
func (*Vocab) CountTokens(string) (int, error) { return 0, ErrLeftOut }

// Piece returns ErrLeftOut.
func (*Vocab) Piece(int32) (string, error) { return "", ErrLeftOut }

// Close does nothing.
func (*Vocab) Close() error { return nil }
