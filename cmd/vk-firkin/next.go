// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/vk-firkin/vk-firkin/cmd/vk-firkin/service"
	"github.com/vk-firkin/vk-firkin/cmd/vk-firkin/status"
	"github.com/vk-firkin/vk-firkin/vm/guest/kit"
)

// hostFacts is how far this host has come on its way to be a node.
type hostFacts struct {
	// guestKit is where a guest kit is looked for, kitProblem why there is none.
	guestKit, kitProblem string
	// kubeconfig by which this host can speak to a cluster as a node; empty for none.
	kubeconfig string
	// joins: there is a command for that.
	joins bool
	// service that is installed; nil for none.
	service *service.Target
	// running is what a node answers; nil when none does.
	running *status.Report
}

// nextTimeout bounds the node's answer: somebody waits for the prompt.
const nextTimeout = 3 * time.Second

// lookAtHost finds out how far this host has come.
func lookAtHost(ctx context.Context, d directories) hostFacts {
	var f hostFacts
	// KUBECONFIG is no identity of a node: it is a user's own, and mostly an administrator's.
	f.guestKit = defaultGuestKit()
	if t, ok := installedService(); ok {
		f.service = &t
		if s, err := service.Read(t); err == nil {
			f.guestKit, f.kubeconfig = cmp.Or(s.Argument("guest-kit"), f.guestKit), cmp.Or(s.Argument("kubeconfig"), f.kubeconfig)
		}
	}
	if _, err := kit.Load(f.guestKit); err != nil {
		f.kitProblem = err.Error()
	}
	if joined := filepath.Join(d.StateDir, "credentials", "kubeconfig"); f.kubeconfig == "" || exists(joined) {
		f.kubeconfig = joined
	}
	if !exists(f.kubeconfig) {
		f.kubeconfig = ""
	}
	ctx, cancel := context.WithTimeout(ctx, nextTimeout)
	defer cancel()
	var r status.Report
	if err := ask(ctx, d.StateDir, usual, http.MethodGet, controlStatus, nil, &r); err == nil && r.Node != nil {
		f.running = &r
	}
	return f
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// writeNext tells how far this host has come, and the one thing to do next. Pure.
func writeNext(w io.Writer, f hostFacts) error {
	var b strings.Builder
	step := func(done bool, name, found string) {
		mark := " "
		if done {
			mark = "x"
		}
		fmt.Fprintf(&b, "  [%s] %-9s %s\n", mark, name, found)
	}
	b.WriteString("vk-firkin makes this host a Kubernetes node whose pods run in machines restored from snapshots.\n\n")
	if f.running != nil {
		step(true, "running", fmt.Sprintf("node %s, process %d", f.running.Node.Name, f.running.Node.PID))
	} else {
		if f.kitProblem == "" {
			step(true, "guest kit", f.guestKit)
		} else {
			step(false, "guest kit", f.kitProblem)
		}
		step(f.kubeconfig != "", "identity", cmp.Or(f.kubeconfig, "no kubeconfig of a node"))
		installed := "no service of this host"
		if f.service != nil {
			installed = f.service.Path()
		}
		step(f.service != nil, "installed", installed)
		step(false, "running", "no node answers")
	}
	b.WriteString("\nNext:\n")
	for _, line := range nextSteps(f) {
		b.WriteString("  " + line + "\n")
	}
	b.WriteString("\nvk-firkin --help lists all commands.\n")
	_, err := io.WriteString(w, b.String())
	return err
}

// nextSteps is what to type now.
func nextSteps(f hostFacts) []string {
	switch {
	case f.running != nil && !ready(*f.running):
		return []string{"vk-firkin status          why the node is not ready"}
	case f.running != nil:
		return []string{
			"vk-firkin status --watch  what it has, what runs, what was refused",
			"kubectl get node " + f.running.Node.Name + "     whether the cluster has it",
		}
	case f.service != nil:
		return []string{
			f.service.Logs(logFile(*f.service), crashFile(*f.service)) + "   why it does not run",
			f.service.Start() + "   start it",
		}
	case f.kitProblem != "":
		return []string{
			"make guest                builds the guest kit (on Debian), or copy one to " + f.guestKit,
			"vk-firkin doctor          what else this host lacks",
		}
	case f.kubeconfig == "" && f.joins:
		return []string{
			"vk-firkin doctor          what this host can do, and what it lacks",
			"vk-firkin join SERVER --token TOKEN --discovery-token-ca-cert-hash HASH   as helm has printed it",
		}
	case f.kubeconfig == "":
		return []string{
			"vk-firkin doctor          what this host can do, and what it lacks",
			"then give it an identity: a kubeconfig of system:node:NAME, by --kubeconfig (docs/getting-started.md)",
		}
	}
	return []string{
		"vk-firkin doctor          what this host can do, and what it lacks",
		"vk-firkin install         run the node as a service from now on; --dry-run shows it",
		"vk-firkin node            or run it here, until it is interrupted",
	}
}
