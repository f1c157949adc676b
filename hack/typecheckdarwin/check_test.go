// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const (
	root    = "../.."
	binding = "github.com/vk-firkin/vk-firkin/vm/vz/apple"
	vz      = "github.com/Code-Hex/vz/v3"
)

// TestPlantedCalls checks the binding as it is, against the real vz module, and then
// with one wrong call after another in it. It checks vm/vz/apple and its dependencies
// only, which takes about a second; make typecheck-darwin checks everything.
func TestPlantedCalls(t *testing.T) {
	c := check(t, listing{dir: root, patterns: []string{"./vm/vz/apple"}})
	if faults := c.all(); len(faults) > 0 {
		t.Fatalf("the binding as it is has faults:\n%s", strings.Join(faults, "\n"))
	}
	apple := find(t, c, binding)
	if !slices.Equal(apple.GoFiles, []string{"apple_darwin.go", "doc.go"}) {
		t.Fatalf("checked %v, want the binding and not the file that stands in for it", apple.GoFiles)
	}
	if real := find(t, c, vz); len(real.CgoFiles) == 0 || !strings.HasSuffix(filepath.ToSlash(real.Dir), "vz/v3@v3.7.1") {
		t.Fatalf("checked against %s with %d cgo files, want the module v3.7.1 itself", real.Dir, len(real.CgoFiles))
	}

	path := filepath.Join(apple.Dir, "apple_darwin.go")
	source, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, plant := range []struct{ name, right, wrong, fault string }{
		{
			"argument of another type", "vz.NewVirtualMachineConfiguration(bootLoader, cfg.CPUs,", "vz.NewVirtualMachineConfiguration(bootLoader, int(cfg.CPUs),",
			"cannot use int(cfg.CPUs)",
		},
		{
			"another device in a list", "[]vz.KeyboardConfiguration{keyboard}", "[]vz.KeyboardConfiguration{trackpad}",
			"does not implement vz.KeyboardConfiguration",
		},
		{"method that is not there", "m.machine.RestoreMachineStateFromURL(path)", "m.machine.RestoreMachineStateFromPath(path)", "m.machine.RestoreMachineStateFromPath undefined"},
		{"function that is not there", "vz.NewMACAddress(cfg.MAC)", "vz.NewMacAddress(cfg.MAC)", "undefined: vz.NewMacAddress"},
		{"one result of two", `translate("request stop", answered(m.machine.RequestStop()))`, `translate("request stop", m.machine.RequestStop())`, "in single-value context"},
		{"two results of one", "device, deviceErr := vz.NewVirtioNetworkDeviceConfiguration(attachment)", "device, deviceErr := attachment.String()", "assignment mismatch"},
		{"argument missing", "disk.Path, disk.ReadOnly, caching, synchronization)", "disk.Path, disk.ReadOnly, caching)", "not enough arguments in call to vz.NewDiskImageStorageDeviceAttachmentWithCacheAndSync"},
		{"unused variable", "caching := guests[cfg.GuestOS].caching", "caching, unused := guests[cfg.GuestOS].caching, 0", "declared and not used: unused"},
		{"syntax", "func (m *machine) Close() error {", "func (m *machine) Close() error (", "expected"},
		{"a method of the seam missing", "func (m *machine) Close() error {", "func (m *machine) CloseIt() error {", "missing method Close"},
	} {
		t.Run(plant.name, func(t *testing.T) {
			if n := strings.Count(string(source), plant.right); n != 1 {
				t.Fatalf("%q occurs %d times in the binding, want once: change this test with it", plant.right, n)
			}
			planted := strings.Replace(string(source), plant.right, plant.wrong, 1)
			_, faults := c.check(apple, map[string][]byte{path: []byte(planted)})
			where := plant.wrong
			if plant.name == "a method of the seam missing" {
				// Found where the type is used as the interface.
				where = "return m, nil"
			}
			before, _, _ := strings.Cut(planted, where)
			at := fmt.Sprintf("vm/vz/apple/apple_darwin.go:%d:", 1+strings.Count(before, "\n"))
			if !slices.ContainsFunc(faults, func(fault string) bool {
				return strings.Contains(filepath.ToSlash(fault), at) && strings.Contains(fault, plant.fault)
			}) {
				t.Errorf("no fault at %s with %q in:\n%s", at, plant.fault, strings.Join(faults, "\n"))
			}
		})
	}
}

