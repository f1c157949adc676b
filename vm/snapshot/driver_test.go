// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"strings"
	"testing"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/snapshot/snapshottest"
)

func testSpec() Spec {
	return Spec{
		Kind:  KindBase,
		Shape: vm.Shape{VCPUs: 1, MemoryBytes: 256 << 20},
		Kit:   vm.Kit{Arch: "amd64", Digest: "sha256:" + strings.Repeat("a", 64), Kernel: "/k", Initramfs: "/i", Scratch: "/s"},
	}
}

func testConfig() vm.Config { return testSpec().config() }

// testOptions have no floor, since the disk of the test is not the subject.
func testOptions(d *snapshottest.Driver) Options {
	return Options{Driver: d, MinFreeBytes: -1, Timeouts: Timeouts{Settle: time.Millisecond, Agent: 5 * time.Second, Boot: 5 * time.Second}}
}

func openTest(t *testing.T, dir string, opts Options) *Store {
	t.Helper()
	s, err := Open(t.Context(), dir, opts)
	if err != nil {
		t.Fatalf("open store: %v", err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Errorf("close store: %v", err)
		}
	})
	return s
}

func ensure(t *testing.T, s *Store) (*Ref, bool) {
	t.Helper()
	ref, built, err := s.Ensure(t.Context(), testSpec())
	if err != nil {
		t.Fatalf("ensure snapshot: %v", err)
	}
	t.Cleanup(ref.Release)
	return ref, built
}

func restore(t *testing.T, s *Store, ref *Ref, id string) *Running {
	t.Helper()
	r, err := s.Restore(t.Context(), ref, id, testConfig(), RestoreOptions{})
	if err != nil {
		t.Fatalf("restore %q: %v", id, err)
	}
	t.Cleanup(func() { _ = r.Guest.Close() })
	return r
}
