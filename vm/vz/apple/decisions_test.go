// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package apple

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/printer"
	"go/token"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// imports are what translating takes. Clocks, contexts, locks and processes are not
// among them.
var imports = []string{
	"bytes", "errors", "fmt", "net", "os", "sync", "syscall",
	"github.com/Code-Hex/vz/v3", "github.com/vk-firkin/vk-firkin/vm/vz/framework",
}

// ranges are what may be gone through: the configuration's lists, the table of devices,
// and forward's channel.
var ranges = []string{"devices", "cfg.Disks", "from"}

// bindingFaults says where the binding decides something, as far as its source shows it.
//
// A decision is a choice between two things to do with a machine. So there is no loop
// but over the lists named in ranges, no switch, select, else, defer, function literal
// or operator outside of a condition, no goroutine but forward and no send but its. A
// condition may be one of four:
//
//   - whether there is an error, which one, and whether a table has a row for a value:
//     the translation itself;
//   - a question that the framework answers about itself (CanStop);
//   - a guard: whatever it tests, all that it does is refuse the configuration;
//   - an optional device: a test of the configuration alone, in one of the functions
//     that set a device, that sets none.
func bindingFaults(t *testing.T, source string) []string {
	t.Helper()
	var faults []string
	if n := lines(source); n >= maxLines {
		faults = append(faults, fmt.Sprintf("%d lines, want less than %d", n, maxLines))
	}
	file := parse(t, source)
	for _, spec := range file.Imports {
		if path, err := strconv.Unquote(spec.Path.Value); err != nil || !slices.Contains(imports, path) {
			faults = append(faults, fmt.Sprintf("import of %s", spec.Path.Value))
		}
	}
	for _, decl := range file.Decls {
		name := ""
		if fn, ok := decl.(*ast.FuncDecl); ok {
			name = fn.Name.Name
		}
		faults = append(faults, decisions(name, decl)...)
	}
	return faults
}

func decisions(function string, decl ast.Decl) []string {
	var faults []string
	fault := func(format string, args ...any) {
		faults = append(faults, fmt.Sprintf("%s: ", function)+fmt.Sprintf(format, args...))
	}
	conditions := map[ast.Node]bool{}
	ast.Inspect(decl, func(n ast.Node) bool {
		if conditions[n] {
			return false
		}
		switch n := n.(type) {
		case *ast.IfStmt:
			if n.Else != nil {
				fault("else of if %s", text(n.Cond))
			}
			if !translates(n) && !refuses(n) && !optional(function, n) {
				fault("if %s", text(n.Cond))
			}
			conditions[n.Cond] = true
		case *ast.RangeStmt:
			if !slices.Contains(ranges, text(n.X)) {
				fault("range over %s", text(n.X))
			}
		case *ast.ForStmt:
			fault("for loop")
		case *ast.SwitchStmt, *ast.TypeSwitchStmt:
			fault("switch")
		case *ast.SelectStmt:
			fault("select")
		case *ast.DeferStmt:
			fault("defer")
		case *ast.BranchStmt:
			fault("%s", n.Tok)
		case *ast.FuncLit:
			fault("function literal")
		case *ast.GoStmt:
			if text(n.Call.Fun) != "forward" {
				fault("go %s", text(n.Call))
			}
		case *ast.SendStmt:
			if function != "forward" {
				fault("send to %s", text(n.Chan))
			}
		case *ast.BinaryExpr:
			// Type sets are written with an operator too; the binding has none.
			fault("operator %s", n.Op)
		case *ast.UnaryExpr:
			if n.Op != token.AND {
				fault("operator %s", n.Op)
			}
		}
		return true
	})
	return faults
}

// translates: the condition asks about errors, tables, and the framework's answers only.
func translates(n *ast.IfStmt) bool {
	for _, leaf := range leaves(n.Cond) {
		s := text(leaf)
		switch {
		case s == "err != nil", s == "err == nil":
		case s == "known", s == "yes":
		case strings.HasPrefix(s, "errors.As(err, "), strings.HasPrefix(s, "errors.Is(err, "):
		case strings.HasPrefix(s, "fault.Domain == \""), s == "noListener[fault.Code]":
		case strings.HasPrefix(s, "m.machine.Can") && strings.HasSuffix(s, "()"):
		default:
			return false
		}
	}
	return true
}

// refuses: the body is one return of a refused configuration.
func refuses(n *ast.IfStmt) bool {
	result := onlyReturn(n)
	return len(result) > 0 && strings.HasPrefix(text(result[len(result)-1]), "invalid(")
}

// optional: the configuration has no such device, so none is set.
func optional(function string, n *ast.IfStmt) bool {
	result := onlyReturn(n)
	if !strings.HasPrefix(function, "set") || len(result) != 1 || text(result[0]) != "nil" {
		return false
	}
	for _, leaf := range leaves(n.Cond) {
		s := strings.TrimSuffix(text(leaf), " == nil")
		if field, ok := strings.CutPrefix(s, "cfg."); !ok || !token.IsIdentifier(field) {
			return false
		}
	}
	return true
}

func onlyReturn(n *ast.IfStmt) []ast.Expr {
	if len(n.Body.List) != 1 {
		return nil
	}
	if ret, ok := n.Body.List[0].(*ast.ReturnStmt); ok {
		return ret.Results
	}
	return nil
}

// leaves are what a condition combines.
func leaves(cond ast.Expr) []ast.Expr {
	switch cond := cond.(type) {
	case *ast.ParenExpr:
		return leaves(cond.X)
	case *ast.UnaryExpr:
		if cond.Op == token.NOT {
			return leaves(cond.X)
		}
	case *ast.BinaryExpr:
		if cond.Op == token.LAND || cond.Op == token.LOR {
			return append(leaves(cond.X), leaves(cond.Y)...)
		}
	}
	return []ast.Expr{cond}
}

func text(n ast.Node) string {
	var b bytes.Buffer
	if err := printer.Fprint(&b, token.NewFileSet(), n); err != nil {
		return err.Error()
	}
	return b.String()
}
