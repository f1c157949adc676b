// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"unicode"
	"unicode/utf8"

	"github.com/vk-firkin/vk-firkin/cmd/vk-firkin/status"
)

// screen is what a status is shown on; zero is without bounds.
type screen struct{ columns, lines int }

// Shown at most, when the screen has no bounds: the rest is in -o json.
const (
	shownMachines = 40
	shownRefusals = 10
)

// renderStatus is the status for people, in one screen. What is in it may come from
// images, pods' owners and other nodes: it is printed without what a terminal obeys. Pure.
func renderStatus(r status.Report, on screen) string {
	var b bytes.Buffer
	writeHead(&b, r)
	if l := r.Ledger; l != nil {
		table(&b, func(t *tabwriter.Writer) {
			fmt.Fprintln(t, "LEDGER\tCPU\tMEMORY\tDISK\tMACOS GUESTS")
			for _, row := range []struct {
				name string
				of   status.Amounts
			}{{"capacity", l.Capacity}, {"active", l.Active}, {"warm", l.Warm}, {"available", l.Available}} {
				fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%d\n", row.name, cores(row.of.MilliCPU), mib(row.of.MemoryBytes), mib(row.of.DiskBytes), row.of.Slots)
			}
		})
	}
	if len(r.Pools) > 0 {
		table(&b, func(t *tabwriter.Writer) {
			fmt.Fprintln(t, "POOL\tTEMPLATE\tDESIRED\tREADY\tRESTORING\tIN USE\tSHORT FOR\tNOT FILLED BECAUSE")
			for _, p := range r.Pools {
				short := "-"
				if !p.UnmetSince.IsZero() {
					short = span(r.Time.Sub(p.UnmetSince))
				}
				fmt.Fprintf(t, "%s\t%s\t%d\t%d\t%d\t%d\t%s\t%s\n", plain(p.Name), dash(p.Template), p.Desired, p.Ready, p.Restoring, p.Active, short, reasonAnd(p.Skip, p.Message))
			}
		})
	}
	if failing := slices.DeleteFunc(slices.Clone(r.Templates), func(t status.Template) bool { return t.Phase == "Ready" }); len(failing) > 0 {
		table(&b, func(t *tabwriter.Writer) {
			fmt.Fprintln(t, "TEMPLATE NOT READY\tREVISION\tPHASE\tSTEP\tMESSAGE")
			for _, x := range failing {
				fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", plain(x.Name), plain(x.Revision), plain(x.Phase), dash(x.Step), dash(x.Message))
			}
		})
	}
	writeTrouble(&b, r)
	if len(r.Machines) > 0 {
		limit := shownMachines
		if on.lines > 0 {
			limit = max(3, on.lines-bytes.Count(b.Bytes(), []byte("\n"))-4)
		}
		table(&b, func(t *tabwriter.Writer) { writeMachines(t, r, limit) })
	} else {
		fmt.Fprintln(&b, "\nNo machines.")
	}
	return fit(b.String(), on.columns)
}

// conditionReady is the condition that says whether pods can run.
const conditionReady = "Ready"

// conditionInCluster is the condition that says whether the API server has the node as Ready.
const conditionInCluster = "ReadyInCluster"

func writeHead(b *bytes.Buffer, r status.Report) {
	if !r.Running {
		fmt.Fprintf(b, "%s.\n", plain(r.Problem))
		if r.Remedy != "" {
			fmt.Fprintf(b, "  %s\n", plain(r.Remedy))
		}
		fmt.Fprintf(b, "What follows is what the records in %s say.\n", plain(r.StateDir))
		return
	}
	n := r.Node
	if n == nil {
		n = &status.Node{}
	}
	how := n.Driver
	if n.Accelerator != "" {
		how += ", " + n.Accelerator
	}
	fmt.Fprintf(b, "Node %s runs: vk-firkin %s, process %d, for %s\n", plain(n.Name), plain(n.Version), n.PID, span(r.Time.Sub(n.Began)))
	fmt.Fprintf(b, "  cluster %s, machines by %s (%s), guest kit %.12s\n", plain(n.Server), plain(how), plain(n.Arch), plain(n.GuestKit))
	fmt.Fprintf(b, "  state in %s, images in %s\n", plain(r.StateDir), plain(r.CacheDir))
	if len(n.WeakenedBy) > 0 {
		fmt.Fprintf(b, "  weakened by %s (docs/security.md)\n", plain(strings.Join(n.WeakenedBy, ", ")))
	}
	for _, c := range r.Conditions {
		switch {
		case c.Type == conditionReady && c.OK:
			fmt.Fprintln(b, "  Ready")
		case c.Type == conditionReady:
			fmt.Fprintf(b, "  NOT READY: %s\n", plain(c.Message))
		case c.Type == conditionInCluster && c.OK:
			fmt.Fprintln(b, "  Ready in the cluster")
		case c.Type == conditionInCluster:
			fmt.Fprintf(b, "  NOT READY IN THE CLUSTER: %s\n", plain(c.Message))
		case !c.OK:
			fmt.Fprintf(b, "  %s: %s\n", plain(c.Type), plain(c.Message))
		}
	}
}

