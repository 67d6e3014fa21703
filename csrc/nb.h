// nb.h: the C ABI between nativebench and its in-process engine.
//
// The engine is a shared library that exports one symbol, nb_get_api, which
// returns a table of functions. The caller opens the library at run time, so
// that a machine without it still has a working nativebench.
//
// Rules, for every function:
//   - handles are opaque and come in open/close pairs;
//   - nothing throws or aborts through this boundary: the return value is an
//     nb_status, the text goes into the caller's err buffer (always terminated);
//   - the library never calls back into the caller and keeps none of the
//     caller's pointers after it has returned, except the nb_progress given to
//     open, until open has returned;
//   - fixed-width types only; both sides assert the sizes;
//   - all times are nanoseconds of CLOCK_MONOTONIC, taken in C.
#ifndef NB_H
#define NB_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define NB_ABI 6

typedef int32_t nb_status;
enum {
    NB_OK        = 0,
    NB_INVALID   = 1, // the request or parameter is not acceptable; nothing was changed
    NB_NOT_FOUND = 2, // no such file, device or slot
    NB_MODEL     = 3, // the file is not a model this engine can run
    NB_MEMORY    = 4, // not enough memory
    NB_BUSY      = 5, // the slot has a request under way
    NB_CANCELLED = 6,
    NB_CONTEXT   = 7, // prompt plus output does not fit the slot's context
    NB_INTERNAL  = 8, // the engine failed
    NB_TIMEOUT   = 9, // wait's time passed; the request goes on
};

typedef struct nb_engine nb_engine; // model + context + the loop that steps all slots
typedef struct nb_vocab  nb_vocab;  // tokenizer only

// Written by open while it runs, readable from another thread all the time.
typedef struct {
    volatile int32_t permille; // 0..1000 of the weights loaded
    volatile int32_t cancel;   // set to 1 by the caller: open gives up with NB_CANCELLED
} nb_progress;

enum { NB_FA_AUTO = -1, NB_FA_OFF = 0, NB_FA_ON = 1 };
enum { NB_KV_F16 = 0, NB_KV_F32 = 1 };
enum { NB_SAMPLE_AUTO = 0, NB_SAMPLE_HOST = 1, NB_SAMPLE_DEVICE = 2 };
enum { NB_WATCH_NOTHING = 0, NB_WATCH_STEPS = 1, NB_WATCH_OPS = 2 };

typedef struct {
    const char *model_path;
    const char *plugin_dir;      // where the backend plugins lie; NULL: beside the library
    int32_t     n_slots;         // sequences decoded in one batch, >= 1
    int32_t     n_ctx_slot;      // tokens a slot may hold, prompt and output; 0: the model's own
    int32_t     n_batch;         // largest logical batch
    int32_t     n_ubatch;        // largest physical batch
    int32_t     prefill_chunk;   // prompt tokens computed between two decode steps
    int32_t     n_threads;       // decode
    int32_t     n_threads_batch; // prefill
    int32_t     n_gpu_layers;    // -1: all
    int32_t     flash_attn;      // NB_FA_*
    int32_t     kv_type;         // NB_KV_*
    int32_t     sampling;        // NB_SAMPLE_*: where tokens are chosen; AUTO: on the device, if it can
    int32_t     watch;           // NB_WATCH_*: for ops; with OPS nothing else that is timed means anything
} nb_params;

typedef struct {
    int64_t n_params;
    int64_t model_bytes; // of all tensors
    int32_t n_ctx_train;
    int32_t n_ctx_slot; // what a slot really got
    int32_t n_slots;
    int32_t n_vocab;
    int32_t n_batch;
    int32_t n_ubatch;
    int32_t n_threads;
    int32_t n_threads_batch;
    int32_t flash_attn; // NB_FA_*, as asked
    int32_t add_bos;    // tokenizing a prompt adds one BOS
    int64_t load_ns;    // time of open
    // Where tokens are chosen on the device, since open: passes over the weights,
    // and rows computed in them for nobody, so that they are fewer.
    int64_t n_passes, n_filled;
    char    desc[128];     // "gpt2 0.1B F16"
    char    ftype[64];     // "F16"
    char    arch[32];      // "gpt2"
    char    device[256];   // devices that compute, comma separated
    char    sampling[192]; // where tokens are chosen: "on the device"; "on the host", and why
} nb_info;

