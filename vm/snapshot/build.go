// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/durable"
)

// build makes the set of a key: it boots a machine, or for a template restores one from
// base (a macOS guest is booted) and prepares it, lets the agent get ready, saves, and publishes. What fails
// leaves neither machine nor directory; what even that cannot delete is deleted when
// the store is opened next.
func (s *Store) build(ctx context.Context, key string, spec Spec, base *Ref) (built *set, err error) {
	started := s.opts.Now()
	step := "check disk"
	var console string
	defer func() {
		if err != nil {
			if noSpace(err) && !errors.Is(err, vm.ErrNoSpace) {
				err = fmt.Errorf("%w: %w", vm.ErrNoSpace, err)
			}
			about := spec.about(key)
			err = &BuildError{Key: key, Kind: spec.Kind, Shape: spec.Shape, Template: about.Template, Step: step, Err: err, Console: console}
		}
	}()
	expected := int64(0)
	if spec.Template != nil {
		expected = spec.Shape.MemoryBytes // the commands may touch all of it
	}
	if err := s.checkDisk(expected); err != nil {
		return nil, err
	}
	s.opts.Logger.Info("Building snapshot", "snapshot", shortKey(key), "of", spec.String(), "shape", spec.Shape.String())

	step = "identify images"
	template, err := spec.Template.manifestOf()
	if err != nil {
		return nil, err
	}

	// The directory's name is the record of the machine's id, so it comes first.
	step = "make directory"
	random := randomHex(16)
	id := builderIDPrefix + random
	dir := filepath.Join(s.dir, buildingPrefix+random)
	saved := filepath.Join(dir, machineDir)
	s.setBuilder(id, true) // before there is anything that a collection could take for a leftover
	if err := s.opts.FS.Mkdir(dir); err != nil {
		s.setBuilder(id, false)
		return nil, err
	}
	published, machineGone := false, true
	defer func() {
		s.setBuilder(id, false) // a machine that could not be deleted is anybody's to reap
		if published || !machineGone {
			return // without its directory nobody would delete the machine later
		}
		err = errors.Join(err, s.opts.FS.RemoveAll(dir))
	}()
	if err := s.opts.FS.Mkdir(saved); err != nil {
		return nil, err
	}

	sealKey := make([]byte, sealKeyBytes)
	_, _ = rand.Read(sealKey) // never fails: it ends the process instead
	cfg := spec.config()
	cfg.Saveable = true
	var machine vm.Machine
	switch {
	case base != nil:
		machine, step, err = s.prepareBuilder(ctx, id, cfg, sealKey, spec, base)
	case spec.Template != nil:
		machine, step, err = s.bootTemplate(ctx, id, cfg, sealKey, spec)
	default:
		machine, step, err = s.bootBuilder(ctx, id, cfg, sealKey)
	}
	if machine != nil {
		machineGone = false
		defer func() {
			if machineGone {
				return
			}
			if derr := s.deleteMachine(ctx, machine); derr != nil {
				err = errors.Join(err, derr)
				return
			}
			machineGone = true
		}()
	}
	if err != nil {
		if machine != nil && (step != stepPrepare || errors.Is(err, vm.ErrInvalidState)) {
			console = s.console(ctx, machine) // else the commands' output says more
		}
		return nil, err
	}

	// The agent must have noticed that its conversation ended before its memory is saved:
	// one that was saved in the middle of it makes every restored machine spend more than
	// a second on ending it before it answers. Nothing tells the host when a guest has
	// read the end of a stream.
	step = "let guest settle"
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(s.opts.Timeouts.Settle):
	}

	step = "pause machine"
	pauser, okPause := machine.(vm.Pauser)
	saver, okSave := machine.(vm.Saver)
	if !okPause || !okSave {
		return nil, vm.ErrNotSupported
	}
	if err := s.call(ctx, pauser.Pause); err != nil {
		return nil, err
	}
	step = "save machine"
	saving := time.Now()
	names, err := within(ctx, s.opts.Timeouts.Save, func(ctx context.Context) ([]string, error) {
		return saver.Save(ctx, saved)
	})
	if err != nil {
		return nil, err
	}
	saveTook := time.Since(saving)
	created := s.opts.Now().UTC()

	// Before the files are read: a file that the driver shares between machine and
	// snapshot must not have a writer any more.
	step = "delete builder"
	if err := s.deleteMachine(ctx, machine); err != nil {
		return nil, err
	}
	machineGone = true

	step = "publish"
	manifest := Manifest{
		Version:       FormatVersion,
		Kind:          spec.Kind,
		Key:           key,
		Instance:      randomHex(instanceLength),
		Created:       created,
		Driver:        s.driver.Name(),
		Arch:          spec.arch(s.features),
		Compatibility: s.features.Compatibility,
		KitDigest:     spec.Kit.Digest,
		MacOSDigest:   macOSDigest(spec.MacOS),
		Shape:         spec.Shape,
		Template:      template,
	}
	if err := s.publish(ctx, dir, names, sealKey, &manifest); err != nil {
		return nil, err
	}
	published = true
	took := s.opts.Now().Sub(started)
	s.opts.Logger.Info("Built snapshot", "snapshot", shortKey(key), "shape", spec.Shape.String(), "duration", took)
	done := spec.about(key)
	done.Type, done.Duration, done.Save = EventBuilt, took, saveTook
	done.Message = fmt.Sprintf("Built %s snapshot %s of shape %s in %s", spec.Kind, shortKey(key), spec.Shape, took.Round(time.Millisecond))
	if spec.Template != nil {
		done.Message = fmt.Sprintf("Built snapshot %s of template %s in %s", shortKey(key), spec.Template.ID(), took.Round(time.Millisecond))
	}
	s.emit(done)
	return &set{dir: filepath.Join(s.dir, key), manifest: manifest, sealKey: sealKey}, nil
}