// TestFaults has one module for each kind of fault that is not a wrong call.
func TestFaults(t *testing.T) {
	for _, test := range []struct {
		name  string
		files map[string]string
		tests bool
		want  []string
	}{
		{
			name:  "clean, with a test outside of its package",
			files: map[string]string{"a.go": "package a\n\nfunc A() int { return 1 }\n", "export_test.go": "package a\n\nvar B = A()\n", "a_test.go": "package a_test\n\nimport \"our/module\"\n\nvar _ = a.B\n"},
			tests: true,
		},
		{
			name:  "what only darwin builds",
			files: map[string]string{"a_darwin.go": "package a\n\nvar A int = \"a\"\n", "a_linux.go": "package a\n\nvar B int = \"b\"\n"},
			want:  []string{`a_darwin.go:3:13: cannot use "a"`},
		},
		{
			name:  "a test",
			files: map[string]string{"a.go": "package a\n", "a_test.go": "package a\n\nvar A int = \"a\"\n"},
			tests: true,
			want:  []string{`a_test.go:3:13: cannot use "a"`},
		},
		{
			name:  "a test when tests are not asked for",
			files: map[string]string{"a.go": "package a\n", "a_test.go": "package a\n\nvar A int = \"a\"\n"},
		},
		{
			name:  "a package that does not exist",
			files: map[string]string{"a.go": "package a\n\nimport _ \"our/module/missing\"\n"},
			want:  []string{"missing", "could not import our/module/missing"},
		},
		{
			name: "a dependency's declaration, but not its functions' bodies",
			files: map[string]string{
				"a.go":           "package a\n\nimport _ \"their/module\"\n",
				"their/their.go": "package their\n\nvar A int = \"a\"\n\nfunc F() int { return \"b\" }\n",
			},
			want: []string{`their.go:3:13: cannot use "a"`},
		},
		{
			name: "an import cycle",
			files: map[string]string{
				"a.go":   "package a\n\nimport _ \"our/module/b\"\n",
				"b/b.go": "package b\n\nimport _ \"our/module\"\n",
			},
			want: []string{"import cycle not allowed"},
		},
		{
			name:  "cgo of our own",
			files: map[string]string{"a.go": "package a\n\nimport \"C\"\n\nvar A = C.anything()\n"},
			want:  []string{"our/module: uses cgo itself"},
		},
		{
			name: "a use that a C type hides",
			files: map[string]string{
				"a.go":           "package a\n\nimport \"their/module\"\n\nvar A = their.F(\"anything\")\n\nvar B = their.G(1)\n",
				"their/their.go": "package their\n\nimport \"C\"\n\nfunc F(C.int) int { return 1 }\n\nfunc G(int) int { return 1 }\n",
			},
			want: []string{"a.go:5:15: F mentions a C type"},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, "go.mod", "module our/module\n\ngo 1.26\n\nrequire their/module v0.0.0\n\nreplace their/module => ./their\n")
			write(t, dir, "their/go.mod", "module their/module\n\ngo 1.26\n")
			for name, content := range test.files {
				write(t, dir, name, content)
			}
			faults := check(t, listing{dir: dir, patterns: []string{"./..."}, tests: test.tests}).all()
			all := strings.Join(faults, "\n")
			if len(test.want) == 0 && len(faults) > 0 {
				t.Errorf("faults where there are none:\n%s", all)
			}
			for _, want := range test.want {
				if !strings.Contains(all, want) {
					t.Errorf("no %q in:\n%s", want, all)
				}
			}
			for _, never := range []string{"a_linux.go", `"b"`, " G "} {
				if strings.Contains(all, never) {
					t.Errorf("%q in:\n%s", never, all)
				}
			}
		})
	}
}

// TestRunFails sees that a fault becomes a failure of the command.
func TestRunFails(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "go.mod", "module our/module\n\ngo 1.26\n")
	write(t, dir, "a.go", "package a\n\nvar A int = 1\n")
	what := listing{dir: dir, patterns: []string{"./..."}}
	var out bytes.Buffer
	if err := run(t.Context(), what, &out); err != nil {
		t.Fatalf("run on a clean module: %v", err)
	}
	write(t, dir, "a.go", "package a\n\nvar A int = \"a\"\n")
	if err := run(t.Context(), what, &out); err == nil || !strings.Contains(out.String(), "a.go:3:13: cannot use") {
		t.Fatalf("run on a module with a fault: %v, having written:\n%s", err, out.String())
	}
}

func check(t *testing.T, what listing) *checker {
	t.Helper()
	packages, err := list(t.Context(), what)
	if err != nil {
		t.Fatal(err)
	}
	return newChecker(packages)
}

func find(t *testing.T, c *checker, path string) *listed {
	t.Helper()
	i := slices.IndexFunc(c.packages, func(p *listed) bool { return p.ImportPath == path })
	if i < 0 {
		t.Fatalf("%s is not among the packages", path)
	}
	return c.packages[i]
}

func write(t *testing.T, dir, name, content string) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}
