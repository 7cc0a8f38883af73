#!/usr/bin/env bash
# Print the path of an interpreter of version $1: one on PATH, pyenv's, or Debian unstable's.
# Fail where there is none.
set -euo pipefail
cd "$(dirname "$0")/.."

version=$1
bin=$PWD/${VENV:-.venv}/bin
root=$PWD/build/debian-python$version

find_installed() { # uv skips pyenv's shims of versions that are not selected; so name their folders
  PATH="$PATH:$(printf '%s:' "${PYENV_ROOT:-$HOME/.pyenv}"/versions/*/bin)$root/usr/bin" \
    "$bin/uv" python find --system --no-project "$version" 2>/dev/null
}

# Debian's unstable has Pythons that its stable has not. One is unpacked, with the C library that it
# needs, into a folder of its own, where it disturbs nothing; apt checks the signatures as always.
unpack_from_debian() {
  local apt=$root/apt mirror
  # The mirror that this machine uses anyway.
  mirror=$({ grep -rhoE 'https?://[^ ]+/debian/?( |$)' /etc/apt/ --include=sources.list \
    --include='*.sources' --include='*.list' || true; } | grep -v archive | head -n 1 | tr -d ' ')
  [ -n "$mirror" ] || return 1
  mkdir -p "$apt/lists/partial" "$apt/archives/partial"
  touch "$apt/status"
  echo "deb $mirror unstable main" >"$apt/sources.list"
  cat >"$apt/apt.conf" <<CONF
Dir::State "$apt";
Dir::State::status "$apt/status";
Dir::Cache "$apt";
Dir::Etc::SourceList "$apt/sources.list";
Dir::Etc::SourceParts "-";
Acquire::Languages "none";
CONF
  export APT_CONFIG=$apt/apt.conf
  apt-get -qq update
  apt-get -qq -y --no-install-recommends --download-only install "python$version" "python$version-venv"
  for package in "$apt"/archives/*.deb; do dpkg-deb -x "$package" "$root"; done
  local libraries=$root/usr/lib/x86_64-linux-gnu
  "$bin/patchelf" --set-interpreter "$libraries/ld-linux-x86-64.so.2" \
    --force-rpath --set-rpath "$libraries" "$root/usr/bin/python$version"
}

find_installed && exit
# Debian has no free-threaded ones.
[[ $version != *t && $(uname -m) = x86_64 ]] && command -v apt-get >/dev/null || exit 1
rm -rf "$root"
trap '[ $? = 0 ] || rm -rf "$root"' EXIT
unpack_from_debian >&2
find_installed
