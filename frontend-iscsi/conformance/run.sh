#!/bin/sh
# Runs every test of family ALL of libiscsi's iscsi-test-cu against a target, one process a test,
# and compares with what is expected.
#
#   run.sh URL OUTDIR [SECOND_URL]
#
# URL is iscsi://[user%secret@]host:port/target/lun; SECOND_URL is a second path to the same unit
# for the multipath tests (URL itself when left out: a second session). THE UNIT IS OVERWRITTEN.
# ISCSI_READONLY_URL, when set, is a unit that is write protected, for the test of those.
# ISCSI_TEST_ONLY and ISCSI_TEST_EXCEPT, when set, are patterns (grep -E) of the tests to run and to leave
# out. ISCSI_EXPECTED, when set, is read instead of expected.tsv.
# Results go to OUTDIR/results.tsv (test, result), the output of each test to OUTDIR/<test>.txt.
# Exit status: 0 all as expected.tsv says, 1 something differs, 2 it could not be run.
set -u
[ $# -ge 2 ] || { sed -n '2,15s/^# \{0,1\}//p' "$0" >&2; exit 2; }
url=$1
dir=$2
second=${3:-$1}
here=$(dirname "$0")
seconds=${ISCSI_TEST_SECONDS:-15}
command -v iscsi-test-cu >/dev/null || { echo "run.sh: iscsi-test-cu is not installed (libiscsi-bin)" >&2; exit 2; }
mkdir -p "$dir" || exit 2

judge() {
    # Exit status and output of a test to one word.
    asserts=$(grep -a -E '^ *asserts' "$2" | tail -1 | awk '{print $5}')
    if [ "$1" -eq 124 ] || [ "$1" -eq 137 ]; then echo HANG
    elif [ -z "$asserts" ]; then echo CRASH
    elif [ "$asserts" -gt 0 ]; then echo FAIL
    elif grep -a -q SKIPPED "$2"; then echo SKIP
    else echo PASS
    fi
}

: > "$dir/results.tsv"
chosen() {
    grep -E "${ISCSI_TEST_ONLY:-.}" | grep -v -E "${ISCSI_TEST_EXCEPT:-^$}"
}

for test in $(iscsi-test-cu --list 2>/dev/null | grep -E '^ALL\.[^.]+\.[^.]+$' | chosen); do
    urls=$url
    limit=$seconds
    case $test in
        *.MultipathIO.*) urls="$url $second" ;;
        *.ReadOnly.*) urls=${ISCSI_READONLY_URL:-$url} ;;
        # It overwrites the unit at a limited speed, and waits for that a minute at a time.
        *.Sanitize.*) limit=200 ;;
    esac
    # shellcheck disable=SC2086  # two words on purpose
    (cd "$dir" && timeout -k 2 "$limit" iscsi-test-cu --dataloss --allow-sanitize -V -t "$test" $urls </dev/null >"$test.txt" 2>&1)
    status=$?
    printf '%s\t%s\n' "$test" "$(judge "$status" "$dir/$test.txt")" >> "$dir/results.tsv"
done

cut -f2 "$dir/results.tsv" | sort | uniq -c
chosen < "${ISCSI_EXPECTED:-$here/expected.tsv}" > "$dir/expected.tsv"
if diff "$dir/expected.tsv" "$dir/results.tsv" > "$dir/differences.txt"; then
    echo "as expected"
else
    echo "different from expected.tsv (< expected, > found):"
    cat "$dir/differences.txt"
    exit 1
fi
