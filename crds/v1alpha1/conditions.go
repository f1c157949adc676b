// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package v1alpha1

// Condition types of pools and templates. Stable.
const (
	// ConditionReady of a pool: every replica can be checked out. Of a template: every
	// node that is to have the snapshot has it.
	ConditionReady = "Ready"
	// ConditionProgressing: machines are being restored, replaced or moved, or snapshots built.
	ConditionProgressing = "Progressing"
	// ConditionDegraded: somebody has to do something; the message says what.
	ConditionDegraded = "Degraded"
)

// Reasons of conditions. Stable.
const (
	// ReasonReady: all that was asked for is there.
	ReasonReady = "AllReady"
	// ReasonScaledToZero: a pool of no replicas.
	ReasonScaledToZero = "ScaledToZero"
	// ReasonFilling: machines are being restored.
	ReasonFilling = "Filling"
	// ReasonRolling: machines of an outdated template are being replaced.
	ReasonRolling = "RollingOut"
	// ReasonDraining: more machines stand ready than are wanted.
	ReasonDraining = "Draining"
	// ReasonBuilding: nodes are making the template's snapshot.
	ReasonBuilding = "BuildingSnapshot"
	// ReasonComplete: there is nothing to do.
	ReasonComplete = "Complete"
	// ReasonAsExpected: nothing is wrong.
	ReasonAsExpected = "AsExpected"
	// ReasonUnused: no pool of the template has a target, so no node makes its snapshot ahead.
	ReasonUnused = "Unused"

	// ReasonTemplateNotFound: the pool's template does not exist.
	ReasonTemplateNotFound = "TemplateNotFound"
	// ReasonTemplateTooLarge: the template does not fit into a NodeLedger.
	ReasonTemplateTooLarge = "TemplateTooLarge"
	// ReasonTemplateInvalid: the template could not be used as it is.
	ReasonTemplateInvalid = "TemplateInvalid"
	// ReasonTemplateBuildFailed: a node could not make the snapshot.
	ReasonTemplateBuildFailed = "TemplateBuildFailed"
	// ReasonNoEligibleNodes: no node passes the selector and the tolerations, and is ready.
	ReasonNoEligibleNodes = "NoEligibleNodes"
	// ReasonInsufficientCapacity: the replicas do not fit.
	ReasonInsufficientCapacity = "InsufficientCapacity"
	// ReasonNodeUnreachable: a node that has a part of the pool does not answer.
	ReasonNodeUnreachable = "NodeUnreachable"
	// ReasonNodeStatusInvalid: a node reports what cannot be.
	ReasonNodeStatusInvalid = "NodeStatusInvalid"
	// ReasonNodeSkipped: a node does not restore for a reason of its own.
	ReasonNodeSkipped = "NodeSkipped"
	// ReasonMachinesQuarantined: a node has machines of which it is not clear whose they are.
	ReasonMachinesQuarantined = "MachinesQuarantined"
	// ReasonNameTooLong: namespace and name do not fit into a label together.
	ReasonNameTooLong = "NameTooLong"
	// ReasonRuntimeClassConflict: the RuntimeClass of the template's name is another's.
	ReasonRuntimeClassConflict = "RuntimeClassConflict"
)
