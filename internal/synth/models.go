package synth

import (
	"fmt"
	"strings"

	"github.com/nativebench/nativebench/internal/gguf"
)

// model is one row of the table of shapes: what is needed to make a model's
// files besides numbers.
type model struct {
	key, name string
	arch      architecture

	layers, width, headSize int
	context                 int // positions
	vocab                   int // tokens
	vocabFile               string
}

// architecture turns a shape into tensors and descriptions. Each has its file.
type architecture struct {
	name     string                          // general.architecture
	tensors  func(m model, eos int) []tensor // in GGUF's order
	metadata func(m model) []gguf.KV         // GGUF's keys of the architecture
	config   func(m model) map[string]any    // Hugging Face's config.json
}

// models is the table. A model of a known architecture is a row; one of
// another needs a file like gpt2.go.
func models() []model {
	return []model{
		{
			key: "gpt2", name: "GPT-2 small", arch: gpt2(),
			layers: 12, width: 768, headSize: 64, context: 1024,
			vocab: 50257, vocabFile: "ggml-vocab-gpt-2.gguf",
		},
	}
}

// Models lists the keys of the models that Write can make.
func Models() []string {
	var keys []string
	for _, m := range models() {
		keys = append(keys, m.key)
	}
	return keys
}

func modelByKey(key string) (model, error) {
	for _, m := range models() {
		if m.key == key {
			return m, nil
		}
	}
	return model{}, fmt.Errorf("there are no synthetic weights of model %q; there are of %s", key, strings.Join(Models(), ", "))
}

// resized is a relative of another size, for tests.
func (m model) resized(layers, width int) (model, error) {
	if layers == 0 {
		layers = m.layers
	}
	if width == 0 {
		width = m.width
	}
	switch {
	case layers < 1 || layers > 1000:
		return m, fmt.Errorf("synthetic weights of %s with %d layers: choose 1 to 1000", m.key, layers)
	case width < 1 || width%m.headSize != 0 || width > 1<<16:
		return m, fmt.Errorf("synthetic weights of %s with a width of %d: choose a multiple of its head size, %d, up to %d", m.key, width, m.headSize, 1<<16)
	}
	if layers != m.layers || width != m.width {
		m.name = fmt.Sprintf("%s cut to %d layers of width %d", m.name, layers, width)
	}
	m.layers, m.width = layers, width
	return m, nil
}
