#!/bin/sh
# The GPU suite of rfdetr-post, made by `cargo xtask gpu-test`. Needs an NVIDIA driver, nothing else.
#
#   sh run.sh               everything: suite, cust, sanitizers, demo, downstream, bench
#   sh run.sh STEP...       some of these, or of memcheck racecheck initcheck synccheck
#
# Environment:
#   CASES=20000 SEED=...    random requests and their seed (printed)
#   SECONDS_OF_THREADS=60   how long the threads run
#   OUT=results             folder for logs, the demo's files and the bench's record
#   SANITIZER_SECONDS=600   a sanitizer that takes longer has failed
#   SANITIZER=...           path of compute-sanitizer; default: the one in PATH, or in /usr/local/cuda
#   BENCH_FLAGS=...         flags of the bench
#
# Ends with 1 if any step failed, a sanitizer that is not there included.
cd "$(dirname "$0")" || exit 1
. ./steps.sh

# limited SECONDS COMMAND...: ends a command that takes longer, with 124.
limited() {
    seconds=$1
    shift
    timeout -k 10 "$seconds" "$@"
    code=$?
    if [ $code = 124 ] || [ $code = 137 ]; then
        echo "FAILED: did not end within $seconds s"
    fi
    return $code
}

suite() {
    check suite ./rfdetr-post-gpu-test all --cases "${CASES:-20000}" ${SEED:+--seed "$SEED"} \
        --seconds "${SECONDS_OF_THREADS:-60}"
}

cust() {
    check cust ./rfdetr-post-gpu-cust --rounds 50
}

# sanitize TOOL: racecheck slows the device down so much that it gets a handful of requests only.
sanitize() {
    sanitizer=${SANITIZER:-$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)}
    if [ ! -x "$sanitizer" ]; then
        note "$1 FAILED: no compute-sanitizer (SANITIZER=PATH names it)"
        failed="$failed $1"
        return
    fi
    case $1 in
    racecheck) size=--tiny ;;
    *) size=--quick ;;
    esac
    # Each tool ends with 9 if it has anything to report.
    check "$1" limited "${SANITIZER_SECONDS:-600}" "$sanitizer" --tool "$1" --error-exitcode 9 --print-limit 20 \
        ./rfdetr-post-gpu-test fixtures $size
    grep "ERROR SUMMARY\|RACECHECK SUMMARY" "$out/$1.log"
}

sanitizers() {
    for tool in memcheck racecheck initcheck synccheck; do
        sanitize $tool
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

# A program of a user of the library.
downstream() {
    for device in cuda fleet cpu; do
        check "downstream-$device" ./downstream --device "$device" --out "$out/downstream-$device.txt"
    done
    for device in cuda fleet; do
        check "downstream-$device-equal" cmp "$out/downstream-$device.txt" "$out/downstream-cpu.txt"
    done
}

bench() {
    # shellcheck disable=SC2086 # several flags
    check bench ./rfdetr-post-gpu-bench --json "$out/bench.json" --commit "$(cat commit.txt)" ${BENCH_FLAGS:-}
}

command -v nvidia-smi >/dev/null && nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
memcheck() { sanitize memcheck; }
racecheck() { sanitize racecheck; }
initcheck() { sanitize initcheck; }
synccheck() { sanitize synccheck; }

run_steps "suite cust sanitizers demo downstream bench" "memcheck racecheck initcheck synccheck" "$@"
