// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package arch

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/vk-firkin/vk-firkin"

// kubernetes are the roots that mean "knows Kubernetes".
var kubernetes = []string{"k8s.io", "sigs.k8s.io", "github.com/virtual-kubelet"}

// drivers are named by main packages and tests only.
var drivers = []string{module + "/vm/qemu", module + "/vm/vz", module + "/vm/fake"}

// shared is what drivers have in common: below the contract, and as ignorant of pods.
var shared = []string{module + "/vm", module + "/vm/process", module + "/vm/durable", module + "/vm/machinedir", module + "/vm/guestport", module + "/vm/network"}

// rule forbids dependencies, direct or through others.
type rule struct {
	name string
	// of are the packages that the rule binds: a path means itself and all below.
	of []string
	// except are taken out of them again.
	except []string
	// deny are the roots that may not be reached. "nonstd" means all but the
	// standard library.
	deny []string
	// direct limits the rule to imports that the package itself writes.
	direct bool
	why    string
}

var rules = []rule{
	{
		name: "vm is a leaf", of: []string{"=" + module + "/vm"}, deny: []string{"nonstd"},
		why: "everything imports the contract, so the contract imports nothing",
	},
	{
		name: "drivers know only vm and what they share", of: drivers, deny: []string{module},
		except: nil, direct: true,
		why: "a driver turns the contract into a hypervisor and knows nothing of pods",
	},
	{
		name: "nothing below warmpool knows Kubernetes", of: []string{module + "/vm", module + "/cmd/firkin-agent"}, deny: kubernetes,
		why: "the agent boots in the guest's critical path, and machines are not pods",
	},
	{
		name: "warmpool knows no Kubernetes", of: []string{module + "/warmpool"}, except: []string{module + "/warmpool/controller"}, deny: kubernetes,
		why: "supply is decided on the node; only the controller meets the API server",
	},
	{
		name: "no way back from vm", of: []string{module + "/vm"}, deny: []string{module + "/warmpool", module + "/provider", module + "/crds"},
		why: "provider -> warmpool -> vm, and no way back",
	},
	{
		name: "no way back from warmpool", of: []string{module + "/warmpool"}, deny: []string{module + "/provider"},
		why: "provider -> warmpool -> vm, and no way back",
	},
	{
		name: "only the binding names Virtualization.framework", of: []string{module}, except: []string{module + "/vm/vz/apple"},
		deny: []string{"github.com/Code-Hex/vz"}, direct: true,
		why: "what only a Mac can run stays in one file",
	},
	{
		name: "only main packages name a driver", of: []string{module}, except: append([]string{module + "/cmd", module + "/hack", module + "/test"}, drivers...), deny: drivers,
		why: "the driver is chosen where everything is wired",
	},
}

type listed struct {
	ImportPath string
	Standard   bool
	Imports    []string
	Deps       []string
}

func TestDependencies(t *testing.T) {
	// With cgo darwin has the file that calls Virtualization.framework. Listing needs
	// no compiler.
	for _, target := range []struct{ name, goos, cgo string }{{"linux", "linux", "0"}, {"darwin", "darwin", "0"}, {"darwin with cgo", "darwin", "1"}} {
		t.Run(target.name, func(t *testing.T) {
			packages := list(t, target.goos, target.cgo)
			standard := map[string]bool{}
			for _, p := range packages {
				standard[p.ImportPath] = p.Standard
			}
			bound := map[string]bool{}
			for _, p := range packages {
				if p.Standard || !under(p.ImportPath, module) {
					continue
				}
				for _, r := range rules {
					if !r.binds(p.ImportPath) {
						continue
					}
					bound[r.name] = true
					for _, fault := range r.check(p, standard) {
						t.Errorf("%s: %s", r.name, fault)
					}
				}
			}
			for _, r := range rules {
				if !bound[r.name] {
					t.Errorf("rule %q binds no package: it is dead", r.name)
				}
			}
		})
	}
}

// TestRulesCatch plants a violation of each rule.
func TestRulesCatch(t *testing.T) {
	planted := map[string]listed{
		"vm is a leaf": {ImportPath: module + "/vm", Imports: []string{"golang.org/x/sys/unix"}},
		"drivers know only vm and what they share": {ImportPath: module + "/vm/qemu", Imports: []string{module + "/vm", module + "/vm/guest"}},
		"nothing below warmpool knows Kubernetes":  {ImportPath: module + "/vm/guest/agent", Imports: []string{"k8s.io/api/core/v1"}},
		"warmpool knows no Kubernetes":             {ImportPath: module + "/warmpool", Imports: []string{"sigs.k8s.io/yaml"}},
		"no way back from vm":                      {ImportPath: module + "/vm/snapshot", Imports: []string{module + "/warmpool"}},
		"no way back from warmpool":                {ImportPath: module + "/warmpool", Imports: []string{module + "/provider"}},
		"only main packages name a driver":         {ImportPath: module + "/provider", Imports: []string{module + "/vm/qemu"}},

		"only the binding names Virtualization.framework": {ImportPath: module + "/vm/vz", Imports: []string{"github.com/Code-Hex/vz/v3"}},
	}
	for _, r := range rules {
		p, ok := planted[r.name]
		if !ok {
			t.Errorf("rule %q has no planted violation", r.name)
			continue
		}
		p.Deps = p.Imports
		if !r.binds(p.ImportPath) {
			t.Errorf("rule %q does not bind %s", r.name, p.ImportPath)
		}
		if len(r.check(p, map[string]bool{})) == 0 {
			t.Errorf("rule %q does not catch %s importing %v", r.name, p.ImportPath, p.Imports)
		}
	}
}

func (r rule) binds(path string) bool {
	for _, e := range r.except {
		if under(path, e) {
			return false
		}
	}
	return slices.ContainsFunc(r.of, func(of string) bool {
		if exact, ok := strings.CutPrefix(of, "="); ok {
			return path == exact
		}
		return under(path, of)
	})
}

func (r rule) check(p listed, standard map[string]bool) []string {
	reached := p.Deps
	if r.direct {
		reached = p.Imports
	}
	var faults []string
	for _, dep := range reached {
		for _, deny := range r.deny {
			switch {
			case deny == "nonstd" && !standard[dep]:
			case deny == module && under(dep, module) && !slices.Contains(shared, dep) && !under(dep, p.ImportPath) && !slices.ContainsFunc(r.of, func(of string) bool { return under(dep, of) && under(p.ImportPath, of) }):
			case deny != "nonstd" && deny != module && under(dep, deny):
			default:
				continue
			}
			faults = append(faults, fmt.Sprintf("%s depends on %s (%s)", p.ImportPath, dep, r.why))
		}
	}
	return faults
}

func under(path, root string) bool {
	return path == root || strings.HasPrefix(path, root+"/")
}

// list returns the repository's packages with all they depend on, as the target
// sees them. cgo is off where everything but the agent is built so.
func list(t *testing.T, goos, cgo string) []listed {
	t.Helper()
	cmd := exec.Command("go", "list", "-deps", "-json=ImportPath,Standard,Imports,Deps", "./...")
	cmd.Dir = "../.."
	cmd.Env = append(os.Environ(), "GOOS="+goos, "GOARCH=arm64", "CGO_ENABLED="+cgo)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list for %s: %v\n%s", goos, err, stderr.String())
	}
	var packages []listed
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return packages
		} else if err != nil {
			t.Fatalf("decode go list: %v", err)
		}
		packages = append(packages, p)
	}
}
