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
	"os/signal"
	"syscall"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/guest/agent"
	"github.com/vk-firkin/vk-firkin/vm/guest/agent/darwin"
	"github.com/vk-firkin/vk-firkin/vm/guest/agent/native"
)

// version is stamped by the build (-ldflags "-X main.version=...").
var version = "dev"

// In a macOS guest the agent is a daemon of launchd, as root; see docs/macos-guests.md.
// Unproven on hardware.
func main() {
	if len(os.Args) == 2 && os.Args[1] == "version" {
		fmt.Println("firkin-agent", version)
		return
	}
	if err := run(); err != nil {
		fmt.Fprintf(os.Stderr, "firkin-agent: %v\n", err)
		os.Exit(1) // launchd starts it again
	}
}

func run() error {
	if os.Geteuid() != 0 {
		return errors.New("runs only as root, started by launchd")
	}
	// macOS ends its daemons with SIGTERM when it shuts down.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	logger := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	system, err := darwin.New(ctx, darwin.Options{Run: darwin.RunCommand, Kernel: darwin.MacKernel{}, Logger: logger})
	if err != nil {
		return err
	}
	orphaned, err := system.Orphaned()
	if err != nil {
		return err
	}
	if orphaned {
		logger.Error("An agent before this one died and left its containers: ending the machine")
		return system.PowerOff()
	}
	server, err := agent.NewServer(agent.Options{
		System: system, Runtime: native.New(native.Options{Platform: system, Logger: logger}), Version: version, Logger: logger,
	})
	if err != nil {
		return err
	}
	listener, err := darwin.Relisten(func() (net.Listener, error) { return darwin.ListenVsock(vm.AgentPort) })
	if err != nil {
		return err
	}
	err = server.Serve(ctx, listener)
	if closeErr := server.Close(); closeErr != nil {
		return errors.Join(err, closeErr)
	}
	return errors.Join(err, system.Settled())
}
