// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"errors"

	"github.com/vk-firkin/vk-firkin/warmpool"
)

// Template is what a pod's machine is prepared with, and what it costs.
type Template struct {
	warmpool.Template
	// MilliCPU is what the machine takes from the node beyond what its containers
	// request. Its memory is the shape's.
	MilliCPU int64
}

// Templates are the SnapshotTemplates of the cluster, as this node knows them.
// provider/nodeledger implements it. Safe for concurrent use; nothing in it blocks.
type Templates interface {
	// Template returns the current revision of a template. Errors: ErrNotFound when the
	// namespace has none of this name; ErrInvalidTemplate; anything else when the API
	// server has not told yet. All may change by themselves: see OnChange.
	Template(namespace, name string) (Template, error)
	// OnChange lets f be called when a template came, changed or went, and when it
	// becomes known which there are (with empty names). It must not block. It is to be
	// called before the node runs.
	OnChange(f func(namespace, name string))
}

// ErrInvalidTemplate: the template exists, and this node cannot make a machine of it. The
// message says what to change.
var ErrInvalidTemplate = errors.New("invalid template")

// NodePool is what the node offers of one warm pool.
type NodePool struct {
	// Key is the pool's label and its extended resource: warm.firkin.dev/NAMESPACE.POOL.
	// Empty when that is too long for either.
	Key string
	// Ready is how many machines can be checked out, Desired how many should.
	Ready, Desired int
	// Reserved: the pool's machines never give way, so their room is not offered to
	// other pods.
	Reserved bool
	// Each is what one machine takes from the node once a pod has it.
	Each Budget
}

// Pools are the node's warm pools. provider/nodeledger implements it. Safe for
// concurrent use; nothing in it blocks.
type Pools interface {
	// Pools returns the pools of the node's targets, sorted by key.
	Pools() []NodePool
	// Changes holds one when Pools may return something new.
	Changes() <-chan struct{}
}
