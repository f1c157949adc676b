// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Command demo is what hack/demo.sh runs: it starts registry, control plane and node
// (up), waits for them (wait), shows pods as a user would (run) and prints the
// figures of the run (table).
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := command(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func command(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errors.New("usage: demo up|wait|run|registry|table --dir DIR")
	}
	flags := flag.NewFlagSet("demo "+args[0], flag.ContinueOnError)
	dir := flags.String("dir", "", "where the demo keeps everything")
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	if *dir == "" {
		return errors.New("--dir is missing")
	}
	switch args[0] {
	case "up":
		return up(ctx, *dir)
	case "wait":
		return wait(ctx, *dir)
	case "run":
		return run(ctx, *dir)
	case "registry":
		r, err := readRunning(*dir)
		if err != nil {
			return err
		}
		fmt.Println(r.Registry)
		return nil
	case "table":
		return table(*dir)
	}
	return fmt.Errorf("unknown command %q", args[0])
}

// running is what up tells the other commands when everything is ready.
type running struct {
	Kubeconfig string `json:"kubeconfig"`
	Kubectl    string `json:"kubectl"`
	Registry   string `json:"registry"`
	StateDir   string `json:"stateDir"`
	Metrics    string `json:"metrics"`
	NodeLog    string `json:"nodeLog"`
}

func runningPath(dir string) string { return filepath.Join(dir, "up.json") }

func readRunning(dir string) (running, error) {
	var r running
	err := readJSON(runningPath(dir), &r)
	return r, err
}

func readJSON(path string, into any) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, into); err != nil {
		return fmt.Errorf("decode %s: %w", path, err)
	}
	return nil
}

// writeJSON is atomic: a reader sees the whole file or none.
func writeJSON(path string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(path+".tmp", append(b, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(path+".tmp", path)
}

// wait returns when up is ready, passing on what it prints meanwhile.
func wait(ctx context.Context, dir string) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Minute) // debootstrap may be slow
	defer cancel()
	var shown int
	for {
		log, _ := os.ReadFile(filepath.Join(dir, "up.log"))
		if len(log) > shown {
			_, _ = os.Stdout.Write(log[shown:])
			shown = len(log)
		}
		if _, err := readRunning(dir); err == nil {
			return nil
		}
		if _, err := os.Stat(filepath.Join(dir, "up.failed")); err == nil {
			return errors.New("it did not start")
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}
