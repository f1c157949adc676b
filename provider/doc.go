// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Package provider makes pods of machines: it is the virtual-kubelet provider.
//
// # Life of a pod
//
// Each pod UID has one worker, a goroutine that owns everything the node keeps for
// the pod. Its phases only move forward:
//
//		syncing ----> finished ----> terminating ----> terminated
//		    \-------------------------^
//
//	  - syncing: bring up what is missing: images, a machine, volumes, containers;
//	    restart containers as the restart policy says.
//	  - finished: the pod is Succeeded or Failed. Its machine is given back, its log
//	    files stay until the pod is deleted from the API.
//	  - terminating: the pod is deleted. Containers are stopped within the grace
//	    period, output is drained, the machine is given back.
//	  - terminated: nothing of the pod is left on the node, and its object is gone.
//
// A worker computes, then acts: decide.go looks at the state and says what to do
// next, without doing it; the worker writes down what it is about to do
// (record.go), does it in a goroutine of its own that can be cancelled, and looks
// again when the outcome arrives. So a deletion is never behind a pull.
//
// # Probes
//
// Each run of a container that has probes is asked by goroutines of the machine's hold
// (probes.go; the timing is package probe's, what a probe does is in handlers.go, as are
// lifecycle hooks). The loop hears of an answer only when it changes something or is to be
// told by an event. A container without probes costs nothing, and no guest is polled.
//
// # Identity
//
// virtual-kubelet calls with namespace and name, which a recreated pod reuses.
// vk.go maps them to a UID; everything below knows UIDs only.
//
// # Who owns which state
//
// The API server owns the pod. The machine owns what runs in it. The record
// `<state>/pods/<uid>/pod.json` owns what ties the two together: machine ids,
// restart counts, image digests. The status is computed from these (status.go),
// never set along the way.
package provider
