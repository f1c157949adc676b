// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Command bench measures what restoring a machine costs, all in one run and in
// turns, so that a busy host hurts every side alike:
//
//   - cold boot to agent ready against restore to agent ready;
//   - the driver's restore against the same QEMU command line started by hand with
//     the same files;
//   - the private memory of an idle restored machine.
//
// It prints a table and exits with status 1 when a figure misses its target:
// restore at least 10 times faster than a boot, at most 1.25 times QEMU by hand
// (medians), at most 64 MiB private.
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

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/guest/kit"
	"github.com/vk-firkin/vk-firkin/vm/qemu"
)

// Targets, from the project's design.
const (
	minBootOverRestore = 10.0
	maxDriverOverHand  = 1.25
	maxPrivateBytes    = 64 << 20
)

// idle is how long a restored machine runs before its memory is measured.
const idle = 5 * time.Second

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// result is what --json prints. Durations are medians, in nanoseconds.
type result struct {
	ColdBoot time.Duration `json:"coldBoot"`
	// Restore is the driver's, from the call of Restore to the agent's answer.
	Restore time.Duration `json:"restore"`
	// ByHand is the same without the driver.
	ByHand time.Duration `json:"byHand"`
	// RestoreCall is from the call of Restore to the return of Resume.
	RestoreCall  time.Duration `json:"restoreCall"`
	PrivateBytes int64         `json:"privateBytes"`
	Samples      int           `json:"samples"`
	Accelerator  string        `json:"accelerator"`
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(stderr)
	kitDir := flags.String("kit", "bin/guest/amd64", "directory of the guest `kit` (make guest)")
	samples := flags.Int("samples", 10, "`number` of rounds")
	accelerator := flags.String("accelerator", "", "kvm or tcg; empty: the best that boots the kit")
	asJSON := flags.Bool("json", false, "print JSON instead of a table")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *samples < 1 {
		return errors.New("--samples wants at least one round")
	}
	k, err := kit.Load(*kitDir)
	if err != nil {
		return err
	}
	// Not the temp directory: it may be in memory, and real snapshots are on a disk.
	dir, err := os.MkdirTemp(".", ".bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	b, err := newBench(ctx, dir, qemu.Options{Arch: k.Arch, Accelerator: *accelerator, Kit: k}, stderr)
	if err != nil {
		return err
	}
	r, err := b.measure(ctx, *samples)
	if err := errors.Join(err, b.Close()); err != nil {
		return err
	}
	if *asJSON {
		encoder := json.NewEncoder(stdout)
		encoder.SetIndent("", "  ")
		if err := encoder.Encode(r); err != nil {
			return err
		}
	} else if err := table(stdout, r, b); err != nil {
		return err
	}
	return verdict(r)
}

// verdict is nil if every target is met.
func verdict(r result) error {
	var errs []error
	if f := ratio(r.ColdBoot, r.Restore); f < minBootOverRestore {
		errs = append(errs, fmt.Errorf("a restore is %.1f times faster than a boot, want at least %.0f", f, minBootOverRestore))
	}
	if f := ratio(r.Restore, r.ByHand); f > maxDriverOverHand {
		errs = append(errs, fmt.Errorf("the driver's restore takes %.2f times what QEMU takes by hand, want at most %.2f", f, maxDriverOverHand))
	}
	if r.PrivateBytes > maxPrivateBytes {
		errs = append(errs, fmt.Errorf("an idle machine has %.1f MiB of private memory, want at most %d", mib(r.PrivateBytes), maxPrivateBytes>>20))
	}
	return errors.Join(errs...)
}

func table(out io.Writer, r result, b *bench) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "%s, accelerator %s, %d rounds\tmedian\tmin\tmax\n", b.shape, r.Accelerator, r.Samples)
	for _, row := range []struct {
		what string
		all  []time.Duration
	}{
		{"cold boot to agent ready", b.boots},
		{"restore to agent ready, driver", b.restores},
		{"restore to agent ready, QEMU by hand", b.byHand},
		{"driver: Restore and Resume alone", b.calls},
	} {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", row.what, ms(median(row.all)), ms(slices.Min(row.all)), ms(slices.Max(row.all)))
	}
	fmt.Fprintf(w, "private memory, idle after restore\t%.1f MiB\n", mib(r.PrivateBytes))
	fmt.Fprintf(w, "boot / restore\t%.1f\t(at least %.0f)\n", ratio(r.ColdBoot, r.Restore), minBootOverRestore)
	fmt.Fprintf(w, "driver / by hand\t%.2f\t(at most %.2f)\n", ratio(r.Restore, r.ByHand), maxDriverOverHand)
	return w.Flush()
}

func ratio(a, b time.Duration) float64 { return float64(a) / float64(b) }
func mib(n int64) float64              { return float64(n) / (1 << 20) }
func ms(d time.Duration) string        { return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000) }

func median(all []time.Duration) time.Duration {
	sorted := slices.Sorted(slices.Values(all))
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// shapeMeasured is the machine that the targets are about.
var shapeMeasured = vm.Shape{VCPUs: 1, MemoryBytes: 256 << 20}
