// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/vk-firkin/vk-firkin/cmd/vk-firkin/status"
)

// clusterTimeout bounds the API server's answer: without it the rest of a status is told.
const clusterTimeout = 2 * time.Second

// inCluster asks the API server whether it has this node as Ready: a node that is well may still not
// reach it, or have lost its Node.
func (n *node) inCluster(ctx context.Context) status.Condition {
	ctx, cancel := context.WithTimeout(ctx, clusterTimeout)
	defer cancel()
	// Version 0 is what the API server has in memory.
	return clusterCondition(n.client.CoreV1().Nodes().Get(ctx, n.NodeName, metav1.GetOptions{ResourceVersion: "0"}))
}

// clusterCondition is whether a Node is Ready, or why it is not. Pure.
func clusterCondition(node *corev1.Node, err error) status.Condition {
	c := status.Condition{Type: conditionInCluster}
	if err != nil {
		c.Message = "ask the API server: " + err.Error()
		return c
	}
	i := slices.IndexFunc(node.Status.Conditions, func(c corev1.NodeCondition) bool { return c.Type == corev1.NodeReady })
	if i < 0 {
		c.Message = "the node has told it nothing yet"
		return c
	}
	if found := node.Status.Conditions[i]; found.Status == corev1.ConditionTrue {
		c.OK = true
	} else {
		c.Message = fmt.Sprintf("%s since %s: %s", found.Reason, found.LastTransitionTime.UTC().Format(time.RFC3339), found.Message)
	}
	return c
}
