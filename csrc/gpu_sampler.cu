// gpu_sampler.cu: sampler.h's choice of a token on the GPU. Built into a fat
// binary that gpu.cpp loads at run time.
//
// Three kernels in a row, each with one block per slice of the vocabulary (x)
// and draw (y), so that one draw is spread over many multiprocessors:
//   nb_best   finds the largest logit,
//   nb_weigh  makes a histogram of the weights' mass,
//   nb_draw   finds the bin in which the nucleus ends and lists the tokens in
//             it; the last block of a draw then cuts within the bin and draws.
//
// Masses are 64-bit fixed-point numbers (2^-40 of the best token's weight), so
// that sums do not depend on the order in which threads add: equal logits and
// equal draws give equal tokens, always. The nucleus is cut exactly, by a
// radix search over the bits of the weights; the draw walks the nucleus in the
// order of ids.
#include "gpu_sampler.h"

// Code that is run once costs its fetching more than its running: little is
// inlined or unrolled where it saves no memory's latency.
#ifndef NB_ROLLED
#define NB_ROLLED _Pragma("unroll 1")
#endif

namespace {

typedef unsigned long long u64;

constexpr int kThreads   = NB_GPU_THREADS;
constexpr int kWarps     = kThreads / 32;
constexpr int kBins      = NB_GPU_BINS;
constexpr int kSlice     = NB_GPU_SLICE;
constexpr int kPer       = kSlice / kThreads; // ids of a thread
constexpr int kListed    = 2 * kThreads;      // tokens at the cut that shared memory holds
constexpr int kSliceBits = 12;
static_assert(1 << kSliceBits == kSlice && kSlice * NB_GPU_SLICES == 1 << 20, "an id has 20 bits");
static_assert(kThreads == kBins && kWarps == 32, "a thread per bin, a lane per warp");

// ---- weights

__device__ u64 fixed(float w) { return w > 0 ? __float2ull_rz(w * 0x1p40f) : 0; } // NaN: 0

// A logit and its id as a number that grows with the logit and, of equal ones,
// falls with the id; 0 for NaN, which never wins.
__device__ u64 key(float x, int id) {
    if (x != x) return 0;
    const unsigned bits    = __float_as_uint(x + 0.0f); // -0 becomes 0
    const unsigned ordered = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return static_cast<u64>(ordered) << 32 | ~static_cast<unsigned>(id);
}
__device__ int   id_of(u64 key) { return key ? static_cast<int>(~static_cast<unsigned>(key)) : 0; }
__device__ float logit_of(u64 key) {
    const unsigned ordered = static_cast<unsigned>(key >> 32);
    return __uint_as_float(ordered & 0x80000000u ? ordered & 0x7fffffffu : ~ordered);
}

// A weight's histogram bin is its sign, exponent and 3 bits of its mantissa.
__device__ unsigned bin_of(unsigned weight_bits) { return weight_bits >> 20; }

// A token of bin `cut` as a number: in the order in which tokens enter the
// nucleus, the heaviest first and of equal ones the lowest id.
__device__ u64 rank(unsigned weight_bits, int id) {
    return static_cast<u64>(~weight_bits & 0xfffff) << 20 | static_cast<unsigned>(id);
}
__device__ u64 mass_of(u64 rank, unsigned cut) {
    return fixed(__uint_as_float(cut << 20 | (~static_cast<unsigned>(rank >> 20) & 0xfffff)));
}

// One row of logits and their weights.
struct Row {
    const float *logits;
    const int   *ends;
    int          n, n_ends; // n_ends: that cannot be drawn
    float        best, scale;

    __device__ Row(const NbChoice &c, const NbDraw &d)
        : logits(c.logits + static_cast<size_t>(d.row) * c.n_vocab), ends(c.ends), n(c.n_vocab),
          n_ends(d.flags & NB_DRAW_NO_END ? c.n_ends : 0), best(0), scale(0) {}

    // load reads the logits of ids first, first + step, ...
    __device__ void load(int first, int step, float (&x)[kPer]) const {
        for (int k = 0; k < kPer; k++) x[k] = first + k * step < n ? logits[first + k * step] : -INFINITY;
        NB_ROLLED for (int e = 0; e < n_ends; e++) {
            const int end = ends[e];
            for (int k = 0; k < kPer; k++) x[k] = first + k * step == end ? -INFINITY : x[k];
        }
    }
    __device__ void relative_to(u64 best_key, float temperature) {
        best  = logit_of(best_key);
        scale = 1.44269504f / temperature; // log2(e)
    }
    __device__ float weight(float logit) const { return exp2f((logit - best) * scale); }
};

// ---- sums

__device__ u64 warp_sum(u64 x) {
    for (int d = 16; d > 0; d >>= 1) x += __shfl_down_sync(~0u, x, d);
    return x; // of lane 0
}
__device__ u64 warp_max(u64 x) {
    for (int d = 16; d > 0; d >>= 1) {
        const u64 y = __shfl_down_sync(~0u, x, d);
        x           = y > x ? y : x;
    }
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
    u64  bins[kBins];
    u64  list[kListed];
    u64  part[kWarps];
    int  place;         // found by reach
    u64  before, share; // mass up to it, and its own
    bool last;          // of the draw's blocks
};

// Inclusive sum over the threads up to this one; total is that of all.
__noinline__ __device__ u64 block_scan(u64 x, u64 &total, Shared &s) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x / 32;
    x = warp_scan(x);
    if (lane == 31) s.part[warp] = x;
    __syncthreads();
    if (warp == 0) s.part[lane] = warp_scan(s.part[lane]);
    __syncthreads();
    if (warp > 0) x += s.part[warp - 1];
    total = s.part[kWarps - 1];
    return x;
}

