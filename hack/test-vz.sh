#!/usr/bin/env bash
# Copyright The vk-firkin Authors
# SPDX-License-Identifier: Apache-2.0
#
# Tests vk-firkin on the hypervisor that it is for: on a Mac with Apple silicon, the tests
# of vm/vz and the conformance suite over Virtualization.framework, then the users' stories
# on a node of this Mac.
#
# THIS SCRIPT HAS NEVER BEEN RUN ON A MAC. It was written without one.
#
# Usage: test-vz.sh [conformance | e2e]   (both when none is named)
#
#   FIRKIN_KIT_DIR     folder of the guest kits (default bin/guest): it is built on Debian,
#                      by make guest, and copied here
#   FIRKIN_BUSYBOX     for e2e: a static busybox for Linux on arm64, and beside it
#                      $FIRKIN_BUSYBOX.list with what "busybox --list" prints. On Debian
#                      (on amd64 after dpkg --add-architecture arm64 && apt-get update):
#                        apt-get download busybox-static:arm64 && dpkg-deb -x busybox-static_*_arm64.deb .
#                      and the list from the package busybox-static of that host
#   CODESIGN_IDENTITY  who signs (default "-": ad hoc)
#
# It keeps to what bash 3.2 knows, which is the one of macOS.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() {
  echo "test-vz: $*" >&2
  exit 1
}

step() { printf '\n== %s\n' "$*"; }

what=${1:-all}
case "$what" in
  all | conformance | e2e) ;;
  *) fail "usage: $0 [conformance | e2e]" ;;
esac

[ "$(uname -s)" = Darwin ] || fail "this needs a Mac: Virtualization.framework is part of macOS, this is $(uname -s). On Linux, make test runs the same suites on QEMU and on the simulator."
[ "$(uname -m)" = arm64 ] || fail "this needs Apple silicon: other Macs cannot save machines. In a terminal under Rosetta: arch -arm64 make test-vz"
for program in go codesign cc; do
  command -v "$program" >/dev/null || fail "$program is missing (xcode-select --install has codesign and cc; Go is from go.dev)"
done

entitlements=$PWD/hack/vz.entitlements
[ -f "$entitlements" ] || fail "$entitlements is missing"
identity=${CODESIGN_IDENTITY:--}
export FIRKIN_BIN_DIR=$PWD/bin
export FIRKIN_KIT_DIR=${FIRKIN_KIT_DIR:-$PWD/bin/guest}
[ -f "$FIRKIN_KIT_DIR/arm64/kit.json" ] || fail "there is no guest kit in $FIRKIN_KIT_DIR/arm64: build it on Debian with make guest, and copy bin/guest/arm64 here"

# Short: macOS allows 104 bytes for the path of a socket, and its own temporary folder
# takes half of them.
TMPDIR=$(mktemp -d /tmp/fkXXXX)
export TMPDIR
trap 'rm -rf "$TMPDIR"' EXIT

step "vk-firkin, signed"
CGO_ENABLED=1 go build -o bin/vk-firkin ./cmd/vk-firkin
codesign --force --sign "$identity" --entitlements "$entitlements" bin/vk-firkin

step "What this Mac is"
mkdir -p "$TMPDIR/s" "$TMPDIR/c"
bin/vk-firkin doctor --skip-boot --guest-kit "$FIRKIN_KIT_DIR/arm64" --state-dir "$TMPDIR/s" --cache-dir "$TMPDIR/c" ||
  fail "remedy what doctor says first"

failed=

# conformance runs every test binary of vm/vz and test/mac, each signed: what calls the
# framework needs the entitlement, whoever starts it.
conformance() {
  step "Tests of vm/vz and the conformance suite"
  mkdir -p bin/test
  # Not through a pipe: the loop sets failed.
  CGO_ENABLED=1 go list -tags machines -f '{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}} {{.Dir}}{{end}}' ./vm/vz/... ./test/mac >bin/test/packages
  grep -q '/test/mac ' bin/test/packages || fail "test/mac has no tests here: the conformance suite would not run"
  while read -r package dir; do
    binary=$PWD/bin/test/$(echo "${package##*vk-firkin/}" | tr / -).test
    echo "-- $package"
    CGO_ENABLED=1 go test -c -tags machines -o "$binary" "$package"
    codesign --force --sign "$identity" --entitlements "$entitlements" "$binary"
    (cd "$dir" && "$binary" -test.v -test.count 1 -test.timeout 30m </dev/null) || failed="$failed ${package##*vk-firkin/}"
  done <bin/test/packages
}

# e2e runs the stories; the node that they start is bin/vk-firkin, whose driver is vz here.
e2e() {
  step "Stories"
  { [ -f "${FIRKIN_BUSYBOX:-}" ] && [ -f "${FIRKIN_BUSYBOX:-}.list" ]; } ||
    fail "FIRKIN_BUSYBOX must name a static busybox for Linux on arm64, with its .list beside it: see the head of $0"
  hack/controlplane/build.sh
  FIRKIN_CONTROLPLANE=$PWD/hack/controlplane/bin/controlplane CGO_ENABLED=0 \
    go test -tags e2e -count 1 -p 1 -v -timeout 50m ./test/e2e/... || failed="$failed test/e2e"
}

case "$what" in
  all)
    conformance
    e2e
    ;;
  *) "$what" ;;
esac

[ -z "$failed" ] || fail "failed:$failed"
step "All passed"
