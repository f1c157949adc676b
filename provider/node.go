// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/virtual-kubelet/virtual-kubelet/node"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/vk-firkin/vk-firkin/crds/v1alpha1"
)

// Labels and taint of the node.
const (
	LabelHostOS = "firkin.dev/host-os"
	LabelDriver = "firkin.dev/driver"
	// TaintMachine keeps pods away that do not expect to run in a machine. It is a label too,
	// with the value "true", by which the RuntimeClasses of templates find these nodes.
	TaintMachine = "firkin.dev/machine"
)

// NodeOptions is what the node says about itself.
type NodeOptions struct {
	// Arch is the guests' architecture in GOARCH terms: what pods run on.
	Arch string
	// HostOS is the host's operating system in GOOS terms.
	HostOS string
	// Driver is the name of the machines' driver.
	Driver string
	// Capacity is what the host has, Allocatable what pods may have of it.
	Capacity, Allocatable corev1.ResourceList
	// NoTaint leaves the taint out.
	NoTaint bool
	// KubeletPort is where the kubelet API listens.
	KubeletPort int32
	// KubeletVersion says which release of Kubernetes the node behaves as, Version is this
	// program's, KernelVersion is the guest kit's.
	KubeletVersion, Version, KernelVersion, OSImage string
	// MachineID, SystemUUID and BootID identify the host, its hardware, and its last boot.
	MachineID, SystemUUID, BootID string
	// Labels are further labels, of those that a node may set on itself.
	Labels map[string]string
	// Images lists the images on the node; nil shows none. It must not change what it
	// returned.
	Images func() []corev1.ContainerImage
	// PressureTransition is how long a pressure must be over until the node says so.
	PressureTransition time.Duration
	// Measure looks at the host's state; nil reports no pressure. See Measurer.
	Measure func() (Pressure, error)
	// Healthy fails when the node cannot run pods, with a reason for people; nil is
	// always healthy.
	Healthy func(ctx context.Context) error
	// Examine looks at what of the host's state takes programs to find out; nil shows
	// nothing. It is called once at a time, every minute, must end with its ctx, and
	// returns the same types each time. See HostCondition.
	Examine func(ctx context.Context) []HostCondition
}

// Pressure is what a host is short of.
type Pressure struct {
	// Disk, Memory, PID say how much there is and whether that is too little.
	Disk, Memory, PID Measured
}

// Measured is one measurement.
type Measured struct {
	Short   bool
	Message string
}

// Capacity makes the resources of a node. pods bounds the number of pods.
func Capacity(milliCPU, memoryBytes, diskBytes int64, pods int) corev1.ResourceList {
	return corev1.ResourceList{
		corev1.ResourceCPU:              *resource.NewMilliQuantity(milliCPU, resource.DecimalSI),
		corev1.ResourceMemory:           *resource.NewQuantity(memoryBytes, resource.BinarySI),
		corev1.ResourceEphemeralStorage: *resource.NewQuantity(diskBytes, resource.BinarySI),
		corev1.ResourcePods:             *resource.NewQuantity(int64(pods), resource.DecimalSI),
	}
}

// MacOSGuests adds how many macOS guests the node runs at once, if it runs any.
func MacOSGuests(resources corev1.ResourceList, n int) corev1.ResourceList {
	if n > 0 {
		resources[v1alpha1.ResourceMacOSVM] = *resource.NewQuantity(int64(n), resource.DecimalSI)
	}
	return resources
}

