// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package arch

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// TestEntitlements reads hack/vz.entitlements as codesign does: a property list that is
// one dictionary. It has one key and no more: an entitlement that Apple must grant, as
// com.apple.vm.networking, makes the kernel refuse a binary that is signed ad hoc.
func TestEntitlements(t *testing.T) {
	content, err := os.ReadFile("../../hack/vz.entitlements")
	if err != nil {
		t.Fatal(err)
	}
	var shape []string
	for dec := xml.NewDecoder(bytes.NewReader(content)); ; {
		token, err := dec.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		switch token := token.(type) {
		case xml.StartElement:
			shape = append(shape, token.Name.Local)
		case xml.EndElement:
			shape = append(shape, "/"+token.Name.Local)
		case xml.CharData:
			if text := strings.TrimSpace(string(token)); text != "" {
				shape = append(shape, text)
			}
		}
	}
	want := []string{"plist", "dict", "key", "com.apple.security.virtualization", "/key", "true", "/true", "/dict", "/plist"}
	if !slices.Equal(shape, want) {
		t.Errorf("hack/vz.entitlements has %v, want %v", shape, want)
	}
}

// TestBuildRecipe compares what make build runs on a Mac and elsewhere.
func TestBuildRecipe(t *testing.T) {
	const build = `go build -ldflags '-X main.version=v1' -o bin/vk-firkin ./cmd/vk-firkin`
	for _, test := range []struct {
		name string
		args []string
		want []string
	}{
		{"Linux", []string{"HOST_OS=Linux"}, []string{build}},
		{"Mac", []string{"HOST_OS=Darwin"}, []string{
			"CGO_ENABLED=1 " + build,
			`codesign --force --sign "-" --entitlements hack/vz.entitlements bin/vk-firkin`,
		}},
		{"Mac with an identity", []string{"HOST_OS=Darwin", "CODESIGN_IDENTITY=Developer ID Application: Somebody (ABC)"}, []string{
			"CGO_ENABLED=1 " + build,
			`codesign --force --sign "Developer ID Application: Somebody (ABC)" --entitlements hack/vz.entitlements bin/vk-firkin`,
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := recipe(t, append([]string{"build", "VERSION=v1"}, test.args...)...)
			if !slices.Equal(got, test.want) {
				t.Errorf("make build runs\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(test.want, "\n"))
			}
		})
	}
}

// TestDarwinIsChecked sees that make test and make verify check darwin with and without
// cgo, and that the check covers the tests behind tags.
func TestDarwinIsChecked(t *testing.T) {
	const check = "go run ./hack/typecheckdarwin -tags e2e,machines ./..."
	if got := recipe(t, "typecheck-darwin"); !slices.Equal(got, []string{check}) {
		t.Errorf("make typecheck-darwin runs %q", got)
	}
	if got := recipe(t, "verify"); !slices.Contains(got, check) {
		t.Errorf("make verify does not run typecheck-darwin: %q", got)
	}
	makefile, err := os.ReadFile("../../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(makefile), "\ntest: ")
	steps, _, _ := strings.Cut(after, "\n\n")
	for _, target := range []string{" verify-darwin ", " typecheck-darwin "} {
		if !strings.Contains(steps, target) {
			t.Errorf("make test has no step%s", target)
		}
	}
}

// recipe is what make would run, without what the caller's own make has told this
// process.
func recipe(t *testing.T, args ...string) []string {
	t.Helper()
	if _, err := exec.LookPath("make"); err != nil {
		t.Skip("no make here, and the recipes are make's")
	}
	cmd := exec.Command("make", append([]string{"-n", "--no-print-directory", "GO=go", "BIN=bin"}, args...)...)
	cmd.Dir = "../.."
	cmd.Env = slices.DeleteFunc(os.Environ(), func(setting string) bool {
		name, _, _ := strings.Cut(setting, "=")
		return slices.Contains([]string{"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "GO", "CODESIGN_IDENTITY", "HOST_OS"}, name)
	})
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("make: %v\n%s", err, out)
	}
	return strings.Split(strings.TrimSpace(string(out)), "\n")
}
