// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/durable"
	"github.com/vk-firkin/vk-firkin/vm/machinedir"
	"github.com/vk-firkin/vk-firkin/vm/network"
	"github.com/vk-firkin/vk-firkin/vm/vz/framework"
	"github.com/vk-firkin/vk-firkin/vm/vz/layout"
)

// attempts and attemptPause bound the tries of what may succeed a moment later.
const (
	attempts     = 3
	attemptPause = 200 * time.Millisecond
)

// Start is part of control.Machine: it makes the machine as its record says, running if
// it boots and paused if it was restored. It works once. If it fails, or ctx ends before,
// the machine has ended.
func (m *machine) Start(ctx context.Context) (vm.State, error) {
	m.mu.Lock()
	if m.phase != phaseNew {
		m.mu.Unlock()
		return "", fmt.Errorf("%w: it was started before", vm.ErrInvalidState)
	}
	m.phase = phaseStarting
	m.mu.Unlock()

	result := make(chan error, 1)
	go func() { result <- m.start(ctx) }()
	var err error
	select {
	case err = <-result:
	case <-ctx.Done():
		err = ctx.Err()
	case <-m.exited:
		m.mu.Lock()
		wasUp := m.wasUp
		m.mu.Unlock()
		if !wasUp {
			return "", errExited
		}
		// A guest may end as soon as it runs: it was made, and there is an exit to ask for.
	}
	if err != nil {
		m.end(vm.Exit{Reason: vm.ExitCrashed, Detail: "it was never up: " + err.Error()})
		return "", err
	}
	return m.State(ctx)
}

func (m *machine) start(ctx context.Context) error {
	r := m.record
	identity, from, err := m.identify()
	if err != nil {
		return err
	}
	if err := machinedir.WriteJSON(durable.Host, m.dir, layout.IdentityFile, identity); err != nil {
		return err
	}
	cfg := configuration(m.dir, r, identity, m.slots)
	print := fingerprint(cfg, layout.BootDigest(r.Config))
	if from != nil && from.Configuration != print {
		return fmt.Errorf("%w: the saved machine's configuration is another one (%s, not %s)", vm.ErrSnapshotInvalid, from.Configuration, print)
	}
	if err := m.cloneDisks(); err != nil {
		return err
	}
	n, err := network.Open(cfg.MAC)
	if err != nil {
		return fmt.Errorf("%w: %w", vm.ErrUnavailable, err)
	}
	m.mu.Lock()
	ended := m.phase != phaseStarting
	if !ended {
		m.network, m.identity, m.print = n, identity, print
	}
	m.mu.Unlock()
	if ended {
		// Whoever ended the machine has not seen it.
		_ = n.Close()
		return errExited
	}
	cfg.Network = n.Guest()
	if cfg.GuestOS == framework.Linux {
		cfg.ConsoleIn, cfg.ConsoleOut = m.console.in, m.console.out
	}
	return m.tryAgain(ctx, cfg, from != nil)
}

// tryAgain tries until the machine is up, or has ended, or the framework says that it
// will not be.
func (m *machine) tryAgain(ctx context.Context, cfg framework.Configuration, restore bool) error {
	for attempt := 1; ; attempt++ {
		err := m.try(cfg, restore)
		if err == nil {
			return m.up()
		}
		if attempt == attempts || !retryable(err) {
			return err
		}
		m.log.Warn("The framework failed to start a machine, trying again", "machine", m.record.ID, "attempt", attempt, "err", err)
		timer := time.NewTimer(time.Duration(attempt) * attemptPause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-m.exited:
			timer.Stop()
			return errExited
		}
	}
}

// identify finds the identifier that the machine must have.
func (m *machine) identify() (layout.Identity, *layout.Snapshot, error) {
	r := m.record
	if r.Snapshot != "" {
		s, err := layout.ReadSnapshot(r.Snapshot, r.Config, r.Compatibility)
		if err != nil {
			return layout.Identity{}, nil, err
		}
		return s.Identity, &s, nil
	}
	if r.Config.GuestOS == vm.GuestMacOS {
		// An installation belongs to the identifier that it was made with.
		return layout.Identity{MachineIdentifier: r.Config.MacOS.MachineIdentifier}, nil, nil
	}
	id, err := m.framework.NewIdentifier(framework.Linux)
	return layout.Identity{MachineIdentifier: id}, nil, m.mapped(callNew, err)
}

// cloneDisks gives the machine disks of its own: those of the snapshot, which belong to
// the saved memory, or new ones.
func (m *machine) cloneDisks() error {
	r := m.record
	from := map[string]string{layout.ScratchFile: r.Config.Kit.Scratch}
	if mac := r.Config.MacOS; mac != nil {
		from[layout.DiskFile], from[layout.AuxiliaryFile] = mac.Disk, mac.AuxiliaryStorage
	}
	for _, name := range layout.Disks(r.Config) {
		source := from[name]
		if r.Snapshot != "" {
			source = filepath.Join(r.Snapshot, name)
		}
		if err := machinedir.CopySparse(source, filepath.Join(m.dir, name)); err != nil {
			return fmt.Errorf("clone %s: %w", name, err)
		}
	}
	return nil
}

// try makes the framework's machine and starts or restores it, once.
func (m *machine) try(cfg framework.Configuration, restore bool) error {
	v, err := m.framework.New(cfg)
	if err != nil {
		return m.mapped(callNew, err)
	}
	// From here on whoever ends the machine ends this one.
	m.mu.Lock()
	if m.phase != phaseStarting {
		m.mu.Unlock()
		m.unplug(v)
		return errExited
	}
	m.virtual = v
	m.mu.Unlock()
	err = m.bring(v, restore)
	if err != nil {
		m.mu.Lock()
		mine := m.phase == phaseStarting
		if mine {
			m.virtual = nil
		}
		m.mu.Unlock()
		if mine {
			m.unplug(v)
		}
	}
	return err
}

func (m *machine) bring(v framework.Machine, restore bool) error {
	if restore || m.record.Config.Saveable {
		if err := v.SaveRestoreSupport(); err != nil {
			return fmt.Errorf("%w: a machine of this configuration cannot be saved: %w", vm.ErrNotSupported, err)
		}
	}
	if !restore {
		return m.mapped(callStart, v.Start())
	}
	// A file that is not there must not be the framework's to interpret.
	if err := v.Restore(filepath.Join(m.record.Snapshot, layout.StateFile)); err != nil {
		return m.mapped(callRestore, err)
	}
	if state := v.State(); state != framework.StatePaused {
		return fmt.Errorf("%w: after the restore the machine is %s, not paused: it may have been booted instead", vm.ErrSnapshotInvalid, state)
	}
	return nil
}

// up makes the machine usable.
func (m *machine) up() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.phase != phaseStarting {
		return errExited
	}
	m.phase, m.wasUp = phaseUp, true
	v := m.virtual
	m.watcher.Go(func() { m.watch(v) })
	return nil
}
