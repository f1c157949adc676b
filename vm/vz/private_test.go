// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package vz_test

import (
	"testing"

	"github.com/vk-firkin/vk-firkin/test/privacy"
	"github.com/vk-firkin/vk-firkin/vm"
)

// TestFilesArePrivate: what a machine and its shim keep, the socket that commands it among them,
// and the memory that is saved of it, are their owner's alone.
func TestFilesArePrivate(t *testing.T) {
	b := newBench(t)
	ctx := bounded(t)
	saved := b.snapshot(t, b.config, "secret")
	m, err := b.driver.Restore(ctx, "private", saved, b.config)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Resume(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := talk(ctx, m, "memory other"); err != nil {
		t.Fatal(err)
	}
	check := func(when string) {
		t.Helper()
		for _, dir := range []string{saved, b.stateDir + "/machines"} {
			open, files, err := privacy.Open(dir)
			if err != nil || files < 3 || len(open) > 0 {
				t.Errorf("%s: of %d files in %s others can use %q, %v", when, files, dir, open, err)
			}
		}
	}
	check("while it runs")
	if err := m.Stop(ctx, 0); err != nil {
		t.Fatal(err)
	}
	if state, err := m.State(ctx); err != nil || state != vm.StateExited {
		t.Fatalf("state %v, %v", state, err)
	}
	check("after its end")
	if err := m.Delete(ctx); err != nil {
		t.Fatal(err)
	}
}
