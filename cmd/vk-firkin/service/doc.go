// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Package service makes a node a service of its host: of systemd on Linux, of launchd on
// macOS. What is written and which commands are run are pure functions of a Spec and a
// Target; only Do touches the host.
//
// A machine is a process of its own that goes on when the node's ends, and both managers
// would end it with the service if they were not told otherwise: the unit says
// KillMode=process and OOMPolicy=continue, the property list AbandonProcessGroup. So a
// service that is restarted, upgraded or removed keeps its machines.
package service
