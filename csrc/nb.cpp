// nb.cpp: llama.cpp behind the loop. The only file that sees llama.h.
#include <algorithm>
#include <climits>
#include <cstdio>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>

#include <dirent.h>
#include <dlfcn.h>

// Of llama.cpp's and ggml's insides, for choosing tokens on the device: where the
// logits of the last graph lie, and on which stream they are computed.
#include "ggml-backend-impl.h"
#include "llama-context.h"

#include "gpu.h"
#include "llama-ext.h"
#include "llama.h"
#include "loop.h"
#include "nvtx.h"
#include "ops.h"
#include "passes.h"

#ifndef NB_ENGINE
#define NB_ENGINE "llama.cpp"
#endif

namespace nb {
namespace {

// ---- log: llama.cpp tells why something failed only in its log

class Log {
  public:
    void add(ggml_log_level level, const char *text) {
        std::lock_guard<std::mutex> lock(mutex_);
        if (level == GGML_LOG_LEVEL_CONT && !lines_.empty()) {
            lines_.back().text += text;
            return;
        }
        lines_.push_back({level, text});
        if (lines_.size() > 256) lines_.pop_front();
    }
    // take joins the error lines and forgets all: the reason of what just failed.
    std::string take() {
        std::lock_guard<std::mutex> lock(mutex_);
        std::string                 all;
        for (const Line &l : lines_) {
            if (l.level != GGML_LOG_LEVEL_ERROR) continue;
            std::string text = l.text.substr(0, l.text.find_last_not_of(" \n") + 1);
            if (!text.empty()) all += (all.empty() ? "" : "; ") + text;
        }
        lines_.clear();
        return all.empty() ? "llama.cpp gave no reason" : all;
    }

  private:
    struct Line {
        ggml_log_level level;
        std::string    text;
    };
    std::mutex       mutex_;
    std::deque<Line> lines_;
};

Log &llama_log() {
    static Log &log = *new Log; // for the life of the process: threads may log while it ends
    return log;
}

// failure is the error of a llama.cpp call that failed, with the reason that its
// log gives: lack of memory if it speaks of an allocation.
Error failure(nb_status otherwise, const std::string &what) {
    const std::string why    = llama_log().take();
    bool              memory = false;
    for (const char *sign : {"allocate", "insufficient memory", "out of memory"}) {
        memory = memory || why.find(sign) != std::string::npos;
    }
    return Error(memory ? NB_MEMORY : otherwise, what + ": " + why);
}

// ---- once per process: log and backend plugins

// plugin_dir is where the plugins lie: in dir, or beside this library.
std::string plugin_dir(const char *dir) {
    std::string where = dir ? dir : "";
    Dl_info     self;
    if (where.empty() && dladdr(reinterpret_cast<const void *>(&nb_get_api), &self) && self.dli_fname) {
        where = self.dli_fname;
        where.erase(std::min(where.find_last_of('/'), where.size()));
    }
    return where;
}

// load_cpu loads the plugin of the CPU alone: of its variants the one with the
// highest score on this machine, as ggml chooses it.
void load_cpu(const std::string &dir) {
    DIR *list = opendir(dir.c_str());
    if (!list) return;
    std::string best;
    int         most = -1;
    while (const dirent *entry = readdir(list)) {
        const std::string name = entry->d_name;
        if (name.rfind("libggml-cpu", 0) != 0 || name.size() < 3 || name.compare(name.size() - 3, 3, ".so") != 0) continue;
        const std::string path = dir + "/" + name;
        void             *lib  = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
        if (!lib) continue;
        const auto score = reinterpret_cast<int (*)()>(dlsym(lib, "ggml_backend_score"));
        const int  s     = name == "libggml-cpu.so" ? 0 : score ? score() : -1; // 0: where no variant does
        if (s > most && (s > 0 || name == "libggml-cpu.so")) {
            most = s;
            best = path;
        }
        dlclose(lib);
    }
    closedir(list);
    if (!best.empty()) ggml_backend_load(best.c_str());
}

// start loads the backend plugins: that of the CPU, and for `devices` all (CUDA,
// …). A CUDA plugin whose driver is missing is simply not there. One whose driver
// is there makes a context on the GPU (half a GB) as soon as it is loaded or asked
// anything, which a process that only tokenizes must not hold.
void start(const char *dir, bool devices) {
    static std::mutex           once;
    static bool                 begun = false, all = false;
    std::lock_guard<std::mutex> lock(once);
    const std::string           where = plugin_dir(dir);
    if (!begun) llama_log_set([](ggml_log_level level, const char *text, void *) { llama_log().add(level, text); }, nullptr);
    if (devices && !all) {
        all = true;
        ggml_backend_load_all_from_path(where.empty() ? nullptr : where.c_str());
    } else if (!devices && !begun) {
        load_cpu(where);
    }
    if (!begun) llama_backend_init();
    begun = true;
    if (ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU) == nullptr) {
        throw Error(NB_NOT_FOUND, "no CPU backend plugin (libggml-cpu*.so) beside the engine library");
    }
}

struct FreeModel {
    void operator()(llama_model *m) const { llama_model_free(m); }
};
struct FreeContext {
    void operator()(llama_context *c) const { llama_free(c); }
};
using ModelPtr   = std::unique_ptr<llama_model, FreeModel>;
using ContextPtr = std::unique_ptr<llama_context, FreeContext>;

template <size_t N> void put(char (&to)[N], const std::string &from) { std::snprintf(to, N, "%s", from.c_str()); }

// ---- vocabulary

class LlamaVocab : public Vocab {
  public:
    explicit LlamaVocab(const llama_model *model) : vocab_(llama_model_get_vocab(model)) {
        // All pieces are looked up once: the loop then only copies bytes.
        const int32_t n = llama_vocab_n_tokens(vocab_);
        begin_.reserve(n + 1);
        std::string piece(64, '\0');
        for (int32_t id = 0; id < n; id++) {
            begin_.push_back(bytes_.size());
            int32_t len = llama_token_to_piece(vocab_, id, piece.data(), static_cast<int32_t>(piece.size()), 0, false);
            if (len < 0) {
                piece.resize(-len);
                len = llama_token_to_piece(vocab_, id, piece.data(), static_cast<int32_t>(piece.size()), 0, false);
            }
            bytes_.append(piece.data(), std::max(len, 0));
            longest_ = std::max<size_t>(longest_, std::max(len, 0));
            if (llama_vocab_is_eog(vocab_, id)) ends_.push_back(id);
        }
        begin_.push_back(bytes_.size());
    }

