package synth

import (
	"fmt"

	"github.com/nativebench/nativebench/internal/gguf"
	"github.com/nativebench/nativebench/internal/plan"
)

// llamaTensors lists the weights of Llama and Mistral: rotary positions,
// RMSNorm before each block, heads that may share keys and values, SwiGLU, an
// output matrix of its own, no biases. Names and shapes are those of llama.cpp's
// converter and of Transformers' LlamaForCausalLM.
//
// The standard deviations serve what gpt2Tensors says of its own, with two
// differences: the output matrix is not the embedding, so that nothing has to
// part them, and positions come in by rotation alone: what a head looks at
// changes with the distance, and more so the sharper it looks.
func llamaTensors(s plan.Shape, _ int, quiet []span) []tensor {
	const (
		logitStd = 4.4
		token    = 0.2 // embedding, per element
		attend   = 2.2 // queries, keys and values, per element
		hidden   = 1.4 // gate and up, per element
		attnOut  = 0.5 // output matrices, relative to their inputs; what they add
		ffnOut   = 0.7 // to the residual stream is then about 0.8 per element
		gain     = 0.1 // how far the gains of norms stray from 1
	)
	width, ff, kv := int64(s.Width), int64(s.FFN), int64(s.KVHeads*s.HeadSize())
	rotated := func(gguf, hf string, out int64, heads int) tensor {
		t := linear(gguf, hf, width, out, attend)
		t.heads = int64(heads)
		return t
	}
	output := linear("output.weight", "lm_head.weight", width, int64(s.Vocab), logitStd)
	output.quiet = quiet
	all := []tensor{
		output,
		{gguf: "token_embd.weight", hf: "model.embed_tokens.weight", rows: int64(s.Vocab), cols: width, std: token},
		vector("output_norm.weight", "model.norm.weight", width, 1, gain),
	}
	for i := range s.Layers {
		g, h := fmt.Sprintf("blk.%d.", i), fmt.Sprintf("model.layers.%d.", i)
		all = append(all,
			vector(g+"attn_norm.weight", h+"input_layernorm.weight", width, 1, gain),
			rotated(g+"attn_q.weight", h+"self_attn.q_proj.weight", width, s.Heads),
			rotated(g+"attn_k.weight", h+"self_attn.k_proj.weight", kv, s.KVHeads),
			linear(g+"attn_v.weight", h+"self_attn.v_proj.weight", width, kv, attend),
			linear(g+"attn_output.weight", h+"self_attn.o_proj.weight", width, width, attnOut),
			vector(g+"ffn_norm.weight", h+"post_attention_layernorm.weight", width, 1, gain),
			linear(g+"ffn_gate.weight", h+"mlp.gate_proj.weight", width, ff, hidden),
			linear(g+"ffn_up.weight", h+"mlp.up_proj.weight", width, ff, hidden),
			linear(g+"ffn_down.weight", h+"mlp.down_proj.weight", ff, width, ffnOut),
		)
	}
	return all
}

// llamaMetadata gives the keys that llama.cpp's converter writes for Llama and
// Mistral; it drops Mistral's sliding window, which its engine does not have.
func llamaMetadata(m plan.Model) []gguf.KV {
	s := m.Shape
	return []gguf.KV{
		{Key: "llama.block_count", Value: uint32(s.Layers)},
		{Key: "llama.context_length", Value: uint32(m.Context)},
		{Key: "llama.embedding_length", Value: uint32(s.Width)},
		{Key: "llama.feed_forward_length", Value: uint32(s.FFN)},
		{Key: "llama.attention.head_count", Value: uint32(s.Heads)},
		{Key: "llama.attention.head_count_kv", Value: uint32(s.KVHeads)},
		{Key: "llama.rope.freq_base", Value: float32(s.RopeTheta)},
		{Key: "llama.attention.layer_norm_rms_epsilon", Value: float32(s.Epsilon)},
		{Key: "llama.vocab_size", Value: uint32(s.Vocab)},
		{Key: "llama.rope.dimension_count", Value: uint32(s.RopeDims)},
	}
}

// llamaConfig gives the keys of the checkpoints' config.json.
func llamaConfig(m plan.Model) map[string]any {
	s := m.Shape
	config := map[string]any{
		"architectures":           []string{"LlamaForCausalLM"},
		"model_type":              m.HFType,
		"attention_bias":          false,
		"attention_dropout":       0.0,
		"hidden_act":              "silu",
		"hidden_size":             s.Width,
		"initializer_range":       0.02,
		"intermediate_size":       s.FFN,
		"max_position_embeddings": m.Context,
		"mlp_bias":                false,
		"num_attention_heads":     s.Heads,
		"num_hidden_layers":       s.Layers,
		"num_key_value_heads":     s.KVHeads,
		"pretraining_tp":          1,
		"rms_norm_eps":            s.Epsilon,
		"rope_scaling":            nil,
		"rope_theta":              s.RopeTheta,
		"tie_word_embeddings":     false,
		"use_cache":               true,
	}
	if m.HFType == "mistral" {
		config["architectures"] = []string{"MistralForCausalLM"}
		config["sliding_window"] = m.SlidingWindow
		for _, key := range []string{"attention_bias", "mlp_bias", "pretraining_tp", "rope_scaling"} {
			delete(config, key)
		}
	}
	return config
}
