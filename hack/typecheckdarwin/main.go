// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Command typecheckdarwin type-checks packages of this repository, their tests and all
// they depend on as a build for darwin/arm64 with cgo would see them, on any host.
//
//	go run ./hack/typecheckdarwin [-tags LIST] [-tests=false] [PACKAGE...]
//
// Such a build needs Apple's compiler and headers, because cgo asks them what the names
// in package C are. Without them the sources are still there: this command checks them
// with go/types and takes every use of package C for granted (FakeImportC). That is
// enough to see whether our calls fit the binding that we build against. It is not
// enough to know that the C part of the binding compiles, links or works.
//
// What FakeImportC could hide is a fault too: a package of ours that uses cgo itself,
// and a use of a declaration whose type mentions a C type, since such a use fits
// anything.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"time"
)

func main() {
	tags := flag.String("tags", "", "build tags, separated by commas")
	tests := flag.Bool("tests", true, "check test files too")
	flag.Parse()
	patterns := flag.Args()
	if len(patterns) == 0 {
		patterns = []string{"./..."}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, listing{dir: ".", patterns: patterns, tags: *tags, tests: *tests}, os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "typecheckdarwin:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, what listing, out io.Writer) error {
	started := time.Now()
	packages, err := list(ctx, what)
	if err != nil {
		return err
	}
	c := newChecker(packages)
	faults := c.all()
	for _, fault := range faults {
		fmt.Fprintln(out, fault)
	}
	ours, deps := c.count()
	if len(faults) > 0 {
		return fmt.Errorf("%d faults in %d packages and %d dependencies", len(faults), ours, deps)
	}
	fmt.Fprintf(out, "typecheckdarwin: %d packages with their tests, %d dependencies, %s\n", ours, deps, time.Since(started).Round(100*time.Millisecond))
	return nil
}
