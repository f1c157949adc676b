// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package vmtest

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/vmtest/testguest"
)

func (s *suite) restore(t *testing.T) {
	_, g := s.running(t, "restore", s.config())
	if got := s.wantInfo(t, g).Boot; got != s.baseBoot {
		t.Errorf("the guest was booted as %q, want the saved %q: it is not the saved machine", got, s.baseBoot)
	}
	s.wantValue(t, g, baseKey, baseValue)
	s.wantScratch(t, g, scratchAt, baseScratch)
}

func (s *suite) restoreIsPaused(t *testing.T) {
	m := s.restored(t, "paused", s.config())
	s.wantState(t, m, vm.StatePaused)
	loaded, err := s.driver.Load(s.context(t), "paused")
	if err != nil {
		t.Fatalf("load: %v", err)
	}
	s.wantState(t, loaded, vm.StatePaused)
}

// clones restores the base many times at once and looks for anything that one
// clone can see of another.
func (s *suite) clones(t *testing.T) {
	type clone struct {
		guest *testguest.Client
	}
	clones := make([]clone, s.Clones)
	var all sync.WaitGroup
	for i := range clones {
		all.Go(func() {
			// Not t.Fatal: this is another goroutine.
			ctx := s.context(t)
			id := fmt.Sprintf("clone%d", i)
			m, err := s.driver.Restore(ctx, id, s.base, s.config(s.image(t, id)))
			if err != nil {
				t.Errorf("restore %s: %v", id, err)
				return
			}
			s.destroy(t, m)
			if err := m.Resume(ctx); err != nil {
				t.Errorf("resume %s: %v", id, err)
				return
			}
			conn, err := m.DialGuest(ctx, vm.AgentPort)
			if err != nil {
				t.Errorf("dial %s: %v", id, err)
				return
			}
			g, err := testguest.Dial(ctx, conn)
			if err != nil {
				t.Errorf("greet %s: %v", id, err)
				return
			}
			t.Cleanup(func() { _ = g.Close() })
			entropy := make([]byte, 32)
			_, _ = rand.Read(entropy) // never fails
			err = g.Refresh(ctx, testguest.Refresh{Time: time.Now(), Entropy: entropy, MachineID: fmt.Sprintf("%032d", i)})
			if err != nil {
				t.Errorf("refresh %s: %v", id, err)
				return
			}
			if err := g.Put(ctx, "own", id); err != nil {
				t.Errorf("%s: %v", id, err)
			}
			if err := g.WriteScratch(ctx, scratchAt+1<<20, []byte(id)); err != nil {
				t.Errorf("%s: %v", id, err)
			}
			clones[i].guest = g
		})
	}
	all.Wait()
	if t.Failed() {
		t.FailNow()
	}
	// All run now: what one has written, none other may see.
	random := map[string]int{}
	for i := range clones {
		id := fmt.Sprintf("clone%d", i)
		g := clones[i].guest
		info := s.wantInfo(t, g)
		if info.Boot != s.baseBoot {
			t.Errorf("%s was booted as %q, want the saved %q", id, info.Boot, s.baseBoot)
		}
		if want := fmt.Sprintf("%032d", i); info.MachineID != want {
			t.Errorf("%s has machine-id %q, want %q", id, info.MachineID, want)
		}
		if off := time.Since(info.Time).Abs(); off > s.Timeout/2 {
			t.Errorf("%s is off by %s", id, off)
		}
		if other, seen := random[string(info.Random)]; seen {
			t.Errorf("%s draws the same random numbers as clone%d", id, other)
		}
		random[string(info.Random)] = i
		s.wantValue(t, g, baseKey, baseValue)
		s.wantValue(t, g, "own", id)
		s.wantScratch(t, g, scratchAt, baseScratch)
		s.wantScratch(t, g, scratchAt+1<<20, id)
		if got, err := g.ReadSlot(s.context(t), 0, len(id)); err != nil || string(got) != id {
			t.Errorf("%s has image %q, %v", id, got, err)
		}
	}
	// And the snapshot is what it was.
	for i := range clones {
		m, err := s.driver.Load(s.context(t), fmt.Sprintf("clone%d", i))
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Delete(s.context(t)); err != nil {
			t.Fatal(err)
		}
	}
	_, g := s.running(t, "after", s.config())
	s.wantValue(t, g, "own", "")
	s.wantScratch(t, g, scratchAt+1<<20, "\x00\x00\x00\x00")
}

