// gpu_host.cpp: the kernels of gpu_sampler.cu run on the host, block after block,
// by 1024 fibers in place of 1024 threads: so that they, and the path through
// them, are checked where there is no GPU, under sanitizers too. Thousands of
// times slower.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

#include <ucontext.h>

#include "gpu.h"
#include "loop.h"
#include "sampler.h"

namespace {

// ---- what the kernel asks of CUDA

constexpr int kLanes = 32;

struct Fiber {
    ucontext_t              at;
    std::unique_ptr<char[]> stack;
    bool                    over = false;
};

struct Barrier {
    int      waiting = 0;
    unsigned round   = 0;
};

struct Index {
    unsigned x, y;
};

struct Block {
    Index                 index{}, grid{};
    unsigned              now = 0; // the fiber that runs
    ucontext_t            scheduler;
    std::vector<Fiber>    fibers;
    Barrier               all;
    std::vector<Barrier>  warps;
    std::vector<uint64_t> lanes[2]; // what each thread offers its warp, now and the time before
    std::vector<uint8_t>  turn;     // of each thread: which of the two
};
Block *block;

Index thread_index() { return {block->now, 0}; }
#define threadIdx thread_index()
#define blockIdx block->index
#define gridDim block->grid

void pause_fiber() { swapcontext(&block->fibers[block->now].at, &block->scheduler); }

void meet(Barrier &b, int members) {
    const unsigned round = b.round;
    if (++b.waiting == members) {
        b.waiting = 0;
        b.round++;
        return;
    }
    while (b.round == round) pause_fiber();
}
void __syncthreads() { meet(block->all, static_cast<int>(block->fibers.size())); }
void sync_warp() { meet(block->warps[block->now / kLanes], kLanes); }

// Every lane offers a value; the result is where those of its warp lie. They
// stay until the offer after the next, which no lane makes before all others
// have made the next.
const uint64_t *offer(const void *mine, size_t size) {
    std::vector<uint64_t> &lanes = block->lanes[block->turn[block->now] ^= 1];
    const uint64_t        *warp  = &lanes[block->now / kLanes * kLanes];
    std::memcpy(&lanes[block->now], mine, size);
    sync_warp();
    return warp;
}
template <class T> T exchange(T mine, int from) {
    static_assert(sizeof(T) <= 8, "a lane offers 8 bytes");
    const uint64_t *warp = offer(&mine, sizeof mine);
    if (from >= 0 && from < kLanes) std::memcpy(&mine, &warp[from], sizeof mine);
    return mine;
}
int                  lane_now() { return static_cast<int>(block->now % kLanes); }
template <class T> T __shfl_down_sync(unsigned, T x, int d) { return exchange(x, lane_now() + d); }
template <class T> T __shfl_up_sync(unsigned, T x, int d) { return exchange(x, lane_now() - d); }
template <class T> T __shfl_sync(unsigned, T x, int from) { return exchange(x, from); }
unsigned             __ballot_sync(unsigned, bool yes) {
    const uint64_t  mine = yes;
    const uint64_t *warp = offer(&mine, sizeof mine);
    unsigned        all  = 0;
    for (int i = 0; i < kLanes; i++) all |= static_cast<unsigned>(warp[i]) << i;
    return all;
}
unsigned long long __float2ull_rz(float x) {
    return x >= 0 ? static_cast<unsigned long long>(x) : 1ull << 63;
} // as NVIDIA's: NaN is not 0
unsigned __float_as_uint(float x) {
    unsigned u;
    std::memcpy(&u, &x, sizeof u);
    return u;
}
float __uint_as_float(unsigned u) {
    float x;
    std::memcpy(&x, &u, sizeof x);
    return x;
}
int                     __popc(unsigned x) { return __builtin_popcount(x); }
template <class T> T    __ldcg(const T *x) { return *x; }
void                    __threadfence() {}
template <class T> T    atomicAdd(T *to, T x) { return std::exchange(*to, *to + x); }
template <class T> void atomicMax(T *to, T x) { *to = std::max(*to, x); }

#define __device__
#define __global__
#define __shared__ static
#define __launch_bounds__(threads, blocks)
#define __grid_constant__
#define __noinline__
#define NB_ROLLED
#include "gpu_sampler.cu"

// run_blocks runs a kernel's blocks one after another: of each every fiber in turn,
// up to its next barrier.
void run_blocks(void (*kernel)(NbChoice), Index grid, const NbChoice &choice) {
    static void (*body)(NbChoice);
    static const NbChoice *parameter;
    body      = kernel;
    parameter = &choice;
    Block b;
    block  = &b;
    b.grid = grid;
    b.fibers.resize(NB_GPU_THREADS);
    b.warps.resize(NB_GPU_THREADS / kLanes);
    for (auto &lanes : b.lanes) lanes.resize(NB_GPU_THREADS);
    b.turn.resize(NB_GPU_THREADS);
    constexpr size_t kStack = 64 << 10;
    for (Fiber &f : b.fibers) f.stack.reset(new char[kStack]);
    for (b.index.y = 0; b.index.y < grid.y; b.index.y++) {
        for (b.index.x = 0; b.index.x < grid.x; b.index.x++) {
            for (Fiber &f : b.fibers) {
                f.over = false;
                getcontext(&f.at);
                f.at.uc_stack.ss_sp   = f.stack.get();
                f.at.uc_stack.ss_size = kStack;
                f.at.uc_link          = &b.scheduler;
                makecontext(
                    &f.at,
                    [] {
                        body(*parameter);
                        block->fibers[block->now].over = true;
                    },
                    0);
            }
            for (bool any = true; any;) {
                any = false;
                for (b.now = 0; b.now < NB_GPU_THREADS; b.now++) {
                    if (b.fibers[b.now].over) continue;
                    any = true;
                    swapcontext(&b.scheduler, &b.fibers[b.now].at);
                }
            }
        }
    }
    block = nullptr;
}

} // namespace

