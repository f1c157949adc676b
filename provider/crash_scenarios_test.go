// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clienttesting "k8s.io/client-go/testing"

	"github.com/vk-firkin/vk-firkin/provider"
	"github.com/vk-firkin/vk-firkin/provider/podlog"
	"github.com/vk-firkin/vk-firkin/vm/durable"
	"github.com/vk-firkin/vk-firkin/vm/durable/durabletest"
)

// life is a life of one pod, on a node whose disk, for records and logs, breaks at one of its
// operations.
type life struct {
	*world
	disk *durabletest.FS
	node *process
	pod  *corev1.Pod
	// healthy: another node process has another disk.
	healthy atomic.Bool
	// killed ends it though its disk did not.
	killed atomic.Bool

	with func(*provider.Options)
	mode durabletest.Mode

	// What was asked for, whether it came to be or not.
	restarts      int
	resized       bool
	ends, ejected bool
}

func newLife(t *testing.T, fault durabletest.Fault) *life {
	l := &life{world: newWorld(t)}
	l.disk = durabletest.New(t, durable.Host, l.state, fault)
	templates := newTemplates("app")
	l.with = func(o *provider.Options) { o.Templates, o.StuckTimeout = templates, 0 }
	// The dead do nothing.
	l.supply.cut = l.dead
	l.supply.setFault(func(context.Context, string) error {
		if l.dead() {
			return errKilled
		}
		return nil
	})
	l.client.PrependReactor("*", "*", func(clienttesting.Action) (bool, runtime.Object, error) {
		if l.dead() {
			return true, nil, errKilled
		}
		return false, nil, nil
	})
	return l
}

func (l *life) dead() bool { return !l.healthy.Load() && (l.disk.Dead() || l.killed.Load()) }

// start begins a node process, which may die before it is ready.
func (l *life) start(disk durable.FS) bool {
	l.t.Helper()
	l.node = l.begin(l.with, func(o *provider.Options) {
		provider.WithDisk(o, disk)
		o.Logs = podlog.New(filepath.Join(l.state, "pods"), podlog.Options{FS: disk, SyncInterval: 50 * time.Millisecond})
	})
	node := l.node
	if disk == durable.FS(l.disk) {
		go func() {
			select {
			case <-l.disk.Died():
				node.kill()
			case err := <-node.done:
				node.done <- err
			}
		}()
	}
	return l.until("the node is ready", func() bool {
		select {
		case <-node.up:
			return true
		default:
			return false
		}
	})
}

// until waits for something; false when the process died before.
func (l *life) until(what string, ok func() bool) bool {
	l.t.Helper()
	for deadline := time.Now().Add(10 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
		switch {
		case l.dead():
			return false
		case ok():
			return true
		case time.Now().After(deadline):
			l.t.Fatalf("not: %s: %+v\nevents:\n%s", what, l.get(), l.events)
		}
	}
}

func (l *life) get() *corev1.Pod {
	p, err := l.client.CoreV1().Pods("default").Get(context.Background(), "p", metav1.GetOptions{})
	if err != nil {
		return nil
	}
	return p
}

func (l *life) is(what string, ok func(*corev1.Pod) bool) bool {
	l.t.Helper()
	return l.until("pod "+what, func() bool { p := l.get(); return p != nil && ok(p) })
}

// runs makes the pod and waits until it runs.
func (l *life) runs(path string) bool {
	p := pod("p", []string{"do", "print 4 begun-", "graceful 0"})
	if path == "warm" {
		p = templatePod("p", "app", []string{"do", "print 4 begun-", "graceful 0"})
	} else {
		p.Annotations = map[string]string{provider.AnnotationPath: path}
	}
	p.Spec.RestartPolicy = corev1.RestartPolicyAlways
	l.pod = l.create(p)
	return l.start(l.disk) && l.is("is ready", ready)
}

// restarted has the container's run ended, and waits for the next.
func (l *life) restarted() bool {
	l.restarts++
	l.node.p.StopContainer(l.pod.UID, "c0", "probe failed", time.Second)
	return l.is("runs again", func(p *corev1.Pod) bool { return ready(p) && restarts(p) == l.restarts })
}

