#!/usr/bin/env bash
# Checks the chart, the manifests made from it and the scripts. Writes nothing in the tree. What it needs is fetched once,
# into a cache outside of it. A line for each step; ends with 1 at the first thing that is wrong.
set -euo pipefail
source "$(dirname "$0")/lib.sh"
export PYTHONDONTWRITEBYTECODE=1

# The oldest, a middle and the newest Kubernetes whose schemas the manifests must fit.
versions=(1.32.0 1.34.0 1.37.0)
# Findings of checkov that are meant:
#   CKV_K8S_11   no limit on CPU: it would slow down a node that has work, and the cluster would take it for dead
#   CKV_K8S_21   the namespace is the user's to choose
#   CKV_K8S_35   variables from Secrets: only what a user adds, for modules
#   CKV_K8S_15, CKV_K8S_43   images are pulled when they are absent, by tag or digest as the user says
#   CKV2_K8S_6   the job and the test have no NetworkPolicy: they listen on nothing
#   CKV_K8S_8, CKV_K8S_9   probes of what runs once: the job and the test
skipped=CKV_K8S_11,CKV_K8S_15,CKV_K8S_21,CKV_K8S_35,CKV_K8S_43,CKV2_K8S_6
skipped_once=CKV_K8S_8,CKV_K8S_9

step() { printf '%-52s' "$1"; started=$EPOCHREALTIME; }
ok() { printf ' ok %4.1f s  %s\n' "$(awk "BEGIN { print $EPOCHREALTIME - $started }")" "${1:-}"; }
try() { # try COMMAND...: shows what it said only if it fails
  local said
  said=$("$@" 2>&1) || { printf ' FAILED\n%s\n' "$said"; exit 1; }
}

need_python
need_helm
chart=$deploy/helm/outpost
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

step "scripts parse"
for script in "$deploy"/*.sh; do try bash -n "$script"; done
if command -v shellcheck >/dev/null; then try shellcheck -x -P "$deploy" "$deploy"/*.sh; ok; else ok "without shellcheck, which is not here"; fi

step "helm lint --strict"
for values in "$chart"/ci/*-values.yaml; do try "$HELM" lint --strict --quiet -f "$values" "$chart"; done
ok

step "helm template, every value file, three versions"
mkdir "$work/rendered"
count=0
for values in "$chart"/ci/*-values.yaml; do
  for version in "${versions[@]}"; do
    output=$work/rendered/$(basename "$values" -values.yaml)-$version.yaml
    render=("$HELM" template shop "$chart" --namespace prod --kube-version "$version" -f "$values")
    "${render[@]}" >"$output" 2>"$work/error" || { printf ' FAILED\n%s: ' "$values"; cat "$work/error"; exit 1; }
    count=$((count + 1))
  done
done
ok "$count renderings"

step "schemas of Kubernetes"
mkdir "$work/plain"
"$CHECKS_PYTHON" - "$work" <<'P'
import pathlib, sys, yaml

# What is Kubernetes' own: of the Prometheus operator's kinds, its schemas know nothing.
work = pathlib.Path(sys.argv[1])
for file in (work / "rendered").glob("*.yaml"):
    known = [each for each in yaml.safe_load_all(file.read_text()) if each and "coreos.com" not in each["apiVersion"]]
    (work / "plain" / file.name).write_text(yaml.safe_dump_all(known))
P
for version in "${versions[@]}"; do
  try "$CHECKS_PYTHON" -m kubernetes_validate --strict --quiet -k "$version" "$work"/plain/*-"$version".yaml \
    "$deploy/kubernetes/outpost.yaml" "$deploy/kubernetes/placement/placement.yaml"
done
ok "${versions[*]}"

step "our own rules"
try "$CHECKS_PYTHON" "$deploy/check/rules.py" manifests "$work"/rendered/*.yaml "$deploy/kubernetes/outpost.yaml" \
  "$deploy/kubernetes/placement/placement.yaml"
ok

step "values that must be refused"
try "$CHECKS_PYTHON" "$deploy/check/rules.py" refused "$HELM" "$chart" "$deploy/check/refused"
ok

step "what a change of values may change"
try "$CHECKS_PYTHON" "$deploy/check/rules.py" changes "$HELM" "$chart"
ok

step "values.yaml, its schema and the README name the same"
try "$CHECKS_PYTHON" "$deploy/check/values.py" "$chart"
ok

step "alerts"
if command -v promtool >/dev/null; then try promtool test rules "$deploy/check/alerts.test.yaml"; ok; else ok "without promtool, which is not here"; fi

step "yamllint"
try "$CHECKS_PYTHON" -m yamllint --strict -c "$deploy/check/yamllint.yaml" "$chart/Chart.yaml" "$chart/values.yaml" "$chart/ci" "$chart/files" \
  "$deploy/check/alerts.test.yaml" \
  "$deploy/check/refused" "$deploy/kubernetes"
ok

step "kubernetes/ is what the chart renders"
try env HELM="$HELM" "$deploy/render.sh" --check
if command -v kubectl >/dev/null; then
  try kubectl kustomize "$deploy/kubernetes"
  try kubectl kustomize "$deploy/kubernetes/placement"
  ok
else
  ok "without kubectl kustomize, which is not here"
fi

step "helm package"
try "$HELM" package "$chart" -d "$work"
ok

step "checkov"
mkdir "$work/nodes" "$work/once"
newest=${versions[-1]}
for values in csi secret ipv6; do cp "$work/rendered/$values-$newest.yaml" "$work/nodes"; done
"$CHECKS_PYTHON" - "$work" <<'P'
import pathlib, sys, yaml

# Pods that run once are judged by themselves: they need no probes.
work = pathlib.Path(sys.argv[1])
for file in sorted((work / "nodes").glob("*.yaml")):
    once, rest = [], []
    for manifest in filter(None, yaml.safe_load_all(file.read_text())):
        (once if manifest["kind"] in ("Job", "Pod") else rest).append(manifest)
    file.write_text(yaml.safe_dump_all(rest))
    if once:
        (work / "once" / file.name).write_text(yaml.safe_dump_all(once))
P
checkov=$(dirname "$CHECKS_PYTHON")/checkov
try "$checkov" -d "$work/nodes" --framework kubernetes --compact --quiet --skip-download --skip-check "$skipped"
try "$checkov" -d "$work/once" --framework kubernetes --compact --quiet --skip-download --skip-check "$skipped,$skipped_once"
ok

printf 'deploy: all is well\n'
