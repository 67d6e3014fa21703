// check.cpp: exercises an engine library through its table of functions; made
// to be run under sanitizers, and as the leak check.
//
//   nb-check LIBRARY MODEL [OPENS [REQUESTS]]
//   nb-check --gpu [ENGINE_DIR]
//
// The second form checks the kernel that chooses tokens against the sampler's
// definition: on the first CUDA device, with the kernels in ENGINE_DIR (it exits
// 77 where there is none), or, without a directory, run on the host.
//
// Opens and closes MODEL OPENS times, then answers REQUESTS requests on four
// slots with sampling, cancels and refusals among them, and checks that the
// resident memory has stopped growing. For the fake engine use a step time
// (fake:step_us=50). Also checks how batches are divided, and the sampler against a plain
// sort of the vocabulary. Exits 1 with a line on the first failure.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <random>
#include <set>
#include <string>
#include <vector>

#include <dlfcn.h>
#include <unistd.h>

#include "gpu.h"
#include "nb.h"
#include "passes.h"
#include "sampler.h"

#if defined(__SANITIZE_ADDRESS__)
// llama.cpp's plugins stay loaded on purpose; nothing else may leak.
extern "C" const char *__asan_default_options() { return "detect_leaks=1"; }
extern "C" const char *__lsan_default_suppressions() { return "leak:libgomp\nleak:ggml_backend_load\nleak:_dl_\n"; }
constexpr bool         kMemorySettles = false; // the sanitizer keeps freed memory for a while; it finds leaks itself
#elif defined(__SANITIZE_THREAD__)
constexpr bool kMemorySettles = false;
#else
constexpr bool kMemorySettles = true;
#endif

