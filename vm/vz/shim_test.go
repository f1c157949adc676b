// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package vz_test

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"testing"

	"github.com/vk-firkin/vk-firkin/vm/vz"
	"github.com/vk-firkin/vk-firkin/vm/vz/framework"
	"github.com/vk-firkin/vk-firkin/vm/vz/shim"
	"github.com/vk-firkin/vk-firkin/vm/vz/simulator"
)

// shimEnv makes the test binary a shim, or a node, over a simulated Mac: its value is a
// simulation.
const shimEnv = "FIRKIN_TEST_SIMULATION"

// simulation is a simulated Mac and how guests are executed on it.
type simulation struct {
	HostDir string
	// Arch is that of guests under QEMU; empty: no guests, only states.
	Arch string
	// Node is what a node does before it is killed. Empty: it is a shim.
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

// export makes the programs that this process starts part of the simulation.
func (s simulation) export(t *testing.T) {
	t.Helper()
	s.Node = nil
	text, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv(shimEnv, string(text))
}

func TestMain(m *testing.M) {
	text := os.Getenv(shimEnv)
	if text == "" {
		os.Exit(m.Run())
	}
	var s simulation
	err := json.Unmarshal([]byte(text), &s)
	if err == nil && s.Node != nil {
		err = s.Node.run(s)
	} else if err == nil {
		err = runShim(s)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "error", err)
		os.Exit(1)
	}
}

// runShim is what `vk-firkin machine-shim` does.
func runShim(s simulation) error {
	dir := flag.String("dir", "", "the machine's directory")
	flag.Parse()
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
		Dir: *dir, Listener: listener, Framework: f, Slots: vz.ImageSlots, Build: "test",
		Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
	})
}

// driver opens a driver over the simulation, whose shims are this test binary.
func (s simulation) driver(ctx context.Context, stateDir string) (*vz.Driver, error) {
	f, err := s.open()
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	arch := s.Arch
	if arch == "" {
		arch = "arm64"
	}
	d, err := vz.Open(ctx, vz.Options{StateDir: stateDir, Shim: []string{self}, Host: f.Host, Arch: arch, MacOSGuests: 2})
	return d, errors.Join(err)
}
