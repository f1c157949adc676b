// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package nodeledger_test

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
	"time"

	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/vk-firkin/vk-firkin/crds/v1alpha1"
	"github.com/vk-firkin/vk-firkin/provider/nodeledger"
	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/fake"
	"github.com/vk-firkin/vk-firkin/vm/guest/guesttest"
	"github.com/vk-firkin/vk-firkin/vm/snapshot"
	"github.com/vk-firkin/vk-firkin/vm/snapshot/recipe"
	"github.com/vk-firkin/vk-firkin/warmpool"
)

// macHost is a host of fake machines with the real agent in them.
type macHost struct {
	t     *testing.T
	mu    sync.Mutex
	saved map[string]*guesttest.Agent // guarded by mu; by the memory that was saved
	all   []*guesttest.Agent          // guarded by mu
	cold  []vm.Config                 // guarded by mu; of machines that booted
}

func (h *macHost) keep(a *guesttest.Agent) *guesttest.Agent {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.all = append(h.all, a)
	return a
}

// boot makes what runs in a machine: a new guest, or a copy of the one that was saved.
func (h *macHost) boot(b fake.Boot) (fake.Guest, error) {
	opts := guesttest.Options{Dir: h.t.TempDir(), OnPowerOff: func() { b.Exit(vm.ExitGuest, "power off") }}
	if b.Memory == nil {
		h.mu.Lock()
		h.cold = append(h.cold, b.Config)
		h.mu.Unlock()
		return &macGuest{host: h, boot: b, agent: h.keep(guesttest.New(opts))}, nil
	}
	h.mu.Lock()
	from := h.saved[string(b.Memory)]
	h.mu.Unlock()
	if from == nil {
		return nil, errors.New("memory that was never saved")
	}
	return &macGuest{host: h, boot: b, agent: h.keep(from.Clone(opts))}, nil
}

type macGuest struct {
	host  *macHost
	boot  fake.Boot
	agent *guesttest.Agent
}

func (g *macGuest) Serve(ctx context.Context, conn net.Conn) {
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	g.agent.ServeConn(conn)
}

func (g *macGuest) Memory() ([]byte, error) {
	name := rand.Text()
	a := g.host.keep(g.agent.Clone(guesttest.Options{Dir: g.host.t.TempDir()}))
	g.host.mu.Lock()
	defer g.host.mu.Unlock()
	g.host.saved[name] = a
	return []byte(name), nil
}

func (g *macGuest) PowerButton() { g.boot.Exit(vm.ExitGuest, "power button") }

// macImages has one installation of macOS.
type macImages struct{ image warmpool.SlotImage }

func (i macImages) Resolve(_ context.Context, _, ref string, os vm.GuestOS) (warmpool.SlotImage, error) {
	if os != vm.GuestMacOS {
		return warmpool.SlotImage{}, errors.New("is a macOS installation, not a container image")
	}
	out := i.image
	out.Ref = ref
	return out, nil
}

func (i macImages) Pin(context.Context, string, string) (warmpool.SlotImage, error) {
	return i.image, nil
}
func (macImages) Release(string) {}

// mac is a node that runs two macOS guests.
type mac struct {
	t      *testing.T
	guests *macHost
	host   *fake.Host
	driver *fake.Driver
	supply *warmpool.Supply
	limits nodeledger.Limits
}

