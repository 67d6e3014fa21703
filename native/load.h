// load.h: opens the engine library at run time and calls through its table.
#ifndef NATIVE_LOAD_H
#define NATIVE_LOAD_H

#include "../csrc/nb.h"

// nb_load opens the library and returns its table; NULL with a line in err.
// The library stays loaded for the life of the process.
const nb_api *nb_load(const char *path, char *err, size_t errlen);

// cgo cannot call function pointers.
static inline nb_status api_begin(const nb_api *a, const char *dir, char *err, size_t n) { return a->begin(dir, err, n); }
static inline nb_status api_open(const nb_api *a, const nb_params *p, nb_progress *pr, nb_engine **out, char *err, size_t n) {
    return a->open(p, pr, out, err, n);
}
static inline void      api_close(const nb_api *a, nb_engine *e) { a->close(e); }
static inline nb_status api_info(const nb_api *a, nb_engine *e, nb_info *out, char *err, size_t n) {
    return a->info(e, out, err, n);
}
static inline nb_status api_memory(const nb_api *a, nb_engine *e, nb_memory *rows, int32_t cap, int32_t *count, char *err,
                                   size_t n) {
    return a->memory(e, rows, cap, count, err, n);
}
static inline nb_status api_tokenize(const nb_api *a, nb_engine *e, const char *text, int64_t len, uint32_t flags, int32_t *ids,
                                     int32_t cap, int32_t *count, char *err, size_t n) {
    return a->tokenize(e, text, len, flags, ids, cap, count, err, n);
}
static inline nb_status api_submit(const nb_api *a, nb_engine *e, int32_t slot, const nb_request *r, char *err, size_t n) {
    return a->submit(e, slot, r, err, n);
}
static inline nb_status api_wait(const nb_api *a, nb_engine *e, int32_t slot, int32_t seen, int64_t timeout, nb_result *out,
                                 char *err, size_t n) {
    return a->wait(e, slot, seen, timeout, out, err, n);
}
static inline void      api_cancel(const nb_api *a, nb_engine *e, int32_t slot) { a->cancel(e, slot); }
static inline nb_status api_logits(const nb_api *a, nb_engine *e, int32_t slot, const int32_t *tokens, int32_t count,
                                   int32_t last, float *out, int64_t cap, char *err, size_t n) {
    return a->logits(e, slot, tokens, count, last, out, cap, err, n);
}
static inline nb_status api_stamps(const nb_api *a, nb_engine *e, int32_t begin, nb_stamps *out, char *err, size_t n) {
    return a->stamps(e, begin, out, err, n);
}
static inline nb_status api_profile(const nb_api *a, nb_engine *e, int32_t begin, char *err, size_t n) {
    return a->profile(e, begin, err, n);
}
static inline nb_status api_ops(const nb_api *a, nb_engine *e, int32_t begin, nb_ops *out, nb_op *rows, int32_t cap,
                                int32_t *count, char *err, size_t n) {
    return a->ops(e, begin, out, rows, cap, count, err, n);
}
static inline nb_status api_vocab_open(const nb_api *a, const char *path, nb_vocab **out, char *err, size_t n) {
    return a->vocab_open(path, out, err, n);
}
static inline void      api_vocab_close(const nb_api *a, nb_vocab *v) { a->vocab_close(v); }
static inline nb_status api_vocab_tokenize(const nb_api *a, nb_vocab *v, const char *text, int64_t len, uint32_t flags,
                                           int32_t *ids, int32_t cap, int32_t *count, char *err, size_t n) {
    return a->vocab_tokenize(v, text, len, flags, ids, cap, count, err, n);
}
static inline nb_status api_vocab_piece(const nb_api *a, nb_vocab *v, int32_t id, char *buf, int32_t cap, int32_t *count,
                                        char *err, size_t n) {
    return a->vocab_piece(v, id, buf, cap, count, err, n);
}

#endif
