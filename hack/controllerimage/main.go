// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Command controllerimage makes the image that the chart runs the controller from, without Docker:
// one program in one layer, for each architecture, under one index. The same programs make the same
// image, byte for byte. It writes an OCI archive, an OCI layout, or pushes to a registry, with the
// credentials that Docker and Podman keep for it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := command(ctx, os.Args[1:], os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "controllerimage:", err)
		os.Exit(1)
	}
}

// options is what the command line says.
type options struct {
	// binaries are paths of vk-firkin by architecture.
	binaries map[string]string
	version  string
	name     string
	caBundle string

	archive, layout string
	push, insecure  bool
}

func command(ctx context.Context, args []string, out io.Writer) error {
	o := options{binaries: map[string]string{}}
	flags := flag.NewFlagSet("controllerimage", flag.ContinueOnError)
	flags.Func("binary", "ARCH=PATH of a vk-firkin for Linux, once for each architecture of the image", func(s string) error {
		arch, path, ok := strings.Cut(s, "=")
		if !ok || arch == "" || path == "" {
			return errors.New("want ARCH=PATH")
		}
		if _, twice := o.binaries[arch]; twice {
			return fmt.Errorf("architecture %s is given twice", arch)
		}
		o.binaries[arch] = path
		return nil
	})
	flags.StringVar(&o.version, "version", "dev", "version, for the image's labels")
	flags.StringVar(&o.name, "name", "vk-firkin:dev", "name of the image, REPOSITORY:TAG, with the registry in front to push it")
	flags.StringVar(&o.caBundle, "ca-bundle", "", "file of authorities to trust, in PEM. The controller needs none: the cluster gives each pod its own")
	flags.StringVar(&o.archive, "archive", "", "write an OCI archive to this file")
	flags.StringVar(&o.layout, "layout", "", "write an OCI layout to this directory, which must not be there")
	flags.BoolVar(&o.push, "push", false, "push it to the registry of its name")
	flags.BoolVar(&o.insecure, "insecure", false, "speak plain HTTP to the registry (to one on loopback that is done anyway)")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("unexpected arguments %q", flags.Args())
	}
	if len(o.binaries) == 0 {
		return errors.New("--binary is missing: `make image` builds the programs and gives them")
	}
	return run(ctx, o, out)
}

func run(ctx context.Context, o options, out io.Writer) error {
	index, err := build(o)
	if err != nil {
		return err
	}
	digest, err := index.Digest()
	if err != nil {
		return fmt.Errorf("digest of the image: %w", err)
	}
	if o.layout != "" {
		if err := writeLayout(o.layout, o.name, index); err != nil {
			return fmt.Errorf("write layout %s: %w", o.layout, err)
		}
	}
	if o.archive != "" {
		if err := os.MkdirAll(filepath.Dir(o.archive), 0o755); err != nil {
			return err
		}
		if err := writeArchive(o.archive, o.name, index); err != nil {
			return fmt.Errorf("write archive %s: %w", o.archive, err)
		}
	}
	if o.push {
		if err := push(ctx, o.name, o.insecure, index); err != nil {
			return fmt.Errorf("push %s: %w", o.name, err)
		}
	}
	_, err = fmt.Fprintf(out, "%s@%s\n", o.name, digest)
	return err
}
