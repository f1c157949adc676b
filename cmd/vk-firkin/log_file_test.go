// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Every line is in one of the files, whole and once, the newest in the first, and there are
// never more files or larger ones than asked for.
func TestRotatingFile(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "log")
	path := filepath.Join(dir, "node.log")
	const files, maxBytes = 3, 1000
	lines := 0
	for range 4 { // processes
		r, err := openRotating(path, maxBytes, files)
		if err != nil {
			t.Fatal(err)
		}
		for range 40 {
			lines++
			if _, err := fmt.Fprintf(r, "line %06d of a log\n", lines); err != nil {
				t.Fatal(err)
			}
		}
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := r.Write([]byte("x")); err == nil {
			t.Error("a closed log took a line")
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != files {
		t.Errorf("%d files, %v", len(entries), err)
	}
	var all []byte
	for _, name := range []string{"node.log.2", "node.log.1", "node.log"} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if len(data) > maxBytes {
			t.Errorf("%s has %d bytes", name, len(data))
		}
		all = append(all, data...)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	got := strings.Split(strings.TrimSpace(string(all)), "\n")
	for i, line := range got {
		if want := fmt.Sprintf("line %06d of a log", lines-len(got)+i+1); line != want {
			t.Fatalf("line %d is %q, want %q", i, line, want)
		}
	}
	if len(got) < 100 {
		t.Errorf("only %d lines are left", len(got))
	}
}

// What stands in the way of a rotation costs no line.
func TestRotationFails(t *testing.T) {
	path := filepath.Join(t.TempDir(), "node.log")
	if err := os.MkdirAll(filepath.Join(path+".1", "full"), 0o700); err != nil {
		t.Fatal(err)
	}
	r, err := openRotating(path, 100, 2)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for i := range 50 {
		if _, err := fmt.Fprintf(r, "line %d\n", i); err != nil {
			t.Fatal(err)
		}
	}
	data, err := os.ReadFile(path)
	if err != nil || bytes.Count(data, []byte("\n")) != 50 {
		t.Errorf("%d lines, %v", bytes.Count(data, []byte("\n")), err)
	}
}

func TestTrimStandardError(t *testing.T) {
	f, err := os.OpenFile(filepath.Join(t.TempDir(), "crash.log"), os.O_CREATE|os.O_APPEND|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, c := range []struct{ size, want int64 }{{maxCrashBytes, maxCrashBytes}, {maxCrashBytes + 1, 0}} {
		if err := f.Truncate(c.size); err != nil {
			t.Fatal(err)
		}
		if err := trimStandardError(f); err != nil {
			t.Error(err)
		}
		if info, err := f.Stat(); err != nil || info.Size() != c.want {
			t.Errorf("%d bytes became %d, %v", c.size, info.Size(), err)
		}
	}
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	defer write.Close()
	if err := trimStandardError(write); err != nil {
		t.Errorf("a pipe: %v", err)
	}
}

func TestLogFileOptions(t *testing.T) {
	for _, args := range [][]string{{"--log-file", "relative"}, {"--log-max-size", "1Ki"}, {"--log-max-size", "x"}, {"--log-max-files", "0"}} {
		if _, err := parseNode(t, append(complete, args...)...).complete(); err == nil || !strings.Contains(err.Error(), args[0]) {
			t.Errorf("%v: %v", args, err)
		}
	}
}
