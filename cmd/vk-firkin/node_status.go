// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"maps"
	"os"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/vk-firkin/vk-firkin/cmd/vk-firkin/status"
	"github.com/vk-firkin/vk-firkin/warmpool"
)

// refused remembers what pods did not get, for vk-firkin status.
func (n *node) refused(pod *corev1.Pod, reason, message string) {
	n.refusals.Add(pod.Namespace+"/"+pod.Name, string(pod.UID), reason, message, time.Now())
}

// report is the node at this moment.
func (n *node) report(ctx context.Context) status.Report {
	pods := map[string]string{}
	for _, p := range n.provider.Pods() {
		pods[string(p.UID)] = p.Namespace + "/" + p.Name
	}
	r := reportOf(n.supply.Status(), pods)
	r.StateDir, r.CacheDir = n.StateDir, n.CacheDir
	r.Refusals = n.refusals.List()
	r.Node = &status.Node{
		Name: n.NodeName, Version: version, PID: os.Getpid(), Began: began, Server: n.config.Host,
		Driver: n.driver.Name(), Accelerator: n.driver.Features().Accelerator, Arch: n.driver.Features().Arch, GuestKit: n.kit.Digest,
	}
	for _, flag := range slices.Sorted(maps.Keys(n.weakened())) {
		r.Node.WeakenedBy = append(r.Node.WeakenedBy, "--"+flag)
	}
	r.Conditions = append(n.conditions(ctx), n.inCluster(ctx))
	return r
}

// conditions are what the node tells the cluster of itself, as of now.
func (n *node) conditions(ctx context.Context) []status.Condition {
	ready := status.Condition{Type: string(corev1.NodeReady), OK: true}
	if err := n.healthy(ctx); err != nil {
		ready.OK, ready.Message = false, err.Error()
	}
	list := []status.Condition{ready}
	short, err := n.shortage()
	if err != nil {
		return append(list, status.Condition{Type: "Measured", Message: err.Error()})
	}
	return append(list,
		status.Condition{Type: string(corev1.NodeDiskPressure), OK: !short.Disk.Short, Message: short.Disk.Message},
		status.Condition{Type: string(corev1.NodeMemoryPressure), OK: !short.Memory.Short, Message: short.Memory.Message},
		status.Condition{Type: string(corev1.NodePIDPressure), OK: !short.PID.Short, Message: short.PID.Message})
}

// reportOf is what the supply says of machines and pools. pods are names by UID. Pure.
func reportOf(s warmpool.Status, pods map[string]string) status.Report {
	r := status.Report{
		Time: time.Now(), Running: true, Conditions: []status.Condition{}, Pools: []status.Pool{}, Templates: []status.Template{},
		Machines: []status.Machine{}, Quarantine: []status.Quarantine{}, Refusals: []status.Refusal{},
	}
	a := s.Account
	r.Ledger = &status.Ledger{Capacity: amounts(a.Capacity), Active: amounts(a.Active), Warm: amounts(a.Warm), Available: amounts(a.Available)}
	for _, e := range a.Machines {
		r.Machines = append(r.Machines, status.Machine{
			ID: e.Machine, State: string(e.State), PodUID: e.PodUID, Pod: pods[e.PodUID], Pool: e.Pool, Template: e.Template, Budget: amounts(e.Budget), Since: e.Since,
		})
	}
	for _, p := range s.Pools {
		r.Pools = append(r.Pools, status.Pool{
			Name: p.Pool, Template: p.Template, Desired: p.Desired, Ready: p.Ready, Restoring: p.Restoring, Outdated: p.Outdated, Active: p.Active,
			Skip: string(p.Skip), Message: p.Message, UnmetSince: p.UnmetSince,
		})
	}
	for _, t := range s.Templates {
		r.Templates = append(r.Templates, status.Template{Name: t.Namespace + "/" + t.Name, Revision: t.Revision, Phase: string(t.Phase), Step: t.Step, Message: t.Message})
	}
	for _, q := range s.Quarantined {
		r.Quarantine = append(r.Quarantine, status.Quarantine{Machine: q.Machine, Reason: q.Reason})
	}
	return r
}

func amounts(b warmpool.Budget) status.Amounts {
	return status.Amounts{MilliCPU: b.MilliCPU, MemoryBytes: b.MemoryBytes, DiskBytes: b.DiskBytes, Slots: b.Slots}
}