// A calibration of a device.
typedef struct {
    // How far host stamps of tokens lie behind the device's end of the step, ns.
    int64_t p50, p99, max;
    int64_t uncertainty; // of each: half the interval to which the two clocks were aligned
    int64_t copy_rate;   // bytes a second, read and written, of a copy within its memory; 0: no room for one
    int32_t steps;
    int32_t reserved;
} nb_stamps;

// One operation of a model's graph, summed over steps of a kind.
typedef struct {
    char    op[24];        // ggml's name: MUL_MAT
    char    name[64];      // of the tensor that it makes: "Qcur-3"
    char    weight[64];    // tensor of the model's file that it reads: "blk.3.attn_q.weight"; "": none
    char    device[16];    // CPU, CUDA0, …
    int64_t ns;            // launched alone and awaited
    int64_t read, written; // bytes of its tensors' elements, each tensor once
    int64_t weights;       // of read: of the model's file
    int64_t flops;         // 2 for a multiplication and an addition; 0: no products
    int32_t count;
    int32_t prompt; // 1: in batches of prompts, 0: in decode steps
} nb_op;

// What was watched, by kind of step: [0] decode, [1] prompts. Sums, of the rows
// too, are over the faster half of the steps that were seen.
typedef struct {
    int32_t seen[2];
    int32_t steps[2]; // of these summed
    int64_t tokens[2];
    int64_t step_ns[2];   // from the batch to its results on the host
    int64_t sample_ns[2]; // of that: choosing tokens on the device; known with NB_WATCH_OPS
    // With NB_WATCH_OPS, of the device that has most of the work:
    int64_t empty_ns;    // an operation on one number, launched alone and awaited; the fastest
    int64_t memory_rate; // bytes a second; 0: not known
    int64_t flop_rate;   // of flops a second; 0: not known
    char    memory[64];  // how memory_rate was measured
    char    product[64]; // how flop_rate was
} nb_ops;

typedef struct {
    char    device[64]; // CPU, CUDA0, …
    int64_t weights;    // bytes
    int64_t kv;
    int64_t compute;
} nb_memory;

enum {
    NB_REQ_IGNORE_EOS = 1u << 0,
    NB_REQ_ADD_BOS    = 1u << 1, // add BOS where the model's tokenizer says so
    NB_REQ_SPECIAL    = 1u << 2, // parse special tokens written in the prompt
    NB_REQ_RAW        = 1u << 3, // no sampler: some token is fed back, for raw decode speed
};

typedef struct {
    const char    *prompt;     // UTF-8, not terminated; or NULL
    const int32_t *tokens;     // token ids instead of prompt; or NULL
    int64_t        prompt_len; // bytes of prompt, or number of tokens
    uint64_t       seed;
    float          temperature; // 0: greedy
    float          top_p;       // (0, 1]
    int32_t        max_tokens;  // >= 1
    uint32_t       flags;       // NB_REQ_*
} nb_request;

// One generated token.
typedef struct {
    int64_t t_ns; // its id was on the host
    int32_t id;
    int32_t text_end; // bytes of text that were complete after it
} nb_token;

enum { NB_RUNNING = 0, NB_FINISH_LENGTH = 1, NB_FINISH_STOP = 2, NB_FINISH_CANCELLED = 3, NB_FINISH_ERROR = 4 };

// State of a slot's request. The arrays belong to the slot: they stay valid and
// their first n_tokens / text_len entries unchanged until the slot's next
// submit or close.
typedef struct {
    const nb_token *tokens;
    const char     *text; // UTF-8; a sequence that is not whole is held back
    int32_t         n_tokens;
    int32_t         text_len;
    int32_t         finish;    // NB_RUNNING, NB_FINISH_*
    int32_t         n_prompt;  // prompt tokens, BOS included
    int32_t         held_back; // bytes of an unfinished UTF-8 sequence at the end
    int32_t         status;    // nb_status behind NB_FINISH_ERROR
    int64_t         t_submit, t_end;
    // Where the time went; see bench.Phases.
    int64_t tokenize, queue, prefill, decode, sampling, detokenize;
} nb_result;

