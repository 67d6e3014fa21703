// ops.h: what each operation of a model costs: a watcher that ggml calls before
// and after every one, and what the same device can do at best. Knows ggml, not
// llama.cpp. While it watches, operations are computed one at a time and each
// is awaited, so nothing that it sees is a measurement of whole steps.
#ifndef NB_OPS_H
#define NB_OPS_H

#include <string>
#include <unordered_map>
#include <vector>

#include "ggml-backend.h"
#include "ggml.h"

#include "nb.h"

namespace nb {

// Cost is what an operation reads, writes and computes, by the shapes of its
// tensors. Bytes are those of the elements, each tensor once, caches left out
// of account: of an embedding the rows that are looked up, of a write into the
// KV cache what is written. flops is 0 for what is not made of products.
struct Cost {
    int64_t read, written, flops;
    int64_t weights; // of read: of the model's file
};
Cost cost_of(const ggml_tensor *t);

class Ops {
  public:
    // watch is ggml's evaluation callback; self an Ops.
    static bool watch(ggml_tensor *t, bool ask, void *self);

    void scheduler(ggml_backend_sched_t s) { sched_ = s; }
    void begin(bool prompt) { prompt_ = prompt; } // the step that is computed next
    void forget() { rows_.clear(), order_.clear(); }

    std::vector<nb_op> rows() const;
    // best measures what the device that had most of the products can do:
    // nothing at all, launched alone and awaited, and a large product of F16
    // with F32. Nothing else may run. size says of what shape that was.
    void best(int64_t *empty_ns, int64_t *flop_rate, std::string *size) const;
    // on_host: that device is the host's processor.
    bool on_host() const;

  private:
    ggml_backend_sched_t                    sched_  = nullptr;
    ggml_backend_t                          busy_   = nullptr; // computed the last product
    bool                                    prompt_ = false;
    int64_t                                 began_  = 0;
    std::unordered_map<std::string, size_t> order_;
    std::vector<nb_op>                      rows_;
};

// read_rate is the speed, in bytes a second, at which `threads` threads of the
// host read memory far larger than its caches; 0: no room.
int64_t read_rate(int threads);

} // namespace nb
#endif
