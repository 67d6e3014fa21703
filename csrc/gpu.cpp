#include "gpu.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <utility>

#include <dlfcn.h>

#include "loop.h"

namespace nb {
namespace {

// ---- the driver's library: of cuda.h only what is used here, so that no CUDA
// header is needed to build (CUDA Driver API, 12 and later; the ABI is stable).

using Result                    = int; // CUresult; 0: success
using Handle                    = void *;
using Address                   = unsigned long long; // CUdeviceptr
constexpr Result   kNotReady    = 600;
constexpr unsigned kNonBlocking = 1, kPortable = 1, kMapped = 2, kDefaultEvent = 0;

struct Driver {
    Result (*init)(unsigned);
    Result (*deviceGet)(int *, int);
    Result (*retain)(Handle *, int);
    Result (*release)(int);
    Result (*setCurrent)(Handle);
    Result (*loadData)(Handle *, const void *);
    Result (*unload)(Handle);
    Result (*function)(Handle *, Handle, const char *);
    Result (*launch)(Handle, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, Handle, void **, void **);
    Result (*streamCreate)(Handle *, unsigned);
    Result (*streamDestroy)(Handle);
    Result (*streamSync)(Handle);
    Result (*streamQuery)(Handle);
    Result (*streamWait)(Handle, Handle, unsigned);
    Result (*eventCreate)(Handle *, unsigned);
    Result (*eventDestroy)(Handle);
    Result (*eventRecord)(Handle, Handle);
    Result (*eventSync)(Handle);
    Result (*eventElapsed)(float *, Handle, Handle);
    Result (*hostAlloc)(void **, size_t, unsigned);
    Result (*hostFree)(void *);
    Result (*toDevice)(Address, const void *, size_t, Handle);
    Result (*memAlloc)(Address *, size_t);
    Result (*memFree)(Address);
    Result (*memZero)(Address, unsigned char, size_t, Handle);
    Result (*memCopy)(Address, Address, size_t, Handle);
    Result (*profilerStart)();
    Result (*profilerStop)();
    Result (*errorName)(Result, const char **);
};

// driver returns the library's functions; NULL and why if it is not there. It
// stays open for the life of the process.
const Driver *driver(std::string *why) {
    static std::string   problem;
    static const Driver *all = []() -> const Driver * {
        void *lib = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
        if (!lib) {
            problem = "there is no NVIDIA driver library (libcuda.so.1)";
            return nullptr;
        }
        static Driver d;
        const struct {
            void      **to;
            const char *name;
        } want[] = {
            {reinterpret_cast<void **>(&d.init), "cuInit"},
            {reinterpret_cast<void **>(&d.deviceGet), "cuDeviceGet"},
            {reinterpret_cast<void **>(&d.retain), "cuDevicePrimaryCtxRetain"},
            {reinterpret_cast<void **>(&d.release), "cuDevicePrimaryCtxRelease_v2"},
            {reinterpret_cast<void **>(&d.setCurrent), "cuCtxSetCurrent"},
            {reinterpret_cast<void **>(&d.loadData), "cuModuleLoadData"},
            {reinterpret_cast<void **>(&d.unload), "cuModuleUnload"},
            {reinterpret_cast<void **>(&d.function), "cuModuleGetFunction"},
            {reinterpret_cast<void **>(&d.launch), "cuLaunchKernel"},
            {reinterpret_cast<void **>(&d.streamCreate), "cuStreamCreate"},
            {reinterpret_cast<void **>(&d.streamDestroy), "cuStreamDestroy_v2"},
            {reinterpret_cast<void **>(&d.streamSync), "cuStreamSynchronize"},
            {reinterpret_cast<void **>(&d.streamQuery), "cuStreamQuery"},
            {reinterpret_cast<void **>(&d.streamWait), "cuStreamWaitEvent"},
            {reinterpret_cast<void **>(&d.eventCreate), "cuEventCreate"},
            {reinterpret_cast<void **>(&d.eventDestroy), "cuEventDestroy_v2"},
            {reinterpret_cast<void **>(&d.eventRecord), "cuEventRecord"},
            {reinterpret_cast<void **>(&d.eventSync), "cuEventSynchronize"},
            {reinterpret_cast<void **>(&d.eventElapsed), "cuEventElapsedTime"},
            {reinterpret_cast<void **>(&d.hostAlloc), "cuMemHostAlloc"},
            {reinterpret_cast<void **>(&d.hostFree), "cuMemFreeHost"},
            {reinterpret_cast<void **>(&d.toDevice), "cuMemcpyHtoDAsync_v2"},
            {reinterpret_cast<void **>(&d.memAlloc), "cuMemAlloc_v2"},
            {reinterpret_cast<void **>(&d.memFree), "cuMemFree_v2"},
            {reinterpret_cast<void **>(&d.memZero), "cuMemsetD8Async"},
            {reinterpret_cast<void **>(&d.memCopy), "cuMemcpyDtoDAsync_v2"},
            {reinterpret_cast<void **>(&d.profilerStart), "cuProfilerStart"},
            {reinterpret_cast<void **>(&d.profilerStop), "cuProfilerStop"},
            {reinterpret_cast<void **>(&d.errorName), "cuGetErrorName"},
        };
        for (const auto &w : want) {
            *w.to = dlsym(lib, w.name);
            if (!*w.to) {
                problem = std::string("the NVIDIA driver library has no ") + w.name;
                return nullptr;
            }
        }
        return &d;
    }();
    if (!all) *why = problem;
    return all;
}

void must(const Driver &d, Result r, const char *what) {
    if (r == 0) return;
    const char *name = nullptr;
    if (d.errorName(r, &name) != 0 || !name) name = "an unknown error";
    throw Error(NB_INTERNAL, std::string("CUDA: ") + what + " failed: " + name);
}

constexpr int32_t kNone = -1; // an id that has not arrived

class CudaGpu : public Gpu {
  public:
    CudaGpu(const Driver &d, const std::string &kernels, int ordinal, int n_vocab, const std::vector<int32_t> &ends, int rows)
        : d_(d), n_vocab_(n_vocab), n_ends_(static_cast<int>(ends.size())), rows_(rows) {
        check(d_.init(0), "cuInit");
        check(d_.deviceGet(&device_, ordinal), "cuDeviceGet");
        check(d_.retain(&context_, device_), "cuDevicePrimaryCtxRetain");
        try {
            prepare(kernels, ends);
        } catch (...) {
            close();
            throw;
        }
    }
    ~CudaGpu() override { close(); }

