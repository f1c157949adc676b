// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/snapshot"
)

// newSnapshotCommand looks at the snapshots of this host, and removes single ones. stateDir
// gives the state root. openDriver, when not nil, is used by rm to learn which machines
// still exist; without one, every recorded use of a snapshot is believed.
func newSnapshotCommand(stateDir func() (string, error), openDriver func(context.Context) (vm.Driver, error)) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "snapshot",
		Short: "Look at, verify and remove this host's snapshots",
		Long: `Snapshots are what pods' machines are restored from. The node builds them when it
needs them, so removing one costs a cold boot and nothing else.

ls, inspect and verify work while a node runs. rm needs the node stopped. What nobody
needs any more, "vk-firkin gc" removes, and the node by itself.`,
		Example: `  vk-firkin snapshot ls
  vk-firkin snapshot verify`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	s := &snapshotCommand{stateDir: stateDir, openDriver: openDriver}
	cmd.AddCommand(s.ls(), s.inspect(), s.verify(), s.rm())
	return cmd
}

type snapshotCommand struct {
	stateDir   func() (string, error)
	openDriver func(context.Context) (vm.Driver, error)
}

// read opens the store to look at it.
func (s *snapshotCommand) read() (*snapshot.Store, error) {
	dir, err := s.dir()
	if err != nil {
		return nil, err
	}
	return snapshot.OpenReadOnly(dir, snapshot.Options{})
}

func (s *snapshotCommand) dir() (string, error) {
	root, err := s.stateDir()
	if err != nil {
		return "", err
	}
	return filepath.Join(root, "snapshots"), nil
}

// change opens the store to change it, for f.
func (s *snapshotCommand) change(ctx context.Context, f func(*snapshot.Store) error) (err error) {
	dir, err := s.dir()
	if err != nil {
		return err
	}
	var opts snapshot.Options
	if s.openDriver != nil {
		d, err := s.openDriver(ctx)
		if err != nil {
			return fmt.Errorf("open driver, to learn which machines exist: %w", err)
		}
		defer func() { err = errors.Join(err, d.Close()) }()
		opts.Driver = d
	}
	store, err := snapshot.Open(ctx, dir, opts)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	return f(store)
}

func (s *snapshotCommand) ls() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List snapshots, quarantined ones last",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkOutput(output); err != nil {
				return err
			}
			store, err := s.read()
			if err != nil {
				return err
			}
			defer store.Close()
			infos, err := store.List(cmd.Context())
			if err != nil {
				return err
			}
			switch output {
			case "json":
				if infos == nil {
					infos = []snapshot.Info{} // an empty list, not null
				}
				return writeJSON(cmd.OutOrStdout(), infos)
			case "name":
				for _, i := range infos {
					fmt.Fprintln(cmd.OutOrStdout(), i.Name)
				}
				return nil
			}
			return writeSnapshots(cmd.OutOrStdout(), infos, time.Now())
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "table", "table, name or json")
	return cmd
}

func checkOutput(o string) error {
	switch o {
	case "table", "name", "json":
		return nil
	}
	return fmt.Errorf("unknown output %q: want table, name or json", o)
}

func (s *snapshotCommand) inspect() *cobra.Command {
	return &cobra.Command{
		Use:               "inspect NAME",
		Short:             "Show one snapshot in full, as JSON",
		Long:              "Show one snapshot in full, as JSON. NAME may be shortened, to four characters or more.",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeNames(s.names),
		RunE: func(cmd *cobra.Command, args []string) error {
			store, err := s.read()
			if err != nil {
				return err
			}
			defer store.Close()
			info, err := store.Inspect(cmd.Context(), args[0])
			if err != nil {
				return unknownSnapshot(err)
			}
			return writeJSON(cmd.OutOrStdout(), info)
		},
	}
}

// unknownSnapshot says what to do about a name that no snapshot has.
func unknownSnapshot(err error) error {
	if errors.Is(err, snapshot.ErrNotFound) {
		return fmt.Errorf("%w; vk-firkin snapshot ls tells which there are", err)
	}
	return err
}

