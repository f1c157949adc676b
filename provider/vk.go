// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"context"
	"fmt"
	"time"

	"github.com/virtual-kubelet/virtual-kubelet/node"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
)

// lifecycle is what virtual-kubelet calls. It names pods by namespace and name; here
// they become UIDs. Nothing in it blocks, and nothing fails: what goes wrong with a
// pod is told by its status.
type lifecycle struct{ p *Provider }

var (
	_ node.PodLifecycleHandler = lifecycle{}
	_ node.PodNotifier         = lifecycle{}
)

// CreatePod is called for every pod that GetPod does not have.
func (l lifecycle) CreatePod(_ context.Context, pod *corev1.Pod) error {
	l.p.upsert(pod)
	return nil
}

// UpdatePod is called when what GetPod has differs from the API.
func (l lifecycle) UpdatePod(_ context.Context, pod *corev1.Pod) error {
	l.p.upsert(pod)
	return nil
}

// DeletePod is called with the API's pod when that is being deleted, and with the
// provider's own when the API has it no more.
func (l lifecycle) DeletePod(_ context.Context, pod *corev1.Pod) error {
	var ok bool
	if pod.DeletionTimestamp != nil {
		ok = l.p.end(pod.UID, pod, graceOf(pod))
	} else {
		ok = l.p.abandon(pod.UID)
	}
	if !ok {
		return edge(fmt.Errorf("pod %q: %w", pod.Namespace+"/"+pod.Name, ErrNotFound))
	}
	return nil
}

// graceOf is how long a pod that is being deleted may take.
func graceOf(pod *corev1.Pod) time.Duration {
	if s := pod.DeletionGracePeriodSeconds; s != nil {
		return seconds(*s)
	}
	return graceOfSpec(pod)
}

// GetPod returns the pod that the API has by this name. An older pod of the same name
// is hidden: virtual-kubelet would take the new one for known and never create it.
func (l lifecycle) GetPod(_ context.Context, namespace, name string) (*corev1.Pod, error) {
	w := l.p.byName(namespace, name)
	if w == nil {
		return nil, edge(fmt.Errorf("pod %q: %w", namespace+"/"+name, ErrNotFound))
	}
	return w.published.Load().DeepCopy(), nil
}

// GetPodStatus returns that pod's status.
func (l lifecycle) GetPodStatus(ctx context.Context, namespace, name string) (*corev1.PodStatus, error) {
	pod, err := l.GetPod(ctx, namespace, name)
	if err != nil {
		return nil, err
	}
	return &pod.Status, nil
}

// GetPods returns every pod on the node. virtual-kubelet asks once, at its start, and
// deletes those whose name the API does not have.
func (l lifecycle) GetPods(context.Context) ([]*corev1.Pod, error) { return l.p.Pods(), nil }

// NotifyPods takes the callback for new statuses.
func (l lifecycle) NotifyPods(_ context.Context, notify func(*corev1.Pod)) {
	l.p.mu.Lock()
	defer l.p.mu.Unlock()
	l.p.notify = notify
}

// guardedPods is the pod client that virtual-kubelet gets. virtual-kubelet removes a
// pod from the API when its grace period is over, or at once when no container of it
// is shown as running, whatever the machine still does. Here such a removal only asks
// the pod's worker to end it; the worker removes the pod when it is down.
type guardedPods struct {
	corev1client.PodsGetter
	p *Provider
}

func (g guardedPods) Pods(namespace string) corev1client.PodInterface {
	return guardedPodClient{g.PodsGetter.Pods(namespace), namespace, g.p}
}

type guardedPodClient struct {
	corev1client.PodInterface
	namespace string
	p         *Provider
}

// UpdateStatus keeps the conditions that others have set meanwhile.
func (g guardedPodClient) UpdateStatus(ctx context.Context, pod *corev1.Pod, opts metav1.UpdateOptions) (*corev1.Pod, error) {
	if have := g.p.kube.current(g.namespace, pod.Name); have != nil && have.UID == pod.UID {
		pod = pod.DeepCopy()
		pod.Status.Conditions = mergeConditions(have.Status.Conditions, pod.Status.Conditions)
	}
	return g.PodInterface.UpdateStatus(ctx, pod, opts)
}

func (g guardedPodClient) Delete(ctx context.Context, name string, opts metav1.DeleteOptions) error {
	if opts.Preconditions != nil && opts.Preconditions.UID != nil {
		grace := time.Duration(0)
		if pod := g.p.kube.current(g.namespace, name); pod != nil && pod.UID == *opts.Preconditions.UID {
			grace = graceOf(pod)
		}
		if g.p.end(*opts.Preconditions.UID, nil, grace) {
			return nil
		}
	}
	return g.PodInterface.Delete(ctx, name, opts)
}
