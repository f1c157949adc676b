// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
)

const (
	goos   = "darwin"
	goarch = "arm64"
)

// listing is what to ask the go command for.
type listing struct {
	dir      string
	patterns []string
	tags     string
	tests    bool
}

// listed is a package as the go command sees it. With tests, a package appears once
// more for each test binary that changes it, as "path [test binary]".
type listed struct {
	ImportPath string
	Name       string
	Dir        string
	ForTest    string
	Standard   bool
	Module     *struct {
		Main      bool
		GoVersion string
	}
	GoFiles, CgoFiles []string
	Imports           []string
	ImportMap         map[string]string
	Error             *struct {
		Pos string
		Err string
	}
}

// list returns the packages, each after those that it depends on. The go command reads
// build constraints as in a build with cgo; it runs no C compiler for that, and the one
// named here would fail.
func list(ctx context.Context, what listing) ([]*listed, error) {
	args := []string{"list", "-e", "-deps", "-tags", what.tags, "-json=ImportPath,Name,Dir,ForTest,Standard,Module,GoFiles,CgoFiles,Imports,ImportMap,Error"}
	if what.tests {
		args = append(args, "-test")
	}
	cmd := exec.CommandContext(ctx, "go", append(args, what.patterns...)...)
	cmd.Dir = what.dir
	cmd.Env = append(os.Environ(), "GOOS="+goos, "GOARCH="+goarch, "CGO_ENABLED=1", "CC=no-compiler-for-darwin")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w\n%s", err, stderr.Bytes())
	}
	var packages []*listed
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		p := new(listed)
		if err := dec.Decode(p); errors.Is(err, io.EOF) {
			return packages, nil
		} else if err != nil {
			return nil, fmt.Errorf("decode go list: %w", err)
		}
		if !p.testMain() {
			packages = append(packages, p)
		}
	}
}

// testMain tells the main packages that the go command writes around tests.
func (p *listed) testMain() bool {
	return p.Name == "main" && strings.HasSuffix(p.ImportPath, ".test")
}

// path is the path that the package has in the program.
func (p *listed) path() string {
	path, _, _ := strings.Cut(p.ImportPath, " ")
	return path
}

func (p *listed) ours() bool { return p.Module != nil && p.Module.Main }

// bodies tells whether function bodies are to be checked. Those of dependencies are
// their authors' business, and those of a package that is built again because a test
// changes one of its dependencies were checked when it was built the first time.
func (p *listed) bodies() bool {
	return p.ours() && (p.ForTest == "" || p.path() == p.ForTest || p.path() == p.ForTest+"_test")
}

func (p *listed) goVersion() string {
	if p.Module == nil || p.Module.GoVersion == "" {
		return ""
	}
	return "go" + p.Module.GoVersion
}

// imported is the package that an import declaration means.
func (p *listed) imported(path string) string {
	if mapped, ok := p.ImportMap[path]; ok {
		return mapped
	}
	return path
}
