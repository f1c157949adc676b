// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package durabletest

import (
	"fmt"
	"testing"

	"github.com/vk-firkin/vk-firkin/vm/durable"
)

// Every runs a test with a fault of each mode at operation 1, 2, 3 and so on, until it
// ends without having made that many. Each run has a directory of its own below which it
// keeps its files; at least least operations have to have been made.
func Every(t *testing.T, modes []Mode, least int, run func(t *testing.T, disk *FS, dir string)) {
	t.Helper()
	for _, mode := range modes {
		t.Run(string(mode), func(t *testing.T) {
			for n := 1; ; n++ {
				reached := true
				t.Run(fmt.Sprint(n), func(t *testing.T) {
					dir := t.TempDir()
					disk := New(t, durable.Host, dir, Fault{At: n, Mode: mode})
					run(t, disk, dir)
					reached = disk.Reached()
					if t.Failed() {
						t.Logf("with %q after %q", disk.At(), disk.Ops())
					}
				})
				if !reached {
					if n <= least {
						t.Errorf("only %d operations were made to fail, want %d", n-1, least)
					}
					return
				}
			}
		})
	}
}
