// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
)

func readyPod(name string, ready corev1.ConditionStatus) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning, Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: ready}}},
	}
}

// A pod that is not Ready for one status is remembered, though it is Ready again.
func TestReadyWatch(t *testing.T) {
	for name, tc := range map[string]struct {
		change []corev1.ConditionStatus
		want   string
	}{
		"nothing happens": {},
		"stays ready":     {change: []corev1.ConditionStatus{corev1.ConditionTrue}},
		"a moment":        {change: []corev1.ConditionStatus{corev1.ConditionFalse, corev1.ConditionTrue}, want: "pod a (MODIFIED) is not Ready"},
	} {
		t.Run(name, func(t *testing.T) {
			client := fake.NewClientset(readyPod("a", corev1.ConditionTrue), readyPod("b", corev1.ConditionTrue))
			w, err := WatchReady(t.Context(), client, "ns")
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range tc.change {
				if _, err := client.CoreV1().Pods("ns").UpdateStatus(t.Context(), readyPod("a", s), metav1.UpdateOptions{}); err != nil {
					t.Fatal(err)
				}
			}
			err = w.Stop()
			if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("found %v, want %q", err, tc.want)
			}
		})
	}
}
