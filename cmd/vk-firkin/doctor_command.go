// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/vk-firkin/vk-firkin/cmd/vk-firkin/doctor"
	"github.com/vk-firkin/vk-firkin/vm/guest/kit"
	"github.com/vk-firkin/vk-firkin/vm/qemu"
)

// doctorOptions are the flags of `vk-firkin doctor`; they mean what they mean to
// `vk-firkin node`.
type doctorOptions struct {
	directories
	guestKit string
	output   string
	skipBoot bool
}

func newDoctorCommand() *cobra.Command {
	var o doctorOptions
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Tell what this host can do, and what to install",
		Long: `doctor looks at this host and says what is there, what is missing and what to do
about it. Where there is a KVM device that nobody tried yet, it
boots the guest kit once to see whether it works, which takes up to 20 seconds.

On a Mac it looks at the session, keychain and screen of the user that runs it: run it as
the user that the node runs as. macOS may ask for the login keychain's password meanwhile.

It ends with exit code 1 when something keeps pods from running.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context(), cmd.OutOrStdout()) },
	}
	flags := cmd.Flags()
	o.directories.addFlags(flags)
	flags.StringVar(&o.guestKit, "guest-kit", defaultGuestKit(), "folder of the guest kit, built by make guest")
	flags.StringVarP(&o.output, "output", "o", "table", "table or json")
	flags.BoolVar(&o.skipBoot, "skip-boot", false, "do not boot the guest kit")
	return cmd
}

func (o doctorOptions) run(ctx context.Context, out io.Writer) error {
	var errs []error
	if o.output != "table" && o.output != "json" {
		errs = append(errs, fmt.Errorf("--output %q: want table or json", o.output))
	}
	for flag, dir := range map[string]*string{"--state-dir": &o.StateDir, "--cache-dir": &o.CacheDir, "--guest-kit": &o.guestKit} {
		if *dir == "" {
			errs = append(errs, fmt.Errorf("%s is not set and there is no home folder", flag))
			continue
		}
		abs, err := filepath.Abs(*dir)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s %q: %w", flag, *dir, err))
		}
		*dir = abs
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	examine := doctor.Options{OS: runtime.GOOS, Arch: runtime.GOARCH, StateDir: o.StateDir, CacheDir: o.CacheDir, KitDir: o.guestKit, VerifyKit: kit.Verify}
	examine.Framework = func() error { _, _, err := newFramework(); return err }
	if !o.skipBoot {
		examine.Accelerator = o.accelerator
	}
	findings := doctor.Examine(ctx, doctor.ThisHost{}, examine)
	show := printFindings
	if o.output == "json" {
		show = printFindingsJSON
	}
	if err := show(out, findings); err != nil {
		return fmt.Errorf("print findings: %w", err)
	}
	if doctor.Failed(findings) {
		return exitError(1)
	}
	return nil
}

// accelerator boots the guest kit where nobody knows yet, in a directory of its own.
// The answer is taken from the cache directory, and kept there for the node, when
// there is one.
func (o doctorOptions) accelerator(ctx context.Context) (_ string, err error) {
	k, err := kit.Load(o.guestKit)
	if err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp("", "vk-firkin-doctor-")
	if err != nil {
		return "", fmt.Errorf("make directory for a trial: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	cache := dir
	if _, statErr := os.Stat(o.CacheDir); statErr == nil {
		cache = o.CacheDir
	}
	driver, err := qemu.Open(ctx, qemu.Options{StateDir: dir, CacheDir: cache, Kit: k})
	if err != nil {
		return "", err
	}
	accelerator := driver.Features().Accelerator
	return accelerator, driver.Close()
}

func printFindings(w io.Writer, findings []doctor.Finding) error {
	table := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(table, "CHECK\tSTATUS\tFOUND")
	for _, f := range findings {
		fmt.Fprintf(table, "%s\t%s\t%s\n", f.Name, f.Status, f.Found)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	first := true
	for _, f := range findings {
		if f.Status == doctor.OK || f.Remedy == "" {
			continue
		}
		if first {
			fmt.Fprintln(w, "\nWhat to do:")
			first = false
		}
		if _, err := fmt.Fprintf(w, "  %s: %s\n", f.Name, f.Remedy); err != nil {
			return err
		}
	}
	return nil
}

func printFindingsJSON(w io.Writer, findings []doctor.Finding) error {
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "  ")
	return encoder.Encode(struct {
		Findings []doctor.Finding `json:"findings"`
	}{findings})
}
