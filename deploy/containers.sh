#!/usr/bin/env bash
# Runs the images for real: three containers, set up as kubernetes/outpost.yaml says (variables, files, user, privileges,
# limits), on a network of their own inside a network namespace; then the placement's job. With --exercise, also a rolling
# restart and a crash while clients call. Prints the sizes of the images.
#
#   containers.sh [--exercise] [FOLDER]
#
# FOLDER has static programs `shop` and `outpost`; without it, that of a release build for x86_64-unknown-linux-gnu. Needs
# root, and podman, buildah, runc, jq, iptables and iproute2. Nothing is left behind.
set -euo pipefail
source "$(dirname "$0")/lib.sh"
export PYTHONDONTWRITEBYTECODE=1

exercise=
[ "${1:-}" != --exercise ] || { exercise=yes; shift; }
programs=$(cd "${1:-$deploy/../target/x86_64-unknown-linux-gnu/release}" && pwd) || die "there are no programs"
[ "$(id -u)" = 0 ] || die "this has to be run by root"
for tool in podman buildah runc jq ip nsenter iptables; do
  command -v "$tool" >/dev/null || die "$tool is missing"
done
need_python
work=$(mktemp -d)
space=outpost-$$
network=10.79.30
seconds() { awk "BEGIN { printf \"%.1f\", $EPOCHREALTIME - $1 }"; }

# runc, since crun refuses some layouts of cgroups; and no limits on resources of processes, which a container may not
# be allowed to set.
cat >"$work/runc" <<'R'
#!/usr/bin/env bash
previous= bundle=
for argument in "$@"; do
  case $previous in --bundle | -b) bundle=$argument ;; esac
  previous=$argument
done
if [ -n "$bundle" ] && [ -f "$bundle/config.json" ]; then
  changed=$(jq 'del(.process.rlimits)' "$bundle/config.json")
  printf '%s' "$changed" >"$bundle/config.json"
fi
exec runc "$@"
R
chmod +x "$work/runc"
cat >"$work/containers.conf" <<C
[engine]
runtime = "runc-here"
cgroup_manager = "cgroupfs"
events_logger = "file"
[network]
network_backend = "netavark"
[engine.runtimes]
runc-here = ["$work/runc"]
C
export CONTAINERS_CONF=$work/containers.conf

inside() { nsenter --net=/run/netns/"$space" "$@"; }
storage=(--root "$work/root" --runroot "$work/run")
pod() { inside podman "${storage[@]}" "$@"; }
client=
cleanup() {
  [ -z "$client" ] || kill "$client" 2>/dev/null || true
  pod rm --all --force --time 0 >/dev/null 2>&1 || true
  pod network rm outpost --force >/dev/null 2>&1 || true
  # Storage has mounts of its own.
  awk -v folder="$work/" 'index($2, folder) == 1 { print $2 }' /proc/mounts | sort -r | xargs -r -n 1 umount 2>/dev/null || true
  ip netns del "$space" 2>/dev/null || true
  rm -rf "$work"
}
trap cleanup EXIT
ip netns add "$space"
ip -n "$space" link set lo up

say "images"
mkdir -p "$work/programs"
for program in shop outpost; do
  [ -x "$programs/$program" ] || die "there is no $programs/$program"
  ! file -L "$programs/$program" 2>/dev/null | grep -q 'dynamically linked' || die "$programs/$program is not static"
  # As the Dockerfile does: without what debuggers want to know, and names of what is no function.
  strip --strip-debug --wildcard -N 'GCC_except_table*' -N 'anon.*' -o "$work/programs/$program" "$programs/$program" 2>/dev/null || cp "$programs/$program" "$work/programs/$program"
  inside buildah "${storage[@]}" bud --quiet --isolation chroot -f "$deploy/Dockerfile.prebuilt" \
    --build-arg "PROGRAM=$program" -t "localhost/$program:here" "$work/programs" >/dev/null
done
pod images --format '{{.Repository}}:{{.Tag}} {{.Size}}' >&2

