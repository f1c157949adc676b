#!/usr/bin/env bash
# Copyright The vk-firkin Authors
# SPDX-License-Identifier: Apache-2.0
#
# Runs every fuzz target in the repository, one after the other.
# Usage: fuzz.sh [TIME]   (default 30s each)
set -euo pipefail
cd "$(dirname "$0")/.."
time=${1:-30s}
git grep -lE '^func Fuzz[A-Za-z0-9_]+\(' -- '*_test.go' | while read -r file; do
  dir=./$(dirname "$file")
  grep -oE '^func Fuzz[A-Za-z0-9_]+' "$file" | awk '{print $2}' | while read -r target; do
    echo "== $dir $target ($time)"
    # Minimizing what was found may take a minute each, in which nothing new is tried: a moment is enough.
    go test "$dir" -run '^$' -fuzz "^${target}\$" -fuzztime "$time" -fuzzminimizetime 2s </dev/null
  done
done
