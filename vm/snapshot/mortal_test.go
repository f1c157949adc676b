// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/durable"
	"github.com/vk-firkin/vk-firkin/vm/durable/durabletest"
	"github.com/vk-firkin/vk-firkin/vm/snapshot/snapshottest"
)

// mortal is the driver of a process that dies, with its disk: at a call of its own, before
// it has an effect or after, or when the disk says so. From then on no call has any.
type mortal struct {
	*snapshottest.Driver
	disk  *durabletest.FS
	mode  durabletest.Mode
	at    int // the call, from 1 on; 0: none
	after bool
	// kill ends what the process is about.
	kill context.CancelFunc

	mu    sync.Mutex
	calls int
}

func (d *mortal) reached() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.at > 0 && d.calls >= d.at
}

func (d *mortal) do(f func() error) error {
	if d.disk.Dead() {
		d.kill()
		return durabletest.ErrCrashed
	}
	d.mu.Lock()
	d.calls++
	now := d.calls == d.at
	d.mu.Unlock()
	if now && !d.after {
		d.disk.Crash(d.mode)
		d.kill()
		return durabletest.ErrCrashed
	}
	err := f()
	if now {
		d.disk.Crash(d.mode)
		d.kill()
		return durabletest.ErrCrashed
	}
	return err
}

func (d *mortal) machine(f func() (vm.Machine, error)) (m vm.Machine, err error) {
	err = d.do(func() (err error) { m, err = f(); return err })
	if err != nil {
		return nil, err
	}
	return &mortalMachine{m.(*snapshottest.Machine), d}, nil
}

func (d *mortal) Create(ctx context.Context, id string, cfg vm.Config) (vm.Machine, error) {
	return d.machine(func() (vm.Machine, error) { return d.Driver.Create(ctx, id, cfg) })
}

func (d *mortal) Restore(ctx context.Context, id, dir string, cfg vm.Config) (vm.Machine, error) {
	return d.machine(func() (vm.Machine, error) { return d.Driver.Restore(ctx, id, dir, cfg) })
}

func (d *mortal) Load(ctx context.Context, id string) (vm.Machine, error) {
	return d.machine(func() (vm.Machine, error) { return d.Driver.Load(ctx, id) })
}

func (d *mortal) List(ctx context.Context) (ids []string, err error) {
	err = d.do(func() (err error) { ids, err = d.Driver.List(ctx); return err })
	return ids, err
}

type mortalMachine struct {
	*snapshottest.Machine
	d *mortal
}

func (m *mortalMachine) Resume(ctx context.Context) error {
	return m.d.do(func() error { return m.Machine.Resume(ctx) })
}

func (m *mortalMachine) Pause(ctx context.Context) error {
	return m.d.do(func() error { return m.Machine.Pause(ctx) })
}

func (m *mortalMachine) Stop(ctx context.Context, grace time.Duration) error {
	return m.d.do(func() error { return m.Machine.Stop(ctx, grace) })
}

func (m *mortalMachine) Delete(ctx context.Context) error {
	return m.d.do(func() error { return m.Machine.Delete(ctx) })
}

func (m *mortalMachine) DialGuest(ctx context.Context, port uint32) (c net.Conn, err error) {
	err = m.d.do(func() (err error) { c, err = m.Machine.DialGuest(ctx, port); return err })
	return c, err
}

// Save leaves files that are complete and not synced: a crash of the host may take their
// content.
func (m *mortalMachine) Save(ctx context.Context, dir string) (names []string, err error) {
	err = m.d.do(func() error {
		names, err = m.Machine.Save(ctx, dir)
		if err != nil {
			return err
		}
		for _, n := range names {
			path := filepath.Join(dir, n)
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			if err := os.Remove(path); err != nil {
				return err
			}
			if err := durable.WriteNew(m.d.disk, path, data, durable.Unsynced); err != nil {
				return err
			}
		}
		return nil
	})
	return names, err
}

