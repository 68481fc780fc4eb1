#!/usr/bin/env bash
# Writes requirements/{cpu,gpu,dev}.txt anew from pyproject.toml. Needs uv.
#
# What runs is locked with the hashes of its files; the development tools, which no image holds, are not.
# The locks leave out what requirements/overrides.txt names, so they are installed with `pip install --no-deps`.
# uv does not read pip's configuration: where pip finds packages in a folder (find-links), the folder is handed over.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

command -v uv >/dev/null || { echo "lock: uv is not installed (pip install uv)" >&2; exit 1; }

find_links=()
for folder in $(python3 -m pip config get global.find-links 2>/dev/null || true); do
  find_links+=(--find-links "$folder")
done

compile() { # OUTPUT PYTHON OPTION...
  local output=$1 python=$2
  shift 2
  uv pip compile pyproject.toml "$@" --override requirements/overrides.txt "${find_links[@]}" \
    --python-version "$python" --python-platform x86_64-manylinux_2_28 --no-header --no-annotate --quiet --output-file "$output"
}
wrote() { for file in "$@"; do echo "lock: wrote $file, $(grep -c == "$file") packages"; done; }

cpu=(--override requirements/cpu-overrides.txt --extra cpu --extra postgres)
compile requirements/cpu.txt 3.11 "${cpu[@]}" --generate-hashes
compile requirements/gpu.txt 3.12 --extra gpu --extra postgres --generate-hashes
wrote requirements/cpu.txt requirements/gpu.txt

with_dev=$(mktemp)
pinned=$(mktemp)
trap 'rm -f "$with_dev" "$pinned"' EXIT
grep --only-matching '^[^ ]*==[^ ]*' requirements/cpu.txt >"$pinned"
cp "$pinned" "$with_dev" # keeps the versions just chosen
compile "$with_dev" 3.11 "${cpu[@]}" --extra dev
grep --invert-match --line-regexp --fixed-strings --file "$pinned" "$with_dev" >requirements/dev.txt
wrote requirements/dev.txt
