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

// Ops keeps what was watched, step by step. Called by the loop's thread, and by
// others while no request is under way.
class Ops {
  public:
    // watch is ggml's evaluation callback; self an Ops. Without it whole steps are
    // timed, and nothing is slowed down.
    static bool watch(ggml_tensor *t, bool ask, void *self);
    void        scheduler(ggml_backend_sched_t s) { sched_ = s; }

    void forget();
    void begin(bool prompt); // a step; one that was not ended is forgotten
    void sampled(int64_t ns) { now_.sample_ns += ns; }
    void end(int64_t tokens, int64_t ns);

    // tell sums the faster half of the steps of each kind: what else the machine
    // does meanwhile is in the slower ones. Whole steps, so that parts add up.
    void tell(nb_ops *out, std::vector<nb_op> *rows) const;
    // best measures what the device that had most of the products can do:
    // one number added to itself, launched alone and awaited, and a large product
    // of F16 with F32, each the fastest of many. Nothing else may run. size says of
    // what shape the product was.
    void best(int64_t *empty_ns, int64_t *flop_rate, std::string *size) const;
    // on_host: that device is the host's processor.
    bool on_host() const;

  private:
    struct Part { // one operation of one step
        size_t  row;
        int64_t ns;
        Cost    cost;
    };
    struct Step {
        bool              prompt = false;
        int64_t           ns = 0, tokens = 0, sample_ns = 0;
        std::vector<Part> parts;
    };

    ggml_backend_sched_t                    sched_ = nullptr;
    ggml_backend_t                          busy_  = nullptr; // computed the last product
    int64_t                                 began_ = 0;
    Step                                    now_;
    std::vector<Step>                       steps_;
    std::unordered_map<std::string, size_t> order_;
    std::vector<nb_op>                      rows_; // what is the same in all steps
};

// read_rate is the speed, in bytes a second, at which `threads` threads of the
// host read memory far larger than its caches; 0: no room.
int64_t read_rate(int threads);

} // namespace nb
#endif
