#include "loop.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <climits>
#include <cmath>
#include <cstdlib>
#include <cstring>

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "nvtx.h"

namespace nb {

int64_t now_ns() {
    timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return static_cast<int64_t>(ts.tv_sec) * 1000000000 + ts.tv_nsec;
}

namespace {

// A futex instead of a condition variable between the loop and a waiter: the
// loop must publish a token without taking a lock, and without a system call
// when nobody waits.
void futex_wait(std::atomic<uint32_t> *word, uint32_t expected, const timespec *timeout) {
    syscall(SYS_futex, reinterpret_cast<uint32_t *>(word), FUTEX_WAIT_PRIVATE, expected, timeout, nullptr, 0);
}
void futex_wake(std::atomic<uint32_t> *word) {
    syscall(SYS_futex, reinterpret_cast<uint32_t *>(word), FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
}

// How many bytes at the end of text begin a UTF-8 sequence that more bytes
// could still complete. Bytes that can no longer become valid are not held
// back: they are the model's output as it is. (Unicode 15, table 3-7.)
size_t utf8_unfinished(const char *text, size_t len) {
    for (size_t back = 1; back <= 3 && back <= len; back++) {
        const unsigned char c = static_cast<unsigned char>(text[len - back]);
        if ((c & 0xC0) == 0x80) continue; // a continuation byte: its lead is further left
        const size_t need = c >= 0xC2 && c <= 0xDF ? 2 : (c & 0xF0) == 0xE0 ? 3 : c >= 0xF0 && c <= 0xF4 ? 4 : 1;
        if (need <= back) return 0;
        if (back >= 2) { // the second byte is restricted after some leads
            const unsigned char d = static_cast<unsigned char>(text[len - back + 1]);
            if ((c == 0xE0 && d < 0xA0) || (c == 0xED && d > 0x9F) || (c == 0xF0 && d < 0x90) || (c == 0xF4 && d > 0x8F))
                return 0;
        }
        return back;
    }
    return 0;
}

constexpr int64_t kAwakeNs = 200'000; // of the loop, after the last request

struct Free {
    void operator()(void *p) const { std::free(p); }
};

} // namespace

struct Loop::Slot {
    int32_t           id   = 0;
    bool              used = false; // a request was submitted; the caller's side
    std::atomic<bool> cancel{false};

    // The request. While kEndedBit is set in published it belongs to the
    // caller, else to the loop.
    nb_request           req{};
    std::vector<int32_t> prompt;
    int32_t              n_past   = 0; // tokens in the model's memory
    int32_t              next     = 0; // token to decode
    int32_t              in_batch = 0; // tokens of this slot in the batch being stepped
    int64_t              since    = 0; // end of the last interval accounted for
    uint64_t             range    = 0; // of the request, for a profiler
    bool                 decoding() const { return n_past >= static_cast<int32_t>(prompt.size()); }

    // Of a call of logits: where its next row goes, and how many are to come.
    float  *rows      = nullptr; // the caller's, who waits; NULL: a request
    int32_t rows_left = 0;

    // The answer. Memory for the longest possible one is reserved once; pages
    // are touched only as far as answers reach. published counts what a waiter
    // may read; its release store is the hand-over.
    std::unique_ptr<nb_token, Free> tokens;
    std::unique_ptr<char, Free>     text;
    size_t                          text_raw = 0; // bytes written, held-back ones included
    nb_result                       result{};     // the loop's until the end
    std::string                     why;          // of NB_FINISH_ERROR

    static constexpr uint32_t kEndedBit = 1u << 31;
    std::atomic<uint32_t>     published{kEndedBit}; // n_tokens, plus kEndedBit when ended
    std::atomic<int32_t>      want{INT32_MAX};      // a waiter sleeps until published passes this

