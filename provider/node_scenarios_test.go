// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/vk-firkin/vk-firkin/provider"
)

// serveHello is a program in the guest that greets whoever connects: a simulated guest's
// loopback is this host's.
func serveHello(t *testing.T) int32 {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte("hello"))
			_ = c.Close()
		}
	}()
	return int32(l.Addr().(*net.TCPAddr).Port)
}

// unused is a port of this host that was free a moment ago.
func unused(t *testing.T) int32 {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return int32(l.Addr().(*net.TCPAddr).Port)
}

func (w *world) hears(port int32) {
	w.t.Helper()
	var last error
	w.eventually(fmt.Sprintf("host port %d answers", port), func() bool {
		c, err := net.DialTimeout("tcp4", fmt.Sprintf("127.0.0.1:%d", port), time.Second)
		if last = err; err != nil {
			return false
		}
		defer c.Close()
		_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
		text, err := io.ReadAll(c)
		last = fmt.Errorf("%q, %w", text, err)
		return err == nil && string(text) == "hello"
	}, func() string { return fmt.Sprint(last) })
}

func onLoopback(o *provider.Options) { o.NodeIP = "127.0.0.1" }

// A port of the host leads into the pod's machine, also for the next node process; no
// other pod gets it meanwhile, and the next one does when the pod is over.
func TestHostPortsOfPods(t *testing.T) {
	w := newWorld(t)
	inside, outside := serveHello(t), unused(t)
	server := func(name string, command ...string) *corev1.Pod {
		p := pod(name, command)
		p.Spec.Containers[0].Ports = []corev1.ContainerPort{{ContainerPort: inside, HostPort: outside}}
		return p
	}
	p := w.run(onLoopback)
	w.create(server("first", "do", "sleep 1h"))
	w.awaitPhase("first", corev1.PodRunning)
	w.hears(outside)
	w.create(server("second", "exit", "0"))
	if got := w.awaitPhase("second", corev1.PodFailed); got.Status.Reason != "NodePorts" {
		t.Errorf("status is %+v", got.Status)
	}
	p.stop()
	if c, err := net.Dial("tcp4", fmt.Sprintf("127.0.0.1:%d", outside)); err == nil {
		_ = c.Close()
		t.Error("the port is open without a node process")
	}
	w.run(onLoopback)
	w.hears(outside)
	w.create(server("third", "exit", "0"))
	if got := w.awaitPhase("third", corev1.PodFailed); got.Status.Reason != "NodePorts" {
		t.Errorf("after a restart: status is %+v", got.Status)
	}
	zero := int64(0)
	w.delete("first", &zero) // at once: its object is gone before its machine is
	w.create(server("fourth", "do", "sleep 200ms"))
	w.awaitPhase("fourth", corev1.PodSucceeded)
	w.create(server("fifth", "exit", "0")) // it has ended, its object is there
	w.awaitPhase("fifth", corev1.PodSucceeded)
	w.create(server("sixth", "graceful", "0"))
	w.awaitPhase("sixth", corev1.PodRunning)
	one := int64(1)
	w.delete("sixth", &one)
	w.awaitGone("sixth")
	w.create(server("seventh", "exit", "0"))
	w.awaitPhase("seventh", corev1.PodSucceeded)
}

// Datagrams reach a program in the machine, and its answers come back.
func TestHostPortUDP(t *testing.T) {
	w := newWorld(t)
	inside, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer inside.Close()
	go func() {
		buf := make([]byte, 100)
		for {
			n, from, err := inside.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = inside.WriteTo(append([]byte("re: "), buf[:n]...), from)
		}
	}()
	outside := unused(t)
	w.run(onLoopback)
	p := pod("udp", []string{"do", "sleep 1h"})
	p.Spec.Containers[0].Ports = []corev1.ContainerPort{{ContainerPort: int32(inside.LocalAddr().(*net.UDPAddr).Port), HostPort: outside, HostIP: "127.0.0.1", Protocol: corev1.ProtocolUDP}}
	w.create(p)
	w.awaitPhase("udp", corev1.PodRunning)
	c, err := net.Dial("udp4", fmt.Sprintf("127.0.0.1:%d", outside))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, word := range []string{"one", "two"} {
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := c.Write([]byte(word)); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 100)
		if n, err := c.Read(buf); err != nil || string(buf[:n]) != "re: "+word {
			t.Fatalf("answer is %q, %v", buf[:n], err)
		}
	}
}

