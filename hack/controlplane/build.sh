#!/usr/bin/env bash
# Copyright The vk-firkin Authors
# SPDX-License-Identifier: Apache-2.0
#
# build.sh [OUT]: build the control plane binary into OUT (default bin/controlplane beside this script). Does
# nothing when OUT was built from the same inputs. The first build compiles all of Kubernetes: about 8 minutes on 2 cores.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=${1:-$here/bin/controlplane}
mkdir -p "$(dirname "$out")"
out=$(cd "$(dirname "$out")" && pwd)/$(basename "$out")
cd "$here"

# One setting for every build: another would compile everything once more.
export CGO_ENABLED=0 GOFLAGS=-mod=readonly GOWORK=off

kubernetes=$(go list -m -f '{{.Version}}' k8s.io/kubernetes) # v1.36.3
minor=${kubernetes#v1.}
minor=${minor%%.*}
stamps="-s -w"
for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
	stamps+=" -X $package.gitVersion=$kubernetes -X $package.gitMajor=1 -X $package.gitMinor=$minor -X $package.gitTreeState=clean"
done

# What the binary is made of: the sources without tests, the modules, the compiler and the flags.
digest() {
	{
		printf '%s\n' "$(go version)" "$(go env GOOS GOARCH)" "$stamps"
		find . -name '*.go' ! -name '*_test.go' ! -path './bin/*' -o -name go.mod -o -name go.sum | LC_ALL=C sort | xargs cksum
	} | cksum
}

inputs=$(digest)
if [ -x "$out" ] && [ "$(cat "$out.inputs" 2>/dev/null || true)" = "$inputs" ]; then
	echo "controlplane: $out is up to date"
	exit 0
fi

echo "controlplane: building Kubernetes $kubernetes (about 8 minutes on 2 cores the first time, then less than one)"
SECONDS=0
new=$out.new.$$ # beside OUT, so that OUT is replaced at once; its own, so that two builds do not meet
go build -trimpath -ldflags "$stamps" -o "$new" . &
build=$!
trap 'kill "$build" 2>/dev/null || true; rm -f "$new"' EXIT
next=20
while kill -0 "$build" 2>/dev/null; do
	sleep 1
	if [ "$SECONDS" -ge "$next" ]; then
		echo "controlplane: still building after $SECONDS s"
		next=$((next + 20))
	fi
done
wait "$build"
mv "$new" "$out"
echo "$inputs" >"$out.inputs"
trap - EXIT
echo "controlplane: built $out in $SECONDS s"
