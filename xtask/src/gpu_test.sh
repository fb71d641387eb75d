#!/bin/sh
# The GPU suite of rfdetr-post, made by `cargo xtask gpu-test`. Needs an NVIDIA driver, nothing else.
#
#   sh run.sh               everything: suite, sanitizers, demo, bench
#   sh run.sh STEP...       some of: suite sanitizers demo bench
#
# Environment:
#   CASES=20000 SEED=...    random requests and their seed (printed)
#   SECONDS_OF_THREADS=60   how long the threads run
#   OUT=results             folder for logs, the demo's files and the bench's record
#   SANITIZER=...           path of compute-sanitizer; default: the one in PATH, or in /usr/local/cuda
#   BENCH_FLAGS=...         flags of the bench
#
# Ends with 1 if any step failed, a sanitizer that is not there included.
cd "$(dirname "$0")" || exit 1
. ./steps.sh

suite() {
    check suite ./rfdetr-post-gpu-test all --cases "${CASES:-20000}" ${SEED:+--seed "$SEED"} \
        --seconds "${SECONDS_OF_THREADS:-60}"
}

sanitizers() {
    sanitizer=${SANITIZER:-$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)}
    if [ ! -x "$sanitizer" ]; then
        note "sanitizers FAILED: no compute-sanitizer (SANITIZER=PATH names it)"
        failed="$failed sanitizers"
        return
    fi
    # Each tool ends with 9 if it has anything to report.
    for tool in memcheck racecheck initcheck synccheck; do
        check "$tool" "$sanitizer" --tool "$tool" --error-exitcode 9 --print-limit 20 \
            ./rfdetr-post-gpu-test fixtures --quick
        grep "ERROR SUMMARY\|RACECHECK SUMMARY" "$out/$tool.log"
    done
}

demo() {
    for device in cuda cpu; do
        check "demo-$device" ./rfdetr-post demo --device "$device" --out "$out/demo-$device"
    done
    for file in detections.json images.json; do
        check "demo-$file" cmp "$out/demo-cuda/$file" "$out/demo-cpu/$file"
    done
    check info ./rfdetr-post info
}

bench() {
    # shellcheck disable=SC2086 # several flags
    check bench ./rfdetr-post-gpu-bench --json "$out/bench.json" --commit "$(cat commit.txt)" ${BENCH_FLAGS:-}
}

command -v nvidia-smi >/dev/null && nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
run_steps "suite sanitizers demo bench" "$@"