// What something else on the host listens on keeps the pod waiting, says so, and is
// tried again.
func TestHostPortTakenByOthers(t *testing.T) {
	w := newWorld(t)
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	w.run(onLoopback)
	p := pod("late", []string{"do", "sleep 1h"})
	p.Spec.Containers[0].Ports = []corev1.ContainerPort{{ContainerPort: serveHello(t), HostPort: int32(l.Addr().(*net.TCPAddr).Port)}}
	w.create(p)
	w.eventually("an event", func() bool { return w.events.has("late", "HostPortConflict", "address already in use") }, nil)
	w.await("late", "waits for its port", func(p *corev1.Pod) bool {
		return p.Status.Phase == corev1.PodPending && len(p.Status.ContainerStatuses) == 1 && p.Status.ContainerStatuses[0].State.Waiting != nil
	})
	_ = l.Close()
	w.awaitPhase("late", corev1.PodRunning)
	w.hears(int32(l.Addr().(*net.TCPAddr).Port))
}

// A pod that was bound past the scheduler is refused when the node does not match, by the
// labels that the node has now.
func TestAdmissionByTheNode(t *testing.T) {
	w := newWorld(t)
	w.run()
	p := pod("elsewhere", []string{"exit", "0"})
	p.Spec.NodeSelector = map[string]string{"zone": "b"}
	w.create(p)
	if got := w.awaitPhase("elsewhere", corev1.PodFailed); got.Status.Reason != "NodeAffinity" {
		t.Errorf("status is %+v", got.Status)
	}
	n, err := w.client.CoreV1().Nodes().Get(t.Context(), nodeName, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	n.Labels["zone"] = "b"
	if _, err := w.client.CoreV1().Nodes().Update(t.Context(), n, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	p = pod("here", []string{"exit", "0"})
	p.Spec.NodeSelector = map[string]string{"zone": "b"}
	w.create(p)
	w.awaitPhase("here", corev1.PodSucceeded)
}

// A node that is shut down ends its pods by priority and tells the API; it takes no others.
func TestShutdown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		pr := w.run()
		high := int32(2_000_000_000)
		vital := pod("vital", []string{"graceful", "0"})
		vital.Spec.Priority = &high
		w.create(vital)
		w.create(pod("plain", []string{"graceful", "0"}))
		w.create(pod("stubborn", []string{"hang"}))
		w.create(pod("over", []string{"exit", "0"}))
		w.awaitPhase("over", corev1.PodSucceeded)
		for _, name := range []string{"vital", "plain", "stubborn"} {
			w.awaitPhase(name, corev1.PodRunning)
		}
		done := make(chan struct{})
		go func() { defer close(done); pr.p.Shutdown(context.Background(), 2*time.Second, time.Second) }()
		w.eventually("the node is not ready", func() bool {
			n, err := w.client.CoreV1().Nodes().Get(t.Context(), nodeName, metav1.GetOptions{})
			return err == nil && slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
				return c.Type == corev1.NodeReady && c.Status == corev1.ConditionFalse && c.Message == "node is shutting down"
			})
		}, nil)
		w.create(pod("new", []string{"exit", "0"}))
		if got := w.awaitPhase("new", corev1.PodFailed); got.Status.Reason != "NodeShutdown" {
			t.Errorf("status is %+v", got.Status)
		}
		select {
		case <-done:
		case <-time.After(patience):
			t.Fatal("the shutdown does not end")
		}
		if left := w.supply.ids(); len(left) != 0 {
			t.Errorf("machines %v are left", left)
		}
		var ended []time.Time
		for _, name := range []string{"stubborn", "plain", "vital"} {
			p, err := w.client.CoreV1().Pods("default").Get(t.Context(), name, metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if p.Status.Phase != corev1.PodFailed || p.Status.Reason != "Terminated" || p.Status.Message != "Pod was terminated in response to imminent node shutdown." {
				t.Errorf("%s: %s %s %q", name, p.Status.Phase, p.Status.Reason, p.Status.Message)
			}
			ended = append(ended, p.Status.ContainerStatuses[0].State.Terminated.FinishedAt.Time)
		}
		if ended[2].Before(ended[0].Truncate(time.Second)) {
			t.Errorf("the critical pod ended at %s, before %s", ended[2], ended[0])
		}
		if p := w.awaitPhase("over", corev1.PodSucceeded); p.Status.Reason != "" {
			t.Errorf("a pod that was over: %+v", p.Status)
		}
	})
}

