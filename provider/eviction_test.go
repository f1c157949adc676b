// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"context"
	"log/slog"
	"math"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"connectrpc.com/connect"
	"k8s.io/apimachinery/pkg/types"

	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1/agentv1connect"
)

func TestOverLimit(t *testing.T) {
	const mi = 1 << 20
	for _, tt := range []struct {
		name, spec          string
		volumes, containers map[string]int64
		says                string
		limited             bool
	}{
		{"no limits", `{"containers":[{"name":"a"}],"volumes":[{"name":"v","emptyDir":{}}]}`, map[string]int64{"v": math.MaxInt64}, map[string]int64{"a": math.MaxInt64}, "", false},
		{"emptyDir at its limit", `{"volumes":[{"name":"v","emptyDir":{"sizeLimit":"1Mi"}}]}`, map[string]int64{"v": mi}, nil, "", true},
		{"emptyDir over its limit", `{"volumes":[{"name":"w","emptyDir":{}},{"name":"x","emptyDir":{"sizeLimit":"1Mi"}}]}`, map[string]int64{"x": mi + 1}, nil,
			`Usage of EmptyDir volume "x" exceeds the limit "1Mi".`, true},
		{"another volume is large", `{"volumes":[{"name":"w","emptyDir":{}},{"name":"x","emptyDir":{"sizeLimit":"1Mi"}}]}`, map[string]int64{"w": 9 * mi}, nil, "", true},
		{"memory is limited by its file system", `{"volumes":[{"name":"v","emptyDir":{"medium":"Memory","sizeLimit":"1Mi"}}]}`, map[string]int64{"v": 2 * mi}, nil, "", false},
		{"limit of zero is none", `{"volumes":[{"name":"v","emptyDir":{"sizeLimit":"0"}}]}`, map[string]int64{"v": mi}, nil, "", false},
		{"container at its limit", `{"containers":[{"name":"a","resources":{"limits":{"ephemeral-storage":"2Mi"}}}]}`, nil, map[string]int64{"a": 2 * mi}, "", true},
		{"container over its limit, the pod not", `{"containers":[{"name":"a","resources":{"limits":{"ephemeral-storage":"2Mi"}}},{"name":"b","resources":{"limits":{"ephemeral-storage":"2Mi"}}}]}`,
			nil, map[string]int64{"a": 2*mi + 1}, `Container a exceeded its local ephemeral storage limit "2Mi".`, true},
		{"pod over the sum of its limits by a volume", `{"containers":[{"name":"a","resources":{"limits":{"ephemeral-storage":"2Mi"}}}],"volumes":[{"name":"v","emptyDir":{}}]}`,
			map[string]int64{"v": mi + 1}, map[string]int64{"a": mi}, "Pod ephemeral local storage usage exceeds the total limit of containers 2Mi.", true},
		{"volumes in memory and of others do not count", `{"containers":[{"name":"a","resources":{"limits":{"ephemeral-storage":"2Mi"}}}],"volumes":[{"name":"v","emptyDir":{"medium":"Memory"}},{"name":"c","configMap":{"name":"c"}}]}`,
			map[string]int64{"v": 9 * mi, "c": 9 * mi}, map[string]int64{"a": mi}, "", true},
		{"a container without a limit counts for the pod", `{"containers":[{"name":"a","resources":{"limits":{"ephemeral-storage":"2Mi"}}},{"name":"b"}]}`,
			nil, map[string]int64{"a": mi, "b": mi + 1}, "Pod ephemeral local storage usage exceeds the total limit of containers 2Mi.", true},
		{"init container over its limit", `{"initContainers":[{"name":"i","resources":{"limits":{"ephemeral-storage":"1Mi"}}}],"containers":[{"name":"a","resources":{"limits":{"ephemeral-storage":"8Mi"}}}]}`,
			nil, map[string]int64{"i": mi + 1}, `Container i exceeded its local ephemeral storage limit "1Mi".`, true},
		{"what a guest says cannot overflow", `{"containers":[{"name":"a","resources":{"limits":{"ephemeral-storage":"2Mi"}}},{"name":"b"}]}`,
			nil, map[string]int64{"a": math.MaxInt64, "b": math.MaxInt64}, "Pod ephemeral local storage usage exceeds the total limit of containers 2Mi.", true},
		{"nor be less than nothing", `{"containers":[{"name":"a","resources":{"limits":{"ephemeral-storage":"2Mi"}}},{"name":"b"}]}`,
			nil, map[string]int64{"a": math.MinInt64, "b": 3 * mi}, "Pod ephemeral local storage usage exceeds the total limit of containers 2Mi.", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			pod := podOf(t, tt.spec)
			message, over := overLimit(pod, storageUsage{volumes: tt.volumes, containers: tt.containers})
			if message != tt.says || over != (tt.says != "") {
				t.Errorf("over %v: %q, want %q", over, message, tt.says)
			}
			if got := storageLimited(pod); got != tt.limited {
				t.Errorf("it is measured: %v", got)
			}
		})
	}
}

