// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"cmp"
	"context"
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

// Status tells what can be done with a snapshot.
type Status string

// The statuses of snapshots.
const (
	// StatusReady: published; its files have the right sizes.
	StatusReady Status = "ready"
	// StatusDamaged: published, but it cannot be restored; the node will quarantine
	// it when it comes to use it.
	StatusDamaged Status = "damaged"
	// StatusQuarantined: kept for examination only.
	StatusQuarantined Status = "quarantined"
)

// Info is what the store knows about one snapshot.
type Info struct {
	// Name identifies it: its key, or for a quarantined one key and time.
	Name   string `json:"name"`
	Key    string `json:"key"`
	Status Status `json:"status"`
	// Problem is why it is damaged or quarantined.
	Problem string `json:"problem,omitempty"`
	// Manifest is zero when it could not be read.
	Manifest Manifest `json:"manifest"`
	// AllocatedBytes is what its files take on disk, holes left out.
	AllocatedBytes int64 `json:"allocatedBytes"`
	// LastUsed is when a machine was last restored from it or deleted, at least its
	// creation.
	LastUsed time.Time `json:"lastUsed"`
	// Machines that refer to it, sorted.
	Machines []string `json:"machines,omitempty"`
	// Pins is how often this process uses it.
	Pins int `json:"-"`

	dir string
	// foreign: its manifest is of a version that another vk-firkin reads.
	foreign bool
}

// List returns every snapshot, quarantined ones last, sorted by name. One that
// cannot be read is listed as damaged: it does not hide the others. Reads no
// content but manifests.
func (s *Store) List(ctx context.Context) ([]Info, error) {
	refs, err := s.references()
	if err != nil {
		return nil, err
	}
	entries, err := s.opts.FS.ReadDir(s.dir)
	if err != nil && !isNotExist(err) {
		return nil, fmt.Errorf("list snapshots: %w", err)
	}
	var infos []Info
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if isHex(e.Name(), keyLength) {
			infos = append(infos, s.describe(e.Name(), refs))
		}
	}
	slices.SortFunc(infos, func(a, b Info) int { return cmp.Compare(a.Name, b.Name) })
	names, err := s.quarantined()
	if err != nil {
		return nil, err
	}
	for _, n := range names {
		infos = append(infos, s.describeQuarantined(n, refs))
	}
	return infos, nil
}

// Inspect returns the one snapshot whose name is name, or begins with it (at least
// four characters). Errors: ErrNotFound, also when several match.
func (s *Store) Inspect(ctx context.Context, name string) (Info, error) {
	infos, err := s.List(ctx)
	if err != nil {
		return Info{}, err
	}
	return pick(infos, name)
}

// pick chooses a snapshot by name or unique prefix. Pure.
func pick(infos []Info, name string) (Info, error) {
	const shortest = 4 // a slip of the finger should not name anything
	var found []Info
	for _, i := range infos {
		if i.Name == name {
			return i, nil
		}
		if len(name) >= shortest && strings.HasPrefix(i.Name, name) {
			found = append(found, i)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return Info{}, fmt.Errorf("%w: %.100q", ErrNotFound, name)
	}
	return Info{}, fmt.Errorf("%w: %.100q begins the names of %d snapshots, give more of it", ErrNotFound, name, len(found))
}

// Verify reads every file of a snapshot (a name as for Inspect) and compares it with
// the manifest. It changes nothing.
//
// Errors: *IntegrityError and others that are vm.ErrSnapshotInvalid; ErrNotFound.
func (s *Store) Verify(ctx context.Context, name string) (Info, error) {
	info, err := s.Inspect(ctx, name)
	if err != nil {
		return Info{}, err
	}
	m, err := readManifest(info.dir)
	if err == nil {
		err = verifySet(ctx, info.dir, m)
	}
	if err != nil {
		return info, fmt.Errorf("verify snapshot %s: %w", shortKey(info.Name), err)
	}
	return info, nil
}

// describe looks at one published set.
func (s *Store) describe(key string, refs []Reference) Info {
	dir := filepath.Join(s.dir, key)
	info := Info{Name: key, Key: key, Status: StatusReady, dir: dir}
	m, err := readManifest(dir)
	if err == nil && m.Key != key {
		err = fmt.Errorf("%w: the manifest is of snapshot %s", vm.ErrSnapshotInvalid, shortKey(m.Key))
	}
	if err == nil {
		info.Manifest = m
		err = checkSizes(dir, m)
	}
	if err != nil {
		info.Status, info.Problem = StatusDamaged, err.Error()
		info.foreign = errors.Is(err, durable.ErrNewer) || errors.Is(err, durable.ErrOlder)
	}
	s.addUse(&info, refs)
	return info
}

func (s *Store) describeQuarantined(name string, refs []Reference) Info {
	parent := filepath.Join(s.dir, quarantineDir)
	r := readQuarantine(parent, name)
	info := Info{Name: name, Key: r.Key, Status: StatusQuarantined, Problem: r.Reason, dir: filepath.Join(parent, name)}
	if m, err := readManifest(info.dir); err == nil {
		info.Manifest = m
	} else {
		info.Manifest.Instance = r.Instance
	}
	s.addUse(&info, refs)
	info.LastUsed = r.Time
	return info
}

// addUse fills in space, last use and references.
func (s *Store) addUse(info *Info, refs []Reference) {
	// An estimate for people: a file that vanishes meanwhile is not an error.
	info.AllocatedBytes, _ = allocatedBytes(info.dir)
	info.LastUsed = info.Manifest.Created
	for _, path := range []string{filepath.Join(s.dir, refsDir, info.Key), info.dir} {
		st, err := os.Stat(path)
		if err == nil && st.ModTime().After(info.LastUsed) {
			info.LastUsed = st.ModTime().UTC()
		}
	}
	for _, r := range refs {
		if r.holds(info.Key, info.Manifest.Instance) {
			info.Machines = append(info.Machines, r.Machine)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	info.Pins = s.pinned(info.Key, info.Manifest.Instance)
}

// references are those in force: in memory for the process that owns the store,
// else those on disk.
func (s *Store) references() ([]Reference, error) {
	s.mu.Lock()
	owner := s.lock != nil
	refs := make([]Reference, 0, len(s.refs))
	for _, r := range s.refs {
		refs = append(refs, r)
	}
	s.mu.Unlock()
	if !owner {
		refs, _, err := readReferences(s.opts.FS, filepath.Join(s.dir, refsDir))
		return refs, err
	}
	slices.SortFunc(refs, func(a, b Reference) int { return cmp.Compare(a.Machine, b.Machine) })
	return refs, nil
}