namespace {

#define CHECK(cond, ...)                                                                                                         \
    do {                                                                                                                         \
        if (!(cond)) {                                                                                                           \
            std::printf("nb-check: %s:%d: %s: ", __FILE__, __LINE__, #cond);                                                     \
            std::printf(__VA_ARGS__);                                                                                            \
            std::printf("\n");                                                                                                   \
            std::exit(1);                                                                                                        \
        }                                                                                                                        \
    } while (0)

// ---- sampler: against the definition, by a full sort

// A batch of n tokens in each of the slots named, after what the slot holds.
std::vector<nb::Entry> batch_of(const std::vector<std::array<int32_t, 3>> &slots) { // slot, held, n
    std::vector<nb::Entry> batch;
    for (const auto &[slot, held, n] : slots) {
        for (int32_t i = 0; i < n; i++) batch.push_back({7, held + i, slot, i == n - 1, false});
    }
    return batch;
}

// Passes: which slots share one, what is filled up, and what is forgotten after it.
void check_passes() {
    struct Case {
        const char                              *what;
        bool                                     fills, prompt;
        std::vector<std::array<int32_t, 3>>      slots;     // slot, held, n
        std::vector<size_t>                      rows;      // of each pass
        std::vector<std::pair<int32_t, int32_t>> forgotten; // slot, pos
    };
    const std::vector<Case> cases = {
        {"neighbours", true, false, {{0, 5, 1}, {1, 9, 1}}, {2}, {}},
        {"a gap", true, false, {{0, 5, 1}, {2, 9, 1}}, {3}, {{1, 0}}},
        {"a gap, not filled", false, false, {{0, 5, 1}, {2, 9, 1}}, {1, 1}, {}},
        {"too wide a gap", true, false, {{0, 5, 1}, {14, 9, 1}}, {1, 1}, {}},
        {"unlike prompts", true, true, {{0, 0, 30}, {1, 0, 50}}, {100}, {{0, 30}}},
        {"a shorter second", true, true, {{0, 0, 50}, {1, 0, 30}}, {100}, {{1, 30}}},
        {"too unlike", true, true, {{0, 0, 10}, {1, 0, 100}}, {10, 100}, {}},
        {"no room in the slot", true, true, {{0, 220, 20}, {1, 0, 90}}, {20, 90}, {}},
        {"just room", true, true, {{0, 166, 20}, {1, 0, 90}}, {180}, {{0, 186}}},
        {"more than a physical batch", true, true, {{0, 0, 250}, {1, 0, 10}}, {200, 100}, {{1, 10}}},
        {"together more than one", true, true, {{0, 0, 110}, {1, 0, 100}}, {110, 100}, {}},
    };
    for (const Case &c : cases) {
        nb::Passes                               passes(16, 256, 200, c.fills);
        std::vector<std::pair<int32_t, int32_t>> forgotten;
        for (const auto &[slot, held, n] : c.slots) { // what the slots hold already
            for (int32_t at = 0, part; at < held; at += part) {
                part           = std::min(held - at, 200);
                const auto was = batch_of({{slot, at, part}});
                CHECK(passes.lay_out(was, 0, true) == was.size(), "passes: %s", c.what);
                passes.computed([](int32_t, int32_t) {});
            }
        }
        passes.reset();
        const auto batch = batch_of(c.slots);
        size_t     pass = 0, asked = 0, rows = 0;
        for (size_t from = 0; from < batch.size(); pass++) {
            from = passes.lay_out(batch, from, c.prompt);
            CHECK(pass < c.rows.size() && passes.rows().size() == c.rows[pass] && passes.asked().size() == c.rows[pass],
                  "passes: %s", c.what);
            for (size_t i = 0; i < passes.rows().size(); i++) {
                const int32_t at = passes.asked()[i];
                if (at < 0) continue;
                CHECK(static_cast<size_t>(at) == asked && passes.rows()[i].slot == batch[asked].slot &&
                          passes.rows()[i].pos == batch[asked].pos,
                      "passes: %s", c.what);
                asked++;
            }
            rows += passes.rows().size();
            passes.computed([&](int32_t slot, int32_t pos) { forgotten.emplace_back(slot, pos); });
        }
        CHECK(asked == batch.size() && forgotten == c.forgotten, "passes: %s", c.what);
        CHECK(passes.passes() == static_cast<int64_t>(c.rows.size()) &&
                  passes.filled() == static_cast<int64_t>(rows - batch.size()),
              "passes: %s", c.what);
    }
}

void check_sampler() {
    std::mt19937                    rng(7);
    std::normal_distribution<float> normal;
    for (int round = 0; round < 300; round++) {
        const int32_t n      = 1 + static_cast<int32_t>(rng() % (round % 3 == 0 ? 40 : 60000));
        const float spread[] = {0, 0.1f, 1, 4, 30}, temps[] = {0.1f, 0.7f, 1, 2}, tops[] = {1e-6f, 0.5f, 0.9f, 0.95f, 0.9999f, 1};
        const float sp = spread[rng() % 5], t = temps[rng() % 4], p = tops[rng() % 6];
        std::vector<float> logits(n);
        for (float &x : logits) x = std::round(normal(rng) * sp * 64) / 64; // rounded: ties happen
        if (round % 7 == 0 && n > 1) logits[rng() % n] = -INFINITY;

        std::vector<int32_t> order(n);
        std::iota(order.begin(), order.end(), 0);
        std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
        CHECK(nb::argmax(logits.data(), n) == order[0], "n=%d", n);

        std::vector<double> prob(n);
        double              total = 0;
        for (int32_t i = 0; i < n; i++) total += prob[i] = std::exp((static_cast<double>(logits[i]) - logits[order[0]]) / t);
        int32_t keep = 0;
        double  mass = 0;
        while (keep < n && mass < static_cast<double>(p) * total) mass += prob[order[keep++]];

        nb::Sampler       sampler(n);
        std::vector<char> in(n, 0);
        // Sums in another order may move the cut by a token whose probability
        // is of the order of the rounding.
        const int32_t slack = 1 + static_cast<int32_t>(keep * 2e-3);
        for (int32_t i = 0; i < (p == 1 ? n : std::min(n, keep + slack)); i++) in[order[i]] = 1;
        for (int draw = 0; draw < 20; draw++) {
            const double  u  = draw == 0 ? 0 : draw == 1 ? std::nextafter(1.0, 0.0) : nb::uniform(round, draw);
            const int32_t id = sampler.sample(logits.data(), t, p, u);
            CHECK(id >= 0 && id < n && in[id] && prob[id] > 0, "n=%d p=%g t=%g id=%d", n, p, t, id);
        }
        if (p < 1)
            CHECK(std::abs(sampler.nucleus() - keep) <= slack, "n=%d p=%g t=%g: nucleus %d, by sorting %d", n, p, t,
                  sampler.nucleus(), keep);
    }

    // The draws follow the distribution: chi-square over a small vocabulary.
    const float  logits[] = {2, 1, 0.5f, 0, -1, -4};
    nb::Sampler  sampler(6);
    const int    draws    = 200000;
    int          count[6] = {0};
    const double t = 0.8, p = 0.95;
    for (int i = 0; i < draws; i++) count[sampler.sample(logits, t, p, nb::uniform(42, i))]++;
    double prob[6], total = 0, mass = 0, chi = 0;
    for (int i = 0; i < 6; i++) total += prob[i] = std::exp(logits[i] / t);
    int keep = 0;
    while (mass < p * total) mass += prob[keep++];
    for (int i = 0; i < keep; i++) {
        const double expect = draws * prob[i] / mass;
        chi += (count[i] - expect) * (count[i] - expect) / expect;
    }
    for (int i = keep; i < 6; i++) CHECK(count[i] == 0, "token %d outside the nucleus was drawn", i);
    CHECK(chi < 25, "chi-square %.1f with %d degrees of freedom", chi, keep - 1); // p < 1e-4 at 4 degrees
    const float nan[] = {NAN, NAN};
    CHECK(nb::Sampler(2).sample(nan, 1, 0.9f, 0.5) == 0, "NaN logits");
}

// ---- engine

const nb_api *api;
char          err[4096];

long rss_kib() {
    long  pages = 0, resident = 0;
    FILE *f = std::fopen("/proc/self/statm", "r");
    if (std::fscanf(f, "%ld %ld", &pages, &resident) != 2) resident = 0;
    std::fclose(f);
    return resident * (sysconf(_SC_PAGESIZE) / 1024);
}

nb_params params(const char *model) {
    nb_params p{};
    p.model_path = model;
    p.n_slots    = 4;
    p.n_ctx_slot = 256;
    p.n_batch = p.n_ubatch = p.prefill_chunk = 64;
    p.n_threads = p.n_threads_batch = 1;
    p.flash_attn                    = NB_FA_AUTO;
    return p;
}

nb_engine *open_model(const char *model) {
    const nb_params p = params(model);
    nb_engine      *e = nullptr;
    CHECK(api->open(&p, nullptr, &e, err, sizeof err) == NB_OK, "%s", err);
    return e;
}

nb_request request(const std::string &prompt, int32_t max_tokens, float temperature, uint64_t seed, uint32_t flags = 0) {
    static std::set<std::string> kept; // a request points to its prompt
    const std::string           &p = *kept.insert(prompt).first;
    nb_request                   r{};
    r.prompt      = p.data();
    r.prompt_len  = static_cast<int64_t>(p.size());
    r.temperature = temperature;
    r.top_p       = 0.95f;
    r.seed        = seed;
    r.max_tokens  = max_tokens;
    r.flags       = flags;
    return r;
}

nb_result finish(nb_engine *e, int32_t slot) {
    nb_result out{};
    CHECK(api->wait(e, slot, INT32_MAX, -1, &out, err, sizeof err) == NB_OK, "%s", err);
    return out;
}

std::string answer(nb_engine *e, int32_t slot, const nb_request &r) {
    CHECK(api->submit(e, slot, &r, err, sizeof err) == NB_OK, "%s", err);
    const nb_result out = finish(e, slot);
    return std::string(out.text, out.text_len) + "#" + std::to_string(out.n_tokens);
}

void check_refusals(nb_engine *e) {
    const std::string long_prompt(4000, 'a');
    const struct {
        nb_request r;
        nb_status  want;
    } bad[] = {
        {request("", 5, 0, 1), NB_INVALID},
        {request("x", 0, 0, 1), NB_INVALID},
        {request("x", 5, -1, 1), NB_INVALID},
        {request("x", 5, NAN, 1), NB_INVALID},
        {request(long_prompt, 250, 0, 1), NB_CONTEXT},
        {request("x", 1 << 30, 0, 1), NB_CONTEXT},
    };
    for (const auto &b : bad) CHECK(api->submit(e, 0, &b.r, err, sizeof err) == b.want && err[0], "want %d: %s", b.want, err);
    nb_request r = request("x", 5, 0, 1);
    CHECK(api->submit(e, 9, &r, err, sizeof err) == NB_NOT_FOUND, "%s", err);
    CHECK(api->submit(nullptr, 0, &r, err, sizeof err) == NB_INVALID, "%s", err);
    r.top_p = 0;
    CHECK(api->submit(e, 0, &r, err, sizeof err) == NB_INVALID, "%s", err);
    const int32_t ids[] = {0, 1 << 29};
    r                   = request("", 5, 0, 1);
    r.prompt            = nullptr;
    r.tokens            = ids;
    r.prompt_len        = 2;
    CHECK(api->submit(e, 0, &r, err, sizeof err) == NB_INVALID, "%s", err);

    nb_engine      *none = nullptr;
    const nb_params p    = params("/nonexistent.gguf");
    CHECK(api->open(&p, nullptr, &none, err, sizeof err) == NB_MODEL && err[0], "%s", err);
}

// Every prefix that was visible along the way is whole UTF-8, stamps rise, and
// the phases do not exceed the request's time.
void check_stream(nb_engine *e) {
    const nb_request r = request("Tell me a story", 80, 0, 1, NB_REQ_IGNORE_EOS);
    CHECK(api->submit(e, 1, &r, err, sizeof err) == NB_OK, "%s", err);
    CHECK(api->submit(e, 1, &r, err, sizeof err) == NB_BUSY, "%s", err);
    int32_t   seen = 0;
    nb_result out{};
    do {
        const nb_status s = api->wait(e, 1, seen, 1000000, &out, err, sizeof err);
        CHECK(s == NB_OK || s == NB_TIMEOUT, "%s", err);
        for (int32_t i = std::max(seen, 1); i < out.n_tokens; i++) {
            CHECK(out.tokens[i].t_ns >= out.tokens[i - 1].t_ns && out.tokens[i].text_end >= out.tokens[i - 1].text_end,
                  "token %d", i);
        }
        seen = out.n_tokens;
    } while (out.finish == NB_RUNNING);
    CHECK(out.finish == NB_FINISH_LENGTH && out.n_tokens == 80, "finish %d after %d", out.finish, out.n_tokens);
    const int64_t sum = out.tokenize + out.queue + out.prefill + out.decode + out.sampling + out.detokenize;
    CHECK(sum > 0 && sum <= out.t_end - out.t_submit, "phases %ld of %ld ns", static_cast<long>(sum),
          static_cast<long>(out.t_end - out.t_submit));
}

// Logits are the same at any chunk border and whatever else runs, follow from
// the tokens alone, and leave the others' answers as they are.
void check_logits(nb_engine *e) {
    nb_info in{};
    CHECK(api->info(e, &in, err, sizeof err) == NB_OK, "%s", err);
    std::vector<int32_t> ids(200);
    for (size_t i = 0; i < ids.size(); i++) ids[i] = static_cast<int32_t>(i * 37 % 250);
    const auto rows = [&](int32_t slot, int32_t n, int32_t last) {
        std::vector<float> out(static_cast<size_t>(last) * in.n_vocab, NAN);
        CHECK(api->logits(e, slot, ids.data(), n, last, out.data(), static_cast<int64_t>(out.size()), err, sizeof err) == NB_OK,
              "%s", err);
        for (float x : out) CHECK(std::isfinite(x), "a logit of %d tokens is %g", n, static_cast<double>(x));
        return out;
    };
    const nb_request  busy  = request("Once upon a time", 100, 0.9f, 5, NB_REQ_IGNORE_EOS);
    const std::string alone = answer(e, 1, busy);
    CHECK(api->submit(e, 1, &busy, err, sizeof err) == NB_OK, "%s", err);
    const std::vector<float> many = rows(0, 200, 130); // over three chunks of 64
    for (int round = 0; round < 3; round++) CHECK(rows(0, 200, 130) == many, "logits did not repeat themselves");
    const nb_result   out  = finish(e, 1);
    const std::string seen = std::string(out.text, out.text_len) + "#" + std::to_string(out.n_tokens);
    // With llama.cpp a batch beside others may round its sums differently.
    if (std::string(in.arch) == "fake") CHECK(seen == alone, "logits beside a request changed its answer");

    double worst = 0, largest = 0;
    for (int32_t n : {71, 128, 199}) { // row of token n-1 of the long call, against a call that ends there
        const std::vector<float> one = rows(2, n, 1);
        for (int32_t i = 0; i < in.n_vocab; i++) {
            const float want = many[static_cast<size_t>(n - 1 - 70) * in.n_vocab + i];
            // The fake counts its answers, so that its last row differs at one place.
            if (std::string(in.arch) == "fake") continue;
            worst   = std::max(worst, static_cast<double>(std::fabs(one[i] - want)));
            largest = std::max(largest, static_cast<double>(std::fabs(want)));
        }
    }
    CHECK(worst <= 1e-2 * largest, "logits after a prefix differ by %g of %g from those of a longer call", worst, largest);

    float room[4];
    const struct {
        int32_t   slot, n, last;
        nb_status want;
    } bad[] = {
        {0, 0, 1, NB_INVALID}, {0, 5, 0, NB_INVALID}, {0, 5, 6, NB_INVALID}, {0, 5, 1, NB_INVALID}, {7, 5, 1, NB_NOT_FOUND}};
    for (const auto &b : bad) {
        const nb_status got = api->logits(e, b.slot, ids.data(), b.n, b.last, room, 4, err, sizeof err);
        CHECK(got == b.want && err[0], "want %d, got %d: %s", b.want, got, err);
    }
    std::vector<int32_t> longer(257, 1);
    std::vector<float>   one(in.n_vocab);
    CHECK(api->logits(e, 0, longer.data(), 257, 1, one.data(), in.n_vocab, err, sizeof err) == NB_CONTEXT, "%s", err);
    longer[1] = in.n_vocab;
    CHECK(api->logits(e, 0, longer.data(), 3, 1, one.data(), in.n_vocab, err, sizeof err) == NB_INVALID, "%s", err);
    CHECK(api->submit(e, 3, &busy, err, sizeof err) == NB_OK, "%s", err);
    CHECK(api->logits(e, 3, ids.data(), 5, 1, one.data(), in.n_vocab, err, sizeof err) == NB_BUSY, "%s", err);
    api->cancel(e, 3);
    finish(e, 3);
}

void check_requests(nb_engine *e, int requests) {
    // Alone, a seeded request repeats itself exactly.
    const nb_request  seeded = request("Once upon a time", 24, 0.9f, 1234);
    const std::string first  = answer(e, 2, seeded);
    for (int i = 0; i < 3; i++) CHECK(answer(e, i, seeded) == first, "a seeded request did not repeat itself");

    std::mt19937             rng(3);
    long                     settled = 0;
    std::vector<std::string> prompts = {"a", "The quick brown fox jumps over the lazy dog. ", std::string(150, 'x') + " y"};
    for (int done = 0; done < requests;) {
        for (int32_t slot = 0; slot < 4; slot++) {
            const nb_request r =
                request(prompts[rng() % 3], 1 + static_cast<int32_t>(rng() % 6), rng() % 2 ? 0.8f : 0, rng(), rng() % 2);
            CHECK(api->submit(e, slot, &r, err, sizeof err) == NB_OK, "%s", err);
            if (rng() % 8 == 0) api->cancel(e, slot);
        }
        for (int32_t slot = 0; slot < 4; slot++, done++) {
            const nb_result out = finish(e, slot);
            CHECK(out.finish == NB_FINISH_LENGTH || out.finish == NB_FINISH_STOP || out.finish == NB_FINISH_CANCELLED,
                  "finish %d", out.finish);
        }
        if (done >= requests / 2 && settled == 0) settled = rss_kib();
    }
    const long grown = rss_kib() - settled;
    CHECK(!kMemorySettles || grown < 2048, "resident memory grew by %ld KiB over the second half of %d requests", grown,
          requests);
    std::printf("%d requests: resident memory %+ld KiB over the second half\n", requests, grown);
}

// ---- the kernels: against the definition, token for token

long choices = 0, near_cut = 0;

// check_choice holds what was chosen from a row of logits against the definition:
// the token at which the running mass of the nucleus, in the order of ids, passes u.
void check_choice(std::vector<float> row, const std::vector<int32_t> &ends, const NbDraw &d, int32_t got) {
    const auto n = static_cast<int32_t>(row.size());
    choices++;
    CHECK(got >= 0 && got < n, "n=%d: token %d", n, got);
    if (d.flags & NB_DRAW_NO_END) {
        for (int32_t e : ends) row[e] = -INFINITY;
    }
    const int32_t best = nb::argmax(row.data(), n);
    if (d.temperature == 0 || !std::isfinite(row[best])) { // nothing to draw from is greedy too
        CHECK(got == best, "n=%d: greedy chose %d, not %d", n, got, best);
        return;
    }
    std::vector<int32_t> order(n);
    std::iota(order.begin(), order.end(), 0);
    for (float &x : row) x = std::isnan(x) ? -INFINITY : x;
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return row[a] > row[b]; });
    std::vector<double> p(n);
    double              total = 0, mass = 0;
    for (int32_t i = 0; i < n; i++) total += p[i] = std::exp((static_cast<double>(row[i]) - row[best]) / d.temperature);
    std::vector<char> in(n, 0);
    int32_t           keep = 0;
    while (keep < n && mass < static_cast<double>(d.top_p) * total) mass += p[order[keep]], in[order[keep++]] = 1;
    // How near u lies to the chosen token's borders.
    double       run   = 0;
    const double slack = 4e-6 * mass;
    bool         fits  = false;
    for (int32_t i = 0; i < n && !fits; i++) {
        if (!in[i]) continue;
        const double r0 = run;
        run += p[i];
        if (i == got) fits = d.u * mass >= r0 - slack && d.u * mass < run + slack;
        if (i > got) break;
    }
    if (!fits && !in[got]) { // a cut moved by rounding
        fits = p[got] >= p[order[std::max(keep - 1, 0)]] * 0.999;
        near_cut++;
    }
    CHECK(fits, "n=%d, t=%g, top_p=%g, u=%.9g: token %d of p=%g", n, static_cast<double>(d.temperature),
          static_cast<double>(d.top_p), d.u, got, p[got] / total);
}

