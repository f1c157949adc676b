// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package qemu

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/durable"
	"github.com/vk-firkin/vk-firkin/vm/machinedir"
)

// Files of a snapshot.
const (
	snapshotMeta    = "qemu.json"
	snapshotMemory  = "memory"
	snapshotState   = "state"
	snapshotScratch = "scratch.qcow2"
)

// snapshotVersion is the version of qemu.json and of the files beside it.
const snapshotVersion = 1

// maxStateBytes bounds a device state: it is half a megabyte plus what the
// devices hold of unfinished requests.
const maxStateBytes = 256 << 20

// snapshotRecord is the content of qemu.json: what must be equal at restore.
type snapshotRecord struct {
	Version       int      `json:"version"`
	Compatibility string   `json:"compatibility"`
	Shape         vm.Shape `json:"shape"`
	KitDigest     string   `json:"kitDigest"`
	StateBytes    int64    `json:"stateBytes"`
	// StateSHA256 is checked at every restore, in parallel with QEMU's start. Memory
	// and scratch are not: that would read them whole. Their integrity is the
	// snapshot store's business.
	StateSHA256  string `json:"stateSha256"`
	ScratchBytes int64  `json:"scratchBytes"`
}

// snapshot is one that is being restored.
type snapshot struct {
	dir    string
	record snapshotRecord
	state  *os.File
	sum    chan error // the result of checking the state, once
}

func (s *snapshot) path(name string) string { return filepath.Join(s.dir, name) }

// openSnapshot checks what can be checked without reading the big files, and begins
// to check the device state. The caller closes it.
func (d *Driver) openSnapshot(dir string, cfg vm.Config) (*snapshot, error) {
	invalid := func(format string, args ...any) error {
		return fmt.Errorf("%w: "+format, append([]any{vm.ErrSnapshotInvalid}, args...)...)
	}
	if !filepath.IsAbs(dir) {
		return nil, fmt.Errorf("%w: snapshot directory %q, want an absolute path", vm.ErrInvalidConfig, dir)
	}
	s := &snapshot{dir: dir, sum: make(chan error, 1)}
	if err := machinedir.ReadJSON(durable.Host, dir, snapshotMeta, &s.record); err != nil {
		return nil, invalid("%w", err)
	}
	r := s.record
	switch {
	case r.Version != snapshotVersion:
		return nil, invalid("it has version %d, this program reads %d", r.Version, snapshotVersion)
	case r.Compatibility != d.features.Compatibility:
		return nil, invalid("it was made by another host, hypervisor or accelerator")
	case r.Shape != cfg.Shape:
		return nil, invalid("it has shape %s, want %s", r.Shape, cfg.Shape)
	case r.KitDigest != cfg.Kit.Digest:
		return nil, invalid("it was made with guest kit %s, want %s", r.KitDigest, cfg.Kit.Digest)
	case r.StateBytes <= 0 || r.StateBytes > maxStateBytes:
		return nil, invalid("its device state has %d bytes", r.StateBytes)
	}
	for name, size := range map[string]int64{
		snapshotMemory:  r.Shape.MemoryBytes,
		snapshotState:   r.StateBytes,
		snapshotScratch: r.ScratchBytes,
	} {
		info, err := os.Stat(s.path(name))
		if err != nil {
			return nil, invalid("%w", err)
		}
		if !info.Mode().IsRegular() || info.Size() != size {
			return nil, invalid("%s has %d bytes, want %d", name, info.Size(), size)
		}
	}
	state, err := os.Open(s.path(snapshotState))
	if err != nil {
		return nil, invalid("%w", err)
	}
	s.state = state
	go func() {
		sum := sha256.New()
		_, err := io.Copy(sum, io.NewSectionReader(state, 0, r.StateBytes))
		if err == nil && hex.EncodeToString(sum.Sum(nil)) != r.StateSHA256 {
			err = errors.New("its device state is damaged: wrong SHA-256")
		}
		s.sum <- err
	}()
	return s, nil
}

// verified waits for the check of the device state.
func (s *snapshot) verified() error {
	err := <-s.sum
	s.sum <- err
	if err != nil {
		return fmt.Errorf("%w: %w", vm.ErrSnapshotInvalid, err)
	}
	return nil
}

