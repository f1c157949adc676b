// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Podbench measures pods on a control plane, a controller and a node that it starts, or on a
// cluster that has them, and fails when a target is missed:
//
//   - how pods of one template start, from being bound to the first output, by each path that a
//     machine can come by, in one run: a checkout has to be faster than the others by far;
//   - with --idle, what a node with so many idle pods costs, and how old the status of others is.
//   - with --adopt, what a restart of the node process costs with so many pods.
package main

import (
	"context"
	"encoding/json"
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

// What a warm checkout has to be worth.
const (
	minRestoreOverWarm = 2.0
	minColdOverWarm    = 10.0
)

// result is one run. Durations are medians, in JSON in nanoseconds, of a pod being bound
// until the first output of its process.
type result struct {
	Warm    time.Duration `json:"warm"`
	Restore time.Duration `json:"restore"`
	Cold    time.Duration `json:"cold"`
	Samples int           `json:"samples"`

	all map[string][]time.Duration
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "podbench:", err)
		os.Exit(1) //nolint:gocritic // nothing is left to be undone
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	flags := flag.NewFlagSet("podbench", flag.ContinueOnError)
	flags.SetOutput(stderr)
	samples := flags.Int("samples", 10, "`number` of rounds, each with a pod by each path")
	kubeconfig := flags.String("kubeconfig", "", "a cluster with a controller and a node; empty: start one")
	image := flags.String("image", "", "`image` with a shell, with --kubeconfig")
	asJSON := flags.Bool("json", false, "print JSON instead of a table")
	idle := flags.Int("idle", 0, "measure a node at rest with this `number` of pods instead of how pods start")
	adoptees := flags.Int("adopt", 0, "measure instead how long a node process takes to have the machines of so many `pods` again that the one before left, --samples times")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *samples < 1 || *idle < 0 {
		return errors.New("--samples wants at least one round, --idle no negative number")
	}
	if *adoptees > 0 {
		return adopt(ctx, stdout, stderr, *adoptees, *samples)
	}
	f := &fleet{kubeconfig: *kubeconfig, image: *image}
	if f.kubeconfig == "" {
		if err := f.start(ctx, stderr); err != nil {
			return err
		}
		defer f.stop()
	}
	b, err := newBench(f, stderr)
	if err != nil {
		return err
	}
	if *idle > 0 {
		r, err := b.measureRest(ctx, *idle, *samples)
		if err != nil {
			return err
		}
		return errors.Join(r.table(stdout), r.verdict())
	}
	r, err := b.measure(ctx, *samples)
	if err == nil {
		err = f.profile(ctx, stderr)
	}
	if err := errors.Join(err, b.cleanUp()); err != nil {
		return err
	}
	if *asJSON {
		encoder := json.NewEncoder(stdout)
		encoder.SetIndent("", "  ")
		if err := encoder.Encode(r); err != nil {
			return err
		}
	} else if err := table(stdout, r); err != nil {
		return err
	}
	return verdict(r)
}

// verdict is nil if every target is met.
func verdict(r result) error {
	var errs []error
	if f := ratio(r.Restore, r.Warm); f < minRestoreOverWarm {
		errs = append(errs, fmt.Errorf("a warm checkout is %.2f times faster than a restore, want at least %.0f", f, minRestoreOverWarm))
	}
	if f := ratio(r.Cold, r.Warm); f < minColdOverWarm {
		errs = append(errs, fmt.Errorf("a warm checkout is %.1f times faster than a cold boot, want at least %.0f", f, minColdOverWarm))
	}
	return errors.Join(errs...)
}

func table(out io.Writer, r result) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "pod bound to first output, %d rounds\tmedian\tmin\tmax\n", r.Samples)
	for _, path := range paths {
		all := r.all[path]
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", path, ms(median(all)), ms(slices.Min(all)), ms(slices.Max(all)))
	}
	fmt.Fprintf(w, "restore / warm\t%.2f\t(at least %.0f)\n", ratio(r.Restore, r.Warm), minRestoreOverWarm)
	fmt.Fprintf(w, "cold / warm\t%.1f\t(at least %.0f)\n", ratio(r.Cold, r.Warm), minColdOverWarm)
	return w.Flush()
}

func ratio(a, b time.Duration) float64 { return float64(a) / float64(b) }
func ms(d time.Duration) string        { return fmt.Sprintf("%.0f ms", float64(d.Microseconds())/1000) }

func median(all []time.Duration) time.Duration {
	sorted := slices.Sorted(slices.Values(all))
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}
