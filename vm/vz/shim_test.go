// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package vz_test

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"testing"
	"time"

	"github.com/vk-firkin/vk-firkin/vm/vz"
	"github.com/vk-firkin/vk-firkin/vm/vz/framework"
	"github.com/vk-firkin/vk-firkin/vm/vz/shim"
	"github.com/vk-firkin/vk-firkin/vm/vz/simulator"
)

// The test binary is also what it tests: a shim when it is called with roleShim and a
// simulation, and a node that is about to be killed with roleNode.
const (
	roleShim = "firkin-test-shim"
	roleNode = "firkin-test-node"
)

// simulation is a simulated Mac and how guests are executed on it.
type simulation struct {
	HostDir string
	// Arch is that of guests under QEMU; empty: no guests, only states.
	Arch string
	// StopTimeout is the driver's. 0: its default.
	StopTimeout time.Duration
	// Node is what a node does before it is killed.
	Node *nodeTask `json:",omitempty"`
}

func (s simulation) open() (framework.Framework, error) {
	engine := simulator.NoGuest(simulator.Script{})
	if s.Arch != "" {
		engine = simulator.QEMU(simulator.QEMUOptions{Arch: s.Arch})
	}
	return simulator.Open(simulator.Options{
		HostDir: s.HostDir, Engine: engine,
		Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
	})
}

// command is the test binary in a role.
func (s simulation) command(role string) ([]string, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(s)
	return []string{self, role, string(text)}, err
}

func TestMain(m *testing.M) {
	if len(os.Args) < 3 || os.Args[1] != roleShim && os.Args[1] != roleNode {
		os.Exit(m.Run())
	}
	var s simulation
	err := json.Unmarshal([]byte(os.Args[2]), &s)
	switch {
	case err != nil:
	case os.Args[1] == roleNode:
		err = s.Node.run(s)
	default:
		err = runShim(s, os.Args[3:])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "error", err)
		os.Exit(1)
	}
}

// runShim is what `vk-firkin machine-shim` does.
func runShim(s simulation, args []string) error {
	flags := flag.NewFlagSet(roleShim, flag.ContinueOnError)
	dir := flags.String("dir", "", "the machine's directory")
	if err := flags.Parse(args); err != nil {
		return err
	}
	signal.Ignore(syscall.SIGPIPE, syscall.SIGHUP, os.Interrupt)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	listener, err := shim.Listener(3)
	if err != nil {
		return err
	}
	f, err := s.open()
	if err != nil {
		return err
	}
	return shim.Run(ctx, shim.Options{
		Dir: *dir, Listener: listener, Framework: f, Slots: vz.ImageSlots, Build: "test", Abort: func() { os.Exit(1) },
		Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
	})
}

// driver opens a driver over the simulation, whose shims are this test binary.
func (s simulation) driver(ctx context.Context, stateDir string) (*vz.Driver, error) {
	f, err := s.open()
	if err != nil {
		return nil, err
	}
	shim, err := simulation{HostDir: s.HostDir, Arch: s.Arch}.command(roleShim)
	if err != nil {
		return nil, err
	}
	arch := s.Arch
	if arch == "" {
		arch = "arm64"
	}
	return vz.Open(ctx, vz.Options{StateDir: stateDir, Shim: shim, Host: f.Host, Arch: arch, MacOSGuests: 2, StopTimeout: s.StopTimeout})
}
