// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"strings"
	"unicode/utf8"

	corev1 "k8s.io/api/core/v1"
)

// The kubelet's bounds of termination messages:
// https://kubernetes.io/docs/tasks/debug/debug-application/determine-reason-pod-failure/
const (
	// maxPodMessages is for the messages of all containers of a pod together.
	maxPodMessages = 12 << 10
	// maxTailBytes and maxTailLines are what of a log stands in for a message.
	maxTailBytes, maxTailLines = 2048, 80
)

// messagePath is the file that a container's last words are read from; empty for none. macOS
// has nothing below /dev but devices, so that what the API server gives every container is
// not there.
func messagePath(j startJob) string {
	switch path := j.plan.spec.TerminationMessagePath; {
	case j.macOS:
		return ""
	case path == "":
		return corev1.TerminationMessagePathDefault
	default:
		return path
	}
}

// fallsBack: the end of the log stands in for a message when the container failed without one.
func fallsBack(c *corev1.Container) bool {
	return c.TerminationMessagePolicy == corev1.TerminationMessageFallbackToLogsOnError
}

// lastWords is the message of an ended run: what was in its file, else what the machine says
// of it. Both come from a guest.
func lastWords(file []byte, machine string) string {
	if len(file) > 0 {
		return strings.ToValidUTF8(string(file[:min(len(file), maxStatusMessage)]), "?")
	}
	return bound(machine, maxStatusMessage)
}

// tailMessage is the message made of the end of a log: at most maxTailBytes, whole characters.
func tailMessage(tail []byte) string {
	if n := len(tail) - maxTailBytes; n > 0 {
		tail = tail[n:]
		for len(tail) > 0 && !utf8.RuneStart(tail[0]) {
			tail = tail[1:]
		}
	}
	return strings.ToValidUTF8(string(tail), "?")
}

// boundMessages cuts the messages of ended runs so that those of the pod stay within
// maxPodMessages: each gets an equal share.
func boundMessages(st *corev1.PodStatus) {
	lists := [][]corev1.ContainerStatus{st.InitContainerStatuses, st.ContainerStatuses, st.EphemeralContainerStatuses}
	n := 0
	for _, l := range lists {
		n += len(l)
	}
	for _, l := range lists {
		for i := range l {
			for _, t := range []*corev1.ContainerStateTerminated{l[i].State.Terminated, l[i].LastTerminationState.Terminated} {
				if t != nil {
					t.Message = cut(t.Message, maxPodMessages/n)
				}
			}
		}
	}
}

// cut takes at most n bytes of s, whole characters.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}