namespace nb {
namespace {

class HostGpu : public Gpu {
  public:
    HostGpu(int n_vocab, std::vector<int32_t> ends, int rows)
        : n_vocab_(n_vocab), ends_(std::move(ends)), ids_(rows), scratch_(NB_GPU_DRAWS),
          cuts_(static_cast<size_t>(n_vocab) * std::min<int>(rows, NB_GPU_DRAWS)) {}

    void choose(void *, const float *logits, const std::vector<NbDraw> &draws, int first, void *) override {
        NbChoice c{};
        c.logits  = logits;
        c.ends    = ends_.data();
        c.scratch = scratch_.data();
        c.cuts    = cuts_.data();
        c.ids     = ids_.data();
        c.n_vocab = n_vocab_;
        c.n_ends  = static_cast<int>(ends_.size());
        run(c, draws, first);
    }
    const int32_t       *finish() override { return ids_.data(); }
    std::vector<int32_t> choose_from(const std::vector<float> &logits, std::vector<NbDraw> draws) override {
        choose(nullptr, logits.data(), draws, 0, nullptr);
        return {ids_.begin(), ids_.begin() + static_cast<long>(draws.size())};
    }
    void    align() override {}
    void    mark() override { marked_ = now_ns(); }
    int64_t since(int64_t t_ns) override { return t_ns - marked_; }
    int64_t uncertainty() const override { return 0; }
    int64_t copy_rate() override { return 0; }

  private:
    void launch(Kernel kernel, unsigned slices, unsigned draws, const NbChoice &c) override {
        run_blocks(kernel == kBest ? nb_best : kernel == kWeigh ? nb_weigh : nb_draw, {slices, draws}, c);
    }

    int                             n_vocab_;
    std::vector<int32_t>            ends_, ids_;
    std::vector<NbScratch>          scratch_;
    std::vector<unsigned long long> cuts_;
    int64_t                         marked_ = 0;
};

} // namespace

std::unique_ptr<Gpu> Gpu::on_host(int n_vocab, const std::vector<int32_t> &ends, int rows) {
    return std::make_unique<HostGpu>(n_vocab, ends, rows);
}

} // namespace nb
