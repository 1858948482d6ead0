#!/usr/bin/env bash
# Meta-World's pictures are drawn through EGL or OSMesa. Where neither works and apt-get may install, EGL with Mesa's
# software renderer comes from Debian; elsewhere the tests that draw are skipped, and say so.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

works() { .venv/bin/python -c 'from vla_mot.evaluate.metaworld import graphics; graphics.choose()' 2>/dev/null; }

if works; then exit 0; fi
if command -v apt-get >/dev/null && [ "$(id -u)" = 0 ]; then
  export DEBIAN_FRONTEND=noninteractive
  apt-get -qq update && apt-get -qq install -y --no-install-recommends libegl1 libgl1 libgl1-mesa-dri >/dev/null || true
fi
works || echo "graphics: neither EGL nor OSMesa works here, so tests that draw Meta-World are skipped" >&2
