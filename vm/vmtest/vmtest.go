// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Package vmtest is the suite that every driver passes. A driver's own test fills in
// a [Harness] and calls [Run]; docs/driver-contract.md names the case that proves
// each rule. Cases are skipped by vm.Features only, never by a driver's name.
package vmtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/vmtest/testguest"
)

// Harness is what the suite needs to know about a driver.
type Harness struct {
	// Open opens a driver on a state directory. Drivers opened on the same directory
	// see the same machines. The suite closes it.
	Open func(t *testing.T, stateDir string) vm.Driver
	// Kit boots vm/vmtest/testguest (see [TestKit]).
	Kit vm.Kit
	// Shape of the suite's machines.
	Shape vm.Shape
	// Kill ends the hypervisor of a machine from outside, as a crash would.
	Kill func(t *testing.T, stateDir, id string)
	// Stall stops the hypervisor of a machine from outside, so that it lives and answers nobody,
	// and returns what lets it go on. Nil: it cannot be done here.
	Stall func(t *testing.T, stateDir, id string) (goOn func())
	// Leftovers lists what the machines of a state directory still hold on the host
	// beyond vm.Driver.List: processes, sockets, files.
	Leftovers func(t *testing.T, stateDir string) []string
	// Checked names files of a snapshot in which the driver itself must notice a
	// flipped bit. Truncation is to be noticed in every file.
	Checked []string
	// BootTimeout is how long a cold boot may take; Timeout everything else.
	BootTimeout, Timeout time.Duration
	// Clones is how many clones of one snapshot run at once.
	Clones int
}

// suite is one run.
type suite struct {
	Harness
	stateDir string
	driver   vm.Driver
	features vm.Features
	// base is a snapshot of a booted machine with a value in its memory and on its
	// scratch disk; baseBoot is that machine's Info.Boot.
	base     string
	baseBoot string
	files    []string
}

// What the base snapshot carries.
const (
	baseKey     = "base"
	baseValue   = "value of the base"
	baseScratch = "scratch of the base"
	// scratchAt is where cases write to the scratch disk: far from its file system.
	scratchAt int64 = 4 << 30
)

// Run runs the suite.
func Run(t *testing.T, h Harness) {
	s := &suite{Harness: h, stateDir: t.TempDir()}
	s.driver = h.Open(t, s.stateDir)
	t.Cleanup(func() {
		if err := s.driver.Close(); err != nil {
			t.Errorf("close driver: %v", err)
		}
	})
	s.features = s.driver.Features()
	if !t.Run("Boot", s.boot) {
		t.Fatal("nothing else can work")
	}
	for _, c := range []struct {
		name  string
		needs bool
		run   func(*testing.T)
	}{
		{"UnknownID", true, s.unknownID},
		{"InvalidConfig", true, s.invalidConfig},
		{"IDTaken", s.features.Snapshots, s.idTaken},
		{"Restore", s.features.Snapshots, s.restore},
		{"RestoreIsPaused", s.features.Snapshots, s.restoreIsPaused},
		{"Clones", s.features.Snapshots, s.clones},
		{"ImageSlots", s.features.Snapshots && s.features.ImageSlots > 1, s.imageSlots},
		{"SaveAndGoOn", s.features.Snapshots && s.features.Pause, s.saveAndGoOn},
		{"SaveNeedsPause", s.features.Snapshots && s.features.Pause, s.saveNeedsPause},
		{"SaveOfRestored", s.features.Snapshots && s.features.Pause, s.saveOfRestored},
		{"PauseResume", s.features.Snapshots && s.features.Pause, s.pauseResume},
		{"Redial", s.features.Snapshots, s.redial},
		{"SingleConn", s.features.Snapshots && s.features.SingleConn, s.singleConn},
		{"StopByForce", s.features.Snapshots, s.stopByForce},
		{"StopWithGrace", s.features.Snapshots && s.features.GracefulStop, s.stopWithGrace},
		{"StopPaused", s.features.Snapshots, s.stopPaused},
		{"DoubleStop", s.features.Snapshots, s.doubleStop},
		{"ExitIsKept", s.features.Snapshots, s.exitIsKept},
		{"PowersOff", s.features.Snapshots, s.powersOff},
		{"Panics", s.features.Snapshots, s.panics},
		{"Dies", s.features.Snapshots && h.Kill != nil, s.dies},
		{"Stalls", s.features.Snapshots && h.Stall != nil, s.stalls},
		{"DiesUnwatched", s.features.Snapshots && h.Kill != nil, s.diesUnwatched},
		{"PowersOffUnwatched", s.features.Snapshots, s.powersOffUnwatched},
		{"ExitedIsExited", s.features.Snapshots, s.exitedIsExited},
		{"DeleteIsIdempotent", s.features.Snapshots, s.deleteIsIdempotent},
		{"DeleteEndsWaiters", s.features.Snapshots, s.deleteEndsWaiters},
		{"CancelledContexts", s.features.Snapshots, s.cancelledContexts},
		{"CancelledWhileRestoring", s.features.Snapshots, s.cancelledWhileRestoring},
		{"DamagedSnapshot", s.features.Snapshots, s.damagedSnapshot},
		{"ForeignSnapshot", s.features.Snapshots, s.foreignSnapshot},
		{"SurvivesReopen", s.features.Snapshots, s.survivesReopen},
		{"ClosedDriver", true, s.closedDriver},
		{"Usage", s.features.Snapshots, s.usage},
	} {
		t.Run(c.name, func(t *testing.T) {
			if !c.needs {
				t.Skip("the driver's features do not have it")
			}
			c.run(t)
			s.nothingLeft(t)
		})
	}
}

