// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import "testing"

func TestNeedsTag(t *testing.T) {
	tests := []struct {
		name, source string
		want         bool
	}{
		{"no constraint", "// a comment\npackage x\n", false},
		{"the tag", "//go:build machines\n\npackage x\n", true},
		{"the tag and an OS", "//go:build machines && linux\n\npackage x\n", true},
		{"another tag", "//go:build e2e\n\npackage x\n", false},
		{"only without it", "//go:build !machines\n\npackage x\n", false},
		{"constraint after the clause is a comment", "package x\n//go:build machines\n", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := needsTag(tt.source, "machines"); got != tt.want {
				t.Errorf("needsTag = %v, want %v", got, tt.want)
			}
		})
	}
}
