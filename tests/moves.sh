#!/usr/bin/env bash
# Runs three shops as one cluster, and moves six modules, four of them with state, a hundred times while clients in Python
# use each of the three: no call may fail.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=${OUTPOST_VENV:-target/python}
unset OUTPOST_VENV # the shop would take it for a setting
if [ ! -x "$venv/bin/python" ]; then
  python3 -m venv "$venv"
fi
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r examples/shop/clients/python/requirements.txt

# Built with the features of the whole workspace, as its tests are, so that nothing is built twice.
cargo build --quiet --workspace --bin shop --bin mover
built=${CARGO_TARGET_DIR:-target}/debug
folder=$(mktemp -d)
processes=()
finish() {
  status=$?
  kill "${processes[@]}" 2>/dev/null || true
  if [ "$status" -ne 0 ]; then tail -n 40 "$folder"/*.log; fi
  rm -rf "$folder"
}
trap finish EXIT

# Below the ports that the system gives to whoever asks for any.
base=$((20000 + $$ % 1000 * 10))
for node in 1 2 3; do
  "$built/shop" --listen "127.0.0.1:$((base + node))" --admin-listen "127.0.0.1:$((base + 3 + node))" \
    --set "node.name=shop-$node" --set "node.data_dir=$folder/shop-$node" \
    --set "cluster.listen=127.0.0.1:$((base + 6 + node))" \
    --set "cluster.seeds=[\"127.0.0.1:$((base + 7))\", \"127.0.0.1:$((base + 8))\", \"127.0.0.1:$((base + 9))\"]" \
    --set 'cluster.initial_voters=["shop-1", "shop-2", "shop-3"]' 2>"$folder/shop-$node.log" &
  processes+=($!)
done

for node in 1 2 3; do
  for _ in $(seq 300); do
    if grep -q ' serving application=' "$folder/shop-$node.log"; then break; fi
    sleep 0.1
  done
  grep -q ' serving application=' "$folder/shop-$node.log" || { echo "shop-$node did not start"; exit 1; }
done

"$venv/bin/python" examples/shop/clients/python/loop_client.py \
  --target "127.0.0.1:$((base + 1))" --target "127.0.0.1:$((base + 2))" --target "127.0.0.1:$((base + 3))" \
  >"$folder/client.log" &
client=$!
processes+=("$client")
for _ in $(seq 300); do
  if grep -q '^calling' "$folder/client.log"; then break; fi
  sleep 0.1
done

"$built/mover" "127.0.0.1:$((base + 4))" 100 checkout support cart payment shipping orders

kill -TERM "$client"
wait "$client" || { echo "calls failed while modules moved:"; cat "$folder/client.log"; exit 1; }
cat "$folder/client.log"
for process in "${processes[@]:0:3}"; do
  kill -TERM "$process"
done
for process in "${processes[@]:0:3}"; do
  wait "$process"
done
echo "the three shops stopped with exit code 0"
