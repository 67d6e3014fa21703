#include "sampler.h"

#include <algorithm>
#include <cmath>
#include <cstring>

// The hot loops are compiled for several instruction sets and picked at load
// time, so that one library is fast on every x86-64. Sanitizers instrument the
// resolvers before their runtime is up, so they get the plain version; older
// compilers do not know these level names.
#if defined(__x86_64__) && defined(__GNUC__) && __GNUC__ >= 12 && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__) &&       \
    !defined(__SANITIZE_THREAD__) && !defined(NB_NO_CLONES)
#define NB_CLONES __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define NB_CLONES
#endif

namespace nb {
namespace {

constexpr int kLanes = 16; // independent accumulators: lets the compiler use vectors without reordering floats

NB_CLONES float max_of(const float *x, int32_t n) {
    float m[kLanes];
    for (int l = 0; l < kLanes; l++) m[l] = -__builtin_inff();
    int32_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
        for (int l = 0; l < kLanes; l++) m[l] = x[i + l] > m[l] ? x[i + l] : m[l];
    }
    for (; i < n; i++) m[0] = x[i] > m[0] ? x[i] : m[0];
    float best = m[0];
    for (int l = 1; l < kLanes; l++) best = m[l] > best ? m[l] : best;
    return best;
}

// e^x for x <= 0. Cody-Waite: x = k ln2 + r with |r| <= ln2/2, e^r by its
// Taylor polynomial of degree 7 (next term below 6e-9), scaled by 2^k through
// the exponent bits. Below -87 the result is 0: such a token's probability is
// under 1e-37 of the best one's.
inline float exp_nonpositive(float x) {
    const float clipped = x > -87.0f ? x : -87.0f;                             // NaN too
    const float k       = (clipped * 1.44269504f + 12582912.0f) - 12582912.0f; // rounds to the nearest integer
    const float r       = (clipped - k * 0.693145752f) - k * 1.42860677e-6f;   // ln2 in two parts
    float       p       = 1.0f / 5040.0f;
    p                   = p * r + 1.0f / 720.0f;
    p                   = p * r + 1.0f / 120.0f;
    p                   = p * r + 1.0f / 24.0f;
    p                   = p * r + 1.0f / 6.0f;
    p                   = p * r + 0.5f;
    p                   = p * r + 1.0f;
    p                   = p * r + 1.0f;
    const uint32_t bits = static_cast<uint32_t>(static_cast<int32_t>(k) + 127) << 23;
    float          scale;
    std::memcpy(&scale, &bits, sizeof scale);
    return x >= -87.0f ? p * scale : 0.0f;
}

// Writes the weights of n <= a block's logits, returns their sum and maximum.
NB_CLONES double weigh_block(const float *logits, int32_t n, float max, float inv_t, float *weight, float *largest) {
    float   sum[kLanes] = {0}, top[kLanes] = {0};
    int32_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
        for (int l = 0; l < kLanes; l++) {
            const float w = exp_nonpositive((logits[i + l] - max) * inv_t);
            weight[i + l] = w;
            sum[l] += w;
            top[l] = w > top[l] ? w : top[l];
        }
    }
    for (; i < n; i++) {
        const float w = exp_nonpositive((logits[i] - max) * inv_t);
        weight[i]     = w;
        sum[0] += w;
        top[0] = w > top[0] ? w : top[0];
    }
    double total = 0;
    float  best  = 0;
    for (int l = 0; l < kLanes; l++) {
        total += sum[l];
        best = top[l] > best ? top[l] : best;
    }
    *largest = best;
    return total;
}

// Sum of the n weights that are at least floor.
NB_CLONES float mass_of(const float *weight, int32_t n, float floor) {
    float   sum[kLanes] = {0};
    int32_t i           = 0;
    for (; i + kLanes <= n; i += kLanes) {
        for (int l = 0; l < kLanes; l++) sum[l] += weight[i + l] >= floor ? weight[i + l] : 0.0f;
    }
    for (; i < n; i++) sum[0] += weight[i] >= floor ? weight[i] : 0.0f;
    float total = 0;
    for (int l = 0; l < kLanes; l++) total += sum[l];
    return total;
}

} // namespace

int32_t argmax(const float *logits, int32_t n) {
    const float best = max_of(logits, n);
    for (int32_t i = 0; i < n; i++) {
        if (logits[i] == best) return i;
    }
    return 0; // nothing but NaN
}

double uniform(uint64_t seed, uint64_t index) {
    const auto mix = [](uint64_t z) {
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
        return z ^ (z >> 31);
    };
    const uint64_t z = mix(mix(seed + 0x9e3779b97f4a7c15ull) + (index + 1) * 0x9e3779b97f4a7c15ull);
    return static_cast<double>(z >> 11) * 0x1.0p-53;
}

Sampler::Sampler(int32_t n_vocab)
    : n_(n_vocab), weight_(n_vocab), block_sum_((n_vocab + kBlock - 1) / kBlock), block_max_(block_sum_.size()), cand_(n_vocab) {}

