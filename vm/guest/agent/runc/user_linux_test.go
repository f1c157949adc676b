// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package runc

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vk-firkin/vk-firkin/vm/guest/agent"
)

func TestLookUpUser(t *testing.T) {
	const passwd = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/data:/bin/sh\nbad line\n"
	const group = "root:x:0:\napp:x:1001:\nextra:x:2000:app\n"
	id := func(n int64) *int64 { return &n }
	for _, test := range []struct {
		name string
		user agent.User
		want user
		err  error
	}{
		{name: "nobody said", want: user{groups: []int{0}, home: "/root"}},
		{name: "name", user: agent.User{Image: "app"}, want: user{uid: 1000, gid: 1001, groups: []int{1001, 2000}, home: "/data"}},
		{name: "name and group", user: agent.User{Image: "app:extra"}, want: user{uid: 1000, gid: 2000, groups: []int{2000}, home: "/data"}},
		{name: "numbers", user: agent.User{Image: "12:34"}, want: user{uid: 12, gid: 34, groups: []int{34}, home: "/"}},
		{name: "the pod's uid", user: agent.User{Image: "app", UID: id(7)}, want: user{uid: 7, groups: []int{0}, home: "/"}},
		{name: "the pod's gid", user: agent.User{Image: "app", GID: id(9)}, want: user{uid: 1000, gid: 9, groups: []int{9, 2000}, home: "/data"}},
		{name: "supplemental", user: agent.User{Groups: []int64{5, 0, 5}}, want: user{groups: []int{0, 5}, home: "/root"}},
		{name: "unknown", user: agent.User{Image: "who"}, err: agent.ErrPrecondition},
		{name: "root refused", user: agent.User{Image: "root", RequireNonRoot: true}, err: agent.ErrPrecondition},
		{name: "root refused by default", user: agent.User{RequireNonRoot: true}, err: agent.ErrPrecondition},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := lookUpUser(test.user, passwd, group)
			if !errors.Is(err, test.err) || err == nil && !reflect.DeepEqual(got, test.want) {
				t.Errorf("%+v, %v; want %+v, %v", got, err, test.want, test.err)
			}
		})
	}
}

func TestReadInRoot(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(outside, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name string
		make func(path string) error
		want string
		err  error
	}{
		{name: "file", make: func(p string) error { return os.WriteFile(p, []byte("data"), 0o600) }, want: "data"},
		{name: "none", make: func(string) error { return nil }},
		{name: "link out", make: func(p string) error { return os.Symlink(outside, p) }},
		{name: "link up", make: func(p string) error { return os.Symlink("../../../../../../"+outside, p) }},
		{name: "link to itself", make: func(p string) error { return os.Symlink("passwd", p) }},
		{name: "pipe", make: func(p string) error { return unix.Mkfifo(p, 0o600) }},
		{name: "directory", make: func(p string) error { return os.Mkdir(p, 0o700) }},
		{name: "huge", make: func(p string) error {
			return os.WriteFile(p, []byte(strings.Repeat("x", maxUserFile+1)), 0o600)
		}, err: agent.ErrPrecondition},
	} {
		t.Run(test.name, func(t *testing.T) {
			root := t.TempDir()
			if err := os.Mkdir(filepath.Join(root, "etc"), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := test.make(filepath.Join(root, "etc/passwd")); err != nil {
				t.Fatal(err)
			}
			got, err := readInRoot(root, "etc/passwd")
			if got != test.want || !errors.Is(err, test.err) {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
}
