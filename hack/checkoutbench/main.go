// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Checkoutbench measures how long a node takes to check a ready entry out, from the request
// until the agent has answered, while nothing else happens and while a pool of another
// template is being filled. It fails when the second is slower than it may be.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"text/tabwriter"
	"time"
)

// maxRefillCost is how much slower the 99th percentile may be while another template's pool
// is being filled. On two processors the host's own scheduling is not free.
const maxRefillCost = 1.5

// block is how many samples of a kind are taken before the other kind's turn, so that
// what changes on the host falls on both.
const block = 10

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "checkoutbench:", err)
		os.Exit(1) //nolint:gocritic // nothing is left to be undone
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	flags := flag.NewFlagSet("checkoutbench", flag.ContinueOnError)
	flags.SetOutput(stderr)
	kit := flags.String("kit", "bin/guest/amd64", "directory of the guest `kit` (make guest)")
	samples := flags.Int("samples", 100, "`number` of checkouts of each kind, a multiple of 10")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *samples < block || *samples%block != 0 {
		return fmt.Errorf("--samples wants a multiple of %d", block)
	}
	n, err := newNode(ctx, *kit)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.close()) }()
	fmt.Fprintln(stderr, "Building two templates")
	if err := n.fill(ctx); err != nil {
		return err
	}
	var quiet, busy []time.Duration
	for len(busy) < *samples {
		fmt.Fprintf(stderr, "%d of %d\n", len(busy), *samples)
		for _, kind := range []struct {
			refill bool
			all    *[]time.Duration
		}{{false, &quiet}, {true, &busy}} {
			took, err := n.checkouts(ctx, kind.refill, block)
			if err != nil {
				return err
			}
			*kind.all = append(*kind.all, took...)
		}
	}
	w := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "checkout to agent answering, %d each\tmedian\tp90\tp99\tmax\n", *samples)
	for _, row := range []struct {
		what string
		all  []time.Duration
	}{{"nothing else happens", quiet}, {"another template's pool is being filled", busy}} {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", row.what, ms(percentile(row.all, 50)), ms(percentile(row.all, 90)), ms(percentile(row.all, 99)), ms(percentile(row.all, 100)))
	}
	cost := float64(percentile(busy, 99)) / float64(percentile(quiet, 99))
	fmt.Fprintf(w, "p99, with / without\t%.2f\t(at most %.1f)\n", cost, maxRefillCost)
	if err := w.Flush(); err != nil {
		return err
	}
	if cost > maxRefillCost {
		return fmt.Errorf("a refill of another template makes the slowest checkouts %.2f times as slow, at most %.1f is allowed", cost, maxRefillCost)
	}
	return nil
}

// percentile is by nearest rank.
func percentile(all []time.Duration, p int) time.Duration {
	sorted := slices.Sorted(slices.Values(all))
	return sorted[max(0, (len(sorted)*p+99)/100-1)]
}

func ms(d time.Duration) string { return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000) }
