// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package chaos

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

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

// fate is what was done to a pod, as far as it may cost it something.
type fate struct {
	// killed: a machine of this pod was killed, stopped for good, or its agent was silenced.
	killed bool
	// pressed: the disk was full while it was there.
	pressed bool
}

// judgePod tells what nothing explains about a pod that had all the time it needed.
func judgePod(p *corev1.Pod, b born, f fate) error {
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
	ends := b.program.ends()
	said := fmt.Sprintf("%s %s %s: container %s", p.Status.Phase, p.Status.Reason, p.Status.Message, containerState(status))
	switch p.Status.Phase {
	case corev1.PodRunning:
		switch {
		case b.always && ends: // it comes and goes
		case status.State.Running == nil || !status.Ready:
			return fmt.Errorf("runs without its container: %s", said)
		case ends:
			return fmt.Errorf("has not ended: %s", said)
		case status.RestartCount > 0 && !f.killed:
			return fmt.Errorf("was restarted %d times, and nobody has killed its machine", status.RestartCount)
		}
		return nil
	case corev1.PodSucceeded:
		if b.program == Brief && !b.always {
			return nil
		}
	case corev1.PodFailed:
		switch t := status.State.Terminated; {
		case p.Status.Reason == "Evicted" && f.pressed && p.Status.Message != "":
			return nil
		case b.always: // its machine is replaced
		case f.killed, b.program == Crashing:
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

// ends tells whether a program ends by itself.
func (p Program) ends() bool { return p == Brief || p == Failing || p == Crashing }

// ended tells whether the program of a container has come to its end by itself, so that all it
// had to say is there.
func ended(s corev1.ContainerStatus, p Program) bool {
	t := s.State.Terminated
	return t != nil && (p == Brief && t.ExitCode == 0 || p == Failing && t.ExitCode == FailingCode)
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
// finds of its template, and counts; every ten lines it tells the witness that it is there.
// Each run has a name of its own, also those in machines that were restored from one snapshot.
func script(p Program, witness string) string {
	tell := "timeout 5 wget -q -O /dev/null " + witness + "/$run; "
	count := func(while, pause string) string {
		return "run=$(cat /proc/sys/kernel/random/uuid); " + tell + "echo start; cat /opt/file 2>/dev/null; i=0; while " + while +
			"; do i=$((i+1)); echo line $i; [ $((i%10)) -ne 0 ] || " + tell + "sleep " + pause + "; done; "
	}
	few := count("[ $i -lt "+strconv.Itoa(BriefLines)+" ]", "0.1")
	switch p {
	case Stubborn:
		return "trap '' TERM; " + count("true", "0.3")
	case Brief:
		return few + "exit 0"
	case Failing:
		return few + "exit " + strconv.Itoa(FailingCode)
	case Crashing: // https://docs.kernel.org/admin-guide/sysrq.html
		return few + "echo c >/proc/sysrq-trigger; sleep 3600"
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

// criText is what a log file says, without the line that is being written. Each line is a time,
// a stream, whether the line is whole (F) or goes on (P), and the text
// (https://kubernetes.io/docs/concepts/cluster-administration/logging/).
func criText(file string) (string, error) {
	var text strings.Builder
	for number := 1; file != ""; number++ {
		line, rest, whole := strings.Cut(file, "\n")
		if !whole {
			break
		}
		part := strings.SplitN(line, " ", 4)
		if len(part) != 4 || part[2] != "F" && part[2] != "P" {
			return "", fmt.Errorf("line %d of the file is %q", number, line)
		}
		if text.WriteString(part[3]); part[2] == "F" {
			text.WriteByte('\n')
		}
		file = rest
	}
	return text.String(), nil
}

// aside is a snapshot that was put aside.
type aside struct {
	Key      string `json:"key"`
	Instance string `json:"instance"`
	Reason   string `json:"reason"`
	// base: it is one, by its manifest.
	base bool
}

// restoreFailures is how many restores in a row must fail before a snapshot is put aside that
// is whole.
const restoreFailures = 2

// judgeAside tells whether nothing explains that a snapshot was put aside. damaged are the
// instances that were damaged, blamed how many machines were disturbed while they were restored
// from a snapshot, by its key.
func judgeAside(a aside, damaged map[string]bool, blamed map[string]int) error {
	disturbed := blamed[a.Key]
	if a.base {
		disturbed += blamed[anyBase]
	}
	if damaged[a.Instance] || disturbed >= restoreFailures {
		return nil
	}
	return fmt.Errorf("snapshot %.12s (instance %s) was put aside, it was not damaged, and %d of its machines were disturbed: %s", a.Key, a.Instance, disturbed, a.Reason)
}

// anyBase stands for the machines that are restored from some base to build a template in.
const anyBase = ""

// window is a time in which the disk was full; until is zero while it lasts.
type window struct{ from, until time.Time }

// pressedSince tells whether the disk was full, or said to be, at a time after then. The node
// shows a pressure for some seconds longer.
func pressedSince(windows []window, then time.Time) bool {
	const shownLonger = 30 * time.Second
	for _, w := range windows {
		if w.until.IsZero() || w.until.Add(shownLonger).After(then) {
			return true
		}
	}
	return false
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
