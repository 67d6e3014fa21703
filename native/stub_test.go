//go:build !cgo || !linux

package native

import (
	"context"
	"errors"
	"testing"
)

func TestLeftOutSaysSo(t *testing.T) {
	_, open := Open(context.Background(), Config{}, nil)
	_, vocab := OpenVocab("", "")
	for _, err := range []error{open, vocab, Available("")} {
		if !errors.Is(err, ErrLeftOut) {
			t.Errorf("got %v", err)
		}
	}
}
