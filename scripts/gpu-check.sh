#!/usr/bin/env bash
# gpu-check.sh [--build]: checks nativebench on this machine's NVIDIA GPU, line by
# line: PASS, FAIL or SKIP with the reason, and the number behind it. Exit status
# 0: nothing failed, 1: something did, 2: there is nothing to check with.
#
# --build makes what it needs in bin/check, for machines without Go: copy the
# checkout with bin/check and the engine's directory there, and run the script.
#
#   TIME_BUDGET  seconds for all of it; what it has no time for is skipped (3600)
#   MODELS       whose speed is checked ("gpt2 phi-2 llama-2-7b-chat mistral-7b-instruct")
#   PARTS        lines to check, by their first number or whole ("1 2 3 4 5 6 7"; "1.5 2")
#   PAIRS        pairs of processes a speed is the median of, at least 3 (5)
#   CYCLES_MODEL GGUF file of the leak check; without it a small one is written
#   OUT          directory of logs and runs (gpu-check-TIME)
#   NATIVEBENCH_ENGINE_DIR  the engine with its CUDA plugin (bin/engine)
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2

root=$PWD
bin=${BIN:-$root/bin/check}
# die WORDS: there is nothing to check with.
die() {
    echo "gpu-check: $*" >&2
    exit 2
}

if [ "${1:-}" = --build ]; then
    go=${GO:-go}
    command -v "$go" >/dev/null || die "--build needs Go: install it, or run it where it is and copy bin/check"
    mkdir -p "$bin"
    # As in the Makefile.
    export CGO_CFLAGS=${CGO_CFLAGS:--g -O2 -Wno-deprecated-declarations} CGO_LDFLAGS=${CGO_LDFLAGS:--g -O2 -Wl,-z,lazy}
    set -e
    "$go" build -o "$bin/nativebench" ./cmd/nativebench
    "$go" build -o "$bin/speed" ./scripts/speed
    "$go" test -c -o "$bin/nvml.test" ./internal/telemetry/nvml
    "$go" test -c -o "$bin/nativebench.test" ./cmd/nativebench
    echo "built in $bin: nativebench speed nvml.test nativebench.test"
    exit
fi
[ $# = 0 ] || die "it takes --build or nothing, but was given $1; settings are environment variables, see its first lines"

compgen -G "${GPU_DEVICES:-/dev/nvidia[0-9]*}" >/dev/null ||
    die "no NVIDIA GPU here (no ${GPU_DEVICES:-/dev/nvidia[0-9]*}): nothing was checked; a container needs --gpus all"
for tool in nativebench speed nvml.test nativebench.test; do
    [ -x "$bin/$tool" ] || die "$bin/$tool is missing: run scripts/gpu-check.sh --build, here or where Go is, and copy bin/check"
done
export NATIVEBENCH_ENGINE_DIR=${NATIVEBENCH_ENGINE_DIR:-$(readlink -f bin/engine 2>/dev/null || true)}
engine=$NATIVEBENCH_ENGINE_DIR
[ -e "$engine/libnb.so" ] || die "there is no engine in \"$engine\": run make engine, or set NATIVEBENCH_ENGINE_DIR"

budget=${TIME_BUDGET:-3600}
pairs=${PAIRS:-5}
parts=${PARTS:-1 2 3 4 5 6 7}
models=${MODELS:-gpt2 phi-2 llama-2-7b-chat mistral-7b-instruct}
for n in "$budget" "$pairs"; do
    [[ $n =~ ^[0-9]+$ ]] || die "TIME_BUDGET and PAIRS are whole numbers, not \"$n\""
done
[ "$pairs" -ge 3 ] || die "PAIRS is $pairs: fewer than 3 pairs say nothing"
out=${OUT:-gpu-check-$(date -u +%Y%m%d-%H%M%S)}
mkdir -p "$out" || die "OUT $out cannot be made"
out=$(cd "$out" && pwd)
export XDG_CACHE_HOME=${XDG_CACHE_HOME:-$HOME/.cache}

passed=0 failed=0 skipped=0
# line ID VERDICT WHAT NUMBER-OR-REASON
line() {
    case $2 in
    PASS) passed=$((passed + 1)) ;;
    FAIL) failed=$((failed + 1)) ;;
    SKIP) skipped=$((skipped + 1)) ;;
    esac
    printf '%-4s  %-5s %s: %s\n' "$2" "$1" "$3" "$4" | tee -a "$out/summary.txt"
}

