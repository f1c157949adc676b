// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Checkoutbench measures how long a node takes to check a ready entry out, from the request
// until the agent has answered: while nothing else happens, while a process of the host only
// computes, and while a pool of another template is being filled. What a refill costs a
// checkout beyond the processor that it uses is what they wait for each other, and it
// fails when that is more than nothing.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"syscall"
	"text/tabwriter"
	"time"
)

// maxRefillCost is how much slower the 99th percentile may be while another template's pool
// is being filled than without: than the slower of the other two kinds, since a refill
// also uses a processor. The rest is chance: it is the second slowest of a hundred.
const maxRefillCost = 1.5

// kind is what happens beside a checkout.
type kind string

const (
	kindQuiet   kind = "nothing else happens"
	kindCompute kind = "another process computes"
	kindRefill  kind = "another template's pool is being filled"
)

var kinds = []kind{kindQuiet, kindCompute, kindRefill}

// envCompute makes this program the process that computes.
const envCompute = "CHECKOUTBENCH_COMPUTE"

// block is how many samples of a kind are taken before the other kind's turn, so that
// what changes on the host falls on both.
const block = 10

func main() {
	if os.Getenv(envCompute) != "" {
		compute()
	}
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
	all := map[kind][]time.Duration{}
	for len(all[kindRefill]) < *samples {
		fmt.Fprintf(stderr, "%d of %d\n", len(all[kindRefill]), *samples)
		for _, k := range kinds {
			took, err := n.checkouts(ctx, k, block)
			if err != nil {
				return err
			}
			all[k] = append(all[k], took...)
		}
	}
	w := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "checkout to agent answering, %d each\tmedian\tp90\tp99\tmax\n", *samples)
	for _, k := range kinds {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", k, ms(percentile(all[k], 50)), ms(percentile(all[k], 90)), ms(percentile(all[k], 99)), ms(percentile(all[k], 100)))
	}
	without := max(percentile(all[kindQuiet], 99), percentile(all[kindCompute], 99))
	cost := float64(percentile(all[kindRefill], 99)) / float64(without)
	fmt.Fprintf(w, "p99, with a refill / without\t%.2f\t(at most %.1f)\n", cost, maxRefillCost)
	if err := w.Flush(); err != nil {
		return err
	}
	if cost > maxRefillCost {
		return fmt.Errorf("a refill of another template makes the slowest checkouts %.2f times as slow, at most %.1f is allowed", cost, maxRefillCost)
	}
	return nil
}

// compute uses one processor until it is killed, or its parent is gone.
func compute() {
	for os.Getppid() != 1 {
		for x := range 1 << 24 {
			_ = x * x
		}
	}
	os.Exit(0)
}

// computing starts a process that computes; end ends it.
func computing(ctx context.Context) (end func(), err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, self)
	cmd.Env = append(os.Environ(), envCompute+"=1", "GOMAXPROCS=1")
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}, nil
}

// percentile is by nearest rank.
func percentile(all []time.Duration, p int) time.Duration {
	sorted := slices.Sorted(slices.Values(all))
	return sorted[max(0, (len(sorted)*p+99)/100-1)]
}

func ms(d time.Duration) string { return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000) }
