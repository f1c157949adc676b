// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

func portPod(ports ...corev1.ContainerPort) *corev1.Pod {
	return &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Ports: ports}}}}
}

func TestHostPorts(t *testing.T) {
	always := corev1.ContainerRestartPolicyAlways
	pod := portPod(
		corev1.ContainerPort{ContainerPort: 80},
		corev1.ContainerPort{ContainerPort: 80, HostPort: 8080, HostIP: "::ffff:192.0.2.1"},
		corev1.ContainerPort{ContainerPort: 53, HostPort: 5353, Protocol: corev1.ProtocolUDP},
	)
	pod.Spec.InitContainers = []corev1.Container{
		{Name: "once", Ports: []corev1.ContainerPort{{ContainerPort: 1, HostPort: 1}}},
		{Name: "sidecar", RestartPolicy: &always, Ports: []corev1.ContainerPort{{ContainerPort: 2, HostPort: 2, HostIP: "2001:db8::1"}}},
	}
	var got []string
	for _, p := range hostPorts(pod) {
		got = append(got, fmt.Sprintf("%s>%d", p, p.container))
	}
	if want := "2001:db8::1:2/TCP>2 192.0.2.1:8080/TCP>80 5353/UDP>53"; strings.Join(got, " ") != want {
		t.Errorf("ports are %q, want %q", got, want)
	}
	if f := unsupportedPorts(portPod(corev1.ContainerPort{HostPort: 1, Protocol: corev1.ProtocolSCTP})); len(f) != 1 || !strings.Contains(f[0], "spec.containers[0].ports[0].hostPort") {
		t.Errorf("faults are %q", f)
	}
	if f := unsupportedPorts(pod); len(f) != 0 {
		t.Errorf("faults are %q", f)
	}
}

func TestHostPortClashes(t *testing.T) {
	port := func(ip string, protocol corev1.Protocol, number int32) hostPort {
		return hostPorts(portPod(corev1.ContainerPort{ContainerPort: 1, HostPort: number, HostIP: ip, Protocol: protocol}))[0]
	}
	for _, tt := range []struct {
		a, b hostPort
		want bool
	}{
		{port("", "TCP", 80), port("", "TCP", 80), true},
		{port("", "TCP", 80), port("", "TCP", 81), false},
		{port("", "TCP", 80), port("", "UDP", 80), false},
		{port("", "TCP", 80), port("127.0.0.1", "TCP", 80), true},
		{port("0.0.0.0", "TCP", 80), port("127.0.0.1", "TCP", 80), true},
		{port("0.0.0.0", "TCP", 80), port("::1", "TCP", 80), true}, // the scheduler's rule
		{port("127.0.0.1", "TCP", 80), port("127.0.0.2", "TCP", 80), false},
		{port("127.0.0.1", "TCP", 80), port("127.0.0.1", "", 80), true},
		{port("::", "TCP", 80), port("::1", "TCP", 80), true},
		{port("::", "TCP", 80), port("127.0.0.1", "TCP", 80), false},
	} {
		if got := tt.a.clashes(tt.b); got != tt.want {
			t.Errorf("%s and %s: %v", tt.a, tt.b, got)
		}
		if got := tt.b.clashes(tt.a); got != tt.want {
			t.Errorf("%s and %s: %v", tt.b, tt.a, got)
		}
	}
}

// freeHostPort is a port that was free a moment ago.
func freeHostPort(t *testing.T) int32 {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return int32(l.Addr().(*net.TCPAddr).Port)
}