// weigh fills weight_ and the blocks' sums and maxima; returns the total.
double Sampler::weigh(const float *logits, float temperature) {
    const float max   = max_of(logits, n_);
    const float inv_t = 1.0f / temperature;
    double      total = 0;
    for (size_t b = 0; b < block_sum_.size(); b++) {
        const int32_t at = static_cast<int32_t>(b) * kBlock;
        block_sum_[b]    = weigh_block(logits + at, std::min(kBlock, n_ - at), max, inv_t, &weight_[at], &block_max_[b]);
        total += block_sum_[b];
    }
    return total;
}

// walk_all returns the token at which the running sum of all weights passes r.
int32_t Sampler::walk_all(double r) const {
    int32_t last = 0;
    for (size_t b = 0; b < block_sum_.size(); b++) {
        if (r >= block_sum_[b]) {
            r -= block_sum_[b];
            if (block_sum_[b] > 0) last = static_cast<int32_t>(b);
            continue;
        }
        const int32_t at = static_cast<int32_t>(b) * kBlock, end = std::min(at + kBlock, n_);
        for (int32_t i = at; i < end; i++) {
            r -= weight_[i];
            if (r < 0) return i;
        }
        last = static_cast<int32_t>(b);
        break; // rounding: the block's lanes added up to a little more than its elements
    }
    for (int32_t i = std::min((last + 1) * kBlock, n_) - 1; i > 0; i--) {
        if (weight_[i] > 0) return i;
    }
    return 0;
}

// select moves the nucleus of the given mass to the front of cand_ and returns
// its size. Only the part around the cut is ever put in order: a quickselect
// by mass, O(candidates) on average, instead of sorting the vocabulary. Among
// equal weights the lower id is in first.
int32_t Sampler::select(double mass) {
    // Tokens below (1-p)·total/n weigh less than (1-p)·total together, so the
    // nucleus is complete without them; mass is p·total.
    double total = 0;
    for (double s : block_sum_) total += s;
    float floor = static_cast<float>((total - mass) / n_ * 0.999);
    // Halving the range of exponents a few times leaves little more than the
    // nucleus; the margin keeps rounded sums from cutting into it.
    float ceiling = 1.0f;
    for (int i = 0; i < 7 && floor > 0; i++) {
        const float middle = std::sqrt(floor * ceiling);
        double      above  = 0;
        for (size_t b = 0; b < block_sum_.size(); b++) {
            const int32_t at = static_cast<int32_t>(b) * kBlock;
            if (block_max_[b] >= middle) above += mass_of(&weight_[at], std::min(kBlock, n_ - at), middle);
        }
        (above >= mass * 1.00001 ? floor : ceiling) = middle;
    }
    int32_t m = 0;
    for (size_t b = 0; b < block_sum_.size(); b++) {
        if (block_max_[b] < floor) continue;
        const int32_t at = static_cast<int32_t>(b) * kBlock, end = std::min(at + kBlock, n_);
        for (int32_t i = at; i < end; i++) {
            cand_[m] = {weight_[i], i};
            m += weight_[i] >= floor;
        }
    }

    const auto before = [](const Candidate &a, const Candidate &b) {
        return a.weight > b.weight || (a.weight == b.weight && a.id < b.id);
    };
    int32_t lo = 0, hi = m; // cand_[0, lo) is in; cand_[hi, m) is out
    double  in = 0;         // mass of cand_[0, lo)
    while (hi - lo > 32) {
        Candidate a = cand_[lo], b = cand_[lo + (hi - lo) / 2], c = cand_[hi - 1];
        if (before(b, a)) std::swap(a, b);
        if (before(c, b)) b = before(c, a) ? a : c;
        const Candidate pivot = b; // median of three; ids make all candidates distinct
        const auto      cut   = std::partition(cand_.begin() + lo, cand_.begin() + hi,
                                               [&](const Candidate &x) { return !before(pivot, x); }); // pivot included
        const int32_t   split = static_cast<int32_t>(cut - cand_.begin());
        double          left  = 0;
        for (int32_t i = lo; i < split; i++) left += cand_[i].weight;
        if (in + left >= mass) {
            if (split == hi) break; // the pivot was the last: put the rest in order
            hi = split;
        } else {
            in += left;
            lo = split;
        }
    }
    std::sort(cand_.begin() + lo, cand_.begin() + hi, before);
    while (lo < hi && in < mass) in += cand_[lo++].weight;
    return std::max(lo, 1);
}

int32_t Sampler::sample(const float *logits, float temperature, float top_p, double u) {
    const double total = weigh(logits, temperature);
    if (!(total > 0)) return argmax(logits, n_); // all NaN, or an infinite one: nothing to draw from
    if (top_p >= 1.0f) {
        nucleus_ = n_;
        return walk_all(u * total);
    }
    nucleus_      = select(static_cast<double>(top_p) * total);
    double inside = 0;
    for (int32_t i = 0; i < nucleus_; i++) inside += cand_[i].weight;
    double r = u * inside;
    for (int32_t i = 0; i < nucleus_; i++) {
        r -= cand_[i].weight;
        if (r < 0) return cand_[i].id;
    }
    return cand_[nucleus_ - 1].id;
}

} // namespace nb
