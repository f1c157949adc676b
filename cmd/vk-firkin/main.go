// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Command vk-firkin turns a host into a Kubernetes node whose pods run in machines
// restored from snapshots. Run it without arguments to learn what to do next.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// version is stamped by the Makefile.
var version = "dev"

// began is when this process did.
var began = time.Now()

// privateMask: what this program and the machines that it starts make holds the memory of
// pods, and is nobody else's. What is to be read by others is made so.
const privateMask = 0o077

func main() {
	unix.Umask(privateMask)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := newRootCommand().ExecuteContext(ctx)
	stop()
	if err != nil {
		var exit exitError
		if errors.As(err, &exit) {
			os.Exit(int(exit))
		}
		fmt.Fprintln(os.Stderr, "vk-firkin:", err)
		os.Exit(1)
	}
}

// exitError ends the process with a code and without a further message: the command
// has already said what there is to say.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

func newRootCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "vk-firkin",
		Short: "A Kubernetes node whose pods run in machines restored from snapshots",
		Long: `vk-firkin turns this host into a Kubernetes node. Each pod runs in a virtual machine
that is restored from a snapshot instead of booted.

Without a command it tells how far this host has come, and what to do next.`,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			d := directories{StateDir: defaultDirectory("FIRKIN_STATE_DIR", "state")}
			f := lookAtHost(cmd.Context(), d)
			f.joins = slices.ContainsFunc(cmd.Commands(), func(c *cobra.Command) bool { return c.Name() == "join" })
			return writeNext(cmd.OutOrStdout(), f)
		},
	}
	cmd.AddCommand(newJoinCommand(), newNodeCommand(), newInstallCommand(), newUninstallCommand(), newStatusCommand(), newDoctorCommand(),
		newSnapshotsCommand(), newGCCommand(), newQuarantineCommand(), newImageCommand(),
		newControllerCommand(), newVersionCommand(), newShimCommand())
	completeFlags(cmd)
	explainUsage(cmd)
	return cmd
}

func newVersionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "vk-firkin %s %s %s/%s\n", version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return err
		},
	}
}

// newSnapshotsCommand binds the snapshot command to the state folder's flag.
func newSnapshotsCommand() *cobra.Command {
	var d directories
	cmd := newSnapshotCommand(func() (string, error) { return d.StateDir, d.validate() }, nil)
	d.addFlags(cmd.PersistentFlags())
	return cmd
}
