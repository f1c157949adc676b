// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package darwin

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
	"testing/synctest"
	"time"

	"github.com/vk-firkin/vk-firkin/vm/guest/agent"
)

// fakeMac records the commands that run, and answers them by their first words.
type fakeMac struct {
	mu       sync.Mutex
	ran      []string          // guarded by mu, like all below: "stdin | name args"
	answers  map[string]string // by the beginning of a line of ran
	failures map[string]error
	hostname string
	clock    time.Time
	synced   int
	boot     string
}

func (m *fakeMac) run(ctx context.Context, stdin, name string, args ...string) (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	line := strings.Join(append([]string{name}, args...), " ")
	if stdin != "" {
		line += " <<< " + strings.TrimSuffix(strings.ReplaceAll(stdin, "\n", "; "), "; ")
	}
	m.ran = append(m.ran, line)
	if err := ctx.Err(); err != nil {
		return "", err
	}
	for prefix, err := range m.failures {
		if strings.HasPrefix(line, prefix) {
			return "", err
		}
	}
	if args != nil && strings.HasSuffix(name, "/hostname") {
		m.hostname = args[0]
	}
	for prefix, out := range m.answers {
		if strings.HasPrefix(line, prefix) {
			return out, nil
		}
	}
	return stdin, nil // scutil's show
}

func (m *fakeMac) took() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := m.ran
	m.ran = nil
	return out
}

func (m *fakeMac) SetClock(t time.Time) error                      { m.clock = t; return nil }
func (m *fakeMac) Hostname() (string, error)                       { return m.hostname, nil }
func (m *fakeMac) Release() (string, error)                        { return "24.0.0", nil }
func (m *fakeMac) MemoryBytes() (int64, error)                     { return 4 << 30, nil }
func (m *fakeMac) DiskUsage(string) (total, used int64, err error) { return 60 << 30, 20 << 30, nil }
func (m *fakeMac) BootSession() (string, error)                    { return m.boot, nil }
func (m *fakeMac) Sync() error                                     { m.synced++; return nil }

func newSystem(t *testing.T) (*System, *fakeMac) {
	t.Helper()
	dir := t.TempDir()
	m := &fakeMac{hostname: "old", answers: map[string]string{}, failures: map[string]error{}}
	for _, name := range []string{"random", "hosts"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("old\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	s, err := New(t.Context(), Options{
		Run: m.run, Kernel: m, ScratchDir: filepath.Join(dir, "scratch"), EntropyFile: filepath.Join(dir, "random"), HostsFile: filepath.Join(dir, "hosts"),
	})
	if err != nil {
		t.Fatal(err)
	}
	return s, m
}

