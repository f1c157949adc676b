// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build linux || darwin

package native

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/vk-firkin/vk-firkin/vm/guest/agent"
)

// links are the mount paths of all containers: a path is one link, whoever wants it.
type links struct {
	mu    sync.Mutex
	table map[string]*link // guarded by mu; by path
}

// link is a symbolic link from a mount path to a volume, or a part of one.
type link struct {
	source string
	users  int
	made   []string // directories above it that were not there, outermost first
}

// place makes the links of a container, all or none, and returns their paths.
func (ls *links) place(mounts []agent.Mount) (paths []string, err error) {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	defer func() {
		if err != nil {
			err = errors.Join(err, ls.removeLocked(paths))
			paths = nil
		}
	}()
	// What lies in another mount comes after it.
	mounts = slices.Clone(mounts)
	slices.SortStableFunc(mounts, func(a, b agent.Mount) int {
		return strings.Count(filepath.Clean(a.Target), "/") - strings.Count(filepath.Clean(b.Target), "/")
	})
	for _, m := range mounts {
		target := filepath.Clean(m.Target)
		source, err := sourceOf(m)
		if err != nil {
			return paths, fmt.Errorf("mount %q of a volume: %w", m.SubPath, err)
		}
		l := ls.table[target]
		switch {
		case l == nil:
			if l, err = newLink(target, source, filepath.Dir(m.Dir)); err != nil {
				return paths, fmt.Errorf("mount a volume on %s: %w", target, err)
			}
			ls.table[target] = l
		case l.source != source:
			return paths, fmt.Errorf("%w: another container of the machine has another volume on %s, and they share their files", agent.ErrPrecondition, target)
		}
		l.users++
		paths = append(paths, target)
	}
	return paths, nil
}

// sourceOf is where a mount's link leads. A part of a volume that does not exist becomes a
// directory, as in the kubelet. That the path stays in the volume is looked at once: there
// is nothing to keep a container out of, if it changes that later.
func sourceOf(m agent.Mount) (string, error) {
	if m.SubPath == "" {
		return m.Dir, nil
	}
	root, err := os.OpenRoot(m.Dir)
	if err != nil {
		return "", err
	}
	defer func() { _ = root.Close() }()
	st, err := root.Stat(m.SubPath)
	if errors.Is(err, fs.ErrNotExist) {
		if err = root.MkdirAll(m.SubPath, 0o750); err == nil {
			st, err = root.Stat(m.SubPath)
		}
	}
	if err != nil {
		return "", fmt.Errorf("%w: %w", agent.ErrPrecondition, err)
	}
	if !st.IsDir() && !st.Mode().IsRegular() {
		return "", fmt.Errorf("%w: it is neither a directory nor a file", agent.ErrPrecondition)
	}
	return filepath.Join(m.Dir, m.SubPath), nil
}

// newLink makes a link and the directories above it, or nothing. A link into volumes is
// what an agent before this one left behind.
func newLink(target, source, volumes string) (_ *link, err error) {
	l := &link{source: source}
	defer func() {
		if err != nil {
			l.removeDirs()
		}
	}()
	if old, err := os.Readlink(target); err == nil && strings.HasPrefix(old, volumes+"/") {
		if err := os.Remove(target); err != nil {
			return nil, err
		}
	}
	if _, err := os.Lstat(target); err == nil {
		return nil, fmt.Errorf("%w: the path is not free, and a link must be put there", agent.ErrPrecondition)
	}
	var missing []string
	for dir := filepath.Dir(target); ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(dir); err == nil || dir == filepath.Dir(dir) {
			break
		}
		missing = append(missing, dir)
	}
	slices.Reverse(missing)
	for _, dir := range missing {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return nil, pathError(err)
		}
		l.made = append(l.made, dir)
	}
	if err := os.Symlink(source, target); err != nil {
		return nil, pathError(err)
	}
	return l, nil
}

// pathError tells what is the pod's fault, which chose the path, from what is the machine's.
func pathError(err error) error {
	switch {
	case errors.Is(err, syscall.EROFS), errors.Is(err, syscall.EPERM), errors.Is(err, syscall.EACCES):
		return fmt.Errorf("%w: the path cannot be made (on macOS / is read-only: choose one below /Users, /private, /opt or /usr/local): %w", agent.ErrPrecondition, err)
	case errors.Is(err, syscall.ENOTDIR), errors.Is(err, fs.ErrExist), errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: %w", agent.ErrPrecondition, err)
	}
	return err
}

func (l *link) removeDirs() {
	for len(l.made) > 0 {
		// One that is not empty has another user now.
		_ = os.Remove(l.made[len(l.made)-1])
		l.made = l.made[:len(l.made)-1]
	}
}

// remove takes a container's use of paths away.
func (ls *links) remove(paths []string) error {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	return ls.removeLocked(paths)
}

func (ls *links) removeLocked(paths []string) error {
	var errs []error
	for _, path := range slices.Backward(paths) {
		l := ls.table[path]
		if l == nil {
			continue
		}
		if l.users--; l.users > 0 {
			continue
		}
		delete(ls.table, path)
		// A container may have put something else there: that is its own.
		if have, err := os.Readlink(path); err == nil && have == l.source {
			errs = append(errs, os.Remove(path))
		}
		l.removeDirs()
	}
	return errors.Join(errs...)
}
