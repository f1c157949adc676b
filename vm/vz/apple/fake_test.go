// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package apple

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestAgainstFake runs the binding here: the same source, its build constraint taken
// off, with testdata/fake/vz for the module that needs a Mac. What it shows is that the
// binding hands over each value where it belongs, guards what it must and translates
// every error. What the real module and the framework make of the calls, it cannot show.
func TestAgainstFake(t *testing.T) {
	const constraint = "//go:build darwin && arm64 && cgo\n"
	binding := source(t)
	if strings.Count(binding, constraint) != 1 {
		t.Fatalf("the binding has not the constraint %q", constraint)
	}
	dir := t.TempDir()
	put(t, dir, "go.mod", "module github.com/vk-firkin/vk-firkin\n\ngo 1.26\n\nrequire github.com/Code-Hex/vz/v3 v3.7.1\n\nreplace github.com/Code-Hex/vz/v3 => ./vz\n")
	put(t, dir, "vz/go.mod", "module github.com/Code-Hex/vz/v3\n\ngo 1.26\n")
	put(t, dir, "vm/vz/apple/binding.go", strings.Replace(binding, constraint, "", 1))
	for from, to := range map[string]string{
		"testdata/fake/vz/*.go": "vz", "testdata/fake/*_test.go": "vm/vz/apple", "../framework/*.go": "vm/vz/framework",
	} {
		names, err := filepath.Glob(from)
		if err != nil || len(names) == 0 {
			t.Fatalf("no %s: %v", from, err)
		}
		for _, name := range names {
			content, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			put(t, dir, filepath.Join(to, filepath.Base(name)), string(content))
		}
	}
	cmd := exec.CommandContext(t.Context(), "go", "test", "-count=1", "./vm/vz/apple")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOWORK=off", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("go test: %v\n%s", err, out)
	}
}

func put(t *testing.T, dir, name, content string) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}