// nodeObject is the node as it registers. Only labels that NodeRestriction lets a
// node set on itself are in it.
func nodeObject(name, ip string, o NodeOptions, now time.Time) *corev1.Node {
	labels := maps.Clone(o.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	maps.Copy(labels, map[string]string{
		corev1.LabelOSStable: "linux", corev1.LabelArchStable: o.Arch, corev1.LabelHostname: name,
		LabelHostOS: o.HostOS, LabelDriver: o.Driver, TaintMachine: "true",
	})
	supports := rules()
	strict := supports["securityContext.supplementalGroupsPolicy"].admits(string(corev1.SupplementalGroupsPolicyStrict))
	recursive := supports["containers[].volumeMounts[].recursiveReadOnly"].admits(string(corev1.RecursiveReadOnlyEnabled))
	handler := &corev1.NodeRuntimeHandlerFeatures{RecursiveReadOnlyMounts: &recursive, UserNamespaces: new(bool)}
	n := &corev1.Node{
		TypeMeta:   metav1.TypeMeta{Kind: "Node", APIVersion: "v1"},
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels},
		Status: corev1.NodeStatus{
			Capacity: o.Capacity, Allocatable: o.Allocatable,
			DaemonEndpoints: corev1.NodeDaemonEndpoints{KubeletEndpoint: corev1.DaemonEndpoint{Port: o.KubeletPort}},
			Addresses:       []corev1.NodeAddress{{Type: corev1.NodeHostName, Address: name}},
			NodeInfo: corev1.NodeSystemInfo{
				Architecture: o.Arch, OperatingSystem: "linux", KubeletVersion: o.KubeletVersion, KernelVersion: o.KernelVersion,
				OSImage: o.OSImage, ContainerRuntimeVersion: "firkin://" + o.Version,
				MachineID: o.MachineID, SystemUUID: o.SystemUUID, BootID: o.BootID,
			},
			// The default one, and that of the RuntimeClasses of templates.
			RuntimeHandlers: []corev1.NodeRuntimeHandler{{Features: handler}, {Name: v1alpha1.RuntimeHandler, Features: handler}},
			Features:        &corev1.NodeFeatures{SupplementalGroupsPolicy: &strict},
			Conditions:      nodeConditions(Pressure{}, nil, nil, nil, now),
		},
	}
	if macOSGuests := o.Capacity[v1alpha1.ResourceMacOSVM]; !macOSGuests.IsZero() {
		n.Labels[v1alpha1.LabelMacOSGuests] = "true"
	}
	for i, address := range nodeAddresses(ip) {
		n.Status.Addresses = slices.Insert(n.Status.Addresses, i, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: address})
	}
	if !o.NoTaint {
		n.Spec.Taints = []corev1.Taint{{Key: TaintMachine, Value: "true", Effect: corev1.TaintEffectNoSchedule}}
	}
	return n
}

// nodeConditions are the node's conditions. old gives the times of what did not change.
func nodeConditions(p Pressure, unhealthy error, host []HostCondition, old []corev1.NodeCondition, now time.Time) []corev1.NodeCondition {
	var list []corev1.NodeCondition
	put := func(h HostCondition) {
		c := corev1.NodeCondition{Type: h.Type, Status: h.Status, Reason: h.Reason, Message: h.Message,
			LastHeartbeatTime: metav1.NewTime(now), LastTransitionTime: metav1.NewTime(now)}
		for _, o := range old {
			if o.Type == c.Type && o.Status == c.Status {
				c.LastTransitionTime = o.LastTransitionTime
			}
		}
		list = append(list, c)
	}
	add := func(t corev1.NodeConditionType, ok bool, reason, message string) {
		h := HostCondition{Type: t, Status: corev1.ConditionFalse, Reason: reason, Message: message}
		if ok {
			h.Status = corev1.ConditionTrue
		}
		put(h)
	}
	pressure := func(t corev1.NodeConditionType, what string, m Measured) {
		reason := "KubeletHasSufficient" + what
		if what == "Disk" {
			reason = "KubeletHasNoDiskPressure"
		}
		if m.Short {
			reason = map[string]string{"Disk": "KubeletHasDiskPressure", "Memory": "KubeletHasInsufficientMemory", "PID": "KubeletHasInsufficientPID"}[what]
		}
		add(t, m.Short, reason, m.Message)
	}
	pressure(corev1.NodeMemoryPressure, "Memory", p.Memory)
	pressure(corev1.NodeDiskPressure, "Disk", p.Disk)
	pressure(corev1.NodePIDPressure, "PID", p.PID)
	if unhealthy != nil {
		add(corev1.NodeReady, false, "KubeletNotReady", bound(unhealthy.Error(), maxEventMessage))
	} else {
		add(corev1.NodeReady, true, "KubeletReady", "vk-firkin is ready to run pods in machines")
	}
	for _, h := range host {
		h.Message = bound(h.Message, maxEventMessage)
		put(h)
	}
	return list
}