std::unique_ptr<nb::Gpu> open_gpu(const std::string &dir, int32_t n, const std::vector<int32_t> &ends, int32_t rows) {
    std::string why;
    auto        gpu = dir.empty() ? nb::Gpu::on_host(n, ends, rows) : nb::Gpu::open(dir, 0, n, ends, rows, &why);
    if (!gpu) std::printf("nb-check: no choice of tokens on a GPU: %s\n", why.c_str());
    return gpu;
}

// Rows of special logits, each drawn from in many ways; more draws than a launch takes.
bool check_gpu_edges(const std::string &dir) {
    constexpr int32_t kSlice = NB_GPU_SLICE;
    for (const int32_t n : {1, 2, 37, kSlice - 1, kSlice, kSlice + 1, 9001}) {
        const std::vector<int32_t> ends{n - 1};
        std::vector<float>         logits;
        std::mt19937               rng(n);
        const auto                 row = [&](auto of) {
            for (int32_t i = 0; i < n; i++) logits.push_back(of(i));
        };
        row([](int32_t) { return 0.0f; });
        row([](int32_t) { return -INFINITY; });
        row([](int32_t) { return NAN; });
        row([&](int32_t i) { return i == n / 2 ? 1e30f : -1e30f; });
        row([&](int32_t i) { return i == n / 3 ? INFINITY : 1.0f; });
        row([](int32_t i) { return i % 2 ? -0.0f : 0.0f; });
        row([](int32_t i) { return i % 3 ? -INFINITY : 5.0f; });
        row([&](int32_t) { return static_cast<float>(rng() % 3); }); // ties on both sides of most cuts
        const auto          rows = static_cast<int32_t>(logits.size()) / n;
        std::vector<NbDraw> draws;
        for (int32_t r = 0; r < rows; r++) {
            const struct {
                double u;
                float  temperature, top_p;
            } ways[] = {{0, 0, 1},         {0, 1, 1},       {std::nextafter(1.0, 0.0), 1, 1},      {0.5, 1, 0.5f},
                        {0.7, 0.8f, 0.1f}, {0.3, 1, 1e-9f}, {std::nextafter(1.0, 0.0), 1, 0.999f}, {0.6, 1e-6f, 0.9f},
                        {0.4, 1e-40f, 1},  {0.2, 50, 0.3f}};
            for (const auto &w : ways) {
                const unsigned no_end = n > 1 ? draws.size() % 2 : 0;
                draws.push_back({w.u, w.temperature, w.top_p, r, no_end * NB_DRAW_NO_END});
            }
        }
        for (int32_t i = 0; draws.size() <= NB_GPU_DRAWS && n < 100; i++) draws.push_back(draws[i]);
        const auto gpu = open_gpu(dir, n, ends, static_cast<int32_t>(draws.size()));
        if (!gpu) return false;
        const std::vector<int32_t> got = gpu->choose_from(logits, draws);
        for (size_t i = 0; i < draws.size(); i++) {
            const long at = static_cast<long>(draws[i].row) * n;
            if (draws[i].temperature > 0 && draws[i].temperature < 1e-30f) draws[i].temperature = 0; // as good as
            check_choice({logits.begin() + at, logits.begin() + at + n}, ends, draws[i], got[i]);
        }
    }
    return true;
}

