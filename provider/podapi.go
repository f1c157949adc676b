// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/retry"
)

// podAPI ends pods in the API server.
type podAPI struct {
	client kubernetes.Interface
	// current is the UID that the node's view of the API has for a name.
	current func(namespace, name string) (types.UID, bool)
}

// absent: the API server does not have the pod any more. The Node authorizer knows no
// relation between a node and a pod that does not exist, so it forbids what would not
// be found; the node's own view then decides.
func (a podAPI) absent(pod *corev1.Pod, err error) bool {
	if apierrors.IsForbidden(err) {
		uid, known := a.current(pod.Namespace, pod.Name)
		return !known || uid != pod.UID
	}
	return apierrors.IsNotFound(err)
}

// finish writes the pod's last status and removes the pod, if the API still has this
// one; a pod of the same name and another UID is left alone.
func (a podAPI) finish(ctx context.Context, final *corev1.Pod) error {
	pods := a.client.CoreV1().Pods(final.Namespace)
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	gone := false
	err := retry.RetryOnConflict(retry.DefaultRetry, func() error {
		have, err := pods.Get(ctx, final.Name, metav1.GetOptions{})
		if a.absent(final, err) || err == nil && have.UID != final.UID {
			gone = true
			return nil
		}
		if err != nil {
			return err
		}
		if order(have.Status.Phase) == order(corev1.PodFailed) || equality.Semantic.DeepEqual(have.Status, final.Status) {
			return nil
		}
		status := *final.Status.DeepCopy()
		status.Conditions = mergeConditions(have.Status.Conditions, status.Conditions)
		have.Status = status
		_, err = pods.UpdateStatus(ctx, have, metav1.UpdateOptions{})
		return err
	})
	if gone || a.absent(final, err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("write last status of pod %q: %w", final.Namespace+"/"+final.Name, err)
	}
	options := metav1.NewDeleteOptions(0)
	options.Preconditions = metav1.NewUIDPreconditions(string(final.UID))
	err = pods.Delete(ctx, final.Name, *options)
	if err != nil && !a.absent(final, err) && !apierrors.IsConflict(err) {
		return fmt.Errorf("delete pod %q: %w", final.Namespace+"/"+final.Name, err)
	}
	return nil
}

// cleanUp removes everything of a pod that has no machine any more. It may be repeated.
func (e *environment) cleanUp(ctx context.Context, final *corev1.Pod) error {
	// The record goes last of the files: without it nobody would look for the others.
	e.images.Unpin(final.UID)
	if err := e.logs.RemovePod(final.UID); err != nil {
		return fmt.Errorf("remove log files: %w", err)
	}
	if err := e.api.finish(ctx, final); err != nil {
		return err
	}
	return e.records.remove(final.UID)
}
