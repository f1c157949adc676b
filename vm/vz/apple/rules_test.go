// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package apple

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"slices"
	"strings"
	"testing"
)

const (
	bindingFile = "apple_darwin.go"
	maxLines    = 400
)

// TestBindingIsThin holds the one file that no test here can run on the framework to
// the rules of bindingFaults. Nothing in them needs a Mac: they read the source.
func TestBindingIsThin(t *testing.T) {
	for _, fault := range bindingFaults(t, source(t)) {
		t.Error(fault)
	}
}

// TestBindingRulesCatch breaks each rule once.
func TestBindingRulesCatch(t *testing.T) {
	const stop = "	if m.machine.CanStop() {\n		return m.Stop()\n	}\n"
	for _, plant := range []struct{ name, right, wrong, fault string }{
		{"length", "package apple\n", "package apple\n" + strings.Repeat("\n", maxLines), "lines"},
		{"import", `"syscall"`, "\"syscall\"\n\t\"time\"", `import of "time"`},
		{"retry", stop, "	for {\n	}\n", "for loop"},
		{"loop over something else", "range cfg.Disks", "range 3", "range over 3"},
		{"switch", stop, "	switch {\n	}\n", "switch"},
		{"select", stop, "	select {}\n", "select"},
		{"else", stop, strings.TrimSuffix(stop, "\n") + " else {\n		return nil\n	}\n", "else"},
		{"defer", stop, "	defer m.Stop()\n", "defer"},
		{"decision on a state", stop, "	if m.State() == framework.StateRunning {\n		return m.Stop()\n	}\n", "if m.State() == framework.StateRunning"},
		{"decision on the configuration", "	caching := guests[cfg.GuestOS].caching\n", "	caching := guests[cfg.GuestOS].caching\n	if cfg.Entropy {\n		caching = vz.DiskImageCachingModeUncached\n	}\n", "if cfg.Entropy"},
		{"arithmetic", "cfg.CPUs, cfg.MemoryBytes", "cfg.CPUs, cfg.MemoryBytes + 1", "operator +"},
		{"goroutine", "	machines.Store(m, nil)\n", "	machines.Store(m, nil)\n	go m.Start()\n", "go m.Start()"},
		{"closure", "	machines.Store(m, nil)\n", "	machines.Store(m, func() {})\n", "function literal"},
		{"send", "	machines.Store(m, nil)\n", "	m.changes <- 0\n", "send"},
		{"receive", "	machines.Store(m, nil)\n", "	<-m.changes\n", "operator <-"},
	} {
		t.Run(plant.name, func(t *testing.T) {
			original := source(t)
			if n := strings.Count(original, plant.right); n != 1 {
				t.Fatalf("%q occurs %d times in the binding, want once: change this test with it", plant.right, n)
			}
			faults := bindingFaults(t, strings.Replace(original, plant.right, plant.wrong, 1))
			if !slices.ContainsFunc(faults, func(f string) bool { return strings.Contains(f, plant.fault) }) {
				t.Errorf("no fault with %q in %q", plant.fault, faults)
			}
		})
	}
}

// TestOneToOne compares which of the framework's calls each method makes. A method that
// makes more than one says why here.
func TestOneToOne(t *testing.T) {
	want := map[string][]string{
		"Changes":     nil, // forward feeds it
		"State":       {"State"},
		"Start":       {"Start"},
		"Pause":       {"Pause"},
		"Resume":      {"Resume"},
		"RequestStop": {"RequestStop"},
		"Stop":        {"Stop"},
		"Save":        {"SaveMachineStateToPath"},
		"Restore":     {"RestoreMachineStateFromURL"},
		// The first call is of the same version of macOS and has no other use.
		"SaveRestoreSupport": {"NewMacKeyboardConfiguration", "ValidateSaveRestoreSupport"},
		// A machine has one socket device.
		"Connect": {"SocketDevices", "Connect"},
		// The framework's own condition for its call.
		"Close": {"CanStop"},
	}
	got := map[string][]string{}
	for _, decl := range parse(t, source(t)).Decls {
		fn, ok := decl.(*ast.FuncDecl)
		if !ok || fn.Recv == nil || receiver(fn) != "machine" {
			continue
		}
		got[fn.Name.Name] = nil
		ast.Inspect(fn.Body, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			selector, ok := call.Fun.(*ast.SelectorExpr)
			if ok && slices.Contains([]string{"m.machine", "m.config", "sockets[0]", "vz"}, text(selector.X)) {
				got[fn.Name.Name] = append(got[fn.Name.Name], selector.Sel.Name)
			}
			return true
		})
	}
	for name, calls := range got {
		if wanted, ok := want[name]; !ok || !slices.Equal(calls, wanted) {
			t.Errorf("%s calls %v, want %v", name, calls, wanted)
		}
	}
	for name := range want {
		if _, ok := got[name]; !ok {
			t.Errorf("no method %s", name)
		}
	}
}

// TestStatesByName compares the names on both sides of the table of states.
func TestStatesByName(t *testing.T) {
	rows := 0
	ast.Inspect(parse(t, source(t)), func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok || spec.Names[0].Name != "states" {
			return true
		}
		for _, element := range spec.Values[0].(*ast.CompositeLit).Elts {
			row := element.(*ast.KeyValueExpr)
			theirs, ours := strings.TrimPrefix(text(row.Key), "vz.VirtualMachineState"), strings.TrimPrefix(text(row.Value), "framework.State")
			if theirs != ours {
				t.Errorf("%s is translated to %s", theirs, ours)
			}
			rows++
		}
		return false
	})
	if rows != 10 {
		t.Errorf("%d states are translated, want the framework's 10", rows)
	}
}

func source(t *testing.T) string {
	t.Helper()
	content, err := os.ReadFile(bindingFile)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

func parse(t *testing.T, source string) *ast.File {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), bindingFile, source, 0)
	if err != nil {
		t.Fatal(err)
	}
	return file
}

func receiver(fn *ast.FuncDecl) string {
	return strings.TrimPrefix(text(fn.Recv.List[0].Type), "*")
}

// lines counts as wc does.
func lines(source string) int { return strings.Count(source, "\n") }