// dir: of the engine; "": the kernels on the host.
int check_gpu(const std::string &dir) {
    if (!check_gpu_edges(dir)) return 77;
    const int                       rounds = dir.empty() ? 14 : 120;
    std::mt19937                    rng(11);
    std::normal_distribution<float> normal;
    for (int round = 0; round < rounds; round++) {
        const int32_t              sizes[] = {1, 31, 1000, 32000, 50257, 51200, 128256};
        const int32_t              n = sizes[round % 7], rows = 1 + static_cast<int32_t>(rng() % (dir.empty() ? 4 : 64));
        const std::vector<int32_t> ends{n / 2, n - 1};
        const auto                 gpu = open_gpu(dir, n, ends, rows);
        if (!gpu) return 1;
        const float        spread[] = {0, 0.1f, 1, 4, 30}, temps[] = {0, 0.1f, 0.7f, 1, 2},
                           tops[] = {1e-6f, 0.5f, 0.9f, 0.95f, 0.9999f, 1};
        const float        sp     = spread[rng() % 5];
        std::vector<float> logits(static_cast<size_t>(n) * rows);
        for (float &x : logits) x = std::round(normal(rng) * sp * 64) / 64; // rounded: ties happen
        if (round % 9 == 0) logits[rng() % logits.size()] = -INFINITY;
        if (round % 11 == 0) logits[rng() % logits.size()] = NAN;
        std::vector<NbDraw> draws;
        for (int32_t r = 0; r < rows; r++) {
            draws.push_back({std::uniform_real_distribution<double>()(rng), temps[rng() % 5], tops[rng() % 6], r,
                             n > 2 ? static_cast<unsigned>(rng() % 2) : 0});
        }
        const std::vector<int32_t> got = gpu->choose_from(logits, draws);
        CHECK(gpu->choose_from(logits, draws) == got, "the same draws chose other tokens");
        for (int32_t r = 0; r < rows; r++) {
            const long at = static_cast<long>(r) * n;
            check_choice({logits.begin() + at, logits.begin() + at + n}, ends, draws[r], got[r]);
        }
    }
    std::printf("nb-check: ok: %ld choices of the kernels agree with the definition (%ld at a cut moved by rounding)\n", choices,
                near_cut);
    return 0;
}

} // namespace