    void choose(void *ready, const float *logits, const std::vector<NbDraw> &draws, int first, void *taken) override {
        enter();
        const size_t n = draws.size();
        if (first < 0 || static_cast<size_t>(first) + n > static_cast<size_t>(rows_))
            throw Error(NB_INTERNAL, "more draws than rows");
        std::fill_n(ids_ + first, n, kNone);
        asked_ = std::max(asked_, first + static_cast<int>(n));
        if (ready) check(d_.streamWait(stream_, ready, 0), "cuStreamWaitEvent");
        NbChoice c{};
        c.logits  = logits;
        c.ends    = pointer<int>(ends_device_);
        c.scratch = pointer<NbScratch>(scratch_);
        c.cuts    = pointer<unsigned long long>(cuts_);
        c.ids     = ids_; // mapped: the same address on the device
        c.n_vocab = n_vocab_;
        c.n_ends  = n_ends_;
        run(c, draws, first);
        if (taken) check(d_.eventRecord(taken, stream_), "cuEventRecord");
    }
    // The ids arrive in host memory by themselves; watching them saves the wait
    // for the kernel's end.
    const int32_t *finish() override {
        enter();
        const int asked = std::exchange(asked_, 0);
        for (int i = 0; i < asked; i++) {
            for (int tries = 1; __atomic_load_n(&ids_[i], __ATOMIC_ACQUIRE) == kNone; tries++) {
                if (tries % 4096 != 0) continue;
                const Result r = d_.streamQuery(stream_);
                if (r == kNotReady) continue;
                check(r, "cuStreamQuery");
                if (__atomic_load_n(&ids_[i], __ATOMIC_ACQUIRE) == kNone)
                    throw Error(NB_INTERNAL, "CUDA: the kernels ended without a choice");
            }
        }
        return ids_;
    }
    std::vector<int32_t> choose_from(const std::vector<float> &logits, std::vector<NbDraw> draws) override {
        enter();
        Address copy = 0;
        check(d_.memAlloc(&copy, logits.size() * sizeof(float)), "cuMemAlloc");
        check(d_.toDevice(copy, logits.data(), logits.size() * sizeof(float), stream_), "cuMemcpyHtoDAsync");
        choose(nullptr, reinterpret_cast<const float *>(copy), draws, 0, nullptr);
        const int32_t       *ids = finish();
        std::vector<int32_t> out(ids, ids + draws.size());
        d_.memFree(copy);
        return out;
    }

