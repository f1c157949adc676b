// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider_test

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// A pod runs to its end, and its status tells how.
func TestPodRunsToCompletion(t *testing.T) {
	w := newWorld(t)
	w.run()
	w.create(pod("ok", []string{"do", "echo hello", "sleep 50ms"}))
	w.create(pod("bad", []string{"exit", "7"}, []string{"exit", "0"}))
	p := w.awaitPhase("ok", corev1.PodSucceeded)
	st := p.Status.ContainerStatuses[0]
	if x := st.State.Terminated; x == nil || x.Reason != "Completed" || x.ExitCode != 0 || x.FinishedAt.Before(&x.StartedAt) {
		t.Errorf("state is %+v", st.State)
	}
	if st.ImageID == "" || st.ContainerID == "" || p.Status.StartTime == nil || p.Status.HostIP == "" {
		t.Errorf("status is %+v", p.Status)
	}
	p = w.awaitPhase("bad", corev1.PodFailed)
	if x := p.Status.ContainerStatuses[0].State.Terminated; x == nil || x.Reason != "Error" || x.ExitCode != 7 {
		t.Errorf("state is %+v", p.Status.ContainerStatuses[0].State)
	}
	for _, reason := range []string{"Pulled", "Created", "Started", "MachineRestored"} {
		if !w.events.has("ok", reason) {
			t.Errorf("no event %s:\n%s", reason, w.events)
		}
	}
	w.eventually("machines are released", func() bool { return len(w.supply.ids()) == 0 }, nil)
	w.delete("ok", nil)
	w.delete("bad", nil)
	w.awaitGone("ok")
	w.awaitGone("bad")
	w.awaitNothing()
}