// Operations are told of by an engine that was opened for it, and only then;
// what a profiler captures is begun and ended where there is CUDA.
void check_watch(nb_engine *unwatched, const char *model) {
    nb_ops             told{};
    std::vector<nb_op> rows(4096);
    int32_t            n    = 0;
    const auto         tell = [&](nb_engine *e, int32_t begin) {
        return api->ops(e, begin, &told, rows.data(), static_cast<int32_t>(rows.size()), &n, err, sizeof err);
    };
    CHECK(tell(unwatched, 0) == NB_INVALID && err[0], "%s", err);
    CHECK(api->ops(unwatched, 0, nullptr, nullptr, 0, &n, err, sizeof err) == NB_INVALID, "%s", err);
    for (int32_t begin : {1, 0}) {
        const nb_status s = api->profile(unwatched, begin, err, sizeof err);
        CHECK(s == NB_NOT_FOUND || s == NB_OK, "%s", err);
    }
    nb_params p  = params(model);
    p.watch      = NB_WATCH_OPS;
    nb_engine *e = nullptr;
    CHECK(api->open(&p, nullptr, &e, err, sizeof err) == NB_OK, "%s", err);
    answer(e, 0, request("one two three", 5, 0.8f, 1, NB_REQ_IGNORE_EOS));
    nb_info in{};
    CHECK(api->info(e, &in, err, sizeof err) == NB_OK, "%s", err);
    if (std::string(in.arch) == "fake") {
        CHECK(tell(e, 1) == NB_INVALID, "%s", err);
        api->close(e);
        return;
    }
    CHECK(tell(e, 1) == NB_OK && n == 0, "%s", err);
    for (int32_t slot = 0; slot < 3; slot++) answer(e, slot, request("one two three", 5, 0.8f, 1, NB_REQ_IGNORE_EOS));
    CHECK(tell(e, 0) == NB_OK && n > 20 && n < 4096, "%d rows: %s", n, err);
    CHECK(told.seen[0] == 12 && told.steps[0] == 6 && told.seen[1] == 3 && told.steps[1] == 2, "%d of %d, %d of %d",
          told.steps[0], told.seen[0], told.steps[1], told.seen[1]);
    CHECK(told.empty_ns > 0 && told.flop_rate > 0, "%lld ns", static_cast<long long>(told.empty_ns));
    int64_t sum[2] = {0, 0};
    for (int32_t i = 0; i < n; i++) {
        CHECK(rows[i].op[0] && rows[i].name[0] && rows[i].written > 0 && rows[i].count > 0, "row %d", i);
        sum[rows[i].prompt] += rows[i].ns;
    }
    for (int kind : {0, 1}) CHECK(sum[kind] > 0 && sum[kind] <= told.step_ns[kind], "kind %d", kind);
    api->close(e);
}

