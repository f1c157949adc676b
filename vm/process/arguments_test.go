// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package process

import (
	"slices"
	"testing"
)

func TestParseArguments(t *testing.T) {
	const raw = "\x02\x00\x00\x00/bin/vk\x00\x00\x00\x00vk\x00--dir\x00HOME=/\x00"
	executable, args, err := parseArguments([]byte(raw))
	if err != nil || executable != "/bin/vk" || !slices.Equal(args, []string{"vk", "--dir"}) {
		t.Errorf("%q, %q, %v", executable, args, err)
	}
	for _, bad := range []string{"", "\x01\x00\x00", "\x01\x00\x00\x00", "\x01\x00\x00\x00\x00", "\x01\x00\x00\x00/x\x00vk", "\xff\xff\xff\xff/x\x00a\x00b\x00"} {
		if _, _, err := parseArguments([]byte(bad)); err == nil {
			t.Errorf("%q is no error", bad)
		}
	}
}

// Who asks for any program gets any: a collection of garbage does before it deletes.
func TestSpeaksOf(t *testing.T) {
	dirs, args := []string{"/link/m", "/real/m"}, []string{"vk", "machine-shim", "/real/m"}
	for program, want := range map[string]bool{"": true, "/bin/vk": true, "/bin/other": false} {
		if got := speaksOf("/bin/vk", args, dirs, program); got != want {
			t.Errorf("program %q: %v, want %v", program, got, want)
		}
	}
	if speaksOf("/bin/vk", []string{"vk", "/real/m2"}, dirs, "") {
		t.Error("another directory is taken for it")
	}
}