func (s *suite) config(images ...string) vm.Config {
	return vm.Config{Shape: s.Shape, Kit: s.Kit, Images: images}
}

func (s *suite) context(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), s.Timeout)
	t.Cleanup(cancel)
	return ctx
}

// destroy deletes a machine at the end of a case, whatever became of it.
func (s *suite) destroy(t *testing.T, m vm.Machine) {
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), s.Timeout)
		defer cancel()
		if err := m.Delete(ctx); err != nil && !errors.Is(err, vm.ErrUnavailable) {
			t.Errorf("delete machine: %v", err)
		}
	})
}

// restored restores the base, paused.
func (s *suite) restored(t *testing.T, id string, cfg vm.Config) vm.Machine {
	t.Helper()
	m, err := s.driver.Restore(s.context(t), id, s.base, cfg)
	if err != nil {
		t.Fatalf("restore: %v", err)
	}
	s.destroy(t, m)
	return m
}

// running restores the base, lets it run and connects to its guest.
func (s *suite) running(t *testing.T, id string, cfg vm.Config) (vm.Machine, *testguest.Client) {
	t.Helper()
	m := s.restored(t, id, cfg)
	if err := m.Resume(s.context(t)); err != nil {
		t.Fatalf("resume: %v", err)
	}
	return m, s.dial(t, m)
}

func (s *suite) dial(t *testing.T, m vm.Machine) *testguest.Client {
	t.Helper()
	return s.dialWithin(t, m, s.Timeout)
}

func (s *suite) dialWithin(t *testing.T, m vm.Machine, timeout time.Duration) *testguest.Client {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	conn, err := m.DialGuest(ctx, vm.AgentPort)
	if err != nil {
		t.Fatalf("dial guest: %v", err)
	}
	g, err := testguest.Dial(ctx, conn)
	if err != nil {
		t.Fatalf("greet guest: %v\nconsole: %s", err, console(m))
	}
	t.Cleanup(func() { _ = g.Close() })
	return g
}

// console is the guest's console for a failed test's message.
func console(m vm.Machine) string {
	c, ok := m.(vm.Consoler)
	if !ok {
		return "(none)"
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	text, err := c.Console(ctx)
	return fmt.Sprintf("%q %v", text, err)
}

// image makes a slot's image that begins with content.
func (s *suite) image(t *testing.T, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, s.features.SlotBytes); err != nil {
		t.Fatal(err)
	}
	return path
}

// nothingLeft deletes what a case has left, which tests deletion of machines in
// every state, and checks that nothing of them stays.
func (s *suite) nothingLeft(t *testing.T) {
	t.Helper()
	ids, err := s.driver.List(context.Background())
	if err != nil {
		t.Errorf("list: %v", err)
	}
	for _, id := range ids {
		m, err := s.driver.Load(s.context(t), id)
		if err != nil {
			t.Errorf("load %q: %v", id, err)
			continue
		}
		if err := m.Delete(s.context(t)); err != nil {
			t.Errorf("delete %q: %v", id, err)
		}
	}
	if ids, _ = s.driver.List(context.Background()); len(ids) > 0 {
		t.Errorf("machines left: %q", ids)
	}
	if s.Leftovers != nil {
		if left := s.Leftovers(t, s.stateDir); len(left) > 0 {
			t.Errorf("left on the host: %q", left)
		}
	}
}

