#!/usr/bin/env bash
# Copyright The vk-firkin Authors
# SPDX-License-Identifier: Apache-2.0
#
# build.sh [OUT]: build what the conformance run needs of Kubernetes into the folder OUT (default bin beside this script):
# e2e.test, the test binary, ginkgo, which runs it, and programs and
# files of the test images. Does nothing when OUT was built from the same
# inputs. After the control plane it compiles for about 4 CPU-minutes more; without it, everything.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=${1:-$here/bin}
mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$here"

# As hack/controlplane/build.sh: with other settings everything would be compiled once more.
export CGO_ENABLED=0 GOFLAGS=-mod=readonly GOWORK=off

kubernetes=$(go list -m -f '{{.Version}}' k8s.io/kubernetes) # v1.36.3
minor=${kubernetes#v1.}
minor=${minor%%.*}
stamps="-s -w"
for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
	stamps+=" -X $package.gitVersion=$kubernetes -X $package.gitMajor=1 -X $package.gitMinor=$minor -X $package.gitTreeState=clean"
done

inputs=$(
	{
		printf '%s\n' "$(go version)" "$(go env GOOS GOARCH)" "$stamps"
		cksum build.sh go.mod go.sum ../sh/sh.c
	} | cksum
)
if [ "$(cat "$out/inputs" 2>/dev/null || true)" = "$inputs" ]; then
	echo "conformance: $out is up to date"
	exit 0
fi

echo "conformance: building the test programs of Kubernetes $kubernetes (about 5 CPU-minutes beyond the control plane)"
SECONDS=0
new=$out/.new.$$
mkdir "$new"
trap 'rm -rf "$new"' EXIT
go test -c -trimpath -ldflags "$stamps" -o "$new/e2e.test" k8s.io/kubernetes/test/e2e
go build -trimpath -ldflags "-s -w" -o "$new/ginkgo" github.com/onsi/ginkgo/v2/ginkgo
sources=$(go list -m -f '{{.Dir}}' k8s.io/kubernetes)/test/images
go build -trimpath -ldflags "-s -w -X main.Version=$(cat "$sources/agnhost/VERSION")" -o "$new/agnhost" k8s.io/kubernetes/test/images/agnhost
go build -trimpath -ldflags "-s -w" -o "$new/nonewprivs" k8s.io/kubernetes/test/images/nonewprivs
gcc -static -Os -s -o "$new/sh" ../sh/sh.c
install -D -m 0644 -t "$new/agnhost-files" "$sources/agnhost/porter/localhost.crt" "$sources/agnhost/porter/localhost.key"
install -D -m 0644 -t "$new/kitten-files" "$sources"/kitten/html/*
rm -rf "${out:?}"/*
mv "$new"/* "$out/"
echo "$inputs" >"$out/inputs"
echo "conformance: built $out in $SECONDS s"