// scenarios are what happens to a store, and what it begins with.
var scenarios = map[string]struct {
	least   int // changes of the disk
	modes   []durabletest.Mode
	prepare func(t *testing.T, s *Store)
	run     func(ctx context.Context, t *testing.T, s *Store) error
}{
	"build": {22, append([]durabletest.Mode{durabletest.EIO, durabletest.Full}, durabletest.Crashes...), nil, func(ctx context.Context, t *testing.T, s *Store) error {
		_, _, err := s.Ensure(ctx, testSpec())
		return err
	}},
	"template": {22, []durabletest.Mode{durabletest.Crash, durabletest.CrashLosingAll}, prepareSet, func(ctx context.Context, t *testing.T, s *Store) error {
		_, _, err := s.Ensure(ctx, templateSpec(t, t.TempDir()))
		return err
	}},
	"rebuild": {26, []durabletest.Mode{durabletest.EIO, durabletest.Crash, durabletest.CrashLosingAll}, prepareSet, func(ctx context.Context, t *testing.T, s *Store) error {
		if err := s.Quarantine(ctx, testKey(t, s), "test"); err != nil {
			return err
		}
		_, _, err := s.Ensure(ctx, testSpec())
		return err
	}},
	"remove": {4, append([]durabletest.Mode{durabletest.EIO}, durabletest.Crashes...), prepareSet, func(ctx context.Context, t *testing.T, s *Store) error {
		_, err := s.Delete(ctx, testKey(t, s))
		return err
	}},
	"collect": {9, []durabletest.Mode{durabletest.EIO, durabletest.Crash, durabletest.CrashLosingNames}, func(t *testing.T, s *Store) {
		prepareSet(t, s)
		if err := s.Quarantine(t.Context(), testKey(t, s), "test"); err != nil {
			t.Fatal(err)
		}
		prepareSet(t, s)
		if err := os.Mkdir(filepath.Join(s.dir, buildingPrefix+"0123"), 0o700); err != nil {
			t.Fatal(err)
		}
	}, func(ctx context.Context, t *testing.T, s *Store) error {
		_, err := s.GC(ctx, GCOptions{})
		return err
	}},
	"restore": {12, []durabletest.Mode{durabletest.EIO, durabletest.Full, durabletest.Crash, durabletest.CrashLosingAll}, prepareSet, func(ctx context.Context, t *testing.T, s *Store) error {
		ref, _, err := s.Ensure(ctx, testSpec())
		if err != nil {
			return err
		}
		defer ref.Release()
		r, err := s.Restore(ctx, ref, "restored", testConfig(), RestoreOptions{})
		if err != nil {
			return err
		}
		_ = r.Guest.Close()
		if err := r.Machine.Delete(ctx); err != nil {
			return err
		}
		return s.Forget("restored")
	}},
}

// TestFaultAtEveryCall fails each operation on the disk of a build, of a template, of a
// quarantine, of a removal, of a collection and of a restore, once (an error) or for good:
// the process dies there, or the host with it. Afterwards, and after the store was opened
// again on what the disk kept, a key has a whole, verified snapshot or none, no machine is
// left that nobody knows, and a collection removes the rest.
func TestFaultAtEveryCall(t *testing.T) {
	for name, scenario := range scenarios {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			durabletest.Every(t, scenario.modes, scenario.least, func(t *testing.T, disk *durabletest.FS, dir string) {
				faultOnce(t, &mortal{disk: disk}, dir, scenario.prepare, scenario.run)
			})
		})
	}
}

