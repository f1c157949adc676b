// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package vm

import (
	"errors"
	"fmt"
)

// Kinds of errors. Drivers wrap them last, callers tell them apart with errors.Is.
var (
	// ErrNotFound: no machine has this id, or it was deleted.
	ErrNotFound = errors.New("machine not found")

	// ErrAlreadyExists: the id is taken, by a live or an exited machine.
	ErrAlreadyExists = errors.New("machine already exists")

	// ErrNotSupported: this driver on this host cannot do it, now or later.
	ErrNotSupported = errors.New("not supported by this driver")

	// ErrInvalidConfig: the request contradicts itself or the driver's Features.
	ErrInvalidConfig = errors.New("invalid machine configuration")

	// ErrInvalidState: the machine is in a state that forbids the call, for
	// example a save of a running machine.
	ErrInvalidState = errors.New("machine is in the wrong state")

	// ErrUnavailable: the machine, its hypervisor or its guest did not answer.
	// "Could not ask" is not "gone": the call may be repeated.
	ErrUnavailable = errors.New("machine unavailable")

	// ErrSnapshotInvalid: the snapshot's files are damaged, incomplete, or were
	// made for another host, hypervisor or configuration. Repeating will not help:
	// the snapshot is to be quarantined and built again.
	ErrSnapshotInvalid = errors.New("snapshot cannot be restored")

	// ErrLimitExceeded: the host runs as many machines of this kind as it may; two macOS
	// guests is Apple's limit. It passes when one of them ends, sometimes seconds later.
	ErrLimitExceeded = errors.New("the host's limit of machines is reached")

	// ErrHostNotReady is an ErrUnavailable whose cause is known: the host as it stands cannot
	// do it, until somebody unlocks its screen or logs in, or (where clones of one snapshot
	// are refused) until another machine of that snapshot has ended. Nothing can be held
	// against the snapshot or the machine, however often it is repeated; a boot may work.
	ErrHostNotReady = fmt.Errorf("%w: the host is not ready", ErrUnavailable)

	// ErrUnreadable is an ErrUnavailable that stays: the machine's own record is damaged, or
	// another vk-firkin wrote it. See Unreadable.
	ErrUnreadable = fmt.Errorf("%w: its own record cannot be read", ErrUnavailable)

	// ErrNoSpace: the host's disk or memory is exhausted.
	ErrNoSpace = errors.New("no space left on host")
)