    // The start event is reached between two host stamps; of many tries the one
    // with the narrowest interval is kept.
    void align() override {
        enter();
        int64_t best = INT64_MAX;
        Handle  tried;
        check(d_.eventCreate(&tried, kDefaultEvent), "cuEventCreate");
        for (int i = 0; i < 200; i++) {
            check(d_.streamSync(stream_), "cuStreamSynchronize");
            const int64_t t0 = now_ns();
            check(d_.eventRecord(tried, stream_), "cuEventRecord");
            check(d_.eventSync(tried), "cuEventSynchronize");
            const int64_t t1 = now_ns();
            if (t1 - t0 < best) {
                best         = t1 - t0;
                zero_        = t0 + best / 2;
                uncertainty_ = best / 2;
                std::swap(tried, begin_);
            }
        }
        d_.eventDestroy(tried);
    }
    void mark() override {
        enter();
        check(d_.eventRecord(end_, stream_), "cuEventRecord");
    }
    int64_t since(int64_t t_ns) override {
        enter();
        float ms = 0;
        check(d_.eventSync(end_), "cuEventSynchronize");
        check(d_.eventElapsed(&ms, begin_, end_), "cuEventElapsedTime");
        return t_ns - (zero_ + static_cast<int64_t>(static_cast<double>(ms) * 1e6));
    }
    int64_t uncertainty() const override { return uncertainty_; }

    int64_t bytes() const override { return bytes_; }

    int64_t copy_rate() override {
        enter();
        constexpr size_t kBytes = size_t{1} << 30; // far beyond any cache
        Address          from = 0, to = 0;
        float            best = 0; // ms, of several
        if (d_.memAlloc(&from, kBytes) == 0 && d_.memAlloc(&to, kBytes) == 0) {
            Handle a, b;
            check(d_.eventCreate(&a, kDefaultEvent), "cuEventCreate");
            check(d_.eventCreate(&b, kDefaultEvent), "cuEventCreate");
            for (int i = 0; i < 12; i++) {
                float ms = 0;
                check(d_.eventRecord(a, stream_), "cuEventRecord");
                check(d_.memCopy(to, from, kBytes, stream_), "cuMemcpyDtoDAsync");
                check(d_.eventRecord(b, stream_), "cuEventRecord");
                check(d_.eventSync(b), "cuEventSynchronize");
                check(d_.eventElapsed(&ms, a, b), "cuEventElapsedTime");
                if (i >= 2 && (best == 0 || ms < best)) best = ms;
            }
            d_.eventDestroy(a);
            d_.eventDestroy(b);
        }
        if (from) d_.memFree(from);
        if (to) d_.memFree(to);
        return best > 0 ? static_cast<int64_t>(2.0 * kBytes / (static_cast<double>(best) * 1e-3)) : 0;
    }

  private:
    void check(Result r, const char *what) const { must(d_, r, what); }
    // A context is current per thread; the loop's thread may be new.
    void enter() const { check(d_.setCurrent(context_), "cuCtxSetCurrent"); }

    void launch(Kernel kernel, unsigned slices, unsigned draws, const NbChoice &c) override {
        void *args[] = {const_cast<NbChoice *>(&c)};
        check(d_.launch(kernels_[kernel], slices, draws, 1, NB_GPU_THREADS, 1, 1, 0, stream_, args, nullptr), "cuLaunchKernel");
    }

    template <class T> static T *pointer(Address a) { return reinterpret_cast<T *>(static_cast<uintptr_t>(a)); }

    // host makes a page-locked array of n that the device sees, device memory on the device.
    template <class T> T *host(size_t n) {
        void *p = nullptr;
        check(d_.hostAlloc(&p, n * sizeof(T), kPortable | kMapped), "cuMemHostAlloc");
        host_.push_back(p);
        return static_cast<T *>(p);
    }
    Address device(size_t bytes) {
        Address p = 0;
        check(d_.memAlloc(&p, bytes), "cuMemAlloc");
        memory_.push_back(p);
        bytes_ += static_cast<int64_t>(bytes);
        return p;
    }

