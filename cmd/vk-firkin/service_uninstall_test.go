// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vk-firkin/vk-firkin/cmd/vk-firkin/service"
)

// aNode is what a node that is asked to leave does, in order.
type aNode struct {
	did  []string
	left func(did []string) []string // what is left after what was done
	fail error
}

func (n *aNode) leaving() leaving {
	return leaving{
		left: func() []string {
			n.did = append(n.did, "look")
			return n.left(n.did)
		},
		hold:   func() func() { n.did = append(n.did, "hold"); return func() { n.did = append(n.did, "resume") } },
		drain:  func(context.Context) error { n.did = append(n.did, "drain"); return n.fail },
		refill: func() { n.did = append(n.did, "refill") },
	}
}

// A node that is to go for good lets no pod in, ends its warm machines, and goes when nothing is left then. One
// that has pods goes on as it was.
func TestLeave(t *testing.T) {
	six := []string{"pod a/1", "pod a/2", "pod a/3", "pod a/4", "pod a/5", "pod a/6"}
	after := func(what string) func([]string) []string {
		return func(did []string) []string {
			if slices.Contains(did, what) {
				return []string{"pod a/late"}
			}
			return nil
		}
	}
	boom := errors.New("boom")
	for name, c := range map[string]struct {
		node aNode
		did  string
		says []string
	}{
		"nothing is left":           {aNode{left: func([]string) []string { return nil }}, "look hold look drain look", nil},
		"pods":                      {aNode{left: func([]string) []string { return six }}, "look", []string{"6 machines", "pod a/5"}},
		"a pod before the door":     {aNode{left: after("hold")}, "look hold look resume", []string{"pod a/late"}},
		"a pod with a warm machine": {aNode{left: after("drain")}, "look hold look drain look refill resume", []string{"pod a/late", "warm machines anew"}},
		"it cannot drain":           {aNode{left: func([]string) []string { return nil }, fail: boom}, "look hold look drain refill resume", []string{"boom", "makes those anew"}},
	} {
		root := t.TempDir()
		serveAs(t, root, map[string]http.HandlerFunc{"POST " + controlLeave: c.node.leaving().serve})
		err := leave(t.Context(), root)
		if (err == nil) != (c.says == nil) || strings.Join(c.node.did, " ") != c.did {
			t.Errorf("%s: %v after %s, want %s", name, err, c.node.did, c.did)
		}
		for _, says := range c.says {
			if err == nil || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "a/6") {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	if err := leave(t.Context(), t.TempDir()); err != nil {
		t.Errorf("nothing there: %v", err)
	}
	// A node of before this command.
	old := t.TempDir()
	serveAs(t, old, nil)
	if err := leave(t.Context(), old); err == nil || !strings.Contains(err.Error(), "restart it") {
		t.Errorf("%v", err)
	}
}

// A service that cannot be removed may have a node that has left already.
func TestRemoveService(t *testing.T) {
	steps := []service.Step{{Run: []string{"false"}, Remedy: "log in"}}
	for force, want := range map[bool]bool{false: true, true: false} {
		err := removeService(t.Context(), io.Discard, steps, force)
		if err == nil || !strings.Contains(err.Error(), "log in") || strings.Contains(err.Error(), "takes no more pods and keeps no warm machines") != want {
			t.Errorf("by force %t: %v", force, err)
		}
	}
	if err := removeService(t.Context(), io.Discard, nil, false); err != nil {
		t.Error(err)
	}
}

// The folders are those of the service's own node, whoever removes it.
func TestDirectoriesOf(t *testing.T) {
	mine := directories{StateDir: "/root/.firkin/state", CacheDir: "/root/.firkin/cache"}
	theirs := directories{StateDir: "/home/ci/state", CacheDir: "/home/ci/cache"}
	spec := service.Spec{Args: []string{"node", "--state-dir=/home/ci/state", "--cache-dir=/home/ci/cache"}}
	for name, c := range map[string]struct {
		spec    service.Spec
		problem error
		given   string
		force   bool
		want    directories
		says    string
	}{
		"the service's":          {spec: spec, want: theirs},
		"the same, named":        {spec: spec, given: "/home/ci/state", want: theirs},
		"by force":               {spec: spec, force: true, want: theirs},
		"another is named":       {spec: spec, given: "/elsewhere", says: "/home/ci/state"},
		"it cannot be read":      {problem: service.ErrForeign, says: "--force"},
		"it does not say":        {spec: service.Spec{Args: []string{"node"}}, says: "--force"},
		"the same, by force":     {spec: service.Spec{Args: []string{"node"}}, force: true, want: mine},
		"it cannot be, by force": {problem: service.ErrForeign, force: true, want: mine},
	} {
		got, err := directoriesOf(c.spec, c.problem, mine, c.given, c.force)
		if c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says)) || c.says == "" && (err != nil || got != c.want) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

// A node that another one takes the place of leaves its pods to that, and to nobody else: an install that
// would end pods says so before it does anything.
func TestHandover(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h handover
		if h.expected() {
			t.Error("it is expected before anybody said so")
		}
		h.until.Store(time.Now().Add(handoverTime).UnixNano())
		time.Sleep(handoverTime - time.Second)
		if !h.expected() {
			t.Error("it is not expected while it takes place")
		}
		time.Sleep(time.Second)
		if h.expected() {
			t.Error("the host's own shutdown is taken for it")
		}
	})
	var h handover
	root := t.TempDir()
	serveAs(t, root, map[string]http.HandlerFunc{"POST " + controlHandover: h.serve})
	if err := askToHandOver(t.Context(), root, true); err != nil || !h.expected() {
		t.Errorf("%v, expected %t", err, h.expected())
	}
	if err := askToHandOver(t.Context(), t.TempDir(), true); err != nil {
		t.Errorf("no node: %v", err)
	}
	old := t.TempDir()
	serveAs(t, old, nil)
	if err := askToHandOver(t.Context(), old, true); err == nil || !strings.Contains(err.Error(), "kubectl drain") {
		t.Errorf("one that would end its pods: %v", err)
	}
	if err := askToHandOver(t.Context(), old, false); err != nil {
		t.Errorf("one that leaves them: %v", err)
	}
	for args, want := range map[string]bool{"node": false, "--drain-on-shutdown": true, "--drain-on-shutdown=true": true, "--drain-on-shutdown=false": false} {
		if got := drains(service.Spec{Args: []string{args}}); got != want {
			t.Errorf("%s: %t", args, got)
		}
	}
}
