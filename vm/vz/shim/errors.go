// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/vz/control"
	"github.com/vk-firkin/vk-firkin/vm/vz/framework"
)

// call names what was asked of the framework when it failed: the same error means
// different things.
type call string

const (
	callNew     call = "make machine"
	callStart   call = "start"
	callRestore call = "restore"
	callSave    call = "save"
	callPause   call = "pause"
	callResume  call = "resume"
)

// posixDomain is where the framework's errors of files come from.
const posixDomain = "NSPOSIXErrorDomain"

// mapped gives an error of the framework one of vm's kinds and tells what to do about
// it. screenLocked is what the host says after the failure. It is the one place where
// this is decided.
func mapped(doing call, err error, screenLocked bool) error {
	if err == nil {
		return nil
	}
	kind, remedy := kindOf(doing, err, screenLocked)
	if remedy != "" {
		return fmt.Errorf("%w: %s: %w; %s", kind, doing, err, remedy)
	}
	return fmt.Errorf("%w: %s: %w", kind, doing, err)
}

func kindOf(doing call, err error, screenLocked bool) (kind error, remedy string) { //nolint:staticcheck // kind is a result, not a failure (ST1008)
	if errors.Is(err, framework.ErrUnsupportedOS) {
		return vm.ErrNotSupported, "it needs macOS 14 or later on Apple silicon"
	}
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return vm.ErrNoSpace, ""
	}
	var e *framework.Error
	if !errors.As(err, &e) {
		return vm.ErrUnavailable, ""
	}
	if e.Domain == posixDomain && (e.Code == framework.Code(syscall.ENOSPC) || e.Code == framework.Code(syscall.EDQUOT)) {
		return vm.ErrNoSpace, ""
	}
	if e.Domain != framework.Domain {
		return vm.ErrUnavailable, ""
	}
	switch e.Code {
	case framework.CodeVirtualMachineLimitExceeded:
		return vm.ErrLimitExceeded, "macOS runs two macOS guests at once; if fewer run here, a machine that ended still counts: wait, or restart the host"
	case framework.CodeInvalidVirtualMachineState, framework.CodeInvalidVirtualMachineStateTransition:
		return vm.ErrInvalidState, ""
	case framework.CodeInvalidVirtualMachineConfiguration, framework.CodeInvalidDiskImage:
		return vm.ErrInvalidConfig, ""
	case framework.CodeOutOfDiskSpace:
		return vm.ErrNoSpace, ""
	case framework.CodeNotSupported:
		return vm.ErrNotSupported, ""
	case framework.CodeHostKey:
		return vm.ErrHostNotReady, "no key of the host can be had without a logged-in graphical session: log in, or restart the login window (vk-firkin doctor)"
	case framework.CodeSave:
		if screenLocked {
			return vm.ErrHostNotReady, lockedRemedy
		}
		return vm.ErrUnavailable, ""
	case framework.CodeRestore:
		// With a locked screen the framework says of every snapshot that it cannot be read
		// (discobox): that one would be quarantined which is whole.
		if screenLocked {
			return vm.ErrHostNotReady, lockedRemedy
		}
		return control.ErrRestoreRefused, ""
	case framework.CodeInternal:
		if screenLocked && (doing == callSave || doing == callRestore) {
			return vm.ErrHostNotReady, lockedRemedy
		}
		// Without a session or with a locked keychain it says no more than this (tart #1067,
		// #1132).
		return vm.ErrUnavailable, "a missing graphical session and a locked login keychain look like this as well (vk-firkin doctor)"
	default: // CodeNetworkError, CodeOperationCancelled, and what is new
		return vm.ErrUnavailable, ""
	}
}

const lockedRemedy = "the Mac's screen is locked: unlock it and turn the lock off (vk-firkin doctor)"

// retryable tells whether the same call may succeed a moment later on a machine made
// anew: failures of the host's network and of the framework's own services do (the
// reference retries starts for them).
func retryable(err error) bool {
	var e *framework.Error
	if !errors.As(err, &e) || e.Domain != framework.Domain {
		return false
	}
	return e.Code == framework.CodeInternal || e.Code == framework.CodeNetworkError || e.Code == framework.CodeOperationCancelled
}
