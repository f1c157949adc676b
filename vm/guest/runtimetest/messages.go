// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package runtimetest

import (
	"strings"
	"testing"
)

// lastWords: what a container leaves in its termination message file is in the status that
// tells its exit, for as whom it may run, and nothing else is.
func lastWords(t *testing.T, s *Subject) {
	at := s.At("dir", "last-words")
	if s.Features.OwnRoot {
		at = "/dev/termination-log" // the API's default
	}
	for _, test := range []struct {
		name, script, want string
		user, readOnly     bool
	}{
		{name: "nothing", script: `test -f "$AT" && test ! -s "$AT"`},
		{name: "words", script: `printf 'it was me' > "$AT"; exit 3`, want: "it was me"},
		{name: "user", script: `printf 'it was %s' $(id -u) > "$AT"`, want: "it was 12345", user: true},
		{name: "long", script: `i=0; while [ $i -lt 500 ]; do echo 123456789; i=$((i+1)); done > "$AT"; printf end >> "$AT"`,
			want: strings.Repeat("123456789\n", 410)[7:] + "end"},
		{name: "link", script: `f=$(readlink "$AT") && rm "$f" && ln -s /etc/passwd "$f"; exit 0`},
		{name: "read-only root", script: `printf still > "$AT"`, want: "still", readOnly: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.user && !s.Features.Users || test.readOnly && !s.Features.ReadOnly {
				return
			}
			m := Sh(test.script)
			m.Env, m.TerminationMessagePath, m.ReadOnlyRoot = []string{"AT=" + at}, at, test.readOnly
			if test.user {
				m.User = user(12345, 54321)
			}
			r, err := s.Try(t, m)
			if err != nil || string(r.GetTerminationMessage()) != test.want || (r.GetExitCode() != 0) != (test.name == "words") {
				t.Errorf("message %q, want %q: %q %v %v", r.GetTerminationMessage(), test.want, r.Err, r.ContainerStatus, err)
			}
		})
	}
}
