// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package service_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vk-firkin/vk-firkin/cmd/vk-firkin/service"
	"github.com/vk-firkin/vk-firkin/test/systemd"
)

// standIn names the folder of the process that stands in for a node.
const standIn = "VK_FIRKIN_TEST_STAND_IN"

// odd is what files of an environment have a meaning for.
const odd = `50% "of" $HOME \n ` + "`id`" + ` # 'x' \`

// TestStandIn is that process: it starts a machine as drivers do, in a session of its own,
// if none is left by the one before, and ends when it is told to.
func TestStandIn(t *testing.T) {
	dir := os.Getenv(standIn)
	if dir == "" {
		return // only a process of its own does anything here
	}
	if got := os.Getenv("ODD"); got != odd {
		t.Fatalf("the environment has %q, want %q", got, odd)
	}
	told, stop := signal.NotifyContext(t.Context(), syscall.SIGTERM)
	defer stop()
	if _, err := os.Stat(filepath.Join(dir, "machine")); err != nil {
		machine := exec.Command("sleep", "1000")
		machine.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		if err := machine.Start(); err != nil {
			t.Fatal(err)
		}
		note(t, filepath.Join(dir, "machine"), machine.Process.Pid)
	}
	note(t, filepath.Join(dir, "node"), os.Getpid())
	<-told.Done()
}

func note(t *testing.T, path string, pid int) {
	t.Helper()
	if err := os.WriteFile(path+"~", []byte(strconv.Itoa(pid)), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+"~", path); err != nil {
		t.Fatal(err)
	}
}

// The unit as it is written, under a real systemd: machines outlive the restart, the crash
// and the end of their node's process, and without what the unit says of it they would not.
func TestUnitKeepsMachines(t *testing.T) {
	m := systemd.Start(t)
	for name, c := range map[string]struct {
		change func(unit string) string
		kept   bool
	}{
		"as written":       {func(u string) string { return u }, true},
		"without KillMode": {func(u string) string { return strings.Replace(u, "KillMode=process\n", "", 1) }, false},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			steps, err := service.Install(service.Target{Manager: service.Systemd, System: true, User: "root"}, service.Spec{
				Program: os.Args[0], Args: []string{"-test.run=^TestStandIn$"}, Env: map[string]string{standIn: dir, "ODD": odd}, StopTimeout: 20 * time.Second,
			}, os.Args[0], false)
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range steps { // what is written for the host is written for this systemd
				if s.Write == "" {
					continue
				}
				text := string(s.Content)
				if strings.HasSuffix(s.Write, ".service") {
					if text = c.change(text); (text == string(s.Content)) != c.kept {
						t.Fatal("the unit has not the line that is to be taken out")
					}
				}
				if err := os.WriteFile(filepath.Join(m.UnitDir, filepath.Base(s.Write)), []byte(text), s.Mode); err != nil {
					t.Fatal(err)
				}
			}
			systemctl := func(args ...string) string {
				t.Helper()
				out, err := m.Output(t.Context(), append([]string{"systemctl"}, args...)...)
				if err != nil {
					t.Fatal(err)
				}
				return out
			}
			systemctl("daemon-reload")
			systemctl("enable", "--now", "vk-firkin.service")
			defer systemctl("stop", "vk-firkin.service")
			node := waitNode(t, dir, 0)
			machine := m.HostPID(number(t, filepath.Join(dir, "machine")))
			if machine == 0 {
				t.Fatal("there is no machine")
			}
			defer func() { _ = syscall.Kill(machine, syscall.SIGKILL) }()
			if !c.kept {
				systemctl("stop", "vk-firkin.service")
				if alive(machine) {
					t.Error("the machine lives without it, too: this test shows nothing")
				}
				return
			}
			systemctl("restart", "vk-firkin.service")
			node = waitNode(t, dir, node)
			if !alive(machine) {
				t.Fatal("the restart has ended the machine")
			}
			systemctl("kill", "--kill-who=main", "-s", "KILL", "vk-firkin.service")
			node = waitNode(t, dir, node)
			if !alive(machine) {
				t.Fatal("the node's crash has ended the machine")
			}
			checkProcess(t, m.HostPID(node))
			systemctl("stop", "vk-firkin.service")
			if !alive(machine) {
				t.Fatal("the stop has ended the machine")
			}
			if state := systemctl("show", "-p", "Result", "--value", "vk-firkin.service"); state != "success" {
				t.Errorf("the service has ended with %q", state)
			}
			systemctl("start", "vk-firkin.service")
			waitNode(t, dir, node)
			if !alive(machine) {
				t.Error("the start has ended the machine")
			}
		})
	}
}

// checkProcess looks at what the unit has given the node's process.
func checkProcess(t *testing.T, pid int) {
	t.Helper()
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid)) //nolint:gosec // of /proc
	if err != nil {
		t.Fatal(err)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid)) //nolint:gosec // of /proc
	if err != nil {
		t.Fatal(err)
	}
	// Where not even root may have more than it was started with, the host's limit stays.
	var host unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &host); err != nil {
		t.Fatal(err)
	}
	files := min(65536, host.Max)
	have := strings.Join(strings.Fields(string(limits)+string(status)), " ")
	if !strings.Contains(have, "Max open files 65536 65536") && !strings.Contains(have, fmt.Sprintf("Max open files %d %d", files, files)) {
		t.Errorf("the process may open other than %d files:\n%s", files, limits)
	}
	for _, want := range []string{"Max core file size 0 0", "Umask: 0077", "NoNewPrivs: 1"} {
		if !strings.Contains(have, want) {
			t.Errorf("the process has not %q", want)
		}
	}
}

// waitNode waits for a node's process that is not the one before.
func waitNode(t *testing.T, dir string, before int) int {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		data, _ := os.ReadFile(filepath.Join(dir, "node"))
		if pid, err := strconv.Atoi(string(data)); err == nil && pid != before {
			return pid
		}
		select {
		case <-ctx.Done():
			t.Fatal("no node's process has come")
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func number(t *testing.T, path string) int {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(string(data))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func alive(pid int) bool {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)) //nolint:gosec // of /proc
	return err == nil && !strings.Contains(string(data), ") Z ")
}

// systemd's own checker finds nothing to say about the units.
func TestUnitsAreVerified(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("systemd-analyze is not installed (Debian: systemd)")
	}
	for name, args := range map[string][]string{"systemd-system": {"verify", "--man=no"}, "systemd-user": {"--user", "verify", "--man=no"}} {
		target := targets[name]
		target.User = "root" // who must exist
		spec := specOf(target)
		spec.Program = "/bin/true"
		unit, err := service.Render(target, spec)
		if err != nil {
			t.Fatal(err)
		}
		verify := func(content []byte) string {
			file := filepath.Join(t.TempDir(), "vk-firkin.service")
			if err := os.WriteFile(file, content, 0o600); err != nil {
				t.Fatal(err)
			}
			cmd := exec.CommandContext(t.Context(), analyze, append(slices.Clone(args), file)...) //nolint:gosec // systemd's own
			cmd.Env = append(os.Environ(), "XDG_RUNTIME_DIR="+t.TempDir())
			out, err := cmd.CombinedOutput()
			return ours(string(out), err)
		}
		if said := verify(unit); said != "" {
			t.Errorf("%s: %s", name, said)
		}
		if verify(append(unit, "[Service]\nKilMode=process\n"...)) == "" {
			t.Errorf("%s: a setting that there is not is not found", name)
		}
	}
}

// ours are the lines about our unit: a host's other units are not our affair.
func ours(out string, err error) string {
	var lines []string
	for line := range strings.Lines(out) {
		if strings.Contains(line, "vk-firkin.service") {
			lines = append(lines, line)
		}
	}
	if len(lines) == 0 && err != nil && out == "" {
		return err.Error()
	}
	return strings.Join(lines, "")
}
