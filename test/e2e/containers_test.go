// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// containersPod is a pod with a volume "w" that all its containers are to have; spec is
// the rest of its specification.
func containersPod(ns, name, spec string) string {
	return fmt.Sprintf(`---
apiVersion: v1
kind: Pod
metadata: {name: %s, namespace: %s}
spec:
  restartPolicy: Never
  terminationGracePeriodSeconds: 20
  volumes: [{name: w, emptyDir: {}}]
%s
`, name, ns, strings.ReplaceAll(spec, "IMAGE", fmt.Sprintf("image: %q, volumeMounts: [{name: w, mountPath: /w}]", served.Busybox)))
}

func containerIn(p *corev1.Pod, name string) corev1.ContainerStatus {
	for _, c := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses, p.Status.EphemeralContainerStatuses) {
		if c.Name == name {
			return c
		}
	}
	return corev1.ContainerStatus{}
}

func lastWords(p *corev1.Pod, container string) string {
	if x := containerIn(p, container).State.Terminated; x != nil {
		return x.Message
	}
	return ""
}

// What a user writes into a pod beside its main container happens in the order that the
// API promises, and each container tells how it ended. The pods run at the same time.
func TestContainers(t *testing.T) {
	ns := namespace(t)
	sidecar := func(name string) string {
		return `{name: ` + name + `, restartPolicy: Always, IMAGE, command: [sh, -c, "trap 'exit 0' TERM; echo ` + name + ` >> /w/log; while :; do sleep 0.1; done"]}`
	}
	manifest := containersPod(ns, "order", `
  initContainers:
  - {name: one, IMAGE, command: [sh, -c, "echo one >> /w/log"]}
  - `+sidecar("side-a")+`
  - {name: two, IMAGE, command: [sh, -c, "until grep -q side-a /w/log; do sleep 0.1; done; echo two >> /w/log"]}
  - `+sidecar("side-b")+`
  containers:
  - {name: main, IMAGE, command: [sh, -c, "until grep -q side-b /w/log; do sleep 0.1; done; cat /w/log"]}`) +
		containersPod(ns, "broken", `
  initContainers:
  - {name: one, IMAGE, command: [sh, -c, "echo no >&2; exit 3"], terminationMessagePolicy: FallbackToLogsOnError}
  - {name: two, IMAGE, command: ["true"]}
  containers:
  - {name: main, IMAGE, command: ["true"]}`) +
		containersPod(ns, "words", `
  containers:
  - {name: file, IMAGE, command: [sh, -c, "echo -n from the file > /dev/termination-log; exit 3"]}
  - {name: path, IMAGE, command: [sh, -c, "echo -n elsewhere > /tmp/words"], terminationMessagePath: /tmp/words}
  - {name: log, IMAGE, command: [sh, -c, "echo from the log; exit 4"], terminationMessagePolicy: FallbackToLogsOnError}`) +
		// Its deadline, set below, ends it as a deletion would, and what its containers say can
		// be read after.
		containersPod(ns, "hooks", `
  containers:
  - {name: main, IMAGE, command: [sh, -c, "trap 'cat /w/pre > /dev/termination-log; exit 0' TERM; while :; do sleep 0.1; done"],
     lifecycle: {postStart: {exec: {command: [sh, -c, "sleep 1; echo up > /w/post"]}}, preStop: {exec: {command: [sh, -c, "echo stopping > /w/pre"]}}}}
  - {name: second, IMAGE, command: [cat, /w/post]}`) +
		strings.Replace(containersPod(ns, "crash", `
  containers:
  - {name: main, IMAGE, command: [sh, -c, "exit 1"]}`), "restartPolicy: Never", "restartPolicy: Always", 1) +
		containersPod(ns, "debugged", `
  containers:
  - {name: main, IMAGE, command: [sleep, "3600"]}`)
	apply(t, manifest)

	t.Run("Order", func(t *testing.T) {
		p := waitPod(t, ns, "order", "has succeeded", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodSucceeded })
		if out := kubectl(t, "logs", "-n", ns, "order", "-c", "main"); out != "one\nside-a\ntwo\nside-b\n" {
			t.Errorf("the containers began as %q", out)
		}
		var ends []time.Time
		for _, name := range []string{"main", "side-b", "side-a"} {
			c := containerIn(p, name)
			if c.State.Terminated == nil || c.State.Terminated.ExitCode != 0 || c.RestartCount != 0 {
				t.Fatalf("%s is %+v", name, c)
			}
			ends = append(ends, c.State.Terminated.FinishedAt.Time)
		}
		if ends[1].Before(ends[0]) || ends[2].Before(ends[1]) {
			t.Errorf("main, side-b and side-a ended at %v", ends)
		}
	})
	t.Run("FailedInit", func(t *testing.T) {
		p := waitPod(t, ns, "broken", "has failed", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed })
		if out := kubectl(t, "get", "pod", "-n", ns, "broken", "--no-headers"); !strings.Contains(out, "Init:Error") {
			t.Errorf("kubectl shows %q", out)
		}
		if one := containerIn(p, "one"); one.State.Terminated == nil || one.State.Terminated.ExitCode != 3 || lastWords(p, "one") != "no\n" || containerIn(p, "main").State.Waiting == nil {
			t.Errorf("status is %+v", p.Status)
		}
	})
	t.Run("TerminationMessage", func(t *testing.T) {
		p := waitPod(t, ns, "words", "has failed", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed })
		for name, want := range map[string]string{"file": "from the file", "path": "elsewhere", "log": "from the log\n"} {
			if got := lastWords(p, name); got != want {
				t.Errorf("%s says %q, want %q", name, got, want)
			}
		}
	})
	t.Run("CrashLoopBackOff", func(t *testing.T) {
		p := waitPod(t, ns, "crash", "is in back-off", func(p *corev1.Pod) bool {
			w := containerIn(p, "main").State.Waiting
			return w != nil && w.Reason == "CrashLoopBackOff" && containerIn(p, "main").RestartCount >= 1
		})
		if x := containerIn(p, "main").LastTerminationState.Terminated; x == nil || x.ExitCode != 1 || x.Reason != "Error" || p.Status.Phase != corev1.PodRunning {
			t.Errorf("status is %+v", p.Status)
		}
	})
	t.Run("Debug", func(t *testing.T) {
		waitRunning(t, ns, "debugged")
		kubectl(t, "debug", "-n", ns, "debugged", "--image="+served.Busybox, "--target=main", "-c", "look", "--", "sh", "-c", "cat /proc/1/cmdline | tr '\\0' ' '")
		p := waitPod(t, ns, "debugged", "has its debugger's end", func(p *corev1.Pod) bool { return containerIn(p, "look").State.Terminated != nil })
		if look := containerIn(p, "look"); look.State.Terminated.ExitCode != 0 || look.RestartCount != 0 || p.Status.Phase != corev1.PodRunning {
			t.Errorf("status is %+v", p.Status)
		}
		if out := kubectl(t, "logs", "-n", ns, "debugged", "-c", "look"); out != "sleep 3600 " {
			t.Errorf("the debugger sees %q, want the target's process", out)
		}
	})
	t.Run("DeadlineAndHooks", func(t *testing.T) {
		waitPod(t, ns, "hooks", "has run its second container", func(p *corev1.Pod) bool { return containerIn(p, "second").State.Terminated != nil })
		kubectl(t, "patch", "pod", "-n", ns, "hooks", "-p", `{"spec":{"activeDeadlineSeconds":1}}`)
		p := waitPod(t, ns, "hooks", "has failed", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed })
		if p.Status.Reason != "DeadlineExceeded" {
			t.Errorf("status is %+v", p.Status)
		}
		if got := lastWords(p, "main"); got != "stopping\n" {
			t.Errorf("the main container was stopped with %q from its hook", got)
		}
		if out := kubectl(t, "logs", "-n", ns, "hooks", "-c", "second"); out != "up\n" {
			t.Errorf("the second container began with %q from the first's hook", out)
		}
	})
}