func TestUsageOf(t *testing.T) {
	pod := podOf(t, `{"containers":[{"name":"a"},{"name":"a-1"}],"volumes":[{"name":"v","emptyDir":{}}]}`)
	u := usageOf(pod, &agentv1.StatsResponse{
		Volumes: []*agentv1.VolumeStats{{Name: "v", UsedBytes: 5}, {Name: "unknown", UsedBytes: 7}},
		Containers: []*agentv1.ContainerStats{{Id: containerID(pod, "a", 0), WritableBytes: 1}, {Id: containerID(pod, "a-1", 12), WritableBytes: 2},
			{Id: "template.x", WritableBytes: 3}, {Id: "a-0-other", WritableBytes: 4}, {Id: "-0-uid", WritableBytes: 4}, {Id: "a--uid", WritableBytes: 4}, {Id: "uid", WritableBytes: 4}},
	}, map[string]LogUsage{"a": {Bytes: 10}})
	if len(u.volumes) != 1 || u.volumes["v"] != 5 || len(u.containers) != 2 || u.containers["a"] != 11 || u.containers["a-1"] != 2 {
		t.Errorf("usage is %+v", u)
	}
}

// measuredMachine answers with what is used, and counts who asks.
type measuredMachine struct {
	agentv1connect.AgentServiceClient
	asked int
	used  int64
}

func (m *measuredMachine) Stats(context.Context, *connect.Request[agentv1.StatsRequest]) (*connect.Response[agentv1.StatsResponse], error) {
	m.asked++
	return connect.NewResponse(&agentv1.StatsResponse{Volumes: []*agentv1.VolumeStats{{Name: "v", UsedBytes: m.used}}}), nil
}

// noLogs are the logs of a pod that wrote nothing.
type noLogs struct{ Logs }

func (noLogs) Usage(types.UID) (map[string]LogUsage, error) { return nil, nil }

// Only a pod with a limit is measured, and one that is over it is evicted once.
func TestWatchUsage(t *testing.T) {
	watch := func(t *testing.T, spec string, during func(m *measuredMachine)) *worker {
		t.Helper()
		m := &measuredMachine{}
		w := newWorker(&environment{log: slog.New(slog.DiscardHandler), logs: noLogs{}}, state{pod: podOf(t, spec)})
		h := &machineHold{lease: guestLease{guest: &Guest{Agent: m}}}
		h.ctx, h.stop = context.WithCancel(t.Context())
		h.wg.Go(func() { w.watchUsage(h) })
		during(m)
		h.stop()
		h.wg.Wait()
		return w
	}
	synctest.Test(t, func(t *testing.T) {
		w := watch(t, `{"volumes":[{"name":"v","emptyDir":{}}]}`, func(m *measuredMachine) {
			time.Sleep(time.Hour)
			if m.asked > 0 {
				t.Errorf("a pod without limits was measured %d times", m.asked)
			}
		})
		if len(w.take()) > 0 {
			t.Error("it is evicted")
		}
	})
	synctest.Test(t, func(t *testing.T) {
		w := watch(t, `{"volumes":[{"name":"v","emptyDir":{"sizeLimit":"1Mi"}}]}`, func(m *measuredMachine) {
			time.Sleep(time.Minute + time.Second)
			if m.asked != 6 {
				t.Errorf("it was measured %d times in a minute", m.asked)
			}
			m.used = 1<<20 + 1
			time.Sleep(usageEvery)
			if time.Sleep(time.Minute); m.asked != 7 {
				t.Errorf("it was measured %d times after it was over its limit", m.asked-6)
			}
		})
		if n := len(w.take()); n != 1 {
			t.Errorf("it is evicted %d times", n)
		}
	})
}

func FuzzContainerOfID(f *testing.F) {
	f.Add("a-0-uid", "a", 3)
	f.Add("-1-1-uid", "a-1", 0)
	f.Fuzz(func(t *testing.T, id, name string, attempt int) {
		if got, ok := containerOfID(id, "uid"); ok && (got == "" || !strings.HasPrefix(id, got+"-")) {
			t.Fatalf("%q is of %q", id, got)
		}
		pod := podOf(t, `{}`)
		if attempt < 0 || name == "" {
			return
		}
		if got, ok := containerOfID(containerID(pod, name, attempt), pod.UID); !ok || got != name {
			t.Fatalf("the id of %q is of %q, %v", name, got, ok)
		}
	})
}
