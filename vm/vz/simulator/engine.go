// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package simulator

import (
	"net"
	"os"

	"github.com/vk-firkin/vk-firkin/vm/vz/framework"
)

// Engine executes guests. NoGuest and QEMU make one; there are no others.
//
// An engine knows nothing of the framework's rules: what it is asked for is legal.
type Engine interface {
	// ready is why this host cannot run guests, or nil.
	ready() error
	// version goes into saved files: another version's are not loaded.
	version() string
	// singleConn: dial reaches vm.AgentPort only, one stream at a time.
	singleConn() bool
	// boot starts a guest from its boot files or disks.
	//
	// ended is called once, from any goroutine, when the guest ends for any other reason
	// than kill: with nil if it did so itself. It may be called before boot returns.
	boot(c framework.Configuration, ended func(error)) (guest, error)
	// load makes a guest from what save wrote, and leaves it paused.
	load(c framework.Configuration, state *os.File, ended func(error)) (guest, error)
}

// guest is one run of a machine, from boot or load to its end.
type guest interface {
	pause() error
	resume() error
	// powerButton may be ignored by the guest.
	powerButton() error
	// save writes a paused guest to f, at f's position and to its end.
	save(f *os.File) error
	// dial connects to a port of a running guest. The error is framework.ErrNoListener
	// if nothing listens.
	dial(port uint32) (net.Conn, error)
	// kill ends the guest and all streams to it, and returns when it has no disk open any
	// more. It does not wait for anything that the guest does.
	kill()
}
