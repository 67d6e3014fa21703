// nvtx.h: ranges on the timeline of a profiler (Nsight Systems, Nsight Compute
// or another tool that speaks NVTX 3). Without one, a range costs the test of a
// pointer. Needs neither CUDA nor its headers; any thread may use it.
#ifndef NB_NVTX_H
#define NB_NVTX_H

#include <cstdint>

namespace nb {

// Range is on the timeline of the thread that makes it until it is destroyed;
// ranges of a thread nest. name: a literal.
class Range {
  public:
    explicit Range(const char *name);
    ~Range();
    Range(const Range &)            = delete;
    Range &operator=(const Range &) = delete;
};

// range_start begins a range that any thread may end; 0: nobody looks.
uint64_t range_start(const char *name);
void     range_end(uint64_t id);

} // namespace nb
#endif
