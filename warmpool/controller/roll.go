// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"cmp"
	"slices"
)

// Rolled is a node of a pool while a new revision of the template is rolled out.
type Rolled struct {
	Node string
	// Revision that the node was last told to keep; empty when it had no target.
	Revision string
	// Done: the node has the snapshot of that revision, an entry of it has been ready, and
	// no outdated entry is left.
	Done bool
	// Idle: no entry is ready, so there is nothing to lose.
	Idle bool
	// Gone: the node is unreachable; it neither changes nor holds up the others.
	Gone bool
}

// Roll says which revision of the template each node keeps. A node without a target
// begins with the latest. Of the others at most limit are on their way to it at a time, and the
// next follow when they are done: a revision that cannot be built stops at the first nodes,
// which keep the machines that they have. Nodes without a ready entry go at once. Pure.
func Roll(latest string, nodes []Rolled, limit int) map[string]string {
	revisions := make(map[string]string, len(nodes))
	var stale []Rolled
	budget := max(1, limit)
	for _, n := range nodes {
		revisions[n.Node] = n.Revision
		switch {
		case n.Revision == "":
			revisions[n.Node] = latest
		case n.Gone:
		case n.Revision == latest:
			if !n.Done {
				budget--
			}
		default:
			stale = append(stale, n)
		}
	}
	slices.SortFunc(stale, func(a, b Rolled) int {
		// Those in trouble first: they have least to lose.
		return cmp.Or(compareBools(b.Idle, a.Idle), compareBools(a.Done, b.Done), cmp.Compare(a.Node, b.Node))
	})
	for _, n := range stale {
		if n.Idle {
			revisions[n.Node] = latest
			continue
		}
		if budget > 0 {
			revisions[n.Node] = latest
			budget--
		}
	}
	return revisions
}

// RollLimit is how many of a pool's nodes change their revision at a time: a tenth, at
// least one.
func RollLimit(nodes int) int { return max(1, nodes/10) }

// Pace says how far a node's targets are raised in this round. A node restores
// a few machines at a time, so what it is given beyond limit only waits, and a pool of higher
// priority that comes meanwhile would wait behind it. wanted and held are by pool, in
// the order of priority; outstanding is what the node has been told and does not have yet.
// Decreases pass. Pure.
func Pace(wanted, held []int, outstanding, limit int) []int {
	paced := slices.Clone(wanted)
	allowance := limit - outstanding
	if 2*outstanding > limit {
		allowance = 0 // a few at a time would be a write for each
	}
	for i := range paced {
		if raise := paced[i] - held[i]; raise > 0 {
			raise = min(raise, allowance)
			allowance -= raise
			paced[i] = held[i] + raise
		}
	}
	return paced
}
