// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package network

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"os"
	"syscall"
	"time"
)

// patience is how long a frame waits for a machine to take it: a paused one takes none,
// and a frame that is dropped is sent again, as on any cable.
const patience = 20 * time.Millisecond

// frames is the host's end of a machine's network, without what a guest could hurt it by.
type frames struct {
	net.Conn
	mac net.HardwareAddr
}

// Read returns the next frame that is acceptable.
func (f *frames) Read(b []byte) (int, error) {
	for {
		n, err := f.Conn.Read(b)
		if err != nil {
			return 0, err
		}
		if acceptable(b[:n], f.mac) {
			return n, nil
		}
	}
}

// Write hands a frame to the machine, or drops it.
func (f *frames) Write(b []byte) (int, error) {
	_ = f.Conn.SetWriteDeadline(time.Now().Add(patience))
	_, err := f.Conn.Write(b)
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, syscall.ENOBUFS), errors.Is(err, syscall.EAGAIN), errors.Is(err, syscall.EMSGSIZE):
		return len(b), nil
	case err != nil:
		return 0, err
	}
	return len(b), nil
}

// Layout of an Ethernet frame and of the IPv4 header in it (IEEE 802.3, RFC 791).
const (
	sourceAt      = 6
	typeAt        = 12
	headerBytes   = 14
	destinationAt = headerBytes + 16
	ipv4Bytes     = headerBytes + 20
	typeIPv4      = 0x0800
)

// acceptable tells whether a frame may go to the stack: a whole header, sent from the
// machine's own address (the stack remembers every address it sees), and not to an
// address that means the host itself when the host dials it: 0.0.0.0/8 and 127.0.0.0/8
// ("this host", RFC 1122 section 3.2.1.3).
func acceptable(frame []byte, mac net.HardwareAddr) bool {
	if len(frame) < headerBytes || len(frame) > headerBytes+MTU {
		return false
	}
	if !bytes.Equal(frame[sourceAt:typeAt], mac) {
		return false
	}
	if binary.BigEndian.Uint16(frame[typeAt:]) != typeIPv4 {
		return true
	}
	if len(frame) < ipv4Bytes {
		return false
	}
	first := frame[destinationAt]
	return first != 0 && first != 127
}
