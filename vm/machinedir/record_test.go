// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package machinedir

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/durable"
)

// TestReadVersioned: a record that another vk-firkin wrote, or that the disk does not give,
// may be of a machine that runs. It is not the same as none.
func TestReadVersioned(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "directory"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("loop", filepath.Join(dir, "loop")); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{
		"good": `{"version":2,"ID":"a"}`, "newer": `{"version":3,"ID":{}}`, "older": `{"version":1}`,
		"none": `{"ID":"a"}`, "half": `{"version":2,"I`, "empty": ``, "foreign": `{"version":2,"ID":7}`,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string][]error{
		"good": nil, "newer": {vm.ErrUnavailable, durable.ErrNewer}, "older": {vm.ErrUnavailable, durable.ErrOlder},
		"none": {durable.ErrCorrupt}, "half": {durable.ErrCorrupt}, "empty": {durable.ErrCorrupt}, "foreign": {durable.ErrCorrupt},
		"directory": {durable.ErrCorrupt}, "loop": {durable.ErrCorrupt}, "missing": {fs.ErrNotExist}, "good/x": {vm.ErrUnavailable, syscall.ENOTDIR},
	} {
		var r record
		err := ReadVersioned(durable.Host, dir, name, 2, &r)
		if want == nil && (err != nil || r.ID != "a") {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
		for _, kind := range append(want, fs.ErrNotExist, durable.ErrCorrupt, vm.ErrUnavailable) {
			is := false
			for _, w := range want {
				is = is || w == kind //nolint:errorlint // kinds are compared, not errors
			}
			if errors.Is(err, kind) != is {
				t.Errorf("%s: %v is %v: %v", name, err, kind, !is)
			}
		}
	}
}

func FuzzReadVersioned(f *testing.F) {
	f.Add([]byte(`{"version":2,"ID":"a"}`))
	f.Add([]byte(`{"version":9}`))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := os.WriteFile(filepath.Join(dir, "r"), data, 0o600); err != nil {
			t.Fatal(err)
		}
		var r record
		if err := ReadVersioned(durable.Host, dir, "r", 2, &r); err != nil && !errors.Is(err, durable.ErrCorrupt) && !errors.Is(err, vm.ErrUnavailable) {
			t.Error(err)
		}
	})
}
