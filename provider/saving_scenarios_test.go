// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider_test

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/vk-firkin/vk-firkin/provider"
	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/durable"
	"github.com/vk-firkin/vk-firkin/vm/durable/durabletest"
)

// TestNothingBeginsUnrecorded: while the disk is full no machine is made and no container is
// run again, and people hear why; what runs goes on, all of its output stays where it is, and
// who deletes a pod does not wait. With room again everything goes on.
func TestNothingBeginsUnrecorded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLife(t, durabletest.Fault{})
		l.start(l.disk)
		create := func(name string, policy corev1.RestartPolicy, lines ...string) *corev1.Pod {
			p := pod(name, append([]string{"do"}, lines...))
			p.Spec.RestartPolicy = policy
			return l.create(p)
		}
		again := create("again", corev1.RestartPolicyAlways, "tick 30 1s")
		once := create("once", corev1.RestartPolicyNever, "tick 30 1s", "exit 3")
		create("leaves", corev1.RestartPolicyAlways, "graceful 0")
		for _, name := range []string{"again", "once", "leaves"} {
			l.await(name, "is ready", ready)
		}
		time.Sleep(10 * time.Second)
		l.disk.Arm(durabletest.Fault{At: 1, Mode: durabletest.Full})
		create("waits", corev1.RestartPolicyAlways, "graceful 0")
		time.Sleep(time.Minute)
		if p := l.await("waits", "says why it waits", func(p *corev1.Pod) bool { return p.Status.Reason == "RecordNotWritten" }); p.Status.Phase != corev1.PodPending || !strings.Contains(p.Status.Message, "no space left") {
			t.Errorf("it says %+v", p.Status)
		}
		if !l.events.has("waits", "Warning RecordNotWritten", "no space left on device") || l.supply.acquired != 3 {
			t.Errorf("%d machines were made; events\n%s", l.supply.acquired, l.events)
		}
		for _, name := range []string{"again", "once"} { // whose machines have what is not on disk
			p := l.await(name, "is there", func(*corev1.Pod) bool { return true })
			if restarts(p) != 0 || p.Status.Phase != corev1.PodRunning || p.Status.ContainerStatuses[0].State.Terminated == nil {
				t.Errorf("%s goes on without its output: %+v", name, p.Status)
			}
		}
		l.delete("leaves", ptr(int64(1)))
		time.Sleep(10 * time.Second)
		if ids := l.supply.ids(); len(ids) != 2 {
			t.Errorf("a pod that was deleted keeps its machine: %v", ids)
		}
		l.disk.Heal()
		l.await("waits", "is ready", ready)
		l.awaitGone("leaves")
		if p := l.awaitPhase("once", corev1.PodFailed); p.Status.ContainerStatuses[0].State.Terminated.ExitCode != 3 {
			t.Errorf("it ended with %+v", p.Status)
		}
		l.await("again", "runs again", func(p *corev1.Pod) bool { return ready(p) && restarts(p) == 1 })
		for _, p := range []*corev1.Pod{again, once} {
			data, err := os.ReadFile(filepath.Join(l.state, "pods", string(p.UID), "logs", "c0", "0.log"))
			for i := 1; i <= 30; i++ {
				if n := strings.Count(string(data), fmt.Sprintf(" tick %d\n", i)); n != 1 {
					t.Errorf("%s: line %d is there %d times, %v", p.Name, i, n, err)
				}
			}
		}
		l.node.stop()
	})
}