# What the user of the manifests has to make: the Secrets.
outpost=$work/programs/outpost
trust=$work/trust
"$outpost" ca init --dir "$trust" --domain example.org >/dev/null
"$outpost" ca issue shop-0 shop-1 shop-2 --cluster shop --dir "$trust" >/dev/null
"$outpost" ca issue --operator deploy --cluster shop --dir "$trust" >/dev/null
mkdir -p "$work/secret/shop-trust" "$work/secret/shop-deploy"
cp "$trust"/shop-*.pem "$trust"/shop-*.key "$trust"/ca.pem "$trust"/gossip.keys "$work/secret/shop-trust"
cp "$trust"/deploy.pem "$trust"/deploy.key "$trust"/ca.pem "$work/secret/shop-deploy"
export OUTPOST_CONTEXTS=$work/contexts.toml
"$outpost" context set here --node "$network.10:7001" --certificate "$trust/deploy.pem" --key "$trust/deploy.key" \
  --authorities "$trust/ca.pem" >/dev/null 2>&1

# A program of before the health listener can't be asked how it is.
if "$work/programs/shop" config --set health.listen=127.0.0.1:7003 >/dev/null 2>&1; then
  health=yes
else
  health='' && export WITHOUT_HEALTH=yes
  say "note: this shop has no health.listen; it is left out"
fi

pod network create --subnet "$network.0/24" outpost >/dev/null
start() { # start NUMBER ADDRESS
  local zone arguments
  zone=$(printf 'abc' | cut -c$(($1 + 1)))
  mapfile -t arguments < <("$CHECKS_PYTHON" "$deploy/check/container.py" "$deploy/kubernetes/outpost.yaml" shop "shop-$1" "$2" "$work" \
    "topology.kubernetes.io/zone=$zone" | sed '/^$/d')
  pod rm --force --time 0 "shop-$1" >/dev/null 2>&1 || true
  pod run --detach --name "shop-$1" --hostname "shop-$1" --network outpost --ip "$2" --network-alias shop-nodes \
    "${arguments[@]}" localhost/shop:here >/dev/null
}
ready() { # ready COUNT: that many nodes, and modules that all serve
  inside "$outpost" status --node "${asked:-$network.10}:7001" -o json 2>/dev/null |
    jq -e --argjson count "$1" '([.nodes[] | select(.state == "ready")] | length) == $count and (.problems | length) == 0' >/dev/null
}
wait_for() { # wait_for WHAT SECONDS COMMAND...
  local what=$1 limit=$2 since=$EPOCHREALTIME
  shift 2
  until "$@"; do
    if awk "BEGIN { exit !($EPOCHREALTIME - $since > $limit) }"; then
      for number in 0 1 2; do say "--- shop-$number"; pod logs --tail 15 "shop-$number" >&2 || true; done
      inside "$outpost" status >&2 || true
      die "$what: not within $limit s"
    fi
    sleep 0.1
  done
  say "$what: $(seconds "$since") s"
}
voters() { # voters COUNT
  [ "$(inside "$outpost" voters --node "${asked:-$network.10}:7001" -o json 2>/dev/null | jq '[.voters[] | select(.state == "leader" or .state == "follower")] | length')" = "$1" ]
}
probe() { [ -z "$health" ] || [ "$(inside curl -s -o /dev/null -w '%{http_code}' --max-time 2 "http://$1:7003$2")" = "$3" ]; }

for number in 0 1 2; do start "$number" "$network.1$number"; done
wait_for "three nodes are ready" 60 ready 3
for number in 0 1 2; do
  [ -z "$health" ] || wait_for "shop-$number: /livez and /readyz answer 200" 20 eval "probe $network.1$number /livez 200 && probe $network.1$number /readyz 200"
done
inside "$outpost" status >&2
[ "$(inside "$outpost" nodes -o json | jq -r '[.[].labels.zone] | sort | join("")')" = abc ] || die "zones are not those of the pods' labels"

say "the placement's job"
mapfile -t lines < <("$CHECKS_PYTHON" "$deploy/check/container.py" "$deploy/kubernetes/placement/placement.yaml" shop-placement job - "$work")
options=() after=() target=options
for line in "${lines[@]}"; do
  if [ -z "$line" ]; then target=after; else eval "$target+=(\"\$line\")"; fi
done
for turn in first second; do
  pod run --rm --network outpost "${options[@]}" localhost/outpost:here "${after[@]}" >&2 || die "the $turn run of the job failed"
done
[ "$(inside "$outpost" where catalog | wc -l)" = 3 ] || die "the placement was not applied"
versions=$(inside "$outpost" history -o json | jq length)
say "versions of the placement after two runs of the job: $versions"

[ -n "$exercise" ] || { say "containers: all is well"; exit 0; }

say "clients"
python=$cache/clients
if [ ! -e "$python/complete" ]; then
  rm -rf "$python"
  python3 -m venv "$python"
  "$python/bin/pip" install --quiet --disable-pip-version-check -r "$deploy/../examples/shop/clients/python/requirements.txt"
  touch "$python/complete"
fi
# Each client has all nodes' addresses, as one of a Service has, and goes to the next when its node goes away.
nodes=("$network.10:7000" "$network.11:7000" "$network.12:7000")
targets=()
for first in 0 1 2; do
  targets+=(--target "ipv4:${nodes[$first]},${nodes[$(((first + 1) % 3))]},${nodes[$(((first + 2) % 3))]}")
done
settle=$(sed -n 's/^  minReadySeconds: //p' "$deploy/kubernetes/outpost.yaml")
begin() {
  # Not by the function: the process that is told to stop has to be the client itself.
  nsenter --net=/run/netns/"$space" "$python/bin/python" "$deploy/check/clients.py" "$deploy/../examples/shop/clients/python" "${targets[@]}" >"$work/client" 2>&1 &
  client=$!
  wait_for "clients call" 60 grep -q calling "$work/client"
  sleep 2
}
finish() {
  kill -TERM "$client"
  wait "$client" || true
  client=
  said=$(tail -n 1 "$work/client")
  # Each kind of failure once; two threads may write on one line.
  sed 's/FAILED/\n&/g' "$work/client" | sed -n 's/^FAILED \(.*\) through [^ ]*: /  failed: \1: /p' | sort | uniq -c | sort -rn | head -20 >&2
  say "$1: $said"
}

begin
for number in 2 1 0; do
  since=$EPOCHREALTIME
  # As the kubelet does: the sleep of preStop, SIGTERM, and SIGKILL after the grace period.
  sleep 3
  pod stop "shop-$number" >/dev/null
  code=$(pod inspect "shop-$number" --format '{{.State.ExitCode}}')
  stopped=$(seconds "$since")
  [ "$code" = 0 ] || die "shop-$number ended with $code"
  asked=$network.1$(((number + 1) % 3))
  start "$number" "$network.1$number"
  wait_for "shop-$number stopped in $stopped s with its sleep of 3 s; ready again" 60 ready 3
  [ -z "$health" ] || wait_for "shop-$number: /readyz" 20 probe "$network.1$number" /readyz 200
  # Kubernetes waits so long before it goes on to the next.
  wait_for "shop-$number: there are three voters again" "$settle" voters 3
done
finish "a rolling restart"
case $said in *' calls, 0 failed') ;; *) die "calls failed during the rolling restart" ;; esac

