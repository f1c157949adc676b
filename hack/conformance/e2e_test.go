// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// The test binary is of the control plane's release: both modules require and replace the
// same versions of Kubernetes.
func TestOneRelease(t *testing.T) {
	kubernetes := func(file string) []string {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var lines []string
		for line := range strings.Lines(string(content)) {
			line = strings.TrimSpace(line)
			if strings.HasPrefix(line, "k8s.io/kubernetes ") || strings.HasPrefix(line, "k8s.io/") && strings.Contains(line, " => ") {
				lines = append(lines, line)
			}
		}
		return lines
	}
	controlPlane := kubernetes("../controlplane/go.mod")
	if len(controlPlane) < 30 {
		t.Fatalf("the control plane's go.mod has %d lines of Kubernetes", len(controlPlane))
	}
	if d := cmp.Diff(controlPlane, kubernetes("e2e/go.mod")); d != "" {
		t.Errorf("hack/conformance/e2e/go.mod differs from the control plane's (-want +got):\n%s", d)
	}
}