left() { echo $((budget > SECONDS ? budget - SECONDS : 0)); }

# time_for ID WHAT SECONDS: whether it is wanted and the budget has room for it;
# else it says so.
time_for() {
    if [[ " $parts " != *" ${1%%.*} "* && " $parts " != *" $1 "* ]]; then
        line "$1" SKIP "$2" "PARTS leaves it out"
        return 1
    fi
    [ "$(left)" -ge "$3" ] && return 0
    line "$1" SKIP "$2" "TIME_BUDGET leaves $(left) s, it needs about $3"
    return 1
}

# pause SECONDS: without a process that would outlive this one.
pause() { read -rt "$1" <> <(:) || true; }

# descendants PID: all processes that descend from it, in whatever session.
descendants() {
    cat /proc/[0-9]*/stat 2>/dev/null | sed -n 's/^\([0-9]*\) (.*) [A-Z] \([0-9]*\) .*/\1 \2/p' | awk -v root="$1" '
        { parent[$1] = $2 }
        END { for (p in parent) { for (q = parent[p]; q != root && q > 1; q = parent[q]); if (q == root) print p } }'
}

# interrupted ends with all that this shell has started: what is in the background
# does not heed Ctrl-C.
interrupted() {
    local me=$BASHPID
    trap '' INT TERM
    # shellcheck disable=SC2046 # they are numbers
    kill -KILL $(descendants "$me") 2>/dev/null
    exit 130
}
trap interrupted INT TERM

# end_at PID SECONDS MARK: then makes the file MARK, asks the process to stop, and
# kills what is left of its tree 20 s later or when it has ended: a profiler's cell
# must not live on beside the next part.
end_at() {
    local all tries=${GRACE:-20}
    pause "$2"
    touch "$3"
    all=$(descendants "$1")
    kill -TERM "$1"
    while kill -0 "$1" && [ "$tries" -gt 0 ]; do
        pause 1
        tries=$((tries - 1))
        all="$all $(descendants "$1")"
    done
    # shellcheck disable=SC2086 # they are numbers
    kill -KILL "$1" $all
}

# logged LOG COMMAND …: runs it within what is left of the budget, at least a
# second; status 124 where that ended it.
logged() {
    local log=$out/$1 late=$out/late pid watch limit status
    shift
    limit=$(left)
    rm -f "$late"
    trap interrupted INT TERM # a subshell has not inherited it
    {
        "$@" >"$log" 2>&1 &
        pid=$!
        end_at "$pid" $((limit > 0 ? limit : 1)) "$late" &
        watch=$!
        wait "$pid"
        status=$?
        [ -e "$late" ] || kill "$watch"
        wait "$watch"
    } 2>/dev/null # the shell tells of a kill
    if [ -e "$late" ]; then
        rm -f "$late"
        status=124
    fi
    return "$status"
}

last_words() { grep -v '^\(FAIL\|PASS\|--- .*\)\?$' "$out/$1" | tail -n 1 | sed 's/^ *//' | cut -c1-200; }

# wrong ID WHAT LOG STATUS: FAIL, or SKIP where the time ended.
wrong() {
    if [ "$4" = 124 ] || [ "$4" = 137 ]; then
        line "$1" SKIP "$2" "TIME_BUDGET ended while it ran"
    else
        line "$1" FAIL "$2" "status $4, $(last_words "$3") (log: $out/$3)"
    fi
}

