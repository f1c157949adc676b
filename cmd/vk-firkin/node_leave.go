// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// podsWithMachines are what would be left with nobody if the node went for good: machines of pods,
// those in quarantine, and pods that wait for a machine.
func (n *node) podsWithMachines() []string {
	list := []string{}
	waiting := map[string]string{}
	pods := map[string]string{}
	for _, p := range n.provider.Pods() {
		name := "pod " + p.Namespace + "/" + p.Name
		pods[string(p.UID)] = name
		if p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed {
			waiting[string(p.UID)] = name
		}
	}
	for _, e := range n.supply.Status().Account.Machines {
		if e.Warm || e.IsBuild() {
			continue
		}
		name := "machine " + e.Machine
		if pod := pods[e.PodUID]; pod != "" {
			name = pod
		}
		delete(waiting, e.PodUID)
		list = append(list, name)
	}
	for _, name := range waiting {
		list = append(list, name)
	}
	slices.Sort(list)
	return list
}

// leaveTimeout bounds the end of warm machines, which are ended by force.
const leaveTimeout = time.Minute

// leaving is what a node does before it goes for good.
type leaving struct {
	// left is what would be left behind.
	left func() []string
	// hold refuses new pods until resume.
	hold func() (resume func())
	// drain ends warm machines, and no more are made until refill.
	drain  func(context.Context) error
	refill func()
}

// serve ends the warm machines of a node that is about to go for good, unless machines of pods would be left
// behind. A pod may come at any time until no more are let in: it is looked once before, so that a node that stays refuses
// nobody, and again after that. What is let in is the node's when it has gone.
func (l leaving) serve(w http.ResponseWriter, r *http.Request) {
	if refuseToLeave(w, l.left()) {
		return
	}
	resume := l.hold()
	goes := false
	defer func() {
		if !goes {
			resume()
		}
	}()
	if refuseToLeave(w, l.left()) {
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), leaveTimeout)
	defer cancel()
	defer func() {
		if !goes {
			l.refill()
		}
	}()
	if err := l.drain(ctx); err != nil {
		http.Error(w, "warm machines could not be ended: "+err.Error()+"; the node stays, and makes those anew that were", http.StatusInternalServerError)
		return
	}
	// What was promised to a pod before the door was closed has come out of the pool meanwhile.
	if refuseToLeave(w, l.left(), "; the node stays, and makes its warm machines anew, which have ended") {
		return
	}
	goes = true
	reply(w, struct{}{})
}

// refuseToLeave says what would be left behind, if anything, and what became of the node.
func refuseToLeave(w http.ResponseWriter, stay []string, became ...string) bool {
	if len(stay) == 0 {
		return false
	}
	http.Error(w, fmt.Sprintf("%d machines are still in use: %s", len(stay), strings.Join(stay[:min(len(stay), 5)], ", "))+strings.Join(became, ""), http.StatusConflict)
	return true
}

// handoverTime is how long a node that is to be followed by another one may be kept: longer than a
// service manager takes to end it. After that the host is what is shut down.
const handoverTime = 5 * time.Minute

// handover is whether a node that ends is followed by another one, which takes up its pods.
type handover struct {
	until atomic.Int64 // in nanoseconds since 1970
}

func (h *handover) serve(w http.ResponseWriter, _ *http.Request) {
	h.until.Store(time.Now().Add(handoverTime).UnixNano())
	reply(w, struct{}{})
}

func (h *handover) expected() bool { return time.Now().UnixNano() < h.until.Load() }
