// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/vk-firkin/vk-firkin/cmd/vk-firkin/status"
)

// statusTimeout bounds a node's answer: it asks its driver and the host's disks.
const statusTimeout = 15 * time.Second

type statusOptions struct {
	directories
	output   string
	watch    bool
	interval time.Duration
}

func newStatusCommand() *cobra.Command {
	var o statusOptions
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show this host's node: ledger, pools, machines and what was refused",
		Long: `Shows the node of this host in one screen: what it has and what takes it, its warm pools
and why one is not full, its machines, and which pods were refused lately and why. It asks
the running node; when none runs, it says what to do and shows what the records say.

It ends with exit code 1 when no node runs, or the node is not ready.`,
		Example: `  vk-firkin status --watch
  vk-firkin status -o json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.validate(); err != nil {
				return err
			}
			if o.output != "table" && o.output != "json" {
				return fmt.Errorf("unknown output %q: want table or json", o.output)
			}
			if o.interval < 100*time.Millisecond {
				return fmt.Errorf("--interval %s: want at least 100ms", o.interval)
			}
			if o.watch {
				return o.follow(cmd.Context(), cmd.OutOrStdout())
			}
			r := o.report(cmd.Context())
			if err := o.show(cmd.OutOrStdout(), r); err != nil {
				return err
			}
			if !ready(r) {
				return exitError(1)
			}
			return nil
		},
	}
	o.addFlags(cmd.Flags())
	cmd.Flags().StringVarP(&o.output, "output", "o", "table", "table or json; with --watch one JSON document a line")
	cmd.Flags().BoolVarP(&o.watch, "watch", "w", false, "show it again and again, until interrupted")
	cmd.Flags().DurationVar(&o.interval, "interval", 2*time.Second, "with --watch: how often")
	return cmd
}

// ready tells whether a node runs and can run pods.
func ready(r status.Report) bool {
	if !r.Running {
		return false
	}
	for _, c := range r.Conditions {
		if c.Type == conditionReady {
			return c.OK
		}
	}
	return false
}

// report asks the node, or reads what it has left.
func (o statusOptions) report(ctx context.Context) status.Report {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	var r status.Report
	err := ask(ctx, o.StateDir, usual, http.MethodGet, controlStatus, nil, &r)
	if err == nil {
		return r
	}
	r = recordsReport(o.directories, time.Now())
	start, logs := "", ""
	if t, ok := installedService(); ok {
		start, logs = t.Start(), t.Logs(logFile(t), crashFile(t))
	}
	r.Problem, r.Remedy = absence(o.directories, err, start, logs)
	return r
}

func (o statusOptions) show(w io.Writer, r status.Report) error {
	if o.output == "json" {
		return writeJSON(w, r)
	}
	_, err := io.WriteString(w, renderStatus(r, screenOf(w)))
	return err
}

// follow shows the status until ctx ends, on a terminal in the same place.
func (o statusOptions) follow(ctx context.Context, w io.Writer) error {
	ticker := time.NewTicker(o.interval)
	defer ticker.Stop()
	for {
		r := o.report(ctx)
		if ctx.Err() != nil {
			return nil
		}
		var err error
		on := screenOf(w)
		switch {
		case o.output == "json":
			err = json.NewEncoder(w).Encode(r)
		case on.lines > 0:
			// Home; each line and the rest of the screen are cleared after what is in them, so
			// that nothing flickers (ECMA-48: CUP, EL, ED).
			text := renderStatus(r, on)
			if lines := strings.Split(text, "\n"); len(lines) >= on.lines {
				text = strings.Join(lines[:on.lines-1], "\n")
			}
			_, err = io.WriteString(w, "\x1b[H"+strings.ReplaceAll(text, "\n", "\x1b[K\n")+"\x1b[J")
		default:
			_, err = fmt.Fprintf(w, "%s\n%s\n", r.Time.Local().Format(time.DateTime), renderStatus(r, on))
		}
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// screenOf is the terminal behind w, without bounds when there is none.
func screenOf(w io.Writer) screen {
	f, ok := w.(*os.File)
	if !ok {
		return screen{}
	}
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil || size.Col == 0 || size.Row == 0 {
		return screen{}
	}
	return screen{columns: int(size.Col), lines: int(size.Row)}
}
