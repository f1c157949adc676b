// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package warmpool

import (
	"context"
	"errors"
	"fmt"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/snapshot"
)

// Reason tells programs why a machine was refused. Stable: it appears in events
// and metrics.
type Reason string

// The reasons of refusals.
const (
	// ReasonInvalid: the request contradicts itself. Repeating does not help.
	ReasonInvalid Reason = "Invalid"
	// ReasonExists: a machine of this id is in the ledger.
	ReasonExists Reason = "Exists"
	// ReasonOversized: more than the node has. Repeating does not help.
	ReasonOversized Reason = "Oversized"
	// ReasonInsufficientCapacity: more than the node has left, also after a wait.
	ReasonInsufficientCapacity Reason = "InsufficientCapacity"
	// ReasonQueueFull: more than the node has left, and too many wait for it.
	ReasonQueueFull Reason = "QueueFull"
	// ReasonDiskPressure: too little disk is free to build or restore.
	ReasonDiskPressure Reason = "DiskPressure"
	// ReasonSnapshotFailed: the snapshot could not be built.
	ReasonSnapshotFailed Reason = "SnapshotFailed"
	// ReasonRestoreFailed: the machine could not be restored, or did not answer.
	ReasonRestoreFailed Reason = "RestoreFailed"
	// ReasonHostNotReady: somebody must do something at the host first.
	ReasonHostNotReady Reason = "HostNotReady"
	// ReasonShutdown: the node is going down.
	ReasonShutdown Reason = "Shutdown"
	// ReasonCancelled: the caller gave up.
	ReasonCancelled Reason = "Cancelled"
)

// Refusal is why there is no machine. Nothing is left of the attempt, unless
// Leftover says so.
type Refusal struct {
	Reason Reason
	// Message tells cause and remedy.
	Message string
	// Resource, Requested and Available are set for Oversized and
	// InsufficientCapacity: "cpu" in thousandths, "memory" and "disk" in bytes,
	// "slots".
	Resource             string
	Requested, Available int64
	// Leftover: a machine could not be deleted. It keeps its room in the ledger, and
	// the supply goes on trying.
	Leftover bool
	// Err is the cause, for errors.Is and errors.As.
	Err error
}

// Error is the message and the cause.
func (r *Refusal) Error() string {
	if r.Err == nil {
		return r.Message
	}
	return fmt.Sprintf("%s: %v", r.Message, r.Err)
}

// Unwrap gives the cause.
func (r *Refusal) Unwrap() error { return r.Err }

// Final tells that the same request will be refused again by this node.
func (r *Refusal) Final() bool {
	return r.Reason == ReasonInvalid || r.Reason == ReasonOversized
}

// ReasonOf returns the reason of a refusal, empty for other errors.
func ReasonOf(err error) Reason {
	var r *Refusal
	if errors.As(err, &r) {
		return r.Reason
	}
	return ""
}

func refuse(reason Reason, err error, format string, args ...any) *Refusal {
	return &Refusal{Reason: reason, Message: fmt.Sprintf(format, args...), Err: err}
}

// shortage is the refusal for too little of a resource.
func shortage(reason Reason, resource string, requested, available int64) *Refusal {
	unit, scale := "", int64(1)
	what := resource
	switch resource {
	case "slots":
		what = "macOS guest slots"
	case "cpu":
		unit = "m"
	case "memory", "disk":
		unit, scale = "Mi", 1<<20
	}
	left := "left"
	if reason == ReasonOversized {
		left = "in all"
	}
	return &Refusal{
		Reason:    reason,
		Resource:  resource,
		Requested: requested,
		Available: available,
		Message:   fmt.Sprintf("insufficient %s: the machine needs %d%s, the node has %d%s %s", what, (requested+scale-1)/scale, unit, available/scale, unit, left),
	}
}

// classify makes a refusal of what the snapshot store said. stage is Snapshot or
// Restore. Pure.
func classify(stage Reason, err error, callerGone, closed bool) *Refusal {
	var refusal *Refusal
	var pressure *snapshot.DiskPressureError
	switch {
	case errors.As(err, &refusal):
		return refusal
	case closed, errors.Is(err, snapshot.ErrClosed):
		return refuse(ReasonShutdown, err, "the node is shutting down")
	case callerGone && errors.Is(err, context.Canceled), callerGone && errors.Is(err, context.DeadlineExceeded):
		return refuse(ReasonCancelled, err, "the machine is not wanted any more")
	case errors.As(err, &pressure), errors.Is(err, vm.ErrNoSpace):
		return refuse(ReasonDiskPressure, err, "not enough room on the node's disk for a machine")
	case errors.Is(err, vm.ErrLimitExceeded):
		refusal = refuse(ReasonInsufficientCapacity, err, "the host has as many macOS guests as it may run, or does not know yet that one has ended")
		refusal.Resource, refusal.Requested = "slots", 1
		return refusal
	case errors.Is(err, vm.ErrHostNotReady):
		return refuse(ReasonHostNotReady, err, "the host cannot make a machine as it stands")
	case errors.Is(err, vm.ErrInvalidConfig):
		return refuse(ReasonInvalid, err, "the machine's configuration is invalid")
	case errors.Is(err, vm.ErrAlreadyExists):
		return refuse(ReasonExists, err, "a machine of this id exists already")
	case stage == ReasonSnapshotFailed:
		return refuse(stage, err, "there is no snapshot to restore from")
	}
	return refuse(stage, err, "the machine could not be restored")
}
