// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"connectrpc.com/connect"
)

const (
	maxLayers      = 64
	maxLowerLayers = 8
)

// layers keeps the named writable layers: directories on the scratch disk that outlive
// the containers that filled them.
type layers struct {
	dir string

	mu    sync.Mutex
	table map[string]*layer // guarded by mu
}

// layer is used by one container that writes it, or by any number of others that have
// it below their own: what the kernel does about a directory that is both is undefined.
type layer struct {
	writer  string // id of the container, or ""
	readers []string
}

// newLayers makes the table from what is on the scratch disk: nothing at a machine's first boot.
func newLayers(dir string) (*layers, error) {
	ls := &layers{dir: dir, table: map[string]*layer{}}
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, e := range entries {
		ls.table[e.Name()] = &layer{}
	}
	return ls, nil
}

// acquire gives a container its layers, all or none: the directory it writes ("" when
// writable is) and the directories below, uppermost first.
func (ls *layers) acquire(id, writable string, lower []string) (upper string, dirs []string, err error) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	for _, name := range lower {
		l := ls.table[name]
		if l == nil {
			return "", nil, connect.NewError(connect.CodeNotFound, fmt.Errorf("layer %q does not exist", name))
		}
		if l.writer != "" {
			return "", nil, connect.NewError(connect.CodeFailedPrecondition, fmt.Errorf("container %q writes layer %q", l.writer, name))
		}
	}
	if writable != "" {
		if err := ls.take(id, writable); err != nil {
			return "", nil, err
		}
		upper = ls.path(writable)
	}
	for _, name := range lower {
		ls.table[name].readers = append(ls.table[name].readers, id)
		dirs = append(dirs, ls.path(name))
	}
	return upper, dirs, nil
}

// take makes a container the writer of a layer. mu is held.
func (ls *layers) take(id, name string) error {
	l := ls.table[name]
	switch {
	case l == nil && len(ls.table) >= maxLayers:
		return connect.NewError(connect.CodeResourceExhausted, fmt.Errorf("the machine has %d layers", len(ls.table)))
	case l == nil:
		for _, dir := range []struct {
			path string
			mode os.FileMode
		}{{ls.dir, 0o711}, {filepath.Join(ls.dir, name), 0o711}, {ls.path(name), 0o755}} {
			if err := os.MkdirAll(dir.path, dir.mode); err != nil {
				return internal(fmt.Sprintf("make layer %q", name), err)
			}
		}
		l = &layer{}
		ls.table[name] = l
	case l.writer != "":
		return connect.NewError(connect.CodeFailedPrecondition, fmt.Errorf("container %q writes layer %q", l.writer, name))
	case len(l.readers) > 0:
		return connect.NewError(connect.CodeFailedPrecondition, fmt.Errorf("container %q has layer %q below its own", l.readers[0], name))
	}
	l.writer = id
	return nil
}

// release ends a container's use of its layers; their content stays. Idempotent.
func (ls *layers) release(id string) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	for _, l := range ls.table {
		if l.writer == id {
			l.writer = ""
		}
		l.readers = slices.DeleteFunc(l.readers, func(r string) bool { return r == id })
	}
}

// path is the directory that overlays mount; what else they need is beside it.
func (ls *layers) path(name string) string { return filepath.Join(ls.dir, name, "upper") }

// checkLayers checks the layers of a request.
func checkLayers(writable string, lower []string) error {
	if writable != "" {
		if err := checkName("writable_layer", writable); err != nil {
			return err
		}
	}
	if len(lower) > maxLowerLayers {
		return fmt.Errorf("lower_layers has %d entries, at most %d are allowed", len(lower), maxLowerLayers)
	}
	for i, name := range lower {
		if err := checkName(fmt.Sprintf("lower_layers[%d]", i), name); err != nil {
			return err
		}
		if name == writable || slices.Contains(lower[:i], name) {
			return fmt.Errorf("layer %q is there twice", name)
		}
	}
	return nil
}