    void tokenize(std::string_view text, uint32_t flags, std::vector<int32_t> *out) const override {
        if (text.size() > INT32_MAX / 2) throw Error(NB_INVALID, "the text is longer than 1 GiB");
        const bool bos = flags & NB_REQ_ADD_BOS, special = flags & NB_REQ_SPECIAL;
        const auto len = static_cast<int32_t>(text.size());
        out->resize(text.size() + 2);
        int32_t n = llama_tokenize(vocab_, text.data(), len, out->data(), static_cast<int32_t>(out->size()), bos, special);
        if (n < 0) {
            if (n == INT32_MIN) throw Error(NB_INVALID, "the text has more tokens than can be counted");
            out->resize(-n);
            n = llama_tokenize(vocab_, text.data(), len, out->data(), static_cast<int32_t>(out->size()), bos, special);
        }
        out->resize(std::max(n, 0));
    }
    std::string_view piece(int32_t id) const override { return {bytes_.data() + begin_[id], begin_[id + 1] - begin_[id]}; }
    int32_t          n_vocab() const override { return static_cast<int32_t>(begin_.size()) - 1; }
    size_t           longest_piece() const override { return longest_; }
    const std::vector<int32_t> &end_tokens() const override { return ends_; }

  private:
    const llama_vocab   *vocab_;
    std::string          bytes_;
    std::vector<size_t>  begin_;
    std::vector<int32_t> ends_;
    size_t               longest_ = 1;
};

ModelPtr load_weights(const char *path, llama_model_params mp, const nb_progress *progress) {
    llama_log().take();
    ModelPtr model(llama_model_load_from_file(path, mp));
    if (model) return model;
    if (progress && progress->cancel) throw Error(NB_CANCELLED, "loading " + std::string(path) + " was cancelled");
    throw failure(NB_MODEL, "llama.cpp cannot load " + std::string(path));
}

// A vocabulary on its own, with the model that holds it.
class LoneVocab : public Vocab {
  public:
    explicit LoneVocab(ModelPtr model) : model_(std::move(model)), vocab_(model_.get()) {}
    void tokenize(std::string_view text, uint32_t flags, std::vector<int32_t> *out) const override {
        vocab_.tokenize(text, flags, out);
    }
    std::string_view            piece(int32_t id) const override { return vocab_.piece(id); }
    int32_t                     n_vocab() const override { return vocab_.n_vocab(); }
    size_t                      longest_piece() const override { return vocab_.longest_piece(); }
    const std::vector<int32_t> &end_tokens() const override { return vocab_.end_tokens(); }

