// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/spf13/cobra"

	"github.com/vk-firkin/vk-firkin/vm/image"
)

// newImageCommand makes images that no other tool makes.
func newImageCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "image",
		Short: "Make images of macOS for a registry",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newPushMacOSCommand())
	return cmd
}

func newPushMacOSCommand() *cobra.Command {
	var files image.MacOSFiles
	var opts image.PushOptions
	chunkMiB := int64(1024)
	cmd := &cobra.Command{
		Use:   "push-macos REFERENCE",
		Short: "Push an installation of macOS, for SnapshotTemplates with guestOS: macos",
		Long: `Pushes four files that Apple's Virtualization framework made as one OCI artifact: the raw
disk of a virtual machine with macOS installed, its auxiliary storage, and the data
representations of its hardware model and machine identifier. The installation must have the
darwin agent of vk-firkin, started by launchd, and must be shut down.

Credentials are those of docker login. It prints the reference with its digest.`,
		Example: `  vk-firkin image push-macos registry.example/team/macos:15 \
    --disk disk.img --auxiliary-storage aux.img \
    --hardware-model hardware-model.bin --machine-identifier machine-identifier.bin`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			opts.Auth, opts.ChunkBytes = authn.DefaultKeychain, chunkMiB<<20
			opts.Progress = func(layer, of int) { fmt.Fprintf(cmd.ErrOrStderr(), "layer %d of %d\n", layer, of) }
			digest, err := image.PushMacOS(cmd.Context(), args[0], files, opts)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), digest)
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&files.Disk, "disk", "", "raw disk")
	f.StringVar(&files.AuxiliaryStorage, "auxiliary-storage", "", "auxiliary storage (VZMacAuxiliaryStorage)")
	f.StringVar(&files.HardwareModel, "hardware-model", "", "data representation of the hardware model")
	f.StringVar(&files.MachineIdentifier, "machine-identifier", "", "data representation of the machine identifier")
	f.Int64Var(&chunkMiB, "chunk-mib", chunkMiB, "MiB of the disk in one layer")
	f.StringSliceVar(&opts.InsecureRegistries, "insecure-registry", nil, "host or host:port that is spoken to in plain HTTP")
	f.StringVar(&opts.TempDir, "temp-dir", "", "directory with room for one compressed chunk (default: the system's)")
	for _, name := range []string{"disk", "auxiliary-storage", "hardware-model", "machine-identifier"} {
		_ = cmd.MarkFlagRequired(name) // the flag exists
	}
	return cmd
}
