// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Package controller spreads WarmPools over nodes: it writes into the spec of each
// node's NodeLedger how many machines of which template the node keeps ready, and
// tells in the statuses of WarmPools and SnapshotTemplates what came of it.
//
// # What decides
//
// Pools share the nodes' memory, so one pass looks at all of them ([Distribute]). Pools of
// a higher priority are placed first. A node takes replicas of a pool when it passes the
// pool's selector and tolerations, is ready and not cordoned, and has room: the memory of
// its ledger that no pod holds. Each replica goes where the pool has fewest. A replica
// that is placed stays, and moves for one of these reasons only: its node was cordoned, no
// longer passes, or has been unreachable for the grace period; pods have held its room for
// the crowded period and another node has room; a pool of higher priority needs
// its room; the bounds per node changed; or a node came back and others hold its part.
//
// # What is never exceeded
//
// Over the NodeLedgers of reachable nodes, a pool's targets add up to at most its replicas
// plus its surge. The surge is what nodes that came back had as targets when they
// vanished; it ends when that many more are ready, at the latest after the return period.
// Apart from nodes that come back the surge is zero: decreases are written before increases,
// an increase is written only as far as the written targets leave room for it, each
// write names the version that it replaces, and nothing is decided from a cache that is
// older than the controller's own writes. On each node the pool's spec.update.maxSurge comes on top
// while machines of an outdated template are replaced, and an unreachable node may still have
// machines that nobody can see.
package controller
