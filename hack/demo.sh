#!/usr/bin/env bash
# Copyright The vk-firkin Authors
# SPDX-License-Identifier: Apache-2.0
#
# The demo: from a fresh Debian machine with Go to pods on restored machines, with the
# figures of this run. KEEP=1 leaves everything up; `demo.sh down` ends it.
set -euo pipefail
cd "$(dirname "$0")/.."

# Short, because the sockets of machines are below it; the same for every run, so that
# snapshots and images of the last one are used again.
dir=${FIRKIN_DEMO_DIR:-/tmp/firkin-demo-$(id -u)}

step() { printf '\n\033[1m== %s\033[0m\n' "$*"; }

down() {
  [ -f "$dir/up.pid" ] || return 0
  pid=$(cat "$dir/up.pid")
  # The file may be older than the last reboot: end only what is ours.
  if tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -q 'demo up'; then
    kill "$pid" 2>/dev/null || true
    for _ in $(seq 1 300); do
      [ -e "/proc/$pid" ] || break
      sleep 0.1
    done
  fi
  rm -f "$dir/up.pid"
}

if [ "${1:-}" = down ]; then
  down
  exit 0
fi

(umask 077 && mkdir -p "$dir") # secrets of the demo cluster are below it
down
[ "${KEEP:-}" = 1 ] || trap down EXIT

step "Debian packages"
hack/prerequisites.sh demo

step "vk-firkin and the demo's own tools"
make --no-print-directory build
go build -o bin/demo ./hack/demo
go build -o bin/bench ./hack/bench
go build -o bin/podbench ./hack/podbench

step "Guest kits (kernel, initramfs with the agent)"
make --no-print-directory guest

step "Control plane (about 8 minutes the first time on 2 cores)"
make --no-print-directory controlplane

step "Starting registry, control plane, controller and node"
rm -f "$dir/up.json"
setsid bin/demo up --dir "$dir" >"$dir/up.log" 2>&1 </dev/null &
echo $! >"$dir/up.pid"
bin/demo wait --dir "$dir"

bin/demo run --dir "$dir"

step "Measured here, now"
# A target that is missed, on a host that is busy with something else, does not end the demo.
missed() { echo "(on a busy host: make bench repeats it with more samples)"; }
bin/bench --kit "bin/guest/$(go env GOARCH)" --samples 3 --json >"$dir/bench.json" || missed
bin/podbench --kubeconfig "$dir/cp/admin.kubeconfig" --image "$(bin/demo registry --dir "$dir")/busybox:latest" --samples 3 --json >"$dir/podbench.json" || missed
bin/demo table --dir "$dir"

if [ "${KEEP:-}" = 1 ]; then
  cat <<END

The cluster stays up. To use it (its kubectl is in the same folder's bin):

  export KUBECONFIG=$dir/cp/admin.kubeconfig
  $dir/cp/bin/kubectl get pods

make demo-down ends it.
END
fi
