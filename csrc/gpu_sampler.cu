// gpu_sampler.cu: sampler.h's choice of a token on the GPU, one block per row
// of logits, one launch for all rows of a step. Built into a fat binary that
// gpu.cpp loads at run time.
//
// Masses are 64-bit fixed-point numbers (2^-40 of the best token's weight), so
// that sums do not depend on the order in which threads add: equal logits and
// equal draws give equal tokens, always. The nucleus is cut exactly, by a
// radix search over the bits of the weights; the draw walks the nucleus in the
// order of ids.
#include "gpu_sampler.h"

namespace {

typedef unsigned long long u64;

constexpr int kThreads = NB_GPU_THREADS;
constexpr int kWarps   = kThreads / 32;
constexpr int kBins    = 1024; // >= the 1017 values of a weight's upper bits; one per thread

__device__ u64 fixed(float w) { return w > 0 ? __float2ull_rz(w * 0x1p40f) : 0; } // NaN: 0

__device__ u64 warp_sum(u64 x) {
    for (int d = 16; d > 0; d >>= 1) x += __shfl_down_sync(~0u, x, d);
    return x; // of lane 0
}

// Inclusive sum over the lanes up to this one.
__device__ u64 warp_scan(u64 x) {
    const int lane = threadIdx.x & 31;
    for (int d = 1; d < 32; d <<= 1) {
        const u64 y = __shfl_up_sync(~0u, x, d);
        if (lane >= d) x += y;
    }
    return x;
}

struct Shared {
    u64   bins[kBins];
    u64   part[kWarps];
    float best[kWarps];
    int   best_id[kWarps];
    u64   above; // mass of the tokens surely in the nucleus
    int   bin, id;
};

// Inclusive sum over the threads up to this one.
__device__ u64 block_scan(u64 x, Shared &s) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x / 32;
    x = warp_scan(x);
    if (lane == 31) s.part[warp] = x;
    __syncthreads();
    if (warp == 0) s.part[lane] = warp_scan(s.part[lane]);
    __syncthreads();
    if (warp > 0) x += s.part[warp - 1];
    __syncthreads();
    return x;
}

// Sets s.bin to the bin, counted from the top, at which the mass reaches
// target, and adds to s.above what lies over it.
__device__ void find_bin(u64 target, Shared &s) {
    const int bin   = kBins - 1 - static_cast<int>(threadIdx.x);
    const u64 above = s.above, mine = s.bins[bin];
    const u64 upto = above + block_scan(mine, s);
    if (upto >= target && upto - mine < target) {
        s.bin   = bin;
        s.above = upto - mine;
    }
    __syncthreads();
}

// Row gives the weights of one row of logits. Where they fit they are computed
// once, into shared memory.
struct Row {
    const float *logits;
    float       *cache; // NULL: the row does not fit
    const int   *ends;
    int          n_ends; // that cannot be drawn
    float        best, scale;

    __device__ float logit(int i) const {
        float x = logits[i];
        for (int e = 0; e < n_ends; e++) x = ends[e] == i ? -INFINITY : x;
        return x;
    }
    __device__ float compute(int i) const { return exp2f((logit(i) - best) * scale); }
    __device__ float weight(int i) const { return cache ? cache[i] : compute(i); }
};

} // namespace

