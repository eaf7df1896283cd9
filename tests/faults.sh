#!/usr/bin/env bash
# Moves a state a thousand times under a million calls, kills fifty owners, kills whoever takes part in a move at each of
# its steps, and freezes owners, with the default settings; prints the figures. It takes long, and wants a quiet machine.
# `tests/faults.sh long::fifty` runs one of them.
set -euo pipefail
cd "$(dirname "$0")/.."

exec cargo nextest run --release -p outpost-tests --test faults_state --run-ignored only --no-capture --no-fail-fast \
  "${@:-long::}"
