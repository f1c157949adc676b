// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package vz

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/machinedir"
	"github.com/vk-firkin/vk-firkin/vm/process"
	"github.com/vk-firkin/vk-firkin/vm/vz/control"
	"github.com/vk-firkin/vk-firkin/vm/vz/layout"
)

// launchTimeout bounds the making of a machine by its shim. A restore reads the whole
// memory: 4 GiB took 5.5 s, 8 GiB 11 s on Apple silicon (tailscale's tailmac); a disk that
// has to be copied takes longer.
const launchTimeout = 5 * time.Minute

// launch starts the machine's shim in a session of its own and has it make the machine.
// If it fails the process has ended; the directory is the caller's to remove.
func (d *Driver) launch(ctx context.Context, m *machine) (err error) {
	if err := d.spawn(m); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = m.withLastWords(ctx, err)
			m.abandon()
		}
	}()
	making, cancel := context.WithTimeoutCause(ctx, launchTimeout, fmt.Errorf("%w: its shim has not made it within %s", vm.ErrUnavailable, launchTimeout))
	defer cancel()
	_, err = m.client.Versions(making)
	if err == nil {
		_, err = m.client.Start(making)
	}
	if err != nil {
		if cause := context.Cause(making); errors.Is(cause, vm.ErrUnavailable) {
			return cause
		}
		return err
	}
	m.record.Shim = m.process.Identity()
	m.record.Ready = true
	if err := machinedir.NoteJSON(m.driver.machines.FS, m.dir, layout.RecordFile, m.record); err != nil {
		return err
	}
	return ctx.Err()
}

// spawn starts the shim. Its socket is there before it is: whoever connects waits in the
// kernel's queue, and if the shim dies the connection ends.
func (d *Driver) spawn(m *machine) error {
	listener, err := machinedir.ListenUnix(m.dir, control.Socket)
	if err != nil {
		return err
	}
	defer listener.Close()
	read, write, err := os.Pipe()
	if err != nil {
		return err
	}
	defer write.Close()
	args := append(append([]string{}, d.opts.Shim[1:]...), "--dir", m.dir)
	cmd := exec.Command(d.program, args...) //nolint:noctx // the machine outlives ctx and this process
	cmd.Dir = m.dir
	cmd.Stdout, cmd.Stderr = write, write
	cmd.ExtraFiles = []*os.File{listener} // descriptor 3
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		read.Close()
		return fmt.Errorf("start %s: %w", d.program, machinedir.NoSpace(err))
	}
	m.stderr = process.Collect(read)
	m.process, err = process.Open(cmd.Process.Pid)
	if err != nil {
		// It has ended already; nobody else reaps it.
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		write.Close()
		<-m.stderr.Done()
		m.stderr.Close()
		return fmt.Errorf("%w: its shim has ended: %s", vm.ErrUnavailable, m.stderr)
	}
	_ = cmd.Process.Release() // m.process is the handle from here on
	return nil
}

// withLastWords adds what the shim said before it ended to an error that says no more
// than that it did not answer.
func (m *machine) withLastWords(ctx context.Context, err error) error {
	if ctx.Err() != nil || !errors.Is(err, vm.ErrUnavailable) {
		return err
	}
	m.stderr.Settle()
	if text := m.stderr.String(); text != "" {
		return fmt.Errorf("%w: its shim said: %s", err, text)
	}
	return err
}

// abandon ends the process of a machine that is not handed to anybody.
func (m *machine) abandon() {
	m.client.Close()
	if err := m.process.Kill(); err != nil {
		m.driver.log.Error("Cannot end the shim of a machine that failed to start", "machine", m.id, "err", err)
		return
	}
	m.process.Wait()
	m.process.Reap()
	m.process.Close()
	m.stderr.Close()
}
