// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package chaos

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// born is what is known of a pod from its making.
type born struct {
	program  Program
	always   bool
	template string
	// newest is the last revision of the template. It may have any: what is current where it
	// runs is what the controller last said, and that one dies as well.
	newest int
}

// judgePod tells what nothing explains about a pod that had all the time it needed. killed:
// a machine of this pod was killed.
func judgePod(p *corev1.Pod, b born, killed bool) error {
	if p.DeletionTimestamp != nil {
		return fmt.Errorf("is still being deleted, since %v", p.DeletionTimestamp)
	}
	var status corev1.ContainerStatus
	if len(p.Status.ContainerStatuses) == 1 {
		status = p.Status.ContainerStatuses[0]
	}
	if !b.always && status.RestartCount > 0 {
		return fmt.Errorf("was restarted %d times, and its policy is Never", status.RestartCount)
	}
	ends := b.program == Brief || b.program == Failing
	said := fmt.Sprintf("%s %s %s: container %s", p.Status.Phase, p.Status.Reason, p.Status.Message, containerState(status))
	switch p.Status.Phase {
	case corev1.PodRunning:
		switch {
		case b.always && ends: // it comes and goes
		case status.State.Running == nil || !status.Ready:
			return fmt.Errorf("runs without its container: %s", said)
		case ends:
			return fmt.Errorf("has not ended: %s", said)
		case status.RestartCount > 0 && !killed:
			return fmt.Errorf("was restarted %d times, and nobody has killed its machine", status.RestartCount)
		}
		return nil
	case corev1.PodSucceeded:
		if b.program == Brief && !b.always {
			return nil
		}
	case corev1.PodFailed:
		switch t := status.State.Terminated; {
		case b.always: // its machine is replaced
		case killed:
			if p.Status.Reason == "" && (t == nil || t.Reason == "" || t.Message == "" && t.ExitCode != FailingCode) {
				return fmt.Errorf("failed with its machine and does not say why: %s", said)
			}
			return nil
		case b.program == Failing && t != nil && t.ExitCode == FailingCode:
			return nil
		}
	default: // pending, or unknown
	}
	return fmt.Errorf("nothing explains that it is %s", said)
}

func containerState(s corev1.ContainerStatus) string {
	switch {
	case s.State.Running != nil:
		return fmt.Sprintf("running, ready %v", s.Ready)
	case s.State.Terminated != nil:
		t := s.State.Terminated
		return fmt.Sprintf("ended with %d: %s %s", t.ExitCode, t.Reason, t.Message)
	case s.State.Waiting != nil:
		return "waiting: " + s.State.Waiting.Reason + " " + s.State.Waiting.Message
	}
	return "unknown"
}

// script is a pod's program: it tells a witness and its output that it starts, says what it
// finds of its template, and counts. The witness is a URL.
func script(p Program, witness string) string {
	count := func(while, pause string) string {
		return "timeout 5 wget -q -O /dev/null " + witness + "; echo start; cat /opt/file 2>/dev/null; i=0; while " + while + "; do i=$((i+1)); echo line $i; sleep " + pause + "; done; "
	}
	few := count("[ $i -lt "+strconv.Itoa(BriefLines)+" ]", "0.1")
	switch p {
	case Stubborn:
		return "trap '' TERM; " + count("true", "0.3")
	case Brief:
		return few + "exit 0"
	case Failing:
		return few + "exit " + strconv.Itoa(FailingCode)
	default:
		return "trap 'exit 0' TERM; " + count("true", "0.3")
	}
}

// setupOf is the set-up of a revision of a template: it leaves what its pods then say.
func setupOf(template string, revision int) string {
	return fmt.Sprintf("mkdir -p /opt && echo %s-%d > /opt/file", template, revision)
}

// judgeLog reads the output of one run of a program: it starts once, and no line is missing or
// told twice. ended: it has ended by itself, so that all lines are there.
func judgeLog(log string, b born, ended bool) error {
	if log == "" && !ended {
		return nil // it was started a moment ago, or died at once
	}
	lines := strings.Split(strings.TrimSuffix(log, "\n"), "\n")
	if n := strings.Count("\n"+log, "\nstart\n"); n > 1 {
		return fmt.Errorf("was started %d times", n)
	}
	if lines[0] != "start" {
		return fmt.Errorf("begins with %q", lines[0])
	}
	lines = lines[1:]
	if b.template != "" && len(lines) > 0 {
		revision, ok := strings.CutPrefix(lines[0], b.template+"-")
		if n, err := strconv.Atoi(revision); !ok || err != nil || n < 1 || n > b.newest {
			return fmt.Errorf("its machine is of %q, want %s-1 to %d", lines[0], b.template, b.newest)
		}
		lines = lines[1:]
	}
	for i, line := range lines {
		if want := "line " + strconv.Itoa(i+1); line != want {
			return fmt.Errorf("line %d is %q, want %q", i+1, line, want)
		}
	}
	if ended && len(lines) != BriefLines {
		return fmt.Errorf("has %d lines of %d", len(lines), BriefLines)
	}
	return nil
}

// machineCount is who has or is a machine.
type machineCount struct {
	processes, directories int
	// pods that run, and entries that stand ready, by the pools' own count.
	pods, ready int
	// active and warm by the NodeLedger.
	active, warm int
}

// judgeMachines compares those who count machines.
func judgeMachines(c machineCount) error {
	var errs []error
	if c.processes != c.directories {
		errs = append(errs, fmt.Errorf("%d processes, %d directories", c.processes, c.directories))
	}
	if c.processes != c.pods+c.ready {
		errs = append(errs, fmt.Errorf("%d processes for %d running pods and %d ready entries", c.processes, c.pods, c.ready))
	}
	if c.active != c.pods || c.warm != c.ready {
		errs = append(errs, fmt.Errorf("the ledger has %d active and %d warm machines for %d running pods and %d ready entries", c.active, c.warm, c.pods, c.ready))
	}
	return errors.Join(errs...)
}
