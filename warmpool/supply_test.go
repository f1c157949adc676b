// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package warmpool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/guest"
	"github.com/vk-firkin/vk-firkin/vm/snapshot"
	"github.com/vk-firkin/vk-firkin/vm/snapshot/snapshottest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var errBoom = errors.New("boom")

// node is a supply over a driver in memory, that can be shut down and started again
// while the machines run.
type node struct {
	t        *testing.T
	driver   *snapshottest.Driver
	dir      string
	capacity Budget
	patience time.Duration // with guests that do not answer
	store    *snapshot.Store
	supply   *Supply
}

func newNode(t *testing.T) *node {
	t.Helper()
	n := &node{t: t, driver: snapshottest.New(), dir: t.TempDir(), capacity: Budget{MilliCPU: 4000, MemoryBytes: gi}, patience: 5 * time.Second}
	n.start()
	t.Cleanup(n.stop)
	return n
}

func (n *node) start() {
	n.t.Helper()
	store, err := snapshot.Open(context.Background(), n.dir, snapshot.Options{
		Driver: n.driver, MinFreeBytes: -1,
		Timeouts: snapshot.Timeouts{Settle: time.Millisecond, Boot: n.patience, Agent: n.patience},
	})
	if err != nil {
		n.t.Fatal(err)
	}
	supply, err := New(Options{
		Driver: n.driver, Store: FromStore(store, StoreOptions{}), Kit: testKit(), Capacity: n.capacity, Restores: 4, DialTimeout: 5 * time.Second,
		discardPause: 10 * time.Millisecond, QueueWait: 10 * time.Millisecond,
	})
	if err != nil {
		n.t.Fatal(err)
	}
	n.store, n.supply = store, supply
}

func (n *node) stop() {
	n.t.Helper()
	if err := errors.Join(n.supply.Shutdown(context.Background()), n.store.Close()); err != nil {
		n.t.Errorf("stop node: %v", err)
	}
}

func testKit() vm.Kit {
	return vm.Kit{Arch: "amd64", Digest: "sha256:" + strings.Repeat("a", 64), Kernel: "/k", Initramfs: "/i", Scratch: "/s"}
}

func request(id string) Request {
	return Request{MachineID: id, PodUID: "uid-" + id, Shape: vm.Shape{VCPUs: 1, MemoryBytes: 256 << 20}}
}

func (n *node) acquire(id string) *Lease {
	n.t.Helper()
	l, err := n.supply.Acquire(n.t.Context(), request(id))
	if err != nil {
		n.t.Fatalf("acquire %s: %v", id, err)
	}
	return l
}

// check compares the ledger with the driver.
func (n *node) check(want ...string) {
	n.t.Helper()
	if err := n.differs(); err != nil {
		n.t.Error(err)
	}
	if diff := cmp.Diff(want, n.driver.Machines(), cmp.Transformer("nil", func(s []string) []string { return append([]string{}, s...) })); diff != "" {
		n.t.Errorf("machines (-want +got):\n%s", diff)
	}
}

func (n *node) differs() error {
	a := n.supply.Ledger()
	// Builders are the store's: they have no room of their own.
	machines := slices.DeleteFunc(n.driver.Machines(), func(id string) bool { return strings.HasPrefix(id, "build-") })
	var ids []string
	var sum Budget
	for _, e := range a.Machines {
		ids = append(ids, e.Machine)
		sum = sum.plus(e.Budget)
	}
	if !slices.Equal(ids, machines) {
		return fmt.Errorf("the ledger has %v, the driver has %v", ids, machines)
	}
	if sum != a.Active || a.Available.validate() != nil || a.Active.validate() != nil {
		return fmt.Errorf("account %+v", a)
	}
	return nil
}

func ping(t *testing.T, l *Lease) *guest.Client {
	t.Helper()
	c, err := l.Guest(t.Context())
	if err != nil {
		t.Fatalf("guest: %v", err)
	}
	if err := c.Ping(t.Context()); err != nil {
		t.Fatalf("ping: %v", err)
	}
	return c
}

