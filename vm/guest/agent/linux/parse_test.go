// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package linux

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vk-firkin/vk-firkin/vm/guest/agent"
)

func TestCheckMachineID(t *testing.T) {
	for id, ok := range map[string]bool{
		"0123456789abcdef0123456789abcdef":     true,
		"0123456789ABCDEF0123456789abcdef":     false,
		"00000000000000000000000000000000":     false,
		"0123456789abcdef0123456789abcde":      false,
		"0123456789abcdef0123456789abcdef\n":   false,
		"01234567-89ab-cdef-0123-456789abcdef": false,
		"":                                     false,
	} {
		if err := checkMachineID(id); (err == nil) != ok {
			t.Errorf("%q: %v", id, err)
		}
	}
}

func TestCheckHostname(t *testing.T) {
	for name, ok := range map[string]bool{
		"pod-a": true, "web.0": true, strings.Repeat("a", 64): true,
		"": false, strings.Repeat("a", 65): false, "a b": false, "a/b": false, "a\x00": false, "ä": false,
	} {
		if err := checkHostname(name); (err == nil) != ok {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestParseNetwork(t *testing.T) {
	valid := agent.Network{Address: "10.0.2.15/24", Gateway: "10.0.2.2", Nameservers: []string{"10.0.2.3", "fd00::3"}, MTU: 1500}
	n, err := parseNetwork(valid)
	if err != nil || n.address.String() != "10.0.2.15/24" || n.gateway.String() != "10.0.2.2" || n.mtu != 1500 {
		t.Errorf("%+v, %v", n, err)
	}
	if got, want := n.resolvConf(), "nameserver 10.0.2.3\nnameserver fd00::3\n"; got != want {
		t.Errorf("resolv.conf %q, want %q", got, want)
	}
	if n, err := parseNetwork(agent.Network{Address: "fd00::15/64"}); err != nil || n.gateway.IsValid() || n.mtu != 0 || n.resolvConf() != "" {
		t.Errorf("address only: %+v, %v", n, err)
	}
	for name, change := range map[string]func(*agent.Network){
		"no prefix":         func(n *agent.Network) { n.Address = "10.0.2.15" },
		"no address":        func(n *agent.Network) { n.Address = "" },
		"gateway elsewhere": func(n *agent.Network) { n.Gateway = "10.0.3.2" },
		"gateway":           func(n *agent.Network) { n.Gateway = "x" },
		"nameserver":        func(n *agent.Network) { n.Nameservers = []string{"1.1.1.1\nsearch evil"} },
		"many nameservers":  func(n *agent.Network) { n.Nameservers = slices.Repeat(n.Nameservers, 2) },
		"small MTU":         func(n *agent.Network) { n.MTU = 68 },
		"large MTU":         func(n *agent.Network) { n.MTU = 65536 },
	} {
		bad := valid
		change(&bad)
		if _, err := parseNetwork(bad); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestParseMeminfo(t *testing.T) {
	total, available, err := parseMeminfo("MemTotal:         229172 kB\nMemFree:          170000 kB\nMemAvailable:     180000 kB\nHugePages_Total:       0\n")
	if err != nil || total != 229172<<10 || available != 180000<<10 {
		t.Errorf("%d, %d, %v", total, available, err)
	}
	for _, bad := range []string{"", "MemTotal: 5\n", "MemTotal: x kB\n", "MemAvailable: 5 kB\n"} {
		if _, _, err := parseMeminfo(bad); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}

func TestParseWorkingSet(t *testing.T) {
	got, err := parseWorkingSet("MemTotal:  1000 kB\nMemFree:  300 kB\nInactive:  900 kB\nInactive(file):  200 kB\n")
	if err != nil || got != 500<<10 {
		t.Errorf("%d, %v", got, err)
	}
	if got, err := parseWorkingSet("MemTotal:  1 kB\nMemFree:  300 kB\n"); err != nil || got != 0 {
		t.Errorf("%d, %v: never negative", got, err)
	}
}

func TestParseNetDev(t *testing.T) {
	const heading = "Inter-|   Receive  |  Transmit\n face |bytes    packets errs|bytes\n    lo: 7 7 7 0 0 0 0 0 7 7 7 0 0 0 0 0\n"
	got, err := parseNetDev(heading + "  eth0: 1000 10 1 0 0 0 0 0 2000 20 2 0 0 0 0 0\n  eth1:5 1 0 0 0 0 0 0 6 1 0 0 0 0 0 0\nfirkin1: 9 9 9 0 0 0 0 0 9 9 9 0 0 0 0 0\n")
	if want := (agent.NetworkStats{Interface: "eth0", RxBytes: 1005, RxErrors: 1, TxBytes: 2006, TxErrors: 2}); err != nil || *got != want {
		t.Errorf("%+v, %v, want %+v", got, err, want)
	}
	if got, err := parseNetDev(heading); err != nil || got != nil {
		t.Errorf("%+v, %v: loopback alone is no network", got, err)
	}
	for _, bad := range []string{"eth0: 1 2\n", "eth0: x 10 1 0 0 0 0 0 2000 20 2 0 0 0 0 0\n"} {
		if _, err := parseNetDev(bad); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}

func TestParseCPUTime(t *testing.T) {
	got, err := parseCPUTime("cpu  100 20 30 9000 50 6 7 1000 9 9\ncpu0 1 1 1 1 1 1 1 1 1 1\n")
	if want := 1630 * time.Millisecond; err != nil || got != want {
		t.Errorf("%s, %v, want %s: idle, waiting for disks and stolen time are no use", got, err, want)
	}
	for _, bad := range []string{"", "cpu 1 2 3\n", "intr 1 2 3 4 5 6 7 8 9\n", "cpu a b c d e f g h i j\n"} {
		if _, err := parseCPUTime(bad); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}

func TestModuleOrder(t *testing.T) {
	table := parseModuleList("virtio\nvirtio_ring virtio\nvirtio_pci virtio_ring virtio\nfailover\nnet_failover failover\n\nvirtio_net net_failover virtio virtio_ring\n")
	loaded := map[string]bool{}
	order, err := table.order([]string{"virtio_pci"}, loaded)
	if want := []string{"virtio", "virtio_ring", "virtio_pci"}; err != nil || !slices.Equal(order, want) {
		t.Errorf("%v, %v, want %v", order, err, want)
	}
	for _, name := range order {
		loaded[name] = true
	}
	order, err = table.order([]string{"ext4", "virtio_net", "virtio_net"}, loaded)
	if want := []string{"failover", "net_failover", "virtio_net"}; err != nil || !slices.Equal(order, want) {
		t.Errorf("%v, %v, want %v: ext4 is built in, the rest loaded", order, err, want)
	}
	if _, err := parseModuleList("a b\nb a\n").order([]string{"a"}, nil); err == nil {
		t.Error("modules that depend on each other are no error")
	}
}

func TestHasKey(t *testing.T) {
	for bitmap, want := range map[string]bool{
		"10000000000000 0":      true, // ACPI's power button
		"10000000000001 0\n":    true,
		"8000000000000 0":       false,
		"10000000000000":        false,
		"x 0":                   false,
		"":                      false,
		"1 10000000000000 0":    true,
		"10000000000000 0 0":    false,
		"ffffffffffffffff 0 0 ": false,
	} {
		if got := hasKey(bitmap, 116); got != want {
			t.Errorf("%q: %t", bitmap, got)
		}
	}
}
