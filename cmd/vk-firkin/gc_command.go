// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/vk-firkin/vk-firkin/cmd/vk-firkin/garbage"
	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/durable"
	"github.com/vk-firkin/vk-firkin/vm/image"
	"github.com/vk-firkin/vk-firkin/vm/snapshot"
)

// defaultGCGrace is how long something must have been unused for gc to
// remove it: a day's idle shape should not cost a build the next morning.
const defaultGCGrace = 24 * time.Hour

func newGCCommand() *cobra.Command {
	var d directories
	var opts garbage.Options
	var output string
	patience := patience{answer: controlAnswer}
	cmd := &cobra.Command{
		Use:   "gc",
		Short: "Remove what this host keeps and nobody needs",
		Long: `Removes images, snapshots, machines' and pods' directories, records and leftovers that
nobody needs and that were unused for a while, and says of each thing what became of it
and why. What a machine, a pod, a record, a pool or another program uses stays.

A running node does the work itself, since it knows what it uses; it also does so every
hour by itself. Without a running node the files on the disk say what is in use, and
nobody knows which snapshots the node will be told to have: those of templates that no
machine needs and that were unused for the grace period go as well, and are built again
when they are wanted.`,
		Example: `  vk-firkin gc --dry-run
  vk-firkin gc --grace 0s`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := d.validate(); err != nil {
				return err
			}
			if output != "table" && output != "json" {
				return fmt.Errorf("unknown output %q: want table or json", output)
			}
			if opts.Grace < 0 {
				return fmt.Errorf("--grace %s: want 0 or more", opts.Grace)
			}
			if patience.whole <= 0 {
				return fmt.Errorf("--timeout %s is not positive", patience.whole)
			}
			report, failure := collectGarbage(cmd.Context(), d, opts, patience)
			if failure != nil && len(report.Decisions) == 0 {
				return failure
			}
			var err error
			if output == "json" {
				err = writeJSON(cmd.OutOrStdout(), report)
			} else {
				err = writeReport(cmd.OutOrStdout(), report, time.Now())
			}
			if err == nil && len(report.Faults) > 0 {
				return fmt.Errorf("%d faults: %s", len(report.Faults), report.Faults[0])
			}
			return errors.Join(err, failure)
		},
	}
	d.addFlags(cmd.Flags())
	cmd.Flags().BoolVar(&opts.DryRun, "dry-run", false, "only tell what would be removed")
	cmd.Flags().DurationVar(&opts.Grace, "grace", defaultGCGrace, "how long something must have been unused")
	cmd.Flags().DurationVar(&patience.whole, "timeout", controlTimeout, "how long a running node may take")
	cmd.Flags().StringVarP(&output, "output", "o", "table", "table or json")
	return cmd
}

// collectGarbage has the running node collect, or does it by itself.
func collectGarbage(ctx context.Context, d directories, opts garbage.Options, p patience) (report garbage.Report, err error) {
	report, err = askNode(ctx, d.StateDir, opts, p)
	if !errors.Is(err, errNoNode) {
		return report, err
	}
	logger := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	config := garbage.Config{StateDir: d.StateDir}
	sopts := snapshot.Options{Logger: logger, Machines: func(context.Context) ([]string, error) { return machinesOnDisk(d.StateDir) }}
	dir := filepath.Join(d.StateDir, "snapshots")
	if _, serr := os.Stat(d.StateDir); errors.Is(serr, fs.ErrNotExist) {
		opts.DryRun = true // nothing is made where nothing is
	}
	if opts.DryRun {
		config.Snapshots, err = snapshot.OpenReadOnly(dir, sopts)
	} else {
		// Nobody may start a node meanwhile.
		lock, lerr := durable.LockDir(d.StateDir)
		if lerr != nil {
			return report, fmt.Errorf("%w and does not answer at %s: wait until it does, or use --dry-run", lerr, controlSocket)
		}
		defer func() { err = errors.Join(err, lock.Close()) }()
		config.Snapshots, err = snapshot.Open(ctx, dir, sopts)
	}
	if err != nil {
		return report, err
	}
	defer func() { err = errors.Join(err, config.Snapshots.Close()) }()
	if config.Images, err = image.OpenForCollection(filepath.Join(d.CacheDir, "images"), image.Options{Logger: logger}); err != nil {
		return report, err
	}
	defer func() { err = errors.Join(err, config.Images.Close()) }()
	return garbage.New(config).Collect(ctx, opts)
}

// machinesOnDisk lists the machines that have a directory, as drivers do.
func machinesOnDisk(stateDir string) (ids []string, err error) {
	all, err := os.ReadDir(filepath.Join(stateDir, "machines"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, e := range all {
		if e.IsDir() && vm.ValidateID(e.Name()) == nil {
			ids = append(ids, e.Name())
		}
	}
	return ids, nil
}

// writeReport writes the table of gc: what goes first, then what stays.
func writeReport(w io.Writer, r garbage.Report, now time.Time) error {
	verb := "removed"
	if r.DryRun {
		verb = "would remove"
	}
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	fmt.Fprintln(t, "KIND\tNAME\tRESULT\tON DISK\tUNUSED\tREASON")
	for _, goes := range []bool{true, false} {
		for _, d := range r.Decisions {
			if d.Remove != goes {
				continue
			}
			what, unused := "kept", "-"
			if d.Remove {
				what = verb
			}
			if !d.LastUsed.IsZero() {
				unused = span(now.Sub(d.LastUsed))
			}
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", d.Kind, d.Name, what, mib(d.Bytes), unused, d.Reason)
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	var sum garbage.Amount
	for _, a := range r.Removed() {
		sum.Count, sum.Bytes = sum.Count+a.Count, sum.Bytes+a.Bytes
	}
	_, err := fmt.Fprintf(w, "%s %d, %s\n", verb, sum.Count, mib(sum.Bytes))
	if err == nil && !r.Node {
		_, err = fmt.Fprintln(w, "No node answers here: the files alone say what is in use.")
	}
	return err
}