    void publish(uint32_t value) {
        published.store(value, std::memory_order_seq_cst);
        const int32_t w = want.load(std::memory_order_seq_cst);
        if ((value & kEndedBit) || static_cast<int32_t>(value) > w) futex_wake(&published);
    }
};

Loop::Loop(std::unique_ptr<Model> model, int32_t prefill_chunk)
    : model_(std::move(model)), chunk_(prefill_chunk), sampler_(model_->vocab().n_vocab()) {
    if (chunk_ < 1) throw Error(NB_INVALID, "prefill chunk is " + std::to_string(chunk_) + " tokens; it must be at least 1");
    const size_t n_ctx = model_->n_ctx_slot();
    for (int32_t i = 0; i < model_->n_slots(); i++) {
        auto s = std::make_unique<Slot>();
        s->id  = i;
        s->tokens.reset(static_cast<nb_token *>(std::malloc(n_ctx * sizeof(nb_token))));
        s->text.reset(static_cast<char *>(std::malloc(n_ctx * model_->vocab().longest_piece() + 1)));
        if (!s->tokens || !s->text) throw Error(NB_MEMORY, "no memory for the answers of slot " + std::to_string(i));
        s->prompt.reserve(n_ctx);
        slots_.push_back(std::move(s));
    }
    active_.reserve(slots_.size());
    lined_.reserve(slots_.size());
    draws_.reserve(slots_.size());
    queued_.reserve(slots_.size());
    wanted_.reserve(slots_.size());
    batch_.reserve(chunk_ + slots_.size());
    thread_ = std::thread([this] { run(); });
}

Loop::~Loop() {
    {
        std::lock_guard<std::mutex> lock(mutex_);
        stop_ = true;
        called_.store(true, std::memory_order_relaxed);
        for (auto &s : slots_) s->cancel.store(true);
    }
    wake_.notify_one();
    thread_.join();
}

Loop::Slot &Loop::at(int32_t slot) {
    if (slot < 0 || slot >= static_cast<int32_t>(slots_.size())) {
        throw Error(NB_NOT_FOUND,
                    "slot " + std::to_string(slot) + " does not exist: the engine has " + std::to_string(slots_.size()));
    }
    return *slots_[slot];
}

Loop::Slot &Loop::free_slot(int32_t slot) {
    Slot &s = at(slot);
    if (!(s.published.load(std::memory_order_acquire) & Slot::kEndedBit)) {
        throw Error(NB_BUSY, "slot " + std::to_string(slot) + " still answers another request: wait for its end first");
    }
    s.used = false; // what a wait would find is gone, also when the next one is refused
    return s;
}

void Loop::put_tokens(Slot &s, const int32_t *tokens, int64_t n) {
    s.prompt.assign(tokens, tokens + n);
    for (int32_t id : s.prompt) {
        if (id < 0 || id >= model_->vocab().n_vocab()) {
            throw Error(NB_INVALID, "prompt token " + std::to_string(id) + " is not in the vocabulary of " +
                                        std::to_string(model_->vocab().n_vocab()));
        }
    }
}

void Loop::submit(int32_t slot, const nb_request &r) {
    const int64_t t0 = now_ns();
    Slot         &s  = free_slot(slot);
    if (r.max_tokens < 1) throw Error(NB_INVALID, "max_tokens is " + std::to_string(r.max_tokens) + "; it must be at least 1");
    if (!(r.temperature >= 0) || !std::isfinite(r.temperature))
        throw Error(NB_INVALID, "temperature must be 0 (greedy) or above");
    if (!(r.top_p > 0 && r.top_p <= 1)) throw Error(NB_INVALID, "top_p must be above 0 and at most 1");
    if (r.prompt_len < 0 || (!r.prompt == !r.tokens && r.prompt_len > 0)) {
        throw Error(NB_INVALID, "a request needs either a prompt text or prompt token ids");
    }

    s.prompt.clear();
    if (r.tokens) {
        put_tokens(s, r.tokens, r.prompt_len);
    } else if (r.prompt) {
        model_->vocab().tokenize({r.prompt, static_cast<size_t>(r.prompt_len)}, r.flags, &s.prompt);
    }
    if (s.prompt.empty()) throw Error(NB_INVALID, "the prompt has no tokens");
    const int64_t need = static_cast<int64_t>(s.prompt.size()) + r.max_tokens;
    if (need > model_->n_ctx_slot()) {
        throw Error(NB_CONTEXT, "the prompt has " + std::to_string(s.prompt.size()) + " tokens and " +
                                    std::to_string(r.max_tokens) + " are to be generated: " + std::to_string(need) +
                                    " do not fit the slot's context of " + std::to_string(model_->n_ctx_slot()) + " tokens");
    }

    s.rows = nullptr;
    queue(s, r, t0);
}

// queue hands a slot, whose tokens are in place, to the loop.
void Loop::queue(Slot &s, const nb_request &r, int64_t t0) {
    s.req        = r;
    s.req.prompt = nullptr; // the caller's memory is not kept
    s.req.tokens = nullptr;
    s.n_past = s.in_batch = 0;
    s.text_raw            = 0;
    s.result              = nb_result{};
    s.result.tokens       = s.tokens.get();
    s.result.text         = s.text.get();
    s.result.n_prompt     = static_cast<int32_t>(s.prompt.size());
    s.result.t_submit     = t0;
    s.why.clear();
    s.used  = true;
    s.range = range_start("request");
    s.want.store(INT32_MAX, std::memory_order_relaxed);
    s.cancel.store(false, std::memory_order_relaxed);
    s.since           = now_ns();
    s.result.tokenize = s.since - t0;
    {
        std::lock_guard<std::mutex> lock(mutex_);
        s.published.store(0, std::memory_order_release);
        queued_.push_back(&s);
        called_.store(true, std::memory_order_relaxed);
    }
    wake_.notify_one();
}

void Loop::wait(int32_t slot, int32_t seen, int64_t timeout_ns, nb_result *out) {
    Slot         &s        = at(slot);
    const int64_t deadline = timeout_ns < 0 ? INT64_MAX : now_ns() + std::min<int64_t>(timeout_ns, int64_t{1} << 60);
    if (!s.used) throw Error(NB_INVALID, "slot " + std::to_string(slot) + " has no request");
    uint32_t p;
    bool     late = false;
    s.want.store(seen, std::memory_order_seq_cst);
    for (;;) {
        p = s.published.load(std::memory_order_seq_cst);
        if ((p & Slot::kEndedBit) || static_cast<int32_t>(p) > seen) break;
        const int64_t left = deadline - now_ns();
        if (left <= 0) {
            late = true;
            break;
        }
        const timespec ts{static_cast<time_t>(left / 1000000000), static_cast<long>(left % 1000000000)};
        futex_wait(&s.published, p, deadline == INT64_MAX ? nullptr : &ts);
    }
    s.want.store(INT32_MAX, std::memory_order_relaxed);
    if (p & Slot::kEndedBit) {
        *out = s.result;
        if (s.result.finish == NB_FINISH_ERROR) throw Error(s.result.status, s.why);
        return;
    }
    *out          = nb_result{};
    out->tokens   = s.tokens.get();
    out->text     = s.text.get();
    out->n_tokens = static_cast<int32_t>(p);
    out->text_len = p == 0 ? 0 : s.tokens.get()[p - 1].text_end;
    out->n_prompt = s.result.n_prompt;
    out->t_submit = s.result.t_submit;
    if (late) throw Error(NB_TIMEOUT, "the time limit passed; the request goes on");
}

void Loop::logits(int32_t slot, const int32_t *tokens, int32_t n, int32_t last, float *out, int64_t cap) {
    const int64_t t0 = now_ns();
    Slot         &s  = free_slot(slot);
    if (!tokens || n < 1) throw Error(NB_INVALID, "logits need at least one token to follow");
    if (last < 1 || last > n)
        throw Error(NB_INVALID, "logits after the last " + std::to_string(last) + " of " + std::to_string(n) + " tokens");
    const int64_t need = static_cast<int64_t>(last) * model_->vocab().n_vocab();
    if (!out || cap < need)
        throw Error(NB_INVALID, std::to_string(need) + " logits do not fit the room for " + std::to_string(cap));
    if (n > model_->n_ctx_slot()) {
        throw Error(NB_CONTEXT, "the sequence has " + std::to_string(n) + " tokens, over the slot's context of " +
                                    std::to_string(model_->n_ctx_slot()));
    }
    put_tokens(s, tokens, n);
    s.rows      = out;
    s.rows_left = last;
    queue(s, nb_request{}, t0);
    nb_result r;
    wait(slot, INT32_MAX, -1, &r);
    s.used = false; // there is no answer to wait for
    if (r.finish == NB_FINISH_CANCELLED) throw Error(NB_CANCELLED, "computing logits was cancelled");
}

void Loop::cancel(int32_t slot) { at(slot).cancel.store(true, std::memory_order_relaxed); }

// run is the loop's thread: take in new requests, one chunk of prompts, one decode
// step for all slots that generate; again. The two are batches of their own:
// sequences keep separate KV streams, for which llama.cpp would split a mixed
// batch into the same two computations anyway, and a step's time then belongs
// to one phase alone.
void Loop::run() {
    while (admit()) {
        step(true);
        step(false);
    }
    for (Slot *s : active_) finish(*s, NB_FINISH_CANCELLED);
    for (Slot *s : queued_) finish(*s, NB_FINISH_CANCELLED);
}

// admit moves queued requests to the active ones, sleeping while there are
// neither. False: the engine is being closed. Waking a thread takes tens of
// microseconds, which a request that follows soon after another does not pay.
bool Loop::admit() {
    if (active_.empty()) {
        const int64_t until = now_ns() + kAwakeNs;
        while (!called_.load(std::memory_order_relaxed) && now_ns() < until) std::this_thread::yield();
    }
    {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return stop_ || !queued_.empty() || !active_.empty(); });
        if (stop_) return false;
        active_.insert(active_.end(), queued_.begin(), queued_.end());
        queued_.clear();
        called_.store(false, std::memory_order_relaxed);
    }
    for (size_t i = 0; i < active_.size();) { // cancelled before or between steps
        Slot *s = active_[i];
        if (s->cancel.load(std::memory_order_relaxed)) {
            active_.erase(active_.begin() + static_cast<long>(i));
            finish(*s, NB_FINISH_CANCELLED);
        } else {
            i++;
        }
    }
    return true;
}

