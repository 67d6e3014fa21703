// fake.cpp: an engine with the same ABI and no model, for making faults on
// purpose and for running the loop under sanitizers. The "model path" is its
// program:
//
//   fake:[key=value,…]
//     step_us=N      time of a decode step (default 0)
//     prompt_us=N    time per prompt token (default 0)
//     load_ms=N      time of loading
//     fail=memory|model   open fails so
//     error_at=N     decode step N (from 1) fails as an engine error
//     abort_at=N, segv_at=N, hang_at=N    it aborts, faults, or never returns
//     flat=1         logits without a preference, for sampling tests
//
// A token is a byte; the greedy answer is a fixed text of one- to four-byte
// characters, over and over, so that every token boundary cuts some character.
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <map>

#include <time.h>
#include <unistd.h>

#include "loop.h"

namespace nb {
namespace {

constexpr char    kAnswer[] = "in-process: caf\xC3\xA9, \xEC\x95\x88\xEB\x85\x95, \xF0\x9F\x91\x8B. ";
constexpr int32_t kEnd = 256, kVocab = 257;

void sleep_us(int64_t us) {
    if (us <= 0) return;
    timespec ts{static_cast<time_t>(us / 1000000), static_cast<long>(us % 1000000 * 1000)};
    nanosleep(&ts, nullptr);
}

class ByteVocab : public Vocab {
  public:
    void tokenize(std::string_view text, uint32_t, std::vector<int32_t> *out) const override {
        out->clear();
        for (unsigned char c : text) out->push_back(c);
    }
    std::string_view piece(int32_t id) const override {
        static const std::string bytes = [] {
            std::string s;
            for (int i = 0; i < 256; i++) s += static_cast<char>(i);
            return s;
        }();
        return id < 256 ? std::string_view(bytes).substr(id, 1) : std::string_view();
    }
    int32_t                     n_vocab() const override { return kVocab; }
    size_t                      longest_piece() const override { return 1; }
    const std::vector<int32_t> &end_tokens() const override { return ends_; }

  private:
    std::vector<int32_t> ends_{kEnd};
};

class FakeModel : public Model {
  public:
    FakeModel(const nb_params &p, std::map<std::string, std::string> program)
        : params_(p), program_(std::move(program)), logits_(kVocab * static_cast<size_t>(p.n_batch)), made_(p.n_slots) {}

    const Vocab &vocab() const override { return vocab_; }
    int32_t      n_slots() const override { return params_.n_slots; }
    int32_t      n_ctx_slot() const override { return params_.n_ctx_slot > 0 ? params_.n_ctx_slot : 1024; }

    void info(nb_info *out) const override {
        out->n_ctx_train = out->n_ctx_slot = n_ctx_slot();
        out->n_slots                       = params_.n_slots;
        out->n_vocab                       = kVocab;
        out->n_batch                       = params_.n_batch;
        out->n_ubatch                      = params_.n_ubatch;
        out->n_threads                     = params_.n_threads;
        out->n_threads_batch               = params_.n_threads_batch;
        std::strcpy(out->desc, "fake engine");
        std::strcpy(out->ftype, "none");
        std::strcpy(out->arch, "fake");
        std::strcpy(out->device, "none: fake engine");
    }
    void memory(std::vector<nb_memory> *rows) const override {
        nb_memory row{};
        std::strcpy(row.device, "CPU");
        row.compute = static_cast<int64_t>(logits_.size() * sizeof(float));
        rows->push_back(row);
    }

    bool decode(const std::vector<Entry> &batch, bool, std::vector<Draw> *) override {
        steps_++;
        if (steps_ == number("error_at")) throw Error(NB_INTERNAL, "fake engine: told to fail at step " + std::to_string(steps_));
        if (steps_ == number("abort_at")) std::abort();
        if (steps_ == number("segv_at")) std::raise(SIGSEGV);
        if (steps_ == number("hang_at")) {
            for (;;) pause();
        }
        const bool prompt = batch.size() > static_cast<size_t>(params_.n_slots) || !batch[0].logits;
        sleep_us(prompt ? number("prompt_us") * static_cast<int64_t>(batch.size()) : number("step_us"));
        for (size_t i = 0; i < batch.size(); i++) {
            if (!batch[i].logits) continue;
            float *row = &logits_[i * kVocab];
            for (int32_t id = 0; id < kVocab; id++)
                row[id] = number("flat") ? 0.0f : -static_cast<float>((id * 37 + batch[i].pos) % 11);
            row[kEnd] = -50;
            if (!number("flat")) row[static_cast<unsigned char>(kAnswer[made_[batch[i].slot] % (sizeof kAnswer - 1)])] = 3;
            made_[batch[i].slot]++;
        }
        return false;
    }
    float *logits(int32_t i) override { return &logits_[static_cast<size_t>(i) * kVocab]; }
    void   clear(int32_t slot) override { made_[slot] = 0; }

  private:
    int64_t number(const char *key) const {
        const auto it = program_.find(key);
        return it == program_.end() ? 0 : std::atoll(it->second.c_str());
    }

    nb_params                          params_;
    std::map<std::string, std::string> program_;
    ByteVocab                          vocab_;
    std::vector<float>                 logits_;
    std::vector<size_t>                made_; // tokens of each slot's answer
    int64_t                            steps_ = 0;
};

} // namespace

void begin(const char *) {}

std::unique_ptr<Model> load_model(const nb_params &p, nb_progress *progress) {
    const std::string path = p.model_path;
    if (path.rfind("fake:", 0) != 0) throw Error(NB_MODEL, "the fake engine runs only models called fake:…, not " + path);
    std::map<std::string, std::string> program;
    for (size_t at = 5; at < path.size();) {
        const size_t      end       = std::min(path.find(',', at), path.size());
        const std::string part      = path.substr(at, end - at);
        const size_t      eq        = part.find('=');
        program[part.substr(0, eq)] = eq == std::string::npos ? "1" : part.substr(eq + 1);
        at                          = end + 1;
    }
    const int64_t ms = std::atoll(program["load_ms"].c_str());
    for (int64_t i = 0; i < ms; i++) {
        if (progress) progress->permille = static_cast<int32_t>(1000 * i / ms);
        if (progress && progress->cancel) throw Error(NB_CANCELLED, "loading was cancelled");
        sleep_us(1000);
    }
    if (program["fail"] == "memory") throw Error(NB_MEMORY, "fake engine: told to be out of memory");
    if (program["fail"] == "model") throw Error(NB_MODEL, "fake engine: told that the file is no model");
    return std::make_unique<FakeModel>(p, program);
}

std::unique_ptr<Vocab> load_vocab(const char *) { return std::make_unique<ByteVocab>(); }

const char *engine_name() { return "fake engine"; }

} // namespace nb
