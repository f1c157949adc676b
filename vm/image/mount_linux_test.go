// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build machines

package image

import (
	"archive/tar"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/v1/mutate"

	"github.com/vk-firkin/vk-firkin/test/images"
)

// mount mounts a disk read-only through a loop device until the test ends.
func mount(t *testing.T, disk string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir := t.TempDir()
	if out, err := exec.CommandContext(t.Context(), "mount", "-o", "loop,ro", disk, dir).CombinedOutput(); err != nil {
		if strings.Contains(string(out), "loop") {
			t.Skipf("this host has no loop devices: %s", out)
		}
		t.Fatalf("mount: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	})
	return dir
}

// TestMount has the kernel read what e2fsprogs cannot vouch for.
func TestMount(t *testing.T) {
	dir := mount(t, writeRich(t))
	attr := func(name, attr string) string {
		b := make([]byte, 4096)
		n, err := syscall.Getxattr(filepath.Join(dir, name), attr, b)
		if err != nil {
			return err.Error()
		}
		return string(b[:n])
	}
	if got := attr("cap", "security.capability"); got != capNetBind {
		t.Errorf("capability %q", got)
	}
	if got := attr("cap", "user.note"); got != "hi" {
		t.Errorf("user attribute %q", got)
	}
	if got := attr("acl", "system.posix_acl_access"); got != acl() {
		t.Errorf("ACL %q, want %q", got, acl())
	}
	for n, want := range manyXattrs() {
		if got := attr("many", n); got != want {
			t.Errorf("%s of many: %d bytes (%.40q), want %d", n, len(got), got, len(want))
		}
	}
}

// TestMountRealImage compares every file of a busybox image, pulled and
// converted, with the image.
func TestMountRealImage(t *testing.T) {
	img, err := images.Busybox(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	r := testRegistry(t, images.RegistryOptions{})
	cfg, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	opts := testOptions(r)
	opts.Arch = cfg.Architecture
	got, err := openStore(t, t.TempDir(), opts).Pull(t.Context(), push(t, r, "busybox", img), PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer got.Release()
	dir := mount(t, got.DiskPath)

	want := map[string]string{"lost+found": "d 0700 0:0"}
	rc := mutate.Extract(img)
	tr := tar.NewReader(rc)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimSuffix(h.Name, "/")
		switch h.Typeflag {
		case tar.TypeDir:
			want[name] = fmt.Sprintf("d %04o %d:%d", h.Mode, h.Uid, h.Gid)
		case tar.TypeSymlink:
			want[name] = "-> " + h.Linkname
		default:
			want[name] = fmt.Sprintf("f %04o %d:%d %x", h.Mode, h.Uid, h.Gid, sha256.Sum256(b))
		}
	}
	have := map[string]string{}
	err = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		name, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		var st syscall.Stat_t
		if err := syscall.Lstat(p, &st); err != nil {
			return err
		}
		switch {
		case d.IsDir():
			have[name] = fmt.Sprintf("d %04o %d:%d", st.Mode&0o7777, st.Uid, st.Gid)
		case d.Type() == fs.ModeSymlink:
			l, err := os.Readlink(p)
			have[name] = "-> " + l
			return err
		default:
			b, err := os.ReadFile(p)
			have[name] = fmt.Sprintf("f %04o %d:%d %x", st.Mode&0o7777, st.Uid, st.Gid, sha256.Sum256(b))
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, have); d != "" {
		t.Error(d)
	}
}
