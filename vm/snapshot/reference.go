// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/vk-firkin/vk-firkin/vm"
)

// Reference says that a machine was restored from a set. It is on disk from before
// the machine is made until Forget, and keeps the set from being deleted.
type Reference struct {
	Machine  string `json:"machine"`
	Key      string `json:"key"`
	Instance string `json:"instance"`
	// Proven: the machine has its own time, entropy and identity and has proved
	// what it is. A machine whose maker died before that must not be used.
	Proven bool `json:"proven"`
}

// maxReferenceBytes bounds a reference on disk; one has about 200 bytes.
const maxReferenceBytes = 4 << 10

// Reference returns the reference of a machine.
func (s *Store) Reference(machine string) (Reference, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, ok := s.refs[machine]
	return r, ok
}

// Forget drops the reference of a machine that was deleted. Idempotent.
func (s *Store) Forget(machine string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, ok := s.refs[machine]
	if !ok {
		return nil
	}
	if err := os.Remove(s.referencePath(r)); err != nil && !isNotExist(err) {
		return fmt.Errorf("forget reference of machine %q: %w", machine, err)
	}
	delete(s.refs, machine)
	s.dropSealKey(r.Instance)
	return nil
}

// refer writes a reference. It is not synced: it has to survive this process, and
// a machine does not survive what a sync protects from.
func (s *Store) refer(r Reference) error {
	data, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode reference: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	path := s.referencePath(r)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("write reference: %w", err)
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		return fmt.Errorf("write reference: %w", err)
	}
	s.refs[r.Machine] = r
	return nil
}

func (s *Store) referencePath(r Reference) string {
	return filepath.Join(s.dir, refsDir, r.Key, r.Machine)
}

// loadReferences reads the references on disk and drops those of machines that the
// driver does not have. When the driver cannot be asked, all are believed.
func (s *Store) loadReferences(ctx context.Context) error {
	refs, err := readReferences(filepath.Join(s.dir, refsDir))
	if err != nil {
		return err
	}
	known, asked, err := s.machines(ctx)
	if err != nil {
		s.opts.Logger.Warn("Keeping all references of snapshots: the driver could not list its machines", "error", err)
		asked = false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range refs {
		if asked && !slices.Contains(known, r.Machine) {
			if err := os.Remove(s.referencePath(r)); err != nil && !isNotExist(err) {
				return fmt.Errorf("drop reference of machine %q: %w", r.Machine, err)
			}
			continue
		}
		s.refs[r.Machine] = r
	}
	return nil
}

// readReferences reads all references under a directory, sorted by machine. One
// that cannot be read still counts, as not proven: it keeps its set alive.
func readReferences(dir string) ([]Reference, error) {
	keys, err := os.ReadDir(dir)
	if isNotExist(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read references: %w", err)
	}
	var refs []Reference
	for _, k := range keys {
		if !k.IsDir() || !isHex(k.Name(), keyLength) {
			continue
		}
		machines, err := os.ReadDir(filepath.Join(dir, k.Name()))
		if err != nil {
			if isNotExist(err) {
				continue // removed since
			}
			return nil, fmt.Errorf("read references: %w", err)
		}
		for _, m := range machines {
			if vm.ValidateID(m.Name()) != nil {
				continue
			}
			refs = append(refs, readReference(filepath.Join(dir, k.Name(), m.Name()), k.Name(), m.Name()))
		}
	}
	slices.SortFunc(refs, func(a, b Reference) int { return cmp.Compare(a.Machine, b.Machine) })
	return refs, nil
}

func readReference(path, key, machine string) Reference {
	fallback := Reference{Machine: machine, Key: key}
	data, err := readBounded(path, maxReferenceBytes)
	if err != nil {
		return fallback
	}
	var r Reference
	if json.Unmarshal(data, &r) != nil || r.Key != key || r.Machine != machine || !isHex(r.Instance, instanceLength) {
		return fallback
	}
	return r
}

// holds tells whether the reference keeps this instance of a key. An unknown
// instance, on either side, is any of them.
func (r Reference) holds(key, instance string) bool {
	return r.Key == key && (r.Instance == instance || r.Instance == "" || instance == "")
}