func restarts(p *corev1.Pod) int {
	if len(p.Status.ContainerStatuses) == 0 {
		return 0
	}
	return int(p.Status.ContainerStatuses[0].RestartCount)
}

// adopted ends the process and waits until the next has the pod.
func (l *life) adopted() bool {
	l.node.stop()
	return l.start(l.disk) && l.until("it is adopted", func() bool { return l.events.has("p ", "MachineAdopted") }) && l.is("is ready", ready)
}

func (l *life) resizes() bool {
	l.resized = true
	p := l.get()
	if p == nil {
		return false
	}
	p.Spec.Containers[0].Resources.Requests = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("70m")}
	if _, err := l.client.CoreV1().Pods("default").Update(context.Background(), p, metav1.UpdateOptions{}); err != nil {
		if l.dead() {
			return false
		}
		l.t.Fatal(err)
	}
	return l.is("is resized", hasResized)
}

func hasResized(p *corev1.Pod) bool {
	r := p.Status.ContainerStatuses[0].Resources
	return r != nil && r.Requests.Cpu().MilliValue() == 70
}

func (l *life) evicted() bool {
	l.ejected = true
	l.node.p.Evict(l.pod.UID, "Evicted", "for the test", time.Second)
	return l.is("has failed", func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed }) &&
		l.until("its machine is gone", func() bool { return len(l.supply.ids()) == 0 })
}

func (l *life) deleted() bool {
	if err := l.client.CoreV1().Pods("default").Delete(context.Background(), "p", metav1.DeleteOptions{GracePeriodSeconds: ptr(int64(1))}); err != nil {
		if l.dead() {
			return false
		}
		l.t.Fatal(err)
	}
	l.ends = true
	return l.until("nothing of it is left", func() bool {
		left, err := os.ReadDir(filepath.Join(l.state, "pods"))
		return l.get() == nil && len(l.supply.ids()) == 0 && (len(left) == 0 || os.IsNotExist(err))
	})
}

// lives are what is broken off at each write: every way to a machine, and every way out.
var lives = map[string]func(*life) bool{
	"restored, restarted, deleted": func(l *life) bool { return l.runs("restore") && l.restarted() && l.deleted() },
	"warm, resized, evicted":       func(l *life) bool { return l.runs("warm") && l.resizes() && l.evicted() && l.deleted() },
	"cold, adopted, deleted":       func(l *life) bool { return l.runs("cold") && l.adopted() && l.deleted() },
}

// goesOn is the rest of the life, under the same process or, where that died, another one
// with what the disk has kept. Whatever happened: one machine, no run twice, no line lost.
func (l *life) goesOn() {
	t := l.t
	if l.dead() {
		l.node.stop()
		l.disk.Restart(t)
		l.healthy.Store(true)
		l.start(durabletest.New(t, durable.Host, l.state, durabletest.Fault{}))
	}
	if !l.ends {
		over := func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed }
		if l.ejected {
			time.Sleep(20 * time.Second) // it may have been written down, and not carried out
		}
		l.is("goes on", func(p *corev1.Pod) bool { return ready(p) || l.ejected && over(p) })
		switch p := l.get(); {
		case over(p):
			if p.Status.Reason != "Evicted" {
				t.Errorf("it failed for another reason: %+v", p.Status)
			}
			l.until("its machine is gone", func() bool { return len(l.supply.ids()) == 0 })
		default:
			l.is("has no more restarts than were asked for", func(p *corev1.Pod) bool { return restarts(p) <= l.restarts })
			if l.resized {
				l.is("is resized", hasResized)
			}
			l.until("it has one machine", func() bool { return len(l.supply.ids()) == 1 })
		}
		// Who is evicted while the disk is full does not wait for his output to find room.
		least := 1
		if l.ejected && l.mode != durabletest.Crash && l.mode != durabletest.CrashLosingAll {
			least = 0
		}
		l.until("its output is there", func() bool { return l.written(least) == "" })
		time.Sleep(10 * time.Second) // nothing more comes of it
		if fault := l.written(least); fault != "" {
			t.Error(fault)
		}
		if p := l.get(); ready(p) && (len(l.supply.ids()) != 1 || restarts(p) > l.restarts) {
			t.Errorf("machines %v, status %+v", l.supply.ids(), p.Status)
		}
		l.deleted()
	}
	l.until("it is gone", func() bool { return l.get() == nil })
	l.awaitNothing()
	l.until("the node has room for others", func() bool { return l.node.p.Admitted() == 0 })
	started := 0
	for line := range strings.Lines(l.events.String()) {
		if strings.Contains(line, " Started: ") {
			started++
		}
	}
	if started > l.restarts+1 {
		t.Errorf("its container was started %d times:\n%s", started, l.events)
	}
	l.node.stop()
}