// TestCrashAtEveryDriverCall is TestFaultAtEveryCall where the process dies, or the host, at
// each call of the driver, before the call has its effect and after.
func TestCrashAtEveryDriverCall(t *testing.T) {
	least := map[string]int{"build": 5, "template": 6, "rebuild": 5, "restore": 4}
	for name, scenario := range scenarios {
		for _, mode := range []durabletest.Mode{durabletest.Crash, durabletest.CrashLosingAll} {
			for _, after := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s, %s, after the call %v", name, mode, after), func(t *testing.T) {
					t.Parallel()
					for n := 1; ; n++ {
						dir := t.TempDir()
						d := &mortal{disk: durabletest.New(t, durable.Host, dir, durabletest.Fault{}), at: n, after: after, mode: mode}
						faultOnce(t, d, dir, scenario.prepare, scenario.run)
						if t.Failed() {
							t.Fatalf("at call %d", n)
						}
						if !d.reached() {
							if n <= least[name] {
								t.Errorf("only %d calls", n-1)
							}
							return
						}
					}
				})
			}
		}
	}
}

// faultOnce runs a scenario on a disk and with a driver that break.
func faultOnce(t *testing.T, d *mortal, dir string, prepare func(*testing.T, *Store), run func(context.Context, *testing.T, *Store) error) {
	t.Helper()
	d.Driver = snapshottest.New()
	disk := d.disk
	healthy := testOptions(d.Driver)
	healthy.FS = durabletest.New(t, durable.Host, dir, durabletest.Fault{}) // which does not wait for the disk
	s := openTest(t, dir, healthy)
	if prepare != nil {
		prepare(t, s)
	}
	s.opts.FS, s.driver = disk, d
	ctx, kill := context.WithCancel(t.Context())
	defer kill()
	d.kill = kill
	err := run(ctx, t, s)
	broken := disk.Reached()
	if !broken && err != nil {
		t.Fatalf("failed without a fault: %v", err)
	}
	if got := d.Machines(); len(got) != 0 && !disk.Dead() {
		t.Errorf("machines are left: %v", got)
	}
	if broken && !disk.Dead() {
		// The process lives: it must know what it did.
		disk.Heal()
		checkStore(t, s)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if disk.Dead() && d.hostDies() { // and with it all machines
		for _, id := range d.Machines() {
			if err := d.Driver.Machine(id).Delete(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	disk.Restart(t)
	s = openTest(t, dir, healthy)
	for _, name := range visible(t, dir) {
		if !isHex(name, keyLength) {
			t.Errorf("%s is left after reopen", name)
		}
	}
	// The machine of a pod is for the node to adopt or to delete: until then what it was
	// restored from stays.
	for _, id := range d.Machines() {
		if _, known := s.Reference(id); id != "restored" || !known {
			t.Errorf("machine %s is left after reopen, reference %v", id, known)
			continue
		}
		if _, err := s.GC(t.Context(), GCOptions{}); err != nil {
			t.Error(err)
		}
		if infos, err := s.List(t.Context()); err != nil || !slices.ContainsFunc(infos, func(i Info) bool { return slices.Contains(i.Machines, id) }) {
			t.Errorf("what machine %s was restored from is gone: %+v, %v", id, infos, err)
		}
		m, err := d.Driver.Load(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Delete(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := s.Forget(id); err != nil {
			t.Fatal(err)
		}
	}
	checkStore(t, s)
	if _, err := s.GC(t.Context(), GCOptions{}); err != nil {
		t.Errorf("collect: %v", err)
	}
	left := visible(t, dir)
	quarantined, err := s.quarantined()
	refs, faults, rerr := readReferences(durable.Host, filepath.Join(dir, refsDir))
	if err != nil || rerr != nil || len(left)+len(quarantined)+len(refs)+len(faults) != 0 {
		t.Errorf("left after collection: %v %v %v %v, %v, %v", left, quarantined, refs, faults, err, rerr)
	}
	if keys, err := os.ReadDir(filepath.Join(dir, refsDir)); err != nil || len(keys) != 0 {
		t.Errorf("directories of references are left: %v, %v", keys, err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// hostDies tells whether the crash is the host's.
func (d *mortal) hostDies() bool {
	return strings.Contains(d.disk.At(), "losing") || strings.Contains(string(d.mode), "losing")
}