func expect(t *testing.T, m *fakeMac, want ...string) {
	t.Helper()
	if got := m.took(); !slices.Equal(got, want) {
		t.Errorf("ran\n\t%s\nwant\n\t%s", strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
}

const ifconfigText = `en0: flags=8863<UP,BROADCAST,SMART,RUNNING,SIMPLEX,MULTICAST> mtu 1500
	options=400<CHANNEL_IO>
	ether 52:54:00:12:34:56
	inet6 fe80::5054:ff:fe12:3456%en0 prefixlen 64 secured scopeid 0x4
	inet 10.0.2.15 netmask 0xffffff00 broadcast 10.0.2.255
	inet 192.168.64.7 netmask 0xffffff00 broadcast 192.168.64.255
	inet6 fd00::7 prefixlen 64
	nd6 options=201<PERFORMNUD,DAD>
	media: autoselect
	status: active
`

func refresh() agent.Refresh {
	return agent.Refresh{
		Time: time.Unix(1800000000, 0), Entropy: []byte(strings.Repeat("e", 32)), MachineID: strings.Repeat("ab", 16), Hostname: "pod.example_1",
		Network: &agent.Network{Address: "10.0.2.15/24", Gateway: "10.0.2.2", Nameservers: []string{"10.0.2.3", "10.0.2.4"}, MTU: 1400},
	}
}

const (
	v4Key  = "State:/Network/Service/dev.firkin.agent/IPv4"
	dnsKey = "State:/Network/Service/dev.firkin.agent/DNS"
	forget = "/usr/sbin/scutil <<< remove " + v4Key + "; remove " + dnsKey + "; quit"
)

var setName = []string{
	"/bin/hostname pod.example_1", "/usr/sbin/scutil --set HostName pod.example_1", "/usr/sbin/scutil --set LocalHostName pod-example-1",
}

func TestRefresh(t *testing.T) {
	s, m := newSystem(t)
	m.answers["/sbin/ifconfig en0"] = ifconfigText
	r := refresh()
	if err := s.Refresh(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	expect(t, m, append(slices.Clone(setName),
		"/sbin/ifconfig en0 mtu 1400",
		"/sbin/ifconfig en0 inet 10.0.2.15 netmask 255.255.255.0 up",
		"/sbin/ifconfig en0",
		"/sbin/ifconfig en0 inet 192.168.64.7 delete",
		"/sbin/ifconfig en0 inet6 fd00::7 delete",
		"/usr/sbin/arp -d -i en0 -a",
		"/sbin/route -n delete -inet default",
		"/sbin/route -n add -inet default 10.0.2.2",
		forget,
		"/usr/sbin/scutil <<< d.init; d.add Addresses * 10.0.2.15; d.add SubnetMasks * 255.255.255.0; d.add InterfaceName en0; d.add Router 10.0.2.2; set "+v4Key+"; show "+v4Key+"; quit",
		"/usr/sbin/scutil <<< d.init; d.add ServerAddresses * 10.0.2.3 10.0.2.4; set "+dnsKey+"; show "+dnsKey+"; quit",
	)...)
	if !m.clock.Equal(r.Time) {
		t.Errorf("clock %s", m.clock)
	}
	// A character device has no end to append to.
	if random, err := os.ReadFile(s.opts.EntropyFile); err != nil || !strings.Contains(string(random), string(r.Entropy)) {
		t.Errorf("entropy %q %v", random, err)
	}
	id, err := s.Identity()
	if err != nil || id != (agent.Identity{MachineID: r.MachineID, Hostname: "pod.example_1", KernelRelease: "24.0.0"}) {
		t.Errorf("identity %v %v", id, err)
	}
}

func TestRefreshWithoutNetwork(t *testing.T) {
	s, m := newSystem(t)
	r := refresh()
	r.Network = nil
	if err := s.Refresh(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	expect(t, m, append(slices.Clone(setName), "/sbin/ifconfig en0 down", forget)...)
	m.failures["/sbin/ifconfig"] = errors.New("ifconfig: interface en0 does not exist")
	if err := s.Refresh(t.Context(), r); err != nil {
		t.Errorf("a machine without a network device: %v", err)
	}
	m.failures["/sbin/ifconfig"] = errors.New("permission denied")
	if err := s.Refresh(t.Context(), r); err == nil {
		t.Error("a device that stays up is no error")
	}
}

func TestRefreshIPv6(t *testing.T) {
	s, m := newSystem(t)
	r := refresh()
	r.Network = &agent.Network{Address: "fd00::2/64", Gateway: "fd00::1"}
	if err := s.Refresh(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	expect(t, m, append(slices.Clone(setName),
		"/sbin/ifconfig en0 inet6 fd00::2 prefixlen 64 up", "/sbin/ifconfig en0", "/usr/sbin/arp -d -i en0 -a",
		"/sbin/route -n delete -inet6 default", "/sbin/route -n add -inet6 default fd00::1", forget)...)
}

// TestRefreshFaults: every command that fails and is needed is an error that names it;
// what would be refused is refused before anything is changed.
func TestRefreshFaults(t *testing.T) {
	broken := errors.New("broken")
	for command, needed := range map[string]bool{
		"/bin/hostname": true, "/usr/sbin/scutil --set": true, "/sbin/ifconfig en0 mtu": true, "/sbin/ifconfig en0 inet 10": true,
		"/sbin/ifconfig en0 inet 192": true, "/usr/sbin/arp": false, "/sbin/route -n delete": false, "/sbin/route -n add": true, "/usr/sbin/scutil <<< d.init": true,
	} {
		s, m := newSystem(t)
		m.answers["/sbin/ifconfig en0"] = ifconfigText
		m.failures[command] = broken
		if err := s.Refresh(t.Context(), refresh()); errors.Is(err, broken) != needed {
			t.Errorf("%s: %v", command, err)
		}
	}
	// scutil never fails: what it was told must be there afterwards.
	s, m := newSystem(t)
	m.answers["/usr/sbin/scutil <<< d.init"] = "  No such key\n"
	if err := s.Refresh(t.Context(), refresh()); err == nil || !strings.Contains(err.Error(), "configd") {
		t.Errorf("a store that takes nothing: %v", err)
	}
	s, m = newSystem(t)
	for what, change := range map[string]func(*agent.Refresh){
		"address": func(r *agent.Refresh) { r.Network.Address = "10.0.2.15" }, "gateway": func(r *agent.Refresh) { r.Network.Gateway = "10.9.9.9" },
		"gateway's form": func(r *agent.Refresh) { r.Network.Gateway = "x" }, "nameserver": func(r *agent.Refresh) { r.Network.Nameservers = []string{"a; quit"} },
		"mtu": func(r *agent.Refresh) { r.Network.MTU = 10 }, "hostname": func(r *agent.Refresh) { r.Hostname = "a b" }, "option": func(r *agent.Refresh) { r.Hostname = "-s" },
	} {
		r := refresh()
		change(&r)
		if err := s.Refresh(t.Context(), r); err == nil {
			t.Errorf("%s was taken", what)
		}
	}
	expect(t, m)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Refresh(ctx, refresh()); !errors.Is(err, context.Canceled) {
		t.Errorf("without time: %v", err)
	}
}

// TestSetupPod: the machine becomes the pod's, once, and again after a refresh.
func TestSetupPod(t *testing.T) {
	s, m := newSystem(t)
	pod := agent.Pod{Hostname: "web-0", Hosts: []byte("127.0.0.1 localhost\n"), ResolvConf: []byte("search a.example $(evil) b.example\nnameserver 10.0.0.10\noptions ndots:5\n")}
	want := []string{
		"/bin/hostname web-0", "/usr/sbin/scutil --set HostName web-0", "/usr/sbin/scutil --set LocalHostName web-0",
		"/usr/sbin/scutil <<< d.init; d.add ServerAddresses * 10.0.0.10; d.add SearchDomains * a.example b.example; set " + dnsKey + "; show " + dnsKey + "; quit",
	}
	for _, expected := range [][]string{want, nil} {
		if err := s.SetupPod(t.Context(), pod); err != nil {
			t.Fatal(err)
		}
		expect(t, m, expected...)
	}
	if hosts, err := os.ReadFile(s.opts.HostsFile); err != nil || string(hosts) != string(pod.Hosts) {
		t.Errorf("hosts %q %v", hosts, err)
	}
	r := refresh()
	if err := s.Refresh(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	m.took()
	// Without nameservers of its own the pod has those of the network.
	pod.ResolvConf = []byte("search c.example\n")
	if err := s.SetupPod(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	expect(t, m, append(want[:3:3], "/usr/sbin/scutil <<< d.init; d.add ServerAddresses * 10.0.2.3 10.0.2.4; d.add SearchDomains * c.example; set "+dnsKey+"; show "+dnsKey+"; quit")...)
	pod.Hostname = "-x"
	if err := s.SetupPod(t.Context(), pod); !errors.Is(err, agent.ErrInvalid) {
		t.Errorf("a hostname that is an option: %v", err)
	}
}

// TestOrphaned: only an agent that died with containers, in this boot, leaves a machine
// that nobody may use.
func TestOrphaned(t *testing.T) {
	s, m := newSystem(t)
	m.boot = "first"
	orphaned := func(want bool) {
		t.Helper()
		again, err := New(t.Context(), s.opts)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := again.Orphaned(); err != nil || got != want {
			t.Errorf("orphaned: %v %v, want %v", got, err, want)
		}
	}
	orphaned(false)
	for range 2 {
		if err := s.SetupPod(t.Context(), agent.Pod{Hostname: "web-0"}); err != nil {
			t.Fatal(err)
		}
		orphaned(true)
		if err := s.Settled(); err != nil {
			t.Fatal(err)
		}
		orphaned(false)
	}
	if err := s.SetupPod(t.Context(), agent.Pod{Hostname: "web-0"}); err != nil {
		t.Fatal(err)
	}
	m.boot = "second"
	orphaned(false)
}

func TestMemoryVolumes(t *testing.T) {
	s, m := newSystem(t)
	if err := errors.Join(s.MountTmpfs("/v/a", 1<<20), s.MountTmpfs("/v/b", 0), s.Unmount("/v/a")); err != nil {
		t.Fatal(err)
	}
	expect(t, m, "/sbin/mount_tmpfs -e -s 1048576 /v/a", "/sbin/mount_tmpfs -e /v/b", "/sbin/umount /v/a")
	m.failures["/sbin/umount /v"] = errors.New("umount(/v/b): Resource busy -- try 'diskutil unmount'")
	if err := s.Unmount("/v/b"); err != nil {
		t.Fatal(err)
	}
	expect(t, m, "/sbin/umount /v/b", "/sbin/umount -f /v/b")
	m.failures["/sbin/umount -f"] = errors.New("no")
	if err := s.Unmount("/v/b"); err == nil {
		t.Error("what stays mounted is no error")
	}
	m.failures["/sbin/umount /v"] = errors.New("umount: /v/b: not currently mounted")
	if err := s.Unmount("/v/b"); err != nil {
		t.Errorf("nothing mounted: %v", err)
	}
}

// TestNewClears: output and volumes of an agent before this one are removed, names of
// layers are not.
func TestNewClears(t *testing.T) {
	s, m := newSystem(t)
	scratch := s.ScratchDir()
	for _, dir := range []string{"volumes/v", "output/c", "layers/l"} {
		if err := os.MkdirAll(filepath.Join(scratch, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	m.failures["/sbin/umount"] = errors.New("umount: not currently mounted")
	if _, err := New(t.Context(), s.opts); err != nil {
		t.Fatal(err)
	}
	expect(t, m, "/sbin/umount "+filepath.Join(scratch, "volumes", "v"))
	entries, err := os.ReadDir(scratch)
	if err != nil || len(entries) != 1 || entries[0].Name() != "layers" {
		t.Errorf("left %v %v", entries, err)
	}
	if _, err := New(t.Context(), Options{}); err == nil {
		t.Error("a system without kernel and commands")
	}
}

func TestQuiesceAndImages(t *testing.T) {
	s, m := newSystem(t)
	m.failures["/usr/sbin/purge"] = errors.New("not here")
	for _, keep := range []bool{true, false} {
		if err := s.Quiesce(t.Context(), keep); err != nil {
			t.Error(err)
		}
	}
	expect(t, m, "/usr/sbin/purge")
	if m.synced != 2 {
		t.Errorf("synced %d times", m.synced)
	}
	if dir, err := s.MountImage(t.Context(), 0); dir != "/" || err != nil {
		t.Errorf("slot 0: %q %v", dir, err)
	}
	if dir, err := s.MountImage(t.Context(), 1); err == nil {
		t.Errorf("slot 1: %q", dir)
	}
}

// TestPowerOff returns only when the machine goes on.
func TestPowerOff(t *testing.T) {
	s, m := newSystem(t)
	synctest.Test(t, func(t *testing.T) {
		before := time.Now()
		if err := s.PowerOff(); err == nil || time.Since(before) != DefaultPowerOffPatience {
			t.Errorf("after %s: %v", time.Since(before), err)
		}
	})
	expect(t, m, "/sbin/shutdown -h now")
	m.failures["/sbin/shutdown"] = errors.New("not super-user")
	if err := s.PowerOff(); err == nil {
		t.Error("a shutdown that fails is no error")
	}
}

const vmStatText = `Mach Virtual Memory Statistics: (page size of 16384 bytes)
Pages free:                                5132.
Pages active:                            233341.
Pages inactive:                          231029.
Pages speculative:                         1570.
Pages throttled:                              0.
Pages wired down:                        126361.
"Translation faults":                1171894187.
`

func TestStats(t *testing.T) {
	s, m := newSystem(t)
	m.answers["/usr/bin/vm_stat"] = vmStatText
	m.answers["/bin/ps -A -o pid=,rss=,time="] = "    1  10000   1:02.50\n  200   5000   0:00.50\n"
	st, err := s.Stats()
	if want := (agent.SystemStats{MemoryTotalBytes: 4 << 30, MemoryAvailableBytes: (5132 + 231029 + 1570) * 16384, MemoryWorkingSetBytes: 399982592, CPUTime: 63 * time.Second, ScratchTotalBytes: 60 << 30, ScratchUsedBytes: 20 << 30}); err != nil || st != want {
		t.Errorf("stats %+v %v\nwant %+v", st, err, want)
	}
	m.answers["/bin/ps -A -o pid=,rss=,time="] = "    1  10000   1:03.50\n"
	if st, err = s.Stats(); err != nil || st.CPUTime != 64*time.Second {
		t.Errorf("processor time %s %v", st.CPUTime, err)
	}
	for command, text := range map[string]string{"/usr/bin/vm_stat": "nonsense", "/bin/ps -A -o pid=,rss=,time=": "nonsense"} {
		before := m.answers[command]
		m.answers[command] = text
		if _, err := s.Stats(); err == nil {
			t.Errorf("%s said nonsense and was believed", command)
		}
		m.answers[command] = before
	}
	for _, bad := range []string{"", "(page size of 0 bytes)\n", "(page size of 1 bytes)\nPages free: 1.\n", strings.Replace(vmStatText, "5132.", "many.", 1)} {
		if n, err := parseVMStat(bad); err == nil {
			t.Errorf("%q was read as %d", bad, n)
		}
	}
}

func TestLocalName(t *testing.T) {
	for name, want := range map[string]string{"a.b_c": "a-b-c", "...": "firkin", strings.Repeat("x", 64): strings.Repeat("x", 63), "Mac": "Mac"} {
		if got := localName(name); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
}

func TestRunCommand(t *testing.T) {
	out, err := RunCommand(t.Context(), "hello\n", "cat")
	if err != nil || out != "hello\n" {
		t.Errorf("%q %v", out, err)
	}
	if _, err := RunCommand(t.Context(), "", "sh", "-c", "echo why >&2; exit 3"); err == nil || !strings.Contains(err.Error(), "why") || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("a command that fails: %v", err)
	}
	if _, err := RunCommand(t.Context(), "", fmt.Sprintf("/no/such/%d", os.Getpid())); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no such command: %v", err)
	}
}
