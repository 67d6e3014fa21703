#include "load.h"

#include <dlfcn.h>
#include <stdio.h>

const nb_api *nb_load(const char *path, char *err, size_t errlen) {
    void *lib = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!lib) {
        snprintf(err, errlen, "%s", dlerror());
        return NULL;
    }
    const nb_api *(*get)(uint32_t) = (const nb_api *(*)(uint32_t))dlsym(lib, "nb_get_api");
    if (!get) {
        snprintf(err, errlen, "it has no nb_get_api: not an engine library of nativebench");
        return NULL;
    }
    const nb_api *api = get(NB_ABI);
    if (!api || api->size != sizeof(nb_api)) {
        snprintf(err, errlen, "it speaks another version of the engine ABI than %d", NB_ABI);
        return NULL;
    }
    return api;
}
