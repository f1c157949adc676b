// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Command taggedpackages prints the packages that have test files behind a build
// tag, so that a tagged run does not repeat every untagged test of the repository.
//
//	go run ./hack/taggedpackages machines
package main

import (
	"fmt"
	"go/build/constraint"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: taggedpackages TAG")
		os.Exit(2)
	}
	packages, err := find(".", os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(strings.Join(packages, " "))
}

// find returns the folders below root, as ./path, that hold a test file whose build
// constraint is true with the tag and false without it. Modules of their own and
// folders that go ignores are left out.
func find(root, tag string) ([]string, error) {
	found := map[string]bool{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			name := d.Name()
			if path != root && (strings.HasPrefix(name, ".") || strings.HasPrefix(name, "_") || name == "testdata" || name == "bin") {
				return fs.SkipDir
			}
			if _, err := os.Stat(filepath.Join(path, "go.mod")); err == nil && path != root {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, "_test.go") {
			return nil
		}
		source, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if needsTag(string(source), tag) {
			found["./"+filepath.ToSlash(filepath.Dir(path))] = true
		}
		return nil
	})
	packages := make([]string, 0, len(found))
	for p := range found {
		packages = append(packages, p)
	}
	sort.Strings(packages)
	return packages, err
}

func needsTag(source, tag string) bool {
	for line := range strings.Lines(source) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "package ") {
			return false
		}
		if !constraint.IsGoBuild(line) {
			continue
		}
		expr, err := constraint.Parse(line)
		if err != nil {
			return false
		}
		with := expr.Eval(func(t string) bool { return t == tag || t == "linux" || t == "unix" })
		without := expr.Eval(func(t string) bool { return t == "linux" || t == "unix" })
		return with && !without
	}
	return false
}