// NodeEvent tells the cluster's operators what happened to the node, for example
// SnapshotQuarantined. It does not block. What happens before Run is told when it has begun.
func (p *Provider) NodeEvent(warning bool, reason, message string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.recording {
		if len(p.early) < maxEarlyEvents {
			p.early = append(p.early, func() { p.nodeEvent(warning, reason, message) })
		}
		return
	}
	p.nodeEvent(warning, reason, message)
}

// maxEarlyEvents bounds what is kept until Run: a node that starts has a few snapshots.
const maxEarlyEvents = 100

func (p *Provider) nodeEvent(warning bool, reason, message string) {
	ref := &corev1.ObjectReference{Kind: "Node", APIVersion: "v1", Name: p.opts.NodeName, UID: types.UID(p.opts.NodeName)} // the kubelet's events have the name as UID
	p.kube.recorder.Event(ref, eventType(warning), reason, bound(message, maxEventMessage))
}

// record begins to tell events: there is somebody to take them now.
func (p *Provider) record() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.recording = true
	for _, tell := range p.early {
		tell()
	}
	p.early = nil
}

// measureEvery is how often the host is looked at; its cost is a few system calls.
const measureEvery = 10 * time.Second

// nodeKeeper measures the host and tells virtual-kubelet's node controller what changed.
type nodeKeeper struct {
	p      *Provider
	node   *corev1.Node
	notify chan func(*corev1.Node)
	host   *examiner
	held   pressureHold
}

var _ node.NodeProvider = (*nodeKeeper)(nil)

// Ping is virtual-kubelet's question whether the node lives: the lease follows it. What
// is wrong with the host is told by conditions.
func (k *nodeKeeper) Ping(ctx context.Context) error { return ctx.Err() }

// NotifyNodeStatus takes the callback for a changed node.
func (k *nodeKeeper) NotifyNodeStatus(_ context.Context, cb func(*corev1.Node)) { k.notify <- cb }

func (p *Provider) nodeController(ctx context.Context) (*node.NodeController, *nodeKeeper, error) {
	k := &nodeKeeper{p: p, notify: make(chan func(*corev1.Node), 1), host: newExaminer(p.opts.Node.Examine), held: pressureHold{period: p.opts.Node.PressureTransition}}
	k.node = nodeObject(p.opts.NodeName, p.opts.NodeIP, p.opts.Node, time.Now())
	// What the process before told has its times, and was told by events.
	k.node.Status.Conditions = nil
	if known, err := p.opts.Client.CoreV1().Nodes().Get(ctx, p.opts.NodeName, metav1.GetOptions{}); err == nil {
		k.node.Status.Conditions = known.Status.Conditions
	}
	k.host.once(ctx)
	k.set(k.measure(ctx))
	k.node.Status.Images = k.images()
	first := k.node.DeepCopy()
	nc, err := node.NewNodeController(k, first.DeepCopy(), p.opts.Client.CoreV1().Nodes(),
		node.WithNodeEnableLeaseV1(p.opts.Client.CoordinationV1().Leases(corev1.NamespaceNodeLease), node.DefaultLeaseDuration),
		node.WithNodeStatusUpdateErrorHandler(func(ctx context.Context, err error) error {
			if !apierrors.IsNotFound(err) {
				return err
			}
			// Somebody deleted the node: register again, as a kubelet does when it restarts.
			_, err = p.opts.Client.CoreV1().Nodes().Create(ctx, first.DeepCopy(), metav1.CreateOptions{})
			return err
		}))
	if err != nil {
		return nil, nil, fmt.Errorf("make node controller: %w", err)
	}
	return nc, k, nil
}

