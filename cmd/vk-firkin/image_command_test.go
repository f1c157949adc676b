// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vk-firkin/vk-firkin/provider"
	"github.com/vk-firkin/vk-firkin/provider/metrics"
	"github.com/vk-firkin/vk-firkin/test/images"
	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/image"
)

// TestPushMacOS pushes an installation by the command and has a node's supply pull it.
func TestPushMacOS(t *testing.T) {
	registry, err := images.StartRegistry(images.RegistryOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = registry.Close() })
	dir := t.TempDir()
	ref := registry.Addr() + "/team/macos:15"
	args := []string{"image", "push-macos", ref, "--insecure-registry", registry.Addr(), "--temp-dir", dir}
	for flag, content := range map[string][]byte{
		"disk": bytes.Repeat([]byte("x"), 4096), "auxiliary-storage": []byte("aux"), "hardware-model": []byte("model"), "machine-identifier": []byte("id"),
	} {
		path := filepath.Join(dir, flag)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, "--"+flag, path)
	}
	t.Setenv("DOCKER_CONFIG", dir)
	cmd := newRootCommand()
	var out, progress bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(&progress)
	cmd.SetArgs(args)
	if err := cmd.ExecuteContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	repository, digest, _ := strings.Cut(strings.TrimSpace(out.String()), "@")
	if repository != registry.Addr()+"/team/macos" || !strings.HasPrefix(digest, "sha256:") || !strings.Contains(progress.String(), "layer 5 of 5") {
		t.Errorf("printed %q and %q", out.String(), progress.String())
	}

	store, err := image.Open(t.TempDir(), image.Options{SlotBytes: 1 << 30, Arch: "arm64", InsecureRegistries: []string{registry.Addr()}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	pinned := newNodeImages(store, metrics.New(metrics.Sources{}))
	supply := supplyImages{pinned}
	got, err := supply.Resolve(t.Context(), "template-a", ref, vm.GuestMacOS)
	if err != nil {
		t.Fatal(err)
	}
	if got.MacOS == nil || got.MacOS.Digest != digest || got.Digest != digest || got.MacOS.Disk != got.DiskPath || string(got.MacOS.HardwareModel) != "model" {
		t.Errorf("resolved %+v, %+v", got, got.MacOS)
	}
	if again, err := supply.Pin(t.Context(), "warm-a", digest); err != nil || again.MacOS == nil {
		t.Errorf("pinned %+v, %v", again, err)
	}
	// A pod of the template has the image by its digest, and a pod without one is told why
	// it cannot.
	if img, err := pinned.Pin(t.Context(), "pod-uid", digest); err != nil || img.Digest != digest {
		t.Errorf("a pod's image is %+v, %v", img, err)
	}
	if _, err := pinned.Pull(t.Context(), provider.PullRequest{Ref: ref, Policy: provider.PullIfNotPresent, Owner: "pod-uid"}); err == nil || !strings.Contains(err.Error(), "not a container image") {
		t.Errorf("error is %v", err)
	}
	if _, err := supply.Resolve(t.Context(), "template-b", ref, ""); err == nil || !strings.Contains(err.Error(), "guestOS: macos") {
		t.Errorf("for a Linux template: error is %v", err)
	}
}
