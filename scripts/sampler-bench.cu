// Times the kernels that choose tokens (csrc/gpu_sampler.cu) alone:
//
//	nvcc -std=c++17 -O3 -arch=native scripts/sampler-bench.cu -o /tmp/b && /tmp/b [ROUNDS [VOCABULARY SEQUENCES]]
//
// Printed are, for several vocabularies and sequences, the device's time for a
// choice (of all sequences, from choices in a row) and the host's from the
// launch to the last id in its memory, medians. That they are right is checked
// by nb-check --gpu.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "../csrc/gpu_sampler.cu"

#define CUDA(call)                                                                                                               \
    do {                                                                                                                         \
        if (const cudaError_t e = (call); e != cudaSuccess) {                                                                    \
            std::printf("sampler-bench: %s: %s\n", #call, cudaGetErrorString(e));                                                \
            std::exit(1);                                                                                                        \
        }                                                                                                                        \
    } while (0)

static void choose(const NbChoice &c, int draws) {
    const dim3 grid((c.n_vocab + NB_GPU_SLICE - 1) / NB_GPU_SLICE, draws);
    nb_best<<<grid, NB_GPU_THREADS>>>(c);
    if (c.draws[0].temperature > 0) nb_weigh<<<grid, NB_GPU_THREADS>>>(c);
    nb_draw<<<grid, NB_GPU_THREADS>>>(c);
    CUDA(cudaGetLastError());
}

static double median(std::vector<double> x) {
    std::nth_element(x.begin(), x.begin() + static_cast<long>(x.size() / 2), x.end());
    return x[x.size() / 2];
}

int main(int argc, char **argv) {
    const int rounds = argc > 1 ? std::atoi(argv[1]) : 200, only_n = argc > 3 ? std::atoi(argv[2]) : 0,
              only_rows = argc > 3 ? std::atoi(argv[3]) : 0;
    CUDA(cudaSetDeviceFlags(cudaDeviceMapHost));
    std::printf("%8s %6s %-24s %10s %10s\n", "vocab", "seqs", "logits", "device us", "host us");
    const struct {
        const char *name;
        float       spread, temperature, top_p;
    } kinds[] = {{"greedy", 1, 0, 1},
                 {"spread 0.55, 0.8, 0.95", 0.55f, 0.8f, 0.95f},
                 {"spread 3, 0.8, 0.95", 3, 0.8f, 0.95f},
                 {"spread 3, 1, 1", 3, 1, 1},
                 {"equal, 0.8, 0.95", 0, 0.8f, 0.95f}};
    for (const int n : {50257, 32000, 128256}) {
        for (const int rows : {1, 8, 32, 64}) {
            if (only_n && (n != only_n || rows != only_rows)) continue;
            for (const auto &k : kinds) {
                std::mt19937                    rng(5);
                std::normal_distribution<float> normal;
                std::vector<float>              logits(static_cast<size_t>(n) * rows);
                for (float &x : logits) x = normal(rng) * k.spread;
                NbChoice c{};
                float   *device;
                CUDA(cudaMalloc(&device, logits.size() * sizeof(float)));
                CUDA(cudaMemcpy(device, logits.data(), logits.size() * sizeof(float), cudaMemcpyDefault));
                CUDA(cudaMalloc(&c.scratch, rows * sizeof(NbScratch)));
                CUDA(cudaMemset(c.scratch, 0, rows * sizeof(NbScratch)));
                CUDA(cudaMalloc(&c.cuts, logits.size() * sizeof *c.cuts));
                CUDA(cudaHostAlloc(&c.ids, rows * sizeof(int), cudaHostAllocMapped));
                c.logits  = device;
                c.n_vocab = n;
                for (int r = 0; r < rows; r++)
                    c.draws[r] = {std::uniform_real_distribution<double>()(rng), k.temperature, k.top_p, r, 0};

                for (int i = 0; i < 3; i++) choose(c, rows);
                CUDA(cudaDeviceSynchronize());
                const std::vector<int> first(c.ids, c.ids + rows);
                cudaEvent_t            a, b;
                CUDA(cudaEventCreate(&a));
                CUDA(cudaEventCreate(&b));
                CUDA(cudaEventRecord(a));
                for (int i = 0; i < rounds; i++) choose(c, rows);
                CUDA(cudaEventRecord(b));
                CUDA(cudaEventSynchronize(b));
                float ms = 0;
                CUDA(cudaEventElapsedTime(&ms, a, b));
                std::vector<double> host;
                for (int i = 0; i < rounds; i++) {
                    std::fill_n(c.ids, rows, -1);
                    const auto begin = std::chrono::steady_clock::now();
                    choose(c, rows);
                    for (int r = 0; r < rows; r++) {
                        while (__atomic_load_n(&c.ids[r], __ATOMIC_ACQUIRE) < 0) {
                        }
                    }
                    host.push_back(std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - begin).count());
                    CUDA(cudaDeviceSynchronize());
                }
                if (!std::equal(first.begin(), first.end(), c.ids)) {
                    std::printf("sampler-bench: the same draws chose other tokens\n");
                    return 1;
                }
                std::printf("%8d %6d %-24s %10.1f %10.1f\n", n, rows, k.name, 1e3 * ms / rounds, median(host));
                CUDA(cudaFree(device));
                CUDA(cudaFree(c.scratch));
                CUDA(cudaFree(c.cuts));
                CUDA(cudaFreeHost(c.ids));
            }
        }
    }
    return 0;
}
