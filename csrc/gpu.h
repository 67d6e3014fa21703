// gpu.h: the part of the engine that speaks to CUDA itself: choosing tokens on
// the device that holds the logits, and comparing host stamps with the
// device's clock. Uses the driver's library, opened at run time, in the context
// that llama.cpp's CUDA plugin uses; builds and runs without CUDA.
#ifndef NB_GPU_H
#define NB_GPU_H

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "gpu_sampler.h"

namespace nb {

class Gpu {
  public:
    // open prepares device `ordinal` (of those that the process sees) for rows of
    // n_vocab logits, at most `rows` at once. dir holds the kernels
    // (kGpuKernels). NULL: it cannot be done, and why says why.
    static std::unique_ptr<Gpu> open(const std::string &dir, int ordinal, int n_vocab, const std::vector<int32_t> &ends, int rows,
                                     std::string *why);
    // on_host runs the same kernels on the host, very slowly: for checks.
    static std::unique_ptr<Gpu> on_host(int n_vocab, const std::vector<int32_t> &ends, int rows);
    virtual ~Gpu() = default;

    // choose starts the choice of one token per draw from logits, which are device
    // memory and complete when `ready`, a CUDA event, is reached; `taken`, another
    // one, is reached when they may be overwritten. Draw i of this call becomes id
    // first + i of finish.
    virtual void choose(void *ready, const float *logits, const std::vector<NbDraw> &draws, int first, void *taken) = 0;
    // finish waits for all that choose started and returns the ids.
    virtual const int32_t *finish() = 0;

    // choose_from is choose for logits in host memory, one row a draw: for checks.
    virtual std::vector<int32_t> choose_from(const std::vector<float> &logits, std::vector<NbDraw> draws) = 0;

    // mark notes the moment on the device at which the last choose ended; since
    // tells, after finish, how long ago that was at host time t_ns
    // (CLOCK_MONOTONIC), in ns, give or take uncertainty.
    virtual void    align()             = 0; // before the first mark
    virtual void    mark()              = 0;
    virtual int64_t since(int64_t t_ns) = 0;
    virtual int64_t uncertainty() const = 0;

    // copy_rate measures a copy within the device's memory, in bytes read and
    // written a second; 0 if there is no room for it. Nothing else may run.
    virtual int64_t copy_rate() = 0;

    // bytes is the device memory that this holds.
    virtual int64_t bytes() const { return 0; }

  protected:
    enum Kernel { kBest, kWeigh, kDraw, kKernels }; // of gpu_sampler.cu

    // run launches the kernels for draws, in parts that a launch can take. Of c all
    // is set but the draws; its ids begin at that of draw 0 of the step.
    void         run(NbChoice c, const std::vector<NbDraw> &draws, int first);
    virtual void launch(Kernel kernel, unsigned slices, unsigned draws, const NbChoice &c) = 0;
};

// gpu_profile begins (true) or ends what a profiler captures of device `ordinal`
// (cuProfilerStart, cuProfilerStop). Throws Error.
void gpu_profile(int ordinal, bool begin);

constexpr const char *kGpuKernels = "nb-gpu.fatbin";

} // namespace nb
#endif
