// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"

	"github.com/vk-firkin/vk-firkin/vm/durable"
)

// lock takes the state directory, for as long as this process lives: two would adopt and
// delete each other's machines. Commands that only look at it need not ask.
func (n *node) lock() error {
	lock, err := durable.LockDir(n.StateDir)
	if err != nil {
		return refusalOfLock(err)
	}
	n.onClose(lock.Close)
	return nil
}

// refusalOfLock says what can be done when another process has the state directory.
func refusalOfLock(err error) error {
	if errors.Is(err, durable.ErrCannotLock) {
		return fmt.Errorf("state directory: %w (--state-dir): two nodes in one would delete each other's machines", err)
	}
	var locked *durable.LockedError
	if !errors.As(err, &locked) {
		return err
	}
	if locked.PID == 0 {
		return fmt.Errorf("state directory %w: stop it, or give this node one of its own with --state-dir", err)
	}
	return fmt.Errorf("state directory %w: stop it (kill %d; the machines go on), or give this node one of its own with --state-dir", err, locked.PID)
}
