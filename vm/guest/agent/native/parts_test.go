// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build linux || darwin

package native

import (
	"errors"
	"os"
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vk-firkin/vk-firkin/vm/guest/agent"
)

func TestParseUsage(t *testing.T) {
	got, err := ParseUsage("    1  12345   0:03.25\n  77      0 61:02.00\n\n 9 1 01:02:03\n 10 1 2-00:00:01\n")
	if err != nil {
		t.Fatal(err)
	}
	for pid, want := range map[int]Usage{
		1:  {CPU: 3250 * time.Millisecond, MemoryBytes: 12345 << 10},
		77: {CPU: 61*time.Minute + 2*time.Second},
		9:  {CPU: time.Hour + 2*time.Minute + 3*time.Second, MemoryBytes: 1 << 10},
		10: {CPU: 48*time.Hour + time.Second, MemoryBytes: 1 << 10},
	} {
		if got[pid] != want {
			t.Errorf("%d: %v, want %v", pid, got[pid], want)
		}
	}
	for _, bad := range []string{"1 2\n", "x 1 0:01.00\n", "1 x 0:01.00\n", "1 1 soon\n", "1 1 1:2:3:4\n", "1 1 x-0:01\n", "1 1 0:-1\n"} {
		if got, err := ParseUsage(bad); err == nil {
			t.Errorf("%q was read as %v", bad, got)
		}
	}
}

// TestMeter: processor time never goes back, whatever ends and begins.
func TestMeter(t *testing.T) {
	var m Meter
	s := func(n int) Usage { return Usage{CPU: time.Duration(n) * time.Second} }
	for i, step := range []struct {
		now  map[int]Usage
		want int
	}{
		{map[int]Usage{1: s(1), 2: s(2)}, 3},
		{map[int]Usage{1: s(2)}, 4},          // 2 ended
		{map[int]Usage{1: s(2), 2: s(1)}, 5}, // its number is another's
		{map[int]Usage{1: s(1)}, 6},          // 1's number too, with both gone
		{nil, 6},
	} {
		if got := m.Add(step.now); got != time.Duration(step.want)*time.Second {
			t.Errorf("step %d: %s, want %d s", i, got, step.want)
		}
	}
}

func TestEnvironment(t *testing.T) {
	c := &container{r: New(Options{Path: "/p"}), who: account{home: "/h"}, spec: agent.ContainerSpec{Env: []string{"A=1", "TERM=t", "A=2"}}}
	if got, want := c.env([]string{"HOME=/x", "B="}, true), []string{"PATH=/p", "HOME=/x", "TERM=t", "A=2", "B="}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestAccounts(t *testing.T) {
	i64 := func(n int64) *int64 { return &n }
	root := account{uid: 0, gid: 0, groups: []int{0}, home: "/root"}
	for _, test := range []struct {
		self account
		user agent.User
		want account
		err  bool
	}{
		{self: root, user: agent.User{}, want: root},
		{self: root, user: agent.User{UID: i64(4242)}, want: account{uid: 4242, groups: []int{0}, home: "/"}},
		{self: root, user: agent.User{Image: "4242:77", Groups: []int64{5, 77}}, want: account{uid: 4242, gid: 77, groups: []int{77, 5}, home: "/"}},
		{self: root, user: agent.User{UID: i64(4242), GID: i64(9)}, want: account{uid: 4242, gid: 9, groups: []int{9}, home: "/"}},
		{self: root, user: agent.User{RequireNonRoot: true}, err: true},
		{self: root, user: agent.User{Image: "no-such-user"}, err: true},
		{self: root, user: agent.User{Image: "0:no-such-group"}, err: true},
		{self: account{uid: 501, gid: 20, groups: []int{20}, home: "/u"}, user: agent.User{RequireNonRoot: true}, want: account{uid: 501, gid: 20, groups: []int{20}, home: "/u"}},
		{self: account{uid: 501, gid: 20, groups: []int{20}}, user: agent.User{Image: "0"}, err: true},
		{self: account{uid: 501, gid: 20, groups: []int{20}}, user: agent.User{GID: i64(0)}, err: true},
	} {
		got, err := test.self.resolve(test.user)
		if test.err {
			if !errors.Is(err, agent.ErrPrecondition) {
				t.Errorf("%+v: %v, %v", test.user, got, err)
			}
			continue
		}
		if err != nil || got.uid != test.want.uid || got.gid != test.want.gid || got.home != test.want.home || !slices.Equal(got.groups, test.want.groups) {
			t.Errorf("%+v: %+v, %v, want %+v", test.user, got, err, test.want)
		}
	}
}

// TestStaleSession: a session's number that was given out again is not the container's.
func TestStaleSession(t *testing.T) {
	r := New(Options{})
	r.listed = func() ([]entry, error) {
		return []entry{
			{pid: 1, sid: 1}, {pid: 10, ppid: 1, sid: 10}, {pid: 11, ppid: 10, sid: 10}, // the first process and its child
			{pid: 12, ppid: 11, sid: 12}, {pid: 13, ppid: 12, sid: 12}, // left the session
			{pid: 21, ppid: 1, sid: 20},                               // of a session whose leader is gone
			{pid: 30, ppid: 1, sid: 30}, {pid: 31, ppid: 30, sid: 30}, // somebody else, by a number of ours
			{pid: 14, ppid: 10, sid: 10, dead: true},
		}, nil
	}
	c := &container{r: r, sessions: map[int]bool{10: true, 20: false, 30: false}}
	members, err := c.members()
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, m := range members {
		pids = append(pids, m.pid)
	}
	slices.Sort(pids)
	if want := []int{10, 11, 12, 13, 21}; !slices.Equal(pids, want) {
		t.Errorf("members %v, want %v", pids, want)
	}
	if _, ok := c.sessions[30]; ok {
		t.Error("the stale session is kept")
	}
}

// TestOwnProcess: the process table has this process and what it uses.
func TestOwnProcess(t *testing.T) {
	all, err := processTable()
	if err != nil {
		t.Fatal(err)
	}
	// 0 when the session's leader is outside of this PID namespace, as in some containers.
	session, err := unix.Getsid(0)
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(all, func(e entry) bool { return e.pid == os.Getpid() })
	if i < 0 || all[i].ppid != os.Getppid() || all[i].dead || all[i].sid != session {
		t.Fatalf("entry %d of %v, want session %d", i, all, session)
	}
	used, err := processUsage(all[i : i+1])
	if err != nil || used[os.Getpid()].MemoryBytes < 1<<20 {
		t.Errorf("usage %v %v", used, err)
	}
}

func TestSignalNumbers(t *testing.T) {
	for number, want := range map[int]syscall.Signal{1: syscall.SIGHUP, 9: syscall.SIGKILL, 10: syscall.SIGUSR1, 12: syscall.SIGUSR2, 15: syscall.SIGTERM, 18: syscall.SIGCONT, 19: syscall.SIGSTOP} {
		got, err := toSystem(number)
		if err != nil || got != want || fromSystem(got) != number {
			t.Errorf("%d: %v (back %d) %v, want %v", number, got, fromSystem(got), err, want)
		}
	}
	for _, bad := range []int{0, -1, 65} {
		if _, err := toSystem(bad); !errors.Is(err, agent.ErrInvalid) {
			t.Errorf("%d: %v", bad, err)
		}
	}
}
