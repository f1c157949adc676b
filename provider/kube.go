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

// kube is the node's view of the API server: the pods bound to it, the services, and its
// own node, which are all that a node may list.
type kube struct {
	opts        Options
	podFactory  informers.SharedInformerFactory
	pods        corev1informers.PodInformer
	svcFactory  informers.SharedInformerFactory
	svc         corev1informers.ServiceInformer
	selfFactory informers.SharedInformerFactory
	self        corev1informers.NodeInformer
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
	_ = k.svc.Informer().SetTransform(slimService) // fails only once it runs
	k.selfFactory = informers.NewSharedInformerFactoryWithOptions(opts.Client, 0, informers.WithTweakListOptions(func(o *metav1.ListOptions) {
		o.FieldSelector = fields.OneTermEqualSelector("metadata.name", opts.NodeName).String()
	}))
	k.self = k.selfFactory.Core().V1().Nodes()
	k.self.Informer()
	k.idle = informers.NewSharedInformerFactory(opts.Client, 0)
	if k.recorder == nil {
		k.broadcaster = kuberecord.NewBroadcaster()
		k.recorder = k.broadcaster.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "vk-firkin", Host: opts.NodeName})
	}
	return k
}

// slimService keeps of a service what pods' variables are made of: a cluster may have
// thousands, and the node keeps all of them in memory.
func slimService(obj any) (any, error) {
	s, ok := obj.(*corev1.Service)
	if !ok {
		return obj, nil // a tombstone
	}
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: s.Namespace, Name: s.Name, UID: s.UID, ResourceVersion: s.ResourceVersion},
		Spec:       corev1.ServiceSpec{Type: s.Spec.Type, ClusterIP: s.Spec.ClusterIP, ClusterIPs: s.Spec.ClusterIPs, Ports: s.Spec.Ports},
	}, nil
}

// node is this node as the API server has it, nil when there is none. fresh asks the
// server, within freshNodeTimeout.
func (k *kube) node(ctx context.Context, fresh bool) *corev1.Node {
	if fresh {
		ctx, cancel := context.WithTimeout(ctx, freshNodeTimeout)
		defer cancel()
		if n, err := k.opts.Client.CoreV1().Nodes().Get(ctx, k.opts.NodeName, metav1.GetOptions{}); err == nil {
			return n
		}
		return nil
	}
	n, err := k.self.Lister().Get(k.opts.NodeName)
	if err != nil {
		return nil
	}
	return n
}

// start begins to list and watch, and waits until pods and services were listed.
func (k *kube) start(ctx context.Context) error {
	if k.broadcaster != nil {
		k.broadcaster.StartRecordingToSink(&corev1client.EventSinkImpl{Interface: k.opts.Client.CoreV1().Events("")})
	}
	k.podFactory.Start(ctx.Done())
	k.svcFactory.Start(ctx.Done())
	k.selfFactory.Start(ctx.Done())
	if !cache.WaitForCacheSync(ctx.Done(), k.pods.Informer().HasSynced, k.svc.Informer().HasSynced, k.self.Informer().HasSynced) {
		return fmt.Errorf("list pods, services and the node of the API server: %w", context.Cause(ctx))
	}
	return nil
}

// stop waits for what start began; its ctx must have ended.
func (k *kube) stop() {
	k.podFactory.Shutdown()
	k.svcFactory.Shutdown()
	k.selfFactory.Shutdown()
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

// byUID is the pod of this UID that the API has on this node; nil for none.
func (k *kube) byUID(uid types.UID) *corev1.Pod {
	pods, err := k.pods.Lister().List(labels.Everything())
	if err != nil {
		return nil
	}
	for _, pod := range pods {
		if pod.UID == uid {
			return pod
		}
	}
	return nil
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
		p.admission.forget(pod.UID) // its ports may be asked for again before its machine is gone: see keepPorts
		p.abandon(pod.UID)
	}
}

// errStopped: a controller ended although nobody asked it to.
var errStopped = errors.New("ended unexpectedly")
