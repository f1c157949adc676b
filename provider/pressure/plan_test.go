// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package pressure

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

// The whole order of relief, when no step is enough.
func TestPlan(t *testing.T) {
	for _, c := range []struct {
		name   string
		need   map[Resource]Depth
		shared bool
		want   string
	}{
		{"nothing", map[Resource]Depth{Disk: Ease}, true, ""},
		{"brake", map[Resource]Depth{Disk: Brake}, true, "StopRefills(disk)"},
		{"disk", map[Resource]Depth{Disk: Shed}, true, "StopRefills(disk) EvictWarm(disk) CollectSnapshots(disk) CollectImages(disk) RefusePods(disk)"},
		{"disk with images elsewhere", map[Resource]Depth{Disk: Shed}, false, "StopRefills(disk) EvictWarm(disk) CollectSnapshots(disk) RefusePods(disk)"},
		{"to the end", map[Resource]Depth{Disk: Evict}, true, "StopRefills(disk) EvictWarm(disk) CollectSnapshots(disk) CollectImages(disk) RefusePods(disk) EvictReserved(disk) EvictPod(disk)"},
		{"memory", map[Resource]Depth{Memory: Evict}, true, "StopRefills(memory) EvictWarm(memory) RefusePods(memory) EvictReserved(memory) EvictPod(memory)"},
		{"the disk of images", map[Resource]Depth{Images: Evict}, false, "StopRefills(images) CollectImages(images) RefusePods(images)"},
		{"what is mild everywhere before what is hard anywhere", map[Resource]Depth{Memory: Evict, Disk: Shed}, true,
			"StopRefills(memory) StopRefills(disk) EvictWarm(memory) EvictWarm(disk) CollectSnapshots(disk) CollectImages(disk) RefusePods(memory) RefusePods(disk) EvictReserved(memory) EvictPod(memory)"},
	} {
		done := map[task]bool{}
		var got []string
		for {
			x, ok := nextTask(c.need, c.shared, func(x task) bool { return done[x] })
			if !ok {
				break
			}
			done[x] = true
			got = append(got, fmt.Sprintf("%s(%s)", x.step, x.resource))
		}
		if s := strings.Join(got, " "); s != c.want {
			t.Errorf("%s: %s, want %s", c.name, s, c.want)
		}
	}
}

// The kubelet's order, without critical pods, and nobody in vain.
func TestVictim(t *testing.T) {
	pod := func(name string, priority int32, used, requested int64) Pod {
		return Pod{Name: name, Priority: priority, Used: Amounts{Disk: used}, Requested: Amounts{Disk: requested}}
	}
	vital := pod("vital", 2_000_000_000, 99, 0)
	vital.Critical = true
	for _, c := range []struct {
		name string
		pods []Pod
		lack int64
		want string
	}{
		{"none", nil, 1, ""},
		{"over its request before lower priority", []Pod{pod("low", -5, 9, 9), pod("over", 7, 10, 9)}, 5, "over"},
		{"then the lower priority", []Pod{pod("greedy", 1, 99, 0), pod("low", 0, 10, 9)}, 5, "low"},
		{"then by how much more", []Pod{pod("a", 0, 10, 5), pod("b", 0, 12, 1), pod("c", 0, 50, 45)}, 5, "b"},
		{"within requests the nearest to its own", []Pod{pod("a", 0, 5, 50), pod("b", 0, 5, 6)}, 5, "b"},
		{"never a critical one", []Pod{vital, pod("a", 9, 5, 50)}, 5, "a"},
		{"only critical ones", []Pod{vital}, 5, ""},
		{"not in vain", []Pod{pod("a", 0, 5, 0), pod("b", 0, 5, 0), vital}, 11, ""},
		{"just enough together", []Pod{pod("a", 0, 5, 0), pod("b", 0, 5, 0)}, 10, "a"},
		{"what holds nothing gives nothing", []Pod{pod("a", 0, 0, 0), pod("b", 5, 5, 9)}, 1, "b"},
		{"the kernel does not say how much", []Pod{pod("a", 0, 5, 0)}, -9, "a"},
		{"absurd", []Pod{pod("a", 0, 1<<62, 0), pod("b", 0, 1<<62, 0), pod("c", 0, 1<<62, 0)}, 5, "a"},
	} {
		got, ok := victim(c.pods, Disk, c.lack)
		if got.Name != c.want || ok != (c.want != "") {
			t.Errorf("%s: %q, %v, want %q", c.name, got.Name, ok, c.want)
		}
	}
	text := message(pod("a", 0, 3<<30+5, 0), Disk, standing{threshold: 1 << 30, available: 512<<20 + 7})
	if want := "The node was low on resource: ephemeral-storage. Threshold quantity: 1Gi, available: 512Mi. The pod's machine was using 3Gi, request is 0. "; text != want {
		t.Errorf("message is %q", text)
	}
}

