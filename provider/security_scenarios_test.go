// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider_test

import (
	"os"
	"path/filepath"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/vk-firkin/vk-firkin/provider"
)

// A pod whose kernel parameters its machine does not take ends, and says why: no other machine
// would take them.
func TestSysctlsThatNoMachineTakes(t *testing.T) {
	w := newWorld(t)
	w.run()
	p := pod("sysctl", []string{"do", "sleep"})
	p.Spec.SecurityContext = &corev1.PodSecurityContext{Sysctls: []corev1.Sysctl{{Name: "kernel.no_such", Value: "1"}}}
	w.create(p)
	w.awaitPhase("sysctl", corev1.PodFailed)
	if !w.events.has("sysctl", "SysctlForbidden", "Pod was rejected: ") {
		t.Errorf("no event says why:\n%s", w.events)
	}
}

// A Localhost profile that the node does not have keeps the container waiting, and says its
// name; when it is there the container starts.
func TestLocalhostProfileOfTheNode(t *testing.T) {
	w := newWorld(t)
	var state string
	w.run(func(o *provider.Options) { state = o.StateDir })
	p := pod("profile", []string{"hang"})
	name := "team/p.json"
	p.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeLocalhost, LocalhostProfile: &name}}
	w.create(p)
	w.await("profile", "the container waits", func(p *corev1.Pod) bool {
		return len(p.Status.ContainerStatuses) == 1 && p.Status.ContainerStatuses[0].State.Waiting != nil && p.Status.ContainerStatuses[0].State.Waiting.Reason == "CreateContainerError"
	})
	if !w.events.has("profile", "Failed", `"team/p.json"`) {
		t.Errorf("no event names the profile:\n%s", w.events)
	}
	if err := os.MkdirAll(filepath.Join(state, "seccomp", "team"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(state, "seccomp", name), []byte(`{"defaultAction":"SCMP_ACT_ALLOW"}`), 0o644); err != nil {
		t.Fatal(err)
	}
	w.awaitPhase("profile", corev1.PodRunning)
}
