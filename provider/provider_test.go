// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider_test

import (
	"context"
	"path/filepath"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/vk-firkin/vk-firkin/provider"
	"github.com/vk-firkin/vk-firkin/provider/podlog"
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

// What happens to the node before it runs is told once there is somebody to take it.
func TestNodeEventBeforeRun(t *testing.T) {
	w := newWorld(t)
	p, err := provider.New(provider.Options{
		Client: w.client, NodeName: nodeName, StateDir: w.state, Supply: w.supply, Images: w.images,
		Logs: podlog.New(filepath.Join(w.state, "pods"), podlog.Options{}), Node: provider.NodeOptions{Arch: "amd64"}, Recorder: w.events,
	})
	if err != nil {
		t.Fatal(err)
	}
	p.NodeEvent(true, "SnapshotQuarantined", "it was damaged")
	if w.events.has(nodeName, "SnapshotQuarantined") {
		t.Error("told before there was anybody to take it")
	}
	ctx, cancel := context.WithCancel(t.Context())
	up, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- p.Run(ctx, func() { close(up) }) }()
	<-up
	if !w.events.has(nodeName, "Warning", "SnapshotQuarantined", "it was damaged") {
		t.Errorf("not told: %s", w.events)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
