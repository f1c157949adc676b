// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package warmpool

import (
	"context"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/snapshot/recipe"
)

// Template is what machines are prepared with before they are saved. Pure data.
type Template struct {
	Namespace, Name string
	// Revision is a digest of everything that the user wrote: two templates of equal
	// namespace, name and revision are equal.
	Revision string
	Shape    vm.Shape
	// GuestOS of its machines; empty is Linux. A macOS guest has one image, which is its
	// system and fills no image slot.
	GuestOS vm.GuestOS
	// Images are references, in slot order; the recipe's commands run in the first.
	Images []string
	Recipe recipe.Recipe
}

// ID is "namespace/name".
func (t Template) ID() string { return t.Namespace + "/" + t.Name }

// Reclaim says whether a pool's entries give way.
type Reclaim string

// The policies.
const (
	// ReclaimOnDemand: entries are evicted when a pod needs their room.
	ReclaimOnDemand Reclaim = "OnDemand"
	// ReclaimNever: entries leave by checkout only.
	ReclaimNever Reclaim = "Never"
)

// Target is how many warm entries of a template are to stand ready for a pool.
type Target struct {
	// Pool is "namespace/name".
	Pool     string
	Template Template
	// Desired is the number of ready entries.
	Desired  int
	Priority int
	Reclaim  Reclaim
	// MaxAge after which an entry is replaced; 0 is never.
	MaxAge time.Duration
	// MaxSurge and MaxUnavailable bound how many entries more and fewer than desired there
	// may be while outdated ones are replaced.
	MaxSurge, MaxUnavailable int
	// Warm is what an entry costs while it is paused: no CPU. Active is what it costs
	// once a pod has it. Zero values are those of the template's shape; the slot of a macOS
	// guest is added in any case.
	Warm, Active Budget
}

// SkipReason is why a pool is not filled further.
type SkipReason string

// The reasons. Stable: they appear in statuses and metrics.
const (
	SkipAlreadyWarm          SkipReason = "AlreadyWarm"
	SkipInsufficientCapacity SkipReason = "InsufficientCapacity"
	SkipDiskPressure         SkipReason = "DiskPressure"
	SkipMemoryPressure       SkipReason = "MemoryPressure"
	SkipSnapshotNotReady     SkipReason = "SnapshotNotReady"
	SkipBackoff              SkipReason = "Backoff"
)

// PoolStatus is one pool on this node.
type PoolStatus struct {
	Pool     string
	Template string
	Revision string
	// Desired is the target; Ready can be checked out, outdated ones included; Restoring
	// are on the way; Active were checked out and are in use.
	Desired, Ready, Restoring, Outdated, Active int
	// Skip is why it is not filled further; empty when it is full or being filled.
	Skip    SkipReason
	Message string
	// UnmetSince is when Ready last fell below Desired; zero when it is not below.
	UnmetSince time.Time
}

// TemplatePhase is where a template's snapshot is on this node.
type TemplatePhase string

// The phases.
const (
	TemplatePending  TemplatePhase = "Pending"
	TemplateBuilding TemplatePhase = "Building"
	TemplateReady    TemplatePhase = "Ready"
	TemplateFailed   TemplatePhase = "Failed"
)

// TemplateStatus is one revision of a template on this node.
type TemplateStatus struct {
	Namespace, Name, Revision string
	Phase                     TemplatePhase
	// Key of the snapshot.
	Key string
	// Step, Message and Output of a build that failed; RetryAt is when it is tried again.
	Step, Message, Output string
	RetryAt               time.Time
	// Build and Save are what the last build took, and the save in it.
	Build, Save time.Duration
}

// Status is the supply at one moment.
type Status struct {
	Account   Account
	Pools     []PoolStatus
	Templates []TemplateStatus
	// Quarantined are the machines that are kept for somebody to look at.
	Quarantined []Quarantined
}

// SlotImage is the image in a slot of a machine, or the system of a macOS guest.
type SlotImage struct {
	// Ref as the template has it; empty for machines without a template.
	Ref    string `json:"ref,omitempty"`
	Digest string `json:"digest"`
	// DiskPath is the file behind the slot.
	DiskPath string `json:"diskPath"`
	// MacOS is the installation, for the image of a macOS guest. Only the making of a machine
	// needs it.
	MacOS *vm.MacOS `json:"-"`
}

// Images turns references into disks. vm/image is behind it.
type Images interface {
	// Resolve returns the image of a reference, pulled if it is not on the node, and keeps it for
	// the owner until Release. os says what it must be an image for: one that is of another
	// kind is an error.
	Resolve(ctx context.Context, owner, ref string, os vm.GuestOS) (SlotImage, error)
	// Pin returns an image of a digest that is on the node, and keeps it for the owner.
	Pin(ctx context.Context, owner, digest string) (SlotImage, error)
	// Release gives back all that the owner keeps. Idempotent.
	Release(owner string)
}