// A node that is short of disk takes critical pods only.
func TestPodsUnderPressure(t *testing.T) {
	w := newWorld(t)
	w.run(func(o *provider.Options) {
		o.Node.Measure = func() (provider.Pressure, error) {
			return provider.Pressure{Disk: provider.Measured{Short: true, Message: "full"}}, nil
		}
	})
	w.create(pod("plain", []string{"exit", "0"}))
	if got := w.awaitPhase("plain", corev1.PodFailed); got.Status.Reason != "Evicted" {
		t.Errorf("status is %+v", got.Status)
	}
	high := int32(2_000_000_000)
	vital := pod("vital", []string{"exit", "0"})
	vital.Spec.Priority = &high
	w.create(vital)
	w.awaitPhase("vital", corev1.PodSucceeded)
}

// The node shows the images it has, and what it is.
func TestNodeSaysWhatItIs(t *testing.T) {
	w := newWorld(t)
	w.run(func(o *provider.Options) {
		o.NodeIP = "192.0.2.1,2001:db8::1"
		o.Node.Labels = map[string]string{"team": "a", corev1.LabelOSStable: "not for others to set"}
		o.Node.KubeletVersion, o.Node.MachineID, o.Node.SystemUUID, o.Node.BootID = "v1.36.3+firkin.dev", "m", "s", "b"
		o.Node.Images = func() []corev1.ContainerImage {
			return []corev1.ContainerImage{{Names: []string{"small"}, SizeBytes: 1}, {Names: []string{"large"}, SizeBytes: 2}}
		}
	})
	n, err := w.client.CoreV1().Nodes().Get(t.Context(), nodeName, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	info := n.Status.NodeInfo
	if info.KubeletVersion != "v1.36.3+firkin.dev" || info.MachineID != "m" || info.SystemUUID != "s" || info.BootID != "b" {
		t.Errorf("node info is %+v", info)
	}
	if len(n.Status.Images) != 2 || n.Status.Images[0].Names[0] != "large" {
		t.Errorf("images are %+v", n.Status.Images)
	}
	if n.Labels["team"] != "a" || n.Labels[corev1.LabelOSStable] != "linux" {
		t.Errorf("labels are %v", n.Labels)
	}
	want := []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.0.2.1"}, {Type: corev1.NodeInternalIP, Address: "2001:db8::1"}, {Type: corev1.NodeHostName, Address: nodeName}}
	if !slices.Equal(n.Status.Addresses, want) {
		t.Errorf("addresses are %+v", n.Status.Addresses)
	}
	p := pod("both", []string{"exit", "0"})
	w.create(p)
	got := w.awaitPhase("both", corev1.PodSucceeded)
	if got.Status.HostIP != "192.0.2.1" || len(got.Status.HostIPs) != 2 || got.Status.PodIP != "192.0.2.1" || len(got.Status.PodIPs) != 2 || got.Status.PodIPs[1].IP != "2001:db8::1" {
		t.Errorf("addresses of the pod are %+v %+v", got.Status.HostIPs, got.Status.PodIPs)
	}
}
