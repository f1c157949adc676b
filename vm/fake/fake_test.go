// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package fake_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/fake"
	"github.com/vk-firkin/vk-firkin/vm/vmtest"
	"github.com/vk-firkin/vk-firkin/vm/vmtest/testguest"
)

func TestConformance(t *testing.T) {
	dir := t.TempDir()
	kit := vm.Kit{Arch: "amd64", Digest: "sha256:test", Kernel: filepath.Join(dir, "kernel"), Initramfs: filepath.Join(dir, "initramfs"), Scratch: filepath.Join(dir, "scratch")}
	for _, path := range []string{kit.Kernel, kit.Initramfs, kit.Scratch} {
		if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	host := fake.NewHost()
	t.Cleanup(host.Close)
	vmtest.Run(t, vmtest.Harness{
		Open: func(*testing.T, string) vm.Driver {
			return fake.Open(host, fake.Options{Guest: newGuest})
		},
		Kit:   kit,
		Shape: vm.Shape{VCPUs: 1, MemoryBytes: 256 << 20},
		Kill: func(t *testing.T, _, id string) {
			if !host.Kill(id) {
				t.Errorf("machine %q does not run", id)
			}
		},
		Stall: func(t *testing.T, _, id string) func() {
			if !host.Stall(id, true) {
				t.Errorf("machine %q does not run", id)
			}
			return func() { host.Stall(id, false) }
		},
		Leftovers: func(t *testing.T, _ string) []string {
			if n := host.Running(); n > 0 {
				return []string{"running machines"}
			}
			return nil
		},
		Checked:     []string{"state", "memory"},
		BootTimeout: 10 * time.Second,
		Timeout:     10 * time.Second,
		Clones:      8,
	})
}

// guest simulates vm/vmtest/testguest/init.
type guest struct {
	boot fake.Boot

	mu sync.Mutex
	content
}

// content is what a save carries.
type content struct {
	Nonce     string
	MachineID string
	Values    map[string]string
	Scratch   map[int64][]byte
}

func newGuest(b fake.Boot) (fake.Guest, error) {
	g := &guest{boot: b, content: content{Nonce: rand.Text(), Values: map[string]string{}, Scratch: map[int64][]byte{}}}
	if b.Memory != nil {
		if err := json.Unmarshal(b.Memory, &g.content); err != nil {
			return nil, err
		}
	}
	return g, nil
}

func (g *guest) Serve(_ context.Context, conn net.Conn) { _ = testguest.Serve(conn, g) }

func (g *guest) Memory() ([]byte, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return json.Marshal(g.content)
}

func (g *guest) PowerButton() { g.boot.Exit(vm.ExitGuest, "power button") }

func (g *guest) Info() (testguest.Info, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	random := make([]byte, 16)
	_, _ = rand.Read(random)
	return testguest.Info{Boot: g.Nonce, MachineID: g.MachineID, Time: time.Now(), Random: random}, nil
}

func (g *guest) Refresh(r testguest.Refresh) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.MachineID = r.MachineID
	return nil
}

func (g *guest) Put(key, value string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.Values = maps.Clone(g.Values)
	g.Values[key] = value
	return nil
}

func (g *guest) Get(key string) (string, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.Values[key], nil
}

func (g *guest) ReadSlot(slot, n int) ([]byte, error) {
	b := make([]byte, n)
	if images := g.boot.Config.Images; slot < len(images) && images[slot] != "" {
		f, err := os.Open(images[slot])
		if err != nil {
			return nil, err
		}
		defer f.Close()
		_, err = io.ReadFull(f, b)
		return b, err
	}
	return b, nil
}

func (g *guest) WriteScratch(at int64, data []byte) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.Scratch[at] = bytes.Clone(data)
	return nil
}

func (g *guest) ReadScratch(at int64, n int) ([]byte, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	b := make([]byte, n)
	copy(b, g.Scratch[at])
	return b, nil
}

func (g *guest) PowerOff() error {
	g.boot.Exit(vm.ExitGuest, "power off")
	return nil
}

func (g *guest) Panic() error {
	g.boot.Exit(vm.ExitCrashed, "panic")
	return nil
}

func testConfig() vm.Config {
	return vm.Config{
		Shape: vm.Shape{VCPUs: 1, MemoryBytes: 256 << 20},
		Kit:   vm.Kit{Arch: "amd64", Digest: "sha256:test", Kernel: "/k", Initramfs: "/i", Scratch: "/s"},
	}
}

