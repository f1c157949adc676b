// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"log/slog"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// suspicious is what the name of a flag that gives up a protection looks like.
var suspicious = regexp.MustCompile(`insecure|unsafe|skip|^no-|allow|self-signed|force|disable|without|plain|trust|verif|token|approve|address$|kubeconfig$|leader-elect$`)

// TestWeakeningFlags: each flag whose name says that it gives up a protection is known as one, or
// named here as one that does not, and docs/security.md says of each what it gives up.
func TestWeakeningFlags(t *testing.T) {
	harmless := []string{
		"token-file",                   // the way not to show it
		"discovery-token-ca-cert-hash", // the protection itself
		"kubelet-address",              // of an API that asks who is there
	}
	known := weakenings()
	found := map[string]bool{}
	root := newRootCommand()
	walk(root, func(cmd *cobra.Command) {
		see := func(f *pflag.Flag) {
			found[f.Name] = true
			if _, weak := known[f.Name]; suspicious.MatchString(f.Name) && !weak && !slices.Contains(harmless, f.Name) {
				t.Errorf("%s --%s: say in weakenings what it gives up, or here that it gives up nothing", cmd.CommandPath(), f.Name)
			}
		}
		cmd.LocalFlags().VisitAll(see)
		cmd.PersistentFlags().VisitAll(see)
	})
	page, err := os.ReadFile("../../docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	row := regexp.MustCompile("(?m)^\\| `--([a-z-]+)`")
	var listed []string
	for _, m := range row.FindAllStringSubmatch(string(page), -1) {
		listed = append(listed, m[1])
	}
	for _, flag := range slices.Sorted(maps.Keys(known)) {
		if !found[flag] {
			t.Errorf("there is no flag --%s", flag)
		}
		if !slices.Contains(listed, flag) {
			t.Errorf("docs/security.md has no row for --%s", flag)
		}
	}
	for _, flag := range append(listed, harmless...) {
		if _, weak := known[flag]; weak == slices.Contains(harmless, flag) || !found[flag] {
			t.Errorf("--%s: docs/security.md, weakenings, the list here and the commands do not agree", flag)
		}
	}
}

// TestWeakenedNodeWarns: each option that weakens a node is a warning in its log.
func TestWeakenedNodeWarns(t *testing.T) {
	for _, c := range []struct {
		args []string
		want []string
	}{
		{nil, nil},
		{[]string{"--insecure-registry", "127.0.0.1:5000", "--no-taint", "--allow-host-path", "/srv", "--self-signed-serving-certificate"},
			[]string{"--allow-host-path", "--insecure-registry", "--no-taint", "--self-signed-serving-certificate"}},
	} {
		var b bytes.Buffer
		o := parseNode(t, c.args...)
		o.warnWeakened(slog.New(slog.NewTextHandler(&b, nil)))
		var got []string
		for line := range strings.Lines(b.String()) {
			_, flag, _ := strings.Cut(line, "flag=")
			flag, _, _ = strings.Cut(flag, " ")
			got = append(got, flag)
			if !strings.Contains(line, "level=WARN") {
				t.Errorf("not a warning: %s", line)
			}
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%v: warned of %v, want %v", c.args, got, c.want)
		}
	}
}