  private:
    ModelPtr   model_;
    LlamaVocab vocab_;
};

// ---- threads

// As llama-bench and llama-server do, one thread pool per kind of work is made
// once instead of per computation. The functions live in the CPU plugin.
class Threads {
  public:
    Threads(llama_context *ctx, int32_t decode, int32_t batch) {
        auto *reg = ggml_backend_dev_backend_reg(ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU));
        auto *make =
            reinterpret_cast<decltype(ggml_threadpool_new) *>(ggml_backend_reg_get_proc_address(reg, "ggml_threadpool_new"));
        free_ =
            reinterpret_cast<decltype(ggml_threadpool_free) *>(ggml_backend_reg_get_proc_address(reg, "ggml_threadpool_free"));
        if (!make || !free_) return; // llama.cpp then makes its own
        auto p  = ggml_threadpool_params_default(decode);
        decode_ = make(&p);
        if (batch != decode) {
            p      = ggml_threadpool_params_default(batch);
            batch_ = make(&p);
        }
        if (decode_) llama_attach_threadpool(ctx, decode_, batch_);
    }
    ~Threads() {
        if (decode_) free_(decode_);
        if (batch_) free_(batch_);
    }
    Threads(const Threads &)            = delete;
    Threads &operator=(const Threads &) = delete;

  private:
    decltype(ggml_threadpool_free) *free_   = nullptr;
    ggml_threadpool_t               decode_ = nullptr, batch_ = nullptr;
};

// ---- logits that stay on the device

// Keep stands for a sampler of llama.cpp's in every sequence, which makes it leave
// the logits where they are instead of copying them to the host after each step.
class Keep {
  public:
    ggml_tensor *logits = nullptr; // of the graph built last, which is the one computed last

    explicit Keep(int32_t n_slots) {
        for (int32_t i = 0; i < n_slots; i++) {
            llama_sampler *chain = llama_sampler_chain_init(llama_sampler_chain_default_params());
            llama_sampler_chain_add(chain, llama_sampler_init(interface(), this));
            chains_.push_back({i, chain});
        }
    }
    ~Keep() {
        for (auto &c : chains_) llama_sampler_free(c.sampler);
    }
    Keep(const Keep &)            = delete;
    Keep &operator=(const Keep &) = delete;

    std::vector<llama_sampler_seq_config> &chains() { return chains_; }

  private:
    static llama_sampler_i *interface() {
        static llama_sampler_i i{};
        i.name          = [](const llama_sampler *) { return "keep"; };
        i.apply         = [](llama_sampler *, llama_token_data_array *) {};
        i.backend_init  = [](llama_sampler *, ggml_backend_buffer_type_t, uint32_t) { return true; };
        i.backend_apply = [](llama_sampler *s, ggml_context *, ggml_cgraph *, llama_sampler_data *data) {
            // llama.cpp offers a row of a padded copy, which is not computed if nothing uses it.
            ggml_tensor *padded = data->logits->view_src;
            if (padded && padded->src[0]) static_cast<Keep *>(s->ctx)->logits = padded->src[0];
            data->logits = nullptr;
        };
        return &i;
    }

    std::vector<llama_sampler_seq_config> chains_;
};

// ---- model and context

