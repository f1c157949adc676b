// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// Whatever is wrong with an image is said in the pod's status and an event, and the
// node goes on serving.
func TestBadImages(t *testing.T) {
	ns := namespace(t)
	for _, tt := range []struct {
		pod, image, reason string // reason the container waits with
		event, text        string // reason of an event, and what it says
	}{
		{"missing", served.Address + "/does-not-exist:1", "ErrImagePull|ImagePullBackOff", "Failed", "not found"},
		{"bad-reference", "UPPER//case::", "InvalidImageName", "InspectFailed", "UPPER"},
		{"private", served.Private, "ErrImagePull|ImagePullBackOff", "Failed", "nauthorized"},
		{"hanging", served.Hanging, "ErrImagePull|ImagePullBackOff", "Failed", ""},
		{"foreign", served.WrongArchitecture, "ErrImagePull|ImagePullBackOff", "Failed", "s390x"},
		{"corrupt", served.Corrupt, "ErrImagePull|ImagePullBackOff", "Failed", ""},
	} {
		t.Run(tt.pod, func(t *testing.T) {
			apply(t, podManifest(ns, tt.pod, tt.image, "true"))
			waitPod(t, ns, tt.pod, "says "+tt.reason, func(p *corev1.Pod) bool {
				if p.Status.Phase != corev1.PodPending || len(p.Status.ContainerStatuses) != 1 {
					return false
				}
				w := p.Status.ContainerStatuses[0].State.Waiting
				return w != nil && w.Message != "" && strings.Contains("|"+tt.reason+"|", "|"+w.Reason+"|")
			})
			waitEvent(t, ns, tt.pod, tt.event, tt.text)
		})
	}
	stillServing(t, ns)
}

// A pull secret opens a private image; a wrong one does not.
func TestPullSecret(t *testing.T) {
	ns := namespace(t)
	for name, password := range map[string]string{"right": served.Password, "wrong": "not-" + served.Password} {
		kubectl(t, "create", "secret", "docker-registry", name, "-n", ns, "--docker-server="+served.PrivateAddress, "--docker-username="+served.User, "--docker-password="+password)
		// Always, so that the one who has the right password does not pull for the other.
		manifest := strings.Replace(podManifest(ns, name, served.Private, "true"), "spec:\n", "spec:\n  imagePullSecrets: [{name: "+name+"}]\n", 1)
		apply(t, manifest+"    imagePullPolicy: Always\n")
	}
	waitPod(t, ns, "right", "has run", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodSucceeded })
	waitEvent(t, ns, "wrong", "Failed", "nauthorized")
}

// A container that cannot be started says why.
func TestNoEntrypoint(t *testing.T) {
	ns := namespace(t)
	apply(t, podManifest(ns, "nothing", served.Busybox, "/no/such/program"))
	pod := waitPod(t, ns, "nothing", "has failed", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed })
	state := pod.Status.ContainerStatuses[0].State.Terminated
	if state == nil || state.Reason != "StartError" || state.ExitCode != 128 || !strings.Contains(state.Message, "/no/such/program") {
		t.Errorf("terminated state is %+v, want StartError, 128 and the program's name", state)
	}
	stillServing(t, ns)
}

// What a pod asks for and the node cannot do is refused by the name of the field.
func TestUnsupportedFields(t *testing.T) {
	ns := namespace(t)
	for _, tt := range []struct{ pod, patch, field string }{
		{"host-network", "  hostNetwork: true\n", "spec.hostNetwork"},
		{"host-path", "  volumes: [{name: v, hostPath: {path: /etc}}]\n", "spec.volumes[0].hostPath"},
		{"host-pid", "  hostPID: true\n", "spec.hostPID"},
	} {
		t.Run(tt.pod, func(t *testing.T) {
			apply(t, strings.Replace(podManifest(ns, tt.pod, served.Busybox, "true"), "spec:\n", "spec:\n"+tt.patch, 1))
			pod := waitPod(t, ns, tt.pod, "is refused", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed })
			if !strings.Contains(pod.Status.Message, tt.field) {
				t.Errorf("status message is %q, want the field %s", pod.Status.Message, tt.field)
			}
			waitEvent(t, ns, tt.pod, pod.Status.Reason, tt.field)
		})
	}
	stillServing(t, ns)
}

// A pod larger than the node, bound to it past the scheduler, is refused.
func TestTooLarge(t *testing.T) {
	ns := namespace(t)
	manifest := strings.Replace(podManifest(ns, "huge", served.Busybox, "true"), "spec:\n", "spec:\n  nodeName: "+node.Name+"\n", 1)
	manifest += "    resources: {requests: {memory: 4Ti}}\n"
	apply(t, manifest)
	pod := waitPod(t, ns, "huge", "is refused", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed })
	if pod.Status.Reason != "OutOfmemory" {
		t.Errorf("reason is %q (%s), want OutOfmemory as the kubelet says it", pod.Status.Reason, pod.Status.Message)
	}
	stillServing(t, ns)
}

var after int

// stillServing runs one more pod to its end.
func stillServing(t *testing.T, ns string) {
	t.Helper()
	after++
	name := fmt.Sprintf("after-%d", after)
	apply(t, podManifest(ns, name, served.Busybox, "true"))
	waitPod(t, ns, name, "has run", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodSucceeded })
}
