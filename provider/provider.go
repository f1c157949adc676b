// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vk-firkin/vk-firkin/vm/durable"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	kuberecord "k8s.io/client-go/tools/record"
)

// Options of a Provider. Those without a default are required.
type Options struct {
	// Client has the rights of system:node:<NodeName>, or more.
	Client   kubernetes.Interface
	NodeName string
	// NodeIP is the node's address that the API server reaches; pods show it as theirs, and
	// their host ports are listened on there. With a second one, of the other family,
	// after a comma.
	NodeIP string
	// StateDir is the root of what persists; the pods' records go to its folder "pods",
	// and its folder "seccomp" has the profiles that pods name (Localhost).
	StateDir string
	// Began is when this process did, for SampleRecovery; zero measures none.
	Began time.Time

	Supply Supply
	Images Images
	Logs   Logs
	// Templates that pods may name; nil for none.
	Templates Templates
	// Pools of warm machines that the node offers; nil for none.
	Pools Pools
	// Observer of pod starts; nil for none.
	Observer Observer
	// Refused is told, each time, that a pod does not get what it asks for, for good or for
	// now. It must not block; nil for nobody.
	Refused func(pod *corev1.Pod, reason, message string)
	// Node is what the node says about itself.
	Node NodeOptions

	// DNS servers for pods. Machine defaults to the resolver of the machine's own network.
	DNS DNS
	// APIServer connects to the API server, for pods that have a token for it and use its Service's address, which
	// is reached inside of the cluster only. Nil: they are not led to it.
	APIServer func(ctx context.Context) (net.Conn, error)
	// MachineAddress is the address of every machine in its own network, without prefix length.
	MachineAddress string
	// StuckTimeout is how long a machine may not answer until it is ended and its pod
	// fails or restarts. Zero is DefaultStuckTimeout.
	StuckTimeout time.Duration
	// VolumeRefresh is how often the content of volumes that the API server has is read
	// again, up to half as much later. Zero is one minute.
	VolumeRefresh time.Duration
	// ReconcileEvery is how often machines are looked for that belong to no pod, an eighth more
	// or less. Zero is three minutes.
	ReconcileEvery time.Duration
	// HostPaths are the directories of the host, absolute, from which pods may get copies.
	HostPaths []string
	// Recorder of events; nil makes one that writes to the API server.
	Recorder kuberecord.EventRecorder
	// Logger; nil discards.
	Logger *slog.Logger

	fs durable.FS // tests let the disk of the records fail; nil is the host's
}