// line_up puts into lined_ the slots of a step, in the order in which they get
// room. Of prompts one that has begun, so that it is finished before the next
// begins; the oldest that waits, which therefore waits for at most one; then its
// neighbours as long as they follow each other, then the others by age. llama.cpp
// computes neighbouring sequences in one pass over the weights, and any others in
// passes of their own.
void Loop::line_up(bool prefill) {
    lined_.clear();
    for (Slot *s : active_) {
        s->in_batch = 0;
        if (s->decoding() != prefill) lined_.push_back(s);
    }
    if (!prefill) return;
    const auto left   = [](const Slot *s) { return static_cast<int32_t>(s->prompt.size()) - s->n_past; };
    const auto begun  = std::find_if(lined_.begin(), lined_.end(), [](const Slot *s) { return s->n_past > 0; });
    auto       next   = lined_.begin();
    int32_t    tokens = 0;
    if (begun != lined_.end()) {
        std::rotate(next, begun, begun + 1);
        tokens += left(*next++);
    }
    if (next == lined_.end()) return;
    int32_t low = (*next)->id, high = low;
    for (tokens += left(*next++); tokens < chunk_; next++) {
        const auto beside = [&](const Slot *s) { return s->id == low - 1 || s->id == high + 1; };
        const auto found  = std::find_if(next, lined_.end(), beside);
        if (found == lined_.end()) return;
        low  = std::min(low, (*found)->id);
        high = std::max(high, (*found)->id);
        tokens += left(*found);
        std::rotate(next, found, found + 1);
    }
}

