#include "ops.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>
#include <thread>

#include "loop.h"

namespace nb {
namespace {

int64_t bytes_of(const ggml_tensor *t) {
    return static_cast<int64_t>(ggml_row_size(t->type, t->ne[0])) * t->ne[1] * t->ne[2] * t->ne[3];
}

bool of_the_model(const ggml_tensor *t) {
    const ggml_tensor *owner = t->view_src ? t->view_src : t;
    return owner->buffer && ggml_backend_buffer_get_usage(owner->buffer) == GGML_BACKEND_BUFFER_USAGE_WEIGHTS;
}

// Those that only say how memory is to be looked at.
bool moves_nothing(const ggml_tensor *t) {
    switch (t->op) {
    case GGML_OP_NONE:
    case GGML_OP_VIEW:
    case GGML_OP_RESHAPE:
    case GGML_OP_PERMUTE:
    case GGML_OP_TRANSPOSE:
        return true;
    default:
        return ggml_is_empty(t);
    }
}

// weights_of is the tensor of the model's file that the operation reads; NULL: none.
const ggml_tensor *weights_of(const ggml_tensor *t) {
    for (const ggml_tensor *s : t->src) {
        if (s && of_the_model(s)) return s->view_src ? s->view_src : s;
    }
    return nullptr;
}

template <size_t N> void put(char (&to)[N], const char *from) { std::snprintf(to, N, "%s", from); }

struct FreeContext {
    void operator()(ggml_context *c) const { ggml_free(c); }
};
struct FreeBuffer {
    void operator()(ggml_backend_buffer *b) const { ggml_backend_buffer_free(b); }
};

// Bench computes one operation over and over on a backend.
class Bench {
  public:
    template <class Make> Bench(ggml_backend_t backend, Make make) : backend_(backend) {
        ctx_.reset(ggml_init({16 * ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, true}));
        if (!ctx_) return;
        ggml_tensor *out = make(ctx_.get());
        graph_           = ggml_new_graph(ctx_.get());
        ggml_build_forward_expand(graph_, out);
        memory_.reset(ggml_backend_alloc_ctx_tensors(ctx_.get(), backend));
        if (!memory_) return;
        for (ggml_tensor *t = ggml_get_first_tensor(ctx_.get()); t; t = ggml_get_next_tensor(ctx_.get(), t)) {
            if (t->op == GGML_OP_NONE) fill(t);
        }
    }
    // times are those of n computations, each awaited, in ns, sorted; none: no memory.
    std::vector<int64_t> times(int n) const {
        std::vector<int64_t> all;
        if (!memory_) return all;
        for (int i = -2; i < n; i++) {
            const int64_t t0 = now_ns();
            if (ggml_backend_graph_compute_async(backend_, graph_) != GGML_STATUS_SUCCESS) return {};
            ggml_backend_synchronize(backend_);
            if (i >= 0) all.push_back(now_ns() - t0);
        }
        std::sort(all.begin(), all.end());
        return all;
    }

  private:
    // Numbers that differ: a card that multiplies zeros draws less power and runs faster.
    static void fill(ggml_tensor *t) {
        const size_t             n = static_cast<size_t>(t->ne[0]);
        std::vector<float>       row(n);
        std::vector<ggml_fp16_t> half(n);
        uint32_t                 seed = 1;
        for (int64_t i = 0; i < t->ne[1]; i++) {
            for (float &x : row) {
                seed = seed * 1664525 + 1013904223;
                x    = static_cast<float>(seed >> 8) / static_cast<float>(1 << 24) - 0.5f;
            }
            const size_t at = static_cast<size_t>(i) * t->nb[1];
            if (t->type == GGML_TYPE_F32) {
                ggml_backend_tensor_set(t, row.data(), at, n * sizeof(float));
            } else {
                ggml_fp32_to_fp16_row(row.data(), half.data(), t->ne[0]);
                ggml_backend_tensor_set(t, half.data(), at, n * sizeof(ggml_fp16_t));
            }
        }
    }

