// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package images

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// busyboxPath is where Debian's busybox-static, and most others, keep it.
const busyboxPath = "/bin/busybox"

// Busybox is a small, real image for the host's architecture: Debian's static
// busybox with its applets as symbolic links. Its command prints a line and then
// waits for SIGTERM. When the host has no static busybox, its package is downloaded
// into cache and unpacked there; no root is needed for that.
//
// A Mac has neither: there FIRKIN_BUSYBOX names a static busybox for Linux, and a file of
// that name with ".list" has the names of its applets, what "busybox --list" prints.
func Busybox(ctx context.Context, cache string) (v1.Image, error) {
	binary, err := busyboxBinary(ctx, cache)
	if err != nil {
		return nil, fmt.Errorf("make busybox image: %w", err)
	}
	content, err := os.ReadFile(binary)
	if err != nil {
		return nil, fmt.Errorf("make busybox image: %w", err)
	}
	out, err := applets(ctx, binary)
	if err != nil {
		return nil, fmt.Errorf("make busybox image: list applets: %w", err)
	}
	entries := []Entry{
		Dir("bin", 0o755), Dir("dev", 0o755), Dir("etc", 0o755), Dir("home", 0o755), Dir("proc", 0o555), Dir("root", 0o700),
		Dir("sys", 0o555), Dir("tmp", 0o1777), Dir("usr", 0o755), Dir("var", 0o755), Dir("var/tmp", 0o1777),
		Symlink("sbin", "bin"), Symlink("usr/bin", "../bin"), Symlink("usr/sbin", "../bin"),
		File("bin/busybox", 0o755, string(content)),
		File("etc/passwd", 0o644, "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/home:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"),
		File("etc/group", 0o644, "root:x:0:\nuser:x:1000:\nextra:x:2000:user\nnogroup:x:65534:\n"),
		File("etc/os-release", 0o644, "ID=busybox\nNAME=\"busybox of vk-firkin's tests\"\n"),
	}
	for _, applet := range strings.Fields(string(out)) {
		if applet != "busybox" && !strings.Contains(applet, "/") {
			entries = append(entries, Symlink("bin/"+applet, "busybox"))
		}
	}
	l, err := Layer(entries...)
	if err != nil {
		return nil, fmt.Errorf("make busybox image: %w", err)
	}
	return Image(runtime.GOARCH, v1.Config{
		Cmd:        []string{"sh", "-c", "trap 'exit 0' TERM INT; echo busybox is up; while :; do sleep 3600 & wait $!; done"},
		Env:        []string{"PATH=/bin"},
		WorkingDir: "/",
	}, l)
}

// busyboxVariable names a busybox that this host cannot run.
const busyboxVariable = "FIRKIN_BUSYBOX"

func applets(ctx context.Context, binary string) ([]byte, error) {
	if binary == os.Getenv(busyboxVariable) {
		return os.ReadFile(binary + ".list")
	}
	return exec.CommandContext(ctx, binary, "--list").Output()
}

// busyboxBinary finds a static busybox.
func busyboxBinary(ctx context.Context, cache string) (string, error) {
	if given := os.Getenv(busyboxVariable); given != "" {
		if !isStatic(given) {
			return "", fmt.Errorf("%s: %s is no static program for Linux", busyboxVariable, given)
		}
		return given, nil
	}
	if isStatic(busyboxPath) {
		return busyboxPath, nil
	}
	dir := filepath.Join(cache, "busybox-static-"+runtime.GOARCH)
	for _, p := range []string{"bin/busybox", "usr/bin/busybox"} {
		if isStatic(filepath.Join(dir, p)) {
			return filepath.Join(dir, p), nil
		}
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	tmp, err := os.MkdirTemp(cache, ".busybox-*")
	if err != nil {
		return "", err
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	if err := run(ctx, tmp, "apt-get", "download", "busybox-static"); err != nil {
		return "", fmt.Errorf("no static %s here, and its package cannot be had: %w", busyboxPath, err)
	}
	debs, err := filepath.Glob(filepath.Join(tmp, "*.deb"))
	if err != nil || len(debs) != 1 {
		return "", fmt.Errorf("apt-get download left %d packages", len(debs))
	}
	root := filepath.Join(tmp, "root")
	if err := run(ctx, tmp, "dpkg-deb", "-x", debs[0], root); err != nil {
		return "", err
	}
	if err := os.Rename(root, dir); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", err
	}
	for _, p := range []string{"bin/busybox", "usr/bin/busybox"} {
		if isStatic(filepath.Join(dir, p)) {
			return filepath.Join(dir, p), nil
		}
	}
	return "", errors.New("the package busybox-static has no static busybox")
}

// isStatic reports whether path is a statically linked program.
func isStatic(path string) bool {
	f, err := elf.Open(path)
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return false
		}
	}
	return true
}

// run runs a program in dir and puts the end of what it said into its error.
func run(ctx context.Context, dir, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, lastLines(out))
	}
	return nil
}

func lastLines(out []byte) string {
	const keep = 2048
	if len(out) > keep {
		out = out[len(out)-keep:]
	}
	return strings.TrimSpace(string(out))
}
