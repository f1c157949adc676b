// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build unix && !linux

package qemu

import (
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
)

// process is a handle of a QEMU process. Without pidfds the number is all there
// is: a process found again after a restart is taken for the recorded one if it is
// alive. Never run in production; the driver for Macs is vz.
type process struct {
	identity identity
	closed   chan struct{}
	close    sync.Once
}

var errProcessGone = errors.New("process has ended")

func openProcess(pid int) (*process, error) {
	return findProcess(identity{PID: pid})
}

func findProcess(want identity) (*process, error) {
	if err := syscall.Kill(want.PID, 0); err != nil {
		return nil, errProcessGone
	}
	return &process{identity: want, closed: make(chan struct{})}, nil
}

// Wait blocks until the process has ended (true) or the handle is closed (false).
func (p *process) Wait() bool {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-p.closed:
			return false
		case <-tick.C:
			var ws syscall.WaitStatus
			if pid, err := syscall.Wait4(p.identity.PID, &ws, syscall.WNOHANG, nil); err == nil && pid == p.identity.PID {
				return true
			}
			if syscall.Kill(p.identity.PID, 0) != nil {
				return true
			}
		}
	}
}

func (p *process) Kill() error {
	if err := syscall.Kill(p.identity.PID, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("kill process %d: %w", p.identity.PID, err)
	}
	return nil
}

// Reap: Wait has collected the status already.
func (p *process) Reap() (string, bool) { return "", false }

func (p *process) Close() { p.close.Do(func() { close(p.closed) }) }

func processesIn(_, _ string) ([]*process, error) { return nil, nil }

func measure(int) (int64, time.Duration, error) {
	return 0, 0, fmt.Errorf("measure a process: %w", vm.ErrNotSupported)
}