typedef struct {
    uint32_t    abi;         // NB_ABI
    uint32_t    size;        // sizeof(nb_api)
    const char *source_hash; // of csrc/ and the llama.cpp pin
    const char *engine;      // "llama.cpp v0.5.0"
    const char *build;       // compiler, flags
    // sizeof nb_params, nb_info, nb_memory, nb_request, nb_token, nb_result, nb_progress, nb_stamps, nb_op, nb_ops
    uint32_t sizes[10];

    // begin loads the plugins of all devices and makes a context on each, as open
    // does first: what a device holds between the two is the context's. NULL: the
    // plugins beside the library.
    nb_status (*begin)(const char *plugin_dir, char *err, size_t errlen);
    // open loads the model, makes the context and starts the loop. May take
    // minutes; progress may be NULL.
    nb_status (*open)(const nb_params *p, nb_progress *progress, nb_engine **out, char *err, size_t errlen);
    // close cancels what runs, joins the loop and frees everything. NULL is fine.
    void (*close)(nb_engine *e);
    nb_status (*info)(nb_engine *e, nb_info *out, char *err, size_t errlen);
    // memory writes up to cap rows and returns in n how many there are.
    nb_status (*memory)(nb_engine *e, nb_memory *rows, int32_t cap, int32_t *n, char *err, size_t errlen);

    // tokenize returns in n the number of ids there are; writes at most cap.
    nb_status (*tokenize)(nb_engine *e, const char *text, int64_t len, uint32_t flags, int32_t *ids, int32_t cap, int32_t *n,
                          char *err, size_t errlen);

    // submit hands a request to a slot: tokenizes it in the calling thread and
    // queues it. One request per slot at a time.
    nb_status (*submit)(nb_engine *e, int32_t slot, const nb_request *r, char *err, size_t errlen);
    // wait returns when the slot's request has more than `seen` tokens or has
    // ended, or after timeout_ns (NB_TIMEOUT). seen = INT32_MAX waits for the end.
    nb_status (*wait)(nb_engine *e, int32_t slot, int32_t seen, int64_t timeout_ns, nb_result *out, char *err, size_t errlen);
    // cancel ends the slot's request at the next token; wait then sees it ended.
    void (*cancel)(nb_engine *e, int32_t slot);
    // logits evaluates n token ids in a slot, from an empty cache, beside what
    // the other slots do, and writes the logits after each of the last `last`
    // of them: last rows of info's n_vocab floats, unscaled and unmasked. Waits
    // for the end; the slot is empty again after it. Room in out: cap floats.
    nb_status (*logits)(nb_engine *e, int32_t slot, const int32_t *tokens, int32_t n, int32_t last, float *out, int64_t cap,
                        char *err, size_t errlen);

    // stamps begins (begin = 1) or ends (0) a calibration of the tokens' stamps; at
    // its end out tells of the steps in between. No request may be under way at
    // either. NB_NOT_FOUND: the device has no clock that could be read.
    nb_status (*stamps)(nb_engine *e, int32_t begin, nb_stamps *out, char *err, size_t errlen);

    // profile begins (begin = 1) or ends (0) the range that a profiler of CUDA
    // captures (cuProfilerStart, cuProfilerStop), on every device that computes.
    // NB_NOT_FOUND: none of them is CUDA's.
    nb_status (*profile)(nb_engine *e, int32_t begin, char *err, size_t errlen);
    // ops begins to watch anew (begin = 1), or tells of what was watched since (0):
    // writes up to cap rows and returns in n how many there are. The engine was
    // opened with watch; no request may be under way. Telling takes seconds.
    nb_status (*ops)(nb_engine *e, int32_t begin, nb_ops *out, nb_op *rows, int32_t cap, int32_t *n, char *err, size_t errlen);

    // vocab_open touches no device but the CPU.
    nb_status (*vocab_open)(const char *gguf_path, nb_vocab **out, char *err, size_t errlen);
    void (*vocab_close)(nb_vocab *v);
    nb_status (*vocab_tokenize)(nb_vocab *v, const char *text, int64_t len, uint32_t flags, int32_t *ids, int32_t cap, int32_t *n,
                                char *err, size_t errlen);
    nb_status (*vocab_piece)(nb_vocab *v, int32_t id, char *buf, int32_t cap, int32_t *n, char *err, size_t errlen);

} nb_api;

__attribute__((visibility("default"))) const nb_api *nb_get_api(uint32_t abi); // NULL: another ABI

#ifdef __cplusplus
}
#endif
#endif