    ggml_backend_t                                   backend_;
    std::unique_ptr<ggml_context, FreeContext>       ctx_;
    std::unique_ptr<ggml_backend_buffer, FreeBuffer> memory_;
    ggml_cgraph                                     *graph_ = nullptr;
};

} // namespace

Cost cost_of(const ggml_tensor *t) {
    Cost               c{0, bytes_of(t), 0, 0};
    const ggml_tensor *a = t->src[0], *b = t->src[1], *v = t->src[2];
    const auto         read = [&](const ggml_tensor *s, int64_t bytes) {
        c.read += bytes;
        if (of_the_model(s)) c.weights += bytes;
    };
    if (t->op == GGML_OP_GET_ROWS) { // the rows that b names
        read(a, static_cast<int64_t>(ggml_row_size(a->type, a->ne[0])) * ggml_nelements(b));
        read(b, bytes_of(b));
        return c;
    }
    if (t->op == GGML_OP_SET_ROWS) { // a's rows, in the type of what they are written into
        c.written = static_cast<int64_t>(ggml_row_size(t->type, a->ne[0])) * ggml_nrows(a);
        read(a, bytes_of(a));
        read(b, bytes_of(b));
        return c;
    }
    for (int i = 0; i < GGML_MAX_SRC; i++) {
        const ggml_tensor *s = t->src[i];
        if (!s || std::find(t->src, t->src + i, s) != t->src + i) continue;
        if ((t->op == GGML_OP_CPY || t->op == GGML_OP_SET) && i == 1) continue; // is written
        int64_t bytes = bytes_of(s);
        if (t->op == GGML_OP_MUL_MAT_ID && i == 0) { // of the experts those chosen, at most all
            bytes = bytes / s->ne[2] * std::min(s->ne[2], ggml_nelements(v));
        }
        read(s, bytes);
    }
    if (t->op == GGML_OP_MUL_MAT || t->op == GGML_OP_MUL_MAT_ID) {
        c.flops = 2 * a->ne[0] * ggml_nelements(t);
    } else if (t->op == GGML_OP_FLASH_ATTN_EXT) { // every query with every key, masked ones too, and the sum of values
        c.flops = 2 * a->ne[1] * a->ne[2] * a->ne[3] * b->ne[1] * (a->ne[0] + v->ne[0]);
    }
    return c;
}

bool Ops::watch(ggml_tensor *t, bool ask, void *self) {
    auto *o = static_cast<Ops *>(self);
    if (ask) {
        if (moves_nothing(t)) return false;
        o->began_ = now_ns();
        return true;
    }
    const int64_t        took    = now_ns() - o->began_;
    const ggml_tensor   *weights = weights_of(t);
    const ggml_backend_t backend = ggml_backend_sched_get_tensor_backend(o->sched_, t);
    if (t->op == GGML_OP_MUL_MAT && backend) o->busy_ = backend;
    std::string key = std::string(o->now_.prompt ? "p" : "d") + ggml_op_desc(t) + '\n' + t->name + '\n';
    if (weights) key += weights->name;
    const auto [at, added] = o->order_.try_emplace(key, o->rows_.size());
    if (added) {
        nb_op row{};
        put(row.op, ggml_op_desc(t));
        put(row.name, t->name);
        if (weights) put(row.weight, weights->name);
        if (backend) put(row.device, ggml_backend_name(backend));
        row.prompt = o->now_.prompt;
        o->rows_.push_back(row);
    }
    o->now_.parts.push_back({at->second, took, cost_of(t)});
    return true;
}

void Ops::forget() {
    steps_.clear();
    order_.clear();
    rows_.clear();
}

void Ops::begin(bool prompt) {
    now_        = Step{};
    now_.prompt = prompt;
}

void Ops::end(int64_t tokens, int64_t ns) {
    now_.tokens = tokens;
    now_.ns     = ns;
    steps_.push_back(std::move(now_));
    now_ = Step{};
}

void Ops::tell(nb_ops *out, std::vector<nb_op> *rows) const {
    *rows = rows_;
    for (const bool prompt : {false, true}) {
        std::vector<const Step *> kind;
        for (const Step &s : steps_) {
            if (s.prompt == prompt) kind.push_back(&s);
        }
        out->seen[prompt] = static_cast<int32_t>(kind.size());
        // Faster for each token: the last chunk of a prompt may be a short one.
        std::stable_sort(kind.begin(), kind.end(), [](const Step *a, const Step *b) {
            return static_cast<double>(a->ns) / static_cast<double>(a->tokens) <
                   static_cast<double>(b->ns) / static_cast<double>(b->tokens);
        });
        kind.resize((kind.size() + 1) / 2);
        out->steps[prompt] = static_cast<int32_t>(kind.size());
        for (const Step *s : kind) {
            out->tokens[prompt] += s->tokens;
            out->step_ns[prompt] += s->ns;
            out->sample_ns[prompt] += s->sample_ns;
            for (const Part &p : s->parts) {
                nb_op &row = (*rows)[p.row];
                row.count++;
                row.ns += p.ns;
                row.read += p.cost.read;
                row.written += p.cost.written;
                row.flops += p.cost.flops;
                row.weights += p.cost.weights;
            }
        }
    }
    rows->erase(std::remove_if(rows->begin(), rows->end(), [](const nb_op &r) { return r.count == 0; }), rows->end());
}

bool Ops::on_host() const {
    return !busy_ || ggml_backend_dev_type(ggml_backend_get_device(busy_)) == GGML_BACKEND_DEVICE_TYPE_CPU;
}

void Ops::best(int64_t *empty_ns, int64_t *flop_rate, std::string *size) const {
    *empty_ns = *flop_rate = 0;
    if (!busy_) return;
    const Bench nothing(busy_, [](ggml_context *c) {
        ggml_tensor *one = ggml_new_tensor_1d(c, GGML_TYPE_F32, 1);
        return ggml_add(c, one, one);
    });
    if (const auto times = nothing.times(400); !times.empty()) *empty_ns = times[0];
    const int64_t m = on_host() ? 2048 : 8192, n = on_host() ? 512 : 8192;
    const Bench   product(busy_, [&](ggml_context *c) {
        return ggml_mul_mat(c, ggml_new_tensor_2d(c, GGML_TYPE_F16, m, m), ggml_new_tensor_2d(c, GGML_TYPE_F32, m, n));
    });
    if (const auto times = product.times(10); !times.empty()) {
        *flop_rate = static_cast<int64_t>(2.0 * static_cast<double>(m) * static_cast<double>(m) * static_cast<double>(n) /
                                          (static_cast<double>(times[0]) * 1e-9));
        *size      = std::to_string(m) + "x" + std::to_string(m) + "x" + std::to_string(n);
    }
}

int64_t read_rate(int threads) {
    constexpr size_t                            kBytes = size_t{512} << 20;
    const size_t                                n      = kBytes / sizeof(uint64_t) / static_cast<size_t>(threads);
    std::unique_ptr<uint64_t, void (*)(void *)> memory(
        static_cast<uint64_t *>(std::malloc(n * sizeof(uint64_t) * static_cast<size_t>(threads))), std::free);
    if (!memory) return 0;
    std::vector<uint64_t> sums(static_cast<size_t>(threads) * 8); // a cache line each
    const auto            each = [&](auto work) {
        std::vector<std::thread> all;
        for (int i = 0; i < threads; i++) {
            all.emplace_back([&, i] { work(memory.get() + n * static_cast<size_t>(i), &sums[static_cast<size_t>(i) * 8]); });
        }
        for (std::thread &t : all) t.join();
    };
    each([n](uint64_t *part, uint64_t *) { std::fill(part, part + n, uint64_t{1}); }); // pages are there, near their reader
    int64_t best = INT64_MAX;
    for (int round = 0; round < 10; round++) {
        const int64_t t0 = now_ns();
        each([n](const uint64_t *part, uint64_t *sum) {
            uint64_t s[8] = {};
            for (size_t i = 0; i + 8 <= n; i += 8) {
                for (size_t k = 0; k < 8; k++) s[k] += part[i + k];
            }
            for (uint64_t x : s) *sum += x;
        });
        best = std::min(best, now_ns() - t0);
    }
    uint64_t total = 0; // looked at, so that the sums are made
    for (uint64_t s : sums) total += s;
    if (total == 0) return 0;
    return static_cast<int64_t>(static_cast<double>(n * sizeof(uint64_t)) * threads / (static_cast<double>(best) * 1e-9));
}

} // namespace nb
