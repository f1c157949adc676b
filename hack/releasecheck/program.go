// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"
)

// entitlement is what Virtualization.framework asks of a program's signature.
const entitlement = "com.apple.security.virtualization"

// checkProgram checks that a program is for a platform and has its driver.
func checkProgram(path, goos, arch string) error {
	info, err := buildinfo.ReadFile(path)
	if err != nil {
		return fmt.Errorf("how vk-firkin was built: %w", err)
	}
	if err := judgeBuild(info, goos, arch); err != nil || goos != "darwin" {
		return err
	}
	// The signature's entitlements are text at the program's end.
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if !bytes.Contains(content, []byte("<key>"+entitlement+"</key>")) {
		return fmt.Errorf("vk-firkin is not signed with the entitlement %s", entitlement)
	}
	return nil
}

// judgeBuild tells what is wrong with how a program was built.
func judgeBuild(info *debug.BuildInfo, goos, arch string) error {
	var errs []error
	settings := map[string]string{}
	for _, s := range info.Settings {
		settings[s.Key] = s.Value
	}
	if settings["GOOS"] != goos || settings["GOARCH"] != arch {
		errs = append(errs, fmt.Errorf("vk-firkin is for %s/%s", settings["GOOS"], settings["GOARCH"]))
	}
	if settings["-tags"] != "" {
		errs = append(errs, fmt.Errorf("vk-firkin was built with tags: %s", settings["-tags"]))
	}
	if settings["-trimpath"] != "true" {
		errs = append(errs, errors.New("vk-firkin was built without -trimpath: it has paths of the host that built it"))
	}
	switch cgo := settings["CGO_ENABLED"] == "1"; {
	case goos == "darwin" && !cgo:
		errs = append(errs, errors.New("vk-firkin for a Mac was built without cgo: it has no driver"))
	case goos != "darwin" && cgo:
		errs = append(errs, errors.New("vk-firkin was built with cgo: it needs the C library of the host that built it"))
	}
	return errors.Join(errs...)
}

// bill is what is read of a CycloneDX document.
type bill struct {
	BOMFormat string `json:"bomFormat"`
	Metadata  struct {
		Component  struct{ Version string }
		Properties []struct{ Name, Value string }
	} `json:"metadata"`
	Components []struct {
		PURL string `json:"purl"`
	} `json:"components"`
}

// checkBill checks that a bill of materials is of this program and has all that is linked into it, and no more.
func checkBill(path, version, program string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var b bill
	if err := json.Unmarshal(text, &b); err != nil || b.BOMFormat != "CycloneDX" {
		return fmt.Errorf("%s is no bill of materials: %w", filepath.Base(path), err)
	}
	info, err := buildinfo.ReadFile(program)
	if err != nil {
		return err
	}
	sum, err := digest(program)
	if err != nil {
		return err
	}
	if err := judgeBill(b, version, sum, info); err != nil {
		return fmt.Errorf("%s: %w", filepath.Base(path), err)
	}
	return nil
}

func judgeBill(b bill, version, sum string, info *debug.BuildInfo) error {
	var errs []error
	if b.Metadata.Component.Version != version {
		errs = append(errs, fmt.Errorf("it is of version %q", b.Metadata.Component.Version))
	}
	if !slices.ContainsFunc(b.Metadata.Properties, func(p struct{ Name, Value string }) bool {
		return p.Name == "cdx:gomod:binary:hash:SHA-256" && p.Value == sum
	}) {
		errs = append(errs, errors.New("it is of another program"))
	}
	listed := map[string]bool{}
	for _, c := range b.Components {
		name, _, _ := strings.Cut(strings.TrimPrefix(c.PURL, "pkg:golang/"), "?")
		name, err := url.PathUnescape(name)
		if err != nil {
			errs = append(errs, err)
		}
		listed[name] = true
	}
	for _, m := range info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		name := m.Path + "@" + m.Version
		if !listed[name] {
			errs = append(errs, fmt.Errorf("%s is linked, and not in it", name))
		}
		delete(listed, name)
	}
	for name := range listed {
		if !strings.HasPrefix(name, "std@") {
			errs = append(errs, fmt.Errorf("%s is in it, and not linked", name))
		}
	}
	return errors.Join(errs...)
}

// tryOut unpacks an archive as a user would, in an empty folder, and asks the program for its version and what it
// thinks of the host.
func (r release) tryOut(ctx context.Context, archive string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	archive, err := filepath.Abs(archive)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "release-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if out, err := exec.CommandContext(ctx, "tar", "-C", dir, "-xzf", archive).CombinedOutput(); err != nil {
		return fmt.Errorf("tar: %w: %s", err, out)
	}
	run := func(args ...string) (string, error) {
		cmd := exec.CommandContext(ctx, filepath.Join("bin", "vk-firkin"), args...)
		cmd.Dir = filepath.Join(dir, strings.TrimSuffix(filepath.Base(archive), ".tar.gz"))
		cmd.Path = filepath.Join(cmd.Dir, "bin", "vk-firkin")
		// Nothing of this user's: a new one has none.
		cmd.Env = []string{"HOME=" + dir, "PATH=" + os.Getenv("PATH"), "TMPDIR=" + os.Getenv("TMPDIR")}
		out, err := cmd.Output()
		return string(out), err
	}
	out, err := run("version")
	if want := fmt.Sprintf("vk-firkin %s ", r.version); err != nil || !strings.HasPrefix(out, want) || !strings.HasSuffix(out, fmt.Sprintf(" %s/%s\n", runtime.GOOS, runtime.GOARCH)) {
		return fmt.Errorf("vk-firkin version: %w: %q, want %q", err, out, want)
	}
	// Whether this host has a hypervisor is not the archive's fault: only what is in it counts.
	out, err = run("doctor", "--skip-boot", "-o", "json")
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return fmt.Errorf("vk-firkin doctor: %w", err)
	}
	return judgeDoctor([]byte(out))
}

// judgeDoctor reads what `vk-firkin doctor -o json` says of the guest kit.
func judgeDoctor(out []byte) error {
	var findings []struct{ Name, Status, Found string }
	if err := json.Unmarshal(out, &findings); err != nil {
		return fmt.Errorf("vk-firkin doctor says no JSON: %w: %.200s", err, out)
	}
	for _, f := range findings {
		if f.Name == "guest kit" {
			if !strings.EqualFold(f.Status, "ok") {
				return fmt.Errorf("vk-firkin doctor says of the guest kit: %s: %s", f.Status, f.Found)
			}
			return nil
		}
	}
	return fmt.Errorf("vk-firkin doctor says nothing of the guest kit: %.200s", out)
}
