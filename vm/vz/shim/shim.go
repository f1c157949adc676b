// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/durable"
	"github.com/vk-firkin/vk-firkin/vm/machinedir"
	"github.com/vk-firkin/vk-firkin/vm/vz/control"
	"github.com/vk-firkin/vk-firkin/vm/vz/framework"
	"github.com/vk-firkin/vk-firkin/vm/vz/layout"
)

const (
	// StartDeadline is how long a shim waits to be told to start its machine: the node
	// does so at once.
	StartDeadline = time.Minute
	// farewell is how long those who wait for the machine's end may take to hear of it;
	// whoever does not reads it from the exit's file.
	farewell = 2 * time.Second
	// terminationGrace is what a guest gets when the host is shut down. launchd gives a
	// process 20 seconds.
	terminationGrace = 15 * time.Second
)

// Options say what a shim is made of.
type Options struct {
	// Dir is the machine's directory. Its record is there.
	Dir string
	// Listener is the control socket, already listening: whoever connects before the shim
	// is up waits.
	Listener net.Listener
	// Framework makes the machine.
	Framework framework.Framework
	// Slots is the number of image slots of every Linux machine.
	Slots int
	// Build is the version of vk-firkin.
	Build string
	// Abort ends the process at once. It is called when the machine's end has been written
	// down and something below, which cannot be cancelled, keeps the process from ending: nobody
	// would learn of the end before. Nil: it is waited for.
	Abort func()
	// Logger gets what nobody can be told by an error.
	Logger *slog.Logger
}

// Run serves one machine until it has ended: it blocks for the machine's life. ctx ends
// when the host is shut down: the guest is asked to power off then.
func Run(ctx context.Context, o Options) error { return run(ctx, o, StartDeadline) }

func run(ctx context.Context, o Options, startDeadline time.Duration) error {
	var r layout.Record
	if err := machinedir.ReadJSON(durable.Host, o.Dir, layout.RecordFile, &r); err != nil {
		return fmt.Errorf("read the machine's record: %w", err)
	}
	if r.Version != layout.RecordVersion {
		return fmt.Errorf("the machine's record has version %d, this program reads %d", r.Version, layout.RecordVersion)
	}
	m, err := newMachine(o.Dir, r, o)
	if err != nil {
		return err
	}
	server := control.NewServer(m, o.Build)
	served := make(chan error, 1)
	go func() { served <- server.Serve(o.Listener) }()
	idle := time.AfterFunc(startDeadline, func() {
		if p, _ := m.current(); p == phaseNew {
			m.end(vm.Exit{Reason: vm.ExitCrashed, Detail: "nobody has told its shim to start it"})
		}
	})
	defer idle.Stop()

	select {
	case <-m.exited:
	case err = <-served:
		// Without its socket nobody could ever end it.
		m.end(vm.Exit{Reason: vm.ExitCrashed, Detail: "its shim cannot be reached any more"})
		return fmt.Errorf("serve the machine's control socket: %w", err)
	case <-ctx.Done():
		stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), terminationGrace+stopTimeout)
		err = m.Stop(stopping, terminationGrace)
		cancel()
	}
	m.watcher.Wait()
	bye, cancel := context.WithTimeout(context.WithoutCancel(ctx), farewell)
	defer cancel()
	if serr := server.Shutdown(bye); serr != nil {
		_ = server.Close()
	}
	if serr := <-served; !errors.Is(serr, http.ErrServerClosed) {
		err = errors.Join(err, serr)
	}
	return err
}

// Listener makes a listener of an inherited descriptor.
func Listener(fd uintptr) (net.Listener, error) {
	f := os.NewFile(fd, control.Socket)
	if f == nil {
		return nil, fmt.Errorf("descriptor %d is not open: a shim is started by a node, not by hand", fd)
	}
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("descriptor %d: %w: a shim is started by a node, not by hand", fd, err)
	}
	if u, ok := l.(*net.UnixListener); ok {
		// The socket is the directory's, and goes with it.
		u.SetUnlinkOnClose(false)
	}
	return l, nil
}
