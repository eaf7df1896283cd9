#!/usr/bin/env bash
# Renders kubernetes/ from the chart, for those who use no Helm. With --check, writes nothing and fails where the two differ.
set -euo pipefail
source "$(dirname "$0")/lib.sh"

check=
case ${1:-} in
  '') ;;
  --check) check=yes ;;
  *) die "usage: render.sh [--check]" ;;
esac
need_helm

# What says that Helm manages something is not true of these.
plain() { sed -e '/helm\.sh\//d' -e '/app\.kubernetes\.io\/managed-by:/d' -e 's/[[:space:]]*$//' -e '/^# Source:/d' | cat -s; }

render() { # render OUTPUT ARGUMENT...
  local output=$1 rendered
  shift
  # The version is said, so that the result does not hang on Helm's own idea of the newest.
  rendered=$("$HELM" template shop "$deploy/helm/outpost" --kube-version 1.34.0 "$@" | plain)
  # The annotations of hooks are gone: what is left of their heading goes too.
  rendered=$(printf '# Rendered by deploy/render.sh from the chart: change values.yaml, not this.\n%s\n' "$rendered" |
    sed -z 's/\n  annotations:\nspec:/\nspec:/g')
  if [ -z "$check" ]; then
    printf '%s\n' "$rendered" >"$output"
  elif ! diff -u "$output" <(printf '%s\n' "$rendered") >&2; then
    die "${output#"$deploy/"} is not what the chart renders; run deploy/render.sh"
  fi
}

here=$deploy/kubernetes
render "$here/outpost.yaml" -f "$here/values.yaml" --no-hooks
render "$here/placement/placement.yaml" -f "$here/values.yaml" -f "$here/placement/values.yaml" \
  -s templates/tool-config.yaml -s templates/placement.yaml
