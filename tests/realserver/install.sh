#!/usr/bin/env bash
# Installs the servers that the tests marked `realserver` run against, and the shells whose completion is tested;
# where they are there already, it does nothing.
# `install.sh node` leaves Debian's packages alone, which only root can install.
# `install.sh airflow` installs Airflow into an environment of its own: 150 packages, so only on demand.
set -euo pipefail
cd "$(dirname "$0")"

if [ "${1:-}" = airflow ]; then
  [ -x airflow/.venv/bin/airflow ] && exit
  python3 -m venv airflow/.venv
  install=(airflow/.venv/bin/pip install)
  if command -v uv >/dev/null; then install=(uv pip install --python airflow/.venv); fi # in seconds
  "${install[@]}" -q 'apache-airflow>=3.1' 'aiohttp>=3.14.4' 'attrs>=25.1' 'tenacity>=9.1.2'
  exit
fi

if [ "${1:-}" != node ]; then
  missing=()
  export PATH=$PATH:/usr/sbin
  command -v nginx >/dev/null || missing+=(nginx-light)
  command -v redis-server >/dev/null || missing+=(redis-server)
  command -v tinyproxy >/dev/null || missing+=(tinyproxy)
  command -v chromium >/dev/null || missing+=(chromium)
  command -v chromedriver >/dev/null || missing+=(chromium-driver)
  command -v fish >/dev/null || missing+=(fish)
  command -v zsh >/dev/null || missing+=(zsh)
  if [ "${#missing[@]}" -gt 0 ]; then
    apt-get update -q
    RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}"
  fi
fi

# One at a time: test processes that run side by side may both come here.
exec 9<package.json
flock 9
if ! npm ls --depth=0 >/dev/null 2>&1; then
  # No lock file, since one would name a registry's host; what package.json names is pinned there.
  npm install --no-package-lock --no-audit --no-fund --no-progress --loglevel=error
fi

cd nest-server
if ! npm ls --depth=0 >/dev/null 2>&1; then
  # throttler 5 stands beside 6, and asks for an older Nest.
  npm install --legacy-peer-deps --no-package-lock --no-audit --no-fund --no-progress --loglevel=error
fi
npm run --silent build
