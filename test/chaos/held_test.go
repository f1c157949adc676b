// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package chaos

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// held is how much of the host the node process has.
type held struct{ descriptors, goroutines int }

// slack is how much more a process may hold than before: connections to the API server that are
// kept for the next request.
const slack = 8

// holds counts it.
func (w *world) holds(ctx context.Context) (held, error) {
	n, _, err := w.node.Metric(ctx, "go_goroutines")
	return held{descriptors: len(w.descriptors()), goroutines: int(n)}, err
}

// descriptors are what the node process has open. A host that cannot tell has none.
func (w *world) descriptors() []string {
	dir := filepath.Join("/proc", strconv.Itoa(w.node.PID()), "fd")
	all, _ := os.ReadDir(dir)
	var open []string
	for _, e := range all {
		if target, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil {
			open = append(open, target)
		}
	}
	return open
}

// grown tells what the node process holds more of, with nothing to run, than when it had two
// pools and nothing had been disturbed.
func (w *world) grown(ctx context.Context) []string {
	now, err := w.holds(ctx)
	switch {
	case err != nil:
		return []string{err.Error()}
	case now.descriptors > w.held.descriptors+slack:
		return []string{fmt.Sprintf("the node process has %d open descriptors, had %d: %q", now.descriptors, w.held.descriptors, w.descriptors())}
	case now.goroutines > w.held.goroutines+slack:
		return []string{fmt.Sprintf("the node process has %d goroutines, had %d", now.goroutines, w.held.goroutines)}
	}
	return nil
}

// nothingHeld: no process that is no machine works in the node's folders, and the node process
// has no file open that was removed.
func (w *world) nothingHeld(context.Context) error {
	var errs []error
	for _, s := range w.node.Strangers() {
		errs = append(errs, errors.New(s))
	}
	machines := w.machineDirectories()
	for _, file := range w.descriptors() {
		below, isOurs := strings.CutPrefix(file, w.disk.Path+"/")
		if !isOurs {
			continue
		}
		part := strings.Split(below, "/")
		if strings.HasSuffix(file, " (deleted)") || len(part) > 2 && part[1] == "machines" && !slices.Contains(machines, part[2]) {
			errs = append(errs, fmt.Errorf("the node process has %s open", below))
		}
	}
	return errors.Join(errs...)
}
