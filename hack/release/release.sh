#!/usr/bin/env bash
# Copyright The vk-firkin Authors
# SPDX-License-Identifier: Apache-2.0
#
# Makes what is given to others, in bin/release: an archive of the program for each target,
# one of each guest kit, the licences of all that is linked, a bill of materials (CycloneDX)
# of each program, and checksums of everything. VERSION names it.
#
# The program for a Mac needs cgo and Apple's compiler, and is signed: a Mac makes it. On
# another host it is left out, which is said.
set -euo pipefail
cd "$(dirname "$0")/../.."
version=${VERSION:?VERSION is missing: make release sets it}
out=bin/release
kits=${KIT:-bin/guest}
rm -rf "$out"
mkdir -p "$out"
umask 022

targets=${TARGETS:-linux/amd64 linux/arm64}
if [ -n "${TARGETS:-}" ]; then
  echo "release: only $targets, as TARGETS says" >&2
elif [ "$(uname -s)" = Darwin ]; then
  targets="$targets darwin/arm64"
else
  echo "release: left out: darwin/arm64, which only a Mac can build and sign" >&2
fi
export CGO_ENABLED=0
go run ./hack/licences -notices "$out/THIRD-PARTY-LICENCES.txt" ./cmd/vk-firkin ./cmd/firkin-agent >/dev/null
for target in $targets; do
  os=${target%/*} arch=${target#*/}
  name=vk-firkin-$version-$os-$arch
  mkdir "$out/$name"
  if [ "$os" = darwin ]; then
    CGO_ENABLED=1 GOOS=$os GOARCH=$arch go build -trimpath -ldflags "-s -w -X main.version=$version" -o "$out/$name/vk-firkin" ./cmd/vk-firkin
    codesign --force --sign "${CODESIGN_IDENTITY:--}" --entitlements hack/vz.entitlements "$out/$name/vk-firkin"
  else
    GOOS=$os GOARCH=$arch go build -trimpath -ldflags "-s -w -X main.version=$version" -o "$out/$name/vk-firkin" ./cmd/vk-firkin
  fi
  cp LICENSE "$out/THIRD-PARTY-LICENCES.txt" "$out/$name/"
  (cd hack/release && GOWORK=off go tool cyclonedx-gomod bin -json -version "$version" -output "../../$out/$name.cdx.json" "../../$out/$name/vk-firkin")
  tar -C "$out" -czf "$out/$name.tar.gz" "$name"
  rm -r "${out:?}/$name"
done
for arch in amd64 arm64; do
  if [ -f "$kits/$arch/kit.json" ]; then
    tar -C "$kits" -czf "$out/guest-kit-$version-$arch.tar.gz" "$arch"
  else
    echo "release: left out: the guest kit for $arch, make guest builds it (on Debian)" >&2
  fi
done
sum() { if command -v sha256sum >/dev/null; then sha256sum "$@"; else shasum -a 256 "$@"; fi; }
(cd "$out" && sum -- * >SHA256SUMS.new && mv SHA256SUMS.new SHA256SUMS)
ls -l "$out"
