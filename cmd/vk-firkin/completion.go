// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/vk-firkin/vk-firkin/vm/qemu"
	"github.com/vk-firkin/vk-firkin/vm/snapshot"
	"github.com/vk-firkin/vk-firkin/vm/vz"
)

// What a path flag names.
const (
	pathFile   = "file"
	pathFolder = "folder"
)

// pathFlags are the flags whose value is one path: shells complete them, and a service,
// which runs elsewhere, gets them absolute.
var pathFlags = map[string]string{
	"state-dir": pathFolder, "cache-dir": pathFolder, "guest-kit": pathFolder, "temp-dir": pathFolder,
	"kubeconfig": pathFile, "bootstrap-kubeconfig": pathFile, "token-file": pathFile, "tls-cert-file": pathFile, "tls-private-key-file": pathFile, "client-ca-file": pathFile,
	"log-file": pathFile, "program": pathFile,
	"disk": pathFile, "auxiliary-storage": pathFile, "hardware-model": pathFile, "machine-identifier": pathFile,
}

// flagValues are the values of flags that take one of a few.
var flagValues = map[string][]string{
	"driver": {vz.Name, qemu.Name}, "accelerator": {"kvm", "tcg"},
	"log-level": {"debug", "info", "warn", "error"}, "log-format": {"text", "json"},
	"then": {"node", "install"},
}

// completeFlags makes shells complete the flags of a command and of those below it.
func completeFlags(cmd *cobra.Command) {
	add := func(f *pflag.Flag) {
		values := flagValues[f.Name]
		if f.Name == "output" { // its usage begins with its values
			list, _, _ := strings.Cut(f.Usage, ";")
			values = strings.FieldsFunc(strings.ReplaceAll(list, " or ", ","), func(r rune) bool { return r == ',' || r == ' ' })
		}
		switch {
		case values != nil:
			// One that has a function already keeps it.
			_ = cmd.RegisterFlagCompletionFunc(f.Name, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp))
		case pathFlags[f.Name] == pathFolder:
			_ = cmd.MarkFlagDirname(f.Name) // the flag exists
		case pathFlags[f.Name] == "":
			_ = cmd.RegisterFlagCompletionFunc(f.Name, cobra.NoFileCompletions)
		}
	}
	cmd.LocalFlags().VisitAll(add)
	for _, below := range cmd.Commands() {
		completeFlags(below)
	}
}

// completeNames completes arguments by names that list gives, each once.
func completeNames(list func(cmd *cobra.Command) []string) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		names := slices.DeleteFunc(list(cmd), func(name string) bool { return slices.Contains(args, name) })
		return names, cobra.ShellCompDirectiveNoFileComp
	}
}

// names are those of the snapshots, for completion.
func (s *snapshotCommand) names(cmd *cobra.Command) []string {
	store, err := s.read()
	if err != nil {
		return nil
	}
	defer store.Close()
	infos, err := store.List(cmd.Context())
	if err != nil {
		return nil
	}
	return namesOf(infos, func(i snapshot.Info) string { return i.Name })
}

func namesOf[T any](list []T, name func(T) string) []string {
	names := make([]string, len(list))
	for i, x := range list {
		names[i] = name(x)
	}
	return names
}

// explainUsage gives errors of flags and arguments their remedy, for a command and those
// below it.
func explainUsage(cmd *cobra.Command) {
	remedy := func(c *cobra.Command, err error) error {
		return &usageError{err: err, remedy: "see " + c.CommandPath() + " --help"}
	}
	cmd.SetFlagErrorFunc(remedy)
	if check := cmd.Args; check != nil {
		cmd.Args = func(c *cobra.Command, args []string) error {
			if err := check(c, args); err != nil {
				return remedy(c, err)
			}
			return nil
		}
	}
	before := cmd.PreRunE
	cmd.PreRunE = func(c *cobra.Command, args []string) error {
		if err := c.ValidateRequiredFlags(); err != nil {
			return remedy(c, err)
		}
		if before != nil {
			return before(c, args)
		}
		return nil
	}
	for _, below := range cmd.Commands() {
		explainUsage(below)
	}
}

// usageError is a command line that is not understood.
type usageError struct {
	err    error
	remedy string
}

func (e *usageError) Error() string { return e.err.Error() + ": " + e.remedy }
func (e *usageError) Unwrap() error { return e.err }
