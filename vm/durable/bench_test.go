// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package durable_test

import (
	"path/filepath"
	"testing"

	"github.com/vk-firkin/vk-firkin/vm/durable"
)

// BenchmarkReplace is what a record costs that has to survive a crash of the host, and one
// that has to survive its process only.
func BenchmarkReplace(b *testing.B) {
	for name, how := range map[string]durable.Durability{"synced": durable.Synced, "unsynced": durable.Unsynced} {
		b.Run(name, func(b *testing.B) {
			path := filepath.Join(b.TempDir(), "record.json")
			data := make([]byte, 1<<10)
			for b.Loop() {
				if err := durable.Replace(durable.Host, path, data, how); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