class LlamaModel : public Model {
  public:
    LlamaModel(const nb_params &p, ModelPtr model) : model_(std::move(model)), vocab_(model_.get()) {
        const int32_t trained = llama_model_n_ctx_train(model_.get());
        n_ctx_slot_           = p.n_ctx_slot > 0 ? p.n_ctx_slot : trained;
        if (n_ctx_slot_ > trained) {
            throw Error(NB_CONTEXT, "a context of " + std::to_string(n_ctx_slot_) +
                                        " tokens was asked for; the model was made for " + std::to_string(trained));
        }
        llama_context_params cp = llama_context_default_params();
        cp.n_ctx                = static_cast<uint32_t>(n_ctx_slot_) * static_cast<uint32_t>(p.n_slots);
        cp.n_seq_max            = p.n_slots;
        cp.n_batch              = p.n_batch;
        cp.n_ubatch             = std::min(p.n_ubatch, p.n_batch);
        cp.n_threads            = p.n_threads;
        cp.n_threads_batch      = p.n_threads_batch;
        cp.flash_attn_type      = static_cast<llama_flash_attn_type>(p.flash_attn);
        cp.type_k = cp.type_v = p.kv_type == NB_KV_F32 ? GGML_TYPE_F32 : GGML_TYPE_F16;
        cp.kv_unified         = false; // a KV stream per slot: attention reads its own tokens only
        cp.no_perf            = true;
        params_               = p;
        open_gpu();
        if (gpu_) {
            keep_                    = std::make_unique<Keep>(p.n_slots);
            cp.samplers              = keep_->chains().data();
            cp.n_samplers            = keep_->chains().size();
            cp.n_outputs_max_per_seq = 0; // no limit: calls of logits want many
        }
        if (p.watch != NB_WATCH_NOTHING) ops_ = std::make_unique<Ops>();
        if (p.watch == NB_WATCH_OPS) {
            cp.cb_eval           = Ops::watch;
            cp.cb_eval_user_data = ops_.get();
        }
        llama_log().take();
        ctx_.reset(llama_init_from_model(model_.get(), cp));
        if (!ctx_) {
            throw failure(NB_INTERNAL,
                          "no context of " + std::to_string(p.n_slots) + " slots of " + std::to_string(n_ctx_slot_) + " tokens");
        }
        if (ops_) ops_->scheduler(ctx_->get_sched());
        // Rows that nobody asked for are taken out of a slot's memory again, which is
        // not possible where a token changes what came before it.
        const llama_model *m     = model_.get();
        const bool         fills = gpu_ && !llama_model_is_recurrent(m) && !llama_model_is_hybrid(m) && llama_model_n_swa(m) == 0;
        passes_                  = std::make_unique<Passes>(p.n_slots, n_ctx_slot_, llama_n_ubatch(ctx_.get()), fills);
        threads_                 = std::make_unique<Threads>(ctx_.get(), p.n_threads, p.n_threads_batch);
        batch_                   = llama_batch_init(p.n_batch, 0, 1);
    }
    ~LlamaModel() override {
        llama_detach_threadpool(ctx_.get());
        llama_batch_free(batch_);
        ggml_backend_event_free(ready_);
        ggml_backend_event_free(taken_);
    }

    // warm computes batches of many widths that may come. A device loads a
    // kernel when it is first wanted, and which one that is depends on the width: on
    // an H100 the first prompt of GPT-2 took 159 ms, the second, 5 tokens longer, 20,
    // and each one after them 3.
    void warm() {
        if (!gpu_) return;
        const int32_t most = std::min({static_cast<int32_t>(llama_n_ubatch(ctx_.get())), n_ctx_slot_, params_.n_batch,
                                       ready_ ? INT32_MAX : 8}); // the host loads none; it only tries the way
        const Range   range("warm-up");
        const auto    step = [&](int32_t slots, int32_t tokens) {
            std::vector<Entry> batch;
            std::vector<Draw>  draws;
            for (int32_t slot = 0; slot < slots; slot++) {
                for (int32_t i = 0; i < tokens; i++) batch.push_back({0, i, slot, i == tokens - 1, false});
                draws.push_back({static_cast<int32_t>(batch.size()) - 1, slot % 2 ? 0.0f : 1.0f, 0.9f, 0.5, false, 0});
            }
            decode_and_choose(batch, tokens > 1, &draws);
            for (int32_t slot = 0; slot < slots; slot++) clear(slot);
        };
        for (int32_t n = 1, by; n <= most; n += by) {
            step(1, n);
            by = n < 16 ? 1 : n < 128 ? 8 : 32;
        }
        for (int32_t slots = 2; slots <= std::min(4, params_.n_slots); slots += 2) {
            for (int32_t n = 16; n * slots <= most; n *= 2) step(slots, n);
        }
        for (int32_t n = 2; n < std::min(params_.n_slots, most); n += std::max(1, n / 4)) step(n, 1);
        for (int32_t i = 0; i < 3; i++) step(std::min(params_.n_slots, most), 1); // as often as it takes for a CUDA graph
        passes_->reset();
    }

