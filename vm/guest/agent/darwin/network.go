// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package darwin

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/vk-firkin/vk-firkin/vm/guest/agent"
)

// service is the name of the agent's network service in configd's dynamic store. Services
// that a program keeps there, and not in the preferences, end with the boot.
const service = "State:/Network/Service/dev.firkin.agent/"

// network is agent.Network, decoded.
type network struct {
	address netip.Prefix
	gateway netip.Addr // the zero Addr for none
	dns     resolver
	mtu     int // 0 for the device's own
}

// resolver is how names are looked up.
type resolver struct {
	servers []string
	search  []string
}

// parseNetwork decodes n; nil is none.
func parseNetwork(n *agent.Network) (*network, error) {
	if n == nil {
		return nil, nil //nolint:nilnil // no network is a configuration
	}
	out := &network{mtu: n.MTU}
	var err error
	if out.address, err = netip.ParsePrefix(n.Address); err != nil {
		return nil, fmt.Errorf("network address: %w", err)
	}
	if n.Gateway != "" {
		if out.gateway, err = netip.ParseAddr(n.Gateway); err != nil {
			return nil, fmt.Errorf("network gateway: %w", err)
		}
		if !out.address.Contains(out.gateway) {
			return nil, fmt.Errorf("network gateway %s is not in %s", out.gateway, out.address.Masked())
		}
	}
	for _, s := range n.Nameservers {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return nil, fmt.Errorf("network nameserver: %w", err)
		}
		out.dns.servers = append(out.dns.servers, a.String())
	}
	if n.MTU != 0 && (n.MTU < 576 || n.MTU > 65535) {
		return nil, fmt.Errorf("network MTU %d, want 576 to 65535", n.MTU)
	}
	return out, nil
}

// family is how ifconfig and route call an address's.
func family(a netip.Addr) string {
	if a.Is4() {
		return "inet"
	}
	return "inet6"
}

// mask is a prefix length as ifconfig takes it.
func mask(p netip.Prefix) string { return net.IP(net.CIDRMask(p.Bits(), p.Addr().BitLen())).String() }

// setNetwork gives the machine's one device the configuration, and nothing of an earlier
// one. With nil it is taken down. mu is held.
//
// Address and route by ifconfig and route is what Tailscale's test agent does in a macOS
// guest (cmd/tta/ipassign_darwin.go); a DHCP client on the device would take the address
// away again, so that the image has none (docs/macos-guests.md). The service in the dynamic
// store is what makes programs ask these nameservers, as VPN clients do it.
func (s *System) setNetwork(ctx context.Context, n *network) error {
	dev := s.opts.Interface
	ifconfig := func(args ...string) (string, error) {
		return s.opts.Run(ctx, "", "/sbin/ifconfig", append([]string{dev}, args...)...)
	}
	if n == nil {
		s.dns = resolver{}
		// There may be no device at all.
		if _, err := ifconfig("down"); err != nil && !strings.Contains(err.Error(), "does not exist") {
			return err
		}
		return s.publish(ctx, nil)
	}
	if n.mtu != 0 {
		if _, err := ifconfig("mtu", strconv.Itoa(n.mtu)); err != nil {
			return err
		}
	}
	want := n.address.Addr()
	set := []string{"inet", want.String(), "netmask", mask(n.address), "up"}
	if !want.Is4() {
		set = []string{"inet6", want.String(), "prefixlen", strconv.Itoa(n.address.Bits()), "up"}
	}
	if _, err := ifconfig(set...); err != nil {
		return err
	}
	text, err := ifconfig()
	if err != nil {
		return err
	}
	for _, a := range parseAddresses(text) {
		if a == want || a.IsLinkLocalUnicast() && !a.Is4() {
			continue
		}
		if _, err := ifconfig(family(a), a.String(), "delete"); err != nil {
			return err
		}
	}
	// The neighbours of the network that the machine was saved in, when there are any.
	if _, err := s.opts.Run(ctx, "", "/usr/sbin/arp", "-d", "-i", dev, "-a"); err != nil {
		s.opts.Logger.Debug("Forgetting neighbours failed", "error", err)
	}
	if n.gateway.IsValid() {
		fam := "-" + family(n.gateway)
		if _, err := s.opts.Run(ctx, "", "/sbin/route", "-n", "delete", fam, "default"); err != nil {
			s.opts.Logger.Debug("There was no default route", "error", err)
		}
		if _, err := s.opts.Run(ctx, "", "/sbin/route", "-n", "add", fam, "default", n.gateway.String()); err != nil {
			return err
		}
	}
	s.dns = n.dns
	return s.publish(ctx, n)
}

// publish tells configd of the network, and of nothing with nil. mu is held.
func (s *System) publish(ctx context.Context, n *network) error {
	// What is not there cannot be removed, and scutil says so.
	if _, err := s.opts.Run(ctx, "remove "+service+"IPv4\nremove "+service+"DNS\nquit\n", scutil); err != nil {
		return err
	}
	if n == nil {
		return nil
	}
	if n.address.Addr().Is4() {
		var b strings.Builder
		fmt.Fprintf(&b, "d.init\nd.add Addresses * %s\nd.add SubnetMasks * %s\nd.add InterfaceName %s\n", n.address.Addr(), mask(n.address), s.opts.Interface)
		if n.gateway.IsValid() {
			fmt.Fprintf(&b, "d.add Router %s\n", n.gateway)
		}
		if err := s.store(ctx, b.String(), "IPv4", n.address.Addr().String()); err != nil {
			return err
		}
	}
	return s.publishDNS(ctx, n.dns)
}

