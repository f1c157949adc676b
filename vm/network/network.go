// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"

	"github.com/containers/gvisor-tap-vsock/pkg/types"
	"github.com/containers/gvisor-tap-vsock/pkg/virtualnetwork"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"
)

// The machine's side of its network, as the guest agent is told to set it.
const (
	// Address is the machine's, with the length of the prefix.
	Address = "10.0.2.15/24"
	// Gateway is the way out.
	Gateway = "10.0.2.2"
	// Nameserver resolves names by the host's resolver: addresses of IPv4 only, and no names
	// without a dot that only the host's own files know.
	Nameserver = "10.0.2.3"
	// MTU of the device: what the virtio device has unless told otherwise.
	MTU = 1500
)

// gatewayMAC answers for all addresses but the machine's.
const gatewayMAC = "52:54:00:f1:4b:02"

// Socket buffers. Apple's documentation of VZFileHandleNetworkDeviceAttachment asks for
// a receive buffer of at least twice, better four times the send buffer.
const (
	sendBuffer    = 1 << 20
	receiveBuffer = 4 * sendBuffer
)

// Network is the network of one machine. The stack below it has no end of its own: a
// Network ends with its process, and Close only cuts the machine off.
type Network struct {
	guest *os.File
	host  *frames
	done  chan struct{}
	close sync.Once
}

// Open makes a network for a machine whose device has the address mac. Nothing is
// reached yet until the guest end is given to a machine.
func Open(mac net.HardwareAddr) (*Network, error) {
	n, err := open(mac)
	if err != nil {
		return nil, fmt.Errorf("open network: %w", err)
	}
	return n, nil
}

func open(mac net.HardwareAddr) (*Network, error) {
	if len(mac) != 6 {
		return nil, fmt.Errorf("MAC address %q, want 6 bytes", mac)
	}
	// The library speaks of refused connections and the like at every level.
	logrus.SetOutput(io.Discard)
	stack, err := virtualnetwork.New(&types.Configuration{
		MTU:    MTU,
		Subnet: "10.0.2.0/24",
		// The stack listens for names on its own address, and answers for the gateway's.
		GatewayIP:         Nameserver,
		GatewayVirtualIPs: []string{Gateway},
		GatewayMacAddress: gatewayMAC,
		DHCPStaticLeases:  map[string]string{"10.0.2.15": mac.String()},
		Protocol:          types.VfkitProtocol,
	})
	if err != nil {
		return nil, err
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
	if err != nil {
		return nil, err
	}
	guest := os.NewFile(uintptr(fds[0]), "guest's network")
	host := os.NewFile(uintptr(fds[1]), "host's end of a network")
	defer host.Close()
	for _, fd := range fds {
		unix.CloseOnExec(fd)
		err = errors.Join(err,
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, sendBuffer),
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer))
	}
	if err != nil {
		guest.Close()
		return nil, err
	}
	conn, err := net.FileConn(host)
	if err != nil {
		guest.Close()
		return nil, err
	}
	n := &Network{guest: guest, host: &frames{Conn: conn, mac: mac}, done: make(chan struct{})}
	go func() {
		defer close(n.done)
		_ = stack.AcceptVfkit(context.Background(), n.host) // its end is that of the socket
	}()
	return n, nil
}

// Guest is the end of the network that a machine is given: a connected datagram socket,
// one frame a message. It stays the Network's to close.
func (n *Network) Guest() *os.File { return n.guest }

// Close cuts the machine off. It is idempotent.
func (n *Network) Close() error {
	n.close.Do(func() {
		_ = n.host.Close()
		<-n.done
		_ = n.guest.Close()
	})
	return nil
}