// The thread whose share, mine of the upto so far, reaches target says where
// that is. Between two calls there is a block_scan, whose barriers keep a
// thread that reads the first answer ahead of the second.
__device__ void reach(u64 target, u64 upto, u64 mine, int place, Shared &s) {
    if (upto >= target && upto - mine < target) {
        s.place  = place;
        s.before = upto - mine;
        s.share  = mine;
    }
    __syncthreads();
}

// Adds to 64 bits in shared memory, whose own atomics are of 32 bits: a 64-bit
// one is a loop there.
__device__ void add(u64 *to, u64 x) {
    unsigned *const word = reinterpret_cast<unsigned *>(to);
    const unsigned  low = static_cast<unsigned>(x), old = atomicAdd(word, low);
    const unsigned  high = static_cast<unsigned>(x >> 32) + (old + low < old);
    if (high) atomicAdd(word + 1, high);
}

// Tokens of bin `cut`, the first kListed of them in shared memory.
struct List {
    const u64 *all;
    int        n;
    unsigned   cut;

    __device__ List(const u64 *list, unsigned count, unsigned bin, Shared &s) : all(list), n(static_cast<int>(count)), cut(bin) {
        NB_ROLLED for (int i = static_cast<int>(threadIdx.x); i < n && i < kListed; i += kThreads) s.list[i] = __ldcg(&all[i]);
    }
    // fill makes s.bins a histogram of the mass of the ranks in [from, to], by the
    // bits from `shift` on.
    __noinline__ __device__ void fill(u64 from, u64 to, int shift, unsigned mask, Shared &s) const {
        s.bins[threadIdx.x] = 0;
        __syncthreads();
        unsigned bin  = 0;
        u64      mass = 0; // not yet in bin: neighbours share one
        NB_ROLLED for (int i = static_cast<int>(threadIdx.x); i < n; i += kThreads) {
            const u64 x = i < kListed ? s.list[i] : __ldcg(&all[i]);
            if (x < from || x > to) continue;
            const unsigned b = static_cast<unsigned>(x >> shift) & mask;
            if (b != bin && mass) add(&s.bins[bin], mass), mass = 0;
            bin = b;
            mass += mass_of(x, cut);
        }
        if (mass) add(&s.bins[bin], mass);
        __syncthreads();
    }
};

// finish cuts the nucleus within a bin and draws from it: the token at which the
// running mass, in the order of ids, passes u of the whole. above is the mass
// over the bin, target that of the nucleus.
__device__ int finish(const Row &row, const u64 *mass, const List &list, u64 above, u64 target, double u, Shared &s) {
    const int tid = static_cast<int>(threadIdx.x);
    u64       unused;

    // The last rank in the nucleus, by 10 bits at a time: of the weight, then of the id.
    u64 last = 0;
    NB_ROLLED for (int shift = 30; shift >= 0; shift -= 10) {
        const u64 from = last << (shift + 10);
        list.fill(from, from | ((u64{1} << (shift + 10)) - 1), shift, kBins - 1, s);
        const u64 mine = s.bins[tid], upto = above + block_scan(mine, unused, s);
        reach(target, upto, mine, tid, s);
        last  = last << 10 | static_cast<unsigned>(s.place);
        above = s.before;
        if (shift == 20 && above + s.share - mass_of(last << 20, list.cut) < target) { // all of these equal weights
            last = last << 20 | 0xfffff;
            above += s.share;
            break;
        }
        if (shift == 0) above += s.share;
    }
    const u64 inside = above;

    // The draw: first the slice, then the id in it.
    u64 r = static_cast<u64>(u * static_cast<double>(inside));
    r     = r < inside ? r : inside - 1;
    list.fill(0, last, kSliceBits, NB_GPU_SLICES - 1, s);
    u64 mine = tid < NB_GPU_SLICES ? s.bins[tid] + __ldcg(&mass[tid]) : 0;
    reach(r + 1, block_scan(mine, unused, s), mine, tid, s);
    const int first  = s.place * kSlice + tid * kPer;
    const u64 before = s.before;
    float     x[kPer];
    u64       run[kPer];
    row.load(first, 1, x);
    mine = 0;
    for (int k = 0; k < kPer; k++) {
        const float    w    = row.weight(x[k]);
        const unsigned bits = __float_as_uint(w), bin = bin_of(bits);
        run[k] = mine += bin > list.cut || (bin == list.cut && rank(bits, first + k) <= last) ? fixed(w) : 0;
    }
    const u64 upto = before + block_scan(mine, unused, s);
    int       id   = first;
    for (int k = 0; k < kPer - 1; k++) id += upto - mine + run[k] <= r;
    reach(r + 1, upto, mine, id, s);
    return s.place;
}

} // namespace

