// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/guest"
)

// Wake lets a machine go on that was paused, for a pod that is to have it now: its clock
// stands at the time of the pause, its identity is of the time before. It resumes the
// machine, gives it time, entropy, a new machine-id, the hostname and the network, and
// checks the proof that it is the machine that was restored, also when its snapshot was
// quarantined since. A machine that runs is refreshed all the same.
//
// client is a connection to the machine's agent that may have been lost, or nil; Wake
// owns it and returns it, or another. An empty hostname is the machine's id. It takes no
// longer than Timeouts.Wake.
//
// Errors: ErrNotFound for a machine without reference; vm.ErrInvalidState when it has exited
// or was never ready; vm.ErrUnavailable when it does not answer; ErrProof. After an error
// the machine is as it happens to be, perhaps running, with all connections closed: it is to
// be deleted.
func (s *Store) Wake(ctx context.Context, m vm.Machine, client *guest.Client, hostname string) (woken *guest.Client, err error) {
	ctx, cancel := context.WithTimeout(ctx, s.opts.Timeouts.Wake)
	defer cancel()
	defer func() {
		if err != nil {
			if client != nil {
				err = errors.Join(err, ignoreClosed(client.Close()))
			}
			woken, err = nil, fmt.Errorf("wake machine %q: %w", m.ID(), err)
		}
	}()
	sealKey, err := s.sealKeyOf(m.ID())
	if err != nil {
		return nil, err
	}
	if err := m.Resume(ctx); err != nil {
		return nil, fmt.Errorf("resume: %w", err)
	}
	if client != nil {
		err := s.refresh(ctx, client, sealKey, m.ID(), hostname)
		if err == nil || !errors.Is(err, vm.ErrUnavailable) || ctx.Err() != nil {
			return client, err
		}
		// The connection was lost while the machine stood still.
		_ = client.Close()
		client = nil
	}
	if client, err = s.Dial(ctx, m); err != nil {
		return nil, err
	}
	return client, s.refresh(ctx, client, sealKey, m.ID(), hostname)
}

// Refresh is the part of Wake for a machine that runs and whose agent answers on client,
// which stays the caller's. It takes no longer than Timeouts.Wake; errors are those of Wake.
func (s *Store) Refresh(ctx context.Context, m vm.Machine, client *guest.Client, hostname string) error {
	ctx, cancel := context.WithTimeout(ctx, s.opts.Timeouts.Wake)
	defer cancel()
	sealKey, err := s.sealKeyOf(m.ID())
	if err == nil {
		err = s.refresh(ctx, client, sealKey, m.ID(), hostname)
	}
	if err != nil {
		return fmt.Errorf("refresh machine %q: %w", m.ID(), err)
	}
	return nil
}

// sealKeyOf finds the seal key of the set that a machine was restored from; nil for a
// machine that was booted.
func (s *Store) sealKeyOf(machine string) ([]byte, error) {
	r, ok := s.Reference(machine)
	if !ok {
		return nil, fmt.Errorf("%w: it was not restored from any", ErrNotFound)
	}
	if !r.Proven {
		return nil, fmt.Errorf("%w: its restore did not end well", vm.ErrInvalidState)
	}
	if r.Cold() {
		return nil, nil
	}
	s.mu.Lock()
	key := s.sealKeys[r.Instance]
	s.mu.Unlock()
	if key != nil {
		return key, nil
	}
	if r.Instance == "" {
		return nil, fmt.Errorf("%w: its record is damaged", ErrNotFound)
	}
	dirs := []string{filepath.Join(s.dir, r.Key)}
	names, err := s.quarantined()
	if err != nil {
		return nil, err
	}
	for _, n := range names {
		if strings.HasPrefix(n, r.Key+"-") {
			dirs = append(dirs, filepath.Join(s.dir, quarantineDir, n))
		}
	}
	for _, dir := range dirs {
		if !s.isInstance(dir, r.Instance) {
			continue
		}
		key, err := readBounded(filepath.Join(dir, sealKeyName), sealKeyBytes)
		if err != nil {
			return nil, fmt.Errorf("read seal key: %w", err)
		}
		if len(key) != sealKeyBytes {
			return nil, fmt.Errorf("read seal key: %w: it has %d bytes", vm.ErrSnapshotInvalid, len(key))
		}
		s.keepSealKey(r.Instance, key)
		return key, nil
	}
	return nil, fmt.Errorf("%w: the one it was restored from, %s, is gone", ErrNotFound, shortKey(r.Key))
}

// isInstance tells whether a set is this making of its key. One whose manifest is damaged
// may still have it in the record of its quarantine.
func (s *Store) isInstance(dir, instance string) bool {
	if m, err := readManifest(dir); err == nil {
		return m.Instance == instance
	}
	parent, name := filepath.Split(dir)
	return filepath.Base(parent) == quarantineDir && readQuarantine(filepath.Clean(parent), name).Instance == instance
}

// keepSealKey remembers the seal key of machines, so that waking one reads no file.
func (s *Store) keepSealKey(instance string, key []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sealKeys[instance] = key
}

// dropSealKey forgets it when no machine needs it any more. mu is held.
func (s *Store) dropSealKey(instance string) {
	for _, r := range s.refs {
		if r.Instance == instance {
			return
		}
	}
	delete(s.sealKeys, instance)
}