# numbers KEY FILE: the values of a key in indented JSON, one a line; -1 is none.
numbers() { grep -o "\"$1\": *-\?[0-9.eE+-]*" "$2" | sed 's/.*: *//' | grep -vx -e -1; }

# largest: of the absolute values on stdin; nothing if there are none.
largest() { awk '{ v = $1 < 0 ? -$1 : $1; if (NR == 1 || v > m) m = v } END { if (NR) print m }'; }

# at_most X LIMIT, for decimals.
at_most() { awk -v x="$1" -v y="$2" 'BEGIN { exit !(x <= y) }'; }

echo "nativebench on an NVIDIA GPU, $(date -u +%FT%TZ), $("$bin/nativebench" --version | head -n 1)"
echo "engine $engine; logs in $out; budget $budget s"
nvidia-smi -L 2>/dev/null || true
echo

# ── 1. The engine on CUDA
plugin=$(compgen -G "$engine/libggml-cuda*.so" | head -n 1 || true)
if [ -n "$plugin" ]; then
    line 1.1 PASS "CUDA plugin" "$(basename "$plugin"), $(du -hL "$plugin" | cut -f1)"
else
    line 1.1 FAIL "CUDA plugin" "none in $engine: build the engine where nvcc is (make engine)"
fi
if time_for 1.2 "sampling on the GPU against the CPU's, by distribution" 60; then
    logged sampler.log "$engine/nb-check" --gpu "$engine"
    status=$?
    if [ $status = 0 ]; then
        line 1.2 PASS "sampling on the GPU against the CPU's, by distribution" "$(last_words sampler.log)"
    else
        wrong 1.2 "sampling on the GPU against the CPU's, by distribution" sampler.log $status
    fi
fi

if time_for 3.1 "NVML tells of this GPU" 60; then
    (cd internal/telemetry/nvml 2>/dev/null || cd "$out" && NATIVEBENCH_TEST_GPU=1 NATIVEBENCH_TEST_CUDA_PROGRAM="$engine/nb-check --gpu $engine" logged nvml.log "$bin/nvml.test" -test.v -test.count=1 -test.run RealGPU)
    status=$?
    if [ $status = 0 ] && grep -q -- '--- PASS' "$out/nvml.log"; then
        line 3.1 PASS "NVML tells of this GPU" "$(grep -o '[0-9]* rounds in 3 s.*' "$out/nvml.log" | head -n 1)"
    else
        wrong 3.1 "NVML tells of this GPU" nvml.log $status
    fi
fi

# ── A run of compare, on which 2. and 3. look
run=$out/compare report=$out/compare.json
if time_for 1.3 "whole model on the GPU" 60; then
    logged compare.log "$bin/nativebench" compare --model gpt2 --weights synthetic --backends native,llama-server --task chat --mode stream --concurrency 1,8 \
        --repeat 2 --requests 16 --time-budget "$(($(left) / 3))s" --out "$run" --format none
    status=$?
    if [ $status = 0 ] && "$bin/nativebench" report "$run" --format json -o "$report" 2>>"$out/compare.log"; then
        device=$(grep -m1 -A12 '"backend": "native"' "$report" | grep -m1 -o '"device": "[^"]*CUDA[^"]*"')
        if [ -n "$device" ]; then
            line 1.3 PASS "whole model on the GPU" "${device#*: }"
        else
            line 1.3 FAIL "whole model on the GPU" "native did not say that it runs on CUDA (log: $out/compare.log)"
        fi
    else
        wrong 1.3 "native and llama-server side by side" compare.log $status
    fi
fi

