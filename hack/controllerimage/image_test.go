// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/vk-firkin/vk-firkin/test/images"
)

// executable is the head of a program: as much as says what it is for, and what it is loaded by.
func executable(t *testing.T, machine elf.Machine, segment elf.ProgType) string {
	t.Helper()
	var b bytes.Buffer
	head := elf.Header64{
		Ident: [16]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_EXEC), Machine: uint16(machine), Version: uint32(elf.EV_CURRENT), Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 1, Shentsize: 64,
	}
	for _, part := range []any{head, elf.Prog64{Type: uint32(segment)}} {
		if err := binary.Write(&b, binary.LittleEndian, part); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestSameImage: a second build, of files with other times and permissions, has the same digest and the same archive.
func TestSameImage(t *testing.T) {
	var digests, archives []string
	for i := range 2 {
		o := options{version: "v1", name: "registry.example/tools/vk-firkin:v1", binaries: map[string]string{
			"arm64": executable(t, elf.EM_AARCH64, elf.PT_LOAD), "amd64": executable(t, elf.EM_X86_64, elf.PT_LOAD)}}
		past := time.Now().Add(-time.Duration(i) * 1000 * time.Hour)
		for _, path := range o.binaries {
			if err := errors.Join(os.Chtimes(path, past, past), os.Chmod(path, 0o600|os.FileMode(i)<<6)); err != nil {
				t.Fatal(err)
			}
		}
		o.archive = filepath.Join(t.TempDir(), "image.tar")
		var out strings.Builder
		if err := run(t.Context(), o, &out); err != nil {
			t.Fatal(err)
		}
		content, err := os.ReadFile(o.archive)
		if err != nil {
			t.Fatal(err)
		}
		digests, archives = append(digests, out.String()), append(archives, string(content))
	}
	if digests[0] != digests[1] || archives[0] != archives[1] {
		t.Errorf("two builds of the same are %s and %s, their archives alike: %t", digests[0], digests[1], archives[0] == archives[1])
	}
	if !strings.HasPrefix(digests[0], "registry.example/tools/vk-firkin:v1@sha256:") {
		t.Errorf("it says %q", digests[0])
	}
}

// TestPush: the registry has one image for each architecture, which is what the chart runs; and the layout has the same.
func TestPush(t *testing.T) {
	registry, err := images.StartRegistry(images.RegistryOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = registry.Close() })
	authority := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(authority, []byte("PEM"), 0o600); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "layout")
	ref := registry.Addr() + "/tools/vk-firkin:v1"
	var out strings.Builder
	err = command(t.Context(), []string{"--push", "--name", ref, "--version", "v1", "--layout", dir, "--ca-bundle", authority,
		"--binary", "arm64=" + executable(t, elf.EM_AARCH64, elf.PT_LOAD), "--binary", "amd64=" + executable(t, elf.EM_X86_64, elf.PT_LOAD)}, &out)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := name.ParseReference(ref)
	if err != nil {
		t.Fatal(err)
	}
	index, err := remote.Index(parsed, remote.WithContext(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	if digest, err := index.Digest(); err != nil || out.String() != ref+"@"+digest.String()+"\n" {
		t.Errorf("pushed %s, says %q: %v", digest, out.String(), err)
	}
	for _, arch := range []string{"amd64", "arm64"} {
		img, err := remote.Image(parsed, remote.WithContext(t.Context()), remote.WithPlatform(v1.Platform{OS: "linux", Architecture: arch}))
		if err != nil {
			t.Fatal(err)
		}
		file, err := img.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		if c := file.Config; file.Architecture != arch || file.OS != "linux" || c.User != "65532:65532" || !slices.Equal(c.Entrypoint, []string{"/vk-firkin"}) ||
			c.Labels["org.opencontainers.image.version"] != "v1" || !file.Created.Equal(time.Unix(0, 0)) {
			t.Errorf("the image for %s is %+v", arch, file)
		}
		got := contents(t, img)
		if want := []string{"vk-firkin 755", "etc/ 755", "etc/ssl/ 755", "etc/ssl/certs/ 755", "etc/ssl/certs/ca-certificates.crt 644"}; !slices.Equal(got, want) {
			t.Errorf("it has %q, want %q", got, want)
		}
	}
	written, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := written.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	if m := manifest.Manifests; len(m) != 1 || !strings.HasSuffix(out.String(), m[0].Digest.String()+"\n") || m[0].Annotations["org.opencontainers.image.ref.name"] != "v1" || m[0].Annotations["io.containerd.image.name"] != ref {
		t.Errorf("the layout has %+v", m)
	}
}

func contents(t *testing.T, img v1.Image) (entries []string) {
	t.Helper()
	r := mutate.Extract(img)
	defer r.Close()
	for archive := tar.NewReader(r); ; {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return entries
		}
		if err != nil {
			t.Fatal(err)
		}
		entries = append(entries, strings.TrimSuffix(h.Name, "/")+map[bool]string{true: "/"}[h.Typeflag == tar.TypeDir]+" "+modeOf(h))
	}
}

func modeOf(h *tar.Header) string {
	const octal = "01234567"
	m := h.Mode & 0o777
	return string([]byte{octal[m>>6], octal[m>>3&7], octal[m&7]})
}

// TestRefused: what could not run in the image is told, with what to do.
func TestRefused(t *testing.T) {
	good := executable(t, elf.EM_X86_64, elf.PT_LOAD)
	text := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(text, []byte("#!/bin/sh\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for says, args := range map[string][]string{
		"--binary is missing":          nil,
		"want ARCH=PATH":               {"--binary", "amd64"},
		"is given twice":               {"--binary", "amd64=" + good, "--binary", "amd64=" + good},
		"want amd64 or arm64":          {"--binary", "riscv64=" + good},
		"is for EM_X86_64":             {"--binary", "arm64=" + good},
		"needs a dynamic linker":       {"--binary", "amd64=" + executable(t, elf.EM_X86_64, elf.PT_INTERP)},
		"is no program for Linux":      {"--binary", "amd64=" + text},
		"CGO_ENABLED=0":                {"--binary", "amd64=" + text},
		"remove it first":              {"--binary", "amd64=" + good, "--layout", t.TempDir()},
		"can only contain":             {"--binary", "amd64=" + good, "--archive", filepath.Join(t.TempDir(), "a.tar"), "--name", "UPPER:x"},
		"unexpected arguments [\"x\"]": {"x"},
	} {
		if err := command(t.Context(), args, io.Discard); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: error %v, want %q", args, err, says)
		}
	}
}

// TestContainerdName: what a runtime has imported is found by the name that a pod asks for.
func TestContainerdName(t *testing.T) {
	for ref, want := range map[string]string{
		"vk-firkin:v1":                  "docker.io/library/vk-firkin:v1",
		"tools/vk-firkin:v1":            "docker.io/tools/vk-firkin:v1",
		"localhost/vk-firkin:v1":        "localhost/vk-firkin:v1",
		"registry.example/vk-firkin:v1": "registry.example/vk-firkin:v1",
	} {
		tag, err := name.NewTag(ref)
		if err != nil {
			t.Fatal(err)
		}
		if got := containerdName(tag); got != want {
			t.Errorf("%s is %s, want %s", ref, got, want)
		}
	}
}
