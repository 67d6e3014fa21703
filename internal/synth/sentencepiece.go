package synth

import (
	"encoding/binary"
	"math"
)

// sentencePieceModel is tokenizer.model: a protocol buffer, sentencepiece's
// ModelProto (google/sentencepiece, src/sentencepiece_model.proto, where the
// numbers of fields below come from).
func (v *vocabulary) sentencePieceModel() []byte {
	var b protobuf
	for id, token := range v.tokens {
		var piece protobuf
		piece.text(1, token)
		piece.float(2, v.scores[id])
		if v.kinds[id] != kindNormal { // the field's default; types have GGUF's numbers
			piece.number(3, uint64(v.kinds[id]))
		}
		b.text(1, string(piece))
	}
	const bpe = 2
	var trainer protobuf
	trainer.number(3, bpe)
	trainer.number(4, uint64(len(v.tokens)))
	trainer.number(35, 1) // byte_fallback
	trainer.number(41, uint64(v.bos))
	trainer.number(42, uint64(v.eos))
	b.text(2, string(trainer))
	var normalizer protobuf
	normalizer.text(1, "identity")
	normalizer.number(3, 1) // add_dummy_prefix
	normalizer.number(4, 0) // remove_extra_whitespaces
	normalizer.number(5, 1) // escape_whitespaces
	b.text(3, string(normalizer))
	return b
}

// protobuf is a message in the wire format (protobuf.dev, "Encoding").
type protobuf []byte

func (b *protobuf) key(field, wireType uint64) {
	*b = binary.AppendUvarint(*b, field<<3|wireType)
}

func (b *protobuf) number(field, n uint64) {
	b.key(field, 0)
	*b = binary.AppendUvarint(*b, n)
}

func (b *protobuf) text(field uint64, s string) {
	b.key(field, 2)
	*b = append(binary.AppendUvarint(*b, uint64(len(s))), s...)
}

func (b *protobuf) float(field uint64, x float32) {
	b.key(field, 5)
	*b = binary.LittleEndian.AppendUint32(*b, math.Float32bits(x))
}
