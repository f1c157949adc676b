// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/vk-firkin/vk-firkin/provider"
	"github.com/vk-firkin/vk-firkin/provider/metrics"
	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/guest"
	"github.com/vk-firkin/vk-firkin/warmpool"
)

// nodeMachines gives pods machines out of a supply, in the provider's words.
type nodeMachines struct {
	supply  *warmpool.Supply
	metrics *metrics.Metrics
	ladder  []vm.Shape
	slots   int
}

var _ provider.Supply = (*nodeMachines)(nil)

// Acquire is part of provider.Supply.
func (n *nodeMachines) Acquire(ctx context.Context, req provider.MachineRequest) (provider.Lease, error) {
	lease, err := n.supply.Acquire(ctx, machineRequest(req))
	if err != nil {
		n.metrics.MachineStarted("", err)
		return nil, machineError(err)
	}
	n.metrics.MachineStarted(string(lease.Path()), nil)
	return &machineLease{lease: lease, metrics: n.metrics}, nil
}

// Adopt is part of provider.Supply.
func (n *nodeMachines) Adopt(ctx context.Context, req provider.MachineRequest) (provider.Lease, error) {
	lease, err := n.supply.Adopt(ctx, machineRequest(req))
	if err != nil {
		return nil, machineError(err)
	}
	state, err := lease.Machine().State(ctx)
	if err == nil && state == vm.StateExited {
		// Nothing to take over: what it left is given back at once. What cannot be is the
		// caller's, who sees that it has ended, and tries again: else nobody had the lease.
		if lease.Release(ctx, 0) == nil {
			return nil, fmt.Errorf("adopt machine %q: it has exited: %w", req.MachineID, vm.ErrNotFound)
		}
	}
	return &machineLease{lease: lease, metrics: n.metrics}, nil
}

// Reconcile is part of provider.Supply.
func (n *nodeMachines) Reconcile(ctx context.Context, claims []provider.MachineClaim) ([]warmpool.Finding, error) {
	survey := warmpool.Survey{Prefixes: []string{provider.MachinePrefix}}
	for _, c := range claims {
		survey.Claims = append(survey.Claims, warmpool.Claim{Request: machineRequest(c.MachineRequest), Unclear: c.Unclear})
	}
	return n.supply.Reconcile(ctx, survey)
}

// Reap is part of provider.Supply.
func (n *nodeMachines) Reap(ctx context.Context, machineID string) error {
	return n.supply.Discard(ctx, machineID)
}

// ShapeFor is part of provider.Supply. A machine takes all of its memory from the
// node, but only the processor time that its pod requests: vCPUs are threads and
// share, memory does not.
func (n *nodeMachines) ShapeFor(need provider.Need) (vm.Shape, provider.Budget, error) {
	shape, err := warmpool.ShapeFor(n.ladder, warmpool.Need{
		MilliCPU:    max(need.MilliCPURequest, need.MilliCPULimit),
		MemoryBytes: max(need.MemoryRequestBytes, need.MemoryLimitBytes),
	})
	if err != nil {
		return vm.Shape{}, provider.Budget{}, machineError(err)
	}
	return shape, provider.Budget{MilliCPU: need.MilliCPURequest, MemoryBytes: shape.MemoryBytes}, nil
}

// ImageSlots is part of provider.Supply.
func (n *nodeMachines) ImageSlots() int { return n.slots }

func machineRequest(req provider.MachineRequest) warmpool.Request {
	return warmpool.Request{
		MachineID: req.MachineID,
		PodUID:    string(req.PodUID),
		Shape:     req.Shape,
		Budget: warmpool.Budget{
			MilliCPU:    req.Budget.MilliCPU,
			MemoryBytes: req.Budget.MemoryBytes,
			DiskBytes:   req.Budget.DiskBytes,
		},
		Images: req.Images, Template: req.Template, Refs: req.Refs, Pool: req.Pool, Path: warmpool.Path(req.Path),
	}
}

// machineError gives a refusal its form in the provider; other errors pass.
func machineError(err error) error {
	var refusal *warmpool.Refusal
	if !errors.As(err, &refusal) {
		return err
	}
	return &provider.RefusedError{Reason: string(refusal.Reason), Permanent: refusal.Final(), Err: err}
}

// machineLease is a lease in the provider's words.
type machineLease struct {
	lease   *warmpool.Lease
	metrics *metrics.Metrics

	mu     sync.Mutex
	client *guest.Client   // guarded by mu; what guest was made of
	guest  *provider.Guest // guarded by mu
}

var (
	_ provider.Lease  = (*machineLease)(nil)
	_ provider.Prober = (*machineLease)(nil)
)

// MachineID is part of provider.Lease.
func (l *machineLease) MachineID() string { return l.lease.MachineID() }

// Path is part of provider.Lease.
func (l *machineLease) Path() string { return string(l.lease.Path()) }

// Timings is part of provider.Lease.
func (l *machineLease) Timings() provider.Timings {
	t := l.lease.Timings()
	return provider.Timings{Restore: t.Wait + t.Snapshot + t.Restore, Agent: t.Agent, Resume: t.Restore + t.Agent}
}

// Images is part of provider.Lease.
func (l *machineLease) Images() []warmpool.SlotImage { return l.lease.Images() }

// Notices is part of provider.Lease. What happens to snapshots is told by events on
// the node, not on the pods that met it; that a pod's machine had to be booted is the
// pod's own affair.
func (l *machineLease) Notices() []provider.Notice {
	var list []provider.Notice
	for _, n := range l.lease.Notices() {
		if n.Reason == string(warmpool.ReasonHostNotReady) {
			list = append(list, provider.Notice{Reason: n.Reason, Message: n.Message, Warning: n.Warning})
		}
	}
	return list
}

// Guest is part of provider.Lease.
func (l *machineLease) Guest(ctx context.Context) (*provider.Guest, error) {
	client, err := l.lease.Guest(ctx)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.client != nil && l.client != client {
		l.metrics.GuestReconnected()
	}
	if l.client != client {
		l.client = client
		l.guest = &provider.Guest{
			Agent:      client.Agent,
			Containers: client.Containers,
			Volumes:    client.Volumes,
			Process:    client.Process,
			Done:       client.Done(),
		}
	}
	return l.guest, nil
}

// Wait is part of provider.Lease.
func (l *machineLease) Wait(ctx context.Context) (vm.Exit, error) { return l.lease.Machine().Wait(ctx) }

// State is part of provider.Prober.
func (l *machineLease) State(ctx context.Context) (vm.State, error) {
	return l.lease.Machine().State(ctx)
}

// Release is part of provider.Lease.
func (l *machineLease) Release(ctx context.Context, grace time.Duration) error {
	return l.lease.Release(ctx, grace)
}