func (o Options) withDefaults() (Options, error) {
	var errs []error
	for _, f := range []struct {
		missing bool
		name    string
	}{
		{o.Client == nil, "Client"}, {o.NodeName == "", "NodeName"}, {o.StateDir == "", "StateDir"},
		{o.Supply == nil, "Supply"}, {o.Images == nil, "Images"}, {o.Logs == nil, "Logs"}, {o.Node.Arch == "", "Node.Arch"},
	} {
		if f.missing {
			errs = append(errs, fmt.Errorf("provider options: %s is required", f.name))
		}
	}
	o.StuckTimeout = cmp.Or(o.StuckTimeout, DefaultStuckTimeout)
	o.VolumeRefresh = cmp.Or(o.VolumeRefresh, defaultVolumeRefresh)
	o.ReconcileEvery = cmp.Or(o.ReconcileEvery, defaultReconcileEvery)
	if o.fs == nil {
		o.fs = durable.Host
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return o, errors.Join(errs...)
}

// Provider makes the pods of one node run. Its Run does everything; New only checks.
type Provider struct {
	opts Options
	log  *slog.Logger
	env  *environment
	kube *kube
	// admission is env's.
	admission *admission
	// nodeChanged holds one when the node's status is to be looked at at once.
	nodeChanged chan struct{}
	// look holds one when machines are to be looked at at once.
	look chan struct{}

	mu      sync.Mutex
	held    map[types.UID]*heldPod // guarded by mu
	reaping map[string]bool        // guarded by mu; machines of nobody that are being ended since the start
	workers map[types.UID]*worker  // guarded by mu
	// buried are UIDs whose pods ended here, and when: a late call must not start them again.
	buried  map[types.UID]time.Time              // guarded by mu
	runCtx  context.Context                      //nolint:containedctx // the lifetime of the workers; guarded by mu, nil until they may run
	notify  func(*corev1.Pod)                    // guarded by mu; virtual-kubelet's
	pending map[types.NamespacedName]*corev1.Pod // guarded by mu; statuses to hand to notify
	bell    chan struct{}                        // holds one when pending is not empty
	// recording: events reach somebody; until then they are kept in early. Guarded by mu.
	recording bool
	early     []func()
	wg        sync.WaitGroup // workers
}

// buriedFor is how long the UID of an ended pod is remembered. Calls about it can only
// be as late as virtual-kubelet's queues are long.
const buriedFor = 10 * time.Minute

// New checks the options and makes a provider. It starts nothing and asks nobody.
func New(opts Options) (*Provider, error) {
	opts, err := opts.withDefaults()
	if err != nil {
		return nil, err
	}
	p := &Provider{
		opts: opts, log: opts.Logger,
		workers: map[types.UID]*worker{}, buried: map[types.UID]time.Time{},
		pending: map[types.NamespacedName]*corev1.Pod{}, bell: make(chan struct{}, 1), nodeChanged: make(chan struct{}, 1),
		look: make(chan struct{}, 1), held: map[types.UID]*heldPod{}, reaping: map[string]bool{},
	}
	p.kube = newKube(opts)
	obj := newObjects(opts.Client)
	ev := events{p.kube.recorder}
	allocatable := opts.Node.Allocatable
	p.admission = &admission{allocatable: allocatable, node: p.kube.node, claims: map[types.UID]claim{}}
	if addresses := nodeAddresses(opts.NodeIP); len(addresses) > 0 && opts.Node.KubeletPort > 0 {
		host, _ := netip.ParseAddr(addresses[0])
		p.admission.own.ports = []hostPort{{protocol: corev1.ProtocolTCP, host: host, port: int(opts.Node.KubeletPort)}}
	}
	p.env = &environment{
		admission: p.admission,
		log:       opts.Logger, supply: opts.Supply, images: opts.Images, logs: opts.Logs, observer: opts.Observer, dns: opts.DNS,
		templates: opts.Templates,
		records:   newRecords(filepath.Join(opts.StateDir, "pods"), opts.fs), objects: obj, events: ev,
		puller:    puller{images: opts.Images, objects: obj, events: ev},
		content:   contentSource{objects: obj, allocatable: allocatable, nodeIP: opts.NodeIP},
		variables: envSource{objects: obj, services: p.kube.services, allocatable: allocatable, nodeIP: opts.NodeIP},
		api:       podAPI{client: opts.Client, current: p.kube.currentUID}, publish: p.publish, gone: p.bury,
		apiServer: opts.APIServer, nodeIP: opts.NodeIP, machineAddress: opts.MachineAddress, allocatable: allocatable, stuckTimeout: opts.StuckTimeout,
		refused:       opts.Refused,
		volumeRefresh: opts.VolumeRefresh, hostPaths: newHostPaths(opts.HostPaths),
		userAgent:  strings.TrimPrefix(opts.Node.Version, "v"),
		seccompDir: filepath.Join(opts.StateDir, "seccomp"), recovery: newRecovery(opts),
	}
	if opts.Templates != nil {
		opts.Templates.OnChange(p.templateChanged)
	}
	return p, nil
}

// upsert takes in a pod that the API server has: a new one gets a worker, a known one
// is updated. Another pod of this name, which then is gone from the API, is ended.
func (p *Provider) upsert(pod *corev1.Pod) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for uid, w := range p.workers {
		if old := w.published.Load(); uid != pod.UID && old.Namespace == pod.Namespace && old.Name == pod.Name {
			p.admission.forget(uid)
			w.abandon()
		}
	}
	if w, ok := p.workers[pod.UID]; ok {
		w.update(pod)
		return
	}
	if _, ok := p.buried[pod.UID]; ok || p.runCtx == nil || p.held[pod.UID] != nil {
		return
	}
	p.startWorker(stateAnew(pod, time.Now()))
}

