// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/record"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/vk-firkin/vk-firkin/crds/v1alpha1"
	"github.com/vk-firkin/vk-firkin/warmpool/controller/approver"
)

// kube is the Cluster behind an API server.
type kube struct {
	cached client.Client
	live   client.Reader
	events record.EventRecorder
}

var _ Cluster = (*kube)(nil)

// View lists the caches without copying them: nothing of a view is ever changed.
func (k *kube) View(ctx context.Context) (*View, error) {
	var (
		nodes     corev1.NodeList
		ledgers   v1alpha1.NodeLedgerList
		pools     v1alpha1.WarmPoolList
		templates v1alpha1.SnapshotTemplateList
		classes   nodev1.RuntimeClassList
	)
	for _, list := range []client.ObjectList{&ledgers, &nodes, &pools, &templates, &classes} {
		if err := k.cached.List(ctx, list, client.UnsafeDisableDeepCopy); err != nil {
			return nil, fmt.Errorf("list %T: %w", list, err)
		}
	}
	return &View{
		Nodes: pointers(nodes.Items), Ledgers: pointers(ledgers.Items), Pools: pointers(pools.Items),
		Templates: pointers(templates.Items), Classes: pointers(classes.Items),
	}, nil
}

func pointers[T any](items []T) []*T {
	result := make([]*T, len(items))
	for i := range items {
		result[i] = &items[i]
	}
	return result
}

func (k *kube) LiveLedgers(ctx context.Context) ([]*v1alpha1.NodeLedger, error) {
	var list v1alpha1.NodeLedgerList
	err := k.live.List(ctx, &list)
	return pointers(list.Items), err
}

func (k *kube) LiveLedger(ctx context.Context, name string) (*v1alpha1.NodeLedger, error) {
	var l v1alpha1.NodeLedger
	err := k.live.Get(ctx, client.ObjectKey{Name: name}, &l)
	return &l, err
}

func (k *kube) Update(ctx context.Context, o client.Object) error { return k.cached.Update(ctx, o) }

func (k *kube) UpdateStatus(ctx context.Context, o client.Object) error {
	return k.cached.Status().Update(ctx, o)
}

func (k *kube) Create(ctx context.Context, o client.Object) error { return k.cached.Create(ctx, o) }

func (k *kube) Delete(ctx context.Context, o client.Object) error {
	uid, version := o.GetUID(), o.GetResourceVersion()
	return k.cached.Delete(ctx, o, client.Preconditions{UID: &uid, ResourceVersion: &version})
}

func (k *kube) Event(object runtime.Object, warning bool, reason, message string) {
	kind := corev1.EventTypeNormal
	if warning {
		kind = corev1.EventTypeWarning
	}
	k.events.Event(object, kind, reason, message)
}

// relevant is what decisions look at of a node; heartbeats are not.
func relevant(old, now *corev1.Node) bool {
	if old.Spec.Unschedulable != now.Spec.Unschedulable || old.DeletionTimestamp.IsZero() != now.DeletionTimestamp.IsZero() ||
		fmt.Sprint(old.Labels) != fmt.Sprint(now.Labels) || len(old.Spec.Taints) != len(now.Spec.Taints) {
		return true
	}
	for i, t := range now.Spec.Taints {
		o := old.Spec.Taints[i]
		if t.Key != o.Key || t.Value != o.Value || t.Effect != o.Effect {
			return true
		}
	}
	return readiness(old) != readiness(now)
}

func readiness(n *corev1.Node) corev1.ConditionStatus {
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status
		}
	}
	return corev1.ConditionUnknown
}

// newScheme knows what the controller reads and writes.
func newScheme() (*runtime.Scheme, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{nodev1.AddToScheme, approver.AddToScheme} {
		if err := add(scheme); err != nil {
			return nil, err
		}
	}
	metav1.AddToGroupVersion(scheme, corev1.SchemeGroupVersion)
	return scheme, nil
}
