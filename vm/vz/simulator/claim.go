// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package simulator

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// errTaken: another machine holds what was asked for.
var errTaken = errors.New("in use")

// claim holds something of the host for a machine: a file in the host's directory that
// is locked as long as the claim lives, and so by the kernel's doing no longer than the
// process. The files themselves stay, a few bytes of directory each: whoever removed one
// would race with whoever opens it.
type claim struct{ file *os.File }

// claim takes name, shared with others that share it or alone. The error is errTaken.
func (s *simulator) claim(name string, shared bool) (*claim, error) {
	dir := filepath.Join(s.dir, "claims")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("claim %s: %w", name, err)
	}
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("claim %s: %w", name, err)
	}
	if err := tryLock(f, shared); err != nil {
		f.Close()
		return nil, fmt.Errorf("claim %s: %w", name, err)
	}
	return &claim{f}, nil
}

// share lets others share what was held alone.
func (c *claim) share() error { return tryLock(c.file, true) }

// release gives back. A nil claim is none, and one that was given back is none either.
func (c *claim) release() {
	if c != nil {
		unlock(c.file)
	}
}

// lockHost waits for the one lock of the host.
func lockHost(dir string) (release func(), err error) {
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := waitLock(f); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return func() { unlock(f) }, nil
}

// claimSlot takes one of the slots for macOS guests. The error is errTaken.
func (s *simulator) claimSlot() (*claim, error) {
	release, err := lockHost(s.dir)
	if err != nil {
		return nil, err
	}
	defer release()
	h, err := ReadHost(s.dir)
	if err != nil {
		return nil, err
	}
	for slot := range h.MacOSGuests {
		if h.leaked(slot) {
			continue
		}
		c, err := s.claim(fmt.Sprintf("macos-slot-%d", slot), false)
		if errors.Is(err, errTaken) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if h.LeaksSlots {
			// Marked when taken: so it stays taken whatever ends the machine.
			if err := changeLocked(s.dir, func(h *Host) { h.LeakedSlots = append(h.LeakedSlots, slot) }); err != nil {
				c.release()
				return nil, err
			}
		}
		return c, nil
	}
	return nil, fmt.Errorf("slot for a macOS guest: %w", errTaken)
}

// claimIdentifier notes that a machine with this identifier is going to run. alone: none
// other may do so at this moment; the error is errTaken then. Once it is noted, others
// may join.
func (s *simulator) claimIdentifier(id []byte, alone bool) (*claim, error) {
	sum := sha256.Sum256(id)
	name := "identifier-" + hex.EncodeToString(sum[:8])
	// Under the host's lock: a lock that is held alone and then shared is free for a
	// moment in between.
	release, err := lockHost(s.dir)
	if err != nil {
		return nil, err
	}
	defer release()
	c, err := s.claim(name, !alone)
	if err != nil {
		return nil, err
	}
	if err := c.share(); err != nil {
		c.release()
		return nil, err
	}
	return c, nil
}