func newMac(t *testing.T) *mac {
	t.Helper()
	m := &mac{t: t, guests: &macHost{t: t, saved: map[string]*guesttest.Agent{}}, host: fake.NewHost()}
	features := fake.DefaultFeatures()
	features.Arch, features.MacOSGuests = "arm64", 2
	m.driver = fake.Open(m.host, fake.Options{Guest: m.guests.boot, Features: features})
	m.limits = nodeledger.Limits{ImageSlots: features.ImageSlots, MacOSGuests: features.MacOSGuests}
	store, err := snapshot.Open(t.Context(), t.TempDir(), snapshot.Options{
		Driver: m.driver, MinFreeBytes: -1, Timeouts: snapshot.Timeouts{Settle: time.Millisecond},
	})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	macOS := &vm.MacOS{
		Digest: "sha256:" + strings.Repeat("d", 64), Disk: filepath.Join(dir, "disk.img"), AuxiliaryStorage: filepath.Join(dir, "aux.img"),
		HardwareModel: []byte("model"), MachineIdentifier: []byte("identifier"),
	}
	for _, path := range []string{macOS.Disk, macOS.AuxiliaryStorage} {
		if err := os.WriteFile(path, []byte(path), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	m.supply, err = warmpool.New(warmpool.Options{
		Driver: m.driver,
		Store: warmpool.FromStore(store, warmpool.StoreOptions{Image: func(context.Context, string) (recipe.Image, error) {
			return recipe.Image{}, errors.New("a macOS guest has no image configuration")
		}}),
		Images:   macImages{warmpool.SlotImage{Digest: macOS.Digest, DiskPath: macOS.Disk, MacOS: macOS}},
		Kit:      vm.Kit{Arch: "arm64", Digest: "sha256:" + strings.Repeat("a", 64), Kernel: "/k", Initramfs: "/i", Scratch: "/s"},
		Capacity: warmpool.Budget{MilliCPU: 8000, MemoryBytes: 32 << 30, Slots: int64(features.MacOSGuests)}, RecordsDir: t.TempDir(),
		RefillFloorBytes: -1, Tick: 50 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(m.supply.Shutdown(context.Background()), store.Close(), m.driver.Close()); err != nil {
			t.Error(err)
		}
		m.host.Close()
		for _, a := range m.guests.all {
			_ = a.Close()
		}
	})
	if err := m.supply.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return m
}

// wait waits for what the supply says.
func (m *mac) wait(what string, ok func(warmpool.Status) bool) {
	m.t.Helper()
	timeout := time.After(20 * time.Second)
	for {
		st := m.supply.Status()
		if ok(st) {
			return
		}
		select {
		case <-m.supply.Changes():
		case <-timeout:
			m.t.Fatalf("not %s: %+v", what, st)
		}
	}
}

func (m *mac) slots(active, warm, available int64) func(warmpool.Status) bool {
	return func(st warmpool.Status) bool {
		a := st.Account
		return a.Active.Slots == active && a.Warm.Slots == warm && a.Available.Slots == available
	}
}

// TestMacOSPool goes from a SnapshotTemplate and a WarmPool's target through the build, the
// warm entries, a checkout and its release, on fake machines with the real agent.
func TestMacOSPool(t *testing.T) {
	m := newMac(t)
	template := v1alpha1.SnapshotTemplateSpec{
		GuestOS: v1alpha1.GuestMacOS, Image: "example.test/macos:15", Shape: v1alpha1.MachineShape{CPU: resource.MustParse("2"), Memory: resource.MustParse("4Gi")},
		Setup:     []v1alpha1.Command{{Command: []string{"echo", "prepared"}}},
		WarmCache: []v1alpha1.Command{{Command: []string{"exit", "0"}}},
		Readiness: &v1alpha1.ReadinessCheck{Exec: &v1alpha1.Command{Command: []string{"exit", "0"}}},
	}
	revision := template.Revision()
	targets, faults := nodeledger.Targets(&v1alpha1.NodeLedgerSpec{
		Templates: []v1alpha1.TemplateRevision{{Namespace: "team", Name: "mac", Revision: revision, Spec: template}},
		Targets:   []v1alpha1.PoolTarget{{Namespace: "team", Pool: "mac", Template: "mac", Revision: revision, Replicas: 2, MaxSurge: 1}},
	}, nil, m.limits)
	if len(targets) != 1 || len(faults) != 0 {
		t.Fatalf("targets are %+v, faults %+v", targets, faults)
	}
	m.supply.SetTargets(targets)
	m.wait("two warm entries with a slot each", func(st warmpool.Status) bool {
		return len(st.Pools) == 1 && st.Pools[0].Ready == 2 && m.slots(0, 2, 0)(st)
	})
	if len(m.guests.cold) != 1 || m.guests.cold[0].GuestOS != vm.GuestMacOS || m.guests.cold[0].MacOS == nil || m.guests.cold[0].Kit.Kernel != "" || !m.guests.cold[0].Saveable {
		t.Errorf("machines that booted: %+v, want the template's builder only, from the installation", m.guests.cold)
	}
	if n := m.driver.Calls(fake.OpRestore); n != 2 {
		t.Errorf("%d restores, want one for each entry", n)
	}

	tpl := targets[0].Template
	request := func(id string) warmpool.Request {
		return warmpool.Request{MachineID: id, PodUID: "uid-" + id, Shape: tpl.Shape, Template: &tpl, Refs: tpl.Images,
			Budget: warmpool.Budget{MilliCPU: 2000, MemoryBytes: tpl.Shape.MemoryBytes}}
	}
	lease, err := m.supply.Acquire(t.Context(), request("pod-a"))
	if err != nil {
		t.Fatal(err)
	}
	if lease.Path() != warmpool.PathWarm {
		t.Errorf("the pod's machine came by %s, want %s", lease.Path(), warmpool.PathWarm)
	}
	if i := lease.Images(); len(i) != 1 || i[0].Ref != "example.test/macos:15" {
		t.Errorf("the machine's images are %+v, want the system only", i)
	}
	m.wait("one slot each for the pod and the pool", m.slots(1, 1, 0))

	// A second pod takes the other entry; a third finds no slot.
	second, err := m.supply.Acquire(t.Context(), request("pod-b"))
	if err != nil {
		t.Fatal(err)
	}
	m.wait("both slots the pods'", m.slots(2, 0, 0))
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err = m.supply.Acquire(ctx, request("pod-c"))
	if refusal := (*warmpool.Refusal)(nil); !errors.As(err, &refusal) || refusal.Reason != warmpool.ReasonInsufficientCapacity || refusal.Resource != "slots" {
		t.Errorf("a third pod: %v, want a refusal for slots", err)
	}

	if err := errors.Join(lease.Release(t.Context(), 0), second.Release(t.Context(), 0)); err != nil {
		t.Fatal(err)
	}
	m.wait("filled again", func(st warmpool.Status) bool { return st.Pools[0].Ready == 2 && m.slots(0, 2, 0)(st) })
	m.supply.SetTargets(nil)
	m.wait("emptied", m.slots(0, 0, 2))
	if n := m.host.Running(); n != 0 {
		t.Errorf("%d machines are left", n)
	}
}

// TestMacOSCold: a pod that asks for a boot gets one, with the template's commands run.
func TestMacOSCold(t *testing.T) {
	m := newMac(t)
	tpl := warmpool.Template{
		Namespace: "team", Name: "mac", Revision: "aa", GuestOS: vm.GuestMacOS, Shape: vm.Shape{VCPUs: 2, MemoryBytes: 4 << 30},
		Images: []string{"example.test/macos:15"}, Recipe: recipe.Recipe{Setup: []recipe.Command{{Args: []string{"echo", "x"}}}},
	}
	lease, err := m.supply.Acquire(t.Context(), warmpool.Request{MachineID: "pod-a", Shape: tpl.Shape, Template: &tpl, Path: warmpool.PathCold})
	if err != nil {
		t.Fatal(err)
	}
	m.wait("one slot the pod's", m.slots(1, 0, 1))
	if err := lease.Release(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	m.wait("given back", m.slots(0, 0, 2))
}

// TestMacOSLeak: a host that does not give back a slot has its pool filled as far as it goes.
func TestMacOSLeak(t *testing.T) {
	m := newMac(t)
	m.host.LeakMacOSGuests(1)
	tpl := warmpool.Template{
		Namespace: "team", Name: "mac", Revision: "aa", GuestOS: vm.GuestMacOS, Shape: vm.Shape{VCPUs: 2, MemoryBytes: 4 << 30}, Images: []string{"example.test/macos:15"},
	}
	m.supply.SetTargets([]warmpool.Target{{Pool: "team/mac", Template: tpl, Desired: 2, MaxSurge: 1}})
	m.wait("one entry, and one slot withheld", func(st warmpool.Status) bool {
		return len(st.Pools) == 1 && st.Pools[0].Ready == 1 && st.Account.Withheld.Slots == 1 && m.slots(0, 1, 0)(st)
	})
}