// written says what is wrong with the logs; empty when each run's four lines are in its log,
// at least so often, and not twice.
func (l *life) written(least int) string {
	last := restarts(l.get())
	for attempt := max(0, last-1); attempt <= last; attempt++ {
		data, err := os.ReadFile(filepath.Join(l.state, "pods", string(l.pod.UID), "logs", "c0", fmt.Sprint(attempt)+".log"))
		for i := 1; i <= 4; i++ {
			if n := strings.Count(string(data), fmt.Sprintf(" begun-%d\n", i)); n < least || n > 1 {
				return fmt.Sprintf("line %d of run %d is there %d times (%v):\n%s", i, attempt, n, err, data)
			}
		}
	}
	return ""
}

// fullThenCrash is a disk that is full, until the host is started anew.
const fullThenCrash durabletest.Mode = "full, then a crash"

// breakOff lives a life with a fault at an operation; false when there were not that many.
func breakOff(t *testing.T, live func(*life) bool, mode durabletest.Mode, at int) (reached bool) {
	synctest.Test(t, func(t *testing.T) {
		fault := durabletest.Fault{At: at, Mode: mode}
		if mode == fullThenCrash {
			fault.Mode = durabletest.Full
		}
		l := newLife(t, fault)
		l.mode = mode
		defer func() {
			if t.Failed() {
				t.Logf("with %q after %q", l.disk.At(), l.disk.Ops())
			}
		}()
		over := make(chan struct{})
		defer close(over)
		go func() { // who makes room, or ends it
			for !l.disk.Reached() {
				select {
				case <-over:
					return
				case <-time.After(10 * time.Millisecond):
				}
			}
			select {
			case <-over:
				return
			case <-time.After(20 * time.Second):
			}
			if mode == fullThenCrash {
				l.killed.Store(true)
				l.node.kill()
			}
			l.disk.Heal()
		}()
		live(l)
		l.goesOn()
		reached = l.disk.Reached()
	})
	return reached
}

// sweepEvery is how many operations lie between two at which TestPodAtEveryWrite breaks a
// life off, from a random one on; 1 with FIRKIN_SWEEP=all.
const sweepEvery = 16

// TestPodAtEveryWrite: lives of pods, with a disk that fails once, is full for a while, is
// full and its host crashes, or that crashes and forgets what was not synced, at each of its
// operations. No machine and no room of the node leaks, no run begins twice, no line of output
// is lost or written twice, and deletion ends.
func TestPodAtEveryWrite(t *testing.T) {
	modes := []durabletest.Mode{durabletest.EIO, durabletest.Full, fullThenCrash, durabletest.Crash, durabletest.CrashLosingAll}
	every := sweepEvery
	if os.Getenv("FIRKIN_SWEEP") == "all" {
		every = 1
	}
	for name, live := range lives {
		for _, mode := range modes {
			first := 1 + rand.IntN(every)
			t.Run(name+"/"+string(mode), func(t *testing.T) {
				t.Parallel()
				at := first
				for ; breakOff(t, live, mode, at) && !t.Failed(); at += every {
				}
				if !t.Failed() && at <= 30 {
					t.Errorf("it has less than %d operations, which prove little", at)
				}
				t.Logf("at operations %d, %d and so on, of less than %d", first, first+every, at)
			})
		}
	}
}