// publish hashes and syncs the files of dir, adds seal key and manifest, and
// renames it to its key. names are the driver's files. On error dir is unpublished.
func (s *Store) publish(ctx context.Context, dir string, names []string, sealKey []byte, m *Manifest) error {
	saved := filepath.Join(dir, machineDir)
	if err := checkSaved(saved, names); err != nil {
		return err
	}
	if err := durable.WriteNew(s.opts.FS, filepath.Join(dir, sealKeyName), sealKey, durable.Synced); err != nil {
		return err
	}
	members := []string{sealKeyName}
	for _, n := range names {
		members = append(members, machineDir+"/"+n)
	}
	slices.Sort(members)
	for _, name := range members {
		path := filepath.Join(dir, filepath.FromSlash(name))
		sparse, err := hasHoles(path)
		if err != nil {
			return fmt.Errorf("look at %q: %w", name, err)
		}
		size, sum, err := digestFile(ctx, path, sparse)
		if err != nil {
			return fmt.Errorf("read %q: %w", name, err)
		}
		if err := durable.Sync(s.opts.FS, path); err != nil {
			return fmt.Errorf("sync %q: %w", name, err)
		}
		m.Members = append(m.Members, Member{Name: name, Size: size, SHA256: sum, Sparse: sparse})
	}
	if err := s.opts.FS.SyncDir(saved); err != nil {
		return fmt.Errorf("sync %q: %w", machineDir, err)
	}
	data, err := encodeManifest(*m)
	if err != nil {
		return err
	}
	if err := durable.WriteNew(s.opts.FS, filepath.Join(dir, manifestName), data, durable.Synced); err != nil {
		return err
	}
	if err := s.opts.FS.SyncDir(dir); err != nil {
		return fmt.Errorf("sync snapshot: %w", err)
	}
	final := filepath.Join(s.dir, m.Key)
	if err := s.opts.FS.Rename(dir, final); err != nil {
		return err
	}
	if err := s.opts.FS.SyncDir(s.dir); err != nil {
		// It is whole, and may or may not survive a crash of the host: the next Ensure
		// takes what it finds.
		return fmt.Errorf("sync store: %w", err)
	}
	return nil
}

// checkSaved compares what the driver says it saved with what is there.
func checkSaved(dir string, names []string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	if len(names) == 0 || len(names) >= maxMembers {
		return fmt.Errorf("driver saved %d files", len(names))
	}
	for _, n := range names {
		if !validFileName(n) {
			return fmt.Errorf("driver saved a file named %q", n)
		}
	}
	for _, e := range entries {
		if !slices.Contains(names, e.Name()) {
			return fmt.Errorf("driver saved file %q without listing it", e.Name())
		}
		if !e.Type().IsRegular() {
			return fmt.Errorf("driver saved %q, which is not a regular file", e.Name())
		}
	}
	if len(entries) != len(names) {
		return fmt.Errorf("driver listed %d files and saved %d", len(names), len(entries))
	}
	return nil
}

// deleteMachine deletes on a way out: also when ctx is over.
func (s *Store) deleteMachine(ctx context.Context, m vm.Machine) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.opts.Timeouts.Delete)
	defer cancel()
	if err := m.Delete(ctx); err != nil {
		return &LeftoverError{Machine: m, Err: err}
	}
	return nil
}

func (s *Store) setBuilder(id string, building bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if building {
		s.builders[id] = true
	} else {
		delete(s.builders, id)
	}
}

// maxConsole bounds the console in an error.
const maxConsole = 4 << 10

// console returns the end of a machine's console, made safe to show; empty when
// there is none.
func (s *Store) console(ctx context.Context, m vm.Machine) string {
	c, ok := m.(vm.Consoler)
	if !ok {
		return ""
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.opts.Timeouts.Call)
	defer cancel()
	out, err := c.Console(ctx)
	if err != nil {
		return ""
	}
	return sanitizeConsole(out)
}

// sanitizeConsole keeps the last 4 KiB of printable ASCII, lines and tabs: what a
// guest prints must not steer a terminal. Pure.
func sanitizeConsole(out []byte) string {
	if len(out) > maxConsole {
		out = out[len(out)-maxConsole:]
	}
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t' || r >= 0x20 && r < 0x7f:
			return r
		case r == '\r':
			return -1
		}
		return '.'
	}, string(out)))
}

// call bounds one small call.
func (s *Store) call(ctx context.Context, f func(context.Context) error) error {
	_, err := within(ctx, s.opts.Timeouts.Call, func(ctx context.Context) (struct{}, error) {
		return struct{}{}, f(ctx)
	})
	return err
}

// within runs f with a deadline.
func within[T any](ctx context.Context, d time.Duration, f func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	return f(ctx)
}