// Close waits for the check and releases the file.
func (s *snapshot) Close() {
	_ = s.verified()
	_ = s.state.Close()
}

// Save is part of vm.Saver. The machine can go on afterwards: memory and scratch
// are copied, sparse, and shared with the copy where the filesystem can.
func (m *machine) Save(ctx context.Context, dir string) ([]string, error) {
	q, end, err := m.begin(ctx)
	if err != nil {
		return nil, m.wrap("save", err)
	}
	defer end()
	files, err := m.save(ctx, q, dir)
	return files, m.wrap("save", m.settle(err))
}

func (m *machine) save(ctx context.Context, q *qmp, dir string) ([]string, error) {
	m.mu.Lock()
	cfg := m.record.Config
	m.mu.Unlock()
	if !cfg.Saveable {
		return nil, fmt.Errorf("%w: it was not made to be saved (Config.Saveable)", vm.ErrInvalidState)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	if len(entries) > 0 {
		return nil, fmt.Errorf("%w: %s is not empty", vm.ErrInvalidConfig, dir)
	}
	run, err := q.runState(ctx)
	if err != nil {
		return nil, err
	}
	if stateOf(run) != vm.StatePaused {
		return nil, fmt.Errorf("%w: it is %s, want paused", vm.ErrInvalidState, stateOf(run))
	}
	// QEMU saves a state once. If nothing has run since the last save, what that one
	// wrote is still the state.
	if run != runPostSave {
		if err := m.writeState(ctx, q); err != nil {
			return nil, err
		}
	}
	to := func(name string) string { return filepath.Join(dir, name) }
	r := snapshotRecord{
		Version:       snapshotVersion,
		Compatibility: m.driver.features.Compatibility,
		Shape:         cfg.Shape,
		KitDigest:     cfg.Kit.Digest,
	}
	for from, name := range map[string]string{stateFile: snapshotState, memoryFile: snapshotMemory, scratchFile: snapshotScratch} {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if err := machinedir.CopySparse(filepath.Join(m.dir, from), to(name)); err != nil {
			return nil, fmt.Errorf("copy %s: %w", name, err)
		}
	}
	if r.StateBytes, r.StateSHA256, err = digest(to(snapshotState)); err != nil {
		return nil, err
	}
	info, err := os.Stat(to(snapshotScratch))
	if err != nil {
		return nil, err
	}
	r.ScratchBytes = info.Size()
	if err := machinedir.WriteJSON(durable.Host, dir, snapshotMeta, r); err != nil {
		return nil, err
	}
	return []string{snapshotMemory, snapshotMeta, snapshotScratch, snapshotState}, nil
}

// writeState makes QEMU write its devices' state into the machine's directory. It
// also flushes the disks and, until the machine goes on, lets go of them.
func (m *machine) writeState(ctx context.Context, q *qmp) (err error) {
	path := filepath.Join(m.dir, stateFile)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return machinedir.NoSpace(err)
	}
	defer func() {
		f.Close()
		if err != nil {
			_ = os.Remove(path)
		}
	}()
	if err := ignoreShared(ctx, q); err != nil {
		return commandError(err)
	}
	if _, err := q.execute(ctx, "getfd", map[string]string{"fdname": "state"}, f); err != nil {
		return commandError(err)
	}
	if _, err := q.execute(ctx, "migrate", map[string]string{"uri": "fd:state"}); err != nil {
		return commandError(err)
	}
	if err := q.migration(ctx); err != nil {
		if ctx.Err() != nil {
			// Ours is the only migration, and the machine must not be left in it.
			_, _ = q.execute(context.WithoutCancel(ctx), "migrate_cancel", nil)
			return err
		}
		return m.saveError(err)
	}
	return nil
}

// saveError tells a full disk from other failures: QEMU says "failed" to both.
func (m *machine) saveError(err error) error {
	if m.stderr != nil {
		return m.driver.startError(m, commandError(err))
	}
	return commandError(err)
}

// digest reads a file's size and SHA-256.
func digest(path string) (int64, string, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, "", err
	}
	defer f.Close()
	sum := sha256.New()
	n, err := io.Copy(sum, f)
	if err != nil {
		return 0, "", err
	}
	return n, hex.EncodeToString(sum.Sum(nil)), nil
}