    const Vocab &vocab() const override { return vocab_; }
    int32_t      n_slots() const override { return params_.n_slots; }
    int32_t      n_ctx_slot() const override { return n_ctx_slot_; }

    void info(nb_info *out) const override {
        const llama_model *m = model_.get();
        out->n_params        = static_cast<int64_t>(llama_model_n_params(m));
        out->model_bytes     = static_cast<int64_t>(llama_model_size(m));
        out->n_ctx_train     = llama_model_n_ctx_train(m);
        out->n_ctx_slot      = n_ctx_slot_;
        out->n_slots         = params_.n_slots;
        out->n_vocab         = vocab_.n_vocab();
        out->n_batch         = static_cast<int32_t>(llama_n_batch(ctx_.get()));
        out->n_ubatch        = static_cast<int32_t>(llama_n_ubatch(ctx_.get()));
        out->n_threads       = llama_n_threads(ctx_.get());
        out->n_threads_batch = llama_n_threads_batch(ctx_.get());
        out->flash_attn      = params_.flash_attn;
        out->add_bos         = llama_vocab_get_add_bos(llama_model_get_vocab(m));
        llama_model_desc(m, out->desc, sizeof out->desc);
        put(out->ftype, llama_ftype_name(llama_model_ftype(m)));
        char arch[32] = "";
        llama_model_meta_val_str(m, "general.architecture", arch, sizeof arch);
        put(out->arch, arch);
        std::string devices;
        for (int32_t i = 0; i < llama_model_n_devices(m); i++) {
            ggml_backend_dev_t dev = llama_model_get_device(m, i);
            devices +=
                std::string(devices.empty() ? "" : ", ") + ggml_backend_dev_name(dev) + ": " + ggml_backend_dev_description(dev);
        }
        if (devices.empty()) {
            devices = std::string("CPU: ") + ggml_backend_dev_description(ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU));
        }
        put(out->device, devices);
        put(out->sampling, gpu_ ? "on the device" : "on the host: " + why_host_);
        out->n_passes = passes_->passes();
        out->n_filled = passes_->filled();
    }

    void memory(std::vector<nb_memory> *rows) const override {
        std::map<std::string, nb_memory> by_device;
        for (const auto &[type, bytes] : llama_get_memory_breakdown(ctx_.get())) {
            ggml_backend_dev_t dev  = ggml_backend_buft_get_device(type);
            const bool         host = !dev || ggml_backend_buft_is_host(type);
            nb_memory         &row  = by_device[host ? "CPU" : ggml_backend_dev_name(dev)];
            row.weights += static_cast<int64_t>(bytes.model);
            row.kv += static_cast<int64_t>(bytes.context);
            row.compute += static_cast<int64_t>(bytes.compute);
        }
        if (gpu_ && gpu_->bytes() > 0)
            by_device[ggml_backend_dev_name(llama_model_get_device(model_.get(), 0))].compute += gpu_->bytes();
        for (auto &[name, row] : by_device) {
            put(row.device, name);
            rows->push_back(row);
        }
    }

    bool decode(const std::vector<Entry> &batch, bool prompt, std::vector<Draw> *draws) override {
        if (!ops_) return computed(batch, prompt, draws);
        ops_->begin(prompt);
        const int64_t t0     = now_ns();
        const bool    chosen = computed(batch, prompt, draws);
        ops_->end(static_cast<int64_t>(batch.size()), now_ns() - t0);
        return chosen;
    }
    // computed is decode, unwatched.
    bool computed(const std::vector<Entry> &batch, bool prompt, std::vector<Draw> *draws) {
        if (batch.size() > static_cast<size_t>(params_.n_batch)) throw Error(NB_INTERNAL, "the batch is larger than n_batch");
        if (gpu_) {
            decode_and_choose(batch, prompt, draws);
            return true;
        }
        compute(batch);
        llama_synchronize(ctx_.get());
        return false;
    }

    float *logits(int32_t i) override {
        if (gpu_) return &fetched_[fetched_at_.at(i)];
        float *row = llama_get_logits_ith(ctx_.get(), i);
        if (!row) throw Error(NB_INTERNAL, "llama.cpp has no logits for entry " + std::to_string(i) + " of the batch");
        return row;
    }

    void stamped(int64_t t_ns) override {
        if (stamping_ && marked_) late_.push_back(gpu_->since(t_ns));
        marked_ = false;
    }
    void stamps(bool begin, nb_stamps *out) override {
        if (!gpu_) throw Error(NB_NOT_FOUND, "tokens are chosen " + std::string("on the host: ") + why_host_);
        if (begin) {
            late_.clear();
            gpu_->align();
            stamping_ = true;
            return;
        }
        stamping_ = false;
        if (late_.empty()) throw Error(NB_INVALID, "no step was made while stamps were calibrated");
        std::sort(late_.begin(), late_.end());
        out->p50         = late_[late_.size() / 2];
        out->p99         = late_[late_.size() * 99 / 100];
        out->max         = late_.back();
        out->uncertainty = gpu_->uncertainty();
        out->copy_rate   = gpu_->copy_rate();
        out->steps       = static_cast<int32_t>(late_.size());
    }
    void profile(bool begin) override {
        bool any = false;
        for (int32_t i = 0; i < llama_model_n_devices(model_.get()) && params_.n_gpu_layers != 0; i++) {
            const std::string name = ggml_backend_dev_name(llama_model_get_device(model_.get(), i));
            if (name.rfind("CUDA", 0) != 0) continue;
            any = true;
            gpu_profile(std::atoi(name.c_str() + 4), begin);
        }
        if (!any) Model::profile(begin);
    }
    void ops(bool begin, nb_ops *out, std::vector<nb_op> *rows) override {
        if (!ops_) throw Error(NB_INVALID, "the engine was not opened for watching");
        if (begin) {
            ops_->forget();
            return;
        }
        ops_->tell(out, rows);
        if (params_.watch != NB_WATCH_OPS) return;
        std::string size;
        ops_->best(&out->empty_ns, &out->flop_rate, &size);
        put(out->product, "a product of " + size + ", F16 with F32");
        if (ops_->on_host()) {
            out->memory_rate = read_rate(params_.n_threads);
            put(out->memory, std::to_string(params_.n_threads) + " threads reading 512 MiB");
        } else if (gpu_) {
            out->memory_rate = gpu_->copy_rate();
            put(out->memory, "a copy within the device's memory");
        }
    }
    void clear(int32_t slot) override {
        llama_memory_seq_rm(llama_get_memory(ctx_.get()), slot, -1, -1);
        passes_->clear(slot);
    }

  private:
    // open_gpu makes tokens be chosen on the device that computes the logits, or
    // says why not. It must be known before the context is made.
    void open_gpu() {
        if (params_.sampling == NB_SAMPLE_HOST) {
            why_host_ = "as asked";
            return;
        }
        const int32_t      n    = llama_model_n_devices(model_.get());
        ggml_backend_dev_t dev  = n > 0 ? llama_model_get_device(model_.get(), 0) : nullptr;
        const std::string  name = dev ? ggml_backend_dev_name(dev) : "";
        if (!dev || params_.n_gpu_layers == 0) {
            why_host_ = "that is where the model runs";
            // Asked for all the same: the same path with the kernel run on the host.
            if (params_.sampling == NB_SAMPLE_DEVICE) gpu_ = Gpu::on_host(vocab_.n_vocab(), vocab_.end_tokens(), params_.n_slots);
        } else if (n > 1) {
            why_host_ = "the model runs on " + std::to_string(n) + " devices";
        } else if (params_.n_gpu_layers > 0 && params_.n_gpu_layers <= llama_model_n_layer(model_.get())) {
            why_host_ = "the last layers run there";
        } else if (name.rfind("CUDA", 0) != 0) {
            why_host_ = "there are no kernels of ours for " + name;
        } else {
            gpu_ = Gpu::open(plugin_dir(params_.plugin_dir), std::atoi(name.c_str() + 4), vocab_.n_vocab(), vocab_.end_tokens(),
                             params_.n_slots, &why_host_);
            if (gpu_) {
                ready_ = ggml_backend_event_new(dev);
                taken_ = ggml_backend_event_new(dev);
            }
        }
        if (!gpu_ && params_.sampling == NB_SAMPLE_DEVICE) {
            throw Error(NB_INVALID, "tokens cannot be chosen on the device: " + why_host_);
        }
    }

    // compute starts the computation of a batch.
    void compute(const std::vector<Entry> &batch) {
        batch_.n_tokens = static_cast<int32_t>(batch.size());
        for (int32_t i = 0; i < batch_.n_tokens; i++) {
            const Entry &e      = batch[static_cast<size_t>(i)];
            batch_.token[i]     = e.token;
            batch_.pos[i]       = e.pos;
            batch_.n_seq_id[i]  = 1;
            batch_.seq_id[i][0] = e.slot;
            batch_.logits[i]    = e.logits;
        }
        const int32_t rc = llama_decode(ctx_.get(), batch_);
        if (rc != 0) {
            throw failure(NB_INTERNAL,
                          "llama_decode of " + std::to_string(batch_.n_tokens) + " tokens returned " + std::to_string(rc));
        }
    }

    // The backend whose stream computes the logits.
    ggml_backend_t stream() { return ggml_backend_sched_get_tensor_backend(ctx_->get_sched(), keep_->logits); }

    // compute_pass computes what was laid out, and takes what nobody asked for out of
    // the memory again, also after a failure.
    void compute_pass() {
        struct After {
            LlamaModel *m;
            ~After() {
                m->passes_->computed(
                    [this](int32_t slot, int32_t pos) { llama_memory_seq_rm(llama_get_memory(m->ctx_.get()), slot, pos, -1); });
            }
        } after{this};
        compute(passes_->rows());
    }

    // decode_and_choose computes a batch pass by pass. Each leaves its logits in the
    // same place, so the next one waits on the device until they have been used.
    void decode_and_choose(const std::vector<Entry> &batch, bool prompt, std::vector<Draw> *draws) {
        fetched_.clear();
        fetched_at_.clear();
        size_t chosen = 0;
        bool   waits  = false; // the last pass has no choice to wait for
        for (size_t from = 0; from < batch.size();) {
            from = passes_->lay_out(batch, from, prompt);
            compute_pass();
            const auto &pass  = passes_->rows();
            const auto &asked = passes_->asked();
            fetch();
            rows_.clear();
            const size_t first = chosen;
            int          row   = 0; // of the pass's logits
            for (size_t i = 0; i < pass.size(); i++) {
                if (asked[i] >= 0 && chosen < draws->size() && (*draws)[chosen].entry == asked[i]) {
                    const Draw &d = (*draws)[chosen++];
                    rows_.push_back({d.u, d.temperature, d.top_p, row, d.no_end ? 1u * NB_DRAW_NO_END : 0u});
                }
                row += pass[i].logits;
            }
            waits = rows_.empty();
            if (waits) continue;
            if (ready_) {
                ggml_backend_event_record(ready_, stream());
            } else { // on the host nothing is under way after this
                llama_synchronize(ctx_.get());
            }
            const int64_t t0 = now_ns();
            const Range   range("sampling");
            gpu_->choose(ready_ ? ready_->context : nullptr, static_cast<const float *>(keep_->logits->data), rows_,
                         static_cast<int>(first), taken_ ? taken_->context : nullptr);
            if (taken_ && from < batch.size()) ggml_backend_event_wait(stream(), taken_);
            if (params_.watch == NB_WATCH_OPS) { // the logits were there: each operation was awaited
                gpu_->finish();
                ops_->sampled(now_ns() - t0);
            }
        }
        if (waits) llama_synchronize(ctx_.get());
        if (draws->empty()) return;
        marked_ = stamping_;
        if (stamping_) gpu_->mark();
        const int32_t *ids = gpu_->finish();
        for (size_t i = 0; i < draws->size(); i++) (*draws)[i].id = ids[i];
    }

    // fetch copies the logits of the pass just computed, if any are wanted on the host.
    void fetch() {
        const auto &pass = passes_->rows();
        if (std::none_of(pass.begin(), pass.end(), [](const Entry &e) { return e.fetch; })) return;
        const auto n  = static_cast<size_t>(vocab_.n_vocab());
        size_t     at = fetched_.size(), rows = 0;
        for (size_t i = 0; i < pass.size(); i++) {
            if (pass[i].logits) fetched_at_[passes_->asked()[i]] = at + n * rows++;
        }
        fetched_.resize(at + n * rows);
        llama_synchronize(ctx_.get());
        ggml_backend_tensor_get(keep_->logits, &fetched_[at], 0, n * rows * sizeof(float));
    }

    // Order matters: the context goes before its threads, its model and its samplers.
    ModelPtr                  model_;
    LlamaVocab                vocab_;
    std::unique_ptr<Threads>  threads_;
    std::unique_ptr<Keep>     keep_; // with gpu_
    std::unique_ptr<Ops>      ops_;  // NULL: nothing is watched
    std::unique_ptr<Gpu>      gpu_;  // NULL: tokens are chosen on the host, and why_host_ says why
    ContextPtr                ctx_;
    std::string               why_host_;
    nb_params                 params_{};
    int32_t                   n_ctx_slot_ = 0;
    llama_batch               batch_{};
    ggml_backend_event_t      ready_ = nullptr, taken_ = nullptr;
    std::unique_ptr<Passes>   passes_;
    std::vector<NbDraw>       rows_;
    std::vector<float>        fetched_;    // rows of logits of the last batch
    std::map<int32_t, size_t> fetched_at_; // where in it, by entry
    bool                      stamping_ = false, marked_ = false;
    std::vector<int64_t>      late_; // ns, of the steps since stamping began
};

} // namespace

