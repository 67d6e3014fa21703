// NVTX is an agreement, not a library: a tool names one of its own in an
// environment variable, the program opens it and hands it tables of slots for
// functions, and the tool fills those that it wants to be told of. Only the
// program's side of it is here, and of the functions only what is used.
// (nvtxTypes.h of NVTX 3; the tables and their numbers are frozen.)
#include "nvtx.h"

#include <cstddef>
#include <cstdlib>

#include <dlfcn.h>

namespace nb {
namespace {

using Slot = void (*)();

constexpr uint32_t kModules = 7, kCore = 1, kCallbacks = 1, kVersionInfo = 3, kVersion = 3;
constexpr uint32_t kSize[kModules] = {0, 16, 9, 15, 7, 16, 7};                     // slots of each module, 0 among them
constexpr uint32_t kRangeStart = 5, kRangeEnd = 7, kRangePush = 9, kRangePop = 11; // of kCore, for char

Slot  slots[kModules][17];
Slot *tables[kModules][17];

int module_table(uint32_t module, Slot ***table, unsigned *size) {
    if (module == 0 || module >= kModules) return 0;
    if (size) *size = kSize[module];
    if (table) *table = tables[module];
    return 1;
}
void tool_version(uint32_t) {}

const void *export_table(uint32_t id) {
    static const struct {
        size_t size;
        int (*module_table)(uint32_t, Slot ***, unsigned *);
    } callbacks = {sizeof callbacks, module_table};
    static const struct {
        size_t   size;
        uint32_t version, reserved;
        void (*tool_version)(uint32_t);
    } info = {sizeof info, kVersion, 0, tool_version};
    return id == kCallbacks ? static_cast<const void *>(&callbacks) : id == kVersionInfo ? &info : nullptr;
}

struct Tool {
    int (*push)(const char *)       = nullptr;
    int (*pop)()                    = nullptr;
    uint64_t (*start)(const char *) = nullptr;
    void (*end)(uint64_t)           = nullptr;

    Tool() {
        using Init = int (*)(const void *(*)(uint32_t));
        void *init = dlsym(RTLD_DEFAULT, "InitializeInjectionNvtx2Preinject");
        if (const char *path = std::getenv("NVTX_INJECTION64_PATH")) {
            if (void *lib = dlopen(path, RTLD_LAZY)) init = dlsym(lib, "InitializeInjectionNvtx2");
        }
        if (!init) return;
        for (uint32_t m = 1; m < kModules; m++) {
            for (uint32_t i = 1; i < kSize[m]; i++) tables[m][i] = &slots[m][i];
        }
        if (!reinterpret_cast<Init>(init)(export_table)) return;
        push  = reinterpret_cast<decltype(push)>(slots[kCore][kRangePush]);
        pop   = reinterpret_cast<decltype(pop)>(slots[kCore][kRangePop]);
        start = reinterpret_cast<decltype(start)>(slots[kCore][kRangeStart]);
        end   = reinterpret_cast<decltype(end)>(slots[kCore][kRangeEnd]);
    }
};

const Tool &tool() {
    static const Tool t;
    return t;
}

} // namespace

Range::Range(const char *name) {
    if (const Tool &t = tool(); t.push) t.push(name);
}
Range::~Range() {
    if (const Tool &t = tool(); t.pop) t.pop();
}
uint64_t range_start(const char *name) {
    const Tool &t = tool();
    return t.start ? t.start(name) : 0;
}
void range_end(uint64_t id) {
    if (const Tool &t = tool(); t.end && id != 0) t.end(id);
}

} // namespace nb
