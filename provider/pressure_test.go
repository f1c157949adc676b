// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// A pressure begins at once and ends when it has been over for the period.
func TestPressureHold(t *testing.T) {
	h := pressureHold{period: time.Minute}
	begin := time.Unix(1000, 0)
	for _, tt := range []struct {
		at         int // s
		disk, want bool
	}{
		{0, false, false}, {1, true, true}, {30, false, true}, {40, true, true}, {99, false, true}, {100, false, false}, {101, false, false}, {102, true, true},
	} {
		p := h.settle(Pressure{Disk: Measured{Short: tt.disk}}, begin.Add(time.Duration(tt.at)*time.Second))
		if p.Disk.Short != tt.want || p.Memory.Short || p.PID.Short {
			t.Errorf("after %ds: %+v, want %v", tt.at, p, tt.want)
		}
	}
	p := (&pressureHold{}).settle(Pressure{Memory: Measured{Short: true}}, begin)
	if !p.Memory.Short {
		t.Error("a shortage is not told without a period")
	}
}

func TestNodeImages(t *testing.T) {
	var all []corev1.ContainerImage
	for i := range 60 {
		image := corev1.ContainerImage{SizeBytes: int64(i)}
		for n := range 7 {
			image.Names = append(image.Names, fmt.Sprintf("%d:%d", i, n))
		}
		all = append(all, image)
	}
	got := nodeImages(all)
	if len(got) != 50 || got[0].SizeBytes != 59 || got[49].SizeBytes != 10 || len(got[0].Names) != 5 {
		t.Errorf("%d images, first %+v", len(got), got[0])
	}
	if len(all) != 60 || all[0].SizeBytes != 0 || len(all[0].Names) != 7 {
		t.Error("what was given is changed")
	}
	if got := nodeImages(nil); len(got) != 0 {
		t.Errorf("%v", got)
	}
}

func TestShutdownGroups(t *testing.T) {
	pod := func(priority int32, grace int64) *worker {
		w := &worker{}
		p := &corev1.Pod{Spec: corev1.PodSpec{Priority: &priority, TerminationGracePeriodSeconds: &grace}}
		w.published.Store(p)
		return w
	}
	none := &worker{}
	none.published.Store(&corev1.Pod{})
	for _, tt := range []struct {
		grace, critical time.Duration
		want            string
	}{
		{30 * time.Second, 10 * time.Second, "20s: 5s 20s 20s; 10s: 2s 10s"},
		{30 * time.Second, 0, "30s: 5s 30s 30s; 0s: 0s 0s"},
		{0, 10 * time.Second, "0s: 0s 0s 0s; 0s: 0s 0s"},
	} {
		got := ""
		for i, g := range shutdownGroups([]*worker{pod(2_000_001_000, 2), pod(0, 5), pod(1_000_000_000, 40), none, pod(2_000_000_000, 60)}, tt.grace, tt.critical) {
			if i > 0 {
				got += "; "
			}
			got += fmt.Sprintf("%s:", g.grace)
			for _, w := range g.pods {
				got += fmt.Sprintf(" %s", shutdownGrace(w.published.Load(), g.grace))
			}
		}
		if got != tt.want {
			t.Errorf("%s and %s: %q, want %q", tt.grace, tt.critical, got, tt.want)
		}
	}
}