begin
asked=$network.10
pod kill --signal KILL shop-1 >/dev/null
say "shop-1 is killed"
sleep 15
# A pod that is made anew has its volume, and another address.
start 1 "$network.21"
wait_for "shop-1 is back at another address" 60 ready 3
sleep 3
finish "a crash"

wait_for "there are three voters again" 60 voters 3

# A machine that is cut off, as seen by the others: its modules come back elsewhere, and it comes back by itself.
isolate() { # isolate -A|-D NODE: nothing gets from it or to it, or again
  local network
  network=/proc/$(pod inspect "$2" --format '{{.State.Pid}}')/ns/net
  nsenter --net="$network" iptables "$1" INPUT ! -i lo -j DROP
  nsenter --net="$network" iptables "$1" OUTPUT ! -o lo -j DROP
}
served_without() { # served_without NODE: nothing is there, and all modules serve elsewhere
  inside "$outpost" status -o json --node "$asked:7001" 2>/dev/null |
    jq -e --arg node "$1" 'all(.modules[]; any(.hosts[]; .state == "serving" and .node != $node))' >/dev/null
}
begin
asked=$network.10
isolate -A shop-2
wait_for "shop-2 is cut off; all modules serve without it" 60 served_without shop-2
[ -z "$health" ] || probe "$network.12" /livez 000 || die "shop-2 is not cut off"
isolate -D shop-2
wait_for "shop-2 is back" 60 ready 3
sleep 3
finish "a node that was cut off"
wait_for "there are three voters again" 60 voters 3

# Most voters are gone: no pod is restarted for it, nothing is changed, and they come back on their volumes.
pod kill --signal KILL shop-1 shop-2 >/dev/null
alone() { # shop-0 answers, and knows nobody who leads
  inside "$outpost" status --local --node "$network.10:7001" >/dev/null 2>&1 &&
    inside "$outpost" status --node "$network.10:7001" -o json 2>/dev/null | jq -e '.leader == ""' >/dev/null
}
wait_for "shop-0 says that it is alone" 30 alone
[ -z "$health" ] || probe "$network.10" /livez 200 || die "shop-0 is not alive without the others"
if inside "$outpost" rollback 1 --why 'nobody can' --node "$network.10:7001" >/dev/null 2>&1; then die "a minority changed the placement"; fi
start 1 "$network.21"
start 2 "$network.12"
asked=$network.10
wait_for "the voters are back" 60 ready 3
wait_for "there are three voters again" 60 voters 3

