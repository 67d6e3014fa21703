// api.cpp: the table of functions of nb.h over Loop. Everything that can throw
// is caught here and becomes a status and a line of text.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <new>

#include "loop.h"

#ifndef NB_SOURCE_HASH
#define NB_SOURCE_HASH "unknown"
#endif
#ifndef NB_BUILD
#define NB_BUILD "unknown"
#endif

struct nb_engine {
    nb::Loop loop;
    int64_t  load_ns;
};
struct nb_vocab {
    std::unique_ptr<nb::Vocab> vocab;
};

namespace {

template <class F> nb_status guard(char *err, size_t errlen, F f) {
    const auto say = [&](const char *what) {
        if (err && errlen > 0) std::snprintf(err, errlen, "%s", what);
    };
    say("");
    try {
        f();
        return NB_OK;
    } catch (const nb::Error &e) {
        say(e.what());
        return e.status;
    } catch (const std::bad_alloc &) {
        say("out of memory");
        return NB_MEMORY;
    } catch (const std::exception &e) {
        say(e.what());
        return NB_INTERNAL;
    } catch (...) {
        say("unknown exception");
        return NB_INTERNAL;
    }
}

void check_handle(const void *h) {
    if (!h) throw nb::Error(NB_INVALID, "the handle is NULL");
}

nb_status nb_begin(const char *plugin_dir, char *err, size_t errlen) {
    return guard(err, errlen, [&] { nb::begin(plugin_dir); });
}

nb_status nb_open(const nb_params *p, nb_progress *progress, nb_engine **out, char *err, size_t errlen) {
    return guard(err, errlen, [&] {
        if (!p || !out || !p->model_path)
            throw nb::Error(NB_INVALID, "open needs parameters, a model path and a place for the handle");
        if (p->n_slots < 1) throw nb::Error(NB_INVALID, "the engine needs at least one slot");
        if (p->n_threads < 1 || p->n_threads_batch < 1) throw nb::Error(NB_INVALID, "the engine needs at least one thread");
        if (p->n_batch < 1 || p->n_ubatch < 1) throw nb::Error(NB_INVALID, "the batch needs at least one token");
        const int64_t t0    = nb::now_ns();
        auto          model = nb::load_model(*p, progress);
        *out                = new nb_engine{nb::Loop(std::move(model), p->prefill_chunk), nb::now_ns() - t0};
    });
}

void nb_close(nb_engine *e) { delete e; }

nb_status nb_info_of(nb_engine *e, nb_info *out, char *err, size_t errlen) {
    return guard(err, errlen, [&] {
        check_handle(e);
        *out = nb_info{};
        e->loop.model().info(out);
        out->load_ns = e->load_ns;
    });
}

nb_status nb_memory_of(nb_engine *e, nb_memory *rows, int32_t cap, int32_t *n, char *err, size_t errlen) {
    return guard(err, errlen, [&] {
        check_handle(e);
        std::vector<nb_memory> all;
        e->loop.model().memory(&all);
        *n = static_cast<int32_t>(all.size());
        for (int32_t i = 0; i < *n && i < cap; i++) rows[i] = all[i];
    });
}

void tokenize(const nb::Vocab &v, const char *text, int64_t len, uint32_t flags, int32_t *ids, int32_t cap, int32_t *n) {
    if (len < 0 || (!text && len > 0)) throw nb::Error(NB_INVALID, "there is no text to tokenize");
    std::vector<int32_t> all;
    v.tokenize({text, static_cast<size_t>(len)}, flags, &all);
    *n = static_cast<int32_t>(all.size());
    if (ids && cap > 0) std::memcpy(ids, all.data(), sizeof(int32_t) * std::min<size_t>(all.size(), cap));
}

nb_status nb_tokenize(nb_engine *e, const char *text, int64_t len, uint32_t flags, int32_t *ids, int32_t cap, int32_t *n,
                      char *err, size_t errlen) {
    return guard(err, errlen, [&] {
        check_handle(e);
        tokenize(e->loop.model().vocab(), text, len, flags, ids, cap, n);
    });
}

nb_status nb_submit(nb_engine *e, int32_t slot, const nb_request *r, char *err, size_t errlen) {
    return guard(err, errlen, [&] {
        check_handle(e);
        check_handle(r);
        e->loop.submit(slot, *r);
    });
}

nb_status nb_wait(nb_engine *e, int32_t slot, int32_t seen, int64_t timeout_ns, nb_result *out, char *err, size_t errlen) {
    return guard(err, errlen, [&] {
        check_handle(e);
        check_handle(out);
        e->loop.wait(slot, seen, timeout_ns, out);
    });
}

void nb_cancel(nb_engine *e, int32_t slot) {
    guard(nullptr, 0, [&] {
        check_handle(e);
        e->loop.cancel(slot);
    });
}

nb_status nb_logits(nb_engine *e, int32_t slot, const int32_t *tokens, int32_t n, int32_t last, float *out, int64_t cap,
                    char *err, size_t errlen) {
    return guard(err, errlen, [&] {
        check_handle(e);
        e->loop.logits(slot, tokens, n, last, out, cap);
    });
}

nb_status nb_stamps_of(nb_engine *e, int32_t begin, nb_stamps *out, char *err, size_t errlen) {
    return guard(err, errlen, [&] {
        check_handle(e);
        check_handle(out);
        *out = nb_stamps{};
        e->loop.model().stamps(begin != 0, out);
    });
}

nb_status nb_profile(nb_engine *e, int32_t begin, char *err, size_t errlen) {
    return guard(err, errlen, [&] {
        check_handle(e);
        e->loop.model().profile(begin != 0);
    });
}

nb_status nb_ops_of(nb_engine *e, int32_t begin, nb_ops *out, nb_op *rows, int32_t cap, int32_t *n, char *err, size_t errlen) {
    return guard(err, errlen, [&] {
        check_handle(e);
        if (!out || !n || (!rows && cap > 0)) throw nb::Error(NB_INVALID, "there is no place for the operations");
        std::vector<nb_op> all;
        *out = nb_ops{};
        e->loop.model().ops(begin != 0, out, &all);
        *n = static_cast<int32_t>(all.size());
        std::copy(all.begin(), all.begin() + std::min(*n, cap), rows);
    });
}

nb_status nb_vocab_open(const char *path, nb_vocab **out, char *err, size_t errlen) {
    return guard(err, errlen, [&] {
        check_handle(path);
        *out = new nb_vocab{nb::load_vocab(path)};
    });
}

void nb_vocab_close(nb_vocab *v) { delete v; }

nb_status nb_vocab_tokenize(nb_vocab *v, const char *text, int64_t len, uint32_t flags, int32_t *ids, int32_t cap, int32_t *n,
                            char *err, size_t errlen) {
    return guard(err, errlen, [&] {
        check_handle(v);
        tokenize(*v->vocab, text, len, flags, ids, cap, n);
    });
}

nb_status nb_vocab_piece(nb_vocab *v, int32_t id, char *buf, int32_t cap, int32_t *n, char *err, size_t errlen) {
    return guard(err, errlen, [&] {
        check_handle(v);
        if (id < 0 || id >= v->vocab->n_vocab()) {
            throw nb::Error(NB_INVALID, "token " + std::to_string(id) + " is not in the vocabulary of " +
                                            std::to_string(v->vocab->n_vocab()));
        }
        const std::string_view piece = v->vocab->piece(id);
        *n                           = static_cast<int32_t>(piece.size());
        if (buf && cap > 0) std::memcpy(buf, piece.data(), std::min<size_t>(piece.size(), cap));
    });
}

// Laid down once more in native/library.go: both sides see a change of a struct.
static_assert(sizeof(nb_params) == 64 && sizeof(nb_info) == 752 && sizeof(nb_memory) == 88 && sizeof(nb_request) == 48 &&
                  sizeof(nb_token) == 16 && sizeof(nb_result) == 104 && sizeof(nb_progress) == 8 && sizeof(nb_stamps) == 48 &&
                  sizeof(nb_op) == 216 && sizeof(nb_ops) == 216,
              "nb.h changed: raise NB_ABI, then correct these sizes here and in native/library.go");

} // namespace

const nb_api *nb_get_api(uint32_t abi) {
    static const nb_api api = {
        NB_ABI,
        sizeof(nb_api),
        NB_SOURCE_HASH,
        nb::engine_name(),
        NB_BUILD,
        {sizeof(nb_params), sizeof(nb_info), sizeof(nb_memory), sizeof(nb_request), sizeof(nb_token), sizeof(nb_result),
         sizeof(nb_progress), sizeof(nb_stamps), sizeof(nb_op), sizeof(nb_ops)},
        nb_begin,
        nb_open,
        nb_close,
        nb_info_of,
        nb_memory_of,
        nb_tokenize,
        nb_submit,
        nb_wait,
        nb_cancel,
        nb_logits,
        nb_stamps_of,
        nb_profile,
        nb_ops_of,
        nb_vocab_open,
        nb_vocab_close,
        nb_vocab_tokenize,
        nb_vocab_piece,
    };
    return abi == NB_ABI ? &api : nullptr;
}
