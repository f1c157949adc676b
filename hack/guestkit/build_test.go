// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build machines

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vk-firkin/vk-firkin/vm/guest/kit"
)

// TestReproducible builds both kits twice, from the packages that make guest has
// downloaded, and compares their digests.
func TestReproducible(t *testing.T) {
	root := os.Getenv("FIRKIN_KIT_DIR")
	if root == "" {
		t.Fatal("FIRKIN_KIT_DIR is not set: run make guest, then set it to bin/guest")
	}
	for _, arch := range []string{"amd64", "arm64"} {
		t.Run(arch, func(t *testing.T) {
			cache, err := filepath.Abs(filepath.Join(root, ".cache"))
			if err != nil {
				t.Fatal(err)
			}
			downloads := append(debs(filepath.Join(cache, arch)), packages(filepath.Join(cache, arch), seccompPackageName)...)
			var digests [2]string
			for i := range digests {
				out := filepath.Join(t.TempDir(), "kit")
				if err := build(t.Context(), options{arch: arch, out: out, cache: cache}); err != nil {
					t.Fatal(err)
				}
				if err := kit.Verify(out); err != nil {
					t.Error(err)
				}
				m, err := kit.ReadManifest(out)
				if err != nil {
					t.Fatal(err)
				}
				digests[i] = m.Digest
				notices, err := os.ReadFile(filepath.Join(out, kit.NoticesName))
				if err != nil {
					t.Fatal(err)
				}
				for _, text := range []string{"linux-image-" + m.KernelRelease, "GNU GENERAL PUBLIC LICENSE", "GNU LESSER GENERAL PUBLIC LICENSE", "==== The GNU C library", "libseccomp-dev_"} {
					if !strings.Contains(string(notices), text) {
						t.Errorf("the notices have no %q", text)
					}
				}
				// The second agent is built anew, elsewhere in the file system.
				cache = filepath.Join(t.TempDir(), "cache")
				if err := os.MkdirAll(filepath.Join(cache, arch), 0o755); err != nil {
					t.Fatal(err)
				}
				for _, pkg := range downloads {
					if err := os.Symlink(pkg, filepath.Join(cache, arch, filepath.Base(pkg))); err != nil {
						t.Fatal(err)
					}
				}
			}
			if digests[0] != digests[1] {
				t.Errorf("the same inputs give %s and %s", digests[0], digests[1])
			}
		})
	}
}
