// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Package process holds on to the processes that machines live in: a number alone may mean
// another process by the time that a signal is sent.
//
// It imports only the standard library and golang.org/x/sys, so that every driver may
// use it. It needs Linux or macOS.
package process

import "errors"

// ErrGone means that the process has ended, or its number belongs to another one.
var ErrGone = errors.New("process has ended")

// Identity tells a process from every other one that ever had its number.
type Identity struct {
	PID int `json:"pid"`
	// StartTicks is the start time: in clock ticks since the host booted on Linux, in
	// microseconds since 1970 on macOS.
	StartTicks uint64 `json:"startTicks"`
	// Boot is different each time that the host boots.
	Boot string `json:"boot"`
	// Executable is the program's resolved path.
	Executable string `json:"executable"`
}
