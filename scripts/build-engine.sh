#!/usr/bin/env bash
# build-engine.sh [--sanitize address|thread] [--print-dir]
#
# Builds the engine into a cache outside the checkout and prints its folder:
# libnb.so (csrc over llama.cpp), the CPU backend plugin, llama-server,
# llama-bench, llama-batched-bench, llama-quantize, real vocabularies (vocab/)
# and llama.cpp's converter (convert/). What is there already is used again.
#
#   NATIVEBENCH_CACHE       the cache; default $XDG_CACHE_HOME/nativebench or ~/.cache/nativebench
#   NATIVEBENCH_LLAMA_SRC   a llama.cpp source folder or git bundle to use instead of fetching one
#   NATIVEBENCH_CUDA        1: with the CUDA plugin, 0: without; default: with it if nvcc is there
#   NATIVEBENCH_CUDA_ARCHS  compute capabilities, as "80;90"; default: those of this machine's GPUs, or 80;86;89;90
#   NATIVEBENCH_CPU         native (default: this machine's instruction set) or all (every variant, picked at run time)
#
# Needs: a C++17 compiler, cmake, make or ninja, git; and for the source either
# curl (release archive) or npm (a package that carries the same release).
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/llama-pin.sh
. scripts/llama-pin.sh

cache=${NATIVEBENCH_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/nativebench}
log() { echo "build-engine: $*" >&2; }
die() {
    log "$*"
    exit 1
}

sanitize='' print_dir=''
while [ $# -gt 0 ]; do
    case $1 in
        --sanitize) sanitize=${2:?--sanitize needs address or thread} && shift 2 ;;
        --print-dir) print_dir=1 && shift ;;
        *) die "unknown argument $1" ;;
    esac
done

# GGML_NATIVE cannot be combined with backend plugins, so this machine's
# instruction set is spelled out.
cpu_flags() {
    if [ "${NATIVEBENCH_CPU:-native}" = all ] || [ "$(uname -m)" != x86_64 ]; then
        echo -DGGML_CPU_ALL_VARIANTS=ON
        return
    fi
    local have pair
    have=" $(grep -m1 '^flags' /proc/cpuinfo) "
    for pair in sse4_2:SSE42 avx:AVX avx2:AVX2 bmi2:BMI2 fma:FMA f16c:F16C avx_vnni:AVX_VNNI avx512f:AVX512 \
        avx512vbmi:AVX512_VBMI avx512_vnni:AVX512_VNNI avx512_bf16:AVX512_BF16 \
        amx_tile:AMX_TILE amx_int8:AMX_INT8 amx_bf16:AMX_BF16; do
        case $have in
            *" ${pair%%:*} "*) echo "-DGGML_${pair##*:}=ON" ;;
            *) echo "-DGGML_${pair##*:}=OFF" ;;
        esac
    done
}

# The CUDA plugin: which compiler, and for which cards.
nvcc='' archs=''
if [ "${NATIVEBENCH_CUDA:-}" != 0 ]; then
    nvcc=$(command -v nvcc || command -v /usr/local/cuda/bin/nvcc || true)
    if [ -z "$nvcc" ] && [ "${NATIVEBENCH_CUDA:-}" = 1 ]; then
        die "NATIVEBENCH_CUDA=1, but there is no nvcc: install the CUDA toolkit (11.8 or later), or leave the CUDA plugin out"
    fi
fi
if [ -n "$nvcc" ]; then
    archs=${NATIVEBENCH_CUDA_ARCHS:-$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | tr -d . | sort -u | paste -sd ';' || true)}
    archs=${archs:-80;86;89;90}
fi

mapfile -t cpu < <(cpu_flags)
flags=(-DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON -DCMAKE_BUILD_RPATH_USE_ORIGIN=ON -DGGML_BACKEND_DL=ON -DGGML_NATIVE=OFF "${cpu[@]}"
    -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_TOOLS=ON -DLLAMA_BUILD_SERVER=ON
    -DLLAMA_BUILD_APP=OFF -DLLAMA_BUILD_IS_DEV=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF "-DLLAMA_BUILD_COMMIT=${LLAMA_COMMIT:0:9}")
if [ -n "$nvcc" ]; then
    flags+=(-DGGML_CUDA=ON "-DCMAKE_CUDA_COMPILER=$nvcc" "-DCMAKE_CUDA_ARCHITECTURES=$archs")
