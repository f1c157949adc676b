// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/vk-firkin/vk-firkin/test/cluster"
	"github.com/vk-firkin/vk-firkin/vm/machinedir"
)

// A privileged container crashes its guest, the agent with it: the node sees the machine's end, its pod
// fails or runs again in a new machine by its policy, and says why.
func TestGuestCrashes(t *testing.T) {
	ns := namespace(t)
	const privileged = "    securityContext: {privileged: true}\n"
	apply(t, podManifest(ns, "never", served.Busybox, "sleep", "3600")+privileged)
	apply(t, strings.Replace(podManifest(ns, "always", served.Busybox, "sleep", "3600"), "Never", "Always", 1)+privileged)
	for _, name := range []string{"never", "always"} {
		waitRunning(t, ns, name)
		// It never answers: what it ran in is no more.
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		_ = plane.Kubectl(ctx, "exec", "-n", ns, name, "--", "sh", "-c", "echo c > /proc/sysrq-trigger").Run()
		cancel()
	}
	check := func(which string, x *corev1.ContainerStateTerminated) {
		t.Helper()
		if x == nil || x.Reason != "MachineDied" || x.ExitCode != 137 || !strings.Contains(x.Message, "Kernel panic - not syncing: sysrq triggered crash") {
			t.Errorf("%s says %+v", which, x)
		}
	}
	failed := waitPod(t, ns, "never", "has failed", refused)
	check("the pod that is not restarted", failed.Status.ContainerStatuses[0].State.Terminated)
	again := waitPod(t, ns, "always", "runs again", func(p *corev1.Pod) bool {
		return p.Status.Phase == corev1.PodRunning && p.Status.ContainerStatuses[0].RestartCount == 1 && p.Status.ContainerStatuses[0].State.Running != nil
	})
	check("the pod that is restarted", again.Status.ContainerStatuses[0].LastTerminationState.Terminated)
	stillServing(t, ns)
}

// door is a way to the API server that can be shut.
type door struct {
	net.Listener
	server string
	done   sync.WaitGroup

	mu      sync.Mutex
	open    bool                  // guarded by mu, like all below
	refused int                   // connections that came while it was shut
	conns   map[net.Conn]struct{} // both ends of those that stand
}

func newDoor(t *testing.T, server string) *door {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d := &door{Listener: l, server: server, conns: map[net.Conn]struct{}{}}
	d.done.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			d.done.Go(func() { d.carry(c) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		d.mu.Lock()
		for c := range d.conns {
			_ = c.Close()
		}
		d.mu.Unlock()
		d.done.Wait()
	})
	return d
}

// carry serves one connection.
func (d *door) carry(c net.Conn) {
	defer c.Close()
	d.mu.Lock()
	if !d.open {
		d.refused++
		d.mu.Unlock()
		return
	}
	d.mu.Unlock()
	up, err := net.Dial("tcp", d.server)
	if err != nil {
		return
	}
	defer up.Close()
	d.mu.Lock()
	d.conns[c], d.conns[up] = struct{}{}, struct{}{}
	d.mu.Unlock()
	var both sync.WaitGroup
	for _, way := range [][2]net.Conn{{c, up}, {up, c}} {
		both.Go(func() {
			_, _ = io.Copy(way[0], way[1])
			_ = way[0].Close()
			_ = way[1].Close()
		})
	}
	both.Wait()
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.conns, c)
	delete(d.conns, up)
}

// pauseMachines lets a node's machines stand still for a while, clocks and all, as they do while their
// host sleeps. No node may run: QEMU listens to one at a time.
func pauseMachines(t *testing.T, n *cluster.Node, d time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var resume []func()
	for id := range n.Machines() {
		conn, err := machinedir.DialUnix(ctx, filepath.Join(n.StateDir, "machines", id), "qmp.sock")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(time.Minute))
		answers := bufio.NewScanner(conn)
		answers.Scan() // its greeting
		say := func(what string) {
			if _, err := fmt.Fprintf(conn, "{\"execute\": %q}\n", what); err != nil {
				t.Fatal(err)
			}
			for answers.Scan() {
				var a struct {
					Return *struct{} `json:"return"`
				}
				if err := json.Unmarshal(answers.Bytes(), &a); err == nil && a.Return != nil {
					return
				}
			}
			t.Fatalf("machine %s does not answer to %s: %v", id, what, answers.Err())
		}
		say("qmp_capabilities")
		say("stop")
		resume = append(resume, func() { say("cont") })
	}
	time.Sleep(d)
	for _, f := range resume {
		f()
	}
}

