// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Command registry serves the demo's images from a registry on loopback, in
// plain HTTP. When it is ready it prints one line on standard output:
//
//	ready busybox=HOST:PORT/busybox:latest debian=HOST:PORT/debian:latest
//
// What it does before goes to standard error. It ends at SIGINT or SIGTERM.
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

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/vk-firkin/vk-firkin/test/images"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "registry:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("registry", flag.ContinueOnError)
	flags.SetOutput(stderr)
	addr := flags.String("addr", "127.0.0.1:0", "loopback `address` to listen on")
	cache := flags.String("cache", defaultCache(), "`directory` to keep what takes long to make")
	names := flags.String("images", "busybox,debian", "comma-separated `list` of images to serve: busybox, debian")
	once := flags.Bool("prepare", false, "make the images, fill the cache and end")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	makers := map[string]func() (v1.Image, error){
		"busybox": func() (v1.Image, error) { return images.Busybox(ctx, *cache) },
		"debian":  func() (v1.Image, error) { return images.Debian(ctx, *cache, stderr) },
	}
	wanted := strings.Split(*names, ",")
	for _, n := range wanted {
		if makers[n] == nil {
			return fmt.Errorf("no image %q, there is busybox and debian", n)
		}
	}
	r, err := images.StartRegistry(images.RegistryOptions{Addr: *addr})
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	line := []string{"ready"}
	for _, n := range wanted {
		img, err := makers[n]()
		if err != nil {
			return err
		}
		ref, err := r.Push(n+":latest", img)
		if err != nil {
			return err
		}
		line = append(line, n+"="+ref)
	}
	if *once {
		return nil
	}
	if _, err := fmt.Fprintln(stdout, strings.Join(line, " ")); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

func defaultCache() string {
	if dir := os.Getenv("FIRKIN_CACHE_DIR"); dir != "" {
		return filepath.Join(dir, "test-images")
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return filepath.Join(".work", "test-images")
	}
	return filepath.Join(home, ".firkin", "cache", "test-images")
}