fi
targets=(llama ggml llama-server llama-bench llama-batched-bench llama-quantize)
cxx=${CXX:-c++}
command -v "$cxx" >/dev/null || die "no C++ compiler ($cxx): install one, on Debian or Ubuntu: apt-get install g++ cmake git"
compiler=$("$cxx" --version | head -n 1)${nvcc:+, nvcc $("$nvcc" --version | sed -n 's/.*, V//p')}

key=$(printf '%s\n' "$LLAMA_TREE" "$compiler" "${flags[@]}" "${targets[@]}" | sha256sum | cut -c1-12)
hash=$(scripts/source-hash.sh)
src=$cache/llama.cpp-$LLAMA_TAG
llama=$cache/llama-$LLAMA_TAG-$key
engine=$cache/engine-$key-${hash:0:12}${sanitize:+-$sanitize}
if [ -n "$print_dir" ]; then
    echo "$engine"
    exit
fi
if [ -e "$engine/complete" ]; then
    echo "$engine"
    exit
fi
mkdir -p "$cache"
exec 9>"$cache/build.lock"
flock 9 # two builds at once would do the same work twice
if [ -e "$engine/complete" ]; then # the other one did it
    echo "$engine"
    exit
fi

# tree_of FOLDER: the git tree hash of the files in it.
tree_of() {
    local git
    git=$(mktemp -d)
    GIT_DIR=$git git init -q
    GIT_DIR=$git GIT_WORK_TREE=$1 git -c core.autocrlf=false add -Af . 2>/dev/null
    GIT_DIR=$git git write-tree
    rm -rf "$git"
}

