package synth

import (
	"fmt"
	"slices"
	"strings"

	"github.com/nativebench/nativebench/internal/gguf"
	"github.com/nativebench/nativebench/internal/plan"
)

// model is a row of the plan's table, or a relative of another size, and what
// turns its shape into files.
type model struct {
	plan.Model
	arch architecture
}

// architecture turns a shape into tensors and descriptions. Each has its file.
type architecture struct {
	tensors  func(s plan.Shape, context int, quiet []span) []tensor // in GGUF's order
	metadata func(m plan.Model) []gguf.KV                           // GGUF's keys of the architecture
	config   func(m plan.Model) map[string]any                      // Hugging Face's config.json
}

// architectures are those known, by general.architecture. A model of one of
// them is a row of plan.Models; one of another needs a file like gpt2.go.
func architectures() map[string]architecture {
	return map[string]architecture{
		"gpt2":  {gpt2Tensors, gpt2Metadata, gpt2Config},
		"phi2":  {phi2Tensors, phi2Metadata, phi2Config},
		"llama": {llamaTensors, llamaMetadata, llamaConfig},
	}
}

// Models lists the keys of the models that Write can make.
func Models() []string {
	var keys []string
	for _, m := range plan.Models() {
		if _, ok := architectures()[m.Arch]; ok {
			keys = append(keys, m.Key)
		}
	}
	return keys
}

func modelByKey(key string) (model, error) {
	m, err := plan.ModelByKey(key)
	if err != nil || !slices.Contains(Models(), key) {
		return model{}, fmt.Errorf("there are no synthetic weights of model %q; there are of %s", key, strings.Join(Models(), ", "))
	}
	return model{m, architectures()[m.Arch]}, nil
}

// resized is a relative of another size, for tests. Heads keep their size and
// share keys as the model's do, and the hidden layer keeps its proportion.
func (m model) resized(layers, width int) (model, error) {
	s := &m.Shape
	if layers == 0 {
		layers = s.Layers
	}
	if width == 0 {
		width = s.Width
	}
	group := s.Heads / s.KVHeads
	step, why := s.HeadSize()*group, fmt.Sprintf("its head size, %d", s.HeadSize())
	if group > 1 {
		why = fmt.Sprintf("%d, its head size %d times the %d heads that share a key", step, s.HeadSize(), group)
	}
	switch {
	case layers < 1 || layers > 1000:
		return m, fmt.Errorf("synthetic weights of %s with %d layers: choose 1 to 1000", m.Key, layers)
	case width < 1 || width%step != 0 || width > 1<<16:
		return m, fmt.Errorf("synthetic weights of %s with a width of %d: choose a multiple of %s, up to %d", m.Key, width, why, 1<<16)
	}
	if layers != s.Layers || width != s.Width {
		m.Name = fmt.Sprintf("%s cut to %d layers of width %d", m.Name, layers, width)
	}
	heads := width / s.HeadSize()
	s.Layers, s.Width, s.Heads, s.KVHeads, s.FFN = layers, width, heads, heads/group, s.FFN*width/s.Width
	return m, nil
}
