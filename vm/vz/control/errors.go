// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package control

import (
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/vk-firkin/vk-firkin/vm"
)

// ErrRestoreRefused is the kind of vm.ErrSnapshotInvalid that is the framework's word
// alone: it gives the same answer when the snapshot is whole and another machine with its
// identifier lives. The node, which knows the other machines, decides.
var ErrRestoreRefused = fmt.Errorf("%w: the framework refuses it", vm.ErrSnapshotInvalid)

// kinds are the errors that keep their kind on the way, in the order in which they are
// looked for: an error may wrap several.
var kinds = []struct {
	name   string
	err    error
	status int
}{
	{"RestoreRefused", ErrRestoreRefused, http.StatusUnprocessableEntity},
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
	reply.Message = bounded(err.Error())
	for _, k := range kinds {
		if errors.Is(err, k.err) {
			reply.Kind = k.name
			return k.status, reply
		}
	}
	return http.StatusInternalServerError, reply
}

// bounded is a text that can be sent and shown.
func bounded(text string) string {
	text = strings.ToValidUTF8(text, "?")
	return strings.ToValidUTF8(text[:min(len(text), maxMessageBytes)], "") // a rune may have been cut
}

// remoteError is an error that a shim has answered with: it says what the shim said and
// is of the kind that it was there.
type remoteError struct {
	message string
	kind    error
}

func (e *remoteError) Error() string { return e.message }
func (e *remoteError) Unwrap() error { return e.kind }

// Answered tells whether an error of a Client is what the shim said, and not that it could
// not be asked.
func Answered(err error) bool {
	var remote *remoteError
	return errors.As(err, &remote)
}

// decodeError makes an answer an error. Without a kind it is vm.ErrUnavailable: the shim
// could not do it, which says nothing about the machine.
func decodeError(reply ErrorReply) error {
	e := &remoteError{message: bounded(reply.Message), kind: vm.ErrUnavailable}
	if e.message == "" {
		e.message = "its shim reports an error and does not say which"
	}
	for _, k := range kinds {
		if reply.Kind == k.name {
			e.kind = k.err
		}
	}
	return e
}
