// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"
)

// goesOn are the commands that `vk-firkin join --then` goes on with, so that one command makes a
// host a node. The token is no flag of theirs: a service would keep it.
var goesOn = map[string]func() *cobra.Command{"node": newNodeCommand, "install": newInstallCommand}

// ownArguments are those before "--", and the flags after it, which are another command's.
func ownArguments(cmd *cobra.Command, args []string) (own, rest []string) {
	if dash := cmd.ArgsLenAtDash(); dash >= 0 {
		return args[:dash], args[dash:]
	}
	return args, nil
}

// checkThen finds out whether the host can go on as told, before it joins.
func checkThen(then string, rest []string) error {
	if then == "" {
		if len(rest) > 0 {
			return fmt.Errorf("%s: what comes after -- are flags of the command that --then names", strings.Join(rest, " "))
		}
		return nil
	}
	command, ok := goesOn[then]
	if !ok {
		return fmt.Errorf("--then %q: want %s", then, strings.Join(slices.Sorted(maps.Keys(goesOn)), " or "))
	}
	cmd := command()
	if err := cmd.ParseFlags(rest); err != nil {
		return fmt.Errorf("flags of vk-firkin %s: %w", then, err)
	}
	if left := cmd.Flags().Args(); len(left) > 0 {
		return fmt.Errorf("vk-firkin %s takes flags only, not %s", then, strings.Join(left, " "))
	}
	// They would name another identity, or another place for it, than what join has got.
	for _, name := range []string{"state-dir", "cache-dir", "kubeconfig", "bootstrap-kubeconfig", "node-name"} {
		if cmd.Flags().Changed(name) {
			return fmt.Errorf("--%s after --: give it before, as a flag of join, or leave it out", name)
		}
	}
	if system := cmd.Flags().Lookup("system"); system == nil || system.Value.String() != "true" {
		return nil
	}
	me, err := thisPerson()
	if err != nil {
		return fmt.Errorf("find out who runs this: %w", err)
	}
	runAs, err := cmd.Flags().GetString("run-as")
	return errors.Join(err, checkThenSystem(me, runAs))
}

// checkThenSystem refuses a service of the host whose node could not read what this host joins with, which is private
// to whoever runs join. Pure.
func checkThenSystem(me person, runAs string) error {
	switch {
	case me.uid != 0:
		return errors.New("--system after --: it needs root, and what root joins with nobody else may read: run vk-firkin join as you do, without --then, and sudo vk-firkin install --system after it")
	case runAs == me.name:
		return nil
	case runAs == "":
		runAs = "USER"
	}
	return fmt.Errorf("--system after --: the node would run as %[1]s, who may not read what %[2]s joins with: run vk-firkin join as %[1]s, without --then, and sudo vk-firkin install --system --run-as %[1]s after it", runAs, me.name)
}

// goOn runs the next command with the folders of the one that joined.
func (o *joinOptions) goOn(cmd *cobra.Command, rest []string) error {
	next := goesOn[o.Then]()
	next.SilenceErrors, next.SilenceUsage = true, true
	next.SetArgs(append([]string{"--state-dir=" + o.StateDir, "--cache-dir=" + o.CacheDir}, rest...))
	next.SetIn(cmd.InOrStdin())
	next.SetOut(cmd.OutOrStdout())
	next.SetErr(cmd.ErrOrStderr())
	if err := next.ExecuteContext(cmd.Context()); err != nil {
		var exit exitError
		if errors.As(err, &exit) {
			return err
		}
		return fmt.Errorf("this host has joined; vk-firkin %s, which needs no token, did not go well: %w", o.Then, err)
	}
	return nil
}
