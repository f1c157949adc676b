// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vk-firkin/vk-firkin/vm/durable"
	"github.com/vk-firkin/vk-firkin/vm/durable/durabletest"
	"github.com/vk-firkin/vk-firkin/vm/snapshot/snapshottest"
)

// errInjected is what a driver fails with.
var errInjected = errors.New("injected")

// anonymous replaces what is random in an operation.
func anonymous(op string) string {
	parts := strings.FieldsFunc(op, func(r rune) bool { return r == ' ' || r == '/' })
	for _, p := range parts {
		switch {
		case strings.HasPrefix(p, buildingPrefix):
			op = strings.ReplaceAll(op, p, buildingPrefix+"R")
		case strings.HasPrefix(p, removingPrefix):
			op = strings.ReplaceAll(op, p, removingPrefix+"R")
		case len(p) >= keyLength:
			op = strings.ReplaceAll(op, p, "KEY")
		}
	}
	return op
}

// TestPublishOrder: what is renamed into place was synced before, manifest last.
func TestPublishOrder(t *testing.T) {
	dir := t.TempDir()
	disk := durabletest.New(t, durable.Host, dir, durabletest.Fault{})
	opts := testOptions(snapshottest.New())
	opts.FS = disk
	s := openTest(t, dir, opts)
	disk.Arm(durabletest.Fault{})
	ensure(t, s)
	want := []string{
		"mkdir .building-R",
		"mkdir .building-R/machine",
		"create .building-R/seal.key",
		"write .building-R/seal.key",
		"sync .building-R/seal.key",
		"sync .building-R/machine/device",
		"sync .building-R/machine/memory",
		"sync .building-R/machine/scratch",
		"sync .building-R/seal.key",
		"syncdir .building-R/machine",
		"create .building-R/manifest.json",
		"write .building-R/manifest.json",
		"sync .building-R/manifest.json",
		"syncdir .building-R",
		"rename .building-R KEY",
		"syncdir .",
	}
	var got []string
	for _, op := range disk.Ops() {
		got = append(got, anonymous(op))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("operations of a build (-want +got):\n%s", diff)
	}
}

// prepareSet builds what a scenario begins with.
func prepareSet(t *testing.T, s *Store) {
	t.Helper()
	ref, _ := ensure(t, s)
	ref.Release()
}

func testKey(t *testing.T, s *Store) string {
	t.Helper()
	infos, err := s.List(t.Context())
	if err != nil || len(infos) != 1 {
		t.Fatalf("%v, %v", infos, err)
	}
	return infos[0].Key
}

// checkStore verifies what is published, and that a machine can be had.
func checkStore(t *testing.T, s *Store) {
	t.Helper()
	infos, err := s.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range infos {
		if i.Status == StatusQuarantined {
			continue
		}
		if _, err := s.Verify(t.Context(), i.Name); err != nil {
			t.Errorf("published and damaged: %v", err)
		}
	}
	ref, _, err := s.Ensure(t.Context(), testSpec())
	if err != nil {
		t.Fatalf("ensure afterwards: %v", err)
	}
	defer ref.Release()
	r, err := s.Restore(t.Context(), ref, "m", testConfig(), RestoreOptions{})
	if err != nil {
		t.Fatalf("restore afterwards: %v", err)
	}
	_ = r.Guest.Close()
	if err := errors.Join(r.Machine.Delete(t.Context()), s.Forget("m")); err != nil {
		t.Fatal(err)
	}
}
