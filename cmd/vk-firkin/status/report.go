// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package status

import "time"

// Report is a node at one moment. Lists are never null, fields are added and not renamed.
type Report struct {
	Time time.Time `json:"time"`
	// Running: a node answered. Else Problem and Remedy say why none did and what to do, and
	// the rest is what the records on the disk say.
	Running bool   `json:"running"`
	Problem string `json:"problem,omitempty"`
	Remedy  string `json:"remedy,omitempty"`

	StateDir string `json:"stateDir"`
	CacheDir string `json:"cacheDir"`
	// Node and Ledger are those of a running node.
	Node   *Node   `json:"node,omitempty"`
	Ledger *Ledger `json:"ledger,omitempty"`
	// Conditions as the node tells them the cluster: Ready and what it is short of; and
	// ReadyInCluster, which is whether the API server has it as Ready.
	Conditions []Condition  `json:"conditions"`
	Pools      []Pool       `json:"pools"`
	Templates  []Template   `json:"templates"`
	Machines   []Machine    `json:"machines"`
	Quarantine []Quarantine `json:"quarantine"`
	// Refusals, the newest first: no more than the node remembers, and none of an earlier process.
	Refusals []Refusal `json:"refusals"`
}

// Node is the process.
type Node struct {
	Name        string    `json:"name"`
	Version     string    `json:"version"`
	PID         int       `json:"pid"`
	Began       time.Time `json:"began"`
	Server      string    `json:"server"` // of the cluster
	Driver      string    `json:"driver"`
	Accelerator string    `json:"accelerator,omitempty"`
	Arch        string    `json:"arch"`
	GuestKit    string    `json:"guestKit"`
	// WeakenedBy are the flags of the process that give up a protection.
	WeakenedBy []string `json:"weakenedBy,omitempty"`
}

// Condition is one condition.
type Condition struct {
	Type string `json:"type"`
	// OK: Ready is true, a pressure is not.
	OK      bool   `json:"ok"`
	Message string `json:"message,omitempty"`
}

// Amounts are what machines take.
type Amounts struct {
	MilliCPU    int64 `json:"milliCPU"`
	MemoryBytes int64 `json:"memoryBytes"`
	DiskBytes   int64 `json:"diskBytes"`
	Slots       int64 `json:"slots"` // of macOS guests
}

// Ledger is the account: Capacity = Active + Warm + Available.
type Ledger struct {
	Capacity  Amounts `json:"capacity"`
	Active    Amounts `json:"active"`
	Warm      Amounts `json:"warm"`
	Available Amounts `json:"available"`
}

// Pool is one pool on this node.
type Pool struct {
	Name      string `json:"name"` // namespace/name
	Template  string `json:"template,omitempty"`
	Desired   int    `json:"desired"`
	Ready     int    `json:"ready"`
	Restoring int    `json:"restoring"`
	Outdated  int    `json:"outdated"`
	Active    int    `json:"active"`
	// Skip is why it is not filled further, empty when it is full or being filled.
	Skip       string    `json:"skip,omitempty"`
	Message    string    `json:"message,omitempty"`
	UnmetSince time.Time `json:"unmetSince,omitzero"`
}

// Template is the snapshot of one template's revision on this node.
type Template struct {
	Name     string `json:"name"` // namespace/name
	Revision string `json:"revision"`
	Phase    string `json:"phase"`
	// Step and Message of a build that failed.
	Step    string `json:"step,omitempty"`
	Message string `json:"message,omitempty"`
}

// Machine is one machine of the ledger, or, of a node that does not run, one that has a folder.
type Machine struct {
	ID    string `json:"id"`
	State string `json:"state"`
	// Pod is namespace/name, PodUID the pod's as far as it is known.
	Pod      string    `json:"pod,omitempty"`
	PodUID   string    `json:"podUID,omitempty"`
	Pool     string    `json:"pool,omitempty"`
	Template string    `json:"template,omitempty"`
	Budget   Amounts   `json:"budget"`
	Since    time.Time `json:"since,omitzero"`
}

// Quarantine is a machine of which nobody knows whose it is.
type Quarantine struct {
	Machine string `json:"machine"`
	Reason  string `json:"reason"`
}

// States of machines of a node that does not run.
const (
	// StateRunning: a process works in its folder.
	StateRunning = "running"
	// StateEnded: none does.
	StateEnded = "ended"
)