int main(int argc, char **argv) {
    if (argc >= 2 && std::string(argv[1]) == "--gpu") return check_gpu(argc > 2 ? argv[2] : "");
    std::setvbuf(stdout, nullptr, _IOLBF, 0);
    if (argc < 3) {
        std::printf("usage: nb-check LIBRARY MODEL [OPENS [REQUESTS]]\n");
        return 2;
    }
    const int opens    = argc > 3 ? std::atoi(argv[3]) : 20;
    const int requests = argc > 4 ? std::atoi(argv[4]) : 200;
    check_sampler();
    std::printf("sampler: agrees with sorting\n");
    check_passes();
    std::printf("passes: divided and filled as they should be\n");

    void *lib = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
    CHECK(lib, "%s", dlerror());
    const auto get = reinterpret_cast<const nb_api *(*)(uint32_t)>(dlsym(lib, "nb_get_api"));
    CHECK(get && get(NB_ABI) && !get(NB_ABI + 1), "nb_get_api");
    api = get(NB_ABI);

    long settled = 0;
    for (int i = 0; i < opens; i++) {
        nb_engine *e = open_model(argv[2]);
        if (i % 10 == 0) answer(e, 0, request("hello", 2, 0, 1));
        api->close(e);
        if (i + 1 == (opens + 1) / 2) settled = rss_kib();
    }
    api->close(nullptr);
    const long grown = rss_kib() - settled;
    CHECK(!kMemorySettles || opens < 50 || grown < 4096, "resident memory grew by %ld KiB over the second half of %d opens",
          grown, opens);
    std::printf("%d open/close: resident memory %+ld KiB over the second half\n", opens, grown);

    nb_engine *e = open_model(argv[2]);
    check_refusals(e);
    check_stream(e);
    check_logits(e);
    check_watch(e, argv[2]);
    check_requests(e, requests);

    // Closing with requests under way cancels them.
    const nb_request r = request("hello", 200, 0, 1, NB_REQ_IGNORE_EOS);
    for (int32_t slot = 0; slot < 4; slot++) CHECK(api->submit(e, slot, &r, err, sizeof err) == NB_OK, "%s", err);
    api->close(e);
    std::printf("engine: ok (%s)\n", api->engine);
    return 0;
}
