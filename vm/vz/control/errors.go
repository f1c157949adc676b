// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package control

import (
	"errors"
	"net/http"
	"strings"

	"github.com/vk-firkin/vk-firkin/vm"
)

// kinds are the errors that keep their kind on the way, in the order in which they are
// looked for: an error may wrap several.
var kinds = []struct {
	name   string
	err    error
	status int
}{
	{"SnapshotInvalid", vm.ErrSnapshotInvalid, http.StatusUnprocessableEntity},
	{"NoSpace", vm.ErrNoSpace, http.StatusInsufficientStorage},
	{"LimitExceeded", vm.ErrLimitExceeded, http.StatusTooManyRequests},
	{"HostNotReady", vm.ErrHostNotReady, http.StatusFailedDependency},
	{"InvalidConfig", vm.ErrInvalidConfig, http.StatusBadRequest},
	{"InvalidState", vm.ErrInvalidState, http.StatusConflict},
	{"NotSupported", vm.ErrNotSupported, http.StatusNotImplemented},
	{"NotFound", vm.ErrNotFound, http.StatusNotFound},
	{"Unavailable", vm.ErrUnavailable, http.StatusServiceUnavailable},
}

// maxMessageBytes bounds an error's text on its way: what the framework says may come
// from a guest's doing.
const maxMessageBytes = 8 << 10

// encodeError makes an error an answer.
func encodeError(err error) (status int, reply ErrorReply) {
	reply.Message = strings.ToValidUTF8(err.Error(), "?")
	if len(reply.Message) > maxMessageBytes {
		reply.Message = strings.ToValidUTF8(reply.Message[:maxMessageBytes], "")
	}
	for _, k := range kinds {
		if errors.Is(err, k.err) {
			reply.Kind = k.name
			return k.status, reply
		}
	}
	return http.StatusInternalServerError, reply
}

// remoteError is an error that a shim has answered with: it says what the shim said and
// is of the kind that it was there.
type remoteError struct {
	message string
	kind    error
}

func (e *remoteError) Error() string { return e.message }
func (e *remoteError) Unwrap() error { return e.kind }

// decodeError makes an answer an error. Without a kind it is vm.ErrUnavailable: the shim
// could not do it, which says nothing about the machine.
func decodeError(reply ErrorReply) error {
	for _, k := range kinds {
		if reply.Kind == k.name {
			return &remoteError{message: reply.Message, kind: k.err}
		}
	}
	return &remoteError{message: reply.Message, kind: vm.ErrUnavailable}
}