// publishDNS sets the resolver. mu is held.
func (s *System) publishDNS(ctx context.Context, r resolver) error {
	if len(r.servers) == 0 {
		return nil
	}
	text := "d.init\nd.add ServerAddresses * " + strings.Join(r.servers, " ") + "\n"
	if len(r.search) > 0 {
		text += "d.add SearchDomains * " + strings.Join(r.search, " ") + "\n"
	}
	return s.store(ctx, text, "DNS", r.servers...)
}

const scutil = "/usr/sbin/scutil"

// store sets an entry of the service and reads it back: scutil ends with success whatever
// became of its input.
func (s *System) store(ctx context.Context, dictionary, name string, want ...string) error {
	out, err := s.opts.Run(ctx, dictionary+"set "+service+name+"\nshow "+service+name+"\nquit\n", scutil)
	if err != nil {
		return err
	}
	for _, w := range want {
		if !strings.Contains(out, w) {
			return fmt.Errorf("configd did not take the entry %s: %.200q", name, out)
		}
	}
	return nil
}

// parseAddresses reads the addresses that ifconfig prints of a device.
func parseAddresses(text string) []netip.Addr {
	var out []netip.Addr
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 2 || f[0] != "inet" && f[0] != "inet6" {
			continue
		}
		name, _, _ := strings.Cut(f[1], "%")
		if a, err := netip.ParseAddr(name); err == nil {
			out = append(out, a)
		}
	}
	return out
}

// maxHostname is what Linux allows; macOS allows more.
const maxHostname = 64

func checkHostname(name string) error {
	if name == "" || len(name) > maxHostname || strings.HasPrefix(name, "-") {
		return fmt.Errorf("hostname %.100q: want 1 to %d bytes that do not begin with a dash", name, maxHostname)
	}
	for _, c := range []byte(name) {
		if c <= ' ' || c > '~' || c == '/' {
			return fmt.Errorf("hostname %q: want printable characters without blanks and slashes", name)
		}
	}
	return nil
}

// setHostname sets the kernel's, at once, and those that configd would set it from again:
// HostName, and LocalHostName, by which Bonjour finds clones to have the same name. mu is
// held.
func (s *System) setHostname(ctx context.Context, name string) error {
	if _, err := s.opts.Run(ctx, "", "/bin/hostname", name); err != nil {
		return err
	}
	if _, err := s.opts.Run(ctx, "", scutil, "--set", "HostName", name); err != nil {
		return err
	}
	_, err := s.opts.Run(ctx, "", scutil, "--set", "LocalHostName", localName(name))
	return err
}

// localName makes a label of a name: Bonjour takes letters, digits and dashes.
func localName(name string) string {
	label := strings.Trim(strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, name), "-")
	if label == "" {
		return "firkin"
	}
	return label[:min(len(label), 63)]
}

// SetupPod implements native.Platform: what a container of Linux finds mounted over its
// files is the machine's own here.
func (s *System) SetupPod(ctx context.Context, pod agent.Pod) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.mark(); err != nil {
		return err
	}
	if p := s.pod; p != nil && p.Hostname == pod.Hostname && bytes.Equal(p.Hosts, pod.Hosts) && bytes.Equal(p.ResolvConf, pod.ResolvConf) {
		return nil
	}
	if err := checkHostname(pod.Hostname); err != nil {
		return fmt.Errorf("%w: %w", agent.ErrInvalid, err)
	}
	if have, err := s.opts.Kernel.Hostname(); err != nil || have != pod.Hostname {
		if err := s.setHostname(ctx, pod.Hostname); err != nil {
			return fmt.Errorf("set hostname: %w", err)
		}
	}
	if len(pod.Hosts) > 0 {
		if have, err := os.ReadFile(s.opts.HostsFile); err != nil || !bytes.Equal(have, pod.Hosts) {
			if err := replaceFile(s.opts.HostsFile, string(pod.Hosts)); err != nil {
				return fmt.Errorf("write hosts: %w", err)
			}
		}
	}
	if len(pod.ResolvConf) > 0 {
		r := parseResolvConf(string(pod.ResolvConf))
		if len(r.servers) == 0 {
			r.servers = s.dns.servers
		}
		if err := s.publishDNS(ctx, r); err != nil {
			return fmt.Errorf("set resolver: %w", err)
		}
	}
	kept := pod
	kept.Hosts, kept.ResolvConf = bytes.Clone(pod.Hosts), bytes.Clone(pod.ResolvConf)
	s.pod = &kept
	return nil
}

// parseResolvConf reads nameservers and search domains of resolv.conf(5); options are for
// resolvers that macOS does not have. What would be more than a word for scutil is left out.
func parseResolvConf(text string) resolver {
	var r resolver
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		switch f[0] {
		case "nameserver":
			if a, err := netip.ParseAddr(f[1]); err == nil {
				r.servers = append(r.servers, a.String())
			}
		case "search", "domain":
			r.search = slices.DeleteFunc(f[1:], func(d string) bool {
				return strings.Trim(strings.ToLower(d), "abcdefghijklmnopqrstuvwxyz0123456789._-") != ""
			})
		}
	}
	return r
}