# A volume that is lost: the pod is a new member under the old name.
pod kill --signal KILL shop-2 >/dev/null
rm -rf "$work/data/shop-2"
start 2 "$network.22"
member() { # its process is asked itself: it is a new member, has joined and votes
  inside "$outpost" status --local --node "$network.22:7001" >/dev/null 2>&1 && asked=$network.22 voters 3 && ready 3
}
wait_for "shop-2 is back without its volume, and there are three voters" 120 member
inside "$outpost" voters >&2

# One more node, and one less.
"$outpost" ca issue shop-3 --cluster shop --dir "$trust" >/dev/null
cp "$trust"/shop-3.pem "$trust"/shop-3.key "$work/secret/shop-trust"
start 3 "$network.13"
wait_for "a fourth node is ready" 60 ready 4
pod stop shop-3 >/dev/null
inside "$outpost" forget shop-3 >&2
wait_for "three nodes are left" 60 ready 3

# A new key of gossip, in the three steps of docs/security.md.
old=$(cat "$trust/gossip.keys")
new=$("$outpost" keyring generate 2>/dev/null)
keys() { # keys COUNT: that every node has so many
  inside "$outpost" keyring list -o json 2>/dev/null |
    jq -e --argjson count "$1" 'length == 3 and all(.gossip_keys | length == $count)' >/dev/null
}
# What each node seals with, a line each.
sealing() { inside "$outpost" keyring list -o json 2>/dev/null | jq -r '.[].gossip_keys[0]'; }
install() { for number in 0 1 2; do printf '%s\n' "$1" >"$work/mounts/shop-$number/gossip/gossip.keys"; done; }
inside "$outpost" keyring list >&2
install "$old"$'\n'"$new"
wait_for "all nodes have two keys" 20 keys 2
before=$(sealing)
install "$new"$'\n'"$old"
changed() { local now; now=$(sealing) && [ "$(sort -u <<<"$now" | wc -l)" = 1 ] && [ "$now" != "$before" ]; }
wait_for "all nodes seal with the new key" 20 changed
install "$new"
wait_for "all nodes have only the new key" 20 keys 1
wait_for "three nodes are ready" 30 ready 3

# New certificates, with the keys that are there.
expiries() { inside "$outpost" nodes -o json 2>/dev/null | jq -c '[.[] | select(.state == "ready") | {name, certificate_expires_ms}] | sort_by(.name)'; }
before=$(expiries)
renewed() { # every node that is ready shows another certificate than before
  expiries | jq -e --argjson before "$before" 'length == 3 and all(. as $now | $before[] | select(.name == $now.name) | .certificate_expires_ms != $now.certificate_expires_ms)' >/dev/null
}
for number in 0 1 2; do
  "$outpost" ca issue "shop-$number" --cluster shop --dir "$trust" --days 7 >/dev/null
  cat "$trust/shop-$number.pem" >"$work/mounts/shop-$number/trust/shop-$number.pem"
done
wait_for "all nodes show their new certificates" 30 renewed
wait_for "three nodes are ready with them" 30 ready 3
for number in 0 1 2; do pod logs "shop-$number" 2>&1 | grep -i certificate | tail -n 1 >&2 || true; done

# Volumes of most voters are lost for good: a new cluster takes the place of the old one, with its placement.
inside "$outpost" history show "$(inside "$outpost" history -o json | jq 'map(.version) | max')" >"$work/placement.toml"
modules() { inside "$outpost" status --node "$asked:7001" -o json | jq -c '[.modules[] | {name, kind, replicas}] | sort'; }
before=$(modules)
for number in 0 1 2; do
  pod rm --force --time 0 "shop-$number" >/dev/null
  rm -rf "$work/data/shop-$number"
done
for number in 0 1 2; do start "$number" "$network.1$number"; done
asked=$network.10
wait_for "a new cluster is ready" 60 ready 3
inside "$outpost" apply "$work/placement.toml" --why 'a new cluster' --node "$asked:7001" >&2
wait_for "it has the placement of the old one" 30 ready 3
[ "$(modules)" = "$before" ] || die "it is not what it was"
say "containers: all is well"
