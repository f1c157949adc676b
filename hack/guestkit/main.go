// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Guestkit builds a guest kit (see vm/guest/kit) without root, on Debian:
//
//	go run ./hack/guestkit --arch amd64 --out bin/guest/amd64
//
// The agent is linked with Debian's static libseccomp, which is fetched for the kit's
// architecture. The kernel and its modules are Debian's linux-image-cloud package, the initramfs
// holds the agent and the modules it loads, and nothing else. The same inputs (the
// kernel package, the agent, this program) give the same bytes. When the kit in the
// output directory was built from the same inputs nothing is done.
package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/vk-firkin/vk-firkin/vm/guest/kit"
)

// builderVersion is part of a kit's inputs: raise it when the same inputs shall give
// another kit.
const builderVersion = "1"

type options struct {
	arch, out, cache string
	update, force    bool
}

func main() {
	var o options
	flag.StringVar(&o.arch, "arch", runtime.GOARCH, "architecture of the guest: amd64 or arm64")
	flag.StringVar(&o.out, "out", "", "directory of the kit (default bin/guest/ARCH)")
	flag.StringVar(&o.cache, "cache", filepath.Join("bin", "guest", ".cache"), "directory that keeps what was downloaded")
	flag.BoolVar(&o.update, "update", false, "look for a newer kernel although one was downloaded before")
	flag.BoolVar(&o.force, "force", false, "build although the kit is up to date")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := build(ctx, o)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "guestkit:", err)
		os.Exit(1)
	}
}

// tools are the programs that a build runs and the Debian packages they come in.
func tools(arch string) map[string]string {
	t := map[string]string{"dpkg-deb": "dpkg", "apt-get": "apt", "mkfs.ext4": "e2fsprogs", cCompiler(arch): "gcc libc6-dev"}
	if arch != runtime.GOARCH {
		t[cCompiler(arch)] = map[string]string{
			"amd64": "gcc-x86-64-linux-gnu libc6-dev-amd64-cross",
			"arm64": "gcc-aarch64-linux-gnu libc6-dev-arm64-cross",
		}[arch]
	}
	return t
}

func checkTools(arch string) error {
	// mkfs.ext4 is in a directory that Debian leaves out of a user's PATH.
	if err := os.Setenv("PATH", os.Getenv("PATH")+":/usr/sbin:/sbin"); err != nil {
		return err
	}
	var errs []error
	for tool, pkg := range tools(arch) {
		if _, err := exec.LookPath(tool); err != nil {
			errs = append(errs, fmt.Errorf("%s is missing: install Debian's %s", tool, pkg))
		}
	}
	return errors.Join(errs...)
}

func build(ctx context.Context, o options) error {
	if o.arch != "amd64" && o.arch != "arm64" {
		return fmt.Errorf("architecture %q: want amd64 or arm64", o.arch)
	}
	if o.out == "" {
		o.out = filepath.Join("bin", "guest", o.arch)
	}
	if err := checkTools(o.arch); err != nil {
		return err
	}
	cache, err := filepath.Abs(filepath.Join(o.cache, o.arch))
	if err != nil {
		return err
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return err
	}
	agentPath := filepath.Join(cache, "firkin-agent")
	seccomp, err := seccompLibrary(ctx, o.arch, cache, o.update)
	if err != nil {
		return err
	}
	if err := buildAgent(ctx, o.arch, agentPath, seccomp); err != nil {
		return err
	}
	agent, err := os.ReadFile(agentPath)
	if err != nil {
		return err
	}
	pkg, err := kernelPackage(ctx, o.arch, cache, o.update)
	if err != nil {
		return err
	}
	inputs, err := inputsDigest(o.arch, agent, pkg)
	if err != nil {
		return err
	}
	if old, err := kit.ReadManifest(o.out); err == nil && old.Inputs == inputs && !o.force {
		if _, err := kit.Load(o.out); err == nil {
			if err := notices(ctx, o, pkg, seccompPackageFile(cache)); err != nil {
				return err
			}
			fmt.Printf("guest kit %s is up to date: %s\n", o.arch, o.out)
			return nil
		}
	}
	m, err := assemble(ctx, o, pkg, seccompPackageFile(cache), agent, inputs)
	if err != nil {
		return err
	}
	fmt.Printf("guest kit %s: kernel %s, agent %s, %s in %s\n", m.Arch, m.KernelRelease, m.AgentVersion, m.Digest, o.out)
	return nil
}

// assemble writes the kit's files, the manifest last, into a directory beside the
// output directory, and then puts it in the output's place: whoever reads the output
// sees a whole kit or none.
func assemble(ctx context.Context, o options, pkg, seccomp string, agent []byte, inputs string) (kit.Manifest, error) {
	sum := sha256.Sum256(agent)
	m := kit.Manifest{
		Version:      kit.Version,
		Arch:         o.arch,
		AgentVersion: hex.EncodeToString(sum[:6]),
		Cmdline:      kit.Cmdline(o.arch),
		Inputs:       inputs,
	}
	parent := filepath.Dir(o.out)
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return m, err
	}
	tmp, err := os.MkdirTemp(parent, ".building-")
	if err != nil {
		return m, err
	}
	defer os.RemoveAll(tmp)
	tree := filepath.Join(tmp, "package")
	if err := run(ctx, nil, "dpkg-deb", "-x", pkg, tree); err != nil {
		return m, err
	}
	k, err := findKernel(tree)
	if err != nil {
		return m, err
	}
	m.KernelRelease = k.release
	dir := filepath.Join(tmp, "kit")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return m, err
	}
	if err := writeKernel(o.arch, k.image, filepath.Join(dir, kit.KernelName)); err != nil {
		return m, err
	}
	if err := writeInitramfs(ctx, filepath.Join(dir, kit.InitramfsName), k, agent, m.AgentVersion); err != nil {
		return m, err
	}
	if err := writeScratch(ctx, filepath.Join(dir, kit.ScratchName)); err != nil {
		return m, err
	}
	for _, name := range []string{kit.InitramfsName, kit.KernelName, kit.ScratchName} {
		f, err := kit.Describe(dir, name)
		if err != nil {
			return m, err
		}
		m.Files = append(m.Files, f)
	}
	if err := writeNotices(ctx, filepath.Join(dir, kit.NoticesName), o.arch, pkg, seccomp); err != nil {
		return m, err
	}
	m.Digest = m.ComputeDigest()
	b, err := m.Encode()
	if err != nil {
		return m, err
	}
	if err := os.WriteFile(filepath.Join(dir, kit.ManifestName), b, 0o644); err != nil {
		return m, err
	}
	if err := os.RemoveAll(o.out); err != nil {
		return m, err
	}
	return m, os.Rename(dir, o.out)
}

// inputsDigest tells one kit's inputs from another's.
func inputsDigest(arch string, agent []byte, pkg string) (string, error) {
	p, err := os.ReadFile(pkg)
	if err != nil {
		return "", err
	}
	h := sha256.New()
	for _, part := range [][]byte{[]byte(builderVersion), []byte(arch), []byte(kit.Cmdline(arch)), []byte(strings.Join(modules, " ")), agent, p} {
		sum := sha256.Sum256(part)
		h.Write(sum[:])
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// run runs a program; its output is in the error and nowhere else.
func run(ctx context.Context, env []string, name string, args ...string) error {
	_, err := output(ctx, "", env, name, args...)
	return err
}

func output(ctx context.Context, dir string, env []string, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), env...)
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("run %s: %w", name, err)
		}
		return "", fmt.Errorf("run %s %s: %w\n%s", name, strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}
