// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"time"

	"connectrpc.com/connect"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/guest"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
	"github.com/vk-firkin/vk-firkin/vm/network"
	"github.com/vk-firkin/vk-firkin/vm/qemu"
)

// bootTimeout is for an emulated boot on a busy host; restores take what is left of it.
const bootTimeout = 3 * time.Minute

// settle is how long the saved machine runs on after its connection was closed. An
// agent that is saved in the middle of a conversation takes more than a second after
// each restore to let go of it: ten times what the restore takes.
const settle = time.Second

// bench is one run of the benchmark.
type bench struct {
	dir      string
	log      io.Writer
	driver   *qemu.Driver
	kit      vm.Kit
	shape    vm.Shape
	snapshot string

	boots, restores, calls, byHand []time.Duration
}

// newBench opens a driver and saves the snapshot that all rounds restore.
func newBench(ctx context.Context, dir string, opts qemu.Options, log io.Writer) (*bench, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	opts.StateDir = filepath.Join(dir, "state")
	fmt.Fprintln(log, "Opening the driver")
	d, err := qemu.Open(ctx, opts)
	if err != nil {
		return nil, err
	}
	b := &bench{dir: dir, log: log, driver: d, kit: opts.Kit, shape: shapeMeasured, snapshot: filepath.Join(dir, "snapshot")}
	fmt.Fprintf(log, "Saving a snapshot (accelerator %s)\n", d.Features().Accelerator)
	if err := b.save(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("save the snapshot: %w", err), d.Close())
	}
	return b, nil
}

// Close closes the driver. All machines were deleted by those who made them.
func (b *bench) Close() error { return b.driver.Close() }

// save boots a machine, seals its agent and saves it, as a base snapshot is made.
func (b *bench) save(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(ctx, bootTimeout)
	defer cancel()
	m, err := b.driver.Create(ctx, "base", vm.Config{Shape: b.shape, Kit: b.kit, Saveable: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Delete(context.WithoutCancel(ctx))) }()
	conn, err := m.DialGuest(ctx, vm.AgentPort)
	if err != nil {
		return err
	}
	c, err := guest.Dial(ctx, conn, guest.Options{DialTimeout: bootTimeout})
	if err != nil {
		return err
	}
	if err := refresh(ctx, c); err != nil {
		return err
	}
	if _, err := c.Agent.Seal(ctx, connect.NewRequest(&agentv1.SealRequest{Key: random(32)})); err != nil {
		return err
	}
	if err := c.Close(); err != nil {
		return err
	}
	select {
	case <-time.After(settle):
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := m.(vm.Pauser).Pause(ctx); err != nil {
		return err
	}
	if err := os.Mkdir(b.snapshot, 0o700); err != nil {
		return err
	}
	_, err = m.(vm.Saver).Save(ctx, b.snapshot)
	return err
}

// refresh does what every machine gets before it is used.
func refresh(ctx context.Context, c *guest.Client) error {
	_, err := c.Agent.Refresh(ctx, connect.NewRequest(&agentv1.RefreshRequest{
		TimeUnixNano: time.Now().UnixNano(),
		Entropy:      random(64),
		MachineId:    fmt.Sprintf("%x", random(16)),
		Hostname:     "bench",
		Network:      &agentv1.Network{Address: network.Address, Gateway: network.Gateway, Nameservers: []string{network.Nameserver}},
		Challenge:    random(32),
	}))
	return err
}

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return b
}

// measure runs the rounds and then measures memory.
func (b *bench) measure(ctx context.Context, rounds int) (result, error) {
	for i := range rounds {
		fmt.Fprintf(b.log, "Round %d of %d\n", i+1, rounds)
		steps := []func(context.Context) error{b.boot, b.restore, b.restoreByHand}
		if i%2 == 1 { // neither side always comes after the other
			steps = []func(context.Context) error{b.boot, b.restoreByHand, b.restore}
		}
		for _, step := range steps {
			if err := b.step(ctx, step); err != nil {
				return result{}, err
			}
		}
	}
	r := result{
		ColdBoot:    median(b.boots),
		Restore:     median(b.restores),
		ByHand:      median(b.byHand),
		RestoreCall: median(b.calls),
		Samples:     rounds,
		Accelerator: b.driver.Features().Accelerator,
	}
	fmt.Fprintln(b.log, "Measuring memory")
	return r, b.step(ctx, func(ctx context.Context) (err error) {
		r.PrivateBytes, err = b.private(ctx)
		return err
	})
}

func (b *bench) step(ctx context.Context, do func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, bootTimeout)
	defer cancel()
	return do(ctx)
}

// boot measures a cold boot until the agent answers.
func (b *bench) boot(ctx context.Context) (err error) {
	began := time.Now()
	m, err := b.driver.Create(ctx, "boot", vm.Config{Shape: b.shape, Kit: b.kit})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Delete(context.WithoutCancel(ctx))) }()
	if err := ready(ctx, func() (net.Conn, error) { return m.DialGuest(ctx, vm.AgentPort) }); err != nil {
		return err
	}
	b.boots = append(b.boots, time.Since(began))
	return nil
}

// restore measures the driver.
func (b *bench) restore(ctx context.Context) (err error) {
	began := time.Now()
	m, err := b.driver.Restore(ctx, "restore", b.snapshot, vm.Config{Shape: b.shape, Kit: b.kit})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Delete(context.WithoutCancel(ctx))) }()
	if err := m.Resume(ctx); err != nil {
		return err
	}
	called := time.Since(began)
	if err := ready(ctx, func() (net.Conn, error) { return m.DialGuest(ctx, vm.AgentPort) }); err != nil {
		return err
	}
	b.restores = append(b.restores, time.Since(began))
	b.calls = append(b.calls, called)
	return nil
}

// ready connects and waits until the agent has answered the greeting.
func ready(ctx context.Context, dial func() (net.Conn, error)) error {
	conn, err := dial()
	if err != nil {
		return err
	}
	greeted, err := guest.Greet(ctx, conn)
	if err != nil {
		return err
	}
	return greeted.Close()
}

// private restores two machines, so that what they share counts for none, refreshes
// the second, leaves it idle, and measures it.
func (b *bench) private(ctx context.Context) (bytes int64, err error) {
	for _, id := range []string{"neighbour", "measured"} {
		m, err := b.driver.Restore(ctx, id, b.snapshot, vm.Config{Shape: b.shape, Kit: b.kit})
		if err != nil {
			return 0, err
		}
		defer func() { err = errors.Join(err, m.Delete(context.WithoutCancel(ctx))) }() //nolint:gocritic // both live until the second is measured
		if err := m.Resume(ctx); err != nil {
			return 0, err
		}
		conn, err := m.DialGuest(ctx, vm.AgentPort)
		if err != nil {
			return 0, err
		}
		c, err := guest.Dial(ctx, conn, guest.Options{})
		if err != nil {
			return 0, err
		}
		defer c.Close() //nolint:gocritic // as above
		if err := refresh(ctx, c); err != nil {
			return 0, err
		}
		select {
		case <-time.After(idle):
		case <-ctx.Done():
			return 0, ctx.Err()
		}
		u, err := m.(vm.Meter).Usage(ctx)
		if err != nil {
			return 0, err
		}
		bytes = u.PrivateBytes
	}
	return bytes, nil
}