# ── 2. VRAM, and 3. power, energy, clocks, from that run
# from_run ID WHAT KEY UNIT [LIMIT]: the largest value of a key, at most the limit.
from_run() {
    local v
    if [ ! -s "$report" ]; then
        line "$1" SKIP "$2" "there is no run to look at"
        return
    fi
    v=$(numbers "$3" "$report" | largest)
    if [ -z "$v" ]; then
        line "$1" FAIL "$2" "the run does not tell it ($report)"
    elif [ -z "${5:-}" ]; then
        line "$1" PASS "$2" "$v $4 at most"
    elif at_most "$v" "$5"; then
        line "$1" PASS "$2" "$v $4, at most $5"
    else
        line "$1" FAIL "$2" "$v $4, more than $5"
    fi
}
from_run 2.1 "VRAM ledger: remainder" remainder_of_peak "of the peak" 0.02
from_run 2.2 "sampling period of GPU memory" period_seconds s 0.010
from_run 2.3 "what the sampling costs" sampler_cores "of a core" 0.25
if [ ! -s "$report" ]; then
    line 2.4 SKIP "memory is given back after a backend ended" "there is no run to look at"
elif grep -q 'not given back' "$report"; then
    line 2.4 FAIL "memory is given back after a backend ended" "$(grep -o 'GPU memory was not given back[^"]*' "$report" | head -n 1)"
elif [ -z "$(numbers device_released "$report")" ]; then
    line 2.4 FAIL "memory is given back after a backend ended" "the run does not tell it ($report)"
else
    line 2.4 PASS "memory is given back after a backend ended" "in use after: $(numbers device_released "$report" | largest) bytes"
fi
if time_for 2.5 "200 load and release cycles" 120; then
    (cd cmd/nativebench 2>/dev/null || cd "$out" && NATIVEBENCH_TEST_GPU=1 NATIVEBENCH_TEST_MODEL=${CYCLES_MODEL:-} \
        logged leak.log "$bin/nativebench.test" -test.v -test.count=1 -test.run GPUMemoryComesBack)
    status=$?
    if [ $status = 0 ] && grep -q -- '--- PASS' "$out/leak.log"; then
        line 2.5 PASS "200 load and release cycles" "$(grep -o 'in use before.*' "$out/leak.log" | head -n 1)"
    elif [ $status = 0 ]; then
        line 2.5 SKIP "200 load and release cycles" "$(grep -m1 -A1 -- '--- SKIP' "$out/leak.log" | tail -n 1 | sed 's/^ *//')"
    else
        wrong 2.5 "200 load and release cycles" leak.log $status
    fi
fi
if [ ! -s "$report" ]; then
    line 3.2 SKIP "energy" "there is no run to look at"
else
    joules=$(numbers energy_joules "$report" | largest)
    source=$(grep -o '"energy_source": "[^"]*"' "$report" | head -n 1 | sed 's/.*: //; s/"//g')
    if [ -n "$joules" ] && ! at_most "$joules" 0; then
        line 3.2 PASS "energy" "$joules J in the cell that took most, by the $source; $(numbers mean_watts "$report" | largest) W on average in the cell with the most"
    else
        line 3.2 FAIL "energy" "the run does not tell it ($report)"
    fi
fi
from_run 3.3 "clock of the multiprocessors" sm_mhz MHz
from_run 3.4 "temperature" max_celsius °C
reasons=$([ -s "$report" ] && awk '/"throttled": \{/ { on = 1; next } on && /\}/ { on = 0 } on' "$report" | sed 's/^ *"//; s/".*//' | sort -u | paste -sd ',')
if [ ! -s "$report" ]; then
    line 3.5 SKIP "not slowed down by heat or hardware" "there is no run to look at"
elif grep -q 'thermal\|hardware\|brake' <<<"$reasons"; then
    line 3.5 FAIL "not slowed down by heat or hardware" "reasons that the GPU gave: $reasons"
else
    line 3.5 PASS "not slowed down by heat or hardware" "reasons that the GPU gave: ${reasons:-none}"
fi