// TestOverStaysOver: the API was told that a pod is over, and its record was not. Nothing of it
// runs again, and what was said of it stays.
func TestOverStaysOver(t *testing.T) {
	for name, tt := range map[string]struct {
		policy corev1.RestartPolicy
		evict  bool
		phase  corev1.PodPhase
		code   int32
	}{
		"succeeded": {corev1.RestartPolicyOnFailure, false, corev1.PodSucceeded, 0},
		"failed":    {corev1.RestartPolicyNever, false, corev1.PodFailed, 3},
		"evicted":   {corev1.RestartPolicyAlways, true, corev1.PodFailed, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				l := newLife(t, durabletest.Fault{})
				l.start(l.disk)
				p := pod("p", []string{"do", "echo once", "sleep 10s", fmt.Sprintf("exit %d", tt.code)})
				if tt.evict {
					p = pod("p", []string{"graceful", "0"})
				}
				p.Spec.RestartPolicy = tt.policy
				p = l.create(p)
				l.await("p", "is ready", ready)
				time.Sleep(5 * time.Second) // its output is on disk
				record := filepath.Join(l.state, "pods", string(p.UID), "pod.json")
				before, err := os.ReadFile(record)
				if err != nil {
					t.Fatal(err)
				}
				if tt.evict {
					l.node.p.Evict(p.UID, "Evicted", "for the test", time.Second)
				}
				said := l.awaitPhase("p", tt.phase)
				l.eventually("its machine is gone", func() bool { return len(l.supply.ids()) == 0 }, nil)
				l.node.stop()
				if err := os.WriteFile(record, before, 0o600); err != nil { // as if the disk had been full
					t.Fatal(err)
				}
				l.start(l.disk)
				time.Sleep(time.Minute)
				now := l.get()
				if now.Status.Phase != tt.phase || now.Status.Reason != said.Status.Reason || now.Status.Message != said.Status.Message || l.supply.acquired != 1 {
					t.Errorf("%d machines; it says\n%+v, said\n%+v", l.supply.acquired, now.Status, said.Status)
				}
				was, is := said.Status.ContainerStatuses[0], now.Status.ContainerStatuses[0]
				if is.State.Terminated == nil || is.State.Terminated.ExitCode != was.State.Terminated.ExitCode || is.RestartCount != 0 {
					t.Errorf("its container says %+v, said %+v", is, was)
				}
				if text := l.log(p); !tt.evict && strings.Count(text, "once") != 1 {
					t.Errorf("its output is\n%s", text)
				}
				l.delete("p", nil)
				l.awaitGone("p")
				l.awaitNothing()
				l.node.stop()
			})
		})
	}
}

// adoptFault lets each adoption fail while failing says so.
func (l *life) adoptFault(fail func() error) {
	l.supply.setFault(func(_ context.Context, op string) error {
		if op == "adopt" {
			return fail()
		}
		return nil
	})
}

// TestAdoptionIsTriedAgain: a machine that cannot be asked is not gone. The node asks again
// and again, and tells about it; only one that can be asked and does not answer is given up,
// as any that is stuck.
func TestAdoptionIsTriedAgain(t *testing.T) {
	disk := fmt.Errorf("%w: %w", vm.ErrUnavailable, &fs.PathError{Op: "open", Path: "machine.json", Err: syscall.EIO})
	newer := fmt.Errorf("%w: %w", vm.ErrUnavailable, &durable.VersionError{Kind: "machine", Version: 9, Oldest: 1, Newest: 1})
	silent := fmt.Errorf("%w: no answer", vm.ErrUnavailable)
	for name, tt := range map[string]struct {
		err   error
		after time.Duration
		lost  bool
		says  string
	}{
		"the disk does not say":             {disk, 20 * time.Minute, false, "input/output error"},
		"a newer version wrote its record":  {newer, 20 * time.Minute, false, "written by a newer vk-firkin"},
		"it is silent for most of its time": {silent, 50 * time.Second, false, "no answer"},
		"it is silent":                      {silent, 20 * time.Minute, true, "no answer"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				l := newLife(t, durabletest.Fault{})
				stuck := func(o *provider.Options) { o.StuckTimeout = time.Minute }
				first := l.run(stuck)
				p := pod("p", []string{"graceful", "0"})
				p.Spec.RestartPolicy = corev1.RestartPolicyAlways
				l.create(p)
				l.await("p", "is ready", ready)
				first.stop()
				id := l.supply.ids()[0]
				began := time.Now()
				l.adoptFault(func() error {
					if time.Since(began) < tt.after {
						return tt.err
					}
					return nil
				})
				second := l.run(stuck)
				if tt.lost {
					l.is("runs again", func(p *corev1.Pod) bool { return ready(p) && restarts(p) == 1 })
					got := l.get()
					if x := got.Status.ContainerStatuses[0].LastTerminationState.Terminated; x == nil || x.Reason != "MachineStuck" || !strings.Contains(x.Message, tt.says) {
						t.Errorf("it says %+v", got.Status)
					}
					if took := time.Since(began); took < 55*time.Second || took > 90*time.Second {
						t.Errorf("it was given up after %s", took)
					}
				} else {
					for time.Since(began) < tt.after-time.Second {
						time.Sleep(min(7*time.Second, tt.after-time.Second-time.Since(began)))
						if got := l.get(); !ready(got) || restarts(got) != 0 {
							t.Fatalf("after %s it says %+v", time.Since(began), got.Status)
						}
					}
					l.eventually("it is adopted", func() bool { return l.events.has("p ", "MachineAdopted") }, nil)
					if ids := l.supply.ids(); len(ids) != 1 || ids[0] != id {
						t.Errorf("machines %v, want %s", ids, id)
					}
				}
				if !l.events.has("p ", "Warning MachineNotAnswering", tt.says) {
					t.Errorf("nobody heard of it:\n%s", l.events)
				}
				if n := strings.Count(l.events.String(), "MachineNotAnswering"); n > 40 {
					t.Errorf("it was told %d times", n)
				}
				l.delete("p", ptr(int64(1)))
				l.awaitGone("p")
				l.awaitNothing()
				second.stop()
			})
		})
	}
}

