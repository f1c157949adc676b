// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"errors"
	"fmt"

	"github.com/vk-firkin/vk-firkin/vm/durable"
)

// lockDir takes the store's lock without waiting. The error is ErrLocked and names the
// holder.
func lockDir(dir string) (*durable.Lock, error) {
	lock, err := durable.LockDir(dir)
	var locked *durable.LockedError
	if !errors.As(err, &locked) {
		return lock, err
	}
	if locked.PID == 0 {
		return nil, ErrLocked
	}
	return nil, fmt.Errorf("%w (process %d)", ErrLocked, locked.PID)
}
