#!/usr/bin/env bash
# All tests, in two lanes at once: those that start whole servers, and beside them all others, whose log comes at the end.
set -uo pipefail
cd "$(dirname "$0")/.."

pytest=(.venv/bin/python -m pytest --durations=15)
log=$(mktemp)
trap 'rm -f "$log"' EXIT

set -m # each in a process group of its own: else what runs in the background would be deaf to interrupts
OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive "${pytest[@]}" -m "not flow" </dev/null >"$log" 2>&1 &
others_pid=$!
"${pytest[@]}" -m flow -p no:cacheprovider </dev/null &
flow_pid=$!
set +m
trap 'kill -INT "$flow_pid" "$others_pid" 2>/dev/null' INT TERM HUP

ended() { # the status of a child; a signal ends a `wait` before its child
  local status
  wait "$1"; status=$?
  while kill -0 "$1" 2>/dev/null; do wait "$1"; status=$?; done
  return "$status"
}
ended "$flow_pid"; flow=$?
ended "$others_pid"; others=$?

echo
echo "lanes: the log of the tests that start no servers"
cat "$log"
echo "lanes: pytest ended with status $flow on the tests that start servers, with $others on the others"
((flow == 0 && others == 0))
