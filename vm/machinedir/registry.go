// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package machinedir

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"sync"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/durable"
	"github.com/vk-firkin/vk-firkin/vm/process"
)

// ErrClosed means that the driver was closed: nothing is known of machines any more.
var ErrClosed = fmt.Errorf("%w: the driver is closed", vm.ErrUnavailable)

// Registry is what a driver knows of the machines of its state directory: which it holds,
// which are being made, and which are there. Each has a directory of its own, by its id,
// and a goroutine that watches it. Safe for concurrent use.
type Registry[M comparable] struct {
	// FS is the disk: durable.Host, unless a test has another one before the first call.
	FS   durable.FS
	root string
	life context.Context //nolint:containedctx // what every call to a machine ends with
	end  context.CancelFunc

	watchers sync.WaitGroup

	mu       sync.Mutex
	closed   bool
	machines map[string]M
	making   map[string]chan struct{} // ids that are claimed; closed when that has ended
}

// NewRegistry makes a registry of the machines in root, a directory that exists by the
// time of the first call.
func NewRegistry[M comparable](root string) *Registry[M] {
	r := &Registry[M]{FS: durable.Host, root: root, machines: map[string]M{}, making: map[string]chan struct{}{}}
	r.life, r.end = context.WithCancel(context.Background())
	return r
}

// Dir is the directory of the machine with this id, there or not.
func (r *Registry[M]) Dir(id string) string { return filepath.Join(r.root, id) }

// Life ends when the registry is closed.
func (r *Registry[M]) Life() context.Context { return r.life }

// Closing is closed when the registry is.
func (r *Registry[M]) Closing() <-chan struct{} { return r.life.Done() }

// Err is ErrClosed once the registry is closed.
func (r *Registry[M]) Err() error {
	if r.life.Err() != nil {
		return ErrClosed
	}
	return nil
}

// Claim takes an id by making its directory, and marks it as being made until release.
// Errors: vm.ErrAlreadyExists, vm.ErrNoSpace, ErrClosed.
func (r *Registry[M]) Claim(id string) (release func(), err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, ErrClosed
	}
	if err := r.FS.Mkdir(r.Dir(id)); errors.Is(err, fs.ErrExist) {
		return nil, vm.ErrAlreadyExists
	} else if err != nil {
		return nil, NoSpace(err)
	}
	made := make(chan struct{})
	r.making[id] = made
	return func() {
		r.mu.Lock()
		delete(r.making, id)
		r.mu.Unlock()
		close(made)
	}, nil
}

// Add makes a machine known that was made, and starts its watch. With ErrClosed neither
// has happened.
func (r *Registry[M]) Add(id string, m M, watch func()) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return ErrClosed
	}
	r.add(id, m, watch)
	return nil
}

// add needs r.mu.
func (r *Registry[M]) add(id string, m M, watch func()) {
	r.machines[id] = m
	if watch != nil {
		r.watchers.Go(watch)
	}
}

// Load returns the machine with this id: the one that is known, when it is not being made,
// or what find makes of its directory. find runs under the registry's lock and may return
// no watch, for a machine that has ended.
//
// Errors: vm.ErrNotFound, vm.ErrUnavailable when the disk does not say, ErrClosed, and
// those of find.
func (r *Registry[M]) Load(ctx context.Context, id string, find func() (m M, watch func(), err error)) (M, error) {
	var none M
	if err := vm.ValidateID(id); err != nil {
		return none, errors.Join(vm.ErrNotFound, err)
	}
	for {
		if err := ctx.Err(); err != nil {
			return none, err
		}
		r.mu.Lock()
		made := r.making[id]
		if made == nil {
			m, err := r.load(id, find)
			r.mu.Unlock()
			return m, err
		}
		r.mu.Unlock()
		select {
		case <-made:
		case <-ctx.Done():
		}
	}
}

// load needs r.mu.
func (r *Registry[M]) load(id string, find func() (m M, watch func(), err error)) (M, error) {
	var none M
	if r.closed {
		return none, ErrClosed
	}
	if m, known := r.machines[id]; known {
		return m, nil
	}
	if _, err := r.FS.Lstat(r.Dir(id)); errors.Is(err, fs.ErrNotExist) {
		return none, vm.ErrNotFound
	} else if err != nil {
		return none, fmt.Errorf("%w: %w", vm.ErrUnavailable, err)
	}
	m, watch, err := find()
	if err != nil {
		return none, err
	}
	r.add(id, m, watch)
	return m, nil
}

// Lookup tells what is known of an id without looking at the disk.
func (r *Registry[M]) Lookup(id string) (m M, known, making bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	m, known = r.machines[id]
	return m, known, r.making[id] != nil
}

// List names every machine that has a directory, in lexical order, known or not.
func (r *Registry[M]) List(ctx context.Context) ([]string, error) {
	if err := errors.Join(ctx.Err(), r.Err()); err != nil {
		return nil, fmt.Errorf("list machines: %w", err)
	}
	entries, err := r.FS.ReadDir(r.root)
	if err != nil {
		return nil, fmt.Errorf("list machines: %w: %w", vm.ErrUnavailable, err)
	}
	var ids []string
	for _, e := range entries {
		if e.IsDir() && vm.ValidateID(e.Name()) == nil {
			ids = append(ids, e.Name())
		}
	}
	slices.Sort(ids)
	return ids, nil
}

// Remove deletes a machine's directory, and whatever of program still works in it: the
// process of a machine that was never made completely.
func (r *Registry[M]) Remove(id, program string) error {
	dir := r.Dir(id)
	if _, err := r.FS.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	left, err := process.In(dir, program)
	if err != nil {
		return err
	}
	for _, p := range left {
		err = errors.Join(err, p.Kill())
		if err == nil {
			p.Wait()
			p.Reap()
		}
		p.Close()
	}
	if err != nil {
		return err
	}
	if err := durable.Remove(r.FS, dir, durable.Unsynced); err != nil { // what comes back after a crash of the host has ended with it
		return fmt.Errorf("remove machine's directory: %w", err)
	}
	return nil
}

// Unfinished is for a machine without a usable record: nil when it was never made
// completely, or ended with the host, of which record is the error. A record that is damaged
// and has a process is another matter: what works there may be a whole machine, so that the
// error is vm.ErrUnreadable and names it.
func (r *Registry[M]) Unfinished(id string, record error) error {
	if !errors.Is(record, durable.ErrCorrupt) {
		return nil // what is made by a record that says so, or before there was one
	}
	found, err := process.In(r.Dir(id), "")
	defer func() {
		for _, p := range found {
			p.Close()
		}
	}()
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("%w: %w; whether the machine runs cannot be told: %w", vm.ErrUnavailable, record, err)
	case len(found) > 0:
		pid := found[0].Identity().PID
		return fmt.Errorf("%w: %w; process %d works in its directory", vm.ErrUnreadable, record, pid)
	}
	return nil
}

// Forget drops a deleted machine, unless its id means another one by now.
func (r *Registry[M]) Forget(id string, m M) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.machines[id] == m {
		delete(r.machines, id)
	}
}

// Close ends the registry's life, waits for the watches, and returns the machines that
// were known. It is idempotent.
func (r *Registry[M]) Close() []M {
	r.mu.Lock()
	r.closed = true
	r.mu.Unlock()
	r.end()
	r.watchers.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	known := make([]M, 0, len(r.machines))
	for _, m := range r.machines {
		known = append(known, m)
	}
	return known
}
