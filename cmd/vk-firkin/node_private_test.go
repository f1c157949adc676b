// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A node's folders are its owner's alone, also those that somebody made before, and a
// folder of somebody else's is neither used nor changed.
func TestMakePrivate(t *testing.T) {
	for name, c := range map[string]struct {
		made  bool
		files []string
		want  string
	}{
		"new":               {},
		"empty":             {made: true},
		"a file system":     {made: true, files: []string{"lost+found"}},
		"an earlier node's": {made: true, files: []string{".lock", "machines"}},
		"a cache":           {made: true, files: []string{"images"}},
		"somebody else's":   {made: true, files: []string{"passwd"}, want: "chmod 700"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "state")
			if c.made {
				if err := os.Mkdir(dir, 0o755); err != nil { //nolint:gosec // the case
					t.Fatal(err)
				}
				if err := os.Chmod(dir, 0o755); err != nil { //nolint:gosec // whatever the umask
					t.Fatal(err)
				}
			}
			for _, f := range c.files {
				if err := os.Mkdir(filepath.Join(dir, f), 0o700); err != nil {
					t.Fatal(err)
				}
			}
			err := makePrivate(dir)
			info, serr := os.Stat(dir)
			if serr != nil {
				t.Fatal(serr)
			}
			if c.want != "" {
				if err == nil || !strings.Contains(err.Error(), c.want) || info.Mode().Perm() != 0o755 {
					t.Errorf("%v, mode %v", err, info.Mode())
				}
				return
			}
			if err != nil || info.Mode().Perm() != 0o700 {
				t.Errorf("%v, mode %v", err, info.Mode())
			}
		})
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := makePrivate(file); err == nil {
		t.Error("a file was taken for a folder")
	}
}
