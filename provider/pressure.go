// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"cmp"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// pressureHold keeps a shortage that is over until it has been over for a while. Else a
// node that swings around a threshold would take pods and refuse them in turns (the
// kubelet's evictionPressureTransitionPeriod).
type pressureHold struct {
	period             time.Duration
	disk, memory, pids time.Time // when each was last short
}

// settle takes a measurement and returns what the node says.
func (h *pressureHold) settle(p Pressure, now time.Time) Pressure {
	for _, x := range []struct {
		m    *Measured
		last *time.Time
	}{{&p.Disk, &h.disk}, {&p.Memory, &h.memory}, {&p.PID, &h.pids}} {
		switch {
		case x.m.Short:
			*x.last = now
		case !x.last.IsZero() && now.Sub(*x.last) < h.period:
			x.m.Short = true
			x.m.Message += "; enough again since less than " + h.period.String()
		}
	}
	return p
}

// Limits of what a node's status says of its images, the kubelet's.
const (
	maxNodeImages = 50
	maxImageNames = 5
)

// nodeImages are the images that the node's status shows: the largest, for those a
// scheduler should rather come here for. It is pure.
func nodeImages(all []corev1.ContainerImage) []corev1.ContainerImage {
	list := slices.Clone(all)
	slices.SortStableFunc(list, func(a, b corev1.ContainerImage) int { return cmp.Compare(b.SizeBytes, a.SizeBytes) })
	list = list[:min(len(list), maxNodeImages)]
	for i := range list {
		list[i].Names = slices.Clone(list[i].Names[:min(len(list[i].Names), maxImageNames)])
	}
	return list
}
