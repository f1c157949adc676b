// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"io"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// What cannot go on is said before a token is used.
func TestJoinThenIsCheckedFirst(t *testing.T) {
	for name, tt := range map[string]struct {
		args []string
		want string // part of the error
	}{
		"nothing to go on with": {[]string{"s:1", "--", "--node-ip", "192.0.2.7"}, "the command that --then names"},
		"another command":       {[]string{"s:1", "--then", "doctor"}, `"doctor": want install or node`},
		"unknown flag":          {[]string{"s:1", "--then", "node", "--", "--nothing"}, "flags of vk-firkin node: unknown flag"},
		"flag of the other":     {[]string{"s:1", "--then", "node", "--", "--dry-run"}, "unknown flag"},
		"no flag":               {[]string{"s:1", "--then", "install", "--", "now"}, "takes flags only, not now"},
		"another place":         {[]string{"s:1", "--then", "install", "--", "--state-dir", "x"}, "--state-dir after --"},
		"two servers":           {[]string{"s:1", "s:2", "--then", "node"}, "at most 1 arg"},
		// These pass, and stop at what a join lacks.
		"node":            {[]string{"s:1", "--then", "node", "--", "--node-ip", "192.0.2.7"}, "want one of --token and --token-file"},
		"service":         {[]string{"s:1", "--then", "install", "--", "--guest-kit", "kit", "--start=false"}, "want one of --token and --token-file"},
		"without another": {[]string{"s:1"}, "want one of --token and --token-file"},
	} {
		t.Run(name, func(t *testing.T) {
			cmd := newRootCommand()
			cmd.SetArgs(append([]string{"join", "--state-dir", filepath.Join(t.TempDir(), "s")}, tt.args...))
			cmd.SetOut(io.Discard)
			cmd.SetErr(io.Discard)
			err := cmd.ExecuteContext(t.Context())
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v does not say %q", err, tt.want)
			}
		})
	}
}

// The next command has the folders of the one that joined, and the flags that were meant for it.
func TestJoinGoesOn(t *testing.T) {
	var got []string
	goesOn["seen"] = func() *cobra.Command {
		cmd := &cobra.Command{Use: "seen", DisableFlagParsing: true, RunE: func(_ *cobra.Command, args []string) error { got = args; return nil }}
		return cmd
	}
	defer delete(goesOn, "seen")
	o := joinOptions{Then: "seen", directories: directories{StateDir: "/s", CacheDir: "/c"}}
	cmd := &cobra.Command{}
	cmd.SetContext(t.Context())
	if err := o.goOn(cmd, []string{"--node-ip", "192.0.2.7"}); err != nil {
		t.Fatal(err)
	}
	if want := []string{"--state-dir=/s", "--cache-dir=/c", "--node-ip", "192.0.2.7"}; !slices.Equal(got, want) {
		t.Errorf("it got %q, want %q", got, want)
	}
}
