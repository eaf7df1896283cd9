#!/usr/bin/env bash
# Counts the instructions of what each call goes through, and fails where one needs a tenth more than it did: noise can't
# fool it. Needs Valgrind (`apt-get install valgrind`); installs the runner of the version that the project builds with.
set -euo pipefail
cd "$(dirname "$0")/.."

command -v valgrind >/dev/null || { echo "valgrind is not installed: apt-get install valgrind" >&2; exit 1; }
version=$(cargo metadata --format-version 1 --locked \
  | python3 -c 'import json, sys; print(next(p["version"] for p in json.load(sys.stdin)["packages"] if p["name"] == "gungraun"))')
gungraun-runner --version 2>/dev/null | grep -qF "$version" \
  || cargo install --locked --quiet --version "$version" gungraun-runner

exec cargo bench -p outpost-instructions --bench path "$@"
