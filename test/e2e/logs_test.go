// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"bufio"
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

const waitShort = 30 * time.Second

// A user reads logs in every way that kubectl offers.
func TestLogs(t *testing.T) {
	ns := namespace(t)
	// The pauses make the order of lines certain: the two streams are two pipes.
	apply(t, podManifest(ns, "chatty", served.Busybox, "sh", "-c",
		"for i in $(seq 1 100); do echo line $i; done; sleep 2; echo to stderr >&2; sleep 3; echo late; exec sleep 3600"))
	waitRunning(t, ns, "chatty")
	logs := func(args ...string) string {
		return kubectl(t, append([]string{"logs", "-n", ns, "chatty"}, args...)...)
	}
	eventually(t, waitShort, "the late line", func() error {
		if out := logs("--tail", "1"); out != "late\n" {
			return fmt.Errorf("the last line is %q", out)
		}
		return nil
	})

	var want strings.Builder
	for i := 1; i <= 100; i++ {
		fmt.Fprintf(&want, "line %d\n", i)
	}
	want.WriteString("to stderr\nlate\n")
	if out := logs(); out != want.String() {
		t.Errorf("logs are %d bytes, want %d: %q", len(out), want.Len(), out)
	}
	if out := logs("--tail", "3"); out != "line 100\nto stderr\nlate\n" {
		t.Errorf("--tail 3 gives %q", out)
	}
	if out := logs("--limit-bytes", "10"); out != "line 1\nlin" {
		t.Errorf("--limit-bytes 10 gives %q", out)
	}
	out := logs("--timestamps", "--tail", "1")
	stamp, line, _ := strings.Cut(out, " ")
	late, err := time.Parse(time.RFC3339Nano, stamp)
	if err != nil || line != "late\n" || time.Since(late).Abs() > time.Minute {
		t.Errorf("--timestamps gives %q (%v): want a time near now", out, err)
	}
	if out := logs("--since-time", late.Add(-time.Second).Format(time.RFC3339Nano)); out != "late\n" {
		t.Errorf("--since-time one second before the late line gives %q", out)
	}
}

// A user follows logs while the container writes, to its very end.
func TestFollowLogs(t *testing.T) {
	ns := namespace(t)
	apply(t, podManifest(ns, "ticker", served.Busybox, "sh", "-c", "for i in 1 2 3 4 5; do echo tick $i; sleep 1; done"))
	waitPod(t, ns, "ticker", "has started", func(p *corev1.Pod) bool {
		return p.Status.Phase == corev1.PodRunning || p.Status.Phase == corev1.PodSucceeded
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := plane.Kubectl(ctx, "logs", "-n", ns, "ticker", "-f")
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var lines []string
	var arrived []time.Time
	for scanner := bufio.NewScanner(pipe); scanner.Scan(); {
		lines, arrived = append(lines, scanner.Text()), append(arrived, time.Now())
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("kubectl logs -f: %v", err)
	}
	if got := strings.Join(lines, ","); got != "tick 1,tick 2,tick 3,tick 4,tick 5" {
		t.Fatalf("followed %q", got)
	}
	if last := arrived[4].Sub(arrived[3]); last < 200*time.Millisecond {
		t.Errorf("the last two lines arrived %v apart: they were not followed but collected", last)
	}
}

// A container that crashes is started again, and the words of the former one stay
// readable.
func TestPreviousLogs(t *testing.T) {
	ns := namespace(t)
	manifest := strings.Replace(podManifest(ns, "crashy", served.Busybox, "sh", "-c", "echo life; exit 3"), "restartPolicy: Never", "restartPolicy: Always", 1)
	apply(t, manifest)
	pod := waitPod(t, ns, "crashy", "was restarted", func(p *corev1.Pod) bool {
		return len(p.Status.ContainerStatuses) == 1 && p.Status.ContainerStatuses[0].RestartCount >= 1
	})
	if last := pod.Status.ContainerStatuses[0].LastTerminationState.Terminated; last == nil || last.ExitCode != 3 {
		t.Errorf("last state is %+v, want exit code 3", last)
	}
	if out := kubectl(t, "logs", "-n", ns, "crashy", "--previous"); out != "life\n" {
		t.Errorf("--previous gives %q", out)
	}
	waitPod(t, ns, "crashy", "backs off", func(p *corev1.Pod) bool {
		w := p.Status.ContainerStatuses[0].State.Waiting
		return w != nil && w.Reason == "CrashLoopBackOff"
	})
}
