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

// matrix is a kind of table, in a document, that tells what proves it.
type matrix struct {
	document string
	// head is how its first line begins.
	head string
	// last: only the last column is proof, else all but the first.
	last bool
}

var (
	crashMatrix  = matrix{document: "docs/recovery.md", head: "| Who dies |"}
	threatMatrix = matrix{document: "docs/security.md", head: "| What it may try |", last: true}
)

var (
	testName     = regexp.MustCompile("`((?:Test|Fuzz)[A-Za-z0-9_]+)`")
	testFunction = regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)[A-Za-z0-9_]+)\(`)
)

// notProven is what a cell says that no test proves.
const notProven = "not proven"

// faults finds what is wrong with such tables: a cell that names no test, and does not admit it, and
// a test that there is not, also in the rest of the document. Other tables are none of it. Pure.
func (m matrix) faults(document string, tests map[string]bool) (faults []string, cells int) {
	inside := false
	for line := range strings.Lines(document) {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "|") {
			inside = false
			continue
		}
		columns := strings.Split(strings.Trim(line, "|"), "|")
		switch {
		case strings.HasPrefix(line, m.head):
			inside = true
			continue
		case !inside || strings.HasPrefix(line, "|---"):
			continue
		}
		who := strings.TrimSpace(columns[0])
		proof := columns[1:]
		if m.last && len(proof) > 0 {
			proof = proof[len(proof)-1:]
		}
		for _, c := range proof {
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
func TestCrashMatrix(t *testing.T) { crashMatrix.check(t) }

// TestThreatMatrix keeps docs/security.md from it: whatever stops an adversary, a test shows it, or
// the page says that none does.
func TestThreatMatrix(t *testing.T) { threatMatrix.check(t) }

func (m matrix) check(t *testing.T) {
	t.Helper()
	document, err := os.ReadFile(filepath.Join("../..", m.document))
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
	faults, cells := m.faults(string(document), tests)
	for _, f := range faults {
		t.Errorf("%s: %s", m.document, f)
	}
	if cells == 0 {
		t.Errorf("%s has no table that begins with %q", m.document, m.head)
	}
}

func TestThreatMatrixFaults(t *testing.T) {
	const head = "| What it may try | What stops it | Shown by |\n|---|---|---|\n"
	faults, cells := threatMatrix.faults(head+"| a | b | `TestThere`, `FuzzGone` |\n| c | d | not proven: needs a Mac |\n| e | `TestThere` | f |\n", map[string]bool{"TestThere": true})
	if want := []string{`e: no test is named in "f"`, "FuzzGone: there is no such test"}; cells != 3 || !slices.Equal(faults, want) {
		t.Errorf("found %q in %d cells, want %q in 3", faults, cells, want)
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
			got, cells := crashMatrix.faults(tc.document, tests)
			if !slices.Equal(got, tc.want) || cells != tc.cells {
				t.Errorf("found %q in %d cells, want %q in %d", got, cells, tc.want, tc.cells)
			}
		})
	}
}
