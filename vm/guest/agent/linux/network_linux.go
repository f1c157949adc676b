// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package linux

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// deviceName is what the kernel calls the first network device; nothing renames it.
const deviceName = "eth0"

func loopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("loopback: %w", err)
	}
	return nil
}

// setNetwork gives the machine's one interface the configuration, nothing more and
// nothing of an earlier one. With nil it is taken down.
func setNetwork(n *network) error {
	link, err := netlink.LinkByName(deviceName)
	var missing netlink.LinkNotFoundError
	switch {
	case errors.As(err, &missing) && n == nil:
		return replaceResolvConf(network{})
	case err != nil:
		return fmt.Errorf("network device %s: %w", deviceName, err)
	}
	if n == nil {
		if err := netlink.LinkSetDown(link); err != nil {
			return fmt.Errorf("take %s down: %w", deviceName, err)
		}
		return replaceResolvConf(network{})
	}
	if n.mtu != 0 && n.mtu != link.Attrs().MTU {
		if err := netlink.LinkSetMTU(link, n.mtu); err != nil {
			return fmt.Errorf("set MTU of %s to %d: %w", deviceName, n.mtu, err)
		}
	}
	if err := setAddress(link, n.address); err != nil {
		return err
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring %s up: %w", deviceName, err)
	}
	if err := flushNeighbours(link); err != nil {
		return err
	}
	if n.gateway.IsValid() {
		route := &netlink.Route{LinkIndex: link.Attrs().Index, Gw: net.IP(n.gateway.AsSlice())}
		if err := netlink.RouteReplace(route); err != nil {
			return fmt.Errorf("route by %s: %w", n.gateway, err)
		}
	}
	return replaceResolvConf(*n)
}

// setAddress removes every other global address; the routes by them go with them.
func setAddress(link netlink.Link, want netip.Prefix) error {
	have, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("addresses of %s: %w", deviceName, err)
	}
	wanted := &net.IPNet{IP: net.IP(want.Addr().AsSlice()), Mask: net.CIDRMask(want.Bits(), want.Addr().BitLen())}
	for _, a := range have {
		if a.Scope == unix.RT_SCOPE_LINK || a.IPNet.String() == wanted.String() {
			continue
		}
		if err := netlink.AddrDel(link, &a); err != nil {
			return fmt.Errorf("remove address %s of %s: %w", a.IPNet, deviceName, err)
		}
	}
	if err := netlink.AddrReplace(link, &netlink.Addr{IPNet: wanted}); err != nil {
		return fmt.Errorf("give %s the address %s: %w", deviceName, want, err)
	}
	return nil
}

// flushNeighbours forgets the hardware addresses of the network that the machine was
// saved in.
func flushNeighbours(link netlink.Link) error {
	have, err := netlink.NeighList(link.Attrs().Index, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("neighbours of %s: %w", deviceName, err)
	}
	for _, n := range have {
		if n.State&(netlink.NUD_PERMANENT|netlink.NUD_NOARP) != 0 {
			continue
		}
		if err := netlink.NeighDel(&n); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("forget neighbour %s of %s: %w", n.IP, deviceName, err)
		}
	}
	return nil
}

func replaceResolvConf(n network) error {
	if err := replaceFile(resolvFile, n.resolvConf()); err != nil {
		return fmt.Errorf("write %s: %w", resolvFile, err)
	}
	return nil
}