void Loop::step(bool prefill) {
    batch_.clear();
    wanted_.clear();
    draws_.clear();
    line_up(prefill);
    int32_t room = prefill ? chunk_ : INT32_MAX;
    for (Slot *s : lined_) {
        s->in_batch = prefill ? std::min(static_cast<int32_t>(s->prompt.size()) - s->n_past, room) : 1;
        room -= s->in_batch;
    }
    std::sort(lined_.begin(), lined_.end(), [](const Slot *a, const Slot *b) { return a->id < b->id; });
    for (Slot *s : lined_) {
        if (s->in_batch > 0) fill(*s, prefill);
    }
    if (batch_.empty()) return;

    const Range   range(prefill ? "prefill chunk" : "decode step");
    const int64_t begin = now_ns();
    for (Slot *s : active_) {
        if (s->n_past == 0 && s->in_batch > 0) s->result.queue += begin - s->since; // from submit to the first batch
    }
    std::string failure;
    bool        chosen = false; // the model has chosen the tokens itself
    try {
        chosen = model_->decode(batch_, prefill, &draws_);
    } catch (const std::exception &e) {
        failure = e.what();
        if (failure.empty()) failure = "decoding failed";
    } catch (...) {
        failure = "decoding failed with an unknown exception";
    }
    const int64_t end = now_ns();
    model_->stamped(end);

    for (Slot *s : active_) {
        const bool waits_for_first = s->n_past == 0 && s->in_batch == 0;
        if (waits_for_first) continue; // still counted from submit
        int64_t &phase = s->in_batch == 0 ? s->result.queue : prefill ? s->result.prefill : s->result.decode;
        phase += end - begin;
        s->n_past += s->in_batch;
    }
    if (!failure.empty()) { // ends the requests of this batch, not the others
        size_t kept = 0;
        for (Slot *s : active_) {
            if (s->in_batch == 0) {
                active_[kept++] = s;
                continue;
            }
            s->why = failure;
            finish(*s, NB_FINISH_ERROR);
        }
        active_.resize(kept);
        return;
    }
    for (auto [s, entry, rows, draw] : wanted_) {
        try {
            s->rows ? copy_logits(*s, entry, rows) : emit(*s, entry, chosen && draw >= 0 ? &draws_[draw] : nullptr, end);
        } catch (const std::exception &e) {
            s->why = e.what();
            active_.erase(std::find(active_.begin(), active_.end(), s));
            finish(*s, NB_FINISH_ERROR);
        }
    }
}

