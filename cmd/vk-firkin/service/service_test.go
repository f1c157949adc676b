// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package service_test

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vk-firkin/vk-firkin/cmd/vk-firkin/service"
)

var update = flag.Bool("update", false, "write the golden files")

// targets are all places where a service can be.
var targets = map[string]service.Target{
	"systemd-user":   {Manager: service.Systemd, User: "ci", UID: 1000, Home: "/home/ci"},
	"systemd-system": {Manager: service.Systemd, System: true, User: "ci", UID: 1000, Home: "/home/ci"},
	"launchd-agent":  {Manager: service.Launchd, User: "ci", UID: 501, Home: "/Users/ci"},
	"launchd-daemon": {Manager: service.Launchd, System: true, User: "ci", UID: 501, Home: "/Users/ci"},
}

func specOf(t service.Target) service.Spec {
	s := service.Spec{
		Program: t.Program(), StopTimeout: 70500 * time.Millisecond, Env: map[string]string{"HTTPS_PROXY": "http://proxy.example:3128"},
		Args: []string{
			"node", "--kubeconfig=" + t.Home + "/node.kubeconfig", "--node-labels=team=a", "--state-dir=" + t.Home + "/.firkin/state",
			// What both formats have a meaning for.
			`--allow-host-path=/srv/50% off/"$HOME" & <more>\x;'#`,
		},
	}
	if t.Manager == service.Launchd {
		s.Stderr = t.Home + "/.firkin/log/crash.log"
	}
	return s
}

// TestDefinitions compares what is written and done, for each place, with golden files.
func TestDefinitions(t *testing.T) {
	for name, target := range targets {
		t.Run(name, func(t *testing.T) {
			definition, err := service.Render(target, specOf(target))
			if err != nil {
				t.Fatal(err)
			}
			golden(t, name+".txt", definition)
			install, err := service.Install(target, specOf(target), "/home/ci/src/bin/vk-firkin", true)
			if err != nil {
				t.Fatal(err)
			}
			uninstall, err := service.Uninstall(target, 70*time.Second)
			if err != nil {
				t.Fatal(err)
			}
			var steps strings.Builder
			write(&steps, "install", install)
			write(&steps, "uninstall", uninstall)
			fmt.Fprintf(&steps, "start: %s\nlogs: %s\n", target.Start(), target.Logs("/Users/ci/.firkin/log/node.log", "/Users/ci/.firkin/log/crash.log"))
			golden(t, name+"-steps.txt", []byte(steps.String()))

			got, err := service.Parse(target.Manager, definition)
			want := specOf(target)
			want.StopTimeout, want.Stderr = 71*time.Second, ""
			if target.Manager == service.Systemd {
				if strings.Contains(string(definition), "proxy") {
					t.Error("the unit, which anybody may read, has the environment")
				}
				want.Env = nil
			}
			if diff := cmp.Diff(want, got); err != nil || diff != "" {
				t.Errorf("%v, read back (-want +got):\n%s", err, diff)
			}
			if got.Argument("state-dir") != target.Home+"/.firkin/state" || got.Argument("state") != "" {
				t.Errorf("state-dir is %q", got.Argument("state-dir"))
			}
		})
	}
}

func write(b *strings.Builder, title string, steps []service.Step) {
	fmt.Fprintf(b, "%s:\n", title)
	for _, s := range steps {
		fmt.Fprintf(b, "  %s\n", s)
		if s.Mode != 0 {
			fmt.Fprintf(b, "    mode %v\n", s.Mode)
		}
		if s.Remedy != "" {
			fmt.Fprintf(b, "    else: %s\n", s.Remedy)
		}
	}
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, got, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s (-want +got; go test -update writes it):\n%s", name, diff)
	}
}

