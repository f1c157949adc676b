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
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

// version is stamped by the Makefile.
var version = "dev"

// began is when this process did.
var began = time.Now()

func main() {
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

Next steps:
  vk-firkin doctor     what this host can do, and what to install
  vk-firkin join       get this host the credentials of a node, with a token
  vk-firkin node       run this host as that node (needs a guest kit)
  vk-firkin controller spread warm pools over the nodes of a cluster
  vk-firkin snapshot   look at this host's snapshots
  vk-firkin gc         remove what this host keeps and nobody needs
  vk-firkin quarantine look at machines that nobody knows whose they are, and remove them
  vk-firkin image      push an installation of macOS to a registry`,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	cmd.AddCommand(newJoinCommand(), newNodeCommand(), newControllerCommand(), newSnapshotsCommand(), newGCCommand(), newQuarantineCommand(), newImageCommand(), newDoctorCommand(), newVersionCommand(), newShimCommand())
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
