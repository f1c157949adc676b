// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package stats_test

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	statsv1alpha1 "k8s.io/kubelet/pkg/apis/stats/v1alpha1"

	"github.com/vk-firkin/vk-firkin/provider"
	"github.com/vk-firkin/vk-firkin/provider/stats"
	"github.com/vk-firkin/vk-firkin/vm/guest"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1/agentv1connect"
	"github.com/vk-firkin/vk-firkin/vm/guest/guesttest"
)

// machine is a pod of one container, c, that runs in a guest in memory.
func machine(t *testing.T, name string) (provider.PodMachine, *guesttest.Agent) {
	t.Helper()
	a := guesttest.New(guesttest.Options{})
	t.Cleanup(func() { a.Close() })
	c, err := a.Dial(t.Context(), guest.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	ctx := t.Context()
	_, err1 := c.Containers.SetupPod(ctx, connect.NewRequest(&agentv1.SetupPodRequest{Hostname: "p"}))
	_, err2 := c.Volumes.PutVolume(ctx, connect.NewRequest(&agentv1.PutVolumeRequest{Name: "v"}))
	_, err3 := c.Containers.CreateContainer(ctx, connect.NewRequest(&agentv1.CreateContainerRequest{Id: "c-0", Args: []string{"hang"}}))
	_, err4 := c.Containers.StartContainer(ctx, connect.NewRequest(&agentv1.StartContainerRequest{Id: "c-0"}))
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		t.Fatal(err)
	}
	started := metav1.NewTime(time.Now().Truncate(time.Second))
	limit := resource.NewQuantity(7<<20, resource.BinarySI)
	m := provider.PodMachine{
		Pod: &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID("uid-" + name)},
			Spec: corev1.PodSpec{
				Containers: []corev1.Container{{Name: "c", Resources: corev1.ResourceRequirements{Limits: corev1.ResourceList{corev1.ResourceMemory: *resource.NewQuantity(1<<20, resource.BinarySI)}}}},
				Volumes:    []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{SizeLimit: limit}}}, {Name: "not-measured"}},
			},
			Status: corev1.PodStatus{StartTime: &started},
		},
		Dial: func(context.Context) (*provider.Guest, error) { return &provider.Guest{Agent: c.Agent}, nil },
	}
	m.Targets = []provider.Target{{
		ContainerRef: provider.ContainerRef{Container: "c", ID: "c-0"}, Running: true, Dial: m.Dial,
		State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: started}},
	}, {ContainerRef: provider.ContainerRef{Container: "exited", ID: "exited-0"}}}
	return m, a
}

func collector(t *testing.T, o stats.Options) *stats.Collector {
	t.Helper()
	o.NodeName = "n1"
	c, err := stats.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestSummary(t *testing.T) {
	m, _ := machine(t, "a")
	noMachine := provider.PodMachine{Pod: &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "waiting"}}}
	c := collector(t, stats.Options{
		Machines: func() []provider.PodMachine { return []provider.PodMachine{m, noMachine} },
		LogUsage: func(types.UID) (map[string]provider.LogUsage, error) {
			return map[string]provider.LogUsage{"c": {Bytes: 1234, Files: 2}}, nil
		},
		Host: func() (stats.Host, error) {
			return stats.Host{
				CPUTime: time.Hour, MemoryTotalBytes: 8 << 30, MemoryAvailableBytes: 3 << 30, MemoryUsedBytes: 6 << 30, WorkingSetBytes: 5 << 30,
				Network: []stats.Interface{{Name: "eth0", RxBytes: 1}}, Processes: 5, MaxProcesses: 100,
				State: stats.Disk{SizeBytes: 100, AvailableBytes: 40, Inodes: 10, InodesFree: 4}, Images: stats.Disk{SizeBytes: 200, AvailableBytes: 50},
			}, nil
		},
	})
	s, missing, err := c.Summary(t.Context())
	if err != nil || missing != 0 || len(s.Pods) != 1 {
		t.Fatalf("%d missing, %v: %+v", missing, err, s)
	}
	// The times are of this moment: the rest is compared as a client sees it.
	data, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(data, &got); err != nil {
		t.Fatal(err)
	}
	at := func(path ...any) any {
		v := any(got)
		for _, p := range path {
			switch key := p.(type) {
			case string:
				v = v.(map[string]any)[key]
			case int:
				v = v.([]any)[key]
			}
		}
		return v
	}
	container := []any{"pods", 0, "containers", 0}
	for name, c := range map[string]struct {
		path []any
		want any
	}{
		"node":                        {[]any{"node", "nodeName"}, "n1"},
		"node's CPU":                  {[]any{"node", "cpu", "usageCoreNanoSeconds"}, 3.6e12},
		"node's working set":          {[]any{"node", "memory", "workingSetBytes"}, float64(5 << 30)},
		"node's disk":                 {[]any{"node", "fs", "usedBytes"}, 60.0},
		"node's image disk":           {[]any{"node", "runtime", "imageFs", "availableBytes"}, 50.0},
		"node's inodes":               {[]any{"node", "fs", "inodesUsed"}, 6.0},
		"node's processes":            {[]any{"node", "rlimit", "curproc"}, 5.0},
		"node's network":              {[]any{"node", "network", "rxBytes"}, 1.0},
		"pod's UID":                   {[]any{"pods", 0, "podRef", "uid"}, "uid-a"},
		"pod's CPU":                   {[]any{"pods", 0, "cpu", "usageCoreNanoSeconds"}, 1e9},
		"pod's working set":           {[]any{"pods", 0, "memory", "workingSetBytes"}, float64(64 << 20)},
		"pod's network":               {[]any{"pods", 0, "network", "txBytes"}, 2000.0},
		"pod's interface":             {[]any{"pods", 0, "network", "interfaces", 0, "name"}, "eth0"},
		"pod's processes":             {[]any{"pods", 0, "process_stats", "process_count"}, 1.0},
		"pod's volume":                {[]any{"pods", 0, "volume", 0, "name"}, "v"},
		"volume's limit":              {[]any{"pods", 0, "volume", 0, "capacityBytes"}, float64(7 << 20)},
		"pod's ephemeral storage":     {[]any{"pods", 0, "ephemeral-storage", "capacityBytes"}, float64(16 << 30)},
		"container":                   {append(container, "name"), "c"},
		"container's CPU":             {append(container, "cpu", "usageCoreNanoSeconds"), 1e6},
		"container's memory":          {append(container, "memory", "usageBytes"), float64(1 << 20)},
		"container's working set":     {append(container, "memory", "workingSetBytes"), float64(1 << 19)},
		"container's left memory":     {append(container, "memory", "availableBytes"), float64(1 << 19)},
		"container's resident memory": {append(container, "memory", "rssBytes"), float64(1 << 18)},
		"container's faults":          {append(container, "memory", "majorPageFaults"), 1.0},
		"container's disk":            {append(container, "rootfs", "usedBytes"), 0.0},
		"container's log":             {append(container, "logs", "usedBytes"), 1234.0},
	} {
		if got := at(c.path...); got != c.want {
			t.Errorf("%s: got %v, want %v", name, got, c.want)
		}
	}
	if n := len(at("pods", 0, "containers").([]any)); n != 1 {
		t.Errorf("%d containers, of which one runs", n)
	}
}