// TestGraceOfAMachineNotYetAdopted: a pod that is deleted before its machine could be asked has
// its grace when it can.
func TestGraceOfAMachineNotYetAdopted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLife(t, durabletest.Fault{})
		first := l.run()
		l.create(pod("p", []string{"graceful", "0"}))
		l.await("p", "is ready", ready)
		first.stop()
		began := time.Now()
		l.adoptFault(func() error {
			if time.Since(began) < 4*time.Second {
				return vm.ErrUnavailable
			}
			return nil
		})
		l.delete("p", ptr(int64(30)))
		second := l.run()
		l.awaitGone("p")
		if took := time.Since(began); took < 4*time.Second || took > 20*time.Second {
			t.Errorf("it ended after %s: it had no grace, or did not end by itself", took)
		}
		l.awaitNothing()
		second.stop()
	})
}

// TestRecordsAreReadAgain: a disk that does not give a record at one try is not a record that
// is lost: the pod goes on.
func TestRecordsAreReadAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLife(t, durabletest.Fault{})
		first := l.run(l.with)
		l.create(pod("p", []string{"graceful", "0"}))
		l.await("p", "is ready", ready)
		first.stop()
		for at := 1; ; at++ {
			disk := durabletest.New(t, durable.Host, l.state, durabletest.Fault{At: at, Mode: durabletest.EIO, Reads: true})
			began := len(strings.Split(l.events.String(), "\n"))
			node := l.run(l.with, func(o *provider.Options) { provider.WithDisk(o, disk) })
			l.eventually("it is adopted", func() bool { return strings.Count(l.events.String(), "MachineAdopted") == at }, nil)
			if at > 2 && !disk.Reached() {
				node.stop()
				break
			}
			if l.events.has("MachineQuarantined") || len(l.supply.ids()) != 1 {
				t.Fatalf("at %s: machines %v, events\n%s", disk.At(), l.supply.ids(), strings.Join(strings.Split(l.events.String(), "\n")[began:], "\n"))
			}
			node.stop()
			if at > 20 {
				break // the rest is its running
			}
		}
	})
}

// TestLostRecordIsRemovedAgain: the record of a pod that is to begin anew, which cannot be
// removed at once, is removed a little later; nothing of the pod begins before.
func TestLostRecordIsRemovedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLife(t, durabletest.Fault{})
		p, acquired := l.left("p", corev1.RestartPolicyAlways)
		if err := l.supply.Reap(t.Context(), l.supply.ids()[0]); err != nil {
			t.Fatal(err)
		}
		disk := durabletest.New(t, durable.Host, l.state, durabletest.Fault{At: 1, Mode: durabletest.EIO})
		node := l.run(func(o *provider.Options) { provider.WithDisk(o, disk) })
		l.eventually("it has another machine", func() bool { return len(l.supply.ids()) == 1 }, nil)
		if l.supply.acquired != acquired+1 || l.spoilt(p) || !strings.Contains(disk.At(), "remove") {
			t.Errorf("%d machines were made; at %s", l.supply.acquired-acquired, disk.At())
		}
		// Its run was lost with its machine, and counts.
		l.is("runs again", func(p *corev1.Pod) bool { return ready(p) && restarts(p) == 1 })
		l.delete("p", ptr(int64(1)))
		l.awaitGone("p")
		l.awaitNothing()
		node.stop()
	})
}