func (s *suite) imageSlots(t *testing.T) {
	first, second := s.image(t, "the first image"), s.image(t, "the second image")
	_, g := s.running(t, "slots", s.config(first, second))
	for slot, want := range []string{"the first image", "the second image"} {
		if got, err := g.ReadSlot(s.context(t), slot, len(want)); err != nil || string(got) != want {
			t.Errorf("slot %d has %q, %v, want %q", slot, got, err, want)
		}
	}
	// The other way round, and an image where the saved machine had none or another.
	_, g = s.running(t, "slots2", s.config(second, "", first))
	for slot, want := range []string{"the second image", "\x00\x00\x00\x00", "the first image"} {
		if got, err := g.ReadSlot(s.context(t), slot, len(want)); err != nil || string(got) != want {
			t.Errorf("slot %d has %q, %v, want %q", slot, got, err, want)
		}
	}
}

// saveAndGoOn: a saved machine stays paused, can be saved again, can go on, and
// what it does then does not change the snapshot.
func (s *suite) saveAndGoOn(t *testing.T) {
	cfg := s.config()
	cfg.Saveable = true
	m, g := s.running(t, "goon", cfg)
	ctx := s.context(t)
	if err := g.Put(ctx, "when", "saved"); err != nil {
		t.Fatal(err)
	}
	if err := g.WriteScratch(ctx, scratchAt, []byte("saved  scratch")); err != nil {
		t.Fatal(err)
	}
	_ = g.Close()
	if err := m.(vm.Pauser).Pause(ctx); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	first, second := filepath.Join(dir, "first"), filepath.Join(dir, "second")
	s.save(t, m, first)
	s.save(t, m, second)
	s.wantState(t, m, vm.StatePaused)
	if err := m.Resume(ctx); err != nil {
		t.Fatalf("resume after save: %v", err)
	}
	g = s.dial(t, m)
	s.wantValue(t, g, "when", "saved")
	if err := g.Put(ctx, "when", "later"); err != nil {
		t.Fatal(err)
	}
	if err := g.WriteScratch(ctx, scratchAt, []byte("later  scratch")); err != nil {
		t.Fatal(err)
	}
	_ = g.Close()
	// And once more, of the machine that went on.
	if err := m.(vm.Pauser).Pause(ctx); err != nil {
		t.Fatal(err)
	}
	third := filepath.Join(dir, "third")
	s.save(t, m, third)
	if err := m.Delete(ctx); err != nil {
		t.Fatal(err)
	}
	for from, want := range map[string]string{first: "saved", second: "saved", third: "later"} {
		m, err := s.driver.Restore(s.context(t), "of"+filepath.Base(from), from, s.config())
		if err != nil {
			t.Fatalf("restore %s: %v", filepath.Base(from), err)
		}
		s.destroy(t, m)
		if err := m.Resume(s.context(t)); err != nil {
			t.Fatal(err)
		}
		g := s.dial(t, m)
		s.wantValue(t, g, "when", want)
		s.wantScratch(t, g, scratchAt, want+"  scratch")
		if err := m.Delete(s.context(t)); err != nil {
			t.Fatal(err)
		}
	}
}

func (s *suite) saveNeedsPause(t *testing.T) {
	cfg := s.config()
	cfg.Saveable = true
	m, _ := s.running(t, "savepause", cfg)
	_, err := m.(vm.Saver).Save(s.context(t), t.TempDir())
	wantError(t, "save of a running machine", err, vm.ErrInvalidState)
	other, _ := s.running(t, "notsaveable", s.config())
	if err := other.(vm.Pauser).Pause(s.context(t)); err != nil {
		t.Fatal(err)
	}
	_, err = other.(vm.Saver).Save(s.context(t), t.TempDir())
	wantError(t, "save of a machine that is not saveable", err, vm.ErrInvalidState)
}