// measure computes the conditions of now.
func (k *nodeKeeper) measure(ctx context.Context) []corev1.NodeCondition {
	var p Pressure
	if k.p.opts.Node.Measure != nil {
		var err error
		if p, err = k.p.opts.Node.Measure(); err != nil {
			k.p.log.Warn("Host could not be measured", "err", err)
		}
	}
	p = k.held.settle(p, time.Now())
	var unhealthy error
	if k.p.admission.isClosing() {
		unhealthy = errNodeShutdown
	} else if k.p.opts.Node.Healthy != nil {
		ctx, cancel := context.WithTimeout(ctx, measureEvery)
		defer cancel()
		unhealthy = k.p.opts.Node.Healthy(ctx)
	}
	return nodeConditions(p, unhealthy, k.host.latest(), k.node.Status.Conditions, time.Now())
}

func (k *nodeKeeper) images() []corev1.ContainerImage {
	if k.p.opts.Node.Images == nil {
		return nil
	}
	return nodeImages(k.p.opts.Node.Images())
}

// set takes new conditions, and tells by events what changed of the host.
func (k *nodeKeeper) set(conditions []corev1.NodeCondition) {
	for _, e := range hostEvents(k.node.Status.Conditions, conditions, k.host.latest()) {
		k.p.NodeEvent(e.Warning, e.Reason, e.Message)
	}
	k.node.Status.Conditions = conditions
	k.p.admission.press(conditions)
}

// offerPause is how long changes of the pools are gathered: each report is two requests.
const offerPause = time.Second

// run measures until ctx ends, and tells only what changed: the lease keeps the node
// alive meanwhile. virtual-kubelet writes labels with the status: see offer.
func (k *nodeKeeper) run(ctx context.Context) {
	var notify func(*corev1.Node)
	select {
	case notify = <-k.notify:
	case <-ctx.Done():
		return
	}
	var changes <-chan struct{} // of the pools
	if k.p.opts.Pools != nil {
		changes = k.p.opts.Pools.Changes()
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { k.host.run(ctx) })
	timer := time.NewTimer(measureEvery)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-k.host.examined:
		case <-k.p.nodeChanged:
		case <-changes:
			if !sleep(ctx, offerPause) {
				return
			}
		}
		timer.Reset(measureEvery)
		conditions := k.measure(ctx)
		was := k.node.DeepCopy()
		if k.p.opts.Pools != nil {
			offer(k.node, k.p.opts.Node, k.p.opts.Pools.Pools(), k.p.holdings(), k.p.opts.Pools.WithheldMacOSGuests())
		}
		k.node.Status.Images = k.images()
		if sameConditions(k.node.Status.Conditions, conditions) && sameOffer(was, k.node) && equality.Semantic.DeepEqual(was.Status.Images, k.node.Status.Images) {
			continue
		}
		k.set(conditions)
		told := make(chan struct{})
		node := k.node.DeepCopy()
		go func() { // the callback blocks when the controller has ended; then so has ctx
			defer close(told)
			notify(node)
		}()
		select {
		case <-told:
		case <-ctx.Done():
			return
		}
	}
}

func sameConditions(a, b []corev1.NodeCondition) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		x, y := a[i], b[i]
		x.LastHeartbeatTime, y.LastHeartbeatTime = metav1.Time{}, metav1.Time{}
		x.LastTransitionTime, y.LastTransitionTime = metav1.Time{}, metav1.Time{}
		if x.Status == y.Status { // a measured amount that differs is no news
			x.Message, y.Message = "", ""
		}
		if !equality.Semantic.DeepEqual(x, y) {
			return false
		}
	}
	return true
}
