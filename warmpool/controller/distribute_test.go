// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// testNode reads "a free=4 slots=2 usedslots=1 withheld=1 held=p:2,q:1 ready=p:1 state=Cordoned crowded returning".
func testNode(t *testing.T, text string) *Node {
	t.Helper()
	fields := strings.Fields(text)
	n := &Node{Name: fields[0], State: NodeReady, Labels: map[string]string{}, Held: map[Key]int{}, Ready: map[Key]int{}}
	for _, f := range fields[1:] {
		key, value, _ := strings.Cut(f, "=")
		switch key {
		case "free":
			n.Memory = int64(number(t, value))
		case "used":
			n.Used = int64(number(t, value))
		case "slots":
			n.Slots = number(t, value)
		case "usedslots":
			n.UsedSlots = number(t, value)
		case "withheld":
			n.Withheld = number(t, value)
		case "held":
			n.Held = counts(t, value)
		case "ready":
			n.Ready = counts(t, value)
		case "state":
			n.State = NodeState(value)
		case "crowded":
			n.Crowded = true
		case "returning":
			n.Returning = true
		case "label":
			k, v, _ := strings.Cut(value, ":")
			n.Labels[k] = v
		case "taint":
			n.Taints = append(n.Taints, corev1.Taint{Key: value, Effect: corev1.TaintEffectNoSchedule})
		default:
			t.Fatalf("node %q: what is %q?", text, f)
		}
	}
	return n
}

// testPool reads "p 4 guest=macos memory=1 min=1 max=2 priority=5 selector=k:v tolerates=k".
func testPool(t *testing.T, text string) *Pool {
	t.Helper()
	fields := strings.Fields(text)
	p := &Pool{Key: Key{"ns", fields[0]}, Replicas: number(t, fields[1]), Memory: 1}
	for _, f := range fields[2:] {
		key, value, _ := strings.Cut(f, "=")
		switch key {
		case "memory":
			p.Memory = int64(number(t, value))
		case "guest":
			p.MacOS = value == "macos"
		case "min":
			p.Min = number(t, value)
		case "max":
			p.Max = number(t, value)
		case "priority":
			p.Priority = int32(number(t, value))
		case "selector":
			k, v, _ := strings.Cut(value, ":")
			p.Selector = map[string]string{k: v}
		case "tolerates":
			p.Tolerations = append(p.Tolerations, corev1.Toleration{Key: value, Operator: corev1.TolerationOpExists})
		default:
			t.Fatalf("pool %q: what is %q?", text, f)
		}
	}
	return p
}