// writeTrouble writes what somebody should look at.
func writeTrouble(b *bytes.Buffer, r status.Report) {
	if len(r.Quarantine) > 0 {
		table(b, func(t *tabwriter.Writer) {
			fmt.Fprintln(t, "QUARANTINED\tREASON (vk-firkin quarantine remove MACHINE ends one)")
			for _, q := range r.Quarantine {
				fmt.Fprintf(t, "%s\t%s\n", plain(q.Machine), dash(q.Reason))
			}
		})
	}
	if len(r.Refusals) == 0 {
		if r.Running {
			fmt.Fprintln(b, "\nNo pod was refused since this process began.")
		}
		return
	}
	table(b, func(t *tabwriter.Writer) {
		fmt.Fprintln(t, "REFUSED\tAGO\tTIMES\tREASON\tMESSAGE")
		for i, x := range r.Refusals {
			if i == shownRefusals {
				fmt.Fprintf(t, "and %d more\t\t\t\t\n", len(r.Refusals)-i)
				break
			}
			fmt.Fprintf(t, "%s\t%s\t%d\t%s\t%s\n", plain(x.Pod), span(r.Time.Sub(x.Last)), x.Count, plain(x.Reason), plain(x.Message))
		}
	})
}

func writeMachines(t *tabwriter.Writer, r status.Report, limit int) {
	fmt.Fprintln(t, "MACHINE\tSTATE\tFOR\tPOD\tPOOL\tTEMPLATE\tCPU\tMEMORY")
	machines := slices.Clone(r.Machines)
	slices.SortStableFunc(machines, func(x, y status.Machine) int {
		return cmp.Or(cmp.Compare(x.State, y.State), cmp.Compare(x.Pod, y.Pod), cmp.Compare(x.ID, y.ID))
	})
	for i, m := range machines {
		if i == limit {
			fmt.Fprintf(t, "and %d more\t\t\t\t\t\t\t\n", len(machines)-i)
			return
		}
		since := "-"
		if !m.Since.IsZero() {
			since = span(r.Time.Sub(m.Since))
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", plain(m.ID), plain(m.State), since, dash(cmp.Or(m.Pod, m.PodUID)), dash(m.Pool), dash(m.Template), cores(m.Budget.MilliCPU), mib(m.Budget.MemoryBytes))
	}
}

// table writes an empty line and what f writes, in columns.
func table(b *bytes.Buffer, f func(*tabwriter.Writer)) {
	b.WriteByte('\n')
	t := tabwriter.NewWriter(b, 0, 0, 2, ' ', 0)
	f(t)
	_ = t.Flush() // a buffer does not fail
}

// cores is processor time as people count it.
func cores(milli int64) string {
	return strconv.FormatFloat(float64(milli)/1000, 'f', -1, 64)
}

func dash(s string) string {
	if s = plain(s); s == "" {
		return "-"
	}
	return s
}

func reasonAnd(reason, message string) string {
	if message == "" {
		return dash(reason)
	}
	return plain(reason) + ": " + plain(message)
}

// plain is a text in one line, without what a terminal or a table would obey.
func plain(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case unicode.IsSpace(r):
			return ' '
		case r == utf8.RuneError || !unicode.IsPrint(r):
			return '?'
		}
		return r
	}, s)
}

// fit cuts lines to the width of the screen, and takes away the blanks at their ends.
func fit(text string, columns int) string {
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		line = strings.TrimRight(line, " ")
		if runes := []rune(line); columns > 3 && len(runes) > columns {
			line = string(runes[:columns-3]) + "..."
		}
		lines[i] = line
	}
	return strings.Join(lines, "\n")
}
