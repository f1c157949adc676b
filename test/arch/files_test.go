// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package arch

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const header = "// Copyright The vk-firkin Authors\n// SPDX-License-Identifier: Apache-2.0\n"

// maxLines is where a file has a second reason to change. Style asks for about
// 500; the margin keeps the test from being a formatter.
const maxLines = 600

func TestFiles(t *testing.T) {
	documented := map[string]bool{}
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name := d.Name(); name != ".." && strings.HasPrefix(name, ".") || name == "bin" || name == "testdata" {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, ".go") {
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		if ast.IsGenerated(file) {
			// Generated packages are documented by what they are generated from.
			documented[filepath.Dir(path)] = true
			return nil
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		source := string(content)
		if !strings.HasPrefix(source, header) {
			t.Errorf("%s does not begin with the licence header", path)
		}
		if n := strings.Count(source, "\n"); n > maxLines {
			t.Errorf("%s has %d lines, want at most %d: split it by reason to change", path, n, maxLines)
		}
		if !strings.HasSuffix(path, "_test.go") {
			dir := filepath.Dir(path)
			documented[dir] = documented[dir] || file.Doc != nil && !strings.HasPrefix(file.Doc.Text(), "Copyright")
		}
		for _, banned := range []string{"util", "utils", "common", "helpers", "misc", "pkg"} {
			if file.Name.Name == banned {
				t.Errorf("%s: package %q is not named for what it provides", path, banned)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for dir, ok := range documented {
		if !ok {
			t.Errorf("package in %s has no doc comment", dir)
		}
	}
}
