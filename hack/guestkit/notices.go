// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/vk-firkin/vk-firkin/vm/guest/kit"
)

// maxNotice bounds a licence's text that is read from a package: the kernel's has 200 KiB.
const maxNotice = 4 << 20

// writeNotices writes what must go with a kit that is given to others: the licences of the programs in it
// that are not Go modules (those are in the release's THIRD-PARTY-LICENCES.txt), and where their source is.
// kernel and seccomp are Debian's packages.
func writeNotices(ctx context.Context, path, arch, kernel, seccomp string) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, `This guest kit has programs of others in it, as Debian distributes them:

%s: the Linux kernel and its modules, under the GNU General Public License, version 2.
  Its source is Debian's source package "linux" of that version.
%s: linked into the agent (the file init of the initramfs), under the GNU Lesser General
  Public License, version 2.1. Its source is Debian's source package "libseccomp" of that version.
The GNU C library: linked into the agent, under the GNU Lesser General Public License, version 2.1.
  Its source is Debian's source package "glibc".

Debian keeps every version's source at snapshot.debian.org. The agent's own source, with which it can be
linked with other versions of these, is cmd/firkin-agent of this project (hack/guestkit links it). The
licences of the Go modules in the agent are in THIRD-PARTY-LICENCES.txt of the release.
`, filepath.Base(kernel), filepath.Base(seccomp))
	for _, pkg := range []string{kernel, seccomp} {
		text, err := copyright(ctx, pkg)
		if err != nil {
			return err
		}
		fmt.Fprintf(&b, "\n==== %s\n\n%s\n", filepath.Base(pkg), bytes.TrimSpace(text))
	}
	glibc, err := firstOf("/usr/share/doc/libc6-dev/copyright", "/usr/share/doc/libc6-dev-"+arch+"-cross/copyright", "/usr/share/doc/libc6/copyright")
	if err != nil {
		return err
	}
	fmt.Fprintf(&b, "\n==== The GNU C library\n\n%s\n", bytes.TrimSpace(glibc))
	for _, name := range []string{"GPL-2", "LGPL-2.1"} {
		text, err := firstOf(filepath.Join("/usr/share/common-licenses", name))
		if err != nil {
			return err
		}
		fmt.Fprintf(&b, "\n==== %s\n\n%s\n", name, bytes.TrimSpace(text))
	}
	return os.WriteFile(path, b.Bytes(), 0o644)
}

// notices writes the notices of a kit that is up to date, which may be of a time when there were none.
func notices(ctx context.Context, o options, kernel, seccomp string) error {
	path := filepath.Join(o.out, kit.NoticesName)
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	return writeNotices(ctx, path, o.arch, kernel, seccomp)
}

// copyright is what a Debian package says of the licences in it.
func copyright(ctx context.Context, pkg string) (text []byte, err error) {
	cmd := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", pkg)
	var complaints strings.Builder
	cmd.Stderr = &complaints
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	defer func() {
		_, _ = io.Copy(io.Discard, out)
		if waitErr := cmd.Wait(); waitErr != nil {
			err = errors.Join(err, fmt.Errorf("unpack %s: %w: %s", pkg, waitErr, complaints.String()))
		}
	}()
	for files := tar.NewReader(out); ; {
		h, err := files.Next()
		if err != nil {
			return nil, fmt.Errorf("find the licences in %s: %w", pkg, err)
		}
		if ok, _ := filepath.Match("./usr/share/doc/*/copyright", h.Name); ok && h.Typeflag == tar.TypeReg {
			return io.ReadAll(io.LimitReader(files, maxNotice))
		}
	}
}

func firstOf(paths ...string) ([]byte, error) {
	for _, path := range paths {
		if b, err := os.ReadFile(path); err == nil {
			return b, nil
		}
	}
	return nil, fmt.Errorf("none of %s is there: the kit's notices need it", strings.Join(paths, ", "))
}
