// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package linux

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"sync/atomic"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vk-firkin/vk-firkin/vm/guest/agent"
)

var _ agent.AddressListener = (*System)(nil)

// ListenAddress implements agent.AddressListener. The address is that of the far end of a virtual
// cable, in a network namespace that only the listening socket keeps: on an interface of the pod's own namespace a container
// that listens on the same port of all addresses would be told that it is taken.
func (s *System) ListenAddress(ctx context.Context, address netip.AddrPort) (net.Listener, error) {
	if !address.Addr().Is4() {
		return nil, fmt.Errorf("listen at %s: %w, the machine's network has IPv4 only", address, errors.ErrUnsupported)
	}
	here, err := os.Open("/proc/self/ns/net")
	if err != nil {
		return nil, err
	}
	defer here.Close()
	name := cablePrefix + strconv.FormatUint(cables.Add(1), 36)
	type result struct {
		l   net.Listener
		err error
	}
	made := make(chan result, 1)
	onThrowawayThread(func() {
		l, err := listenBehindCable(ctx, name, address, int(here.Fd()))
		made <- result{l, err}
	})
	r := <-made
	if r.err != nil {
		return nil, fmt.Errorf("listen at %s: %w", address, r.err)
	}
	if err := routeTo(name, address.Addr()); err != nil {
		return nil, errors.Join(fmt.Errorf("listen at %s: %w", address, err), r.l.Close())
	}
	return r.l, nil
}

// cables numbers the cables, of this process and so of the machine.
var cables atomic.Uint64

// onThrowawayThread runs f on a thread that ends with it. That is never the first: what /proc tells of the process is
// that of the first, and it would not end.
func onThrowawayThread(f func()) {
	go func() {
		runtime.LockOSThread() // never unlocked by who throws it away
		if unix.Gettid() != unix.Getpid() {
			f()
			return
		}
		done := make(chan struct{})
		onThrowawayThread(func() {
			defer close(done)
			f()
		})
		<-done
		runtime.UnlockOSThread()
	}()
}

// listenBehindCable moves the calling thread to a namespace of its own, whose cable ends in the namespace near.
func listenBehindCable(ctx context.Context, name string, address netip.AddrPort, near int) (net.Listener, error) {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return nil, fmt.Errorf("make a network namespace: %w", err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "cable"
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: name, PeerNamespace: netlink.NsFd(near)}); err != nil {
		return nil, fmt.Errorf("make a cable: %w", err)
	}
	link, err := netlink.LinkByName("cable")
	if err != nil {
		return nil, fmt.Errorf("the cable's end: %w", err)
	}
	if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: host(address.Addr())}); err != nil {
		return nil, fmt.Errorf("give it the address: %w", err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return nil, fmt.Errorf("bring it up: %w", err)
	}
	// Whoever asks is at the other end, whatever its address.
	if err := netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Scope: netlink.SCOPE_LINK, Dst: &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}}); err != nil {
		return nil, fmt.Errorf("route back: %w", err)
	}
	return new(net.ListenConfig).Listen(ctx, "tcp4", address.String())
}

// routeTo leads to an address over the near end of its cable.
func routeTo(name string, addr netip.Addr) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("the near end of the cable: %w", err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring %s up: %w", name, err)
	}
	if err := netlink.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Scope: netlink.SCOPE_LINK, Dst: host(addr)}); err != nil {
		return fmt.Errorf("route over %s: %w", name, err)
	}
	return nil
}

// host is a network of one address.
func host(addr netip.Addr) *net.IPNet {
	return &net.IPNet{IP: net.IP(addr.AsSlice()), Mask: net.CIDRMask(addr.BitLen(), addr.BitLen())}
}
