// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"testing"
	"time"
)

var mac = net.HardwareAddr{0x52, 0x54, 0, 0xf1, 0x4b, 1}

// frame is an Ethernet frame from a machine.
func frame(from net.HardwareAddr, kind uint16, payload []byte) []byte {
	f := append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, from...)
	f = binary.BigEndian.AppendUint16(f, kind)
	return append(f, payload...)
}

// packet is an IPv4 header with a destination.
func packet(a, b, c, d byte) []byte {
	p := make([]byte, 20)
	p[0] = 0x45
	copy(p[16:], []byte{a, b, c, d})
	return p
}

func TestAcceptable(t *testing.T) {
	other := net.HardwareAddr{2, 0, 0, 0, 0, 1}
	for name, c := range map[string]struct {
		frame []byte
		want  bool
	}{
		"empty":              {nil, false},
		"half a header":      {frame(mac, 0, nil)[:13], false},
		"ARP":                {frame(mac, 0x0806, make([]byte, 28)), true},
		"another sender":     {frame(other, 0x0806, make([]byte, 28)), false},
		"IPv4":               {frame(mac, typeIPv4, packet(192, 0, 2, 1)), true},
		"half an IPv4":       {frame(mac, typeIPv4, packet(192, 0, 2, 1)[:19]), false},
		"to the loopback":    {frame(mac, typeIPv4, packet(127, 0, 0, 1)), false},
		"to this host":       {frame(mac, typeIPv4, packet(0, 0, 0, 0)), false},
		"as long as allowed": {frame(mac, 0x86dd, make([]byte, MTU)), true},
		"too long":           {frame(mac, 0x86dd, make([]byte, MTU+1)), false},
	} {
		if got := acceptable(c.frame, mac); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

func FuzzAcceptable(f *testing.F) {
	f.Add(frame(mac, typeIPv4, packet(10, 0, 2, 2)))
	f.Fuzz(func(t *testing.T, b []byte) {
		if acceptable(b, mac) && len(b) < headerBytes {
			t.Error("less than a header is accepted")
		}
	})
}

// guest is a machine's side of a network.
func guest(t *testing.T) (net.Conn, *Network) {
	t.Helper()
	n, err := Open(mac)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.FileConn(n.Guest())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		if err := errors.Join(n.Close(), n.Close()); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return conn, n
}

// arp asks for the owner of an address and returns who answers.
func arp(t *testing.T, conn net.Conn, address [4]byte) net.HardwareAddr {
	t.Helper()
	request := []byte{0, 1, 8, 0, 6, 4, 0, 1}
	request = append(request, mac...)
	request = append(request, 10, 0, 2, 15, 0, 0, 0, 0, 0, 0)
	request = append(request, address[:]...)
	if _, err := conn.Write(frame(mac, 0x0806, request)); err != nil {
		t.Fatal(err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 2048)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		if b := buf[:n]; n >= 42 && binary.BigEndian.Uint16(b[12:]) == 0x0806 && b[21] == 2 && bytes.Equal(b[28:32], address[:]) {
			return net.HardwareAddr(bytes.Clone(b[22:28]))
		}
	}
}

// Gateway and nameserver answer, also after frames that would have hurt.
func TestAnswers(t *testing.T) {
	conn, _ := guest(t)
	for _, bad := range [][]byte{{1}, frame(mac, typeIPv4, nil), frame(net.HardwareAddr{2, 2, 2, 2, 2, 2}, 0x0806, make([]byte, 28))} {
		if _, err := conn.Write(bad); err != nil {
			t.Fatal(err)
		}
	}
	for _, address := range [][4]byte{{10, 0, 2, 2}, {10, 0, 2, 3}} {
		if got := arp(t, conn, address); got.String() != gatewayMAC {
			t.Errorf("%v is at %s, want %s", address, got, gatewayMAC)
		}
	}
}

// A machine that takes no frames, as a paused one, does not stop its network.
func TestStandsStill(t *testing.T) {
	conn, n := guest(t)
	began := time.Now()
	for range 100_000 { // more than a socket takes, or as long as the test may
		if _, err := n.host.Write(frame(mac, 0x0806, make([]byte, 1000))); err != nil {
			t.Fatal(err)
		}
		if time.Since(began) > time.Second {
			break // it has waited for a full socket about fifty times
		}
	}
	buf := make([]byte, 2048)
	if err := conn.SetReadDeadline(time.Now().Add(time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := conn.Read(buf); errors.Is(err, os.ErrDeadlineExceeded) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if got := arp(t, conn, [4]byte{10, 0, 2, 2}); got.String() != gatewayMAC {
		t.Errorf("afterwards the gateway is at %s", got)
	}
}
