// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package privacy

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestOpen(t *testing.T) {
	root := t.TempDir()
	if err := errors.Join(os.Chmod(root, 0o700), os.Mkdir(filepath.Join(root, "d"), 0o700),
		os.WriteFile(filepath.Join(root, "d/closed"), nil, 0o600), os.WriteFile(filepath.Join(root, "d/open"), nil, 0o600),
		os.Chmod(filepath.Join(root, "d/open"), 0o604), os.Symlink("open", filepath.Join(root, "d/link"))); err != nil {
		t.Fatal(err)
	}
	open, files, err := Open(root)
	if err != nil || files != 4 || !slices.Equal(open, []string{"-rw----r-- d/open"}) {
		t.Errorf("open are %q of %d, %v", open, files, err)
	}
	if _, _, err := Open(filepath.Join(root, "none")); err == nil {
		t.Error("a folder that is not there is private")
	}
}
