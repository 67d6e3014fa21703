// passes.h: which rows of a batch are computed in one pass over the weights.
// Knows no llama.cpp, so that nb-check tries it alone.
#ifndef NB_PASSES_H
#define NB_PASSES_H

#include <algorithm>
#include <atomic>
#include <vector>

#include "loop.h"

namespace nb {

// Passes divides batches into passes. A pass reads all weights once. llama.cpp
// takes neighbouring slots with equally many tokens into one, or as much of one
// slot as a physical batch holds; a slot between two others that has nothing to do,
// or a shorter prompt, would end it. Such are filled up with rows for nobody as long
// as those cost less than a pass (decision 0014), which also lets the next step have
// the shape of this one. Called by the loop's thread only, but for the counts.
class Passes {
  public:
    // most: rows of a physical batch. fills: whether rows for nobody may be added.
    Passes(int32_t n_slots, int32_t n_ctx_slot, size_t most, bool fills)
        : held_(n_slots), n_ctx_slot_(n_ctx_slot), most_(most), fills_(fills) {}

    // lay_out makes rows and asked of the pass that begins at from, and returns
    // where the next one begins. prompt: as in Model::decode.
    size_t lay_out(const std::vector<Entry> &batch, size_t from, bool prompt) {
        const size_t spare = !fills_ ? 0 : prompt ? kFillPrompt : kFillDecode;
        const auto   end   = [&](size_t at) { // of the slot of entry at
            const int32_t slot = batch[at].slot;
            while (at < batch.size() && batch[at].slot == slot) at++;
            return at;
        };
        const int32_t first = batch[from].slot;
        int32_t       last  = first;
        size_t        to = std::min(end(from), from + most_), each = to - from;
        const bool    whole = to == end(from);
        while (whole && to < batch.size()) {
            const size_t n = end(to) - to, wide = std::max(each, n);
            const auto   slots = static_cast<size_t>(batch[to].slot - first + 1);
            const size_t fill  = wide * slots - each * static_cast<size_t>(last - first + 1) - n;
            if (wide * slots > most_ || fill > spare || !room(first, batch[to].slot, wide)) break;
            each = wide;
            last = batch[to].slot;
            to += n;
        }
        rows_.clear();
        asked_.clear();
        for (int32_t slot = first; slot <= last; slot++) {
            size_t n = 0;
            for (; from < to && batch[from].slot == slot; from++, n++) {
                rows_.push_back(batch[from]);
                asked_.push_back(static_cast<int32_t>(from));
            }
            for (; n < each; n++) {
                rows_.push_back({0, held_[slot] + static_cast<int32_t>(n), slot, !prompt, false});
                asked_.push_back(-1);
            }
        }
        n_passes_++;
        n_filled_ += std::count(asked_.begin(), asked_.end(), -1);
        return to;
    }
    const std::vector<Entry>   &rows() const { return rows_; }
    const std::vector<int32_t> &asked() const { return asked_; } // where each row is in the batch; -1: for nobody

    // computed notes what the slots hold after the pass, also one that failed, whose
    // slots are cleared then. forget(slot, pos) is called where rows for nobody must
    // be taken out of a slot's memory again, from pos on.
    template <class Forget> void computed(Forget forget) {
        for (size_t i = 0; i < rows_.size(); i++) {
            const Entry &e = rows_[i];
            if (asked_[i] >= 0) {
                held_[e.slot] = e.pos + 1;
            } else if (i == 0 || asked_[i - 1] >= 0 || rows_[i - 1].slot != e.slot) {
                forget(e.slot, e.pos);
            }
        }
    }
    void clear(int32_t slot) { held_[slot] = 0; }

    // Any thread may ask for the counts, since the last reset.
    int64_t passes() const { return n_passes_; }
    int64_t filled() const { return n_filled_; }
    void    reset() { n_passes_ = n_filled_ = 0; }

  private:
    // room: whether all slots from first to last can take n more tokens.
    bool room(int32_t first, int32_t last, size_t n) const {
        return std::all_of(held_.begin() + first, held_.begin() + last + 1,
                           [&](int32_t held) { return static_cast<size_t>(held) + n <= static_cast<size_t>(n_ctx_slot_); });
    }

    // What is computed for nobody to save a pass. On an H100 a pass of Llama 2 7B over
    // one row takes 5.6 ms, 7 rows more 2.3 ms, 63 more 6.8; each token of a prompt
    // 0.045 ms. One of GPT-2 takes 0.66 ms, 63 rows more 1.5, a token 0.0075. So both
    // bounds are below the price of a pass.
    static constexpr size_t kFillDecode = 12, kFillPrompt = 80;

    std::vector<int32_t> held_; // tokens in each slot's memory
    const int32_t        n_ctx_slot_;
    const size_t         most_;
    const bool           fills_;
    std::vector<Entry>   rows_;
    std::vector<int32_t> asked_;
    std::atomic<int64_t> n_passes_{0}, n_filled_{0};
};

} // namespace nb
#endif