func TestRefusesWhatADefinitionCannotSay(t *testing.T) {
	good, target := specOf(targets["systemd-user"]), targets["systemd-user"]
	for name, change := range map[string]func(*service.Spec, *service.Target){
		"a line's end":        func(s *service.Spec, _ *service.Target) { s.Args = []string{"node", "a\nKillMode=mixed"} },
		"no text":             func(s *service.Spec, _ *service.Target) { s.Args = []string{"\xff"} },
		"an endless argument": func(s *service.Spec, _ *service.Target) { s.Args = []string{strings.Repeat("x", 1<<20)} },
		"a relative program":  func(s *service.Spec, _ *service.Target) { s.Program = "bin/vk-firkin" },
		"a variable's name":   func(s *service.Spec, _ *service.Target) { s.Env = map[string]string{"A B": "x"} },
		"no time to stop":     func(s *service.Spec, _ *service.Target) { s.StopTimeout = 0 },
		"a user's name":       func(_ *service.Spec, t *service.Target) { t.User = "ci\nUser=root" },
		"no home":             func(_ *service.Spec, t *service.Target) { t.Home = "" },
		"no manager":          func(_ *service.Spec, t *service.Target) { t.Manager = service.ManagerOf("plan9") },
	} {
		s, at := good, target
		change(&s, &at)
		if _, err := service.Install(at, s, "/x", true); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
	for _, m := range []service.Manager{service.Systemd, service.Launchd} {
		for _, text := range []string{"", "[Service]\nExecStart=\n", "<plist><dict/></plist>", "\x00"} {
			if _, err := service.Parse(m, []byte(text)); !errors.Is(err, service.ErrForeign) {
				t.Errorf("%q: %v", text, err)
			}
		}
	}
}

// TestDo takes real steps in a folder.
func TestDo(t *testing.T) {
	dir := t.TempDir()
	self := filepath.Join(dir, "self")
	if err := os.WriteFile(self, []byte("new program"), 0o600); err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "a", "b", "program")
	if err := os.MkdirAll(filepath.Dir(program), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(program, []byte("old program"), 0o600); err != nil {
		t.Fatal(err)
	}
	running, err := os.Open(program) // as a process that runs from it has it
	if err != nil {
		t.Fatal(err)
	}
	defer running.Close()
	told := 0
	err = service.Do(t.Context(), []service.Step{
		{Write: program, Copy: self, Mode: 0o755},
		{Write: filepath.Join(dir, "unit"), Content: []byte("[Unit]"), Mode: 0o600},
		{Folder: filepath.Join(dir, "x", "log"), Mode: 0o700, Owner: os.Getuid()},
		{Folder: filepath.Join(dir, "x", "log"), Mode: 0o700, Owner: os.Getuid()},
		{Remove: self}, {Remove: self},
		{Run: []string{"false"}, MayFail: true},
		{Run: []string{"true"}, Retry: true},
	}, func(service.Step) { told++ })
	if err != nil || told != 8 {
		t.Fatalf("%v, %d steps", err, told)
	}
	for path, mode := range map[string]os.FileMode{program: 0o755, filepath.Join(dir, "unit"): 0o600, filepath.Join(dir, "x", "log"): 0o700, filepath.Join(dir, "x"): 0o700} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, %v", path, info, err)
		}
	}
	data := make([]byte, 3)
	if _, err := running.Read(data); err != nil || string(data) != "old" {
		t.Errorf("the program that runs reads %q, %v", data, err)
	}
	if got, err := os.ReadFile(program); err != nil || string(got) != "new program" {
		t.Errorf("the program is %q, %v", got, err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "a", "b", ".*")); len(left) > 0 {
		t.Errorf("left over: %v", left)
	}
	told = 0
	err = service.Do(t.Context(), []service.Step{
		{Run: []string{"sh", "-c", "echo Failed to connect to bus; exit 1"}, Remedy: "log in"}, {Remove: program},
	}, func(service.Step) { told++ })
	if err == nil || told != 1 || !strings.Contains(err.Error(), "connect to bus") || !strings.HasSuffix(err.Error(), "; log in") {
		t.Errorf("%v after %d steps", err, told)
	}
	if err := service.Do(t.Context(), []service.Step{{Run: []string{"no-such-manager"}}}, func(service.Step) {}); err == nil || !strings.Contains(err.Error(), "not installed") {
		t.Errorf("a manager that is missing: %v", err)
	}
}