// TestFault fails every operation, one after the other, and finds the machine as it
// was.
func TestFault(t *testing.T) {
	boom := errors.New("boom")
	var failing string
	host := fake.NewHost()
	d := fake.Open(host, fake.Options{Fault: func(_ context.Context, op string, n int) error {
		if op == failing {
			return boom
		}
		return nil
	}})
	ctx := t.Context()
	m, err := d.Create(ctx, "a", testConfig())
	if err != nil {
		t.Fatal(err)
	}
	calls := map[string]func() error{
		fake.OpCreate:  func() error { _, err := d.Create(ctx, "b", testConfig()); return err },
		fake.OpRestore: func() error { _, err := d.Restore(ctx, "b", t.TempDir(), testConfig()); return err },
		fake.OpLoad:    func() error { _, err := d.Load(ctx, "a"); return err },
		fake.OpList:    func() error { _, err := d.List(ctx); return err },
		fake.OpState:   func() error { _, err := m.State(ctx); return err },
		fake.OpResume:  func() error { return m.Resume(ctx) },
		fake.OpPause:   func() error { return m.(vm.Pauser).Pause(ctx) },
		fake.OpDial:    func() error { _, err := m.DialGuest(ctx, vm.AgentPort); return err },
		fake.OpStop:    func() error { return m.Stop(ctx, 0) },
		fake.OpWait:    func() error { _, err := m.Wait(ctx); return err },
		fake.OpSave:    func() error { _, err := m.(vm.Saver).Save(ctx, t.TempDir()); return err },
		fake.OpDelete:  func() error { return m.Delete(ctx) },
	}
	for op, call := range calls {
		failing = op
		if err := call(); !errors.Is(err, boom) {
			t.Errorf("%s: error is %v, want the injected one", op, err)
		}
	}
	failing = ""
	if state, err := m.State(ctx); err != nil || state != vm.StateRunning {
		t.Errorf("state is %q, %v, want running", state, err)
	}
	if ids, err := d.List(ctx); err != nil || len(ids) != 1 {
		t.Errorf("list is %q, %v, want the one machine", ids, err)
	}
	if d.Calls(fake.OpStop) != 1 {
		t.Errorf("stop was called %d times", d.Calls(fake.OpStop))
	}
}

// TestStall makes a call stall until its context ends.
func TestStall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := fake.Open(fake.NewHost(), fake.Options{Fault: func(ctx context.Context, op string, n int) error {
			if op == fake.OpCreate && n == 2 {
				<-ctx.Done()
				return ctx.Err()
			}
			return nil
		}})
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := d.Create(ctx, "first", testConfig()); err != nil {
			t.Fatal(err)
		}
		if _, err := d.Create(ctx, "second", testConfig()); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error is %v, want the deadline's", err)
		}
		if ids, _ := d.List(t.Context()); len(ids) != 1 {
			t.Errorf("list is %q, want only the first", ids)
		}
	})
}

// TestMacOSGuests: as many as the features say run at once, paused ones included, and one
// that has ended makes room unless the host leaks its place.
func TestMacOSGuests(t *testing.T) {
	host := fake.NewHost()
	features := fake.DefaultFeatures()
	features.MacOSGuests = 2
	d := fake.Open(host, fake.Options{Features: features})
	ctx := t.Context()
	cfg := vm.Config{
		Shape: vm.Shape{VCPUs: 2, MemoryBytes: 4 << 30}, GuestOS: vm.GuestMacOS, Saveable: true,
		MacOS: &vm.MacOS{Digest: "sha256:test", Disk: "/d", AuxiliaryStorage: "/a", HardwareModel: []byte("h"), MachineIdentifier: []byte("m")},
	}
	first, err := d.Create(ctx, "first", cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := first.(vm.Pauser).Pause(ctx); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if _, err := first.(vm.Saver).Save(ctx, dir); err != nil {
		t.Fatal(err)
	}
	second, err := d.Restore(ctx, "second", dir, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Create(ctx, "linux", testConfig()); err != nil {
		t.Errorf("a Linux guest beside them: %v", err)
	}
	for range 2 {
		if _, err := d.Create(ctx, "third", cfg); !errors.Is(err, vm.ErrLimitExceeded) {
			t.Errorf("create: error is %v, want ErrLimitExceeded", err)
		}
		if _, err := d.Restore(ctx, "third", dir, cfg); !errors.Is(err, vm.ErrLimitExceeded) {
			t.Errorf("restore: error is %v, want ErrLimitExceeded", err)
		}
		host.LeakMacOSGuests(1)
		if err := second.Delete(ctx); err != nil {
			t.Fatal(err)
		}
	}
	host.LeakMacOSGuests(0)
	other := *cfg.MacOS
	other.Digest = "sha256:other"
	changed := cfg
	changed.MacOS = &other
	if _, err := d.Restore(ctx, "third", dir, changed); !errors.Is(err, vm.ErrSnapshotInvalid) {
		t.Errorf("restore of another installation: error is %v, want ErrSnapshotInvalid", err)
	}
	if _, err := d.Restore(ctx, "third", dir, cfg); err != nil {
		t.Errorf("after the leak: %v", err)
	}
}
