// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"path/filepath"
	"runtime"
	"slices"

	"github.com/spf13/cobra"

	"github.com/vk-firkin/vk-firkin/cmd/vk-firkin/service"
)

func newUninstallCommand() *cobra.Command {
	var d directories
	var system, force bool
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Remove the service that vk-firkin install made",
		Long: `Ends this host's node, with its warm machines, and removes its service. It refuses while
pods have machines: drain the node first. With --force their machines go on with nobody to
look after them, until a node with this state folder runs again.

State, cache and the service's copy of this program stay; it says where they are.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := d.validate(); err != nil {
				return err
			}
			var given string
			if cmd.Flags().Changed("state-dir") {
				given = d.StateDir
			}
			return uninstall(cmd.Context(), cmd.OutOrStdout(), d, given, system, force)
		},
	}
	d.addFlags(cmd.Flags())
	cmd.Flags().BoolVar(&system, "system", false, "the service of the host, instead of this user's; needs root")
	cmd.Flags().BoolVar(&force, "force", false, "leave machines running")
	return cmd
}

func uninstall(ctx context.Context, out io.Writer, d directories, given string, system, force bool) error {
	me, err := thisPerson()
	if err != nil {
		return fmt.Errorf("find out who runs this: %w", err)
	}
	t := service.Target{Manager: service.ManagerOf(runtime.GOOS), System: system, User: me.name, UID: me.uid, Home: me.home}
	if system && me.uid != 0 {
		return errors.New("--system needs root: run it by sudo")
	}
	spec, err := service.Read(t)
	if errors.Is(err, fs.ErrNotExist) {
		other := "--system is for one of the whole host"
		if system {
			other = "without --system it is the one of a user"
		}
		_, err := fmt.Fprintf(out, "There is no service to remove: no %s (%s).\n", t.Path(), other)
		return err
	}
	if d, err = directoriesOf(spec, err, d, given, force); err != nil {
		return err
	}
	steps, err := service.Uninstall(t, spec.StopTimeout)
	if err != nil {
		return err
	}
	if force {
		// Else a node with --drain-on-shutdown ends the pods that are to go on.
		if err := askToHandOver(ctx, d.StateDir, drains(spec)); err != nil {
			return err
		}
	} else if err := leave(ctx, d.StateDir); err != nil {
		return fmt.Errorf("%w: kubectl drain the node, or use --force to leave machines running", err)
	}
	if err := removeService(ctx, out, steps, force); err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "Removed. %s and %s stay, and %s; kubectl delete node takes the node out of the cluster.\n", d.StateDir, d.CacheDir, t.Program())
	return err
}

// removeService removes it after its node was told to leave, unless that was forced. That cannot be taken back:
// whose node goes on must know what it does not do any more.
func removeService(ctx context.Context, out io.Writer, steps []service.Step, force bool) error {
	err := service.Do(ctx, steps, func(s service.Step) { fmt.Fprintln(out, s) })
	if err != nil && !force {
		return fmt.Errorf("%w; the node, if it runs, takes no more pods and keeps no warm machines until it is started anew: run this again, or start it anew", err)
	}
	return err
}

// directoriesOf are those of the node that a service runs. Whoever runs this command may have others: that no
// node has machines there says nothing. problem is why the service could not be read; given is a state folder that was
// named. Pure.
func directoriesOf(s service.Spec, problem error, d directories, given string, force bool) (directories, error) {
	state := s.Argument("state-dir")
	switch {
	case force && state == "":
		return d, nil
	case problem != nil && !force:
		return d, fmt.Errorf("find the state folder of the service's node, which may have machines: %w; or use --force to remove the service all the same, and leave machines running", problem)
	case state == "":
		return d, errors.New("the service does not say where its node has its state (--state-dir), and so not whether it has machines: use --force to remove it all the same, and leave machines running")
	case given != "" && given != state:
		return d, fmt.Errorf("--state-dir %s: the service's node has its state in %s; leave the flag out", given, state)
	}
	d.StateDir = state
	if cache := s.Argument("cache-dir"); cache != "" {
		d.CacheDir = cache
	}
	return d, nil
}

// leave ends the warm machines of this host's node, and fails when others are left.
func leave(ctx context.Context, stateDir string) error {
	ctx, cancel := context.WithTimeout(ctx, leaveTimeout+statusTimeout)
	defer cancel()
	err := ask(ctx, stateDir, usual, http.MethodPost, controlLeave, nil, &struct{}{})
	if !errors.Is(err, errNoNode) {
		return err
	}
	ids, err := machinesOnDisk(stateDir)
	if err != nil {
		return err
	}
	ids = slices.DeleteFunc(ids, func(id string) bool { return !works(filepath.Join(stateDir, "machines", id)) })
	if len(ids) > 0 {
		return fmt.Errorf("no node runs, and %d machines do: start the service, which ends those that nobody needs", len(ids))
	}
	return nil
}

// drains tells whether a service's node ends its pods when it is told to stop.
func drains(s service.Spec) bool {
	value := s.Argument("drain-on-shutdown")
	return value != "" && value != "false" || slices.Contains(s.Args, "--drain-on-shutdown")
}

// handOver prepares the node of the service that is there, if there is one, for the next one.
func handOver(ctx context.Context, t service.Target) error {
	before, err := service.Read(t)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return askToHandOver(ctx, before.Argument("state-dir"), drains(before))
}

// askToHandOver tells a running node that another one comes after it: its pods go on. drains is what the service's
// definition says; a node that was started by an earlier one may drain all the same.
func askToHandOver(ctx context.Context, stateDir string, drains bool) error {
	if stateDir == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	err := ask(ctx, stateDir, usual, http.MethodPost, controlHandover, nil, &struct{}{})
	if err == nil || !drains || errors.Is(err, errNoNode) {
		return nil
	}
	return fmt.Errorf("the node that runs would end its pods now (--drain-on-shutdown), and cannot be told that they are to go on: kubectl drain it first; or, for a service that is to stay, install with --start=false and end the node's process by kill -9, after which the service starts the new one: %w", err)
}
