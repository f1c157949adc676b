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

// apt runs Debian's tools on directories of its own, so that a foreign architecture
// needs neither root nor a change to the host's package database.
type apt struct {
	dir     string
	options []string
}

// debianKeyring signs Debian's archive; the package debian-archive-keyring, which
// every Debian has, owns it.
const debianKeyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// newApt prepares the directories under dir for packages of an architecture. The
// sources are the host's own, of which only Debian's are used where apt knows them.
func newApt(ctx context.Context, dir, arch string) (*apt, error) {
	for _, d := range []string{"lists/partial", "archives/partial"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	a := &apt{dir: dir, options: []string{
		"-q",
		"-o", "Dir::State::Lists=" + filepath.Join(dir, "lists"),
		"-o", "Dir::State::status=" + os.DevNull,
		"-o", "Dir::Cache=" + dir,
		"-o", "APT::Architecture=" + arch,
		"-o", "APT::Architectures=" + arch,
		"-o", "APT::Sandbox::User=", // as root, apt would drop to a user that may not write here
		"-o", "Acquire::Languages=none",
		"-o", "Acquire::Retries=3",
	}}
	out, err := output(ctx, "", nil, "apt-get", "indextargets",
		"--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages", "Origin: Debian")
	if err != nil {
		return nil, fmt.Errorf("list the host's package sources: %w", err)
	}
	if sources := debianSources(out); sources != "" {
		file := filepath.Join(dir, "sources.list")
		if err := os.WriteFile(file, []byte(sources), 0o644); err != nil {
			return nil, err
		}
		a.options = append(a.options, "-o", "Dir::Etc::sourcelist="+file, "-o", "Dir::Etc::sourceparts="+os.DevNull)
	}
	return a, nil
}

// debianSources makes a sources.list of lines "URI RELEASE COMPONENT"; empty when the
// host has never fetched its lists, and so cannot tell which of them are Debian's.
func debianSources(targets string) string {
	var lines []string
	for line := range strings.Lines(targets) {
		if fields := strings.Fields(line); len(fields) == 3 {
			lines = append(lines, "deb [signed-by="+debianKeyring+"] "+strings.Join(fields, " ")+"\n")
		}
	}
	slices.Sort(lines)
	return strings.Join(slices.Compact(lines), "")
}

func (a *apt) run(ctx context.Context, tool string, args ...string) (string, error) {
	return output(ctx, a.dir, []string{"LC_ALL=C", "DEBIAN_FRONTEND=noninteractive"}, tool, append(slices.Clone(a.options), args...)...)
}

// kernelPackage returns the path of Debian's cloud kernel package for an
// architecture in the directory cache, downloaded now if it is not there or update is
// set.
func kernelPackage(ctx context.Context, arch, cache string, update bool) (string, error) {
	if have := downloaded(cache); have != "" && !update {
		return have, nil
	}
	fmt.Printf("fetching Debian's cloud kernel for %s\n", arch)
	a, err := newApt(ctx, cache, arch)
	if err != nil {
		return "", err
	}
	// It also fails when a hook of the host's configuration does, or a source that we do
	// not need: what counts is whether the package is known afterwards.
	_, updateErr := a.run(ctx, "apt-get", "update")
	meta := "linux-image-cloud-" + arch
	show, err := a.run(ctx, "apt-cache", "show", "--no-all-versions", meta)
	if err != nil {
		return "", errors.Join(fmt.Errorf("look up %s: %w", meta, err), updateErr)
	}
	pkg, err := kernelDependency(show)
	if err != nil {
		return "", fmt.Errorf("look up %s: %w", meta, err)
	}
	if _, err := a.run(ctx, "apt-get", "download", pkg); err != nil {
		return "", fmt.Errorf("download %s: %w", pkg, err)
	}
	// apt checked it against the signed lists; older ones may lie beside it.
	name, _, _ := strings.Cut(pkg, "=")
	var found string
	for _, file := range debs(cache) {
		if strings.HasPrefix(filepath.Base(file), name+"_") && strings.Contains(file, debVersion(pkg)) {
			found = file
			continue
		}
		if err := os.Remove(file); err != nil {
			return "", err
		}
	}
	if found == "" {
		return "", fmt.Errorf("download %s: apt-get left no package", pkg)
	}
	return found, nil
}

// debVersion is the version of "name=version" as file names have it: apt writes the
// colon of an epoch as %3a.
func debVersion(pkg string) string {
	_, version, _ := strings.Cut(pkg, "=")
	return strings.ReplaceAll(version, ":", "%3a")
}

func debs(cache string) []string {
	files, err := filepath.Glob(filepath.Join(cache, "linux-image-*.deb"))
	if err != nil {
		return nil
	}
	return files
}

// downloaded is the one package in the cache, or empty.
func downloaded(cache string) string {
	if files := debs(cache); len(files) == 1 {
		return files[0]
	}
	return ""
}

// kernelDependency finds, in what apt-cache shows of the meta package, the package of
// the exact kernel version, as "name=version".
func kernelDependency(show string) (string, error) {
	for line := range strings.Lines(show) {
		deps, ok := strings.CutPrefix(line, "Depends:")
		if !ok {
			continue
		}
		for dep := range strings.SplitSeq(deps, ",") {
			name, version, _ := strings.Cut(strings.TrimSpace(dep), " ")
			if !strings.HasPrefix(name, "linux-image-") {
				continue
			}
			version = strings.Trim(version, "()= ")
			if version == "" {
				return name, nil
			}
			return name + "=" + version, nil
		}
	}
	return "", errors.New("the meta package depends on no kernel image")
}
