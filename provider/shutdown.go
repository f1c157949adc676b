// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"context"
	"errors"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// What the status of a pod says that was ended because its node is shut down, the
// kubelet's words.
const (
	reasonTerminated   = "Terminated"
	messageTerminated  = "Pod was terminated in response to imminent node shutdown."
	shutdownReported   = 10 * time.Second // for the last statuses to reach the API server
	shutdownLookAgain  = 50 * time.Millisecond
	shutdownReleaseMax = 30 * time.Second // beyond the grace: for the machines to end
)

// errNodeShutdown is why a node is not ready that ends its pods.
var errNodeShutdown = errors.New("node is shutting down")

// shutdownGroup are the pods that are ended together, and how long they have.
type shutdownGroup struct {
	grace time.Duration
	pods  []*worker
}

// shutdownGroups are the pods in the order of their end: those that others may depend on
// go last. The last critical of grace are theirs alone. It is pure.
func shutdownGroups(workers []*worker, grace, forCritical time.Duration) []shutdownGroup {
	forCritical = min(forCritical, grace)
	groups := []shutdownGroup{{grace: grace - forCritical}, {grace: forCritical}}
	for _, w := range workers {
		i := 0
		if critical(w.published.Load()) {
			i = 1
		}
		groups[i].pods = append(groups[i].pods, w)
	}
	return groups
}

// shutdownGrace is what a pod of a group gets: its own grace where that is shorter.
func shutdownGrace(pod *corev1.Pod, group time.Duration) time.Duration {
	if s := pod.Spec.TerminationGracePeriodSeconds; s != nil {
		return min(seconds(*s), group)
	}
	return group
}

// Shutdown ends all pods, before the host is shut down or leaves the cluster: the node
// says that it is not ready and refuses new pods, then pods are ended by their priority,
// as Failed with the reason Terminated. All of them have grace together, of which the
// last forCritical are for critical pods. It returns when no pod has a machine and the API
// server knows, or at the latest a minute after the grace, or when ctx ends. Run goes on
// meanwhile; its ctx is to be ended then.
func (p *Provider) Shutdown(ctx context.Context, grace, forCritical time.Duration) {
	p.admission.close()
	p.LookAtNode()
	p.log.Info("Ending all pods", "grace", grace, "forCritical", forCritical)
	p.NodeEvent(false, "Shutdown", "Shutdown manager detected shutdown: pods are ended")
	for _, g := range shutdownGroups(p.all(), grace, forCritical) {
		if len(g.pods) == 0 {
			continue // nobody waits for nobody
		}
		for _, w := range g.pods {
			w.evict(reasonTerminated, messageTerminated, shutdownGrace(w.published.Load(), g.grace))
		}
		gctx, cancel := context.WithTimeout(ctx, g.grace+shutdownReleaseMax)
		for !allDown(g.pods) && sleep(gctx, shutdownLookAgain) {
		}
		cancel()
	}
	rctx, cancel := context.WithTimeout(ctx, shutdownReported)
	defer cancel()
	for !p.allReported() && sleep(rctx, shutdownLookAgain) {
	}
	if left := p.withMachine(); left > 0 {
		p.log.Warn("Pods did not end in time; their machines go on", "pods", left)
		return
	}
	p.log.Info("All pods have ended")
}

// Hold refuses new pods, as a node that shuts down does, until resume is called: it is what comes before a
// look at whether there are any. Pods that were admitted go on.
func (p *Provider) Hold() (resume func()) {
	open := p.admission.holdOff()
	p.LookAtNode()
	return func() {
		open()
		p.LookAtNode()
	}
}

// allDown: none of the pods has a machine, or will get one.
func allDown(workers []*worker) bool {
	for _, w := range workers {
		select {
		case <-w.done: // deleted meanwhile
			continue
		default:
		}
		if v := w.view.Load(); order(w.published.Load().Status.Phase) < order(corev1.PodFailed) || v.machine || v.releasing {
			return false
		}
	}
	return true
}

// allReported: the API server has the end of every pod.
func (p *Provider) allReported() bool {
	for _, w := range p.all() {
		pod := w.published.Load()
		known := p.kube.current(pod.Namespace, pod.Name)
		if known != nil && known.UID == pod.UID && order(known.Status.Phase) < order(pod.Status.Phase) {
			return false
		}
	}
	return true
}

func (p *Provider) withMachine() int {
	n := 0
	for _, w := range p.all() {
		if w.view.Load().machine {
			n++
		}
	}
	return n
}
