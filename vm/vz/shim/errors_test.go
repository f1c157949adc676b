// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/vz/control"
	"github.com/vk-firkin/vk-firkin/vm/vz/framework"
)

var (
	allCalls = []call{callNew, callStart, callRestore, callSave, callPause, callResume}
	allKinds = []error{
		vm.ErrNotFound, vm.ErrAlreadyExists, vm.ErrNotSupported, vm.ErrInvalidConfig, vm.ErrInvalidState,
		vm.ErrUnavailable, vm.ErrSnapshotInvalid, vm.ErrLimitExceeded, vm.ErrNoSpace,
	}
)

// Every code has one kind, whatever the call; a restore that is refused is the snapshot's
// fault only while the screen is not locked.
func TestMapped(t *testing.T) {
	for code, want := range map[framework.Code]struct {
		kind   error
		remedy string
	}{
		framework.CodeInternal:                             {vm.ErrUnavailable, "doctor"},
		framework.CodeInvalidVirtualMachineConfiguration:   {vm.ErrInvalidConfig, ""},
		framework.CodeInvalidVirtualMachineState:           {vm.ErrInvalidState, ""},
		framework.CodeInvalidVirtualMachineStateTransition: {vm.ErrInvalidState, ""},
		framework.CodeInvalidDiskImage:                     {vm.ErrInvalidConfig, ""},
		framework.CodeVirtualMachineLimitExceeded:          {vm.ErrLimitExceeded, "restart the host"},
		framework.CodeNetworkError:                         {vm.ErrUnavailable, ""},
		framework.CodeOutOfDiskSpace:                       {vm.ErrNoSpace, ""},
		framework.CodeOperationCancelled:                   {vm.ErrUnavailable, ""},
		framework.CodeNotSupported:                         {vm.ErrNotSupported, ""},
		framework.CodeSave:                                 {vm.ErrUnavailable, ""},
		framework.CodeRestore:                              {control.ErrRestoreRefused, ""},
		framework.CodeHostKey:                              {vm.ErrUnavailable, "log in"},
		0:                                                  {vm.ErrUnavailable, ""},
		13:                                                 {vm.ErrUnavailable, ""},
		-10:                                                {vm.ErrUnavailable, ""},
	} {
		for _, doing := range allCalls {
			for _, locked := range []bool{false, true} {
				want := want
				if locked && (code == framework.CodeSave || code == framework.CodeRestore) {
					want.kind, want.remedy = vm.ErrUnavailable, "unlock"
				}
				cause := framework.NewError(code, "The cause.")
				wantMapped(t, mapped(doing, cause, locked), want.kind, cause)
				err := mapped(doing, cause, locked)
				if !strings.Contains(err.Error(), string(doing)) || !strings.Contains(err.Error(), want.remedy) {
					t.Errorf("%v: want it to name %q and the remedy %q", err, doing, want.remedy)
				}
				if want.remedy == "" && strings.Contains(err.Error(), ";") {
					t.Errorf("%v: has a remedy", err)
				}
			}
		}
	}
}

// wantMapped checks that err is of one kind, and still its cause.
func wantMapped(t *testing.T, err, kind, cause error) {
	t.Helper()
	if !errors.Is(err, kind) || !errors.Is(err, cause) {
		t.Errorf("%v: want kind %v and cause %v", err, kind, cause)
	}
	for _, k := range allKinds {
		if errors.Is(err, k) && !errors.Is(kind, k) {
			t.Errorf("%v: is %v as well", err, k)
		}
	}
}

// What is not the framework's own has a kind too, and never that of a bad snapshot.
func TestMappedForeign(t *testing.T) {
	posix := func(e syscall.Errno) error {
		return &framework.Error{Domain: "NSPOSIXErrorDomain", Code: framework.Code(e), Description: "posix"}
	}
	for _, doing := range allCalls {
		for cause, kind := range map[error]error{
			framework.ErrUnsupportedOS: vm.ErrNotSupported,
			syscall.ENOSPC:             vm.ErrNoSpace,
			syscall.EDQUOT:             vm.ErrNoSpace,
			syscall.EMFILE:             vm.ErrUnavailable,
			posix(syscall.ENOSPC):      vm.ErrNoSpace,
			posix(syscall.EDQUOT):      vm.ErrNoSpace,
			posix(syscall.ENOENT):      vm.ErrUnavailable,
			posix(12):                  vm.ErrUnavailable, // ENOMEM, and CodeRestore's number
			&framework.Error{Domain: "NSCocoaErrorDomain", Code: 12}:         vm.ErrUnavailable,
			&framework.Error{Domain: "NSCocoaErrorDomain", Code: 260}:        vm.ErrUnavailable,
			fmt.Errorf("wrapped: %w", framework.NewError(8, "no disk left")): vm.ErrNoSpace,
			errors.New("something else"):                                     vm.ErrUnavailable,
		} {
			wantMapped(t, mapped(doing, cause, false), kind, cause)
			wantMapped(t, mapped(doing, cause, true), kind, cause)
		}
	}
	if err := mapped(callStart, nil, true); err != nil {
		t.Errorf("no error became %v", err)
	}
}

func TestRetryable(t *testing.T) {
	for code := framework.Code(-10); code < 20; code++ {
		want := code == framework.CodeInternal || code == framework.CodeNetworkError || code == framework.CodeOperationCancelled
		for _, doing := range allCalls {
			if got := retryable(mapped(doing, framework.NewError(code, "x"), false)); got != want {
				t.Errorf("%s, code %d: %v, want %v", doing, code, got, want)
			}
		}
		if retryable(&framework.Error{Domain: "NSPOSIXErrorDomain", Code: code}) {
			t.Errorf("code %d of another domain is tried again", code)
		}
	}
	if retryable(nil) || retryable(errors.New("x")) || retryable(framework.ErrUnsupportedOS) {
		t.Error("what is not the framework's is tried again")
	}
}

// A host that cannot tell whether its screen is locked does not cost the snapshot.
func TestMappedHostUnknown(t *testing.T) {
	f := newFakeFramework()
	m := testMachine(t, f, testRecord(t))
	refused := framework.NewError(framework.CodeRestore, "permission denied")
	if err := m.mapped(callRestore, refused); !errors.Is(err, vm.ErrSnapshotInvalid) {
		t.Errorf("unlocked: %v, want ErrSnapshotInvalid", err)
	}
	f.host.ScreenLocked = true
	wantMapped(t, m.mapped(callRestore, refused), vm.ErrUnavailable, refused)
	f.host.ScreenLocked, f.hostErr = false, errFake
	wantMapped(t, m.mapped(callRestore, refused), vm.ErrUnavailable, errFake)
	wantMapped(t, m.mapped(callStart, framework.NewError(framework.CodeOutOfDiskSpace, "full")), vm.ErrNoSpace, vm.ErrNoSpace)
}