extern "C" __global__ void __launch_bounds__(kThreads, 1) nb_best(const __grid_constant__ NbChoice c) {
    const NbDraw &d = c.draws[blockIdx.y];
    const Row     row(c, d);
    const int     first = blockIdx.x * kSlice + threadIdx.x;
    float         x[kPer];
    u64           best = 0;
    row.load(first, kThreads, x);
    for (int k = 0; k < kPer; k++) {
        const int i = first + k * kThreads;
        const u64 y = i < row.n ? key(x[k], i) : 0;
        best        = y > best ? y : best;
    }
    best = warp_max(best);
    if ((threadIdx.x & 31) == 0) atomicMax(&c.scratch[blockIdx.y].best, best);
}

extern "C" __global__ void __launch_bounds__(kThreads, 1) nb_weigh(const __grid_constant__ NbChoice c) {
    __shared__ u64 bins[kBins];
    const NbDraw  &d = c.draws[blockIdx.y];
    if (d.temperature == 0) return;
    NbScratch &scratch = c.scratch[blockIdx.y];
    Row        row(c, d);
    float      x[kPer];
    row.load(blockIdx.x * kSlice + threadIdx.x, kThreads, x);
    row.relative_to(scratch.best, d.temperature);
    bins[threadIdx.x] = 0;
    __syncthreads();
    for (int k = 0; k < kPer; k++) {
        const float w = row.weight(x[k]);
        const u64   q = fixed(w);
        if (q) add(&bins[bin_of(__float_as_uint(w))], q);
    }
    __syncthreads();
    if (bins[threadIdx.x]) atomicAdd(&scratch.bins[threadIdx.x], bins[threadIdx.x]);
}

extern "C" __global__ void __launch_bounds__(kThreads, 1) nb_draw(const __grid_constant__ NbChoice c) {
    __shared__ Shared s;
    const NbDraw     &d       = c.draws[blockIdx.y];
    NbScratch        &scratch = c.scratch[blockIdx.y];
    u64 *const        cuts    = c.cuts + static_cast<size_t>(blockIdx.y) * c.n_vocab;
    const int         tid = static_cast<int>(threadIdx.x), lane = tid & 31;
    const u64         best = scratch.best;
    Row               row(c, d);
    unsigned          cut    = 0;                       // the bin that the nucleus ends in
    u64               target = 0, above = 0, total = 0; // 0: greedy; or all NaN or an infinite one, nothing to draw from
    if (d.temperature > 0) {
        float     x[kPer];
        const int first = blockIdx.x * kSlice + tid, from_top = kBins - 1 - tid;
        const u64 mine = scratch.bins[from_top];
        row.load(first, kThreads, x);
        row.relative_to(best, d.temperature);
        const u64 upto = block_scan(mine, total, s);
        if (total > 0) {
            target = d.top_p < 1 ? static_cast<u64>(ceil(static_cast<double>(d.top_p) * static_cast<double>(total))) : total;
            target = target < 1 ? 1 : target > total ? total : target;
            reach(target, upto, mine, from_top, s);
            cut   = static_cast<unsigned>(s.place);
            above = s.before;

            unsigned bits[kPer], hits[kPer], in_warp = 0;
            u64      mass = 0;
            for (int k = 0; k < kPer; k++) {
                const float w = row.weight(x[k]);
                bits[k]       = __float_as_uint(w);
                hits[k]       = __ballot_sync(~0u, bin_of(bits[k]) == cut);
                in_warp += __popc(hits[k]);
                mass += bin_of(bits[k]) > cut ? fixed(w) : 0;
            }
            mass   = warp_sum(mass);
            int at = 0;
            if (lane == 0) {
                if (mass) atomicAdd(&scratch.mass[blockIdx.x], mass);
                if (in_warp) at = static_cast<int>(atomicAdd(&scratch.n_cut, in_warp));
            }
            at = __shfl_sync(~0u, at, 0);
            for (int k = 0; k < kPer; k++) {
                if (hits[k] >> lane & 1) cuts[at + __popc(hits[k] & ((1u << lane) - 1))] = rank(bits[k], first + k * kThreads);
                at += __popc(hits[k]);
            }
        }
    }

    // The last block of the draw sees what all have written.
    __threadfence();
    __syncthreads();
    if (tid == 0) s.last = atomicAdd(&scratch.done, 1u) == gridDim.x - 1;
    __syncthreads();
    if (!s.last) return;
    __threadfence();
    const int id =
        total > 0 ? finish(row, scratch.mass, {cuts, __ldcg(&scratch.n_cut), cut, s}, above, target, d.u, s) : id_of(best);
    __syncthreads();
    scratch.bins[tid] = 0;
    if (tid < NB_GPU_SLICES) scratch.mass[tid] = 0;
    if (tid == 0) {
        scratch.best  = 0;
        scratch.n_cut = scratch.done = 0;
        c.ids[blockIdx.y]            = id;
    }
}
