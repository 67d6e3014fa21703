// sampler.h: choosing a token from logits: temperature, then top-p, then one
// uniform draw. Pure functions over caller's memory; knows no engine.
#ifndef NB_SAMPLER_H
#define NB_SAMPLER_H

#include <cstddef>
#include <cstdint>
#include <vector>

namespace nb {

// Index of the largest of n >= 1 logits; of equal ones the lowest index, as
// llama.cpp's and PyTorch's argmax. NaN never wins.
int32_t argmax(const float *logits, int32_t n);

// A uniform number in [0, 1) that depends on (seed, index) alone, so that a
// request's draws do not depend on what else runs. (SplitMix64 used as a
// counter-based generator; Steele, Lea, Flood, OOPSLA 2014.)
double uniform(uint64_t seed, uint64_t index);

// Scratch memory of one sampling thread, for vocabularies of up to n_vocab.
class Sampler {
  public:
    explicit Sampler(int32_t n_vocab);

    // sample draws from softmax(logits / temperature), restricted to the
    // nucleus: the smallest set of most probable tokens whose probabilities add
    // up to at least top_p (Holtzman et al., 2020; the order temperature, then
    // top-p is that of Transformers and vLLM). Exact up to the rounding of
    // float weights and double sums. temperature > 0, 0 < top_p <= 1, u in [0, 1).
    int32_t sample(const float *logits, float temperature, float top_p, double u);

    // Size of the nucleus of the last sample; n_vocab when top_p was 1.
    int32_t nucleus() const { return nucleus_; }

  private:
    struct Candidate {
        float   weight;
        int32_t id;
    };
    static constexpr int32_t kBlock = 512; // logits per block; keeps a block in L1

    double  weigh(const float *logits, float temperature);
    int32_t walk_all(double r) const;
    int32_t select(double mass);

    int32_t                n_;
    int32_t                nucleus_ = 0;
    std::vector<float>     weight_;    // exp((logit - max) / temperature), in (0, 1]
    std::vector<double>    block_sum_; // of weight_, per block
    std::vector<float>     block_max_;
    std::vector<Candidate> cand_;
};

} // namespace nb
#endif
