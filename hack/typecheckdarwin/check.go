// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/scanner"
	"go/token"
	"go/types"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
)

// checker type-checks packages in the order of their dependencies, as many at a time as
// there are processors.
type checker struct {
	packages []*listed
	files    *token.FileSet
	limit    chan struct{}
	// results has one entry for each package, by import path. The map does not change;
	// an entry is read after its done is closed.
	results map[string]*result
}

type result struct {
	done   chan struct{}
	types  *types.Package
	cgo    bool
	faults []string
}

// errUnlisted is of a package that go list did not tell of, or not in time.
var errUnlisted = errors.New("not among the packages that go list found before")

func newChecker(packages []*listed) *checker {
	c := &checker{
		packages: packages, files: token.NewFileSet(), limit: make(chan struct{}, runtime.GOMAXPROCS(0)),
		results: map[string]*result{"unsafe": {done: make(chan struct{}), types: types.Unsafe}},
	}
	close(c.results["unsafe"].done)
	for _, p := range packages {
		if p.ImportPath != "unsafe" {
			c.results[p.ImportPath] = &result{done: make(chan struct{}), cgo: len(p.CgoFiles) > 0}
		}
	}
	return c
}

// all checks every package and returns the faults in the packages' order.
func (c *checker) all() []string {
	earlier := map[string]bool{}
	for _, p := range c.packages {
		if p.ImportPath == "unsafe" {
			continue
		}
		// Only a cycle has a dependency that is listed later. Nobody waits in it: its
		// packages are faults already, and find each other missing.
		var deps []*result
		for _, path := range p.Imports {
			if path = p.imported(path); earlier[path] {
				deps = append(deps, c.results[path])
			}
		}
		earlier[p.ImportPath] = true
		go func() {
			r := c.results[p.ImportPath]
			defer close(r.done)
			for _, dep := range deps {
				<-dep.done
			}
			c.limit <- struct{}{}
			defer func() { <-c.limit }()
			r.types, r.faults = c.check(p, nil)
		}()
	}
	var faults []string
	seen := map[string]bool{}
	for _, p := range c.packages {
		r := c.results[p.ImportPath]
		<-r.done
		for _, fault := range r.faults {
			// A package and the same package with its tests share most files.
			if !seen[fault] {
				seen[fault] = true
				faults = append(faults, fault)
			}
		}
	}
	return faults
}

// check checks one package whose dependencies are checked. overlay has sources to use
// instead of files, by absolute path.
func (c *checker) check(p *listed, overlay map[string][]byte) (*types.Package, []string) {
	var faults []string
	if p.Error != nil {
		faults = append(faults, strings.TrimPrefix(p.Error.Pos+": "+strings.TrimSpace(p.Error.Err), ": "))
	}
	if p.ours() && len(p.CgoFiles) > 0 {
		faults = append(faults, fmt.Sprintf("%s: uses cgo itself, which cannot be checked without Apple's compiler", p.ImportPath))
	}
	var syntax []*ast.File
	for _, name := range slices.Concat(p.GoFiles, p.CgoFiles) {
		path := filepath.Join(p.Dir, name)
		var source any
		if replaced, ok := overlay[path]; ok {
			source = replaced
		}
		file, err := parser.ParseFile(c.files, path, source, parser.SkipObjectResolution)
		if err != nil {
			faults = append(faults, syntaxFaults(err)...)
		}
		if file != nil {
			syntax = append(syntax, file)
		}
	}
	info := &types.Info{}
	if p.ours() {
		info.Uses = map[*ast.Ident]types.Object{}
	}
	config := types.Config{
		FakeImportC:      true,
		IgnoreFuncBodies: !p.bodies(),
		Sizes:            types.SizesFor("gc", goarch),
		GoVersion:        p.goVersion(),
		Importer:         importer(func(path string) (*types.Package, error) { return c.imported(p, path) }),
		Error: func(err error) {
			var fault types.Error
			if errors.As(err, &fault) {
				faults = append(faults, c.at(fault.Pos, fault.Msg))
				return
			}
			faults = append(faults, fmt.Sprintf("%s: %v", p.ImportPath, err))
		},
	}
	// The error is the first of those that config.Error was told.
	pkg, _ := config.Check(p.path(), c.files, syntax, info)
	return pkg, append(faults, c.hidden(info.Uses)...)
}

// hidden are the uses of declarations whose types FakeImportC has hidden.
func (c *checker) hidden(uses map[*ast.Ident]types.Object) []string {
	known := map[types.Object]bool{}
	var faults []string
	for ident, object := range uses {
		if object.Pkg() == nil {
			continue
		}
		r := c.results[object.Pkg().Path()]
		if r == nil || !r.cgo {
			continue
		}
		bad, ok := known[object]
		if !ok {
			bad = strings.Contains(types.ObjectString(object, nil), types.Typ[types.Invalid].Name())
			known[object] = bad
		}
		if bad {
			faults = append(faults, c.at(ident.Pos(), fmt.Sprintf("%s mentions a C type, so its use is not checked", object.Name())))
		}
	}
	slices.Sort(faults)
	return faults
}

func (c *checker) imported(by *listed, path string) (*types.Package, error) {
	r := c.results[by.imported(path)]
	if r == nil {
		return nil, errUnlisted
	}
	select {
	case <-r.done:
	default:
		return nil, errUnlisted
	}
	if r.types == nil {
		return nil, errUnlisted
	}
	return r.types, nil
}

func (c *checker) at(pos token.Pos, message string) string {
	return fmt.Sprintf("%s: %s", relative(c.files.Position(pos)), message)
}

func (c *checker) count() (ours, dependencies int) {
	for _, p := range c.packages {
		switch {
		case p.ForTest != "":
		case p.ours():
			ours++
		default:
			dependencies++
		}
	}
	return ours, dependencies
}

func syntaxFaults(err error) []string {
	var several scanner.ErrorList
	if !errors.As(err, &several) {
		return []string{err.Error()}
	}
	faults := make([]string, 0, len(several))
	for _, fault := range several {
		faults = append(faults, fmt.Sprintf("%s: %s", relative(fault.Pos), fault.Msg))
	}
	return faults
}

var workingDir = sync.OnceValue(func() string {
	dir, err := os.Getwd()
	if err != nil {
		return ""
	}
	return dir
})

// relative is how compilers write a position.
func relative(at token.Position) string {
	if path, err := filepath.Rel(workingDir(), at.Filename); err == nil && len(path) < len(at.Filename) {
		at.Filename = path
	}
	return at.String()
}

type importer func(path string) (*types.Package, error)

// Import is types.Importer.
func (i importer) Import(path string) (*types.Package, error) { return i(path) }
