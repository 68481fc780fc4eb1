#!/usr/bin/env bash
# All tests, in two lanes: those that start gateway and worker (marked `flow`), and all others, whose log comes at the
# end. Both at once where there is memory for it, as each may have an engine. Then each has one thread: a training whose
# two wait for one another beside other work takes twice as long as with one.
set -uo pipefail
cd "$(dirname "$0")/.."

pytest=(.venv/bin/python -m pytest --durations=15)
log=$(mktemp)
free_gib=$(awk '/^MemAvailable/ {print int($2 / 1048576)}' /proc/meminfo)
flow_pid='' others_pid='' interrupted=0
trap 'rm -f "$log"' EXIT
trap 'interrupted=1; kill -INT $flow_pid $others_pid 2>/dev/null' INT TERM HUP

ended() { # the status of a child; a signal ends a `wait` before its child
  local status
  wait "$1"; status=$?
  while kill -0 "$1" 2>/dev/null; do wait "$1"; status=$?; done
  return "$status"
}

((free_gib < 15)) || export OMP_NUM_THREADS=1
set -m # each in a process group of its own: else what runs in the background would be deaf to interrupts
"${pytest[@]}" -m flow -p no:cacheprovider </dev/null &
flow_pid=$!
if ((free_gib < 15)); then
  ended "$flow_pid"; flow=$?
  ((interrupted)) && exit "$flow"
fi
OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive "${pytest[@]}" -m "not flow" </dev/null >"$log" 2>&1 &
others_pid=$!
((free_gib < 15)) || { ended "$flow_pid"; flow=$?; }
ended "$others_pid"; others=$?

echo
echo "lanes: the log of the tests that start no gateway"
cat "$log"
echo "lanes: pytest ended with status $flow on those that start gateway and worker, with $others on the others"
((flow == 0 && others == 0))