// TestStuckMachine: only the first answer waits for it, and none is without the others;
// when it comes back, so do its numbers.
func TestStuckMachine(t *testing.T) {
	healthy, _ := machine(t, "healthy")
	stuck, agent := machine(t, "stuck")
	c := collector(t, stats.Options{
		Machines: func() []provider.PodMachine { return []provider.PodMachine{stuck, healthy} },
		Fresh:    time.Nanosecond, Patience: 500 * time.Millisecond, Timeout: 3 * time.Second,
	})
	agent.Hang()
	summary := func() (s *statsv1alpha1.Summary, missing int, took time.Duration) {
		t.Helper()
		began := time.Now()
		s, missing, err := c.Summary(t.Context())
		if err != nil || len(s.Pods) != 2 {
			t.Fatalf("%+v, %v", s, err)
		}
		return s, missing, time.Since(began)
	}
	for i, most := range []time.Duration{5 * time.Second, 400 * time.Millisecond} {
		s, missing, took := summary()
		if missing != 1 || s.Pods[0].CPU != nil || s.Pods[1].CPU == nil {
			t.Errorf("answer %d: %d missing, %+v", i, missing, s.Pods)
		}
		if took > most {
			t.Errorf("answer %d took %v", i, took)
		}
	}
	agent.Heal()
	for deadline := time.Now().Add(20 * time.Second); ; {
		_, missing, _ := summary()
		if missing == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the machine's numbers do not come back")
		}
	}
}

// TestFresh: machines are not asked again for what they have just told.
func TestFresh(t *testing.T) {
	m, _ := machine(t, "a")
	asked := 0
	dial := m.Dial
	m.Dial = func(ctx context.Context) (*provider.Guest, error) { asked++; return dial(ctx) }
	c := collector(t, stats.Options{Machines: func() []provider.PodMachine { return []provider.PodMachine{m} }, Fresh: time.Hour})
	for range 3 {
		if _, missing, err := c.Summary(t.Context()); err != nil || missing != 0 {
			t.Fatal(missing, err)
		}
	}
	if err := c.Close(); err != nil || asked != 1 {
		t.Errorf("asked %d times, %v", asked, err)
	}
}

// liar is a guest whose processor time jumps.
type liar struct {
	agentv1connect.AgentServiceClient
	nano atomic.Int64
}

func (l *liar) Stats(context.Context, *connect.Request[agentv1.StatsRequest]) (*connect.Response[agentv1.StatsResponse], error) {
	return connect.NewResponse(&agentv1.StatsResponse{CpuNano: l.nano.Load()}), nil
}

// TestLyingGuest: where the node's processor time is that of its machines, none of them makes
// it more than there was.
func TestLyingGuest(t *testing.T) {
	l := &liar{}
	m := provider.PodMachine{Pod: &corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: "u"}},
		Dial: func(context.Context) (*provider.Guest, error) { return &provider.Guest{Agent: l}, nil }}
	c := collector(t, stats.Options{Fresh: time.Nanosecond, Machines: func() []provider.PodMachine { return []provider.PodMachine{m} },
		Host: func() (stats.Host, error) { return stats.Host{}, nil }})
	began := time.Now()
	for _, nano := range []int64{1, math.MaxInt64 / 2, math.MaxInt64} {
		l.nano.Store(nano)
		got, _, err := c.Summary(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if cpu := got.Node.CPU; cpu != nil && *cpu.UsageCoreNanoSeconds > uint64(time.Since(began))*uint64(runtime.NumCPU()) {
			t.Errorf("the node used %d ns in %s", *cpu.UsageCoreNanoSeconds, time.Since(began))
		}
	}
}
