#!/usr/bin/env bash
# Copyright The vk-firkin Authors
# SPDX-License-Identifier: Apache-2.0
#
# Makes what is given to others, in bin/release: for each target an archive that is complete
# (the program, the guest kit of its architecture, the chart, all licences), bills of materials
# (CycloneDX) of the program and of the agent in the kit, and checksums of everything. Then
# hack/releasecheck looks at each of them, and tries this host's archive in an empty folder.
#
#   VERSION   names it; make sets it
#   TARGETS   such as "darwin/arm64", instead of all that this host can make
#
# The program for a Mac needs cgo and Apple's compiler, and is signed: a Mac makes it. On
# another host it is left out, which is said, and is an error where TARGETS asks for it. On a
# Mac the kits are those that were copied from Debian (make guest).
set -euo pipefail
cd "$(dirname "$0")/../.."
fail() {
  echo "release: $*" >&2
  exit 1
}
version=${VERSION:?VERSION is missing: make release sets it}
out=bin/release
kits=${KIT:-bin/guest}
left=

targets=${TARGETS:-linux/amd64 linux/arm64}
if [ -z "${TARGETS:-}" ]; then
  if [ "$(uname -s)" = Darwin ]; then
    targets="$targets darwin/arm64"
  else
    left="darwin/arm64, which only a Mac can build and sign: make release TARGETS=darwin/arm64 on one"
  fi
fi
for target in $targets; do
  case "$target" in
    linux/amd64 | linux/arm64) ;;
    # Without cgo it would link, and have no driver.
    darwin/arm64) [ "$(uname -s)" = Darwin ] || fail "darwin/arm64 needs Apple's compiler and codesign: run it on a Mac" ;;
    *) fail "no such target: $target" ;;
  esac
  kit=$kits/${target#*/}
  if ! [ -f "$kit/kit.json" ] || ! [ -f "$kit/NOTICES.txt" ]; then
    fail "the guest kit in $kit is missing, or is of a time when kits had no NOTICES.txt: make guest on Debian builds it"
  fi
done
kits=$(cd "$kits" && pwd)
# The kit's scratch disk has holes of 16 GiB. bsdtar, macOS' own, keeps holes without being told.
sparse=
if tar --version | grep -q GNU; then sparse=--sparse; fi

rm -rf "$out"
mkdir -p "$out"
umask 022
export COPYFILE_DISABLE=1 # or bsdtar on a Mac adds files for what it cannot say of others
export CGO_ENABLED=0
bill() { (cd hack/release && GOWORK=off go tool cyclonedx-gomod bin -json -version "$1" -output "$2" "$3"); }
go run ./hack/licences -notices "$out/THIRD-PARTY-LICENCES.txt" ./cmd/vk-firkin ./cmd/firkin-agent >/dev/null

for target in $targets; do
  os=${target%/*} arch=${target#*/}
  name=vk-firkin-$version-$os-$arch
  mkdir -p "$out/$name/bin/guest" "$out/$name/charts"
  cgo=0
  [ "$os" != darwin ] || cgo=1
  CGO_ENABLED=$cgo GOOS=$os GOARCH=$arch go build -trimpath -ldflags "-s -w -X main.version=$version" -o "$out/$name/bin/vk-firkin" ./cmd/vk-firkin
  [ "$os" != darwin ] || codesign --force --sign "${CODESIGN_IDENTITY:--}" --entitlements hack/vz.entitlements "$out/$name/bin/vk-firkin"
  cp LICENSE "$out/THIRD-PARTY-LICENCES.txt" "$out/$name/"
  cp -R charts/vk-firkin "$out/$name/charts/"
  bill "$version" "$PWD/$out/$name.cdx.json" "$PWD/$out/$name/bin/vk-firkin"
  # A link, which tar follows: the kit is large.
  ln -s "$kits/$arch" "$out/$name/bin/guest/$arch"
  tar -C "$out" $sparse --dereference -czf "$out/$name.tar.gz" "$name"
  rm -r "${out:?}/$name"
done
for arch in amd64 arm64; do
  case " $targets " in *"/$arch "*) ;; *) continue ;; esac
  # What the kit's agent was built from is read from the agent itself, which the kit's builder keeps.
  agent=$kits/.cache/$arch/firkin-agent
  if [ -f "$agent" ]; then
    bill "$version" "$PWD/$out/guest-kit-$version-$arch.cdx.json" "$agent"
  else
    left="$left
  the bill of materials of the guest kit for $arch: make guest builds the kit here, and keeps what it is read from"
  fi
done
sum() { if command -v sha256sum >/dev/null; then sha256sum "$@"; else shasum -a 256 "$@"; fi; }
(cd "$out" && sum -- * >../SHA256SUMS.new && mv ../SHA256SUMS.new SHA256SUMS)
go run ./hack/releasecheck --dir "$out" --version "$version" --kits "$kits"
ls -l "$out"
[ -z "$left" ] || echo "release: left out: $left" >&2