# ── 1. Speed against llama-bench and llama-batched-bench
# weights_of MODEL: prints its GGUF file, which it writes if it is not there.
weights_of() {
    local dir=$out/models/$1 file
    file=$(compgen -G "$dir/*.gguf" | head -n 1)
    if [ -z "$file" ]; then
        rm -rf "$dir"
        logged "synth-$1.log" "$bin/nativebench" models synth "$1" --gguf-only -o "$dir" || return
        file=$(compgen -G "$dir/*.gguf" | head -n 1)
    fi
    echo "$file"
}
at=3
for model in $models; do
    at=$((at + 1))
    need=240
    [ "$model" = gpt2 ] && need=120
    time_for 1.$at "$model: speed against llama.cpp's own benchmarks" $need || continue
    if ! file=$(weights_of "$model") || [ -z "$file" ]; then
        line 1.$at FAIL "$model: speed against llama.cpp's own benchmarks" "no weights: $(last_words "synth-$model.log")"
        continue
    fi
    reps=3 # what takes milliseconds is measured more often
    [ "$model" = gpt2 ] && reps=15
    logged "speed-$model.log" "$bin/speed" -engine "$engine" -gpu -pairs "$pairs" -reps "$reps" -model "$file"
    status=$?
    while IFS=$'\t' read -r kind ratio target all; do
        if at_most "$target" "$ratio"; then verdict=PASS; else verdict=FAIL; fi
        line 1.$at $verdict "$model: $kind" "ratio $ratio, target $target ($all)"
    done < <(awk '/ratio [0-9]/ {
        kind = $0; sub(/ +[0-9.]+ \/ +[0-9.]+ tok\/s.*/, "", kind)
        rest = $0; sub(/^.* ratio /, "", rest)
        split(rest, f, " +"); ratio = f[1]
        target = $0; sub(/^.*target +/, "", target)
        span = rest; sub(/ *target.*/, "", span); sub(/^[^[]*/, "", span)
        print kind "\t" ratio "\t" target "\t" span }' "$out/speed-$model.log")
    [ $status = 0 ] || wrong 1.$at "$model: speed against llama.cpp's own benchmarks" "speed-$model.log" $status
    for what in "stamps of tokens" "memory: copies"; do
        said=$(grep -m1 "^$what" "$out/speed-$model.log")
        if [ -n "$said" ] && ! at_most "$(grep -o 'we [0-9.]*$' <<<"$said" | cut -c4-)" 1; then
            line 1.$at FAIL "$model: ${said%%:*}" "more than the memory's speed allows cannot be: ${said#*: }"
        elif [ -n "$said" ]; then
            line 1.$at PASS "$model: ${said%%:*}" "${said#*: }"
        elif [ $status = 0 ]; then
            line 1.$at FAIL "$model: $what" "speed did not print it (log: $out/speed-$model.log)"
        fi
    done
    [ "$model" = gpt2 ] || [ -n "${KEEP_MODELS:-}" ] || rm -rf "$out/models/$model"
done

# ── 4. Servers
"$bin/nativebench" bench-all --models gpt2 --concurrency 1,4 --context-sweep none --plan --out "$out/none" >"$out/servers.log" 2>&1
found=$(awk '$1 == "gpt2-tasks" { for (i = 2; i <= NF && $i !~ /^[0-9]/; i++) if ($i != "native") print $i }' "$out/servers.log")
for server in llama-server vllm tgi transformers transformers-serve; do
    case $server in
    llama-server) id=4.1 ;; vllm) id=4.2 ;; tgi) id=4.3 ;; transformers) id=4.4 ;; *) id=4.5 ;;
    esac
    if ! grep -qx "$server" <<<"$found"; then
        why=$(grep -m1 "^ *\(gpt2-tasks on \)\?$server: " "$out/servers.log" | sed 's/^ *//' | cut -c1-200)
        line $id SKIP "$server beside native" "${why:-not found here (log: $out/servers.log)}"
        continue
    fi
    time_for $id "$server beside native" 180 || continue
    logged "$server.log" "$bin/nativebench" compare --model gpt2 --weights synthetic --backends "native,$server" --task chat,qa --concurrency 1,4 --repeat 2 --requests 8 \
        --request-timeout 10m --out "$out/$server" --format none
    status=$?
    if [ $status = 0 ]; then
        line $id PASS "$server beside native" "$(grep -c 'requests$' "$out/$server.log") cells done"
    else
        wrong $id "$server beside native" "$server.log" $status
    fi
