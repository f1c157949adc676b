// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/vk-firkin/vk-firkin/crds/v1alpha1"
)

// statusPeriod is how often a status is written for numbers alone. What changes a
// condition's status or reason is written at once.
const statusPeriod = 2 * time.Second

// writeStatuses writes the statuses that changed. It returns when the next one is due.
func (r *Reconciler) writeStatuses(ctx context.Context, f *fleet, p *plan, conflicts map[Key]string, now time.Time) (due time.Duration, err error) {
	due = idleDelay
	var errs []error
	alive := map[types.UID]bool{}
	write := func(kind string, old client.Object, oldConditions, conditions []metav1.Condition, next client.Object, events func()) {
		last, told := r.told[old.GetUID()]
		if wait := statusPeriod - now.Sub(last); told && wait > 0 && sameReasons(oldConditions, conditions) {
			due = min(due, wait)
			return
		}
		if ctx.Err() != nil {
			return
		}
		err := r.cluster.UpdateStatus(ctx, next)
		r.metrics.write(kind, err)
		r.told[old.GetUID()] = now
		switch {
		case err == nil:
			events()
		case apierrors.IsConflict(err):
			due = min(due, staleDelay)
		case !apierrors.IsNotFound(err):
			errs = append(errs, fmt.Errorf("write status of %s %s: %w", kind, Key{old.GetNamespace(), old.GetName()}, err))
		}
	}
	for _, pool := range f.pools {
		alive[pool.object.UID] = true
		status := poolStatus(f, p, pool, now)
		if !equality.Semantic.DeepEqual(pool.object.Status, status) {
			next := pool.object.DeepCopy()
			next.Status = status
			write("WarmPool", pool.object, pool.object.Status.Conditions, status.Conditions, next, func() { r.poolEvents(pool.object, &status) })
		}
	}
	for _, k := range slices.SortedFunc(maps.Keys(f.templates), compareKeys) {
		t := f.templates[k]
		alive[t.object.UID] = true
		status := templateStatus(f, t, conflicts[k], now)
		if !equality.Semantic.DeepEqual(t.object.Status, status) {
			next := t.object.DeepCopy()
			next.Status = status
			write("SnapshotTemplate", t.object, t.object.Status.Conditions, status.Conditions, next, func() { r.templateEvents(t.object, &status) })
		}
	}
	maps.DeleteFunc(r.told, func(uid types.UID, _ time.Time) bool { return !alive[uid] })
	return due, errors.Join(errs...)
}

// sameReasons tells whether two lists of conditions differ in numbers and words only.
func sameReasons(a, b []metav1.Condition) bool {
	return slices.EqualFunc(a, b, func(x, y metav1.Condition) bool {
		return x.Type == y.Type && x.Status == y.Status && x.Reason == y.Reason && x.ObservedGeneration == y.ObservedGeneration
	})
}

// poolEvents tells what a new status says for the first time.
func (r *Reconciler) poolEvents(pool *v1alpha1.WarmPool, status *v1alpha1.WarmPoolStatus) {
	if c := turned(pool.Status.Conditions, status.Conditions, v1alpha1.ConditionDegraded); c != nil {
		r.cluster.Event(pool, true, c.Reason, c.Message)
	}
	if c := turned(pool.Status.Conditions, status.Conditions, v1alpha1.ConditionReady); c != nil {
		r.cluster.Event(pool, false, c.Reason, c.Message)
	}
}

// templateEvents tells of each failure once: the status remembers which were told.
func (r *Reconciler) templateEvents(t *v1alpha1.SnapshotTemplate, status *v1alpha1.SnapshotTemplateStatus) {
	for _, f := range status.Failures {
		if t.Status.Revision != status.Revision || !slices.Contains(t.Status.Failures, f) {
			r.cluster.Event(t, true, v1alpha1.ReasonTemplateBuildFailed, clip(buildFailure(f)+"\n"+f.Output, v1alpha1.MaxMessage))
		}
	}
	c := turned(t.Status.Conditions, status.Conditions, v1alpha1.ConditionDegraded)
	if c != nil && c.Reason != v1alpha1.ReasonTemplateBuildFailed {
		r.cluster.Event(t, true, c.Reason, c.Message)
	}
	if c := turned(t.Status.Conditions, status.Conditions, v1alpha1.ConditionReady); c != nil {
		r.cluster.Event(t, false, c.Reason, c.Message)
	}
}

// turned is the condition if it is true now and was not, or was for another reason.
func turned(old, now []metav1.Condition, kind string) *metav1.Condition {
	c := meta.FindStatusCondition(now, kind)
	if c == nil || c.Status != metav1.ConditionTrue {
		return nil
	}
	if o := meta.FindStatusCondition(old, kind); o != nil && o.Status == c.Status && o.Reason == c.Reason {
		return nil
	}
	return c
}

func sortedKeys(m map[string]bool) []string { return slices.Sorted(maps.Keys(m)) }
