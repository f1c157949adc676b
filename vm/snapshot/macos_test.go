// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"context"
	"crypto/rand"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/fake"
	"github.com/vk-firkin/vk-firkin/vm/guest"
	"github.com/vk-firkin/vk-firkin/vm/guest/guesttest"
)

// installation is one of macOS, in small files.
func installation(t *testing.T, digit string) *vm.MacOS {
	t.Helper()
	dir := t.TempDir()
	m := &vm.MacOS{
		Digest: "sha256:" + strings.Repeat(digit, 64), Disk: filepath.Join(dir, "disk.img"), AuxiliaryStorage: filepath.Join(dir, "aux.img"),
		HardwareModel: []byte("model"), MachineIdentifier: []byte("identifier"),
	}
	for _, path := range []string{m.Disk, m.AuxiliaryStorage} {
		if err := os.WriteFile(path, []byte(digit), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

func macOSSpec(m *vm.MacOS) Spec {
	return Spec{
		Kind: KindTemplate, Shape: vm.Shape{VCPUs: 2, MemoryBytes: 4 << 30}, GuestOS: vm.GuestMacOS, MacOS: m,
		Template: &TemplateSpec{Namespace: "team", Name: "mac", Revision: "aa", Images: []TemplateImage{{Ref: "macos:15", Digest: m.Digest, Path: m.Disk}}},
	}
}

func TestMacOSKey(t *testing.T) {
	f := fake.DefaultFeatures()
	f.Arch, f.MacOSGuests = "arm64", 2
	a, b := macOSSpec(installation(t, "a")), macOSSpec(installation(t, "b"))
	if Key(a, f) == Key(b, f) {
		t.Error("two installations have one key")
	}
	other := f
	other.Compatibility = "another host"
	if Key(a, f) == Key(a, other) {
		t.Error("two hosts have one key")
	}
	if err := a.Validate(f); err != nil {
		t.Error(err)
	}
	for what, change := range map[string]func(*Spec, *vm.Features){
		"no macOS guests":      func(_ *Spec, f *vm.Features) { f.MacOSGuests = 0 },
		"a base":               func(s *Spec, _ *vm.Features) { s.Kind, s.Template = KindBase, nil },
		"no installation":      func(s *Spec, _ *vm.Features) { s.MacOS = nil },
		"another installation": func(s *Spec, _ *vm.Features) { s.MacOS = b.MacOS },
		"a further image": func(s *Spec, _ *vm.Features) {
			t := *s.Template
			t.Images = append(t.Images, t.Images[0])
			s.Template = &t
		},
	} {
		spec, features := a, f
		change(&spec, &features)
		if err := spec.Validate(features); !errors.Is(err, vm.ErrInvalidConfig) {
			t.Errorf("%s: error is %v, want ErrInvalidConfig", what, err)
		}
	}
}

// TestMacOSTemplate builds a template of a macOS guest, finds it again in another process, and
// restores it with its own installation only.
func TestMacOSTemplate(t *testing.T) {
	host, guests := fake.NewHost(), newFakeGuests(t)
	f := fake.DefaultFeatures()
	f.Arch, f.MacOSGuests = "arm64", 2
	driver := fake.Open(host, fake.Options{Guest: guests.boot, Features: f})
	t.Cleanup(func() { host.Close(); guests.close() })
	dir := t.TempDir()
	open := func() *Store {
		s, err := Open(t.Context(), dir, Options{Driver: driver, MinFreeBytes: -1, Timeouts: Timeouts{Settle: 1}})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	spec, prepared := macOSSpec(installation(t, "a")), 0
	spec.Template.Prepare = func(context.Context, *guest.Client) error { prepared++; return nil }
	s := open()
	ref, built, err := s.Ensure(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	if !built || prepared != 1 || ref.Manifest().MacOSDigest != spec.MacOS.Digest || ref.Manifest().KitDigest != "" || ref.Manifest().Arch != "arm64" {
		t.Errorf("built is %t, prepared %d times, manifest %+v", built, prepared, ref.Manifest())
	}
	if n := driver.Calls(fake.OpCreate); n != 1 {
		t.Errorf("%d machines booted: there is no base", n)
	}
	ref.Release()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open()
	t.Cleanup(func() { _ = s.Close() })
	ref, built, err = s.Ensure(t.Context(), spec)
	if err != nil || built {
		t.Fatalf("found again: built is %t, %v", built, err)
	}
	defer ref.Release()
	if _, err := s.Restore(t.Context(), ref, "other", macOSSpec(installation(t, "b")).config(), RestoreOptions{}); !errors.Is(err, vm.ErrInvalidConfig) {
		t.Errorf("with another installation: error is %v, want ErrInvalidConfig", err)
	}
	changed := installation(t, "b")
	changed.Digest = spec.MacOS.Digest
	host.LeakMacOSGuests(2)
	if _, err := s.Restore(t.Context(), ref, "full", spec.config(), RestoreOptions{}); !errors.Is(err, vm.ErrLimitExceeded) {
		t.Errorf("on a full host: error is %v, want ErrLimitExceeded", err)
	}
	if _, err := s.Restore(t.Context(), ref, "full", spec.config(), RestoreOptions{}); errors.Is(err, vm.ErrSnapshotInvalid) {
		t.Errorf("a full host is held against the snapshot: %v", err)
	}
	host.LeakMacOSGuests(0)
	running, err := s.Restore(t.Context(), ref, "good", spec.config(), RestoreOptions{})
	if err != nil {
		t.Fatal(err)
	}
	_ = running.Guest.Close()
	if _, err := s.Restore(t.Context(), ref, "changed", vm.Config{Shape: spec.Shape, GuestOS: vm.GuestMacOS, MacOS: changed}, RestoreOptions{}); !errors.Is(err, vm.ErrSnapshotInvalid) {
		t.Errorf("with a disk that has changed: error is %v, want ErrSnapshotInvalid", err)
	}
}

// fakeGuests are the real agent in fake machines; what is saved is copied at restore.
type fakeGuests struct {
	t     *testing.T
	mu    sync.Mutex
	saved map[string]*guesttest.Agent
	all   []*guesttest.Agent
}

func newFakeGuests(t *testing.T) *fakeGuests {
	return &fakeGuests{t: t, saved: map[string]*guesttest.Agent{}}
}

func (f *fakeGuests) keep(a *guesttest.Agent) *guesttest.Agent {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.all = append(f.all, a)
	return a
}

func (f *fakeGuests) close() {
	for _, a := range f.all {
		_ = a.Close()
	}
}

func (f *fakeGuests) boot(b fake.Boot) (fake.Guest, error) {
	opts := guesttest.Options{Dir: f.t.TempDir()}
	if b.Memory == nil {
		return fakeGuest{f, f.keep(guesttest.New(opts))}, nil
	}
	f.mu.Lock()
	from := f.saved[string(b.Memory)]
	f.mu.Unlock()
	return fakeGuest{f, f.keep(from.Clone(opts))}, nil
}

type fakeGuest struct {
	guests *fakeGuests
	agent  *guesttest.Agent
}

func (g fakeGuest) Serve(ctx context.Context, conn net.Conn) {
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	g.agent.ServeConn(conn)
}

func (g fakeGuest) Memory() ([]byte, error) {
	a := g.guests.keep(g.agent.Clone(guesttest.Options{Dir: g.guests.t.TempDir()}))
	g.guests.mu.Lock()
	defer g.guests.mu.Unlock()
	name := rand.Text()
	g.guests.saved[name] = a
	return []byte(name), nil
}

func (fakeGuest) PowerButton() {}