# fetch FOLDER: puts the source there, from the first place that has it.
fetch() {
    local to=$1 tmp
    tmp=$(mktemp -d "$cache/fetch.XXXXXX")
    why=''
    if [ -n "${NATIVEBENCH_LLAMA_SRC:-}" ]; then
        if [ -d "$NATIVEBENCH_LLAMA_SRC" ]; then
            mkdir "$to" && tar -C "$NATIVEBENCH_LLAMA_SRC" --exclude=./.git -cf - . | tar -C "$to" -xf -
        else
            git clone -q -c advice.detachedHead=false "$NATIVEBENCH_LLAMA_SRC" "$to" && rm -rf "$to/.git"
        fi
    elif curl -fsSL --connect-timeout 10 --max-time 600 -o "$tmp/llama.tar.gz" \
        "https://github.com/ggml-org/llama.cpp/archive/refs/tags/$LLAMA_TAG.tar.gz" 2>"$tmp/curl.err"; then
        mkdir "$to" && tar -C "$to" --strip-components=1 -xzf "$tmp/llama.tar.gz"
    elif (cd "$tmp" && npm pack --silent "$LLAMA_NPM" >/dev/null 2>npm.err); then
        tar -C "$tmp" -xzf "$tmp"/*.tgz package/llama/gitRelease.bundle
        git clone -q -c advice.detachedHead=false "$tmp/package/llama/gitRelease.bundle" "$to" && rm -rf "$to/.git"
    fi
    why=$(cat "$tmp"/*.err 2>/dev/null | tail -n 4 | tr '\n' ' ')
    rm -rf "$tmp"
    [ -d "$to" ]
}

for tool in git cmake tar sha256sum; do
    command -v $tool >/dev/null || die "$tool is missing: on Debian or Ubuntu: apt-get install g++ cmake git"
done
generator=(-G "Unix Makefiles")
command -v ninja >/dev/null && generator=(-G Ninja)

if [ ! -d "$src" ]; then
    log "fetching llama.cpp $LLAMA_TAG"
    part=$src.part.$$
    fetch "$part" || die "llama.cpp $LLAMA_TAG could not be had: neither its release archive (by curl) nor the npm package $LLAMA_NPM (by npm): $why Set NATIVEBENCH_LLAMA_SRC to a source folder or git bundle of that release."
    got=$(tree_of "$part")
    if [ "$got" != "$LLAMA_TREE" ]; then
        rm -rf "$part"
        die "the fetched source is not llama.cpp $LLAMA_TAG: its git tree is $got, expected $LLAMA_TREE. Nothing was built."
    fi
    mv "$part" "$src"
fi

if [ ! -e "$llama/complete" ]; then
    work=$cache/build-$key
    log "building llama.cpp $LLAMA_TAG (once; about 4 minutes on 2 cores${nvcc:+, 30 with CUDA}), log: $work.log"
    if ! { cmake -S "$src" -B "$work" "${generator[@]}" "${flags[@]}" &&
        cmake --build "$work" --parallel "$(nproc)" --target "${targets[@]}"; } >"$work.log" 2>&1; then
        tail -n 20 "$work.log" >&2
        die "llama.cpp did not build; the whole log is $work.log"
    fi
    rm -rf "$llama"
    mkdir -p "$llama/vocab"
    cp -a "$work"/bin/. "$llama/"
    cp "$src"/models/ggml-vocab-*.gguf* "$llama/vocab/"
    printf '%s\n' "$compiler" "${flags[@]}" >"$llama/flags.txt"
    touch "$llama/complete"
    rm -rf "$work" "$work.log"
fi

# The engine's folder: our library, and beside it everything of llama.cpp's.
rm -rf "$engine" "$engine.part"
mkdir -p "$engine.part"
ln -s "$llama"/* "$engine.part/"
rm "$engine.part/complete"
mkdir -p "$engine.part/convert/gguf-py"
cp -R "$src/convert_hf_to_gguf.py" "$src/conversion" "$src/LICENSE" "$engine.part/convert/"
cp -R "$src/gguf-py/gguf" "$engine.part/convert/gguf-py/"
find "$engine.part/convert" -name __pycache__ -prune -exec rm -rf {} +
build="$compiler${archs:+ for $archs}; $(printf '%s ' "${cpu[@]}" | tr ' ' '\n' | sed -n 's/-DGGML_\(.*\)=ON/\1/p' | tr '\n' ' ')"
opts=(-std=c++17 -fPIC -shared -fvisibility=hidden -Wall -Wextra -O3 "-DNB_SOURCE_HASH=\"$hash\"" "-DNB_BUILD=\"${build% }\"")
case $sanitize in
    address) opts+=(-O1 -g -fsanitize=address -fsanitize=undefined -fno-sanitize-recover=undefined -DNB_NO_CLONES) ;;
    thread) opts+=(-O1 -g -fsanitize=thread -DNB_NO_CLONES) ;;
esac
ours=(csrc/api.cpp csrc/loop.cpp csrc/nvtx.cpp csrc/sampler.cpp)
# shellcheck disable=SC2016 # $ORIGIN is for the dynamic loader
"$cxx" "${opts[@]}" "-DNB_ENGINE=\"llama.cpp $LLAMA_TAG\"" -I"$src/include" -I"$src/ggml/include" -I"$src/ggml/src" -I"$src/src" \
    csrc/nb.cpp csrc/ops.cpp csrc/gpu.cpp csrc/gpu_host.cpp "${ours[@]}" -L"$llama" -lllama -lggml -lggml-base -pthread '-Wl,-rpath,$ORIGIN' -o "$engine.part/libnb.so"
if [ -n "$nvcc" ]; then # kernels for each card, and code that newer ones translate
    cards=("-gencode=arch=compute_${archs%%;*},code=compute_${archs%%;*}")
    IFS=';' read -ra list <<<"$archs"
    for arch in "${list[@]}"; do cards+=("-gencode=arch=compute_$arch,code=sm_$arch"); done
    "$nvcc" -std=c++17 -O3 -lineinfo -fatbin "${cards[@]}" csrc/gpu_sampler.cu -o "$engine.part/nb-gpu.fatbin"
fi
mkdir "$engine.part/fake"
"$cxx" "${opts[@]}" csrc/fake.cpp "${ours[@]}" -pthread -o "$engine.part/fake/libnb.so"
"$cxx" -std=c++17 -Wall -Wextra -O2 -g ${sanitize:+-fsanitize=$([ "$sanitize" = address ] && echo address,undefined || echo thread)} \
    csrc/check.cpp csrc/gpu.cpp csrc/gpu_host.cpp csrc/loop.cpp csrc/nvtx.cpp csrc/sampler.cpp -ldl -pthread -o "$engine.part/nb-check"
touch "$engine.part/complete"
mv "$engine.part" "$engine"
echo "$engine"