func number(t *testing.T, text string) int {
	t.Helper()
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func counts(t *testing.T, text string) map[Key]int {
	t.Helper()
	result := map[Key]int{}
	for pair := range strings.SplitSeq(text, ",") {
		k, v, _ := strings.Cut(pair, ":")
		result[Key{"ns", k}] = number(t, v)
	}
	return result
}

// show writes an assignment as "p: a=2 b=2; q: a=1".
func show(a Assignment) string {
	var pools []string
	for _, k := range slices.SortedFunc(maps.Keys(a), compareKeys) {
		var nodes []string
		for _, n := range slices.Sorted(maps.Keys(a[k])) {
			nodes = append(nodes, fmt.Sprintf("%s=%d", n, a[k][n]))
		}
		if len(nodes) > 0 {
			pools = append(pools, k.Name+": "+strings.Join(nodes, " "))
		}
	}
	return strings.Join(pools, "; ")
}

func TestDistribute(t *testing.T) {
	for _, test := range []struct {
		name         string
		pools, nodes []string
		want         string
		unplaced     string
	}{
		{"spreads", []string{"p 5"}, []string{"a free=9", "b free=9", "c free=9"}, "p: a=2 b=2 c=1", ""},
		{"prefers room among equals", []string{"p 1"}, []string{"a free=2", "b free=9"}, "p: b=1", ""},
		{"nothing to place", []string{"p 0"}, []string{"a free=2 held=p:2 ready=p:2"}, "", ""},
		{"no nodes", []string{"p 2"}, nil, "", "p=2"},
		{"no template", []string{"p 2 memory=0"}, []string{"a free=9 held=p:2"}, "", "p=2"},

		{"capacity bounds", []string{"p 9 memory=2"}, []string{"a free=4", "b free=3"}, "p: a=2 b=1", "p=6"},
		{"pods' memory is not room", []string{"p 9"}, []string{"a free=4 used=3"}, "p: a=1", "p=8"},
		{"absurd use", []string{"p 9"}, []string{"a free=4 used=9"}, "", "p=9"},
		{"maximum per node", []string{"p 5 max=2"}, []string{"a free=9", "b free=9"}, "p: a=2 b=2", "p=1"},
		{"minimum per node", []string{"p 5 min=2"}, []string{"a free=9", "b free=9", "c free=9"}, "p: a=3 b=2", ""},
		{"minimum above replicas", []string{"p 2 min=5"}, []string{"a free=9", "b free=9"}, "p: a=2", ""},
		{"minimum needs room", []string{"p 4 min=2"}, []string{"a free=1", "b free=3"}, "p: b=3", "p=1"},
		{"minimum raised", []string{"p 4 min=2"}, []string{"a free=9 held=p:1", "b free=9 held=p:1", "c free=9 held=p:1", "d free=9 held=p:1"}, "p: c=2 d=2", ""},
		{"minimum lost to pods", []string{"p 4 min=2"}, []string{"a free=9 used=8 crowded held=p:2", "b free=9 held=p:2"}, "p: b=4", ""},

		{"selector", []string{"p 2 selector=disk:ssd"}, []string{"a free=9", "b free=9 label=disk:ssd"}, "p: b=2", ""},
		{"taint", []string{"p 2", "q 2 tolerates=dedicated"}, []string{"a free=9 taint=dedicated", "b free=1"}, "p: b=1; q: a=2", "p=1"},
		{"the machine taint is tolerated", []string{"p 1"}, []string{"a free=9 taint=firkin.dev/machine"}, "p: a=1", ""},
		{"no longer passes", []string{"p 2 selector=disk:ssd"}, []string{"a free=9 held=p:2", "b free=9 label=disk:ssd"}, "p: b=2", ""},

		{"sticky: a new node takes nothing", []string{"p 4"}, []string{"a free=9 held=p:4", "b free=9"}, "p: a=4", ""},
		{"sticky: growth goes to the emptier", []string{"p 6"}, []string{"a free=9 held=p:4", "b free=9"}, "p: a=4 b=2", ""},
		{"sticky: room lost for a moment", []string{"p 4"}, []string{"a free=4 used=2 held=p:4", "b free=9"}, "p: a=4", ""},
		{"crowded moves", []string{"p 4"}, []string{"a free=4 used=2 crowded held=p:4", "b free=9"}, "p: a=2 b=2", ""},
		{"crowded and nowhere to go stays", []string{"p 4"}, []string{"a free=4 used=2 crowded held=p:4", "b free=1"}, "p: a=3 b=1", ""},
		{"crowded, the higher priority first", []string{"p 2 priority=1", "q 4"}, []string{"a free=6 used=3 crowded held=p:2,q:4"}, "p: a=2; q: a=1", "q=3"},

		{"macOS: slots bound", []string{"p 5 guest=macos"}, []string{"a free=9 slots=2", "b free=9", "c free=9 slots=2 usedslots=1"}, "p: a=2 c=1", "p=2"},
		{"macOS: memory too", []string{"p 2 guest=macos memory=4"}, []string{"a free=4 slots=2"}, "p: a=1", "p=1"},
		{"macOS: Linux takes no slot", []string{"p 2 guest=macos", "q 4"}, []string{"a free=9 slots=2"}, "p: a=2; q: a=4", ""},
		{"macOS: pools share slots", []string{"p 2 guest=macos priority=1", "q 2 guest=macos"}, []string{"a free=9 slots=2"}, "p: a=2", "q=2"},
		{"macOS: displaces only where it must", []string{"p 2 guest=macos priority=1", "q 2 guest=macos"}, []string{"a free=9 slots=2 held=q:2", "b free=8 slots=2"}, "p: b=2; q: a=2", ""},
		{"macOS: a minimum needs slots", []string{"p 2 guest=macos min=2"}, []string{"a free=9 slots=2 usedslots=1", "b free=8 slots=2"}, "p: b=2", ""},
		{"macOS: slots lost for a moment", []string{"p 2 guest=macos"}, []string{"a free=9 slots=2 usedslots=1 held=p:2", "b free=8 slots=2"}, "p: a=2", ""},
		{"macOS: crowded moves", []string{"p 2 guest=macos"}, []string{"a free=9 slots=2 usedslots=1 crowded held=p:2", "b free=8 slots=2"}, "p: a=1 b=1", ""},
		{"macOS: crowded and nowhere to go stays", []string{"p 2 guest=macos"}, []string{"a free=9 slots=2 usedslots=1 crowded held=p:2"}, "p: a=2", ""},
		{"macOS: withheld keeps what is there", []string{"p 3 guest=macos"}, []string{"a free=9 slots=1 withheld=1 held=p:2", "b free=8 slots=1 withheld=1"}, "p: a=2 b=1", ""},
		{"macOS: not a Mac any more", []string{"p 1 guest=macos"}, []string{"a free=9 held=p:1"}, "", "p=1"},

		{"cordoned", []string{"p 2"}, []string{"a free=9 held=p:2 ready=p:2 state=Cordoned", "b free=9"}, "p: b=2", ""},
		{"cordoned and nowhere to go", []string{"p 2"}, []string{"a free=9 held=p:2 state=Cordoned"}, "", "p=2"},
		{"waiting keeps and takes nothing", []string{"p 4"}, []string{"a free=9 held=p:1 state=Waiting", "b free=9 held=p:1"}, "p: a=1 b=3", ""},
		{"unreachable does not count", []string{"p 4"}, []string{"a free=9 held=p:2 state=Unreachable", "b free=9 held=p:2"}, "p: b=4", ""},

		{"scale down: unready first", []string{"p 3"}, []string{"a free=9 held=p:3 ready=p:3", "b free=9 held=p:2 ready=p:0"}, "p: a=3", ""},
		{"scale down: from where most are", []string{"p 3"}, []string{"a free=9 held=p:4 ready=p:4", "b free=9 held=p:1 ready=p:1"}, "p: a=2 b=1", ""},
		{"scale down: of a waiting node first", []string{"p 2"}, []string{"a free=9 held=p:2 ready=p:2", "b free=9 held=p:2 ready=p:2 state=Waiting"}, "p: a=2", ""},

		{"came back, not ready yet: surge", []string{"p 4"}, []string{"a free=9 held=p:2 returning", "b free=9 held=p:4 ready=p:4"}, "p: a=2 b=4", ""},
		{"came back, half ready", []string{"p 4"}, []string{"a free=9 held=p:2 ready=p:1 returning", "b free=9 held=p:4 ready=p:4"}, "p: a=2 b=3", ""},
		{"came back, ready", []string{"p 4"}, []string{"a free=9 held=p:2 ready=p:2 returning", "b free=9 held=p:4 ready=p:4"}, "p: a=2 b=2", ""},
		{"came back, never ready", []string{"p 4"}, []string{"a free=9 held=p:2", "b free=9 held=p:4 ready=p:4"}, "p: b=4", ""},

		{"priority takes room", []string{"p 3 priority=1", "q 3"}, []string{"a free=3 held=q:3 ready=q:3"}, "p: a=3", "q=3"},
		{"priority prefers free room", []string{"p 2 priority=1", "q 3"}, []string{"a free=3 held=q:3", "b free=2"}, "p: b=2; q: a=3", ""},
		{"the displaced moves", []string{"p 3 priority=1", "q 3"}, []string{"a free=3 held=q:3", "b free=3"}, "p: b=3; q: a=3", ""},
		{"equals do not take from each other", []string{"a 4", "q 3"}, []string{"a free=4 held=q:3"}, "a: a=1; q: a=3", "a=3"},
		{"equals share what is there", []string{"p 4", "q 4"}, []string{"a free=4"}, "p: a=2; q: a=2", "p=2 q=2"},
		{"a huge machine does not starve the others", []string{"p 1 priority=9 memory=99", "q 2"}, []string{"a free=4"}, "q: a=2", "p=1"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var pools []*Pool
			for _, text := range test.pools {
				pools = append(pools, testPool(t, text))
			}
			var nodes []*Node
			for _, text := range test.nodes {
				nodes = append(nodes, testNode(t, text))
			}
			for range 3 { // order does not matter
				a, shortfalls := Distribute(pools, nodes)
				if got := show(a); got != test.want {
					t.Errorf("got  %s\nwant %s", got, test.want)
				}
				var unplaced []string
				for _, k := range slices.SortedFunc(maps.Keys(shortfalls), compareKeys) {
					if n := shortfalls[k].Unplaced; n > 0 {
						unplaced = append(unplaced, fmt.Sprintf("%s=%d", k.Name, n))
					}
				}
				if got := strings.Join(unplaced, " "); got != test.unplaced {
					t.Errorf("unplaced %q, want %q", got, test.unplaced)
				}
				rand.Shuffle(len(pools), func(i, j int) { pools[i], pools[j] = pools[j], pools[i] })
				rand.Shuffle(len(nodes), func(i, j int) { nodes[i], nodes[j] = nodes[j], nodes[i] })
			}
		})
	}
}

