// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package linux

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/vk-firkin/vk-firkin/vm/guest/agent"
)

// maxNameservers is what resolvers read of resolv.conf: glibc's MAXNS.
const maxNameservers = 3

// checkMachineID checks that id is one as machine-id(5) has it: 32 lower-case
// hexadecimal digits, not all zero.
func checkMachineID(id string) error {
	if len(id) != 32 || strings.Trim(id, "0123456789abcdef") != "" {
		return fmt.Errorf("machine-id %.40q: want 32 lower-case hexadecimal digits", id)
	}
	if strings.Trim(id, "0") == "" {
		return errors.New("machine-id is all zero")
	}
	return nil
}

// maxHostname is the kernel's __NEW_UTS_LEN.
const maxHostname = 64

func checkHostname(name string) error {
	if name == "" || len(name) > maxHostname {
		return fmt.Errorf("hostname has %d bytes, want 1 to %d", len(name), maxHostname)
	}
	for _, c := range []byte(name) {
		if c <= ' ' || c > '~' || c == '/' {
			return fmt.Errorf("hostname %q: want printable characters without blanks and slashes", name)
		}
	}
	return nil
}

// network is agent.Network, decoded.
type network struct {
	address     netip.Prefix
	gateway     netip.Addr // the zero Addr for none
	nameservers []netip.Addr
	mtu         int // 0 for the device's own
}

func parseNetwork(n agent.Network) (network, error) {
	var out network
	var err error
	if out.address, err = netip.ParsePrefix(n.Address); err != nil {
		return out, fmt.Errorf("network address: %w", err)
	}
	if n.Gateway != "" {
		if out.gateway, err = netip.ParseAddr(n.Gateway); err != nil {
			return out, fmt.Errorf("network gateway: %w", err)
		}
		if !out.address.Contains(out.gateway) {
			return out, fmt.Errorf("network gateway %s is not in %s", out.gateway, out.address.Masked())
		}
	}
	if len(n.Nameservers) > maxNameservers {
		return out, fmt.Errorf("%d nameservers, want at most %d", len(n.Nameservers), maxNameservers)
	}
	for _, s := range n.Nameservers {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return out, fmt.Errorf("network nameserver: %w", err)
		}
		out.nameservers = append(out.nameservers, a)
	}
	// 576 is what every IPv4 host must take (RFC 791), 65535 what a packet can have.
	if n.MTU != 0 && (n.MTU < 576 || n.MTU > 65535) {
		return out, fmt.Errorf("network MTU %d, want 576 to 65535", n.MTU)
	}
	out.mtu = n.MTU
	return out, nil
}

func (n network) resolvConf() string {
	var b strings.Builder
	for _, a := range n.nameservers {
		fmt.Fprintf(&b, "nameserver %s\n", a)
	}
	return b.String()
}

// parseMeminfo reads /proc/meminfo: total and available, in bytes.
func parseMeminfo(text string) (total, available int64, err error) {
	err = readMeminfo(text, map[string]*int64{"MemTotal": &total, "MemAvailable": &available})
	if err == nil && total == 0 {
		err = errors.New("meminfo has no MemTotal")
	}
	return total, available, err
}

// parseWorkingSet reads /proc/meminfo for what is used, less inactive file cache: the
// kubelet's measure, of the machine as a whole.
func parseWorkingSet(text string) (int64, error) {
	var total, free, inactive int64
	err := readMeminfo(text, map[string]*int64{"MemTotal": &total, "MemFree": &free, "Inactive(file)": &inactive})
	return max(total-free-inactive, 0), err
}

// readMeminfo reads some values of /proc/meminfo, in bytes.
func readMeminfo(text string, values map[string]*int64) error {
	for line := range strings.Lines(text) {
		key, rest, _ := strings.Cut(line, ":")
		into := values[key]
		if into == nil {
			continue
		}
		fields := strings.Fields(rest)
		if len(fields) != 2 || fields[1] != "kB" {
			return fmt.Errorf("meminfo: %q", line)
		}
		kib, err := strconv.ParseInt(fields[0], 10, 64)
		if err != nil {
			return fmt.Errorf("meminfo: %w", err)
		}
		*into = kib << 10
	}
	return nil
}

// cablePrefix begins the names of the interfaces that lead to no network, see ListenAddress.
const cablePrefix = "firkin"

// parseNetDev reads /proc/net/dev, see proc_net_dev(5): the traffic of all interfaces but
// loopback and cables. It is nil when there are none.
func parseNetDev(text string) (*agent.NetworkStats, error) {
	var out *agent.NetworkStats
	for line := range strings.Lines(text) {
		name, rest, ok := strings.Cut(line, ":")
		if name = strings.TrimSpace(name); !ok || name == "lo" || strings.HasPrefix(name, cablePrefix) {
			continue // the two lines of the heading have no colon
		}
		fields := strings.Fields(rest)
		if len(fields) < 11 {
			return nil, fmt.Errorf("net/dev: %q", line)
		}
		if out == nil {
			out = &agent.NetworkStats{Interface: name}
		}
		for i, into := range map[int]*uint64{0: &out.RxBytes, 2: &out.RxErrors, 8: &out.TxBytes, 10: &out.TxErrors} {
			n, err := strconv.ParseUint(fields[i], 10, 64)
			if err != nil {
				return nil, fmt.Errorf("net/dev: %w", err)
			}
			*into += n
		}
	}
	return out, nil
}

// tick is the unit of /proc/stat: USER_HZ is 100 on every architecture we run on.
const tick = 10 * time.Millisecond

// parseCPUTime reads the first line of /proc/stat: the time that any CPU did not idle.
func parseCPUTime(text string) (time.Duration, error) {
	line, _, _ := strings.Cut(text, "\n")
	fields := strings.Fields(line)
	// cpu user nice system idle iowait irq softirq steal guest guest_nice; the last two
	// are in user and nice already.
	if len(fields) < 9 || fields[0] != "cpu" {
		return 0, fmt.Errorf("stat: %.80q", line)
	}
	var sum int64
	for i, f := range fields[1:9] {
		if i == 3 || i == 4 || i == 7 {
			continue
		}
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("stat: %w", err)
		}
		sum += n
	}
	return time.Duration(sum) * tick, nil
}

// hasKey reads a capability bitmap of sysfs: words of 64 bits in hexadecimal, the
// highest first.
func hasKey(bitmap string, key int) bool {
	words := strings.Fields(bitmap)
	i := len(words) - 1 - key/64
	if i < 0 {
		return false
	}
	word, err := strconv.ParseUint(words[i], 16, 64)
	return err == nil && word>>(key%64)&1 == 1
}
