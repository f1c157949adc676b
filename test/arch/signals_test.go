// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package arch

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// bySignal are calls that mean a process by its number alone, which may be another one by
// the time that the signal arrives.
var bySignal = []string{"syscall.Kill", "unix.Kill", "unix.PidfdSendSignal", "unix.Tgkill", "os.FindProcess"}

// TestSignals: on the host a process is signalled by way of vm/process, which knows it by its
// start and its program, or as a child of one's own that was not reaped, which
// nothing can take the number of. Guests' agents signal within their own machine.
func TestSignals(t *testing.T) {
	found := 0
	for _, root := range []string{"cmd", "provider", "warmpool", "vm", "crds"} {
		err := filepath.WalkDir(filepath.Join("../..", root), func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			rel, err := filepath.Rel("../..", path)
			if err != nil {
				return err
			}
			if d.IsDir() {
				if slices.Contains([]string{"vm/guest/agent", "vm/guest/guesttest", "vm/vz/simulator", "cmd/firkin-agent"}, filepath.ToSlash(rel)) {
					return fs.SkipDir
				}
				return nil
			}
			if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return nil
			}
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
			if err != nil {
				return err
			}
			ast.Inspect(file, func(n ast.Node) bool {
				s, ok := n.(*ast.SelectorExpr)
				if !ok {
					return true
				}
				x, ok := s.X.(*ast.Ident)
				if !ok || !slices.Contains(bySignal, x.Name+"."+s.Sel.Name) {
					return true
				}
				if filepath.ToSlash(filepath.Dir(rel)) == "vm/process" {
					found++
				} else {
					t.Errorf("%s calls %s.%s: use vm/process", rel, x.Name, s.Sel.Name)
				}
				return true
			})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if found == 0 {
		t.Error("not even vm/process signals anything: this test looks for the wrong calls")
	}
}