// TestDistributeProperties throws random fleets at Distribute.
func TestDistributeProperties(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	for round := range 10000 {
		pools, nodes := randomFleet(rng)
		a, shortfalls := Distribute(pools, nodes)
		if fault := checkAssignment(pools, nodes, a, shortfalls); fault != "" {
			t.Fatalf("seed %d, round %d: %s", seed, round, fault)
		}
		// What was decided is kept: nothing moves without a reason.
		for _, n := range nodes {
			clear(n.Held)
			n.Returning = false
			for _, p := range pools {
				if c := a.On(p.Key, n.Name); c > 0 && n.State != NodeUnreachable {
					n.Held[p.Key] = c
					n.Ready[p.Key] = c
				}
			}
			if n.State == NodeReady && n.Crowded && rng.IntN(2) == 0 {
				n.Crowded = false
			}
		}
		again, _ := Distribute(pools, nodes)
		third, _ := Distribute(pools, settle(pools, nodes, again))
		if show(again) != show(third) {
			t.Fatalf("seed %d, round %d: it does not settle:\n%s\n%s", seed, round, show(again), show(third))
		}
	}
}

func settle(pools []*Pool, nodes []*Node, a Assignment) []*Node {
	for _, n := range nodes {
		clear(n.Held)
		for _, p := range pools {
			if c := a.On(p.Key, n.Name); c > 0 {
				n.Held[p.Key], n.Ready[p.Key] = c, c
			}
		}
	}
	return nodes
}