// half is one end of a connection that can say that it sends no more.
func tcpPair(t *testing.T) (a, b net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err = net.Dial("tcp4", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if b, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	return a, b
}

// What comes to a port of the host reaches the machine, both ways and to the end of each;
// and the port is free again when it is over.
func TestForwardTCP(t *testing.T) {
	number := freeHostPort(t)
	dials := make(chan int, 10)
	refuse := atomic.Bool{}
	f := newPortForwarder(portPod(corev1.ContainerPort{ContainerPort: 80, HostPort: number}), "127.0.0.1", func(_ context.Context, port int, udp bool) (net.Conn, error) {
		dials <- port
		if refuse.Load() || udp {
			return nil, errors.New("nobody listens")
		}
		inside, machine := tcpPair(t)
		go func() { // the program: it answers when it has heard everything
			defer machine.Close()
			all, _ := io.ReadAll(machine)
			_, _ = machine.Write(bytes.ToUpper(all))
		}()
		return inside, nil
	}, slog.New(slog.DiscardHandler))
	if err := f.open(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := f.open(t.Context()); err != nil { // nothing is left to open
		t.Fatal(err)
	}
	address := fmt.Sprintf("127.0.0.1:%d", number)
	c, err := net.Dial("tcp4", address)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = c.Write([]byte("hello"))
	_ = c.(*net.TCPConn).CloseWrite()
	if all, err := io.ReadAll(c); err != nil || string(all) != "HELLO" {
		t.Errorf("answer is %q, %v", all, err)
	}
	if port := <-dials; port != 80 {
		t.Errorf("port %d of the machine was dialled", port)
	}

	refuse.Store(true)
	if c, err = net.Dial("tcp4", address); err == nil { // else the reset was quicker than the dial
		_, err = c.Read(make([]byte, 1))
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a port that nobody listens on in the machine: %v, want a reset", err)
	}
	refuse.Store(false)

	// Another pod's forwarder has to wait for the port.
	other := newPortForwarder(portPod(corev1.ContainerPort{ContainerPort: 80, HostPort: number, HostIP: "127.0.0.1"}), "192.0.2.1", nil, f.log)
	err = other.open(t.Context())
	var taken *hostPortError
	if !errors.As(err, &taken) || !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("a port that is taken: %v", err)
	}

	// A connection outlives the listening, not the forwarder.
	if c, err = net.Dial("tcp4", address); err != nil {
		t.Fatal(err)
	}
	<-dials
	<-dials
	f.deafen()
	if err := other.open(t.Context()); err != nil {
		t.Errorf("after the port is free: %v", err)
	}
	other.close()
	f.close()
	if _, err := io.ReadAll(c); err == nil {
		// A close in order or a reset: what counts is that it ended.
		t.Log("closed in order")
	}
	if err := f.open(t.Context()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("opened after it was closed: %v", err)
	}
}

// datagrams is the machine's end of a flow: it answers each datagram.
type datagrams struct {
	net.Conn
	answers chan []byte
	closed  chan struct{}
}

func (d *datagrams) Write(b []byte) (int, error) {
	d.answers <- append([]byte("re: "), b...)
	return len(b), nil
}

func (d *datagrams) Read(b []byte) (int, error) {
	select {
	case a := <-d.answers:
		return copy(b, a), nil
	case <-d.closed:
		return 0, io.EOF
	}
}

func (d *datagrams) Close() error {
	select {
	case <-d.closed:
	default:
		close(d.closed)
	}
	return nil
}

// Each peer has a flow of its own; their number is bounded.
func TestForwardUDP(t *testing.T) {
	number := freeHostPort(t)
	var flows atomic.Int32
	f := newPortForwarder(portPod(corev1.ContainerPort{ContainerPort: 53, HostPort: number, Protocol: corev1.ProtocolUDP}), "127.0.0.1", func(_ context.Context, port int, udp bool) (net.Conn, error) {
		if !udp || port != 53 {
			t.Errorf("dialled port %d, udp %v", port, udp)
		}
		flows.Add(1)
		return &datagrams{answers: make(chan []byte, 8), closed: make(chan struct{})}, nil
	}, slog.New(slog.DiscardHandler))
	if err := f.open(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer f.close()
	ask := func(c net.Conn, text string) {
		t.Helper()
		if _, err := c.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
		_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
		buf := make([]byte, 100)
		if n, err := c.Read(buf); err != nil || string(buf[:n]) != "re: "+text {
			t.Fatalf("answer is %q, %v", buf[:n], err)
		}
	}
	dial := func() net.Conn {
		c, err := net.Dial("udp4", fmt.Sprintf("127.0.0.1:%d", number))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	first := dial()
	ask(first, "one")
	ask(first, "two")
	if n := flows.Load(); n != 1 {
		t.Errorf("%d flows for one peer", n)
	}
	for i := range maxFlows + 3 {
		ask(dial(), fmt.Sprint(i))
	}
	if n := flows.Load(); n != maxFlows+4 {
		t.Errorf("%d flows", n)
	}
	ask(first, "again") // its flow gave way to others: it gets another
	if n := flows.Load(); n != maxFlows+5 {
		t.Errorf("%d flows", n)
	}
}

// The connections through one port are bounded: a further one waits for its turn.
func TestForwardIsBounded(t *testing.T) {
	number := freeHostPort(t)
	dialled := make(chan struct{}, maxPortConnections+2)
	f := newPortForwarder(portPod(corev1.ContainerPort{ContainerPort: 80, HostPort: number}), "127.0.0.1", func(context.Context, int, bool) (net.Conn, error) {
		inside, machine := tcpPair(t)
		_, _ = machine.Write([]byte("hi\n"))
		t.Cleanup(func() { _ = machine.Close() })
		dialled <- struct{}{}
		return inside, nil
	}, slog.New(slog.DiscardHandler))
	if err := f.open(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer f.close()
	var conns []net.Conn
	for range maxPortConnections + 1 {
		c, err := net.Dial("tcp4", fmt.Sprintf("127.0.0.1:%d", number))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		conns = append(conns, c)
	}
	for range maxPortConnections {
		<-dialled
	}
	select {
	case <-dialled:
		t.Fatal("one connection too many")
	default:
	}
	last := conns[len(conns)-1]
	_ = conns[0].Close()
	_ = last.SetReadDeadline(time.Now().Add(10 * time.Second))
	if line, err := bufio.NewReader(last).ReadString('\n'); err != nil || line != "hi\n" {
		t.Errorf("the one that waited: %q, %v", line, err)
	}
}
