// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Package nodeledger connects a node's supply of machines with the NodeLedger that the
// cluster's controller and people see.
//
// The controller writes NodeLedger.spec; the node translates it into the supply's
// targets (translate.go). The node alone writes NodeLedger.status, at most once a
// second and only when something changed (report.go, keeper.go). Pods of templates
// find their templates here as well (templates.go).
//
// A node whose API server is away keeps its last targets and tells all that happened
// when it is back. A cluster without the CRDs has a node without warm pools, which
// looks again from time to time.
//
// It speaks to the API server by a REST client and two informers of client-go rather
// than by controller-runtime: one object and one list need no manager, no discovery
// and no second cache of everything.
package nodeledger