extern "C" __global__ void __launch_bounds__(kThreads)
    nb_sample(const float *logits, int n_vocab, const NbDraw *draws, const int *ends, int n_ends, int cached, int *ids) {
    static_assert(kThreads == kBins && kWarps == 32, "a thread per bin, a lane per warp");
#ifdef NB_ON_HOST
    float *const cache = shared_memory.data();
#else
    extern __shared__ float cache[];
#endif
    __shared__ Shared s;
    const NbDraw      d   = draws[blockIdx.x];
    const int         tid = static_cast<int>(threadIdx.x), lane = tid & 31, warp = tid / 32;
    Row row{logits + static_cast<size_t>(d.row) * n_vocab, nullptr, ends, (d.flags & NB_DRAW_NO_END) ? n_ends : 0, 0, 0};

    // The largest logit, of equal ones the lowest id; NaN never wins.
    float best = -INFINITY;
    int   id   = 0x7fffffff;
    for (int i = tid; i < n_vocab; i += kThreads) {
        const float x = row.logit(i);
        if (x > best || (x == best && i < id)) best = x, id = i;
    }
    for (int k = 16; k > 0; k >>= 1) {
        const float x = __shfl_down_sync(~0u, best, k);
        const int   i = __shfl_down_sync(~0u, id, k);
        if (x > best || (x == best && i < id)) best = x, id = i;
    }
    if (lane == 0) s.best[warp] = best, s.best_id[warp] = id;
    __syncthreads();
    if (warp == 0) {
        best = s.best[lane], id = s.best_id[lane];
        for (int k = 16; k > 0; k >>= 1) {
            const float x = __shfl_down_sync(~0u, best, k);
            const int   i = __shfl_down_sync(~0u, id, k);
            if (x > best || (x == best && i < id)) best = x, id = i;
        }
        if (lane == 0) s.best[0] = best, s.best_id[0] = id == 0x7fffffff ? 0 : id;
    }
    __syncthreads();
    if (d.temperature == 0) {
        if (tid == 0) ids[blockIdx.x] = s.best_id[0];
        return;
    }
    row.best  = s.best[0];
    row.scale = 1.44269504f / d.temperature; // log2(e)

    // Weights, their sum, and a histogram by sign, exponent and 3 bits of the mantissa.
    s.bins[tid] = 0;
    __syncthreads();
    const bool nucleus = d.top_p < 1.0f;
    u64        mine    = 0;
    for (int i = tid; i < n_vocab; i += kThreads) {
        const float w = row.compute(i);
        const u64   q = fixed(w);
        if (cached) cache[i] = w;
        mine += q;
        if (nucleus && q > 0) atomicAdd(&s.bins[__float_as_uint(w) >> 20], q);
    }
    if (cached) row.cache = cache;
    const u64 upto = block_scan(mine, s);
    if (tid == kThreads - 1) s.part[0] = upto;
    __syncthreads();
    const u64 total = s.part[0];
    __syncthreads();
    if (total == 0) { // all NaN, or an infinite one: nothing to draw from
        if (tid == 0) ids[blockIdx.x] = s.best_id[0];
        return;
    }

    // The nucleus: weights above cut, and of those equal to it the ids up to last.
    unsigned cut    = 0;
    int      last   = n_vocab;
    u64      inside = total;
    if (nucleus) {
        u64 target = static_cast<u64>(ceil(static_cast<double>(d.top_p) * static_cast<double>(total)));
        target     = target < 1 ? 1 : target > total ? total : target;
        if (tid == 0) s.above = 0;
        __syncthreads();
        find_bin(target, s);
        for (int shift = 10; shift >= 0; shift -= 10) {
            cut = cut << 10 | static_cast<unsigned>(s.bin);
            __syncthreads();
            s.bins[tid] = 0;
            __syncthreads();
            for (int i = tid; i < n_vocab; i += kThreads) {
                const float    w    = row.weight(i);
                const unsigned bits = __float_as_uint(w);
                if (bits >> (shift + 10) == cut) atomicAdd(&s.bins[bits >> shift & 1023], fixed(w));
            }
            __syncthreads();
            find_bin(target, s);
        }
        const u64 ties = s.bins[s.bin], above = s.above;
        cut            = cut << 10 | static_cast<unsigned>(s.bin);
        const u64 each = fixed(__uint_as_float(cut));
        const u64 take = (target - above + each - 1) / each;
        inside         = above + take * each;
        if (take * each < ties) { // the cut goes through equal weights
            if (warp == 0) {
                u64 seen = 0;
                for (int at = 0; at < n_vocab; at += 32) {
                    const int      i    = at + lane;
                    const unsigned hits = __ballot_sync(~0u, i < n_vocab && __float_as_uint(row.weight(i)) == cut);
                    if (seen + __popc(hits) >= take) {
                        unsigned left = hits;
                        for (u64 k = seen + 1; k < take; k++) left &= left - 1;
                        if (lane == 0) s.id = at + __ffs(static_cast<int>(left)) - 1;
                        break;
                    }
                    seen += __popc(hits);
                }
            }
            __syncthreads();
            last = s.id;
        }
    }

    // The draw: the token at which the running mass of the nucleus passes r.
    u64 r           = static_cast<u64>(d.u * static_cast<double>(inside));
    r               = r < inside ? r : inside - 1;
    const auto mass = [&](int i) -> u64 {
        if (i >= n_vocab) return 0;
        const float    w    = row.weight(i);
        const unsigned bits = __float_as_uint(w);
        return bits > cut || (bits == cut && i <= last) ? fixed(w) : 0;
    };
    const int per = (n_vocab + kThreads - 1) / kThreads * 32; // ids of a warp
    u64       sum = 0;
    for (int i = warp * per + lane; i < (warp + 1) * per; i += 32) sum += mass(i);
    sum = warp_sum(sum);
    if (lane == 0) s.part[warp] = sum;
    __syncthreads();
    u64 before = 0;
    int owner  = 0;
    for (; owner < kWarps - 1 && before + s.part[owner] <= r; owner++) before += s.part[owner];
    if (warp != owner) return;
    for (int at = owner * per; at < (owner + 1) * per; at += 32) {
        const u64      run  = before + warp_scan(mass(at + lane));
        const unsigned past = __ballot_sync(~0u, run > r);
        if (past) {
            if (lane == 0) ids[blockIdx.x] = at + __ffs(static_cast<int>(past)) - 1;
            return;
        }
        before = __shfl_sync(~0u, run, 31);
    }
}
