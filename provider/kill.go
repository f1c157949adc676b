// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import "time"

// containerStop is one running container that is to end while its pod goes on.
type containerStop struct {
	since   time.Time
	grace   time.Duration
	message string
}

// podKill is a pod that is to end as Failed although nobody deleted it.
type podKill struct {
	reason, message string
	since           time.Time
	grace           time.Duration
}

// stopContainer ends the current run of a container within grace: its hook, its stop
// signal, then SIGKILL. Its restart policy decides what follows. It belongs to the loop. A
// shorter grace than before replaces it.
func (w *worker) stopContainer(c *containerState, message string, grace time.Duration) {
	c.stop = &containerStop{since: time.Now(), grace: grace, message: message}
}

// evict ends the pod as Failed within grace, its status says why. The first reason stays.
// It may be called from anywhere.
func (w *worker) evict(reason, message string, grace time.Duration) {
	w.post(func(s *state) {
		if s.kill == nil && s.deletion == nil {
			s.kill = &podKill{reason: reason, message: message, since: time.Now(), grace: grace}
		}
	})
}
