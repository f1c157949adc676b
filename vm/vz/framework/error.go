// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package framework

import (
	"errors"
	"fmt"
)

// Code is a number of VZErrorDomain. The names and numbers are Apple's (VZError.h).
type Code int

// Codes of VZErrorDomain.
const (
	CodeInternal                             Code = 1
	CodeInvalidVirtualMachineConfiguration   Code = 2
	CodeInvalidVirtualMachineState           Code = 3
	CodeInvalidVirtualMachineStateTransition Code = 4
	CodeInvalidDiskImage                     Code = 5
	CodeVirtualMachineLimitExceeded          Code = 6
	CodeNetworkError                         Code = 7
	CodeOutOfDiskSpace                       Code = 8
	CodeOperationCancelled                   Code = 9
	CodeNotSupported                         Code = 10
	CodeSave                                 Code = 11
	CodeRestore                              Code = 12
	// CodeHostKey is undocumented: no login session with a key for the file ("-9 ...
	// HostKey"), as on a Mac without a graphical session.
	CodeHostKey Code = -9
)

// Error is an NSError of the framework.
type Error struct {
	// Domain is "VZErrorDomain" for the codes above; NSPOSIXErrorDomain and
	// NSCocoaErrorDomain occur too, with codes of their own.
	Domain string
	Code   Code
	// Description is the localized description, with what is known of the cause.
	Description string
}

// Domain is the framework's error domain.
const Domain = "VZErrorDomain"

// Error is part of error.
func (e *Error) Error() string {
	return fmt.Sprintf("%s (%s code %d)", e.Description, e.Domain, int(e.Code))
}

// NewError makes an error of the framework's own domain.
func NewError(code Code, format string, args ...any) *Error {
	return &Error{Domain: Domain, Code: code, Description: fmt.Sprintf(format, args...)}
}

var (
	// ErrUnsupportedOS means that this version of macOS does not have the call.
	ErrUnsupportedOS = errors.New("not supported by this version of macOS")
	// ErrNoListener means that nothing listens on the guest's port, yet or any more.
	ErrNoListener = errors.New("nothing listens on the guest's port")
)