// fill puts what a slot has in the step into the batch.
void Loop::fill(Slot &s, bool prefill) {
    const auto at = static_cast<int32_t>(batch_.size());
    if (!prefill) {
        want(s, at, 1);
        batch_.push_back({s.next, s.n_past, s.id, true, false});
        return;
    }
    // Wanted are the last rows of the prompt, those of them that lie in this batch.
    const int32_t left = static_cast<int32_t>(s.prompt.size()) - s.n_past;
    const int32_t skip = std::max(left - (s.rows ? s.rows_left : 1), 0);
    if (skip < s.in_batch) want(s, at + skip, s.in_batch - skip);
    for (int32_t i = 0; i < s.in_batch; i++) {
        batch_.push_back({s.prompt[s.n_past + i], s.n_past + i, s.id, i >= skip, i >= skip && s.rows});
    }
}

// want notes what a slot needs of the logits of batch entries: rows of them for a
// call of logits, else a token.
void Loop::want(Slot &s, int32_t entry, int32_t rows) {
    Wanted w{&s, entry, rows, -1};
    if (!s.rows && !(s.req.flags & NB_REQ_RAW)) {
        w.draw = static_cast<int32_t>(draws_.size());
        draws_.push_back({entry, s.req.temperature, s.req.top_p, uniform(s.req.seed, s.published.load(std::memory_order_relaxed)),
                          (s.req.flags & NB_REQ_IGNORE_EOS) != 0, 0});
    }
    wanted_.push_back(w);
}

