// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package warmpool

import (
	"cmp"
	"slices"

	"github.com/vk-firkin/vk-firkin/vm"
)

// GuestMemoryOverhead is what kernel and agent keep of a machine's memory: about
// 50 MB after boot, and some for each container.
const GuestMemoryOverhead int64 = 64 << 20

// DefaultLadder returns the shapes that a host with so many processors and so much
// memory offers, smallest first: each costs a base snapshot, so there are few. A
// shape has at most the host's processors, and is left out if it has more memory
// than the host. Pure.
func DefaultLadder(hostCPUs int, hostMemoryBytes int64) []vm.Shape {
	const mi = 1 << 20
	ladder := []vm.Shape{
		{VCPUs: 1, MemoryBytes: 256 * mi},
		{VCPUs: 1, MemoryBytes: 512 * mi},
		{VCPUs: 2, MemoryBytes: 1024 * mi},
		{VCPUs: 2, MemoryBytes: 2048 * mi},
		{VCPUs: 4, MemoryBytes: 4096 * mi},
		{VCPUs: 4, MemoryBytes: 8192 * mi},
	}
	var fit []vm.Shape
	for _, s := range ladder {
		if s.MemoryBytes > hostMemoryBytes {
			continue
		}
		s.VCPUs = max(1, min(s.VCPUs, hostCPUs))
		fit = append(fit, s)
	}
	return fit
}

// Need is what a pod's containers ask for, in sum.
type Need struct {
	MilliCPU    int64
	MemoryBytes int64
}

// ShapeFor returns the smallest shape of the ladder that holds the need and the
// guest's own memory; a pod that asks for nothing gets the smallest of all. Smaller
// is less memory, then fewer processors. The error is a *Refusal with reason
// Oversized that names what no shape has enough of. Pure.
func ShapeFor(ladder []vm.Shape, need Need) (vm.Shape, error) {
	if need.MilliCPU < 0 || need.MemoryBytes < 0 {
		return vm.Shape{}, refuse(ReasonInvalid, nil, "negative resources: %d thousandths of a CPU, %d bytes", need.MilliCPU, need.MemoryBytes)
	}
	var best vm.Shape
	var most Need // that the ladder has
	for _, s := range ladder {
		cpu, memory := int64(s.VCPUs)*1000, s.MemoryBytes-GuestMemoryOverhead
		most.MilliCPU, most.MemoryBytes = max(most.MilliCPU, cpu), max(most.MemoryBytes, memory)
		// A pod without a memory request runs in whatever there is.
		fits := need.MilliCPU <= cpu && (need.MemoryBytes == 0 || need.MemoryBytes <= memory)
		if fits && (best == vm.Shape{} || compareShapes(s, best) < 0) {
			best = s
		}
	}
	switch {
	case best != vm.Shape{}:
		return best, nil
	case need.MilliCPU > most.MilliCPU:
		return vm.Shape{}, shortage(ReasonOversized, "cpu", need.MilliCPU, most.MilliCPU)
	case need.MemoryBytes > most.MemoryBytes:
		return vm.Shape{}, shortage(ReasonOversized, "memory", need.MemoryBytes, most.MemoryBytes)
	}
	return vm.Shape{}, refuse(ReasonOversized, nil, "no shape of this node has both %dm CPU and %d Mi of memory", need.MilliCPU, need.MemoryBytes>>20)
}

// compareShapes orders by memory, then by processors.
func compareShapes(a, b vm.Shape) int {
	return cmp.Or(cmp.Compare(a.MemoryBytes, b.MemoryBytes), cmp.Compare(a.VCPUs, b.VCPUs))
}

// BudgetOf is what a machine of a shape costs when nobody says otherwise: its
// processors and its memory. Pure.
func BudgetOf(s vm.Shape) Budget {
	return Budget{MilliCPU: int64(s.VCPUs) * 1000, MemoryBytes: s.MemoryBytes}
}

// SortLadder sorts shapes smallest first and drops doubles. Pure.
func SortLadder(shapes []vm.Shape) []vm.Shape {
	sorted := slices.Clone(shapes)
	slices.SortFunc(sorted, compareShapes)
	return slices.Compact(sorted)
}
