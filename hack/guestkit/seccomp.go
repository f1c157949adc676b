// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// seccompPackageName is what libcontainer compiles seccomp filters with, as a static library.
const seccompPackageName = "libseccomp-dev"

// seccompLibrary unpacks Debian's libseccomp for the architecture and returns where. It is
// downloaded as the kernel is, so that the host's own packages stay as they are: no foreign
// architecture is added to them, and nobody has to be root.
func seccompLibrary(ctx context.Context, arch, cache string, update bool) (string, error) {
	pkg, err := seccompPackage(ctx, arch, cache, update)
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "seccomp")
	if err := os.RemoveAll(dir); err != nil {
		return "", err
	}
	if err := run(ctx, nil, "dpkg-deb", "-x", pkg, dir); err != nil {
		return "", err
	}
	return dir, writePkgConfig(dir)
}

// seccompPackageFile is the package that seccompLibrary has unpacked.
func seccompPackageFile(cache string) string {
	if found := packages(cache, seccompPackageName); len(found) == 1 {
		return found[0]
	}
	return ""
}

func seccompPackage(ctx context.Context, arch, cache string, update bool) (string, error) {
	if have := packages(cache, seccompPackageName); len(have) == 1 && !update {
		return have[0], nil
	}
	fmt.Printf("fetching Debian's libseccomp for %s\n", arch)
	a, err := newApt(ctx, cache, arch)
	if err != nil {
		return "", err
	}
	_, updateErr := a.run(ctx, "apt-get", "update") // may fail for what is not needed, see kernelPackage
	old := packages(cache, seccompPackageName)
	for _, file := range old {
		if err := os.Remove(file); err != nil {
			return "", err
		}
	}
	if _, err := a.run(ctx, "apt-get", "download", seccompPackageName); err != nil {
		return "", errors.Join(fmt.Errorf("download %s: %w", seccompPackageName, err), updateErr)
	}
	found := packages(cache, seccompPackageName)
	if len(found) != 1 {
		return "", fmt.Errorf("download %s: apt-get left %d packages", seccompPackageName, len(found))
	}
	return found[0], nil
}

// packages are the downloaded files of a package.
func packages(cache, name string) []string {
	files, err := filepath.Glob(filepath.Join(cache, name+"_*.deb"))
	if err != nil {
		return nil
	}
	return slices.DeleteFunc(files, func(f string) bool { return strings.HasSuffix(f, ".partial") })
}

// writePkgConfig writes a program that answers as pkg-config does for the one library that
// cgo asks it about: the real one is not on every host, and would tell of the host's. It does
// not say where the library is: what pkg-config answered is no part of the key by which Go's
// build cache knows a package, so another checkout would be given this one's folder.
// The environment's flags are part of it, see seccompFlags.
func writePkgConfig(dir string) error {
	if strings.ContainsAny(dir, `'"\`) {
		return fmt.Errorf("the directory %q has quotes in its name", dir)
	}
	const script = `#!/bin/sh
case "$*" in
*--cflags*libseccomp*) echo ;;
*--libs*libseccomp*) echo -lseccomp ;;
*) exit 1 ;;
esac
`
	return os.WriteFile(pkgConfig(dir), []byte(script), 0o755)
}

// seccompFlags are the compiler's and the linker's flags that find the library in dir.
func seccompFlags(dir, arch string) (cflags, ldflags string) {
	return fmt.Sprintf("'-I%s/usr/include'", dir), fmt.Sprintf("'-L%s/usr/lib/%s'", dir, triplet(arch))
}

func pkgConfig(dir string) string { return filepath.Join(dir, "pkg-config") }

// triplet is Debian's name of an architecture in paths.
func triplet(arch string) string {
	return map[string]string{"amd64": "x86_64-linux-gnu", "arm64": "aarch64-linux-gnu"}[arch]
}