func (s *suite) wantState(t *testing.T, m vm.Machine, want vm.State) {
	t.Helper()
	got, err := m.State(s.context(t))
	if err != nil || got != want {
		t.Fatalf("state is %q, %v, want %q", got, err, want)
	}
}

func (s *suite) wantExit(t *testing.T, m vm.Machine, want vm.ExitReason) vm.Exit {
	t.Helper()
	exit, err := m.Wait(s.context(t))
	if err != nil {
		t.Fatalf("wait: %v\nconsole: %s", err, console(m))
	}
	if exit.Reason != want {
		t.Fatalf("exit is %+v, want reason %q\nconsole: %s", exit, want, console(m))
	}
	if exit.Time.IsZero() || time.Since(exit.Time) > time.Hour || len(exit.Detail) > 4<<10 {
		t.Fatalf("exit is %+v, want a recent time and a short detail", exit)
	}
	return exit
}

func wantError(t *testing.T, doing string, err, kind error) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Errorf("%s: error is %v, want %v", doing, err, kind)
	}
}

// wantInfo asks a guest and fails the test if it does not answer.
func (s *suite) wantInfo(t *testing.T, g *testguest.Client) testguest.Info {
	t.Helper()
	info, err := g.Info(s.context(t))
	if err != nil {
		t.Fatalf("ask guest: %v", err)
	}
	return info
}

func (s *suite) wantValue(t *testing.T, g *testguest.Client, key, want string) {
	t.Helper()
	got, err := g.Get(s.context(t), key)
	if err != nil || got != want {
		t.Fatalf("memory has %q for %q, %v, want %q", got, key, err, want)
	}
}

func (s *suite) wantScratch(t *testing.T, g *testguest.Client, at int64, want string) {
	t.Helper()
	got, err := g.ReadScratch(s.context(t), at, len(want))
	if err != nil || string(got) != want {
		t.Fatalf("scratch has %q at %d, %v, want %q", got, at, err, want)
	}
}

// boot cold-boots the one machine of the suite that is, looks at it, saves it as
// the base of all other cases, and deletes it.
func (s *suite) boot(t *testing.T) {
	ctx := s.context(t)
	image := s.image(t, "image at boot")
	cfg := s.config("", image)
	cfg.Saveable = s.features.Snapshots
	m, err := s.driver.Create(ctx, "boot", cfg)
	if err != nil {
		t.Fatalf("create: %v", err)
	}
	s.destroy(t, m)
	if m.ID() != "boot" {
		t.Errorf("id is %q", m.ID())
	}
	s.wantState(t, m, vm.StateRunning)
	if ids, err := s.driver.List(ctx); err != nil || !slices.Equal(ids, []string{"boot"}) {
		t.Errorf("list is %q, %v", ids, err)
	}
	g := s.dialWithin(t, m, s.BootTimeout)
	ctx = s.context(t)
	s.baseBoot = s.wantInfo(t, g).Boot
	if s.baseBoot == "" {
		t.Error("the guest has no boot nonce")
	}
	if got, err := g.ReadSlot(ctx, 1, 13); err != nil || string(got) != "image at boot" {
		t.Errorf("slot 1 has %q, %v", got, err)
	}
	if got, err := g.ReadSlot(ctx, 0, 13); err != nil || !bytes.Equal(got, make([]byte, 13)) {
		t.Errorf("empty slot has %q, %v", got, err)
	}
	if err := g.Put(ctx, baseKey, baseValue); err != nil {
		t.Fatal(err)
	}
	if err := g.WriteScratch(ctx, scratchAt, []byte(baseScratch)); err != nil {
		t.Fatal(err)
	}
	s.wantScratch(t, g, scratchAt, baseScratch)
	_ = g.Close()
	if !s.features.Snapshots {
		return
	}
	if err := m.(vm.Pauser).Pause(ctx); err != nil {
		t.Fatalf("pause: %v", err)
	}
	s.base = filepath.Join(s.stateDir, "base")
	s.files = s.save(t, m, s.base)
	s.wantState(t, m, vm.StatePaused)
}

// save saves into a new directory and checks what Save says about it.
func (s *suite) save(t *testing.T, m vm.Machine, dir string) []string {
	t.Helper()
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	names, err := m.(vm.Saver).Save(s.context(t), dir)
	if err != nil {
		t.Fatalf("save: %v", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, e := range entries {
		found = append(found, e.Name())
	}
	slices.Sort(names)
	if !slices.Equal(names, found) {
		t.Errorf("save says it wrote %q, the directory has %q", names, found)
	}
	return names
}