    void prepare(const std::string &kernels, const std::vector<int32_t> &ends) {
        enter();
        check(d_.loadData(&module_, kernels.data()), "cuModuleLoadData");
        const char *const names[kKernels] = {"nb_best", "nb_weigh", "nb_draw"};
        for (int k = 0; k < kKernels; k++) check(d_.function(&kernels_[k], module_, names[k]), "cuModuleGetFunction");
        check(d_.streamCreate(&stream_, kNonBlocking), "cuStreamCreate");
        check(d_.eventCreate(&begin_, kDefaultEvent), "cuEventCreate");
        check(d_.eventCreate(&end_, kDefaultEvent), "cuEventCreate");
        ids_              = host<int32_t>(static_cast<size_t>(rows_));
        const auto   most = static_cast<size_t>(std::min<int>(rows_, NB_GPU_DRAWS)); // draws of a launch
        const size_t zero = most * sizeof(NbScratch);
        scratch_          = device(zero);
        cuts_             = device(most * static_cast<size_t>(n_vocab_) * sizeof(unsigned long long));
        check(d_.memZero(scratch_, 0, zero, stream_), "cuMemsetD8Async");
        ends_device_ = device((ends.size() + 1) * sizeof(int32_t));
        check(d_.toDevice(ends_device_, ends.data(), ends.size() * sizeof(int32_t), stream_), "cuMemcpyHtoDAsync");
        check(d_.streamSync(stream_), "cuStreamSynchronize");
    }
    void close() {
        if (d_.setCurrent(context_) == 0) {
            if (stream_) d_.streamSync(stream_);
            for (void *p : host_) d_.hostFree(p);
            for (Address p : memory_) d_.memFree(p);
            if (begin_) d_.eventDestroy(begin_);
            if (end_) d_.eventDestroy(end_);
            if (stream_) d_.streamDestroy(stream_);
            if (module_) d_.unload(module_);
        }
        d_.release(device_);
    }

    const Driver        &d_;
    int                  device_ = 0, n_vocab_, n_ends_, rows_, asked_ = 0;
    Handle               context_ = nullptr, module_ = nullptr, stream_ = nullptr, begin_ = nullptr, end_ = nullptr;
    Handle               kernels_[kKernels] = {};
    std::vector<void *>  host_;
    std::vector<Address> memory_;
    int32_t             *ids_     = nullptr;
    Address              scratch_ = 0, cuts_ = 0, ends_device_ = 0;
    int64_t              bytes_ = 0;                  // of memory_
    int64_t              zero_ = 0, uncertainty_ = 0; // ns; host time of begin_
};

} // namespace

void gpu_profile(int ordinal, bool begin) {
    std::string   why;
    const Driver *d = driver(&why);
    if (!d) throw Error(NB_NOT_FOUND, why);
    int    device  = 0;
    Handle context = nullptr;
    must(*d, d->init(0), "cuInit");
    must(*d, d->deviceGet(&device, ordinal), "cuDeviceGet");
    must(*d, d->retain(&context, device), "cuDevicePrimaryCtxRetain");
    Result r = d->setCurrent(context);
    if (r == 0) r = begin ? d->profilerStart() : d->profilerStop();
    d->setCurrent(nullptr); // the thread is the caller's
    d->release(device);
    must(*d, r, begin ? "cuProfilerStart" : "cuProfilerStop");
}

void Gpu::run(NbChoice c, const std::vector<NbDraw> &draws, int first) {
    const unsigned slices = static_cast<unsigned>(c.n_vocab + NB_GPU_SLICE - 1) / NB_GPU_SLICE;
    int *const     ids    = c.ids;
    for (size_t at = 0, n; at < draws.size(); at += n) {
        n = std::min<size_t>(draws.size() - at, NB_GPU_DRAWS);
        std::copy_n(draws.begin() + static_cast<long>(at), n, c.draws);
        c.ids = ids + first + at;
        launch(kBest, slices, static_cast<unsigned>(n), c);
        const bool greedy = std::all_of(c.draws, c.draws + n, [](const NbDraw &d) { return d.temperature == 0; });
        if (!greedy) launch(kWeigh, slices, static_cast<unsigned>(n), c);
        launch(kDraw, slices, static_cast<unsigned>(n), c);
    }
}

std::unique_ptr<Gpu> Gpu::open(const std::string &dir, int ordinal, int n_vocab, const std::vector<int32_t> &ends, int rows,
                               std::string *why) {
    const std::string path = dir + "/" + kGpuKernels;
    std::string       kernels;
    if (FILE *file = std::fopen(path.c_str(), "rb")) {
        char part[1 << 14];
        for (size_t n; (n = std::fread(part, 1, sizeof part, file)) > 0;) kernels.append(part, n);
        std::fclose(file);
    }
    if (n_vocab > NB_GPU_SLICE * NB_GPU_SLICES) {
        *why = "the vocabulary is larger than our kernels take";
        return nullptr;
    }
    if (kernels.empty()) {
        *why = "there is no " + path;
        return nullptr;
    }
    const Driver *d = driver(why);
    if (!d) return nullptr;
    try {
        return std::make_unique<CudaGpu>(*d, kernels, ordinal, n_vocab, ends, rows);
    } catch (const std::exception &e) {
        *why = e.what();
        return nullptr;
    }
}

} // namespace nb
