// gpu_sampler.h: what the host and the kernel of gpu_sampler.cu agree on.
#ifndef NB_GPU_SAMPLER_H
#define NB_GPU_SAMPLER_H

enum { NB_GPU_THREADS = 1024, NB_DRAW_NO_END = 1 };

// One row of logits to choose a token from, as Sampler::sample (sampler.h).
struct NbDraw {
    double   u;           // in [0, 1)
    float    temperature; // 0: the largest logit
    float    top_p;
    int      row;   // of the logits
    unsigned flags; // NB_DRAW_NO_END: tokens that end a generation cannot be drawn
};

#endif
