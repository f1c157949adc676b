// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/warmpool"
)

// quarantineDir is where the node and people tell each other about machines in quarantine.
func quarantineDir(stateDir string) warmpool.QuarantineDir {
	return warmpool.QuarantineDir(filepath.Join(stateDir, "quarantine"))
}

// quarantinePoll is how soon the node sees that a removal was asked for: a look at an
// empty directory.
const quarantinePoll = 2 * time.Second

// watchQuarantine makes the node look at its machines when somebody asks it to remove one.
func (n *node) watchQuarantine(ctx context.Context) {
	ticker := time.NewTicker(quarantinePoll)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			if quarantineDir(n.StateDir).Asked() {
				n.provider.Reconcile()
			}
		}
	}
}

// newQuarantineCommand shows and removes machines in quarantine.
func newQuarantineCommand() *cobra.Command {
	var d directories
	cmd := &cobra.Command{
		Use:   "quarantine",
		Short: "Look at machines that nobody knows whose they are, and remove them",
		Long: `A machine that runs, and of which the node's records do not say whose it is, is kept: its
record was damaged, or written by another version of vk-firkin, or there is none. It takes
its room, and is given to nobody, until it ends or is removed here. A pod that may have
such a machine waits for that.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	d.addFlags(cmd.PersistentFlags())
	dir := func() (warmpool.QuarantineDir, error) { return quarantineDir(d.StateDir), d.validate() }
	cmd.AddCommand(newQuarantineListCommand(dir), newQuarantineRemoveCommand(dir))
	return cmd
}

func newQuarantineListCommand(dir func() (warmpool.QuarantineDir, error)) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List machines in quarantine, as the node saw them last",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			d, err := dir()
			if err != nil {
				return err
			}
			list, err := d.List()
			if err != nil {
				return err
			}
			switch output {
			case "json":
				if list == nil {
					list = []warmpool.Quarantined{} // an empty list, not null
				}
				return writeJSON(cmd.OutOrStdout(), list)
			case "name":
				for _, q := range list {
					fmt.Fprintln(cmd.OutOrStdout(), q.Machine)
				}
				return nil
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "MACHINE\tSINCE\tMEMORY\tPOD\tREASON")
			for _, q := range list {
				pod := q.PodUID
				if pod == "" {
					pod = "-"
				}
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", q.Machine, q.Since.Local().Format(time.DateTime), mib(q.Budget.MemoryBytes), pod, q.Reason)
			}
			return w.Flush()
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "table", "table, name or json")
	return cmd
}

func newQuarantineRemoveCommand(dir func() (warmpool.QuarantineDir, error)) *cobra.Command {
	var wait time.Duration
	cmd := &cobra.Command{
		Use:   "remove MACHINE",
		Short: "End a machine in quarantine and delete all that is left of it",
		Long: `Asks the node to end a machine in quarantine and to delete all that is left of it, and waits
until it has: what runs in it is lost. A node that does not run does so when it starts. A
pod that waited for it begins anew, or has failed if its restart policy is Never.`,
		Args: cobra.ExactArgs(1),
		ValidArgsFunction: completeNames(func(*cobra.Command) []string {
			d, err := dir()
			if err != nil {
				return nil
			}
			list, err := d.List()
			if err != nil {
				return nil
			}
			return namesOf(list, func(q warmpool.Quarantined) string { return q.Machine })
		}),
		RunE: func(cmd *cobra.Command, args []string) error {
			d, err := dir()
			if err != nil {
				return err
			}
			return removeQuarantined(cmd.Context(), cmd, d, args[0], wait)
		},
	}
	cmd.Flags().DurationVar(&wait, "timeout", 30*time.Second, "how long to wait for the node; 0 not at all")
	return cmd
}

func removeQuarantined(ctx context.Context, cmd *cobra.Command, d warmpool.QuarantineDir, id string, wait time.Duration) error {
	if err := d.Remove(id); errors.Is(err, vm.ErrNotFound) {
		return fmt.Errorf("%w; vk-firkin quarantine list tells which are", err)
	} else if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	ticker := time.NewTicker(200 * time.Millisecond)
	defer ticker.Stop()
	for {
		listed, err := d.Listed(id)
		if err != nil {
			return err
		}
		// The node drops both files when it has deleted the machine.
		if !listed && !d.AskedFor(id) {
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s removed\n", id)
			return err
		}
		select {
		case <-ctx.Done():
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s will be removed: the node has not done it yet, and does it when it runs and the machine can be asked; its log tells more\n", id)
			return err
		case <-ticker.C:
		}
	}
}
