// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Package control is what a node says to the shim of a machine: a handful of requests in
// HTTP and JSON over a unix socket in the machine's directory, which only its owner may
// enter.
//
// The node may be of a later version than the shim, which lives as long as its machine.
// Paths begin with the version of the protocol; a shim is asked for the versions that it
// speaks before anything else.
//
//	GET  /versions            Versions
//	POST /v1/start            make the machine as its record says; State. The machine ends with a call that ends before
//	GET  /v1/state            State
//	POST /v1/pause, /v1/resume
//	POST /v1/save             SaveRequest, SaveReply
//	POST /v1/stop             StopRequest; returns when the machine has ended
//	GET  /v1/dial?port=N      becomes a stream to the guest's port (101 Switching Protocols)
//
// That a machine has ended is told by the end of its shim's process, after it has written
// down how.
//
// Errors are answers of 4xx and 5xx with an ErrorReply, whose kind is one of vm's.
package control

import (
	"math"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
)

// Version is the version of the protocol that this package speaks.
const Version = 1

// Socket is the socket's name in a machine's directory.
const Socket = "control.sock"

// Protocol is what a dialled connection is upgraded to.
const Protocol = "firkin-stream"

// maxBodyBytes bounds what either side reads of the other: names and numbers.
const maxBodyBytes = 1 << 20

// maxHeadBytes bounds the head of an answer.
const maxHeadBytes = 16 << 10

// Versions says what a shim is.
type Versions struct {
	// Protocols are the versions of the protocol that the shim speaks.
	Protocols []int `json:"protocols"`
	// Build is the version of vk-firkin, for people.
	Build string `json:"build"`
	PID   int    `json:"pid"`
}

// State is the answer to start and state.
type State struct {
	State vm.State `json:"state"`
}

// SaveRequest asks for the machine to be saved into an empty directory.
type SaveRequest struct {
	Dir string `json:"dir"`
}

// SaveReply names the files that were written.
type SaveReply struct {
	Files []string `json:"files"`
}

// StopRequest asks for the machine's end.
type StopRequest struct {
	// GraceMillis is how long the guest may take. 0: by force.
	GraceMillis int64 `json:"graceMillis"`
}

// stopRequest rounds up: a grace is not to become a stop by force.
func stopRequest(grace time.Duration) StopRequest {
	r := StopRequest{grace.Milliseconds()}
	if grace%time.Millisecond > 0 {
		r.GraceMillis++
	}
	return r
}

// Grace is the grace as a duration.
func (r StopRequest) Grace() time.Duration {
	const most = int64(math.MaxInt64 / time.Millisecond)
	return time.Duration(min(max(r.GraceMillis, 0), most)) * time.Millisecond
}

// ErrorReply is an error on its way.
type ErrorReply struct {
	// Kind is the name of one of vm's errors, empty for others.
	Kind    string `json:"kind,omitempty"`
	Message string `json:"message"`
}
