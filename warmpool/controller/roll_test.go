// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"maps"
	"slices"
	"strings"
	"testing"
)

func TestRoll(t *testing.T) {
	for _, test := range []struct {
		name  string
		limit int
		nodes string // name:revision[:done|idle|gone]
		want  string // nodes that keep the latest
	}{
		{"new nodes begin with it", 1, "a: b:", "a b"},
		{"one at a time", 1, "a:1 b:1 c:1", "a"},
		{"some at a time", 2, "a:1 b:1 c:1", "a b"},
		{"no limit is one", 0, "a:1 b:1", "a"},
		{"the next follows when one is done", 1, "a:2:done b:1 c:1", "a b"},
		{"and not before", 1, "a:2 b:1 c:1", "a"},
		{"a revision that cannot be built stops at the first", 1, "a:2 b:1 c:1", "a"},
		{"a new node on the way counts", 1, "a:2 b: c:1", "a b"},
		{"nothing to lose goes at once", 1, "a:1:idle b:1:idle c:1", "a b c"},
		{"the stuck node gets the correction first", 1, "a:1:done b:broken c:1:done", "b"},
		{"unreachable stays and holds up nobody", 1, "a:1:gone b:1 c:2:gone", "b c"},
		{"all done", 1, "a:2:done b:2:done", "a b"},
	} {
		var nodes []Rolled
		for field := range strings.FieldsSeq(test.nodes) {
			parts := append(strings.Split(field, ":"), "")
			nodes = append(nodes, Rolled{Node: parts[0], Revision: parts[1], Done: parts[2] == "done", Idle: parts[2] == "idle", Gone: parts[2] == "gone"})
		}
		got := Roll("2", nodes, test.limit)
		maps.DeleteFunc(got, func(_, revision string) bool { return revision != "2" })
		if names := strings.Join(slices.Sorted(maps.Keys(got)), " "); names != test.want {
			t.Errorf("%s: %q, want %q", test.name, names, test.want)
		}
	}
}

func TestRollLimit(t *testing.T) {
	for nodes, want := range map[int]int{0: 1, 1: 1, 9: 1, 10: 1, 20: 2, 200: 20} {
		if got := RollLimit(nodes); got != want {
			t.Errorf("%d nodes: %d, want %d", nodes, got, want)
		}
	}
}

func TestPace(t *testing.T) {
	for _, test := range []struct {
		wanted, held       []int
		outstanding, limit int
		want               []int
	}{
		{[]int{5}, []int{0}, 0, 10, []int{5}},
		{[]int{25}, []int{0}, 0, 10, []int{10}},
		{[]int{25}, []int{10}, 4, 10, []int{16}},
		{[]int{25}, []int{10}, 6, 10, []int{10}},             // a few at a time would be a write for each
		{[]int{8, 8, 8}, []int{0, 0, 0}, 0, 10, []int{8, 2}}, // by priority
		{[]int{3, 25}, []int{9, 0}, 0, 10, []int{3, 10}},     // decreases pass
		{[]int{25}, []int{20}, 20, 10, []int{20}},            // pods took all: nothing is taken back
		{[]int{0}, []int{20}, 20, 10, []int{0}},
	} {
		got := Pace(test.wanted, test.held, test.outstanding, test.limit)
		if !slices.Equal(got[:len(test.want)], test.want) {
			t.Errorf("%+v: got %v", test, got)
		}
	}
}
