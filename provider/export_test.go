// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/vk-firkin/vk-firkin/vm/durable"
)

// Evict ends a pod as something on the node would.
func (p *Provider) Evict(uid types.UID, reason, message string, grace time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.workers[uid].evict(reason, message, grace)
}

// StopContainer ends a container's run as a failed probe does.
func (p *Provider) StopContainer(uid types.UID, name, message string, grace time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	w := p.workers[uid]
	w.post(func(s *state) {
		for _, c := range s.containers {
			if c.name == name {
				w.stopContainer(c, message, grace)
			}
		}
	})
}

// WithDisk puts the records on a disk that may fail.
func WithDisk(o *Options, disk durable.FS) { o.fs = disk }

// Admitted is how many pods have something of the node.
func (p *Provider) Admitted() int {
	p.admission.mu.Lock()
	defer p.admission.mu.Unlock()
	return len(p.admission.claims)
}
