// gpu_sampler.h: what the host and the kernels of gpu_sampler.cu agree on.
#ifndef NB_GPU_SAMPLER_H
#define NB_GPU_SAMPLER_H

enum {
    NB_GPU_THREADS = 1024, // of a block
    NB_GPU_SLICE   = 4096, // ids of a row of logits that a block looks at
    NB_GPU_SLICES  = 256,  // of a row, at most: a vocabulary of 2^20 tokens
    NB_GPU_BINS    = 1024, // of a histogram: the 1017 values of a weight's upper bits fit
    NB_GPU_DRAWS   = 128,  // of a launch: they travel as its parameter, of 4 KiB at most
    NB_DRAW_NO_END = 1,
};

// One row of logits to choose a token from, as Sampler::sample (sampler.h).
struct NbDraw {
    double   u;           // in [0, 1)
    float    temperature; // 0: the largest logit
    float    top_p;
    int      row;   // of the logits
    unsigned flags; // NB_DRAW_NO_END: tokens that end a generation cannot be drawn
};

// What the blocks of a draw tell each other; all zero between choices.
struct NbScratch {
    unsigned long long best;                // the largest logit and its id, as one number
    unsigned long long bins[NB_GPU_BINS];   // mass by the upper bits of the weights
    unsigned long long mass[NB_GPU_SLICES]; // surely in the nucleus, by slice
    unsigned           n_cut;               // tokens in the draw's part of NbChoice::cuts
    unsigned           done;                // blocks
};

// The parameter of every kernel. Arrays are device memory, but for ids: that may
// be the host's, mapped.
struct NbChoice {
    const float        *logits;  // [rows][n_vocab]
    const int          *ends;    // [n_ends] that NB_DRAW_NO_END forbids
    NbScratch          *scratch; // [draws]
    unsigned long long *cuts;    // [draws][n_vocab]: the tokens in the bin that the nucleus ends in
    int                *ids;     // [draws]: the choices
    int                 n_vocab, n_ends;
    NbDraw              draws[NB_GPU_DRAWS];
};

#endif
