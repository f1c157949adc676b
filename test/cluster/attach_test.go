// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"slices"
	"strings"
	"testing"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	kubetesting "k8s.io/client-go/testing"
)

// A cluster whose own nodes would take the stories' pods is told from one that keeps them away.
func TestTakingPods(t *testing.T) {
	node := func(name string, cordoned bool, taints ...corev1.Taint) corev1.Node {
		return corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.NodeSpec{Unschedulable: cordoned, Taints: taints}}
	}
	nodes := []corev1.Node{
		node("open", false),
		node("cordoned", true),
		node("tainted", false, corev1.Taint{Key: "node-role.kubernetes.io/control-plane", Effect: corev1.TaintEffectNoSchedule}),
		node("drained", false, corev1.Taint{Key: "out", Effect: corev1.TaintEffectNoExecute}),
		node("rather-not", false, corev1.Taint{Key: "busy", Effect: corev1.TaintEffectPreferNoSchedule}),
		node("ours", false, corev1.Taint{Key: "firkin.dev/machine", Effect: corev1.TaintEffectNoSchedule}), // which every story tolerates
	}
	if got, want := takingPods(nodes), []string{"open", "rather-not", "ours"}; !slices.Equal(got, want) {
		t.Errorf("pods come to %v, want %v", got, want)
	}
}

// What is no address of a host, and a kubectl that is not there, are said before anything is made.
func TestAttachRefuses(t *testing.T) {
	if _, err := Attach(t.Context(), AttachOptions{NodeIP: "here", Dir: t.TempDir()}); err == nil || !strings.Contains(err.Error(), `"here" is not the address`) {
		t.Errorf("an address that is none: %v", err)
	}
	_, err := Attach(t.Context(), AttachOptions{Kubeconfig: "/no/kubeconfig", Kubectl: []string{"/no/kubectl"}, Dir: t.TempDir()})
	if err == nil || !strings.Contains(err.Error(), "/no/kubeconfig") || !strings.Contains(err.Error(), "/no/kubectl") {
		t.Errorf("a kubectl that is not there: %v", err)
	}
}

// Somebody else approves the request first: that is as good, and the conflict is none of the caller's.
func TestApproveBesideOthers(t *testing.T) {
	csr := &certificatesv1.CertificateSigningRequest{ObjectMeta: metav1.ObjectMeta{Name: "r"}}
	client := fake.NewClientset(csr)
	attempts := 0
	client.PrependReactor("update", "certificatesigningrequests", func(kubetesting.Action) (bool, runtime.Object, error) {
		attempts++
		other := csr.DeepCopy()
		other.Status.Conditions = []certificatesv1.CertificateSigningRequestCondition{{Type: certificatesv1.CertificateApproved, Status: corev1.ConditionTrue}}
		if err := client.Tracker().Update(certificatesv1.SchemeGroupVersion.WithResource("certificatesigningrequests"), other, ""); err != nil {
			t.Error(err)
		}
		return true, nil, apierrors.NewConflict(certificatesv1.Resource("certificatesigningrequests"), "r", nil)
	})
	if err := approve(t.Context(), client, "r"); err != nil || attempts != 1 {
		t.Errorf("after %d attempts: %v", attempts, err)
	}
}