// One pod at a time, each once, and none for room that comes anyway.
func TestChoose(t *testing.T) {
	now := time.Unix(10_000, 0)
	at := func(s int) time.Time { return now.Add(time.Duration(s) * time.Second) }
	pod := func(uid string, used int64, ends ...int) Pod {
		p := Pod{UID: types.UID(uid), Name: uid, Used: Amounts{Disk: used}}
		for _, s := range ends {
			p.EndsBy = at(s)
		}
		return p
	}
	const gone = int(goneTimeout / time.Second)
	for _, c := range []struct {
		name string
		pods []Pod
		told map[types.UID]time.Time
		by   int
		want string
		move move
	}{
		{"nobody", nil, nil, 1, "", moveNone},
		{"the first", []Pod{pod("a", 20), pod("b", 10)}, nil, 1, "a", moveEnd},
		{"told, and has not heard of it yet", []Pod{pod("a", 20), pod("b", 10)}, map[types.UID]time.Time{"a": at(1)}, 1, "a", moveWait},
		{"told, and ends", []Pod{pod("a", 20, 1), pod("b", 10)}, map[types.UID]time.Time{"a": at(1)}, 1, "a", moveWait},
		{"told, and its machine is being deleted", []Pod{pod("a", 0, -5), pod("b", 20)}, map[types.UID]time.Time{"a": at(-5)}, 1, "a", moveWait},
		{"told with more time than there is", []Pod{pod("a", 20, 500), pod("b", 10)}, map[types.UID]time.Time{"a": at(500)}, 1, "a", moveEnd},
		{"told with more time than it takes itself", []Pod{pod("a", 20, 1), pod("b", 10)}, map[types.UID]time.Time{"a": at(500)}, 1, "a", moveWait},
		{"told with as much time as there is", []Pod{pod("a", 20, 500), pod("b", 10)}, map[types.UID]time.Time{"a": at(500)}, 600, "a", moveWait},
		{"its machine cannot be deleted", []Pod{pod("a", 20, -gone), pod("b", 10)}, map[types.UID]time.Time{"a": at(-gone)}, 1, "b", moveEnd},
		{"nor can the other's", []Pod{pod("a", 20, -gone), pod("b", 10, -gone)}, map[types.UID]time.Time{"a": at(-gone), "b": at(-gone)}, 1, "", moveNone},
		{"somebody deletes one that has enough", []Pod{pod("a", 20), pod("b", 10, 1)}, nil, 1, "b", moveWait},
		{"which has not enough", []Pod{pod("a", 20), pod("b", 9, 1)}, nil, 1, "a", moveEnd},
		{"which together with the others has not enough", []Pod{pod("a", 3), pod("b", 5, 1)}, nil, 1, "", moveWait},
		{"which has a long time for it", []Pod{pod("a", 20), pod("b", 10, 500)}, nil, 1, "a", moveEnd},
		{"which cannot be deleted", []Pod{pod("a", 20), pod("b", 10, -gone)}, nil, 1, "a", moveEnd},
		{"what it has is not known", []Pod{pod("a", 20), pod("b", 0, 1)}, nil, 1, "a", moveEnd},
	} {
		got, what := choose(c.pods, c.told, Disk, 10, at(c.by), now)
		if what != c.move || c.move != moveNone && c.want != "" && got.Name != c.want {
			t.Errorf("%s: %d, %q, want %d, %q", c.name, what, got.Name, c.move, c.want)
		}
	}
}