done

# ── 5. Traces and profiles
# command_there NAME: whether this nativebench has the command.
command_there() { "$bin/nativebench" "$1" --help >/dev/null 2>&1; }
if ! command_there trace; then
    line 5.1 SKIP "a trace for Perfetto" "this nativebench has no trace command"
elif [ ! -s "$report" ]; then
    line 5.1 SKIP "a trace for Perfetto" "there is no run to show"
elif logged trace.log "$bin/nativebench" trace "$run" -o "$out/trace.json" && [ -s "$out/trace.json" ]; then
    line 5.1 PASS "a trace for Perfetto" "$(du -h "$out/trace.json" | cut -f1) in $out/trace.json"
else
    line 5.1 FAIL "a trace for Perfetto" "$(last_words trace.log)"
fi
if ! command_there ops; then
    line 5.2 SKIP "time by operation" "this nativebench has no ops command"
elif time_for 5.2 "time by operation" 60; then
    logged ops.log "$bin/nativebench" ops --model gpt2 --weights synthetic
    status=$?
    if [ $status = 0 ]; then
        line 5.2 PASS "time by operation" "$(wc -l <"$out/ops.log") lines in $out/ops.log"
    else
        wrong 5.2 "time by operation" ops.log $status
    fi
fi
for tool in nsys ncu; do
    if [ $tool = nsys ]; then id=5.3; else id=5.4; fi
    if ! "$bin/nativebench" compare --help 2>/dev/null | grep -q -- '--profile'; then
        line $id SKIP "--profile $tool" "this nativebench has no --profile"
    elif ! command -v $tool >/dev/null; then
        line $id SKIP "--profile $tool" "$tool is not installed"
    elif time_for $id "--profile $tool" 120; then
        # ncu runs each kernel again and again, 2 to 3 a second on an H100: with two
        # layers, a prompt and one decode step have about 100 of them.
        logged $tool.log "$bin/nativebench" compare --model gpt2 --weights synthetic --layers 2 --backends native --task chat --mode stream --repeat 1 --requests 1 --max-tokens 2 \
            --profile $tool --out "$out/$tool" --format none
        status=$?
        if [ $status = 0 ]; then
            line $id PASS "--profile $tool" "1 request of 2 tokens, 2 layers; $(find "$out/$tool/profiles" -type f 2>/dev/null | wc -l) files in $out/$tool/profiles"
        else
            wrong $id "--profile $tool" $tool.log $status
        fi
    fi
done

# ── 6. The image, 7. everything
if command -v docker >/dev/null && [ -e Dockerfile.cuda ]; then
    line 6.1 SKIP "image" "not built here: docker build -f Dockerfile.cuda . takes half an hour"
else
    line 6.1 SKIP "image" "needs docker and Dockerfile.cuda"
fi
if time_for 7.1 "bench-all" 120; then
    slice=$(($(left) / 2))
    logged bench-all.log "$bin/nativebench" bench-all --models gpt2 --backends native,llama-server --repeat 2 --time-budget "${slice}s" --out "$out/bench-all"
    status=$?
    if [ $status = 0 ] && [ -s "$out/bench-all/report/report.md" ]; then
        line 7.1 PASS "bench-all" "report in $out/bench-all/report"
    else
        wrong 7.1 "bench-all" bench-all.log $status
    fi
fi

echo
echo "$passed passed, $failed failed, $skipped skipped, in $SECONDS s; $out/summary.txt"
[ $failed = 0 ]
