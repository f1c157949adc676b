// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"testing"

	"github.com/vk-firkin/vk-firkin/provider"
	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/warmpool"
)

// endedMachine has ended, and cannot be deleted while stuck.
type endedMachine struct {
	vm.Machine
	stuck, gone bool
}

func (m *endedMachine) ID() string                              { return "pod-a-1" }
func (m *endedMachine) State(context.Context) (vm.State, error) { return vm.StateExited, nil }

func (m *endedMachine) Delete(context.Context) error {
	if m.stuck {
		return vm.ErrUnavailable
	}
	m.gone = true
	return nil
}

// endedDriver has that machine.
type endedDriver struct {
	vm.Driver
	machine *endedMachine
}

func (d endedDriver) Load(context.Context, string) (vm.Machine, error) {
	if d.machine.gone {
		return nil, vm.ErrNotFound
	}
	return d.machine, nil
}

// endedStore knows it.
type endedStore struct{ warmpool.Store }

func (endedStore) Origin(string) (proven, known bool) { return true, true }
func (endedStore) Forget(string) error                { return nil }

// TestAdoptEnded: a machine that has ended and cannot be given back has an owner all the same,
// who gives it back later.
func TestAdoptEnded(t *testing.T) {
	for _, stuck := range []bool{false, true} {
		m := &endedMachine{stuck: stuck}
		s, err := warmpool.New(warmpool.Options{
			Driver: endedDriver{machine: m}, Store: endedStore{}, Kit: vm.Kit{Digest: "sha256:0"}, Capacity: warmpool.Budget{MilliCPU: 1000, MemoryBytes: 1 << 30},
		})
		if err != nil {
			t.Fatal(err)
		}
		n := &nodeMachines{supply: s}
		lease, err := n.Adopt(t.Context(), provider.MachineRequest{
			MachineID: "pod-a-1", Shape: vm.Shape{VCPUs: 1, MemoryBytes: 256 << 20}, Budget: provider.Budget{MemoryBytes: 256 << 20},
		})
		if stuck {
			if err != nil {
				t.Fatalf("nobody has the machine: %v", err)
			}
			m.stuck = false
			if err := lease.Release(t.Context(), 0); err != nil {
				t.Error(err)
			}
		} else if !errors.Is(err, vm.ErrNotFound) {
			t.Error(err)
		}
		if left := s.Ledger().Machines; !m.gone || len(left) != 0 {
			t.Errorf("stuck %v: deleted %v, left %+v", stuck, m.gone, left)
		}
		if err := s.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
	}
}