func randomFleet(rng *rand.Rand) ([]*Pool, []*Node) {
	var pools []*Pool
	for i := range 1 + rng.IntN(4) {
		p := &Pool{Key: Key{"ns", fmt.Sprint("p", i)}, Replicas: rng.IntN(12), Memory: int64(1 + rng.IntN(3)), Priority: int32(rng.IntN(3)), MacOS: rng.IntN(3) == 0}
		if rng.IntN(3) == 0 {
			p.Max = 1 + rng.IntN(4)
		}
		if rng.IntN(3) == 0 {
			p.Min = rng.IntN(4)
		}
		if rng.IntN(4) == 0 {
			p.Selector = map[string]string{"disk": "ssd"}
		}
		pools = append(pools, p)
	}
	states := []NodeState{NodeReady, NodeReady, NodeReady, NodeReady, NodeWaiting, NodeCordoned, NodeUnreachable}
	var nodes []*Node
	for i := range 1 + rng.IntN(6) {
		n := &Node{Name: fmt.Sprint("n", i), State: states[rng.IntN(len(states))], Memory: int64(rng.IntN(12)), Used: int64(rng.IntN(6)),
			Slots: rng.IntN(3), UsedSlots: rng.IntN(2), Withheld: rng.IntN(4) / 3,
			Crowded: rng.IntN(4) == 0, Returning: rng.IntN(6) == 0, Labels: map[string]string{}, Held: map[Key]int{}, Ready: map[Key]int{}}
		if rng.IntN(2) == 0 {
			n.Labels["disk"] = "ssd"
		}
		for _, p := range pools {
			if rng.IntN(2) == 0 {
				n.Held[p.Key] = rng.IntN(5)
				n.Ready[p.Key] = rng.IntN(6)
			}
		}
		nodes = append(nodes, n)
	}
	return pools, nodes
}

