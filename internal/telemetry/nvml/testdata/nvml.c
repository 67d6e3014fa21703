// A library with the functions of NVML that nativebench uses, for tests of the
// binding itself: of a driver of 2017, or with -DNEWER one of 2023. Signatures:
// https://docs.nvidia.com/deploy/nvml-api/
#include <stdio.h>
#include <unistd.h>

typedef int ret;
typedef void *device;
typedef unsigned int u32;
typedef unsigned long long u64;

ret nvmlInit_v2(void) { return 0; }
ret nvmlShutdown(void) { return 0; }
const char *nvmlErrorString(ret r) { return r == 3 ? "Not Supported" : "Other"; }
ret nvmlSystemGetDriverVersion(char *s, u32 n) { return snprintf(s, n, "384.81"), 0; }
ret nvmlSystemGetNVMLVersion(char *s, u32 n) { return snprintf(s, n, "9.384.81"), 0; }
ret nvmlSystemGetCudaDriverVersion(int *v) { return *v = 9000, 0; }
ret nvmlDeviceGetCount_v2(u32 *n) { return *n = 1, 0; }
ret nvmlDeviceGetHandleByIndex_v2(u32 i, device *d) { return *d = (device)(u64)(i + 1), 0; }
ret nvmlDeviceGetName(device d, char *s, u32 n) { return snprintf(s, n, "Tesla V100"), 0; }
ret nvmlDeviceGetUUID(device d, char *s, u32 n) { return snprintf(s, n, "GPU-1234"), 0; }
ret nvmlDeviceGetMemoryInfo(device d, u64 m[3]) { return m[0] = 16ull << 30, m[1] = 10ull << 30, m[2] = 6ull << 30, 0; }
ret nvmlDeviceGetTotalEnergyConsumption(device d, u64 *mj) { return *mj = 123456, 0; }
ret nvmlDeviceGetPowerUsage(device d, u32 *mw) { return *mw = 150000, 0; }
ret nvmlDeviceGetEnforcedPowerLimit(device d, u32 *mw) { return *mw = 300000, 0; }
ret nvmlDeviceGetClockInfo(device d, u32 kind, u32 *mhz) { return *mhz = kind == 1 ? 1380 : 877, 0; }
ret nvmlDeviceGetTemperature(device d, u32 sensor, u32 *c) { return *c = 44, 0; }
ret nvmlDeviceGetTemperatureThreshold(device d, u32 which, u32 *c) { return *c = 87, 0; }
ret nvmlDeviceGetCurrentClocksThrottleReasons(device d, u64 *mask) { return *mask = 4, 0; }
ret nvmlDeviceGetUtilizationRates(device d, u32 u[2]) { return u[0] = 75, u[1] = 25, 0; }
ret nvmlDeviceGetPersistenceMode(device d, u32 *on) { return *on = 1, 0; }
ret nvmlDeviceGetEccMode(device d, u32 *now, u32 *next) { return *now = *next = 1, 0; }
ret nvmlDeviceGetPcieThroughput(device d, u32 kind, u32 *kb) { return *kb = kind == 0 ? 2000 : 5000, 0; }

// fill puts the same two processes into an array of any version of the struct.
static ret fill(u32 *n, char *infos, unsigned long size) {
    if (*n < 2) return *n = 2, 7; // insufficient size
    *n = 2;
    *(u32 *)infos = (u32)getpid();
    *(u64 *)(infos + 8) = 3ull << 30;
    *(u32 *)(infos + size) = 1;
    *(u64 *)(infos + size + 8) = 1ull << 30;
    return 0;
}

#ifndef NEWER
ret nvmlDeviceGetComputeRunningProcesses(device d, u32 *n, void *infos) { return fill(n, infos, 16); }
#else
ret nvmlDeviceGetComputeRunningProcesses_v2(device d, u32 *n, void *infos) { return fill(n, infos, 24); }
ret nvmlDeviceGetComputeRunningProcesses_v3(device d, u32 *n, void *infos) { return fill(n, infos, 24); }
ret nvmlDeviceGetCurrentClocksEventReasons(device d, u64 *mask) { return *mask = 8, 0; }
ret nvmlDeviceGetMigMode(device d, u32 *now, u32 *next) { return *now = *next = 0, 0; }

struct memory {
    u32 version;
    u64 total, reserved, free, used;
};
ret nvmlDeviceGetMemoryInfo_v2(device d, struct memory *m) {
    if (m->version != (sizeof *m | 2u << 24)) return 25; // version mismatch
    return m->total = 16ull << 30, m->used = 5ull << 30, 0;
}

struct field {
    u32 id, scope;
    long long at, latency;
    u32 type;
    ret result;
    union {
        u32 ui;
        u64 ull;
    } value;
};
ret nvmlDeviceGetFieldValues(device d, int n, struct field *f) {
    for (int i = 0; i < n; i++) {
        f[i].result = 0;
        switch (f[i].id) {
        case 186: f[i].type = 1, f[i].value.ui = 160000; break;
        case 197: f[i].type = 3, f[i].value.ull = 7ull << 40; break;
        case 198: f[i].type = 3, f[i].value.ull = 9ull << 40; break;
        default: f[i].result = 3;
        }
    }
    return 0;
}
#endif
