#!/usr/bin/env bash
# Copyright The vk-firkin Authors
# SPDX-License-Identifier: Apache-2.0
#
# Generates crds/firkin.dev_*.yaml and the deep copies of crds/v1alpha1. The generator is
# built at the version that hack/tools/go.mod pins; CONTROLLER_GEN names a built one.
set -euo pipefail
cd "$(dirname "$0")/.."
generator=${CONTROLLER_GEN:-go tool -modfile=hack/tools/go.mod controller-gen}
$generator object:headerFile=hack/boilerplate.go.txt crd paths=./crds/v1alpha1 output:crd:dir=crds
cp crds/firkin.dev_*.yaml charts/vk-firkin/files/crds/ # Helm reads nothing outside of the chart
