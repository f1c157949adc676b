// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
)

func file(path, data string) *agentv1.File {
	return &agentv1.File{Path: path, Data: []byte(data), Mode: 0o640}
}

func TestWriteFiles(t *testing.T) {
	dir := t.TempDir()
	write := func(want bool, files ...*agentv1.File) {
		t.Helper()
		if changed, err := writeFiles(dir, -1, files); err != nil || changed != want {
			t.Fatalf("changed %v, error %v; want changed %v", changed, err, want)
		}
	}
	read := func(name, want string) {
		t.Helper()
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != want {
			t.Errorf("%s is %q, %v; want %q", name, got, err, want)
		}
	}
	write(true, file("a", "1"), file("d/e/f", "2"))
	read("a", "1")
	read("d/e/f", "2")
	if link, err := os.Readlink(filepath.Join(dir, "d")); err != nil || link != "..data/d" {
		t.Errorf("d -> %q, %v", link, err)
	}
	first, err := os.Readlink(filepath.Join(dir, "..data"))
	if err != nil || !strings.HasPrefix(first, "..2") {
		t.Errorf("..data -> %q, %v", first, err)
	}
	write(false, file("d/e/f", "2"), file("a", "1"))
	write(true, file("a", "changed"))
	read("a", "changed")
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if len(names) != 3 || slices.Contains(names, first) || slices.Contains(names, "d") {
		t.Errorf("left: %v", names)
	}
	// Another mode is another content; none at all is one too.
	write(true, &agentv1.File{Path: "a", Data: []byte("changed"), Mode: 0o600})
	write(true)
	if _, err := os.Lstat(filepath.Join(dir, "a")); !os.IsNotExist(err) {
		t.Errorf("a is still there: %v", err)
	}
}

// TestWriteFilesStaysInside: a container that owns the volume cannot lead the agent out.
func TestWriteFilesStaysInside(t *testing.T) {
	outside := t.TempDir()
	victim := filepath.Join(outside, "victim")
	if err := os.WriteFile(victim, []byte("whole"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "..data", "..data_tmp"} {
		dir := t.TempDir()
		if err := os.Symlink(outside, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
		if _, err := writeFiles(dir, -1, []*agentv1.File{file("a", "x"), file("victim", "y")}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if got, err := os.ReadFile(victim); err != nil || string(got) != "whole" {
			t.Errorf("%s led outside: %q, %v", name, got, err)
		}
		if got, err := os.ReadFile(filepath.Join(dir, "a")); err != nil || string(got) != "x" {
			t.Errorf("%s: a is %q, %v", name, got, err)
		}
	}
}

func TestCheckFiles(t *testing.T) {
	for _, test := range []struct {
		files []*agentv1.File
		ok    bool
	}{
		{files: []*agentv1.File{file("a", ""), file("b/c", "")}, ok: true},
		{files: []*agentv1.File{file(".hidden", "")}, ok: true},
		{files: []*agentv1.File{file("", "")}},
		{files: []*agentv1.File{file("/a", "")}},
		{files: []*agentv1.File{file("a/../../b", "")}},
		{files: []*agentv1.File{file("a/", "")}},
		{files: []*agentv1.File{file("..data", "")}},
		{files: []*agentv1.File{file("..data/x", "")}},
		{files: []*agentv1.File{file("a", ""), file("a", "")}},
		{files: []*agentv1.File{file("a/b", ""), file("a", "")}},
		{files: []*agentv1.File{{Path: "a", Mode: 0o4755}}},
	} {
		if err := checkFiles(test.files); (err == nil) != test.ok {
			t.Errorf("%v: %v", test.files, err)
		}
	}
}