// saveOfRestored: a snapshot of a machine that was itself restored stands alone.
func (s *suite) saveOfRestored(t *testing.T) {
	cfg := s.config()
	cfg.Saveable = true
	m := s.restored(t, "generation2", cfg)
	dir := filepath.Join(t.TempDir(), "snapshot")
	s.save(t, m, dir) // before anything in it ran
	if err := m.Delete(s.context(t)); err != nil {
		t.Fatal(err)
	}
	hidden := s.base + ".hidden"
	if err := os.Rename(s.base, hidden); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := os.Rename(hidden, s.base); err != nil {
			t.Fatal(err)
		}
	}()
	m, err := s.driver.Restore(s.context(t), "generation3", dir, s.config())
	if err != nil {
		t.Fatalf("restore: %v", err)
	}
	s.destroy(t, m)
	if err := m.Resume(s.context(t)); err != nil {
		t.Fatal(err)
	}
	g := s.dial(t, m)
	s.wantValue(t, g, baseKey, baseValue)
	s.wantScratch(t, g, scratchAt, baseScratch)
	if err := m.Delete(s.context(t)); err != nil {
		t.Fatal(err)
	}
}

// copyBase makes a snapshot to be damaged: small files are copied, large ones
// linked, so that they must be replaced and not written to.
func (s *suite) copyBase(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "snapshot")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range s.files {
		from, to := filepath.Join(s.base, name), filepath.Join(dir, name)
		info, err := os.Stat(from)
		if err != nil {
			t.Fatal(err)
		}
		if info.Size() > 32<<20 {
			err = os.Link(from, to)
		} else {
			var b []byte
			if b, err = os.ReadFile(from); err == nil {
				err = os.WriteFile(to, b, 0o600)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func (s *suite) damagedSnapshot(t *testing.T) {
	try := func(what string, damage func(dir string) error) {
		dir := s.copyBase(t)
		if err := damage(dir); err != nil {
			t.Fatal(err)
		}
		m, err := s.driver.Restore(s.context(t), "damaged", dir, s.config())
		if err == nil {
			_ = m.Delete(s.context(t))
		}
		wantError(t, "restore with "+what, err, vm.ErrSnapshotInvalid)
		if ids, err := s.driver.List(t.Context()); err != nil || len(ids) != 0 {
			t.Errorf("restore with %s left %q, %v", what, ids, err)
		}
	}
	for _, name := range s.files {
		try("missing "+name, func(dir string) error { return os.Remove(filepath.Join(dir, name)) })
		try("empty "+name, func(dir string) error { return replace(filepath.Join(dir, name), nil, 0) })
		try("half of "+name, func(dir string) error {
			path := filepath.Join(dir, name)
			info, err := os.Stat(path)
			if err != nil {
				return err
			}
			if info.Size() > 32<<20 {
				return replace(path, nil, info.Size()/2)
			}
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			return replace(path, b[:len(b)/2], int64(len(b)/2))
		})
	}
	for _, name := range s.Checked {
		for part := range 4 {
			try(fmt.Sprintf("a flipped bit in quarter %d of %s", part, name), func(dir string) error {
				path := filepath.Join(dir, name)
				b, err := os.ReadFile(path)
				if err != nil {
					return err
				}
				b = bytes.Clone(b)
				b[len(b)*part/4+len(b)/8] ^= 0x10
				return replace(path, b, int64(len(b)))
			})
		}
	}
}

// replace puts another file of size bytes, beginning with content, in path's place.
func replace(path string, content []byte, size int64) error {
	if err := os.Remove(path); err != nil {
		return err
	}
	if err := os.WriteFile(path, content, 0o600); err != nil {
		return err
	}
	return os.Truncate(path, size)
}

func (s *suite) foreignSnapshot(t *testing.T) {
	for what, change := range map[string]func(*vm.Config){
		"another shape":     func(c *vm.Config) { c.Shape.MemoryBytes += 2 << 20 },
		"more vCPUs":        func(c *vm.Config) { c.Shape.VCPUs++ },
		"another guest kit": func(c *vm.Config) { c.Kit.Digest = "sha256:another" },
	} {
		cfg := s.config()
		change(&cfg)
		_, err := s.driver.Restore(s.context(t), "foreign", s.base, cfg)
		wantError(t, "restore with "+what, err, vm.ErrSnapshotInvalid)
	}
	_, err := s.driver.Restore(s.context(t), "foreign", t.TempDir(), s.config())
	wantError(t, "restore from an empty directory", err, vm.ErrSnapshotInvalid)
	_, err = s.driver.Restore(s.context(t), "foreign", filepath.Join(t.TempDir(), "none"), s.config())
	wantError(t, "restore from no directory", err, vm.ErrSnapshotInvalid)
}