func (s *snapshotCommand) verify() *cobra.Command {
	return &cobra.Command{
		Use:   "verify [NAME...]",
		Short: "Read every file of snapshots and compare it with what was saved",
		Long: `Read every file of snapshots and compare it with what was saved; without names, of
all that are in use. It changes nothing: the node quarantines a damaged snapshot
when it comes to use it. Exits with 1 when one is damaged.`,
		ValidArgsFunction: completeNames(s.names),
		RunE: func(cmd *cobra.Command, args []string) error {
			store, err := s.read()
			if err != nil {
				return err
			}
			defer store.Close()
			if len(args) == 0 {
				infos, err := store.List(cmd.Context())
				if err != nil {
					return err
				}
				for _, i := range infos {
					if i.Status != snapshot.StatusQuarantined {
						args = append(args, i.Name)
					}
				}
			}
			bad := 0
			for _, name := range args {
				info, err := store.Verify(cmd.Context(), name)
				switch {
				case err == nil:
					fmt.Fprintf(cmd.OutOrStdout(), "%s  ok, %d files, %s\n", shortName(info.Name), len(info.Manifest.Members), mib(info.Manifest.Bytes()))
				case errors.Is(err, vm.ErrSnapshotInvalid):
					bad++
					fmt.Fprintf(cmd.OutOrStdout(), "%s  DAMAGED: %v\n", shortName(info.Name), err)
				default:
					return unknownSnapshot(err)
				}
			}
			if bad > 0 {
				return fmt.Errorf("%d of %d snapshots are damaged: remove them with the node stopped, or let the node replace them", bad, len(args))
			}
			return nil
		},
	}
}

func (s *snapshotCommand) rm() *cobra.Command {
	return &cobra.Command{
		Use:               "rm NAME...",
		Aliases:           []string{"remove", "delete"},
		Short:             "Remove snapshots that no machine needs",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: completeNames(s.names),
		RunE: func(cmd *cobra.Command, args []string) error {
			return s.change(cmd.Context(), func(store *snapshot.Store) error {
				var errs []error
				for _, name := range args {
					info, err := store.Delete(cmd.Context(), name)
					if err != nil {
						errs = append(errs, unknownSnapshot(err))
						continue
					}
					fmt.Fprintf(cmd.OutOrStdout(), "%s  removed\n", shortName(info.Name))
				}
				return errors.Join(errs...)
			})
		},
	}
}

// writeSnapshots writes the table of ls.
func writeSnapshots(w io.Writer, infos []snapshot.Info, now time.Time) error {
	if len(infos) == 0 {
		_, err := fmt.Fprintln(w, "No snapshots. The node builds them when it needs them.")
		return err
	}
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	fmt.Fprintln(t, "NAME\tKIND\tSHAPE\tSTATUS\tON DISK\tMACHINES\tAGE\tUNUSED\tTEMPLATE")
	for _, i := range infos {
		kind, shape, age := "-", "-", "-"
		if i.Manifest.Version != 0 {
			kind, shape = string(i.Manifest.Kind), i.Manifest.Shape.String()
			age = span(now.Sub(i.Manifest.Created))
		}
		unused, template := "-", "-"
		if i.Manifest.Template != nil {
			template = i.Manifest.Template.ID()
		}
		if len(i.Machines) == 0 {
			unused = span(now.Sub(i.LastUsed))
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%d\t%s\t%s\t%s\n", shortName(i.Name), kind, shape, i.Status, mib(i.AllocatedBytes), len(i.Machines), age, unused, template)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, i := range infos {
		if i.Problem != "" {
			if _, err := fmt.Fprintf(w, "%s: %s\n", shortName(i.Name), i.Problem); err != nil {
				return err
			}
		}
	}
	return nil
}

func writeJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// shortName is enough of a snapshot's name to type it. A quarantined one keeps its
// whole name: its key alone names its successor.
func shortName(name string) string {
	if strings.Contains(name, "-") {
		return name
	}
	return name[:min(12, len(name))]
}

// mib rounds up: what takes space is not 0.
func mib(n int64) string { return fmt.Sprintf("%d MiB", (n+1<<20-1)>>20) }

// span is a duration as kubectl writes an age.
func span(d time.Duration) string {
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", max(0, int(d.Seconds())))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}
