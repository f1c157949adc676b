#!/usr/bin/env bash
# Copyright The vk-firkin Authors
# SPDX-License-Identifier: Apache-2.0
#
# The users' stories in a cluster of kind, with this host as its node: on a Mac over
# Virtualization.framework, on Linux over QEMU. It makes the cluster, installs the chart,
# joins this host with the command that the chart prints, and runs test/e2e, which KUBECONFIG
# leads to that cluster. docs/testing.md has what has been run of it, and where.
#
# Usage: e2e-kind.sh [--dry-run] [--kubeconfig FILE]
#
#   --dry-run           print what would be run, and run nothing
#   --kubeconfig FILE   a cluster that is for tests and runs already, instead of a new one of kind;
#                       the chart is installed in it, and removed at the end
#
#   KEEP=1              leave the cluster up (and the chart in it)
#   RUN, SKIP           regular expressions: the stories to run (default all), and not to run
#   CLUSTER             name of kind's cluster (default vk-firkin-e2e)
#   FIRKIN_NODE_IP      where the cluster reaches this host (found out by default)
#   NO_IMAGE=1          run the controller as a process of this host, not in the cluster
#   KUBECTL             the command (default kubectl)
#   FIRKIN_BUSYBOX      on a Mac: see the head of hack/test-vz.sh
#
# It keeps to what bash 3.2 knows, which is the one of macOS.
set -euo pipefail
# What is relative is so to where it was typed, and tests run in folders of their own.
absolute() {
  case "$1" in
    /* | '') printf '%s' "$1" ;;
    *) printf '%s/%s' "$from" "$1" ;;
  esac
}
from=$PWD
cd "$(dirname "$0")/.."
FIRKIN_KIT_DIR=$(absolute "${FIRKIN_KIT_DIR:-}") FIRKIN_BUSYBOX=$(absolute "${FIRKIN_BUSYBOX:-}")
export FIRKIN_BUSYBOX

fail() {
  echo "e2e-kind: $*" >&2
  exit 1
}
step() { printf '\n== %s\n' "$*"; }

dry='' kubeconfig=''
while [ $# -gt 0 ]; do
  case "$1" in
    --dry-run) dry=1 ;;
    --kubeconfig)
      [ $# -gt 1 ] || fail "--kubeconfig wants a file"
      kubeconfig=$(absolute "$2")
      shift
      ;;
    *) fail "usage: $0 [--dry-run] [--kubeconfig FILE]" ;;
  esac
  shift
done

host=$(uname -s)
cluster=${CLUSTER:-vk-firkin-e2e}
kubectl=${KUBECTL:-kubectl}
node=firkin-joined
namespace=vk-firkin
ran='' left=''
case "$(uname -m)" in
  arm64 | aarch64) arch=arm64 ;;
  *) arch=amd64 ;;
esac
kits=${FIRKIN_KIT_DIR:-$PWD/bin/guest}
kind=bin/kind # built here unless the host has one
! command -v kind >/dev/null || kind=kind
new=
[ -n "$kubeconfig" ] || new=1

# run does what it is given, or prints it.
run() {
  if [ -n "$dry" ]; then
    say "$@"
  else
    "$@"
  fi
}
say() {
  [ "$1" != kc ] || { shift && set -- "$kubectl" --kubeconfig "$kubeconfig" "$@"; }
  printf '+ %s\n' "$*"
}
did() { ran="$ran
  $*"; }
not() { left="$left
  $*"; }

# Everything that is missing at once, each with its remedy.
missing=
lacks() { missing="$missing
  $*"; }
has() { command -v "$1" >/dev/null 2>&1; }
has go || lacks "go: from go.dev/dl"
# shellcheck disable=SC2086 # it may have arguments
has ${kubectl%% *} || lacks "kubectl: brew install kubectl; elsewhere kubernetes.io/docs/tasks/tools. Or KUBECTL=\"$PWD/hack/controlplane/bin/controlplane kubectl\" after make controlplane"
if [ -n "$new" ]; then
  if ! has docker; then
    lacks "docker: on a Mac Docker Desktop, or brew install docker colima && colima start; on Debian apt-get install docker.io"
  elif [ -z "$dry" ] && ! docker info >/dev/null 2>&1; then
    lacks "a Docker daemon that answers (docker info): start Docker Desktop, colima start, or systemctl start docker"
  fi
fi
if [ "$host" = Darwin ]; then
  [ "$(uname -m)" = arm64 ] || lacks "Apple silicon: other Macs cannot save machines. In a terminal under Rosetta: arch -arm64 make e2e-kind"
  has codesign || lacks "codesign: xcode-select --install"
  [ -f "$kits/arm64/kit.json" ] || lacks "the guest kit in $kits/arm64: make guest on Debian, then copy bin/guest/arm64 here"
  { [ -f "${FIRKIN_BUSYBOX:-}" ] && [ -f "${FIRKIN_BUSYBOX:-}.list" ]; } || lacks "FIRKIN_BUSYBOX, a static busybox for Linux on arm64 with its .list beside it: see the head of hack/test-vz.sh"
elif [ "$host" != Linux ]; then
  lacks "a host that can be a node: macOS or Linux, this is $host"
fi
if [ -n "$missing" ]; then
  echo "e2e-kind: this is missing:$missing" >&2
  exit 1
fi

# Short: macOS allows 104 bytes for the path of a socket, and its own temporary folder takes half.
dir=/tmp/fk-kind-dry
[ -n "$dry" ] || dir=$(mktemp -d "${E2E_TMP:-/tmp}/fk-kindXXXX")
pids=

# stop ends a process of ours and waits for it.
stop() {
  kill "$1" 2>/dev/null || return 0
  wait "$1" 2>/dev/null || true
}

finish() {
  code=$?
  trap - EXIT INT TERM
  for pid in $pids; do stop "$pid"; done
  if [ "${KEEP:-}" = 1 ]; then
    if [ -n "$new" ]; then
      printf '\nThe cluster stays up (KEEP=1):\n\n  export KUBECONFIG=%s\n\n%s delete cluster --name %s ends it.\n' "$dir/kubeconfig" "$kind" "$cluster"
    else
      printf '\nThe chart stays in the cluster (KEEP=1). helm uninstall vk-firkin -n %s removes it.\n' "$namespace"
    fi
  else
    if [ -n "$made" ]; then
      [ "$code" = 0 ] || run "$kind" export logs "$dir/kind-logs" --name "$cluster" || true
      run "$kind" delete cluster --name "$cluster" || code=1
    elif [ -n "$installed" ]; then
      run bin/helm uninstall vk-firkin --namespace "$namespace" --kubeconfig "$kubeconfig" || code=1
    fi
    if [ "$code" = 0 ] && [ -z "$dry" ]; then
      rm -rf "$dir"
    elif [ -z "$dry" ]; then
      echo "e2e-kind: logs are kept in $dir" >&2
    fi
  fi
  [ -n "$ran" ] || ran="
  nothing"
  [ -z "$dry" ] || ran="
  nothing: a dry run"
  printf '\nRun here, on %s %s:%s\n' "$host" "$arch" "$ran"
  [ -z "$left" ] || printf 'Not run:%s\n' "$left"
  exit "$code"
}
made='' installed=''
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

step "vk-firkin, Helm and the guest kits"
unset KUBECONFIG # until the stories, so that nothing reaches another cluster of the user's
run make --no-print-directory build helm
if [ "$host" = Linux ]; then
  run hack/prerequisites.sh test
  run make --no-print-directory build-simulated guest
fi

if [ -n "$new" ]; then
  step "A cluster of kind: $cluster"
  [ "$kind" = kind ] || run make --no-print-directory kind
  kubeconfig=$dir/kubeconfig
  if [ -z "$dry" ] && "$kind" get clusters 2>/dev/null | grep -qx "$cluster"; then
    fail "kind has a cluster $cluster already: $kind delete cluster --name $cluster removes it, CLUSTER=... names another"
  fi
  made=1
  run "$kind" create cluster --name "$cluster" --kubeconfig "$kubeconfig" --wait 180s
  did "kind made a cluster of $($kind version 2>/dev/null || echo kind)"
else
  [ -n "$dry" ] || [ -f "$kubeconfig" ] || fail "there is no kubeconfig $kubeconfig"
  not "kind: the cluster was there (--kubeconfig)"
fi

# kc is kubectl on this cluster and no other.
# shellcheck disable=SC2086 # KUBECTL may have arguments
kc() { $kubectl --kubeconfig "$kubeconfig" "$@"; }
# out is what a question answers; a dry run has a word in its place.
out() {
  if [ -n "$dry" ]; then
    say "$@" >&2
    echo ANSWER
  else
    "$@"
  fi
}

if [ -n "$new" ]; then
  step "Pods of the stories come to this host only"
  # They name no node, and kind's own takes everybody's pods.
  run kc taint nodes --all --overwrite node-role.kubernetes.io/control-plane=:NoSchedule
  # What kind runs on every node is privileged and in the host's network: nothing for a machine.
  away='{"spec":{"template":{"spec":{"affinity":{"nodeAffinity":{"requiredDuringSchedulingIgnoredDuringExecution":{"nodeSelectorTerms":[{"matchExpressions":[{"key":"firkin.dev/machine","operator":"DoesNotExist"}]}]}}}}}}}'
  run kc -n kube-system patch daemonset kindnet kube-proxy --type strategic -p "$away"
fi

# The controller runs in the cluster when there is a way to get its image there.
image=
if [ -z "$new" ]; then
  not "the controller in a pod: only kind can be given an image without a registry"
elif [ "${NO_IMAGE:-}" = 1 ]; then
  not "the controller in a pod (NO_IMAGE=1)"
elif ! grep -q '^image:' Makefile; then
  not "the controller in a pod: there is no make image"
else
  # Not one of docker.io, whose names programs write in two ways.
  image=localhost/vk-firkin:e2e
  step "The controller's image, without a registry"
  run make --no-print-directory image ARCH="$arch" IMAGE="$image"
  run "$kind" load image-archive bin/image/vk-firkin.tar --name "$cluster"
fi

step "The chart"
set -- --set controller.enabled=false
if [ -n "$image" ]; then
  # The image's platform is that of kind's node; the periods are those of the stories.
  set -- --set controller.image.registry=localhost --set controller.image.repository=vk-firkin --set controller.image.tag=e2e \
    --set controller.image.pullPolicy=Never --set controller.replicas=1 \
    --set 'controller.tolerations[0].key=node-role.kubernetes.io/control-plane' --set 'controller.tolerations[0].operator=Exists' \
    --set 'controller.extraArgs={--node-grace-period=5s,--node-return-period=20s}'
fi
if [ -z "$dry" ] && bin/helm status vk-firkin --namespace "$namespace" --kubeconfig "$kubeconfig" >/dev/null 2>&1; then
  fail "release vk-firkin is in namespace $namespace already, and is left alone: helm uninstall vk-firkin -n $namespace, or make test-e2e KUBECONFIG=$kubeconfig runs the stories beside it"
fi
installed=1
run bin/helm install vk-firkin charts/vk-firkin --namespace "$namespace" --create-namespace --kubeconfig "$kubeconfig" "$@"
did "the chart was installed"
if [ -n "$image" ]; then
  run kc -n "$namespace" rollout status deployment/vk-firkin-controller --timeout=180s
  did "the controller ran in a pod of the cluster"
fi

step "Where the cluster reaches this host"
ip=${FIRKIN_NODE_IP:-}
if [ -n "$ip" ]; then
  :
elif [ -z "$new" ]; then
  ip=127.0.0.1
elif [ "$host" = Darwin ]; then
  # Through the virtual machine that Docker runs in, which has the Mac's own network.
  ip=$(out ipconfig getifaddr "$(route -n get default 2>/dev/null | awk '/interface:/ {print $2}')") || ip=
else
  # The bridge that kind's container is on ends at this host.
  ip=$(out docker network inspect kind -f '{{range .IPAM.Config}}{{.Gateway}}{{"\n"}}{{end}}' | grep -v : | grep . | head -n 1) || ip=
fi
[ -n "$ip" ] || fail "no address of this host was found that the cluster reaches: FIRKIN_NODE_IP=... says it"
echo "at $ip"

# begin starts a process of ours in the background, with what it says in a file.
begin() {
  name=$1
  shift
  if [ -n "$dry" ]; then
    printf '+ %s &\n' "$*"
    last=
    return
  fi
  "$@" >"$dir/$name.log" 2>&1 </dev/null &
  last=$!
  pids="$pids $last"
}

step "This host joins as node $node, by the command that the chart printed"
controller=
if [ -z "$image" ]; then
  begin controller bin/vk-firkin controller --kubeconfig "$kubeconfig" --leader-elect-namespace "$namespace" --health-probe-address "" --metrics-address ""
  controller=$last
fi
server=$(out kc config view --minify -o 'jsonpath={.clusters[0].cluster.server}')
# The address in the notes is the cluster's own; ours is that of the kubeconfig. The token comes
# on standard input: whoever may look at processes would see it.
notes=$(out bin/helm get notes vk-firkin --namespace "$namespace" --kubeconfig "$kubeconfig")
word() { printf '%s\n' "$notes" | sed -n "s/.*vk-firkin join .*$1 \([^ ]*\).*/\1/p" | head -n 1; }
token=$(word --token) hash=$(word --discovery-token-ca-cert-hash)
[ -n "$dry" ] || { [ -n "$token" ] && [ -n "$hash" ]; } || fail "the chart's notes have no command to join with: $notes"
join() {
  printf '%s' "$token" | bin/vk-firkin join "$server" --token-file - --discovery-token-ca-cert-hash "$hash" --node-name "$node" \
    --state-dir "$dir/s" --cache-dir "$dir/c" --timeout 2m
}
if [ -n "$dry" ]; then
  echo "+ bin/vk-firkin join SERVER --token-file - --discovery-token-ca-cert-hash HASH --node-name $node --state-dir $dir/s --cache-dir $dir/c --timeout 2m"
else
  join || { cat "$dir"/*.log >&2 || true; fail "joining failed"; }
fi
begin node bin/vk-firkin node --state-dir "$dir/s" --cache-dir "$dir/c" --guest-kit "$kits/$arch" --node-ip "$ip" --prepare none --metrics-address ""
joined=$last
run kc wait --for=create "node/$node" --timeout=120s || { cat "$dir/node.log" >&2; fail "the node has not come"; }
run kc wait --for=condition=Ready "node/$node" --timeout=180s || { cat "$dir/node.log" >&2; fail "the node is not Ready"; }
run kc wait --for=create "nodeledger/$node" --timeout=60s
run kc get "node/$node" "nodeledger/$node"
did "this host joined by token, with certificates of the cluster, and was Ready"
# The stories start nodes of their own, which they kill, fill and start again.
for pid in $joined $controller; do stop "$pid"; done
pids=
run kc delete "node/$node"

step "The stories"
stories() {
  # shellcheck disable=SC2030 # for the stories only
  export KUBECONFIG=$kubeconfig KUBECTL=$kubectl FIRKIN_NODE_IP=$ip FIRKIN_KIT_DIR=$kits FIRKIN_BIN_DIR=$PWD/bin CGO_ENABLED=0
  run go test -tags e2e -count 1 -v -timeout 60m -run "${RUN:-.}" -skip "${SKIP:-^\$}" ./test/e2e
}
if [ -n "$dry" ]; then
  (stories)
else
  passed=0
  (stories) 2>&1 | tee "$dir/stories.log" || passed=1
  count() { grep -c "^--- $1" "$dir/stories.log" || true; }
  did "stories: $(count PASS) passed, $(count FAIL) failed, $(count SKIP) skipped"
  # go test says why above the line that says so.
  skipped=$(awk '/^=== RUN/ {why = ""} /_test.go:[0-9]+: / {why = $0; sub(/^ *[a-z_]+_test.go:[0-9]+: /, "", why)} /^--- SKIP/ {print "  skipped: " $3 ": " why}' "$dir/stories.log")
  [ -z "$skipped" ] || left="$left
$skipped"
  [ "$passed" = 0 ] || fail "stories failed: $(grep '^--- FAIL' "$dir/stories.log" | awk '{print $3}' | tr '\n' ' ')"
fi
