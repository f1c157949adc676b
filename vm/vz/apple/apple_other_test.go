// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build !(darwin && arm64 && cgo)

package apple

import (
	"errors"
	"strings"
	"testing"

	"github.com/vk-firkin/vk-firkin/vm/vz/framework"
)

// TestUnavailable: a binary without the framework says so at every call, and what to do.
func TestUnavailable(t *testing.T) {
	apple := New(func() (framework.Host, error) {
		t.Error("the host was asked for")
		return framework.Host{}, nil
	})
	_, hostErr := apple.Host()
	_, newErr := apple.New(framework.Configuration{})
	_, idErr := apple.NewIdentifier(framework.Linux)
	_, genericErr := NewMachineIdentifier()
	_, macErr := NewMacMachineIdentifier()
	for call, err := range map[string]error{"Host": hostErr, "New": newErr, "NewIdentifier": idErr, "NewMachineIdentifier": genericErr, "NewMacMachineIdentifier": macErr} {
		if !errors.Is(err, errNotBuilt) || !strings.Contains(err.Error(), "make build") {
			t.Errorf("%s: %v", call, err)
		}
	}
}