func TestAcquireAndRelease(t *testing.T) {
	n := newNode(t)
	a := n.acquire("a")
	if a.Path() != PathBuild || len(a.Notices()) != 1 {
		t.Errorf("path of the first machine %q, notices %v", a.Path(), a.Notices())
	}
	b := n.acquire("b")
	if b.Path() != PathRestore || len(b.Notices()) != 0 {
		t.Errorf("path of the second machine %q, notices %v", b.Path(), b.Notices())
	}
	if tm := a.Timings(); tm.Snapshot <= 0 || tm.Restore <= 0 || tm.Agent <= 0 {
		t.Errorf("timings %+v", tm)
	}
	n.check("a", "b")
	acc := n.supply.Ledger()
	if acc.Active != (Budget{MilliCPU: 2000, MemoryBytes: 512 * mi}) || acc.Machines[0].State != StateActive || acc.Machines[0].PodUID != "uid-a" {
		t.Errorf("account %+v", acc)
	}
	if first, second := ping(t, a), ping(t, a); first != second {
		t.Error("two connections to one guest")
	}
	if _, err := n.supply.Acquire(t.Context(), request("a")); ReasonOf(err) != ReasonExists {
		t.Errorf("same id: %v", err)
	}
	big := request("big")
	big.Budget = Budget{MilliCPU: 2001}
	if _, err := n.supply.Acquire(t.Context(), big); ReasonOf(err) != ReasonInsufficientCapacity {
		t.Errorf("no room: %v", err)
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			if err := a.Release(t.Context(), time.Minute); err != nil {
				t.Errorf("release: %v", err)
			}
		})
	}
	wg.Wait()
	n.check("b")
	if _, err := a.Guest(t.Context()); !errors.Is(err, ErrReleased) {
		t.Errorf("guest of a released machine: %v", err)
	}
	if err := b.Release(t.Context(), 0); err != nil {
		t.Error(err)
	}
	n.check()
	if infos, err := n.store.List(t.Context()); err != nil || len(infos) != 1 || len(infos[0].Machines)+infos[0].Pins != 0 {
		t.Errorf("the snapshot is still in use: %+v, %v", infos, err)
	}
}

func TestAcquireFailures(t *testing.T) {
	quarantine := func(op, _ string) error {
		if op == "restore" {
			return vm.ErrSnapshotInvalid
		}
		return nil
	}
	for _, c := range []struct {
		name   string
		fault  func() func(op, id string) error
		bend   func(*snapshottest.Agent)
		path   Path   // of the lease, empty for a refusal
		reason Reason // of the refusal
		notice string // the first
	}{
		{"one bad restore", once("restore", errBoom), nil, PathRestore, "", "RestoreRepeated"},
		{"one bad resume", once("resume", errBoom), nil, PathRestore, "", "RestoreRepeated"},
		{"invalid once", once("restore", vm.ErrSnapshotInvalid), nil, PathBuild, "", "SnapshotQuarantined"},
		{"twice without a cause", times(2, "resume", errBoom), nil, PathBuild, "", "RestoreRepeated"},
		{"always invalid", func() func(string, string) error { return quarantine }, nil, "", ReasonRestoreFailed, ""},
		{"always fails", times(99, "restore", errBoom), nil, "", ReasonRestoreFailed, ""},
		{"cannot be rebuilt", times(99, "create|restore", vm.ErrSnapshotInvalid), nil, "", ReasonSnapshotFailed, ""},
		{"no space", times(99, "restore", vm.ErrNoSpace), nil, "", ReasonDiskPressure, ""},
		{"host not ready to restore", times(99, "restore", vm.ErrHostNotReady), nil, PathCold, "", "HostNotReady"},
		{"host not ready for anything", times(99, "create|restore", vm.ErrHostNotReady), nil, "", ReasonHostNotReady, ""},
		{"invalid", times(99, "restore", vm.ErrInvalidConfig), nil, "", ReasonInvalid, ""},
		{"taken in the driver", times(99, "restore", vm.ErrAlreadyExists), nil, "", ReasonExists, ""},
		{"never proves", nil, func(a *snapshottest.Agent) { a.Forged = true }, "", ReasonRestoreFailed, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := newNode(t)
			if err := n.supply.Prepare(t.Context(), []vm.Shape{request("").Shape}); err != nil {
				t.Fatal(err)
			}
			if c.fault != nil {
				n.driver.SetFault(c.fault())
			}
			n.driver.SetBend(c.bend)
			l, err := n.supply.Acquire(t.Context(), request("m"))
			if ReasonOf(err) != c.reason || (err == nil) != (c.path != "") {
				t.Fatalf("error %v, want reason %q", err, c.reason)
			}
			if err != nil {
				n.check()
				return
			}
			if l.Path() != c.path || l.Notices()[0].Reason != c.notice {
				t.Errorf("path %s, notices %v", l.Path(), l.Notices())
			}
			n.check("m")
			ping(t, l)
		})
	}
}

func once(ops string, err error) func() func(op, id string) error { return times(1, ops, err) }

// times makes the first calls of some operations fail.
func times(most int, ops string, err error) func() func(op, id string) error {
	return func() func(op, id string) error {
		var mu sync.Mutex
		left := most
		return func(op, _ string) error {
			mu.Lock()
			defer mu.Unlock()
			if left > 0 && slices.Contains(strings.Split(ops, "|"), op) {
				left--
				return err
			}
			return nil
		}
	}
}

