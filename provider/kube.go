// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/virtual-kubelet/virtual-kubelet/node"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	corev1informers "k8s.io/client-go/informers/core/v1"
	"k8s.io/client-go/kubernetes/scheme"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/cache"
	kuberecord "k8s.io/client-go/tools/record"
	"k8s.io/client-go/util/workqueue"
)

// kube is the node's view of the API server: the pods bound to it and the services,
// which are all that a node may list.
type kube struct {
	opts        Options
	podFactory  informers.SharedInformerFactory
	pods        corev1informers.PodInformer
	svcFactory  informers.SharedInformerFactory
	svc         corev1informers.ServiceInformer
	idle        informers.SharedInformerFactory // never started
	recorder    kuberecord.EventRecorder
	broadcaster kuberecord.EventBroadcaster // nil when the recorder was given
}

func newKube(opts Options) *kube {
	k := &kube{opts: opts, recorder: opts.Recorder}
	k.podFactory = informers.NewSharedInformerFactoryWithOptions(opts.Client, 0, informers.WithTweakListOptions(func(o *metav1.ListOptions) {
		o.FieldSelector = fields.OneTermEqualSelector("spec.nodeName", opts.NodeName).String()
	}))
	k.pods = k.podFactory.Core().V1().Pods()
	k.pods.Informer() // registers it, so that the factory starts it
	k.svcFactory = informers.NewSharedInformerFactory(opts.Client, 0)
	k.svc = k.svcFactory.Core().V1().Services()
	k.svc.Informer()
	k.idle = informers.NewSharedInformerFactory(opts.Client, 0)
	if k.recorder == nil {
		k.broadcaster = kuberecord.NewBroadcaster()
		k.recorder = k.broadcaster.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "vk-firkin", Host: opts.NodeName})
	}
	return k
}

// start begins to list and watch, and waits until pods and services were listed.
func (k *kube) start(ctx context.Context) error {
	if k.broadcaster != nil {
		k.broadcaster.StartRecordingToSink(&corev1client.EventSinkImpl{Interface: k.opts.Client.CoreV1().Events("")})
	}
	k.podFactory.Start(ctx.Done())
	k.svcFactory.Start(ctx.Done())
	if !cache.WaitForCacheSync(ctx.Done(), k.pods.Informer().HasSynced, k.svc.Informer().HasSynced) {
		return fmt.Errorf("list pods and services of the API server: %w", context.Cause(ctx))
	}
	return nil
}

// stop waits for what start began; its ctx must have ended.
func (k *kube) stop() {
	k.podFactory.Shutdown()
	k.svcFactory.Shutdown()
	if k.broadcaster != nil {
		k.broadcaster.Shutdown()
	}
}

// current is the pod that the API has by this name on this node; nil for none.
func (k *kube) current(namespace, name string) *corev1.Pod {
	pod, err := k.pods.Lister().Pods(namespace).Get(name)
	if err != nil {
		return nil
	}
	return pod
}

func (k *kube) currentUID(namespace, name string) (types.UID, bool) {
	if pod := k.current(namespace, name); pod != nil {
		return pod.UID, true
	}
	return "", false
}

func (k *kube) services() ([]*corev1.Service, error) { return k.svc.Lister().List(labels.Everything()) }

// Retries of virtual-kubelet's queues: quick at first, since a status that conflicts
// with a change of labels is right a moment later.
const (
	queueRetryFirst, queueRetryMax = 5 * time.Millisecond, 5 * time.Second
	podSyncWorkers                 = 8
)

func queueLimiter() workqueue.TypedRateLimiter[any] {
	return workqueue.NewTypedItemExponentialFailureRateLimiter[any](queueRetryFirst, queueRetryMax)
}

// keepTrying is virtual-kubelet's retry policy here: its own forgets a status that failed
// 20 times, which is about a minute of an API server that is away, and nothing
// would bring it up again.
func keepTrying(context.Context, string, int, time.Time, error) (*time.Duration, error) {
	return nil, nil
}

// podController is virtual-kubelet's, with listers that never list what a node may not:
// Secrets and ConfigMaps are resolved by this package, one by one.
func (k *kube) podController(p *Provider) (*node.PodController, error) {
	pc, err := node.NewPodController(node.PodControllerConfig{
		PodClient:                            guardedPods{k.opts.Client.CoreV1(), p},
		PodInformer:                          k.pods,
		EventRecorder:                        quietRecorder{k.recorder},
		Provider:                             lifecycle{p},
		ConfigMapInformer:                    k.idle.Core().V1().ConfigMaps(),
		SecretInformer:                       k.idle.Core().V1().Secrets(),
		ServiceInformer:                      k.svc,
		SkipDownwardAPIResolution:            true,
		SyncPodsFromKubernetesRateLimiter:    queueLimiter(),
		DeletePodsFromKubernetesRateLimiter:  queueLimiter(),
		SyncPodStatusFromProviderRateLimiter: queueLimiter(),

		SyncPodsFromKubernetesShouldRetryFunc:    keepTrying,
		DeletePodsFromKubernetesShouldRetryFunc:  keepTrying,
		SyncPodStatusFromProviderShouldRetryFunc: keepTrying,
	})
	if err != nil {
		return nil, fmt.Errorf("make pod controller: %w", err)
	}
	return pc, nil
}

// watchPods tells workers what virtual-kubelet does not look at: that the API has their
// pod's Running, that others changed conditions of it, and the end of a pod that a
// watch missed while it was broken: the informer then tells of it by a last known
// state, or by a pod of the same name and another UID. virtual-kubelet ignores both.
func (k *kube) watchPods(p *Provider) error {
	_, err := k.pods.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{UpdateFunc: p.podChanged, DeleteFunc: p.podGone})
	if err != nil {
		return fmt.Errorf("watch pods: %w", err)
	}
	return nil
}

// podChanged is called for every change of a pod of this node in the API.
func (p *Provider) podChanged(before, after any) {
	old, _ := before.(*corev1.Pod)
	pod, ok := after.(*corev1.Pod)
	if !ok || old == nil {
		return
	}
	if old.UID != pod.UID {
		p.podGone(old)
		if pod.DeletionTimestamp == nil && order(pod.Status.Phase) < order(corev1.PodFailed) {
			p.upsert(pod.DeepCopy())
		}
		return
	}
	p.mu.Lock()
	w := p.workers[pod.UID]
	p.mu.Unlock()
	if w == nil {
		return
	}
	if pod.Status.Phase == corev1.PodRunning && old.Status.Phase != corev1.PodRunning {
		w.reported()
	}
	if !equality.Semantic.DeepEqual(mergeConditions(old.Status.Conditions, nil), mergeConditions(pod.Status.Conditions, nil)) {
		w.update(pod.DeepCopy())
	}
}

// podGone is called when the API does not have a pod of this node any more. Whatever
// grace it still had, nobody waits for it now.
func (p *Provider) podGone(obj any) {
	if last, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = last.Obj
	}
	if pod, ok := obj.(*corev1.Pod); ok {
		p.abandon(pod.UID)
	}
}

// errStopped: a controller ended although nobody asked it to.
var errStopped = errors.New("ended unexpectedly")
