// loop.h: slots stepped in one continuously batched loop, with a stamp per
// token. Knows no llama.cpp: the model behind it is an interface, which the
// fake engine and the sanitizer runs use too.
#ifndef NB_LOOP_H
#define NB_LOOP_H

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "nb.h"
#include "sampler.h"

namespace nb {

// Error carries a status through C++ code; api.cpp turns it into a return
// value and a line of text.
struct Error : std::runtime_error {
    nb_status status;
    Error(nb_status s, const std::string &what) : std::runtime_error(what), status(s) {}
};

int64_t now_ns(); // CLOCK_MONOTONIC

// One token of a batch.
struct Entry {
    int32_t token;
    int32_t pos;
    int32_t slot;
    bool    logits; // computed after this token
    bool    fetch;  // and wanted on the host, by Model::logits
};

// A token to be chosen from the logits of a batch entry, as Sampler::sample.
struct Draw {
    int32_t entry;
    float   temperature; // 0: the largest logit
    float   top_p;
    double  u;
    bool    no_end; // tokens that end a generation cannot be drawn
    int32_t id;     // the choice
};

// Vocab turns text into token ids and back. Any thread may call it.
class Vocab {
  public:
    virtual ~Vocab() = default;

    virtual void tokenize(std::string_view text, uint32_t flags, std::vector<int32_t> *out) const = 0;
    // piece returns the bytes of a token, "" for control tokens.
    virtual std::string_view            piece(int32_t id) const = 0;
    virtual int32_t                     n_vocab() const         = 0;
    virtual size_t                      longest_piece() const   = 0; // bytes
    virtual const std::vector<int32_t> &end_tokens() const      = 0; // that end a generation
};

// Model is what the loop steps. decode, logits and clear are called by the
// loop's thread only.
class Model {
  public:
    virtual ~Model() = default;

    virtual const Vocab &vocab() const                              = 0;
    virtual void         info(nb_info *out) const                   = 0; // all but load_ns
    virtual void         memory(std::vector<nb_memory> *rows) const = 0;
    virtual int32_t      n_slots() const                            = 0;
    virtual int32_t      n_ctx_slot() const                         = 0;

    // decode computes a batch, its entries in the order of slots, and returns when
    // its results are on the host. A model that can chooses the tokens of draws, in
    // the order of entries, itself, where it computes, and returns true. False: the
    // caller chooses, from logits, which are there for all entries that have them.
    // prompt: it is a chunk of prefill. Throws Error; the batch's slots are then
    // cleared by the caller.
    virtual bool decode(const std::vector<Entry> &batch, bool prompt, std::vector<Draw> *draws) = 0;
    // logits of batch entry i of the last decode, where wanted: one float per token
    // of the vocabulary, which the caller may overwrite.
    virtual float *logits(int32_t i) = 0;
    // stamped tells when the host had the tokens of the last decode.
    virtual void stamped(int64_t) {}
    // stamps begins (true) or ends a calibration of those stamps against the
    // device's clock; throws Error where there is none.
    virtual void stamps(bool, nb_stamps *) { throw Error(NB_NOT_FOUND, "no device with a clock of its own computes here"); }
    // profile begins (true) or ends what a profiler of the device captures.
    virtual void profile(bool) { throw Error(NB_NOT_FOUND, "no CUDA device computes here"); }
    // ops begins to watch (true) or tells what was seen since.
    virtual void ops(bool, nb_ops *, std::vector<nb_op> *) {
        throw Error(NB_INVALID, "this engine has no operations to be watched");
    }
    // clear forgets the slot's tokens.
    virtual void clear(int32_t slot) = 0;
};

// What an engine library consists of, besides the loop: nb.cpp and fake.cpp
// each define these, api.cpp makes the table of functions from them.
void                   begin(const char *plugin_dir); // loads the plugins and makes a context on each device
std::unique_ptr<Model> load_model(const nb_params &p, nb_progress *progress);
std::unique_ptr<Vocab> load_vocab(const char *gguf_path);
const char            *engine_name();

// Loop owns the model, the slots and the thread that steps them.
class Loop {
  public:
    // prefill_chunk: prompt tokens computed, over all slots, between two decode
    // steps: the longest time a decoding slot waits for others' prompts.
    Loop(std::unique_ptr<Model> model, int32_t prefill_chunk);
    ~Loop(); // cancels what runs and joins

    void submit(int32_t slot, const nb_request &r);
    void wait(int32_t slot, int32_t seen, int64_t timeout_ns, nb_result *out);
    void cancel(int32_t slot);
    void logits(int32_t slot, const int32_t *tokens, int32_t n, int32_t last, float *out, int64_t cap);

    Model &model() const { return *model_; }

  private:
    struct Slot;
    struct Wanted { // logits of a batch, from entry on
        Slot   *slot;
        int32_t entry, rows;
        int32_t draw; // its place among draws_; -1: none
    };

    Slot &at(int32_t slot);
    Slot &free_slot(int32_t slot);
    void  put_tokens(Slot &s, const int32_t *tokens, int64_t n);
    void  queue(Slot &s, const nb_request &r, int64_t t0);
    void  run();
    bool  admit();
    void  line_up(bool prefill);
    void  step(bool prefill);
    void  fill(Slot &s, bool prefill);
    void  want(Slot &s, int32_t entry, int32_t rows);
    void  emit(Slot &s, int32_t entry, const Draw *chosen, int64_t at);
    void  copy_logits(Slot &s, int32_t entry, int32_t rows);
    void  append(Slot &s, int32_t id, int64_t t, bool visible);
    void  finish(Slot &s, int32_t how);

    std::unique_ptr<Model>             model_;
    const int32_t                      chunk_;
    Sampler                            sampler_;
    std::vector<std::unique_ptr<Slot>> slots_;
    std::vector<Slot *>                active_; // of the loop's thread; oldest first
    std::vector<Slot *>                lined_;  // of them those of a step
    std::vector<Draw>                  draws_;  // of the batch
    std::vector<Entry>                 batch_;
    std::vector<Wanted>                wanted_; // at most one a slot

    std::mutex              mutex_; // guards queued_, stop_ and the hand-over of slots
    std::condition_variable wake_;
    std::vector<Slot *>     queued_;
    bool                    stop_ = false;
    std::atomic<bool>       called_{false}; // something is queued or stop_ is set
    std::thread             thread_;        // last: everything else is ready when it starts
};

} // namespace nb
#endif
