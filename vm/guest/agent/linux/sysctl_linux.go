// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package linux

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/vk-firkin/vk-firkin/vm/guest/agent"
)

var _ agent.SysctlSetter = (*System)(nil)

// SetSysctl implements agent.SysctlSetter.
func (s *System) SetSysctl(path, value string) error {
	f, err := os.OpenFile(filepath.Join("/proc/sys", path), os.O_WRONLY, 0)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.EISDIR) {
		return fmt.Errorf("%w: the kernel has no such parameter", agent.ErrInvalid)
	}
	if err != nil {
		return fmt.Errorf("%w: the kernel does not let it be set: %w", agent.ErrInvalid, err)
	}
	defer func() { _ = f.Close() }()
	if _, err := f.WriteString(value); err != nil {
		return fmt.Errorf("%w: the kernel does not take %.64q: %w", agent.ErrInvalid, value, err)
	}
	return nil
}
