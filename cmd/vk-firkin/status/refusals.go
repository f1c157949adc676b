// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package status

import (
	"slices"
	"strings"
	"sync"
	"time"
)

// Bounds of what is remembered: what is refused comes from a cluster's users.
const (
	maxRefusals       = 50
	maxRefusalMessage = 500
)

// Refusal is a pod that did not get what it asked for, and how often.
type Refusal struct {
	Pod     string    `json:"pod"` // namespace/name
	PodUID  string    `json:"podUID"`
	Reason  string    `json:"reason"`
	Message string    `json:"message"`
	First   time.Time `json:"first"`
	Last    time.Time `json:"last"`
	Count   int       `json:"count"`
}

// Refusals remembers the last refusals. The zero value is ready; safe for concurrent use.
type Refusals struct {
	mu   sync.Mutex
	list []Refusal // guarded by mu; the newest last
}

// Add remembers a refusal at a time. A pod that is refused again for the same reason is one
// refusal, with the last message: pods try again, and one must not drive out all others.
func (r *Refusals) Add(pod, uid, reason, message string, at time.Time) {
	if len(message) > maxRefusalMessage {
		message = message[:maxRefusalMessage] + "..."
	}
	message = strings.ToValidUTF8(message, "?")
	r.mu.Lock()
	defer r.mu.Unlock()
	x := Refusal{Pod: pod, PodUID: uid, Reason: reason, Message: message, First: at, Last: at, Count: 1}
	if i := slices.IndexFunc(r.list, func(o Refusal) bool { return o.PodUID == uid && o.Reason == reason }); i >= 0 {
		x.First, x.Count = r.list[i].First, r.list[i].Count+1
		r.list = slices.Delete(r.list, i, i+1)
	}
	if len(r.list) == maxRefusals {
		r.list = slices.Delete(r.list, 0, 1)
	}
	r.list = append(r.list, x)
}

// List is what is remembered, the newest first.
func (r *Refusals) List() []Refusal {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := slices.Clone(r.list)
	slices.Reverse(list)
	if list == nil {
		list = []Refusal{}
	}
	return list
}
