// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

// Bounds that the API server enforces on statuses. Who writes one cuts to them, or the
// write is refused. They count characters, so as many bytes are always short enough.
const (
	// MaxMessage of skip reasons and failures.
	MaxMessage = 1024
	// MaxReplicas of a pool.
	MaxReplicas = 100000
	// MaxOutput of a command that failed.
	MaxOutput = 4096
	// MaxNodeEntries is how many pools, snapshots, targets and templates a NodeLedger has.
	MaxNodeEntries = 1000
	// MaxQuarantined is how many machines in quarantine a NodeLedger's status tells of.
	MaxQuarantined = 20
	// MaxPoolNodes is how many nodes a WarmPool's status tells of.
	MaxPoolNodes = 100
	// MaxFailures is how many failures a SnapshotTemplate's status tells of.
	MaxFailures = 10
)

// maxLabelName is the room behind the slash of a label or resource name.
const maxLabelName = 63

// WarmName is the name of the label of nodes with a ready machine of the pool, and of
// the extended resource of a pool with reclaim policy Never. It is false if the
// namespace and the pool's name are too long for one together; the controller
// says so in the pool's conditions. Pure.
func WarmName(namespace, pool string) (string, bool) {
	name := namespace + "." + pool
	return LabelWarmPrefix + name, len(name) <= maxLabelName
}