// checkAssignment returns what is wrong with an assignment.
func checkAssignment(pools []*Pool, nodes []*Node, a Assignment, shortfalls map[Key]Shortfall) string {
	for _, p := range pools {
		surge, sum := 0, 0
		for _, n := range nodes {
			count := a.On(p.Key, n.Name)
			sum += count
			if n.Returning {
				surge += n.Held[p.Key]
			}
			switch {
			case count > p.maximum():
				return fmt.Sprintf("%s on %s: %d, more than the maximum", p.Key, n.Name, count)
			case count > 0 && !Eligible(p, n):
				return fmt.Sprintf("%s on %s: not eligible", p.Key, n.Name)
			case count > 0 && (n.State == NodeCordoned || n.State == NodeUnreachable):
				return fmt.Sprintf("%s on %s: %s", p.Key, n.Name, n.State)
			case count > n.Held[p.Key] && n.State != NodeReady:
				return fmt.Sprintf("%s grows on %s: %s", p.Key, n.Name, n.State)
			case count > 0 && count < p.minimum() && n.State == NodeReady:
				return fmt.Sprintf("%s on %s: %d, fewer than the minimum", p.Key, n.Name, count)
			}
		}
		if sum > p.Replicas+surge {
			return fmt.Sprintf("%s: %d targets, %d replicas and a surge of %d", p.Key, sum, p.Replicas, surge)
		}
		if shortfalls[p.Key].Unplaced != max(0, p.Replicas-sum) {
			return fmt.Sprintf("%s: %d of %d placed, and %d unplaced", p.Key, sum, p.Replicas, shortfalls[p.Key].Unplaced)
		}
	}
	for _, n := range nodes {
		var total, held int64
		slots, heldSlots := 0, 0
		for _, p := range pools {
			if p.MacOS {
				slots += a.On(p.Key, n.Name)
				heldSlots += n.Held[p.Key]
			}
			total += int64(a.On(p.Key, n.Name)) * p.Memory
			held += int64(n.Held[p.Key]) * p.Memory
		}
		if total > n.free() && total > held {
			return fmt.Sprintf("%s: %d of memory, %d free, %d held", n.Name, total, n.free(), held)
		}
		if all := n.Slots + n.Withheld; slots > max(0, all-n.UsedSlots) && slots > min(heldSlots, all) {
			return fmt.Sprintf("%s: %d slots, %d and %d withheld, %d used, %d held", n.Name, slots, n.Slots, n.Withheld, n.UsedSlots, heldSlots)
		}
	}
	// A pool has nothing to complain of while one of lower priority has the room it needs.
	for _, p := range pools {
		if shortfalls[p.Key].Unplaced < p.minimum() || p.Memory == 0 {
			continue
		}
		for _, n := range nodes {
			if n.State != NodeReady || !Eligible(p, n) || a.On(p.Key, n.Name) > 0 || p.maximum() < p.minimum() {
				continue
			}
			room, slots := n.free(), n.Slots-n.UsedSlots
			for _, q := range pools {
				if q.MacOS && q.Priority >= p.Priority {
					slots -= a.On(q.Key, n.Name)
				}
				if q.Priority >= p.Priority {
					room -= int64(a.On(q.Key, n.Name)) * q.Memory
				}
			}
			if room >= int64(p.minimum())*p.Memory && (!p.MacOS || slots >= p.minimum()) {
				return fmt.Sprintf("%s is starved on %s", p.Key, n.Name)
			}
		}
	}
	return ""
}

func BenchmarkDistribute(b *testing.B) {
	var pools []*Pool
	for i := range 1000 {
		pools = append(pools, &Pool{Key: Key{"ns", fmt.Sprint("p", i)}, Replicas: 10, Memory: 1, Priority: int32(i % 5)})
	}
	var nodes []*Node
	for i := range 200 {
		nodes = append(nodes, &Node{Name: fmt.Sprint("n", i), State: NodeReady, Memory: 60, Held: map[Key]int{}, Ready: map[Key]int{}})
	}
	a, _ := Distribute(pools, nodes)
	settle(pools, nodes, a)
	for b.Loop() {
		Distribute(pools, nodes)
	}
}
