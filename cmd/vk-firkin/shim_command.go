// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/vk-firkin/vk-firkin/vm/vz"
	"github.com/vk-firkin/vk-firkin/vm/vz/shim"
)

// shimCommand is the name of the command that a machine of the vz driver lives in.
const shimCommand = "machine-shim"

// shimListener is the descriptor of the control socket, which the node hands over.
const shimListener = 3

// newShimCommand is the process of one machine. A node starts it; it is hidden because
// nobody else has a reason to.
func newShimCommand() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:    shimCommand,
		Short:  "Own one machine of Virtualization.framework, until it ends (started by a node)",
		Args:   cobra.NoArgs,
		Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			// The node may end before the machine does: what is written to it then must not
			// end this process, nor may a terminal that the node was started from.
			signal.Ignore(syscall.SIGPIPE, syscall.SIGHUP, os.Interrupt)
			listener, err := shim.Listener(shimListener)
			if err != nil {
				return err
			}
			logger := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
			framework, _, err := newFramework()
			if err != nil {
				return err
			}
			return shim.Run(cmd.Context(), shim.Options{
				Dir: dir, Listener: listener, Framework: framework, Slots: vz.ImageSlots, Build: version, Logger: logger,
				Abort: func() { os.Exit(1) },
			})
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", "the machine's directory")
	_ = cmd.MarkFlagRequired("dir") // it exists
	return cmd
}
