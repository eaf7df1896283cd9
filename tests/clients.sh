#!/usr/bin/env bash
# Runs the shop, and its clients in Python against it: one on generated stubs, one that knows only server reflection.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=${OUTPOST_VENV:-target/python}
unset OUTPOST_VENV # the shop would take it for a setting
if [ ! -x "$venv/bin/python" ]; then
  python3 -m venv "$venv"
fi
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r examples/shop/clients/python/requirements.txt

# Built with the features of the whole workspace, as its tests are, so that nothing is built twice.
cargo build --quiet --workspace --bin shop
built=${CARGO_TARGET_DIR:-target}/debug
log=$(mktemp)
"$built/shop" --listen 127.0.0.1:0 --admin-listen 127.0.0.1:0 --cluster-listen 127.0.0.1:0 --set log.format=json 2>"$log" &
shop=$!
trap 'kill "$shop" 2>/dev/null || true; rm -f "$log"' EXIT

# The line is written once the shop accepts calls.
address=
for _ in $(seq 300); do
  address=$(sed -n 's/.*"ingress":"\([^"]*\)".*/\1/p' "$log" | head -n 1)
  if [ -n "$address" ] || ! kill -0 "$shop" 2>/dev/null; then break; fi
  sleep 0.1
done
[ -n "$address" ] || { echo "the shop did not start:"; cat "$log"; exit 1; }

for client in shop_client reflection_client; do
  "$venv/bin/python" "examples/shop/clients/python/$client.py" --target "$address"
done

kill -TERM "$shop"
wait "$shop"
echo "the shop stopped with exit code 0"
