package synth

import (
	"fmt"

	"github.com/nativebench/nativebench/internal/gguf"
	"github.com/nativebench/nativebench/internal/plan"
)

// gpt2Tensors lists the weights of GPT-2: learned positions, LayerNorm before
// each block, one matrix for queries, keys and values, GELU, output matrix tied
// to the token embedding. Names and shapes are those of llama.cpp's
// converter and of the checkpoint openai-community/gpt2, whose Conv1D layers
// hold matrices as inputs × outputs.
//
// The standard deviations are not those of an untrained GPT-2 (0.02 throughout),
// which repeats its last token for ever: there the residual stream is mostly
// the input's embedding, and the tied output matrix finds just that. Each is
// chosen for what it does (n: number of inputs of a matrix):
//
//   - the product of final norm and embedding gives logits of standard deviation
//     logitStd, hence a next-token distribution as wide as a trained small
//     model's, neither flat nor certain;
//   - the gains of the final norm have mean 0: their signs part the output from
//     the input side of the tied matrix, so that no token is its own successor,
//     and their spread varies the entropy from step to step;
//   - positions weigh as much as tokens, so that the same token later in the
//     text does not meet the same state, and greedy decoding leaves its loops;
//   - attention scores have a standard deviation of about attend², so that a
//     head looks at some tokens of the text and not at the mean of all, which
//     would be nearly the same at every step; much more than this would make
//     the model chaotic, and rounding would decide what it writes;
//   - blocks add much more to the residual stream than the embedding brings.
//
// The values were found by trying: see TestTextIsVaried.
func gpt2Tensors(s plan.Shape, context int, quiet []span) []tensor {
	const (
		logitStd = 4.4
		attend   = 2.2 // queries, keys and values, per element
		hidden   = 1.4 // the feed-forward's hidden layer before GELU, per element
		attnOut  = 0.5 // output matrices, relative to their inputs; what they add
		ffnOut   = 1.0 // to the residual stream is then about 0.8 per element
		gain     = 0.1 // how far LayerNorm gains stray from 1
		bias     = 0.1
	)
	width, ff := int64(s.Width), int64(s.FFN)
	conv1D := func(gguf, hf string, in, out int64, std float64) tensor {
		return tensor{gguf: gguf, hf: hf, rows: out, cols: in, transposed: true, std: per(std, in)}
	}
	embedding := per(logitStd, width)
	all := []tensor{
		{gguf: "token_embd.weight", hf: "wte.weight", rows: int64(s.Vocab), cols: width, std: embedding, quiet: quiet},
		{gguf: "position_embd.weight", hf: "wpe.weight", rows: int64(context), cols: width, wide: true, std: embedding},
		vector("output_norm.weight", "ln_f.weight", width, 0, 1),
		vector("output_norm.bias", "ln_f.bias", width, 0, bias),
	}
	for i := range s.Layers {
		g, h := fmt.Sprintf("blk.%d.", i), fmt.Sprintf("h.%d.", i)
		all = append(all,
			vector(g+"attn_norm.weight", h+"ln_1.weight", width, 1, gain),
			vector(g+"attn_norm.bias", h+"ln_1.bias", width, 0, bias),
			conv1D(g+"attn_qkv.weight", h+"attn.c_attn.weight", width, 3*width, attend),
			vector(g+"attn_qkv.bias", h+"attn.c_attn.bias", 3*width, 0, bias),
			conv1D(g+"attn_output.weight", h+"attn.c_proj.weight", width, width, attnOut),
			vector(g+"attn_output.bias", h+"attn.c_proj.bias", width, 0, bias),
			vector(g+"ffn_norm.weight", h+"ln_2.weight", width, 1, gain),
			vector(g+"ffn_norm.bias", h+"ln_2.bias", width, 0, bias),
			conv1D(g+"ffn_up.weight", h+"mlp.c_fc.weight", width, ff, hidden),
			vector(g+"ffn_up.bias", h+"mlp.c_fc.bias", ff, 0, bias),
			conv1D(g+"ffn_down.weight", h+"mlp.c_proj.weight", ff, width, ffnOut),
			vector(g+"ffn_down.bias", h+"mlp.c_proj.bias", width, 0, bias),
		)
	}
	return all
}

// gpt2Metadata gives the keys that llama.cpp's converter writes for GPT-2.
func gpt2Metadata(m plan.Model) []gguf.KV {
	return []gguf.KV{
		{Key: "gpt2.block_count", Value: uint32(m.Shape.Layers)},
		{Key: "gpt2.context_length", Value: uint32(m.Context)},
		{Key: "gpt2.embedding_length", Value: uint32(m.Shape.Width)},
		{Key: "gpt2.feed_forward_length", Value: uint32(m.Shape.FFN)},
		{Key: "gpt2.attention.head_count", Value: uint32(m.Shape.Heads)},
		{Key: "gpt2.attention.layer_norm_epsilon", Value: float32(m.Shape.Epsilon)},
	}
}

// gpt2Config gives the keys of the checkpoint's config.json.
func gpt2Config(m plan.Model) map[string]any {
	return map[string]any{
		"architectures":                   []string{"GPT2LMHeadModel"},
		"model_type":                      "gpt2",
		"activation_function":             "gelu_new",
		"attn_pdrop":                      0.1,
		"embd_pdrop":                      0.1,
		"resid_pdrop":                     0.1,
		"initializer_range":               0.02,
		"layer_norm_epsilon":              m.Shape.Epsilon,
		"n_ctx":                           m.Context,
		"n_positions":                     m.Context,
		"n_embd":                          m.Shape.Width,
		"n_head":                          m.Shape.Heads,
		"n_inner":                         nil,
		"n_layer":                         m.Shape.Layers,
		"scale_attn_weights":              true,
		"scale_attn_by_inverse_layer_idx": false,
		"tie_word_embeddings":             true,
		"use_cache":                       true,
	}
}
