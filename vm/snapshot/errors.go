// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"errors"
	"fmt"
	"strings"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/snapshot/recipe"
)

// Kinds of errors. Those of package vm come through as well: vm.ErrSnapshotInvalid
// for a set that was quarantined, vm.ErrNoSpace, vm.ErrInvalidConfig.
var (
	// ErrNotFound: the store has no such snapshot.
	ErrNotFound = errors.New("snapshot not found")

	// ErrInUse: a machine or this process still needs the snapshot.
	ErrInUse = errors.New("snapshot is in use")

	// ErrLocked: another process may change the store at any time.
	ErrLocked = errors.New("snapshot store is in use by a running vk-firkin node: stop it first, or leave the collection to it")

	// ErrReadOnly: the store was opened without the right to do this.
	ErrReadOnly = errors.New("snapshot store was opened read-only")

	// ErrClosed: the store was closed.
	ErrClosed = errors.New("snapshot store is closed")

	// ErrProof: a machine answered, but without proof that it carries the memory
	// that was saved: it is not a restored machine.
	ErrProof = errors.New("machine did not prove that it was restored")
)

// DiskPressureError says that less space is free than must stay free. It is vm.ErrNoSpace.
type DiskPressureError struct {
	// Free and Floor are bytes; Free < Floor.
	Free, Floor int64
}

// Error tells cause and remedy.
func (e *DiskPressureError) Error() string {
	return fmt.Sprintf("disk pressure: %d MiB free where snapshots are kept, need %d MiB: free some space, or lower the floor", e.Free>>20, e.Floor>>20)
}

// Unwrap gives the kind.
func (e *DiskPressureError) Unwrap() error { return vm.ErrNoSpace }

// IntegrityError says that a file of a set is not what the manifest says. It is
// vm.ErrSnapshotInvalid.
type IntegrityError struct {
	Key, Member string
	Problem     string
}

// Error names the file.
func (e *IntegrityError) Error() string {
	return fmt.Sprintf("snapshot %s: file %q %s", shortKey(e.Key), e.Member, e.Problem)
}

// Unwrap gives the kind.
func (e *IntegrityError) Unwrap() error { return vm.ErrSnapshotInvalid }

// BuildError says that a snapshot could not be built.
type BuildError struct {
	Key   string
	Kind  Kind
	Shape vm.Shape
	// Template is "namespace/name"; empty for a base.
	Template string
	// Step is what was being done: "create machine", "boot guest", "restore base",
	// "prepare", "seal guest", "save machine", "publish" ... In a template's "prepare" Err is,
	// or wraps, what TemplateSpec.Prepare returned.
	Step string
	Err  error
	// Console is the end of the machine's console when the guest did not come up:
	// printable, at most 4 KiB.
	Console string
}

// Error has the last lines of the console in it.
func (e *BuildError) Error() string {
	var b strings.Builder
	if e.Template != "" {
		fmt.Fprintf(&b, "build snapshot of template %s: %s: %v", e.Template, e.Step, e.Err)
	} else {
		fmt.Fprintf(&b, "build %s snapshot of shape %s: %s: %v", e.Kind, e.Shape, e.Step, e.Err)
	}
	var step *recipe.StepError
	if errors.As(e.Err, &step) && step.Output != "" {
		fmt.Fprintf(&b, "; its output ends: %q", end(step.Output))
	}
	if e.Console != "" {
		fmt.Fprintf(&b, "; the guest's console ends: %q", end(e.Console))
	}
	return b.String()
}

// end is as much of the end of a text as goes into an event, whose message has at most
// 1 KiB. Pure.
func end(s string) string {
	const most = 384
	if len(s) > most {
		s = strings.ToValidUTF8(s[len(s)-most:], "")
	}
	return s
}

// Unwrap gives the cause.
func (e *BuildError) Unwrap() error { return e.Err }

// LeftoverError says that a machine could not be deleted after a failure. It still exists,
// costs what it costs, and must be deleted through Machine.Delete and forgotten by
// Store.Forget before its id can be used again.
type LeftoverError struct {
	Machine vm.Machine
	Err     error
}

// Error names the machine.
func (e *LeftoverError) Error() string {
	return fmt.Sprintf("machine %q is left behind: %v", e.Machine.ID(), e.Err)
}

// Unwrap gives the cause.
func (e *LeftoverError) Unwrap() error { return e.Err }

// shortKey is a key as people see it.
func shortKey(key string) string { return key[:min(12, len(key))] }
