// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/vk-firkin/vk-firkin/cmd/vk-firkin/status"
)

func TestReadyInCluster(t *testing.T) {
	at := metav1.NewTime(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))
	with := func(kind corev1.NodeConditionType, value corev1.ConditionStatus) *corev1.Node {
		return &corev1.Node{Status: corev1.NodeStatus{Conditions: []corev1.NodeCondition{
			{Type: corev1.NodeDiskPressure, Status: corev1.ConditionFalse}, {Type: kind, Status: value, Reason: "NodeStatusUnknown", Message: "it stopped posting", LastTransitionTime: at},
		}}}
	}
	for name, tt := range map[string]struct {
		node *corev1.Node
		err  error
		want string // of the screen
	}{
		"ready":       {node: with(corev1.NodeReady, corev1.ConditionTrue), want: "  Ready in the cluster\n"},
		"unknown":     {node: with(corev1.NodeReady, corev1.ConditionUnknown), want: "  NOT READY IN THE CLUSTER: NodeStatusUnknown since 2026-01-02T03:04:05Z: it stopped posting\n"},
		"new":         {node: with(corev1.NodePIDPressure, corev1.ConditionTrue), want: "  NOT READY IN THE CLUSTER: the node has told it nothing yet\n"},
		"gone":        {err: apierrors.NewNotFound(corev1.Resource("nodes"), "mac-1"), want: "  NOT READY IN THE CLUSTER: ask the API server: nodes \"mac-1\" not found\n"},
		"unreachable": {err: errors.New("refused\x1b[2J"), want: "  NOT READY IN THE CLUSTER: ask the API server: refused"},
	} {
		t.Run(name, func(t *testing.T) {
			c := clusterCondition(tt.node, tt.err)
			if c.OK != (name == "ready") {
				t.Errorf("it is %+v", c)
			}
			screen := renderStatus(status.Report{Running: true, Conditions: []status.Condition{c}}, screen{})
			if !strings.Contains(screen, tt.want) || strings.Contains(screen, "\x1b") {
				t.Errorf("the screen has not %q:\n%s", tt.want, screen)
			}
		})
	}
}
