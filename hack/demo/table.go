// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"
)

// benchmark is what hack/bench --json prints. Durations are medians.
type benchmark struct {
	ColdBoot     time.Duration `json:"coldBoot"`
	Restore      time.Duration `json:"restore"`
	PrivateBytes int64         `json:"privateBytes"`
	Samples      int           `json:"samples"`
	Accelerator  string        `json:"accelerator"`
}

// podBenchmark is what hack/podbench --json prints. Durations are medians.
type podBenchmark struct {
	Warm    time.Duration `json:"warm"`
	Restore time.Duration `json:"restore"`
	Cold    time.Duration `json:"cold"`
	Samples int           `json:"samples"`
}

// table prints the figures of this run.
func table(dir string) error {
	var b benchmark
	if err := readJSON(filepath.Join(dir, "bench.json"), &b); err != nil {
		return err
	}
	var p podBenchmark
	if err := readJSON(filepath.Join(dir, "podbench.json"), &p); err != nil {
		return err
	}
	var starts []podStart
	if err := readJSON(startsPath(dir), &starts); err != nil {
		return err
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight|tabwriter.Debug)
	fmt.Fprintf(w, "cold boot to agent ready\t %s\t median of %d, accelerator %s\n", seconds(b.ColdBoot), b.Samples, b.Accelerator)
	fmt.Fprintf(w, "restore to agent ready\t %s\t %.0f times faster\n", seconds(b.Restore), b.ColdBoot.Seconds()/b.Restore.Seconds())
	for _, s := range starts {
		fmt.Fprintf(w, "pod bound to Running\t %s\t %s\n", seconds(s.Bound), s.What)
	}
	for _, row := range []struct {
		path string
		took time.Duration
	}{{"warm checkout", p.Warm}, {"restore", p.Restore}, {"cold boot", p.Cold}} {
		fmt.Fprintf(w, "pod of one template bound to first output\t %s\t by %s, median of %d\n", seconds(row.took), row.path, p.Samples)
	}
	fmt.Fprintf(w, "private memory of an idle machine\t %.0f MiB\t of 256 MiB\n", float64(b.PrivateBytes)/(1<<20))
	return w.Flush()
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.3f s", d.Seconds()) }
