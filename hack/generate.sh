#!/usr/bin/env bash
# Copyright The vk-firkin Authors
# SPDX-License-Identifier: Apache-2.0
#
# Generates the Go code of the guest protocol from vm/guest/proto. Needs protoc
# (Debian: protobuf-compiler); the plugins are built at the versions in go.mod.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v protoc >/dev/null || { echo "protoc is missing: install the Debian package protobuf-compiler" >&2; exit 1; }
plugins=$(mktemp -d)
trap 'rm -rf "$plugins"' EXIT
go build -o "$plugins/protoc-gen-go" google.golang.org/protobuf/cmd/protoc-gen-go
go build -o "$plugins/protoc-gen-connect-go" connectrpc.com/connect/cmd/protoc-gen-connect-go
module=github.com/vk-firkin/vk-firkin
PATH="$plugins:$PATH" protoc -I vm/guest/proto \
  --go_out=. --go_opt=module="$module" \
  --connect-go_out=. --connect-go_opt=module="$module" \
  firkin/agent/v1/agent.proto process/process.proto
