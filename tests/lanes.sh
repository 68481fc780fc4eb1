#!/usr/bin/env bash
# All tests, in two lanes at once: those that start whole servers, and beside them all others, whose log comes at the end.
set -uo pipefail
cd "$(dirname "$0")/.."

pytest=(.venv/bin/python -m pytest --durations=15)
log=$(mktemp)
trap 'rm -f "$log"' EXIT

set -m # in a process group of its own: else what runs in the background would be deaf to interrupts
OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive "${pytest[@]}" -m "not flow" </dev/null >"$log" 2>&1 &
beside=$!
set +m
trap 'kill -INT "$beside" 2>/dev/null' INT TERM

"${pytest[@]}" -m flow -p no:cacheprovider
flow=$?
wait "$beside"
others=$?
while kill -0 "$beside" 2>/dev/null; do wait "$beside"; others=$?; done # an interrupt ends the first wait

echo
echo "lanes: the log of the tests that start no servers"
cat "$log"
echo "lanes: pytest ended with status $flow on the tests that start servers, with $others on the others"
((flow == 0 && others == 0))
