// gpu_host.cpp: the kernel of gpu_sampler.cu run on the host, by 1024 fibers in
// place of 1024 threads: so that it, and the path through it, are checked where
// there is no GPU, under sanitizers too. Thousands of times slower.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#include <ucontext.h>

#include "gpu.h"
#include "loop.h"
#include "sampler.h"

namespace {

// ---- what the kernel asks of CUDA

constexpr int kLanes = 32;

struct Fiber {
    ucontext_t        at;
    std::vector<char> stack;
    bool              over = false;
};

struct Barrier {
    int      waiting = 0;
    unsigned round   = 0;
};

struct Block {
    int                   index = 0, running = 0, now = 0;
    ucontext_t            scheduler;
    std::vector<Fiber>    fibers;
    Barrier               all;
    std::vector<Barrier>  warps;
    std::vector<uint64_t> lanes; // what each thread offers its warp
};
Block *block;

struct Index {
    int x;
};
Index thread_index() { return {block->now}; }
Index block_index() { return {block->index}; }
#define threadIdx thread_index()
#define blockIdx block_index()

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

// Every lane offers a value, and reads that of one lane.
template <class T> T exchange(T mine, int from) {
    static_assert(sizeof(T) <= 8, "a lane offers 8 bytes");
    std::memcpy(&block->lanes[block->now], &mine, sizeof mine);
    sync_warp();
    T got = mine;
    if (from >= 0 && from < kLanes) std::memcpy(&got, &block->lanes[block->now / kLanes * kLanes + from], sizeof got);
    sync_warp();
    return got;
}
int                  lane_now() { return block->now % kLanes; }
template <class T> T __shfl_down_sync(unsigned, T x, int d) { return exchange(x, lane_now() + d); }
template <class T> T __shfl_up_sync(unsigned, T x, int d) { return exchange(x, lane_now() - d); }
template <class T> T __shfl_sync(unsigned, T x, int from) { return exchange(x, from); }
unsigned             __ballot_sync(unsigned, bool yes) {
    block->lanes[block->now] = yes;
    sync_warp();
    unsigned all = 0;
    for (int i = 0; i < kLanes; i++) all |= static_cast<unsigned>(block->lanes[block->now / kLanes * kLanes + i]) << i;
    sync_warp();
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
int  __popc(unsigned x) { return __builtin_popcount(x); }
int  __ffs(int x) { return __builtin_ffs(x); }
void atomicAdd(unsigned long long *to, unsigned long long x) { *to += x; }

#define __device__
#define __global__
#define __shared__ static
#define __launch_bounds__(n)
#define NB_ON_HOST
std::vector<float> shared_memory;
#include "gpu_sampler.cu"

// launch runs one block: each fiber in turn, up to its next barrier.
void launch(int index, const std::function<void()> &kernel) {
    static const std::function<void()> *body;
    body = &kernel;
    Block b;
    block   = &b;
    b.index = index;
    b.fibers.resize(NB_GPU_THREADS);
    b.warps.resize(NB_GPU_THREADS / kLanes);
    b.lanes.resize(NB_GPU_THREADS);
    for (Fiber &f : b.fibers) {
        f.stack.resize(64 << 10);
        getcontext(&f.at);
        f.at.uc_stack.ss_sp   = f.stack.data();
        f.at.uc_stack.ss_size = f.stack.size();
        f.at.uc_link          = &b.scheduler;
        makecontext(
            &f.at,
            [] {
                (*body)();
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
    block = nullptr;
}

} // namespace

namespace nb {
namespace {

class HostGpu : public Gpu {
  public:
    HostGpu(int n_vocab, std::vector<int32_t> ends, int rows) : n_vocab_(n_vocab), ends_(std::move(ends)), ids_(rows) {}

    void choose(void *, const float *logits, const std::vector<NbDraw> &draws, int first, void *) override {
        for (size_t i = 0; i < draws.size(); i++) {
            // Both ways of the kernel, with and without a copy of the weights.
            const int cached = (i + draws.size()) % 2;
            shared_memory.resize(n_vocab_);
            launch(static_cast<int>(i), [&] {
                nb_sample(logits, n_vocab_, draws.data(), ends_.data(), static_cast<int>(ends_.size()), cached,
                          ids_.data() + first);
            });
        }
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
    int                  n_vocab_;
    std::vector<int32_t> ends_, ids_;
    int64_t              marked_ = 0;
};

} // namespace

std::unique_ptr<Gpu> Gpu::on_host(int n_vocab, const std::vector<int32_t> &ends, int rows) {
    return std::make_unique<HostGpu>(n_vocab, ends, rows);
}

} // namespace nb
