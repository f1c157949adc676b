// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/vk-firkin/vk-firkin/cmd/vk-firkin/service"
	"github.com/vk-firkin/vk-firkin/cmd/vk-firkin/status"
)

// TestNext shows what somebody sees who types the program's name, on their way.
func TestNext(t *testing.T) {
	runs := busyReport()
	sick := busyReport()
	sick.Conditions = []status.Condition{{Type: "Ready", Message: "no disk"}}
	agent := &service.Target{Manager: service.Systemd, User: "ci", UID: 1000, Home: "/home/ci"}
	var b strings.Builder
	for _, c := range []struct {
		name  string
		facts hostFacts
	}{
		{"fresh", hostFacts{guestKit: "bin/guest/arm64", kitProblem: "read kit.json: no such file"}},
		{"built", hostFacts{guestKit: "bin/guest/arm64", joins: true}},
		{"built, without join", hostFacts{guestKit: "bin/guest/arm64"}},
		{"joined", hostFacts{guestKit: "bin/guest/arm64", kubeconfig: "node.kubeconfig"}},
		{"down", hostFacts{guestKit: "/srv/kit", kubeconfig: "/srv/node.kubeconfig", service: agent}},
		{"sick", hostFacts{service: agent, running: &sick}},
		{"runs", hostFacts{service: agent, running: &runs}},
	} {
		b.WriteString("== " + c.name + "\n")
		if err := writeNext(&b, c.facts); err != nil {
			t.Fatal(err)
		}
	}
	goldenText(t, "next.txt", b.String())
}

// runRoot runs a command line in an empty home.
func runRoot(t *testing.T, args ...string) (string, error) {
	t.Helper()
	cmd := newRootCommand()
	var out bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	cmd.SetArgs(args)
	err := cmd.ExecuteContext(t.Context())
	return out.String(), err
}

func TestBareCommand(t *testing.T) {
	t.Setenv("HOME", t.TempDir())
	t.Setenv("KUBECONFIG", "")
	out, err := runRoot(t)
	if err != nil || !strings.Contains(out, "Next:") || !strings.Contains(out, "[ ] guest kit") {
		t.Errorf("%v:\n%s", err, out)
	}
}

// Every error says what is wrong and what to do.
func TestErrorsNameTheRemedy(t *testing.T) {
	t.Setenv("HOME", t.TempDir())
	t.Setenv("KUBECONFIG", "")
	for line, want := range map[string][]string{
		"nod":                                   {`unknown command "nod"`, "node"},
		"node --shape 1x1Gi":                    {"unknown flag: --shape", "vk-firkin node --help"},
		"node extra":                            {"extra", "vk-firkin node --help"},
		"node --kubelet-port x":                 {"kubelet-port", "vk-firkin node --help"},
		"node":                                  {"has not joined", "vk-firkin join"},
		"node --driver xen --kubeconfig k":      {`"xen"`, "want vz or qemu"},
		"quarantine remove":                     {"1 arg", "vk-firkin quarantine remove --help"},
		"quarantine remove pod-1":               {"pod-1", "vk-firkin quarantine list"},
		"snapshot inspect":                      {"1 arg", "vk-firkin snapshot inspect --help"},
		"snapshot inspect none":                 {"none", "vk-firkin snapshot ls"},
		"snapshot ls -o xml":                    {`"xml"`, "want table, name or json"},
		"gc -o xml":                             {`"xml"`, "want table or json"},
		"gc --grace -1s":                        {"--grace -1s", "want 0 or more"},
		"status -o xml":                         {`"xml"`, "want table or json"},
		"controller":                            {"--kubeconfig is missing", "pod of a cluster"},
		"controller --kubeconfig /none":         {"/none", "--kubeconfig"},
		"doctor -o xml":                         {`"xml"`, "want table or json"},
		"image push-macos x":                    {"required flag", "vk-firkin image push-macos --help"},
		"uninstall extra":                       {"extra", "vk-firkin uninstall --help"},
		"install --env A --kubeconfig k":        {"A", "vk-firkin install --help"},
		"install --system --run-as no-such-one": {"no-such-one", ""},
	} {
		_, err := runRoot(t, strings.Fields(line)...)
		if err == nil {
			t.Errorf("%s: no error", line)
			continue
		}
		for _, w := range want {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%s: %q does not say %q", line, err, w)
			}
		}
	}
}

// Shells complete commands, the values of flags, and names of what there is.
func TestCompletion(t *testing.T) {
	t.Setenv("HOME", t.TempDir())
	root := t.TempDir()
	for line, want := range map[string]string{
		"st":                       "status",
		"node --driver ":           "qemu",
		"node --accelerator ":      "tcg",
		"controller --log-format ": "json",
		"install --log-level ":     "debug",
		"snapshot ls -o ":          "name",
		"status -o ":               "json",
		"node --state-dir ":        ":16", // ShellCompDirectiveFilterDirs
		"node --shapes ":           ":4",  // no files
		"node --kubeconfig ":       ":0",  // files
		"quarantine remove --state-dir " + root + " ": ":4",
		"completion ": "zsh",
	} {
		args := append([]string{cobra.ShellCompRequestCmd}, strings.Split(line, " ")...)
		out, err := runRoot(t, args...)
		if err != nil || !slices.ContainsFunc(strings.Split(out, "\n"), func(l string) bool {
			name, _, _ := strings.Cut(l, "\t")
			return name == want
		}) {
			t.Errorf("%s: %v, %q has no %q", line, err, out, want)
		}
	}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		if out, err := runRoot(t, "completion", shell); err != nil || !strings.Contains(out, "vk-firkin") {
			t.Errorf("%s: %v", shell, err)
		}
	}
}

// A flag that names a path is known as one: a service runs elsewhere.
func TestPathFlags(t *testing.T) {
	seen := map[string]bool{}
	walk(newRootCommand(), func(cmd *cobra.Command) {
		cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
			seen[f.Name] = true
			names := strings.HasSuffix(f.Name, "-dir") || strings.HasSuffix(f.Name, "-file") || strings.HasSuffix(f.Name, "kubeconfig") || strings.HasSuffix(f.Name, "-kit")
			if names && pathFlags[f.Name] == "" {
				t.Errorf("%s --%s names a path, and pathFlags has it not", cmd.CommandPath(), f.Name)
			}
		})
	})
	for name := range pathFlags {
		if !seen[name] {
			t.Errorf("there is no flag --%s", name)
		}
	}
}

func walk(cmd *cobra.Command, f func(*cobra.Command)) {
	f(cmd)
	for _, below := range cmd.Commands() {
		walk(below, f)
	}
}
