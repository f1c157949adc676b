// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"fmt"
	"maps"
	"path/filepath"

	"github.com/vk-firkin/vk-firkin/vm/durable"
)

// failuresName is what the store remembers of restores that failed: a snapshot that is at
// fault must not get as many tries again from each process as one that is not.
const failuresName = ".failures.json"

// failuresRecord is .failures.json.
type failuresRecord struct {
	durable.Header
	// Failed is how many restores in a row have failed, by instance.
	Failed map[string]int `json:"failed,omitempty"`
}

var failuresFormat = durable.NewFormat(durable.FormatOptions[failuresRecord]{
	Kind: "snapshot-failures", Version: 1,
	Check: func(r *failuresRecord) error {
		for instance, n := range r.Failed {
			if !isHex(instance, instanceLength) || n < 1 {
				return fmt.Errorf("instance %.80q has failed %d times", instance, n)
			}
		}
		return nil
	},
})

// failuresOf is how many restores of an instance have failed in a row.
func (s *Store) failuresOf(instance string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failures[instance]
}

// countFailure counts a failed restore, and tells how many there are in a row.
func (s *Store) countFailure(instance string) (n int) {
	s.failedMu.Lock()
	defer s.failedMu.Unlock()
	s.mu.Lock()
	s.failures[instance]++
	n = s.failures[instance]
	s.mu.Unlock()
	s.writeFailures()
	return n
}

// forgetFailures is for a restore that went well. It costs nothing when none had failed.
func (s *Store) forgetFailures(instance string) {
	if s.failuresOf(instance) == 0 {
		return
	}
	s.failedMu.Lock()
	defer s.failedMu.Unlock()
	s.mu.Lock()
	delete(s.failures, instance)
	s.mu.Unlock()
	s.writeFailures()
}

// writeFailures keeps the counts. failedMu is held.
func (s *Store) writeFailures() {
	s.mu.Lock()
	r := failuresRecord{Failed: maps.Clone(s.failures)}
	s.mu.Unlock()
	if err := failuresFormat.Write(s.opts.FS, filepath.Join(s.dir, failuresName), r, durable.Synced); err != nil {
		// This process knows; the next one gives the snapshot another try.
		s.opts.Logger.Warn("Cannot remember how often restores have failed", "error", err)
	}
}

// loadFailures reads what earlier processes have counted, of the sets that are still there.
func (s *Store) loadFailures() {
	r, err := failuresFormat.Read(s.opts.FS, filepath.Join(s.dir, failuresName))
	if err != nil {
		if !isNotExist(err) {
			s.opts.Logger.Warn("Beginning to count failed restores anew", "error", err)
		}
		return
	}
	entries, err := s.opts.FS.ReadDir(s.dir)
	if err != nil || len(r.Failed) == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range entries {
		if !isHex(e.Name(), keyLength) {
			continue
		}
		if m, err := readManifest(filepath.Join(s.dir, e.Name())); err == nil && r.Failed[m.Instance] > 0 {
			s.failures[m.Instance] = r.Failed[m.Instance]
		}
	}
}