// goneGrace is the grace of a pod whose object is gone already.
const goneGrace = 2 * time.Second

// startWorker begins a pod. p.mu is held.
func (p *Provider) startWorker(s state) {
	w := newWorker(p.env, s)
	p.workers[s.pod.UID] = w
	ctx := p.runCtx
	p.wg.Go(func() {
		defer p.admission.forget(s.pod.UID)
		w.run(ctx)
		if w.s.stage == stageTerminated {
			p.env.gone(w)
		}
	})
}

// end tells a pod's worker to end it. It reports whether the node has the pod.
func (p *Provider) end(uid types.UID, pod *corev1.Pod, grace time.Duration) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	w, ok := p.workers[uid]
	if !ok {
		return p.endHeld(uid, ending{since: time.Now(), grace: grace, force: grace <= 0})
	}
	if pod != nil {
		w.update(pod)
	}
	w.terminate(grace)
	return true
}

// abandon ends a pod whose object is gone. It reports whether the node has the pod.
func (p *Provider) abandon(uid types.UID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	w, ok := p.workers[uid]
	if !ok {
		return p.endHeld(uid, abandoned(time.Now()))
	}
	w.abandon()
	return true
}

// bury forgets a worker of whose pod nothing is left.
func (p *Provider) bury(w *worker) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	for uid, at := range p.buried {
		if now.Sub(at) > buriedFor {
			delete(p.buried, uid)
		}
	}
	uid := types.UID(w.uid)
	p.buried[uid] = now
	delete(p.workers, uid)
}

// all returns the workers, the oldest pods first.
func (p *Provider) all() []*worker {
	p.mu.Lock()
	defer p.mu.Unlock()
	ws := make([]*worker, 0, len(p.workers))
	for _, w := range p.workers {
		ws = append(ws, w)
	}
	slices.SortFunc(ws, func(a, b *worker) int {
		x, y := a.published.Load(), b.published.Load()
		return cmp.Or(x.CreationTimestamp.Compare(y.CreationTimestamp.Time), cmp.Compare(x.Namespace, y.Namespace), cmp.Compare(x.Name, y.Name), cmp.Compare(a.uid, b.uid))
	})
	return ws
}

// byName finds the worker of the pod that the API has by this name now. When the API
// has none, any worker of the name, the youngest pod's first.
func (p *Provider) byName(namespace, name string) *worker {
	current, known := p.kube.currentUID(namespace, name)
	p.mu.Lock()
	defer p.mu.Unlock()
	if known {
		return p.workers[current]
	}
	var found *worker
	for _, w := range p.workers {
		pod := w.published.Load()
		if pod.Namespace != namespace || pod.Name != name {
			continue
		}
		if found == nil || found.published.Load().CreationTimestamp.Before(&pod.CreationTimestamp) {
			found = w
		}
	}
	return found
}

// publish queues a pod's status for virtual-kubelet; a later one replaces it.
func (p *Provider) publish(pod *corev1.Pod) {
	p.mu.Lock()
	p.pending[types.NamespacedName{Namespace: pod.Namespace, Name: pod.Name}] = pod
	p.mu.Unlock()
	select {
	case p.bell <- struct{}{}:
	default:
	}
}

// hand gives queued statuses to virtual-kubelet, whose callback may block, until ctx
// ends. It leaves out pods that the API does not have by this UID: virtual-kubelet
// knows names only and would write an old pod's status to a new one.
func (p *Provider) hand(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-p.bell:
		}
		p.mu.Lock()
		batch, notify := p.pending, p.notify
		p.pending = map[types.NamespacedName]*corev1.Pod{}
		p.mu.Unlock()
		for _, pod := range batch {
			if uid, ok := p.kube.currentUID(pod.Namespace, pod.Name); ok && uid == pod.UID && notify != nil {
				notify(pod)
			}
		}
	}
}
