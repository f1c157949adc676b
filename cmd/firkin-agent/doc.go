// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Firkin-agent is the process in the guest that the host talks to: PID 1 of a machine
// booted from a guest kit, or a daemon of launchd in a macOS guest. See vm/guest for the
// protocol and vm/guest/agent for the server; this command only wires them to the machine.
package main
