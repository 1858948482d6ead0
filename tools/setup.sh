#!/usr/bin/env bash
# Fills .venv/ with exactly what requirements.lock names, and with this project on top (editable).
# Does nothing when it has already done so for the same lock and the same pyproject files.
#
# Needs one of: `uv` on the PATH, or any Python 3.8+ with venv (uv then comes from the lock, hash-checked).
# Python 3.12+ is looked for first and fetched by uv only when there is none.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly venv=.venv
readonly stamp=$venv/.vla-mot-setup
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
log=$scratch/log

say() { printf 'setup: %s\n' "$*" >&2; }
die() {
  [ -s "$log" ] && sed 's/^/    /' "$log" >&2
  say "$*"
  exit 1
}

sha256() { if command -v sha256sum >/dev/null; then sha256sum; else shasum -a 256; fi; }

fingerprint() {
  for file in requirements.lock pyproject.toml packages/*/pyproject.toml tools/setup.sh; do
    if [ -e "$file" ]; then echo "$file" && cat "$file"; fi
  done | sha256 | cut -d ' ' -f 1
}

# The scripts in an environment that was moved still name its old place.
venv_works() {
  $venv/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null &&
    grep -qF -e "$PWD/$venv" -e "$(pwd -P)/$venv" $venv/bin/activate
}

# A pyenv shim may exist and still fail: try each one instead of trusting its name.
bootstrap_uv() {
  local python
  awk '/^[^ ]/ { wanted = /^uv==/ } wanted' requirements.lock >"$scratch/uv.txt"
  for python in python3 python3.12 python3.13 python3.14 python /usr/bin/python3; do
    "$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 8))' 2>/dev/null || continue
    "$python" -m venv "$scratch/uv" >"$log" 2>&1 || continue
    "$scratch/uv/bin/python" -m pip install --quiet --require-hashes -r "$scratch/uv.txt" >"$log" 2>&1 ||
      die "could not install uv from the package index. Is the network up? Or install uv yourself and run again."
    uv=$scratch/uv/bin/uv
    return
  done
  die "found neither uv nor a Python 3.8+ with venv. Install one of them (Debian, Ubuntu: the package python3-venv)."
}

find_uv() {
  for uv in uv $venv/bin/uv; do
    if "$uv" --version >/dev/null 2>&1; then return; fi
  done
  bootstrap_uv
}

make_venv() {
  "$uv" venv --quiet --no-python-downloads --python 3.12 $venv 2>"$log" ||
    "$uv" venv --quiet --no-python-downloads --python '>=3.12' $venv 2>>"$log" ||
    "$uv" venv --quiet --python 3.12 $venv 2>>"$log" ||
    die "found no Python 3.12 or newer, and could not fetch one. Install Python 3.12 and run again."
}

install() {
  local quiet=() editable=(-e .) project
  [ -t 2 ] || quiet=(--quiet)
  for project in packages/*/pyproject.toml; do
    if [ -e "$project" ]; then editable+=(-e "${project%/pyproject.toml}"); fi
  done
  say "installing requirements.lock into $venv (about 5 GB the first time)"
  "$uv" pip sync ${quiet[@]+"${quiet[@]}"} --python $venv/bin/python --require-hashes --compile-bytecode requirements.lock ||
    die "could not install requirements.lock; uv's message above says which package."
  # The build backend is in the lock as well, so nothing unhashed is fetched here.
  "$uv" pip install --quiet --offline --python $venv/bin/python --no-deps --no-build-isolation "${editable[@]}" ||
    die "could not install this project into $venv; the message above says which part."
}

wanted=$(fingerprint)
if [ "$(cat $stamp 2>/dev/null)" = "$wanted" ] && venv_works; then exit 0; fi
if [ -e $venv ] && ! venv_works; then
  say "$venv has no Python 3.12+ that works in this folder: making it anew"
  rm -rf $venv
fi
find_uv
[ -e $venv ] || make_venv
rm -f $stamp
install
echo "$wanted" >$stamp
say "ready: $($venv/bin/python --version) in $venv"
