#!/usr/bin/env bash
# Makes .venv and installs exactly what the lock names: deploy/setup.sh [dev]
#
#   LORAMEM_PROFILE  cpu (default) or gpu: which lock under requirements/
#   PYTHON           the interpreter to build on; else python3.11 or newer is looked for
#
# A stamp in .venv holds the hash of all that decides the outcome, so a second run does nothing. Several runs at once
# wait for one another.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

profile=${LORAMEM_PROFILE:-cpu}
extra=${1:-}
lock=requirements/$profile.txt
torch_cpu_index=https://download.pytorch.org/whl/cpu

say() { printf 'setup: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

[[ -z $extra || $extra == dev ]] || fail "unknown argument '$extra'; allowed: dev, or none"
[[ -f $lock ]] || fail "LORAMEM_PROFILE=$profile: allowed are cpu and gpu"

fingerprint() { # of a lock and of everything else that changes the outcome; the folder, because scripts hold its path
  { echo "$profile ${PYTHON:-} $PWD"; cat "$@" deploy/setup.sh pyproject.toml; } | sha256sum | cut -d' ' -f1
}
is_current() { # NAME LOCK...
  local stamp=.venv/.setup-$1
  shift
  [[ -x .venv/bin/python && -f $stamp && $(<"$stamp") == "$(fingerprint "$@")" ]]
}
all_current() {
  is_current run "$lock" && { [[ -z $extra ]] || is_current dev "$lock" requirements/dev.txt; }
}

step() { # WHAT COMMAND...: says what it does and how long it took
  local what=$1 start=$EPOCHREALTIME
  shift
  say "$what ..."
  "$@"
  say "$what: done in $(awk -v a="$start" -v b="$EPOCHREALTIME" 'BEGIN {printf "%.1f", b - a}') s"
}

find_python() {
  local candidate version without_venv= least=11
  local candidates=(python3.11 python3.12 python3.13 python3)
  if [[ $profile == gpu ]]; then # as its lock has it
    candidates=(python3.12 python3.13 python3) least=12
  fi
  [[ -n ${PYTHON:-} ]] && candidates=("$PYTHON")
  for candidate in "${candidates[@]}"; do
    version=$("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2]); sys.exit(sys.version_info < (3, int(sys.argv[1])))' "$least" 2>/dev/null) || continue
    if "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then
      echo "$candidate"
      return
    fi
    without_venv=$version
  done
  if [[ -n $without_venv ]]; then
    fail "Python $without_venv is here, but not its venv module. On Debian or Ubuntu: apt-get install python$without_venv-venv"
  fi
  fail "no Python 3.$least or newer among: ${candidates[*]}. Install one, or name it: PYTHON=/path/to/python3.$least make run"
}

make_venv() {
  local python
  python=$(find_python)
  if [[ -x .venv/bin/python && -f .venv/.profile && $(<.venv/.profile) != "$profile" ]]; then
    say "the virtual environment is of profile $(<.venv/.profile): making a new one"
    rm -rf .venv
  fi
  if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    step "making .venv with $("$python" --version)" "$python" -m venv --clear .venv
  fi
  echo "$profile" >.venv/.profile
}

pip_install() { .venv/bin/python -m pip install -qq --disable-pip-version-check --no-deps "$@"; }

install_torch() { # the CPU build, which is 3 GB smaller: from where pip is set to look, else from PyTorch's own index
  local wanted log
  wanted=$(grep --only-matching '^torch==[^ ]*' "$lock")
  log=$(pip_install "$wanted" 2>&1) && return
  say "$wanted is not where pip is set to look; trying $torch_cpu_index"
  pip_install --index-url "$torch_cpu_index" "$wanted" && return
  printf '%s\n' "$log" >&2
  fail "cannot install $wanted"
}

main() {
  local start=$EPOCHREALTIME
  make_venv
  if ! is_current run "$lock"; then
    [[ $profile != cpu ]] || step "installing PyTorch's CPU build" install_torch
    step "installing $(grep -c == "$lock") locked packages ($lock)" pip_install -r "$lock"
    step "installing loramem itself" pip_install --no-build-isolation --editable .
    fingerprint "$lock" >.venv/.setup-run
  fi
  if [[ $extra == dev ]]; then
    step "installing the development tools (requirements/dev.txt)" pip_install -r requirements/dev.txt
    fingerprint "$lock" requirements/dev.txt >.venv/.setup-dev
  fi
  say "ready after $(awk -v a="$start" -v b="$EPOCHREALTIME" 'BEGIN {printf "%.1f", b - a}') s"
}

all_current && exit 0
exec 9<. # a lock on the folder itself leaves no file behind
if ! flock --nonblock 9; then
  say "another set-up is running here; waiting for it"
  flock 9
fi
all_current && exit 0
main
