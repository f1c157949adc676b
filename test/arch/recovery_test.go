// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package arch

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// crashMatrix is the document whose tables tell what proves them.
const crashMatrix = "../../docs/recovery.md"

var (
	testName     = regexp.MustCompile("`(Test[A-Za-z0-9_]+)`")
	testFunction = regexp.MustCompile(`(?m)^func (Test[A-Za-z0-9_]+)\(`)
)

// notProven is what a cell says that no test proves.
const notProven = "not proven"

// matrixFaults finds what is wrong with the crash matrix: a cell that names no test, and does not
// admit it, and a test that there is not. Tables whose last column is no proof are none of it.
// Pure.
func matrixFaults(document string, tests map[string]bool) (faults []string, cells int) {
	matrix := false
	for line := range strings.Lines(document) {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "|") {
			matrix = false
			continue
		}
		columns := strings.Split(strings.Trim(line, "|"), "|")
		switch {
		case strings.HasPrefix(line, "| Who dies |"):
			matrix = true
			continue
		case !matrix || strings.HasPrefix(line, "|---"):
			continue
		}
		who := strings.TrimSpace(columns[0])
		for _, c := range columns[1:] {
			cells++
			if !testName.MatchString(c) && !strings.Contains(c, notProven) {
				faults = append(faults, who+": no test is named in \""+strings.TrimSpace(c)+"\"")
			}
		}
	}
	var missing []string
	for _, m := range testName.FindAllStringSubmatch(document, -1) {
		if !tests[m[1]] && !slices.Contains(missing, m[1]) {
			missing = append(missing, m[1])
			faults = append(faults, m[1]+": there is no such test")
		}
	}
	return faults, cells
}

// TestCrashMatrix keeps docs/recovery.md from rotting: each cell names a test that exists.
func TestCrashMatrix(t *testing.T) {
	document, err := os.ReadFile(crashMatrix)
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string]bool{}
	err = filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name := d.Name(); name != ".." && strings.HasPrefix(name, ".") || name == "bin" || name == "testdata" {
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
		for _, m := range testFunction.FindAllSubmatch(source, -1) {
			tests[string(m[1])] = true
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	faults, cells := matrixFaults(string(document), tests)
	for _, f := range faults {
		t.Errorf("docs/recovery.md: %s", f)
	}
	if cells == 0 {
		t.Error("docs/recovery.md has no crash matrix: a table that begins with \"| Who dies |\"")
	}
}

func TestCrashMatrixFaults(t *testing.T) {
	tests := map[string]bool{"TestThere": true}
	const head = "| Who dies | Who notices |\n|---|---|\n"
	for name, tc := range map[string]struct {
		document string
		want     []string
		cells    int
	}{
		"proven":         {document: head + "| node | the next process: `TestThere` |", cells: 1},
		"admitted":       {document: head + "| node | nobody (not proven) |", cells: 1},
		"says nothing":   {document: head + "| node | somebody |", want: []string{`node: no test is named in "somebody"`}, cells: 1},
		"is gone":        {document: head + "| node | `TestGone` |", want: []string{"TestGone: there is no such test"}, cells: 1},
		"another table":  {document: "| a | b |\n|---|---|\n| c | d |\n", cells: 0},
		"gone, in prose": {document: "See `TestGone`.", want: []string{"TestGone: there is no such test"}, cells: 0},
	} {
		t.Run(name, func(t *testing.T) {
			got, cells := matrixFaults(tc.document, tests)
			if !slices.Equal(got, tc.want) || cells != tc.cells {
				t.Errorf("found %q in %d cells, want %q in %d", got, cells, tc.want, tc.cells)
			}
		})
	}
}