// emit chooses the slot's next token from the logits of a batch entry, unless
// the model has, stamps it and makes it visible. at: when the batch was done.
void Loop::emit(Slot &s, int32_t entry, const Draw *chosen, int64_t at) {
    const bool raw   = s.req.flags & NB_REQ_RAW;
    const bool go_on = s.req.flags & NB_REQ_IGNORE_EOS;
    const auto n     = s.published.load(std::memory_order_relaxed);
    int64_t    t1    = at;
    int32_t    id;
    if (chosen) {
        id = chosen->id;
    } else if (raw) {
        id = static_cast<int32_t>((static_cast<int64_t>(s.next) * 31 + 7) % model_->vocab().n_vocab());
        t1 = now_ns();
    } else {
        const Range   range("sampling");
        const int64_t t0     = now_ns();
        float        *logits = model_->logits(entry);
        if (go_on) { // as llama-server does: an end token cannot be drawn at all
            for (int32_t e : model_->vocab().end_tokens()) logits[e] = -INFINITY;
        }
        id = s.req.temperature == 0 ? argmax(logits, model_->vocab().n_vocab())
                                    : sampler_.sample(logits, s.req.temperature, s.req.top_p, uniform(s.req.seed, n));
        t1 = now_ns();
        s.result.sampling += t1 - t0;
    }
    s.next = id;

    const auto   &ends = model_->vocab().end_tokens();
    const bool    stop = !raw && !go_on && std::find(ends.begin(), ends.end(), id) != ends.end();
    const int64_t t2   = now_ns();
    append(s, id, t1, !stop);
    s.result.detokenize += now_ns() - t2;

    const int32_t made = static_cast<int32_t>(n) + 1;
    const int32_t how  = stop ? NB_FINISH_STOP : made >= s.req.max_tokens ? NB_FINISH_LENGTH : NB_RUNNING;
    s.result.n_tokens  = made;
    if (how == NB_RUNNING) {
        s.publish(static_cast<uint32_t>(made));
        return;
    }
    active_.erase(std::find(active_.begin(), active_.end(), &s));
    finish(s, how);
}

// copy_logits hands rows to the caller of logits, and the slot back after the last.
void Loop::copy_logits(Slot &s, int32_t entry, int32_t rows) {
    const size_t n = model_->vocab().n_vocab();
    for (int32_t i = 0; i < rows; i++, s.rows += n) std::memcpy(s.rows, model_->logits(entry + i), n * sizeof(float));
    s.rows_left -= rows;
    if (s.rows_left > 0) return;
    active_.erase(std::find(active_.begin(), active_.end(), &s));
    finish(s, NB_FINISH_LENGTH);
}

// append adds a token's text, held back to the last whole UTF-8 sequence.
void Loop::append(Slot &s, int32_t id, int64_t t, bool visible) {
    if (visible) {
        const std::string_view piece = model_->vocab().piece(id);
        std::memcpy(s.text.get() + s.text_raw, piece.data(), piece.size());
        s.text_raw += piece.size();
    }
    const size_t held                                           = utf8_unfinished(s.text.get(), s.text_raw);
    s.tokens.get()[s.published.load(std::memory_order_relaxed)] = {t, id, static_cast<int32_t>(s.text_raw - held)};
    s.result.text_len                                           = static_cast<int32_t>(s.text_raw - held);
    s.result.held_back                                          = static_cast<int32_t>(held);
}

void Loop::finish(Slot &s, int32_t how) {
    s.result.t_end = now_ns();
    range_end(s.range);
    try {
        model_->clear(s.id);
    } catch (const std::exception &e) {
        how   = NB_FINISH_ERROR;
        s.why = e.what();
    }
    s.result.finish = how;
    s.result.status = how == NB_FINISH_ERROR ? NB_INTERNAL : how == NB_FINISH_CANCELLED ? NB_CANCELLED : NB_OK;
    s.publish(static_cast<uint32_t>(s.result.n_tokens) | Slot::kEndedBit);
}

} // namespace nb