func TestLeftoverKeepsItsRoomUntilItIsGone(t *testing.T) {
	n := newNode(t)
	if err := n.supply.Prepare(t.Context(), []vm.Shape{request("").Shape}); err != nil {
		t.Fatal(err)
	}
	broken := make(chan struct{})
	n.driver.SetFault(func(op, _ string) error {
		if op == "resume" || op == "delete" {
			select {
			case <-broken:
			default:
				return errBoom
			}
		}
		return nil
	})
	_, err := n.supply.Acquire(t.Context(), request("m"))
	var refusal *Refusal
	if !errors.As(err, &refusal) || !refusal.Leftover {
		t.Fatalf("error %v", err)
	}
	n.check("m")
	if a := n.supply.Ledger(); a.Machines[0].State != StateStopping {
		t.Errorf("%+v", a.Machines)
	}
	close(broken)
	for n.supply.Ledger().Active != (Budget{}) {
		time.Sleep(time.Millisecond)
	}
	n.check()
}

func TestReleaseMayBeRepeated(t *testing.T) {
	n := newNode(t)
	l := n.acquire("m")
	n.driver.SetFault(times(1, "delete", errBoom)())
	if err := l.Release(t.Context(), 0); !errors.Is(err, errBoom) {
		t.Fatalf("release: %v", err)
	}
	n.check("m")
	if err := l.Release(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	n.check()
}

func TestReleaseOfAStubbornGuest(t *testing.T) {
	n := newNode(t)
	n.driver.SetBend(func(a *snapshottest.Agent) { a.Stubborn = true })
	l := n.acquire("m")
	start := time.Now()
	const grace = 50 * time.Millisecond
	if err := l.Release(t.Context(), grace); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took < grace {
		t.Errorf("the grace was %s, it took %s", grace, took)
	}
	n.check()
	// A caller who has no time left still gets the machine deleted.
	l = n.acquire("m")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.Release(ctx, time.Hour); err != nil {
		t.Fatal(err)
	}
	n.check()
}

func TestGuestRedials(t *testing.T) {
	n := newNode(t)
	l := n.acquire("m")
	first := ping(t, l)
	n.driver.Machine("m").Agent().HangUp()
	<-first.Done()
	n.driver.SetFault(times(3, "dial", vm.ErrUnavailable)())
	var wg sync.WaitGroup
	clients := make([]*guest.Client, 8)
	for i := range clients {
		wg.Go(func() { clients[i] = ping(t, l) })
	}
	wg.Wait()
	for _, c := range clients {
		if c == first || c != clients[0] {
			t.Error("callers did not share one new connection")
		}
	}
	n.driver.Machine("m").Exit()
	n.driver.Machine("m").Agent().HangUp()
	<-clients[0].Done()
	if _, err := l.Guest(t.Context()); !errors.Is(err, vm.ErrInvalidState) {
		t.Errorf("guest of a machine that has ended: %v", err)
	}
	if err := l.Release(t.Context(), time.Minute); err != nil {
		t.Error(err)
	}
}

func TestRestart(t *testing.T) {
	n := newNode(t)
	for _, id := range []string{"kept", "ended", "orphan", "mute"} {
		n.acquire(id)
	}
	n.stop()
	n.driver.Machine("ended").Exit()
	n.driver.Machine("mute").Agent().Silent = true
	n.capacity.MemoryBytes = 256 * mi // less than what runs
	n.start()
	n.supply.opts.DialTimeout = 200 * time.Millisecond

	kept, err := n.supply.Adopt(t.Context(), request("kept"))
	if err != nil || kept.Path() != PathAdopt {
		t.Fatalf("adopt: %v", err)
	}
	ping(t, kept)
	if _, err := n.supply.Adopt(t.Context(), request("kept")); ReasonOf(err) != ReasonExists {
		t.Errorf("adopt again: %v", err)
	}
	ended, err := n.supply.Adopt(t.Context(), request("ended"))
	if err != nil {
		t.Fatalf("adopt a machine that has ended: %v", err)
	}
	if state, err := ended.Machine().State(t.Context()); err != nil || state != vm.StateExited {
		t.Errorf("%s, %v", state, err)
	}
	if _, err := n.supply.Adopt(t.Context(), request("nobody")); !errors.Is(err, vm.ErrNotFound) {
		t.Errorf("adopt what is not there: %v", err)
	}
	for range 2 {
		if _, err := n.supply.Adopt(t.Context(), request("mute")); !errors.Is(err, vm.ErrUnavailable) {
			t.Errorf("adopt what does not answer: %v", err)
		}
	}
	if a := n.supply.Ledger(); a.Available.MemoryBytes != 0 || a.Active.MemoryBytes != 768*mi {
		t.Errorf("account %+v", a)
	}
	n.driver.SetFault(func(op, id string) error {
		if op == "load" {
			return vm.ErrUnavailable
		}
		return nil
	})
	verdict := func(claims ...Claim) Verdict {
		t.Helper()
		findings, err := n.supply.Reconcile(t.Context(), Survey{Prefixes: []string{"orphan"}, Claims: claims})
		if err != nil || len(findings) != 1 || findings[0].Machine != "orphan" {
			t.Fatalf("found %+v, %v", findings, err)
		}
		return findings[0].Verdict
	}
	if v := verdict(); v != VerdictRetry {
		t.Errorf("could not ask is not gone: %s", v)
	}
	n.driver.SetFault(nil)
	if v := verdict(Claim{Request: request("orphan")}); v != VerdictRecover {
		t.Errorf("what is known: %s", v)
	}
	if v := verdict(); v != VerdictQuarantine {
		t.Errorf("what runs and is not known: %s", v)
	}
	if err := n.supply.Discard(t.Context(), "orphan"); err != nil {
		t.Errorf("discard: %v", err)
	}
	n.check("ended", "kept", "mute")
	if err := n.supply.Discard(t.Context(), "kept"); ReasonOf(err) != ReasonExists {
		t.Errorf("discarded what is leased: %v", err)
	}
	if err := n.supply.Discard(t.Context(), "mute"); err != nil {
		t.Errorf("discard: %v", err)
	}
	n.check("ended", "kept")
}

// TestUnfinishedMachineIsNotAdopted: a machine whose maker died before it had its
// own identity is deleted.
func TestUnfinishedMachineIsNotAdopted(t *testing.T) {
	n := newNode(t)
	ref, _, err := n.store.Ensure(t.Context(), snapshot.Spec{Kind: snapshot.KindBase, Shape: request("").Shape, Kit: testKit()})
	if err != nil {
		t.Fatal(err)
	}
	defer ref.Release()
	for _, id := range []string{"paused", "running"} {
		// What a crash leaves: the machine, and a reference that is not proven.
		path := filepath.Join(n.dir, ".refs", ref.Key())
		if err := os.MkdirAll(path, 0o700); err != nil {
			t.Fatal(err)
		}
		unproven := fmt.Sprintf(`{"machine":%q,"key":%q,"instance":%q}`, id, ref.Key(), strings.Repeat("a", 32))
		if err := os.WriteFile(filepath.Join(path, id), []byte(unproven), 0o600); err != nil {
			t.Fatal(err)
		}
		m, err := n.driver.Restore(t.Context(), id, ref.Dir(), vm.Config{})
		if err != nil {
			t.Fatal(err)
		}
		if id == "running" {
			if err := m.Resume(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	n.stop()
	n.start()
	for _, id := range []string{"paused", "running"} {
		if _, err := n.supply.Adopt(t.Context(), request(id)); !errors.Is(err, vm.ErrNotFound) {
			t.Errorf("%s: %v", id, err)
		}
	}
	n.check()
}

func TestShutdown(t *testing.T) {
	n := newNode(t)
	l := n.acquire("kept")
	client := ping(t, l)
	n.driver.SetBend(func(a *snapshottest.Agent) { a.Silent = true })
	done := make(chan error)
	go func() {
		_, err := n.supply.Acquire(context.Background(), request("unfinished"))
		done <- err
	}()
	for len(n.driver.Machines()) < 2 {
		time.Sleep(time.Millisecond)
	}
	n.stop()
	if err := <-done; ReasonOf(err) != ReasonShutdown {
		t.Errorf("acquire ended with %v", err)
	}
	<-client.Done()
	n.check("kept")
	if _, err := n.supply.Acquire(t.Context(), request("late")); ReasonOf(err) != ReasonShutdown {
		t.Errorf("acquire after shutdown: %v", err)
	}
	if _, err := l.Guest(t.Context()); ReasonOf(err) != ReasonShutdown {
		t.Errorf("guest after shutdown: %v", err)
	}
}

func TestCallerGivesUp(t *testing.T) {
	n := newNode(t)
	if err := n.supply.Prepare(t.Context(), []vm.Shape{request("").Shape}); err != nil {
		t.Fatal(err)
	}
	n.driver.SetBend(func(a *snapshottest.Agent) { a.Silent = true })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := n.supply.Acquire(ctx, request("m")); ReasonOf(err) != ReasonCancelled {
		t.Errorf("error %v", err)
	}
	n.check()
}
