# What the scripts of the bundles share. `run.sh` sources this from its own folder, defines a function for each step, and
# calls `run_steps`.
#
# Environment:
#   OUT=results   folder for logs and records

out=${OUT:-results}
mkdir -p "$out" || exit 1
out=$(cd "$out" && pwd)
failed=""

note() { echo "=== $*"; }

# check NAME COMMAND...: runs it, keeps its output in NAME.log, notes a failure.
check() {
    name=$1
    shift
    note "$name: $*"
    { "$@" 2>&1; echo $? >"$out/$name.rc"; } | tee "$out/$name.log"
    if [ "$(cat "$out/$name.rc")" != 0 ]; then
        failed="$failed $name"
        note "$name FAILED"
    fi
}

# run_steps USUAL OTHERS STEP...: runs the steps, the usual ones if none is named; ends the script, with 1 if any failed.
run_steps() {
    usual=$1
    known="$1 $2"
    shift 2
    note "commit $(cat commit.txt)"
    for step in ${*:-$usual}; do
        case " $known " in
        *" $step "*) $step ;;
        *)
            note "no step $step: expected one of $known"
            failed="$failed $step"
            ;;
        esac
    done
    note "summary"
    grep -h "passed, [0-9]* failed$" "$out"/*.log
    grep -H "ERROR SUMMARY\|RACECHECK SUMMARY" "$out"/*.log
    if [ -n "$failed" ]; then
        note "FAILED:$failed"
        exit 1
    fi
    note "all steps passed"
    exit 0
}
