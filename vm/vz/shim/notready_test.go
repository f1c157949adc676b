// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"errors"
	"testing"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/vz/framework"
)

// With a locked screen, or nobody logged in, no machine can be saved or restored: that is
// not to be held against the snapshot.
func TestHostNotReady(t *testing.T) {
	for name, c := range map[string]struct {
		doing  call
		code   framework.Code
		locked bool
		want   bool
	}{
		"restore, locked":         {callRestore, framework.CodeRestore, true, true},
		"restore, unlocked":       {callRestore, framework.CodeRestore, false, false},
		"save, locked":            {callSave, framework.CodeSave, true, true},
		"save, unlocked":          {callSave, framework.CodeSave, false, false},
		"no key of the host":      {callRestore, framework.CodeHostKey, false, true},
		"internal, locked":        {callRestore, framework.CodeInternal, true, true},
		"internal, unlocked":      {callRestore, framework.CodeInternal, false, false},
		"internal start, locked":  {callStart, framework.CodeInternal, true, false},
		"full disk, locked":       {callSave, framework.CodeOutOfDiskSpace, true, false},
		"wrong state, locked":     {callRestore, framework.CodeInvalidVirtualMachineState, true, false},
		"another code, locked":    {callRestore, framework.CodeOperationCancelled, true, false},
		"limit of guests, locked": {callRestore, framework.CodeVirtualMachineLimitExceeded, true, false},
		"configuration, unlocked": {callNew, framework.CodeInvalidVirtualMachineConfiguration, false, false},
	} {
		err := mapped(c.doing, framework.NewError(c.code, "what it says"), c.locked)
		if got := errors.Is(err, vm.ErrHostNotReady); got != c.want {
			t.Errorf("%s: host not ready %v, want %v: %v", name, got, c.want, err)
		}
		if c.want && errors.Is(err, vm.ErrSnapshotInvalid) {
			t.Errorf("%s: the snapshot is blamed: %v", name, err)
		}
	}
}
