#!/usr/bin/env bash
# Copyright The vk-firkin Authors
# SPDX-License-Identifier: Apache-2.0
#
# Installs the Debian packages that a target needs and this host lacks.
# Usage: prerequisites.sh guest | test | demo | shell
set -euo pipefail

command -v go >/dev/null || { echo "Go 1.26 or newer is missing: install it first" >&2; exit 1; }

# command or file => Debian package
guest=(
  "gcc=gcc"
  "/usr/include/stdio.h=libc6-dev"
  "aarch64-linux-gnu-gcc=gcc-aarch64-linux-gnu"
  "/usr/aarch64-linux-gnu/include/stdio.h=libc6-dev-arm64-cross"
  "mkfs.ext4=e2fsprogs"
  "dpkg-deb=dpkg"
  "xz=xz-utils" # newer kernel packages compress their modules
)
machines=(
  "qemu-system-x86_64=qemu-system-x86"
  "qemu-system-aarch64=qemu-system-arm"
)
images=(
  "/bin/busybox=busybox-static"
  "debootstrap=debootstrap"
)

shell=("shellcheck=shellcheck")

services=("/lib/systemd/systemd=systemd") # what the unit is tried under

case "${1:-}" in
  guest) want=("${guest[@]}") ;;
  shell) want=("${shell[@]}") ;;
  demo) want=("${guest[@]}" "${machines[@]}" "${images[@]}") ;;
  test) want=("${guest[@]}" "${machines[@]}" "${images[@]}" "${services[@]}" "${shell[@]}") ;;
  *) echo "usage: $0 guest|test|demo|shell" >&2; exit 2 ;;
esac

missing=()
for entry in "${want[@]}"; do
  probe=${entry%%=*} package=${entry#*=}
  case "$probe" in
    /*) [ -e "$probe" ] || missing+=("$package") ;;
    *) PATH="$PATH:/usr/sbin:/sbin" command -v "$probe" >/dev/null || missing+=("$package") ;;
  esac
done
[ ${#missing[@]} -gt 0 ] || exit 0

command -v apt-get >/dev/null || {
  echo "missing: ${missing[*]} (Debian package names); install them, this host has no apt-get" >&2
  exit 1
}
sudo=()
if [ "$(id -u)" != 0 ]; then
  command -v sudo >/dev/null || { echo "missing: ${missing[*]}; become root or install sudo" >&2; exit 1; }
  sudo=(sudo)
fi
echo "Installing Debian packages: ${missing[*]}"
"${sudo[@]}" apt-get update -qq
"${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
