// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"sync"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
)

// ReadyWatch follows the pods of a namespace and remembers each that was not Ready.
type ReadyWatch struct {
	watch watch.Interface
	wg    sync.WaitGroup

	mu    sync.Mutex
	ended bool    // guarded by mu; by itself
	told  bool    // guarded by mu; to end
	lost  []error // guarded by mu
}

// WatchReady begins to follow the pods of a namespace, which must all be Ready. It misses
// nothing until Stop, since it goes on from the list that it begins with.
func WatchReady(ctx context.Context, client kubernetes.Interface, namespace string) (*ReadyWatch, error) {
	pods := client.CoreV1().Pods(namespace)
	list, err := pods.List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	r := &ReadyWatch{}
	for i := range list.Items {
		r.look(watch.Added, &list.Items[i])
	}
	if r.watch, err = pods.Watch(ctx, metav1.ListOptions{ResourceVersion: list.ResourceVersion}); err != nil {
		return nil, err
	}
	r.wg.Go(func() {
		for event := range r.watch.ResultChan() {
			if pod, ok := event.Object.(*corev1.Pod); ok {
				r.look(event.Type, pod)
			}
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		r.ended = !r.told
	})
	return r, nil
}

func (r *ReadyWatch) look(event watch.EventType, pod *corev1.Pod) {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue && event != watch.Deleted {
			return
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.lost = append(r.lost, fmt.Errorf("pod %s (%s) is not Ready: %s %s", pod.Name, event, pod.Status.Phase, pod.Status.Reason))
}

// Stop ends the watch. The error joins every time that a pod was not Ready, and tells when
// the watch was cut off.
func (r *ReadyWatch) Stop() error {
	r.mu.Lock()
	r.told = true
	r.mu.Unlock()
	r.watch.Stop()
	r.wg.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ended {
		r.lost = append(r.lost, errors.New("the watch of the pods was cut off"))
	}
	return errors.Join(r.lost...)
}
