// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Command licences fails when a module that is linked into one of our programs has a
// licence that we have not agreed to, or none that can be recognized. It reads the module
// cache and asks nobody.
//
//	go run ./hack/licences ./cmd/...
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/licensecheck"
)

// allowed are licences under which code may be linked into an Apache-2.0 program and given
// to others, with the notices that make release collects: permissive ones, and MPL-2.0,
// which is by file.
var allowed = []string{"Apache-2.0", "MIT", "MIT-0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "MPL-2.0", "Unlicense", "CC0-1.0", "Zlib"}

// enough is the part of a file, in percent, that must be a licence's text for the file to be one.
const enough = 60

// maxLicence bounds a file that is read; the longest licence has 35 KiB.
const maxLicence = 1 << 20

// targets are what is released.
var targets = []string{"linux", "darwin"}

type module struct {
	Path, Version, Dir string
	Main               bool
}

func main() {
	notices := flag.String("notices", "", "write all licences' texts to this file")
	flag.Parse()
	if err := run(os.Stdout, *notices, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "licences:", err)
		os.Exit(1)
	}
}

func run(out io.Writer, notices string, patterns []string) error {
	modules, err := linked(patterns)
	if err != nil {
		return err
	}
	var errs []error
	var texts bytes.Buffer
	for _, m := range modules {
		files, err := licenceFiles(m.Dir)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", m.Path, err))
			continue
		}
		found, faults := judge(files)
		for _, f := range faults {
			errs = append(errs, fmt.Errorf("%s@%s: %s", m.Path, m.Version, f))
		}
		fmt.Fprintf(out, "%-60s %-12s %s\n", m.Path, m.Version, strings.Join(found, ", "))
		for _, name := range sorted(files) {
			fmt.Fprintf(&texts, "== %s %s: %s\n\n%s\n\n", m.Path, m.Version, name, bytes.TrimSpace(files[name]))
		}
	}
	if notices != "" {
		errs = append(errs, os.WriteFile(notices, texts.Bytes(), 0o644)) //nolint:gosec // it is given to everybody
	}
	return errors.Join(errs...)
}

// judge is which licences files are, and what is wrong with them. Pure.
func judge(files map[string][]byte) (found, faults []string) {
	for _, name := range sorted(files) {
		c := licensecheck.Scan(files[name])
		if c.Percent < enough {
			if strings.HasPrefix(strings.ToUpper(name), "NOTICE") {
				continue // it is none
			}
			faults = append(faults, fmt.Sprintf("%s is no licence that is known (%.0f %% of it is)", name, c.Percent))
			continue
		}
		for _, m := range c.Match {
			if !slices.Contains(found, m.ID) {
				found = append(found, m.ID)
			}
			if !slices.Contains(allowed, m.ID) {
				faults = append(faults, fmt.Sprintf("%s is %s, which nobody has agreed to", name, m.ID))
			}
		}
	}
	if len(found) == 0 && len(faults) == 0 {
		faults = append(faults, "it has no licence")
	}
	return found, faults
}

func sorted(files map[string][]byte) []string {
	var names []string
	for name := range files {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// licenceFiles are the files in a module's folder that are named like a licence of its code.
// PATENTS grants something besides, and what ends in .docs is about texts.
func licenceFiles(dir string) (map[string][]byte, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	files := map[string][]byte{}
	for _, e := range entries {
		name := strings.ToUpper(e.Name())
		if !e.Type().IsRegular() || strings.HasSuffix(name, ".GO") || strings.HasSuffix(name, ".DOCS") || !slices.ContainsFunc([]string{"LICENSE", "LICENCE", "COPYING", "NOTICE", "UNLICENSE"}, func(p string) bool { return strings.HasPrefix(name, p) }) {
			continue
		}
		f, err := os.Open(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, err
		}
		data, err := io.ReadAll(io.LimitReader(f, maxLicence))
		f.Close()
		if err != nil {
			return nil, err
		}
		files[e.Name()] = data
	}
	return files, nil
}

// linked are the modules of other people that packages are made of, on any target.
func linked(patterns []string) ([]module, error) {
	all := map[string]module{}
	for _, goos := range targets {
		cmd := exec.Command("go", append([]string{"list", "-deps", "-json=Module"}, patterns...)...) //nolint:gosec // of the Makefile
		// With cgo a Mac has the binding of its framework; listing needs no compiler.
		cmd.Env = append(os.Environ(), "GOOS="+goos, "GOARCH=arm64", "CGO_ENABLED=1")
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			return nil, fmt.Errorf("go list for %s: %w\n%s", goos, err, stderr.String())
		}
		for dec := json.NewDecoder(bytes.NewReader(out)); ; {
			var p struct{ Module *module }
			if err := dec.Decode(&p); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				return nil, fmt.Errorf("decode go list: %w", err)
			}
			if p.Module != nil && !p.Module.Main {
				all[p.Module.Path] = *p.Module
			}
		}
	}
	if len(all) == 0 {
		return nil, errors.New("nothing is linked: wrong packages?")
	}
	var list []module
	for _, m := range all {
		list = append(list, m)
	}
	slices.SortFunc(list, func(x, y module) int { return strings.Compare(x.Path, y.Path) })
	return list, nil
}
