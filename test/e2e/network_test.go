// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"net"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
	corev1 "k8s.io/api/core/v1"
)

// A container reaches the world outside of its machine. Here the world is this host:
// in a machine's own network 10.0.2.2 is the host's loopback.
func TestOutbound(t *testing.T) {
	ns := namespace(t)
	_, port, err := net.SplitHostPort(served.Address)
	if err != nil {
		t.Fatal(err)
	}
	apply(t, podManifest(ns, "caller", served.Busybox, "wget", "-q", "-O", "-", "http://10.0.2.2:"+port+"/v2/busybox/tags/list"))
	waitPod(t, ns, "caller", "has run", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodSucceeded })
	if out := kubectl(t, "logs", "-n", ns, "caller"); !strings.Contains(out, `"busybox"`) {
		t.Errorf("the registry answered %q", out)
	}
}

// Datagrams find their way as well, and with them the questions that programs ask name servers. Here
// the world is this host: a server that echoes, and one that knows a single name.
func TestOutboundDatagrams(t *testing.T) {
	ns := namespace(t)
	echo := serveDatagrams(t, func(question []byte) []byte { return append([]byte("you said "), question...) })
	names := serveDatagrams(t, answerName)
	apply(t, podManifest(ns, "asker", echoImage(t), "sh", "-c",
		"udpecho ask 10.0.2.2:"+echo+" hello; nslookup -type=a registry.example 10.0.2.2:"+names))
	waitPod(t, ns, "asker", "has run", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodSucceeded })
	out := kubectl(t, "logs", "-n", ns, "asker")
	if !strings.Contains(out, "you said hello") || !strings.Contains(out, "192.0.2.77") {
		t.Errorf("the servers answered %q", out)
	}
}

// serveDatagrams answers datagrams on loopback and returns the port.
func serveDatagrams(t *testing.T, answer func([]byte) []byte) string {
	t.Helper()
	conn, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		buf := make([]byte, 2048)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return // closed by the cleanup
			}
			if reply := answer(buf[:n]); reply != nil {
				_, _ = conn.WriteTo(reply, from)
			}
		}
	})
	t.Cleanup(func() { _ = conn.Close(); serving.Wait() })
	_, port, err := net.SplitHostPort(conn.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// answerName is a name server's answer: every name has the address 192.0.2.77. Nil for what is no question.
func answerName(question []byte) []byte {
	var m dnsmessage.Message
	if err := m.Unpack(question); err != nil || len(m.Questions) != 1 {
		return nil
	}
	m.Response = true
	q := m.Questions[0]
	if q.Type == dnsmessage.TypeA {
		m.Answers = []dnsmessage.Resource{{
			Header: dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: 60},
			Body:   &dnsmessage.AResource{A: [4]byte{192, 0, 2, 77}},
		}}
	}
	reply, err := m.Pack()
	if err != nil {
		return nil
	}
	return reply
}