// Asking a device of CUDA for its free memory makes its context.
void begin(const char *plugin_dir) {
    start(plugin_dir, true);
    for (size_t i = 0; i < ggml_backend_dev_count(); i++) {
        ggml_backend_dev_t dev  = ggml_backend_dev_get(i);
        size_t             free = 0, total = 0;
        if (ggml_backend_dev_type(dev) == GGML_BACKEND_DEVICE_TYPE_GPU) ggml_backend_dev_memory(dev, &free, &total);
    }
}

std::unique_ptr<Model> load_model(const nb_params &p, nb_progress *progress) {
    start(p.plugin_dir, true);
    if (p.n_slots > static_cast<int32_t>(llama_max_parallel_sequences())) {
        throw Error(NB_INVALID, "the engine serves at most " + std::to_string(llama_max_parallel_sequences()) + " slots");
    }
    if (p.prefill_chunk > p.n_batch || p.n_slots > p.n_batch) {
        throw Error(NB_INVALID, "the batch of " + std::to_string(p.n_batch) + " tokens must hold the prefill chunk (" +
                                    std::to_string(p.prefill_chunk) + ") and one token of each slot (" +
                                    std::to_string(p.n_slots) + ")");
    }
    llama_model_params mp = llama_model_default_params();
    mp.n_gpu_layers       = p.n_gpu_layers;
    if (progress) {
        mp.progress_callback_user_data = progress;
        mp.progress_callback           = [](float done, void *to) {
            auto *pr     = static_cast<nb_progress *>(to);
            pr->permille = static_cast<int32_t>(done * 1000);
            return pr->cancel == 0;
        };
    }
    auto model = std::make_unique<LlamaModel>(p, load_weights(p.model_path, mp, progress));
    model->warm();
    return model;
}

std::unique_ptr<Vocab> load_vocab(const char *gguf_path) {
    start(nullptr, false);
    ggml_backend_dev_t none[] = {nullptr}; // those of a model in this process are not asked
    llama_model_params mp     = llama_model_default_params();
    mp.devices                = none;
    mp.vocab_only             = true;
    return std::make_unique<LoneVocab>(load_weights(gguf_path, mp, nullptr));
}

const char *engine_name() { return NB_ENGINE; }

} // namespace nb
