#!/bin/sh
# The suite and the bench of rfdetr-post's fast CPU path, made by `cargo xtask cpu-test`. Needs Linux; the bench's peers
# need Python with torch.
#
#   sh run.sh               everything: parity, bench
#   sh run.sh STEP...       some of: parity bench
#
# Environment:
#   CASES=1000000 SEED=...    random requests and their seed (printed)
#   OUT=results               folder for logs and the bench's record, cpu.json and cpu.svg
#   PYTHON=python3            Python of the peers; what lies in wheels/ is put beside its packages for this run
#   BENCH_FLAGS=...           flags of the bench
#
# Ends with 1 if any step failed.
cd "$(dirname "$0")" || exit 1
. ./steps.sh

parity() {
    check parity ./rfdetr-post-cpu-test all --cases "${CASES:-1000000}" ${SEED:+--seed "$SEED"}
}

bench() {
    python=${PYTHON:-python3}
    site=$(mktemp -d) || exit 1
    for wheel in wheels/*.whl; do
        if [ -e "$wheel" ]; then
            check "wheel-$(basename "$wheel" | cut -d- -f1)" "$python" -m pip install -q --no-index --no-deps --no-compile \
                --no-cache-dir --disable-pip-version-check --target "$site" "$wheel"
        fi
    done
    RFDETR_POST_COMMIT=$(cat commit.txt) RFDETR_POST_RUSTC=$(cat compiler.txt)
    PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
    export RFDETR_POST_COMMIT RFDETR_POST_RUSTC PYTHONPATH
    # shellcheck disable=SC2086 # several flags
    check bench ./rfdetr-post bench --device cpu --python "$python" --json "$out/cpu.json" --svg "$out/cpu.svg" \
        ${BENCH_FLAGS:-}
    rm -rf "$site"
}

run_steps "parity bench" "" "$@"
