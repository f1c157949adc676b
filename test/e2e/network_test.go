// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"net"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// A container reaches the world outside of its machine. Here the world is this host:
// in a machine's own network 10.0.2.2 is the host's loopback.
func TestOutbound(t *testing.T) {
	ns := namespace(t)
	_, port, err := net.SplitHostPort(served.Address)
	if err != nil {
		t.Fatal(err)
	}
	apply(t, podManifest(ns, "caller", served.Busybox, "wget", "-q", "-O", "-", "http://10.0.2.2:"+port+"/v2/busybox/tags/list"))
	waitPod(t, ns, "caller", "has run", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodSucceeded })
	if out := kubectl(t, "logs", "-n", ns, "caller"); !strings.Contains(out, `"busybox"`) {
		t.Errorf("the registry answered %q", out)
	}
}
