// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"runtime"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/guest/agent"
	"github.com/vk-firkin/vk-firkin/vm/guest/agent/linux"
	"github.com/vk-firkin/vk-firkin/vm/guest/agent/runc"
)

// portTimeout: ports appear within milliseconds of their device, some 100 ms under
// emulation; a machine that has none has lost its host.
const portTimeout = 10 * time.Second

// stateDir is on the tmpfs that the boot mounted.
const stateDir = "/run/firkin"

// memoryLimit is what the agent's heap may grow to before it collects garbage. After a
// boot it is 1.5 MiB (and the binary 10 MiB beside it); the rest is room for busy
// containers' output, and little enough for the smallest machine, of 128 MiB.
const memoryLimit = 32 << 20

// The agent's first thread stays with main. Threads that go into a container's mount
// namespace end there, which the first one could not: the machine's own would be lost with it.
func init() { runtime.LockOSThread() }

func main() {
	// A container's first process begins as a copy of this program.
	runc.Init()
	// With a percentage the runtime collects every two minutes even when nothing happens,
	// and each collection writes to pages that a clone shares with its snapshot: measured,
	// 3.3 MiB of private memory per idle machine. So only the limit makes it collect.
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(memoryLimit)
	if err := run(); err != nil {
		say("%v", err)
		// The end of PID 1 is a kernel panic, and that is the end of the machine: its
		// driver reports a crash.
		os.Exit(1)
	}
}

func run() error {
	system, err := linux.Boot()
	if err != nil {
		return fmt.Errorf("boot: %w", err)
	}
	openConsole()
	ctx := context.Background()
	go linux.Reaper(ctx)
	go func() {
		err := linux.PowerKey(ctx, func() {
			say("power key pressed")
			if err := system.PowerOff(); err != nil {
				say("%v", err)
			}
		})
		if err != nil {
			say("%v", err)
		}
	}()
	listener, err := listen()
	if err != nil {
		return err
	}
	logger := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	containers, err := runc.New(runc.Options{ScratchDir: system.ScratchDir(), StateDir: stateDir, Logger: logger})
	if err != nil {
		return err
	}
	server, err := agent.NewServer(agent.Options{System: system, Runtime: containers, Version: system.Version(), Logger: logger})
	if err != nil {
		return err
	}
	say("ready")
	return server.Serve(ctx, listener)
}

// listen takes vsock where there is a device for it and the virtio-serial port
// elsewhere.
func listen() (net.Listener, error) {
	l, err := linux.ListenVsock(vm.AgentPort)
	if err == nil || !errors.Is(err, linux.ErrNoVsock) {
		return l, err
	}
	device, ok := linux.FindPort(portTimeout)
	if !ok {
		return nil, fmt.Errorf("neither vsock nor a virtio-serial port called %q", linux.PortName)
	}
	return linux.ListenPort(device), nil
}

// openConsole makes the console the standard streams once more: the one that the kernel
// had before the modules were loaded may have been none.
func openConsole() {
	fd, err := unix.Open("/dev/console", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	for _, std := range []int{0, 1, 2} {
		if unix.Dup3(fd, std, 0) != nil {
			return
		}
	}
}

// say writes a line on the console, which drivers show for diagnosis only: a character
// costs a trap into the hypervisor, so there are few of them.
func say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "firkin-agent: "+format+"\n", args...)
}
