// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/vk-firkin/vk-firkin/test/images"
)

func TestRepositoryList(t *testing.T) {
	var got map[string]string
	if err := json.Unmarshal(repositoryList("127.0.0.1:5000"), &got); err != nil {
		t.Fatal(err)
	}
	folders := map[string]bool{}
	for name, ref := range got {
		if !strings.HasPrefix(ref, "127.0.0.1:5000/") || folders[ref] {
			t.Errorf("%s is at %s", name, ref)
		}
		folders[ref] = true
	}
	if len(got) != 9 {
		t.Errorf("%d registries, want 9", len(got))
	}
}

func TestWanted(t *testing.T) {
	makers := map[string]maker{"agnhost": func() (v1.Image, error) { return images.Small("amd64") }}
	const registry = "127.0.0.1:1"
	served, missing, err := wanted("I1126 a line of a log\n"+registry+"/e2e/agnhost:2\n"+registry+"/e2e/agnhost:1\n"+registry+"/e2e/agnhost:2\n"+
		registry+"/storage/csi:3\n"+registry+"/e2e/volume/nfs:1\n"+registry+"/invalid/alpine:1\n"+registry+"/private/agnhost:1\nother/e2e/agnhost:9\n", registry, makers)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"e2e/agnhost:1", "e2e/agnhost:2"}, served); d != "" {
		t.Errorf("served (-want +got):\n%s", d)
	}
	if d := cmp.Diff([]string{"e2e/volume/nfs:1", "storage/csi:3"}, missing); d != "" {
		t.Errorf("missing (-want +got):\n%s", d)
	}
	for _, listed := range []string{"", registry + "/agnhost:1", registry + "/e2e/agnhost", registry + "/e2e/agnhost:"} {
		if _, _, err := wanted(listed, registry, makers); err == nil {
			t.Errorf("%q is a list of images", listed)
		}
	}
}

// Two references to one image cost one image.
func TestServe(t *testing.T) {
	registry, err := images.StartRegistry(images.RegistryOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer registry.Close()
	made := 0
	makers := map[string]maker{"agnhost": func() (v1.Image, error) { made++; return images.Small("amd64") }}
	if err := serve(registry, []string{"e2e/agnhost:1", "e2e/agnhost:2"}, makers); err != nil {
		t.Fatal(err)
	}
	if made != 1 {
		t.Errorf("the image was made %d times", made)
	}
}

func TestAppendFiles(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "data.json"), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := appendFiles(nil, dir, "html/")
	if err != nil || len(got) != 1 || got[0].Name != "html/data.json" || string(got[0].Content) != "{}" {
		t.Errorf("got %+v, %v", got, err)
	}
	if _, err := appendFiles(nil, filepath.Join(dir, "none"), ""); err == nil {
		t.Error("a folder that is not there was read")
	}
}

// The script that stands in for curl refuses what it does not know, rather than fetch
// something else.
func TestCurl(t *testing.T) {
	sh, err := exec.LookPath("sh")
	if err != nil {
		t.Skip("no shell on this host")
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "wget"), []byte("#!/bin/sh\necho \"$@\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	script := filepath.Join(dir, "curl")
	if err := os.WriteFile(script, []byte(curl), 0o755); err != nil {
		t.Fatal(err)
	}
	for args, want := range map[string]string{
		"http://a/b?c=d": "-q -T 30 -O - http://a/b?c=d\n",
		"-g -q -s --max-time 15 --connect-timeout 1 http://a": "-q -T 1 -O - http://a\n",
		"-X POST http://a": "",
	} {
		cmd := exec.CommandContext(t.Context(), sh, append([]string{script}, strings.Fields(args)...)...)
		cmd.Env = []string{"PATH=" + dir}
		out, err := cmd.Output()
		if string(out) != want || (err != nil) != (want == "") {
			t.Errorf("%s: %q, %v", args, out, err)
		}
	}
}
