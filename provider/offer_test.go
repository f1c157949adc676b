// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"maps"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// TestOfferMacOS: how many macOS guests run at once is a resource of the node; what is
// reserved or withheld of it is not allocatable.
func TestOfferMacOS(t *testing.T) {
	base := NodeOptions{Arch: "arm64", Capacity: MacOSGuests(Capacity(8000, 1<<34, 1<<40, 20), 2), Allocatable: MacOSGuests(Capacity(8000, 1<<34, 1<<40, 20), 2)}
	const name = corev1.ResourceName("firkin.dev/macos-vm")
	reserved := NodePool{Key: "warm.firkin.dev/team.mac", Ready: 1, Desired: 1, Reserved: true, MacOS: true, Each: Budget{MemoryBytes: 1 << 30}}
	linux := reserved
	linux.MacOS = false
	for _, tt := range []struct {
		pools    []NodePool
		withheld int64
		want     int64
	}{{nil, 0, 2}, {nil, 1, 1}, {[]NodePool{reserved}, 0, 1}, {[]NodePool{linux}, 0, 2}, {[]NodePool{reserved}, 2, 0}} {
		n := nodeObject("node", "", base, time.Now())
		if n.Labels["firkin.dev/macos-guests"] != "true" {
			t.Errorf("labels are %v", n.Labels)
		}
		offer(n, base, tt.pools, nil, tt.withheld)
		capacity, allocatable := n.Status.Capacity[name], n.Status.Allocatable[name]
		if capacity.Value() != 2 || allocatable.Value() != tt.want {
			t.Errorf("%+v, %d withheld: %d of %d are allocatable, want %d", tt.pools, tt.withheld, allocatable.Value(), capacity.Value(), tt.want)
		}
	}
	n := nodeObject("node", "", NodeOptions{Capacity: MacOSGuests(Capacity(1, 1, 1, 1), 0)}, time.Now())
	if _, ok := n.Labels["firkin.dev/macos-guests"]; ok || len(n.Status.Capacity) != 4 {
		t.Errorf("a node without macOS guests: %v, %v", n.Labels, n.Status.Capacity)
	}
}

func TestOffer(t *testing.T) {
	const gi = int64(1 << 30)
	base := NodeOptions{Arch: "amd64", Capacity: Capacity(4000, 8*gi, 100*gi, 20), Allocatable: Capacity(4000, 7*gi, 90*gi, 20)}
	each := Budget{MilliCPU: 250, MemoryBytes: gi}
	const a, b = "warm.firkin.dev/team.a", "warm.firkin.dev/team.b"
	for _, tt := range []struct {
		name        string
		pools       []NodePool
		held        map[string]holding
		labels      []string
		cpu, memory int64 // allocatable
		resources   map[corev1.ResourceName]int64
	}{
		{"no pools", nil, nil, nil, 4000, 7 * gi, nil},
		{"reclaimable pools take nothing away", []NodePool{{Key: a, Ready: 2, Desired: 3, Each: each}, {Key: b, Desired: 3, Each: each}}, nil, []string{a}, 4000, 7 * gi, nil},
		{"a reserved pool is carved out and offered", []NodePool{{Key: a, Ready: 1, Desired: 3, Reserved: true, Each: each}}, nil, []string{a}, 3250, 4 * gi, map[corev1.ResourceName]int64{a: 1}},
		{"pods that hold machines keep their units", []NodePool{{Key: a, Ready: 3, Desired: 3, Reserved: true, Each: each}}, map[string]holding{a: {2, 2}}, []string{a}, 2750, 2 * gi, map[corev1.ResourceName]int64{a: 5}},
		{"overhead is not charged twice", []NodePool{{Key: a, Ready: 3, Desired: 3, Reserved: true, Each: each}}, map[string]holding{a: {2, 0}}, []string{a}, 3250, 4 * gi, map[corev1.ResourceName]int64{a: 5}},
		{"empty, but there", []NodePool{{Key: a, Desired: 1, Reserved: true, Each: each}}, nil, nil, 3750, 6 * gi, map[corev1.ResourceName]int64{a: 0}},
		{"never below nothing", []NodePool{{Key: a, Ready: 1, Desired: 1000, Reserved: true, Each: each}}, nil, []string{a}, 0, 0, map[corev1.ResourceName]int64{a: 1}},
		{"a name too long for a label is carved out all the same", []NodePool{{Ready: 1, Desired: 1, Reserved: true, Each: each}}, nil, nil, 3750, 6 * gi, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := nodeObject("node", "", base, time.Now())
			own := maps.Clone(n.Labels)
			n.Labels["warm.firkin.dev/team.gone"] = "true"
			offer(n, base, tt.pools, tt.held, 0)
			var labels []string
			for k, v := range n.Labels {
				if own[k] != v {
					labels = append(labels, k)
				}
			}
			slices.Sort(labels)
			if !slices.Equal(labels, tt.labels) || len(n.Labels) != len(own)+len(tt.labels) {
				t.Errorf("labels %v", n.Labels)
			}
			al := n.Status.Allocatable
			if al.Cpu().MilliValue() != tt.cpu || al.Memory().Value() != tt.memory || n.Status.Capacity.Memory().Value() != 8*gi {
				t.Errorf("allocatable %s and %s", al.Cpu(), al.Memory())
			}
			if len(al) != 4+len(tt.resources) {
				t.Errorf("allocatable %v", al)
			}
			for name, want := range tt.resources {
				have, capacity := al[name], n.Status.Capacity[name]
				if have.Value() != want || capacity.Value() != want {
					t.Errorf("%s is %s of %s, want %d", name, have.String(), capacity.String(), want)
				}
			}
			// What the options say is not changed.
			if base.Allocatable.Memory().Value() != 7*gi || len(base.Allocatable) != 4 {
				t.Error("the options were changed")
			}
		})
	}
}
