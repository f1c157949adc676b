// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package vz_test

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// processesUnder lists live processes whose working directory is dir or below it.
func processesUnder(t *testing.T, dir string) []int {
	t.Helper()
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		cwd, err := os.Readlink(filepath.Join("/proc", e.Name(), "cwd"))
		if err == nil && (cwd == dir || strings.HasPrefix(cwd, dir+"/")) {
			pids = append(pids, pid)
		}
	}
	return pids
}
