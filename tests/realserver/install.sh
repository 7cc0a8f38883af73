#!/usr/bin/env bash
# Installs the servers that the tests marked `realserver` run against; where they are there already, it does nothing.
# `install.sh node` leaves nginx alone, which only root can install.
set -euo pipefail
cd "$(dirname "$0")"

if [ "${1:-}" != node ] && ! PATH=$PATH:/usr/sbin command -v nginx >/dev/null; then
  apt-get update -q
  apt-get install -y -q --no-install-recommends nginx-light
fi

# One at a time: test processes that run side by side may both come here.
exec 9<package.json
flock 9
if ! npm ls --depth=0 >/dev/null 2>&1; then
  # No lock file, since one would name a registry's host; what package.json names is pinned there.
  npm install --no-package-lock --no-audit --no-fund --no-progress --loglevel=error
fi
