// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package chaos

import (
	"fmt"
	"slices"
	"sync"
)

// sightings are the runs of pods' programs that were heard of, by the programs themselves.
// Safe for concurrent use.
type sightings struct {
	mu     sync.Mutex
	runs   map[string][]string // of a pod, in the order in which they began; guarded by mu
	owner  map[string]string   // the pod of a run; guarded by mu
	faults []string            // guarded by mu
}

func newSightings() *sightings {
	return &sightings{runs: map[string][]string{}, owner: map[string]string{}}
}

// see hears of a run of a pod. A run has one request under way at most, so that an older one
// which is heard of after a newer one began runs beside it.
func (s *sightings) see(pod, run string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	owner, known := s.owner[run]
	runs := s.runs[pod]
	switch {
	case run == "":
		s.faults = append(s.faults, fmt.Sprintf("a run of pod %s has no name", pod))
	case !known:
		s.owner[run] = pod
		s.runs[pod] = append(runs, run)
	case owner != pod:
		s.faults = append(s.faults, fmt.Sprintf("pods %s and %s have a run of one name: their machines have one entropy", owner, pod))
	case runs[len(runs)-1] != run:
		s.faults = append(s.faults, fmt.Sprintf("pod %s runs twice: run %d was heard of after run %d had begun", pod, 1+slices.Index(runs, run), len(runs)))
	}
}

// starts is how often a pod's program began.
func (s *sightings) starts(pod string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.runs[pod])
}

// total is how many starts were seen.
func (s *sightings) total() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.owner)
}

// found is what cannot be.
func (s *sightings) found() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.faults)
}