// A node process begins while nobody can reach the API server, on a host that has slept: it waits, for as long as it
// takes, and does nothing to anybody. When the server is there again it has its machines again, ends that of a pod which
// was deleted meanwhile, and gives the guests the host's time.
func TestServerAwayWhenTheNodeBegins(t *testing.T) {
	ns := namespace(t)
	apply(t, podManifest(ns, "stays", served.Busybox, "sh", "-c", "while true; do date +%s; sleep 0.5; done"))
	apply(t, podManifest(ns, "deleted", served.Busybox, "sleep", "3600"))
	waitRunning(t, ns, "deleted")
	began := waitRunning(t, ns, "stays").Status.ContainerStatuses[0]
	before := fmt.Sprint(node.MachinePIDs())

	kubeconfig := filepath.Join(filepath.Dir(node.LogPath), "kubeconfig")
	text, err := os.ReadFile(kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	server := regexp.MustCompile(`https://[^\s"]+`).FindString(string(text))
	address, err := url.Parse(server)
	if err != nil || server == "" {
		t.Fatalf("the server of %s: %v", kubeconfig, err)
	}
	d := newDoor(t, address.Host)
	node.Kill()
	t.Cleanup(func() { // for the stories after this one
		node.Kill()
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := errors.Join(os.WriteFile(kubeconfig, text, 0o600), node.Start(ctx)); err != nil {
			t.Error(err)
		}
	})
	if err := os.WriteFile(kubeconfig, []byte(strings.Replace(string(text), server, "https://"+d.Addr().String(), 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	const asleep = 6 * time.Second
	pauseMachines(t, node, asleep)
	kubectl(t, "delete", "pod", "deleted", "-n", ns, "--grace-period=0", "--force")

	if err := node.Launch(); err != nil {
		t.Fatal(err)
	}
	eventually(t, time.Minute, "the node has asked often enough", func() error {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.refused < 12 {
			return fmt.Errorf("it has %d times", d.refused)
		}
		return nil
	})
	select {
	case <-node.Exited():
		t.Fatal("the node did not wait")
	default:
	}
	if now := fmt.Sprint(node.MachinePIDs()); now != before {
		t.Errorf("machines are %s, before %s", now, before)
	}
	const sample = `sample="node_recovery"`
	if n := metric(t, node, "vk_firkin_sample_seconds_count", sample); n != 0 {
		t.Error("the node has taken over machines of pods that it could not ask for")
	}
	d.mu.Lock()
	d.open = true
	d.mu.Unlock()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := node.WaitReady(ctx); err != nil {
		t.Fatal(err)
	}
	eventually(t, waitShort, "the deleted pod's machine is gone, and no other", func() error {
		if pids := node.MachinePIDs(); len(pids) != 1 || !strings.Contains(before, strconv.Itoa(pids[0])) {
			return fmt.Errorf("machines are %v, before %s", pids, before)
		}
		return nil
	})
	if n := metric(t, node, "vk_firkin_sample_seconds_count", sample); n != 1 {
		t.Errorf("machines were taken over %v times", n)
	}
	if after := waitRunning(t, ns, "stays").Status.ContainerStatuses[0]; after.ContainerID != began.ContainerID || after.RestartCount != 0 {
		t.Errorf("the pod that stayed is %+v, was %+v", after, began)
	}
	eventually(t, waitShort, "the guest has the host's time", func() error {
		out, err := tryKubectl(t, "exec", "-n", ns, "stays", "--", "date", "+%s")
		if err != nil {
			return err
		}
		guest, err := strconv.ParseInt(strings.TrimSpace(out), 10, 64)
		if off := time.Since(time.Unix(guest, 0)); err != nil || off > asleep-2*time.Second {
			return fmt.Errorf("it has %q, %s behind: %w", out, off, err)
		}
		return nil
	})
	// It was behind, and caught up in one step.
	largest, last := int64(0), int64(0)
	for line := range strings.FieldsSeq(kubectl(t, "logs", "-n", ns, "stays")) {
		now, err := strconv.ParseInt(line, 10, 64)
		if err != nil || now < last {
			t.Errorf("the guest's clock said %q after %d: %v", line, last, err)
		}
		if last != 0 {
			largest = max(largest, now-last)
		}
		last = now
	}
	if largest < int64(asleep/time.Second)-2 {
		t.Errorf("the guest's clock never jumped by more than %d s: nothing was behind", largest)
	}
}
