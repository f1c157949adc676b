// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/machinedir"
	"github.com/vk-firkin/vk-firkin/vm/process"
)

// start makes the machine's files and its process, and leaves it running (or, from
// s, paused with its state loaded) and recorded. If it fails the process has ended;
// the directory is the caller's to remove.
func (d *Driver) start(ctx context.Context, m *machine, s *snapshot) (_ *qmp, err error) {
	l, err := d.prepareFiles(m, s)
	if err != nil {
		return nil, err
	}
	q, err := d.spawn(ctx, m, l, s)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			q.Close()
			m.abandon()
		}
	}()
	if s != nil {
		if err := d.loadState(ctx, m, q, s); err != nil {
			return nil, err
		}
	}
	m.record.Process = m.process.Identity()
	m.record.Ready = true
	if err := machinedir.NoteJSON(m.driver.machines.FS, m.dir, recordFile, m.record); err != nil {
		return nil, err
	}
	return q, ctx.Err()
}

// prepareFiles makes the machine's disks and memory and says how to launch it.
func (d *Driver) prepareFiles(m *machine, s *snapshot) (launch, error) {
	cfg := m.record.Config
	l := launch{
		arch:        d.opts.Arch,
		accelerator: d.features.Accelerator,
		shape:       cfg.Shape,
		kit:         cfg.Kit,
		incoming:    s != nil,
	}
	for i := range l.images {
		l.images[i] = d.emptySlot()
		if i < len(cfg.Images) && cfg.Images[i] != "" {
			l.images[i] = cfg.Images[i]
		}
	}
	in := func(name string) string { return filepath.Join(m.dir, name) }
	switch {
	case s == nil && cfg.Saveable:
		l.memory, l.shared = memoryFile, true
		if err := machinedir.SparseFile(in(memoryFile), cfg.Shape.MemoryBytes); err != nil {
			return l, fmt.Errorf("make memory file: %w", err)
		}
	case s != nil && cfg.Saveable:
		l.memory, l.shared = memoryFile, true
		if err := machinedir.CopySparse(s.path(snapshotMemory), in(memoryFile)); err != nil {
			return l, fmt.Errorf("copy memory: %w", err)
		}
	case s != nil:
		l.memory = s.path(snapshotMemory)
	}
	switch {
	case s != nil && cfg.Saveable:
		// Its own copy, so that a save is one file again and no chain of them.
		if err := machinedir.CopySparse(s.path(snapshotScratch), in(scratchFile)); err != nil {
			return l, fmt.Errorf("copy scratch disk: %w", err)
		}
	case s != nil:
		l.parentScratch = s.path(snapshotScratch)
		fallthrough
	default:
		if err := writeOverlay(in(scratchFile), scratchBytes); err != nil {
			return l, err
		}
	}
	return l, nil
}

// spawn starts QEMU in the machine's directory, in a session of its own, and
// connects to it. It sets m.process and m.stderr.
func (d *Driver) spawn(ctx context.Context, m *machine, l launch, s *snapshot) (_ *qmp, err error) {
	control, err := machinedir.ListenUnix(m.dir, qmpSocket)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	agent, err := machinedir.ListenUnix(m.dir, agentSocket)
	if err != nil {
		return nil, err
	}
	defer agent.Close()
	read, write, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer write.Close()

	cmd := exec.Command(d.binary, arguments(l)...) //nolint:noctx // the machine outlives ctx and this process
	cmd.Dir = m.dir
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C"}
	cmd.Stdout, cmd.Stderr = write, write
	cmd.ExtraFiles = []*os.File{control, agent}
	if s != nil {
		cmd.ExtraFiles = append(cmd.ExtraFiles, s.state)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		read.Close()
		return nil, fmt.Errorf("start %s: %w", d.binary, machinedir.NoSpace(err))
	}
	m.stderr = process.Collect(read)
	// After the start, which makes the files that it hands on blocking ones.
	if err := setNonblock(write); err != nil {
		d.log.Warn("The hypervisor may have to wait until its standard error is read", "machine", m.id, "err", err)
	}
	m.process, err = process.Open(cmd.Process.Pid)
	if err != nil {
		// It has ended already; nobody else reaps it.
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		write.Close()
		<-m.stderr.Done()
		m.stderr.Close()
		return nil, d.startError(m, fmt.Errorf("%w: %w", vm.ErrUnavailable, err))
	}
	_ = cmd.Process.Release() // m.process is the handle from here on
	// With our copies closed, the end of QEMU ends the connections to it.
	control.Close()
	agent.Close()
	write.Close()

	conn, err := machinedir.DialUnix(ctx, m.dir, qmpSocket)
	if err == nil {
		var q *qmp
		if q, err = newQMP(ctx, conn); err == nil {
			return q, nil
		}
	}
	m.abandon()
	return nil, d.startError(m, err)
}

// abandon ends the process of a machine that is not handed to anybody.
func (m *machine) abandon() {
	if err := m.process.Kill(); err != nil {
		m.driver.log.Error("Cannot end the hypervisor of a machine that failed to start", "machine", m.id, "err", err)
		return
	}
	m.process.Wait()
	m.process.Reap()
	m.process.Close()
	<-m.stderr.Done()
	m.stderr.Close()
}

// startError adds to err what QEMU said before it ended, and the kind that follows
// from it.
func (d *Driver) startError(m *machine, err error) error {
	text := m.stderr.String()
	if text == "" || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, vm.ErrUnavailable) {
		return err
	}
	if strings.Contains(text, "No space left on device") || strings.Contains(text, "Cannot allocate memory") {
		return fmt.Errorf("%w: the hypervisor said: %s", vm.ErrNoSpace, text)
	}
	return fmt.Errorf("%w: the hypervisor said: %s", err, text)
}

// loadState loads the device state of s into the waiting QEMU.
func (d *Driver) loadState(ctx context.Context, m *machine, q *qmp, s *snapshot) error {
	// Checked while QEMU started: the state is what QEMU's parsers are fed with.
	if err := s.verified(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, restoreTimeout, fmt.Errorf("%w: the device state was not loaded within %s", vm.ErrSnapshotInvalid, restoreTimeout))
	defer cancel()
	err := ignoreShared(ctx, q)
	if err == nil {
		_, err = q.execute(ctx, "migrate-incoming", map[string]string{"uri": fmt.Sprintf("fd:%d", stateDescriptor)})
	}
	if err == nil {
		err = q.migration(ctx)
	}
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	// QEMU ends itself over a state that it cannot load.
	m.stderr.Settle()
	err = d.startError(m, err)
	if errors.Is(err, vm.ErrNoSpace) {
		return err
	}
	return fmt.Errorf("%w: %w", vm.ErrSnapshotInvalid, err)
}

// ignoreShared leaves memory that is a file out of the device state.
func ignoreShared(ctx context.Context, q *qmp) error {
	type capability struct {
		Capability string `json:"capability"`
		State      bool   `json:"state"`
	}
	_, err := q.execute(ctx, "migrate-set-capabilities", map[string]any{
		"capabilities": []capability{{"x-ignore-shared", true}},
	})
	return err
}

// setNonblock makes writes to f fail when nobody reads, in every process that has it.
func setNonblock(f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	if err := raw.Control(func(fd uintptr) { serr = syscall.SetNonblock(int(fd), true) }); err != nil {
		return err
	}
	return serr
}
