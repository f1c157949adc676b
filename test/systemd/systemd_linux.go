// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package systemd

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

//go:embed start.sh
var startScript string

// startTimeout bounds the start of systemd, which takes a tenth of a second on a host that
// has nothing else to do, and commandTimeout a command that is sent to it.
const (
	startTimeout   = time.Minute
	commandTimeout = 2 * time.Minute
)

// Manager is a running systemd.
type Manager struct {
	// UnitDir is /etc/systemd/system of that systemd, and ProgramDir its /usr/local/bin.
	UnitDir, ProgramDir string
	pid                 int
}

// Start starts systemd, and ends it with the test. It skips the test where that cannot be.
func Start(t testing.TB) *Manager {
	t.Helper()
	program := "/lib/systemd/systemd"
	switch _, err := os.Stat(program); {
	case os.Getuid() != 0:
		t.Skip("only root can make the namespaces that systemd runs in")
	case err != nil:
		t.Skipf("no systemd on this host: %v", err)
	}
	for _, tool := range []string{"unshare", "nsenter", "systemctl"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skip(err)
		}
	}
	dir, err := os.MkdirTemp("", "fk-systemd-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	m := &Manager{UnitDir: filepath.Join(dir, "units"), ProgramDir: filepath.Join(dir, "programs")}
	for _, d := range []string{m.UnitDir, m.ProgramDir} {
		if err := os.Mkdir(d, 0o755); err != nil { //nolint:gosec // as the folders whose places they take
			t.Fatal(err)
		}
	}
	groups := controlGroups(filepath.Base(dir))
	if len(groups) == 0 {
		t.Skip("this host has no control groups that systemd could use")
	}
	for _, g := range groups {
		if err := os.Mkdir(g, 0o755); err != nil { //nolint:gosec // as the kernel makes them
			t.Skipf("control groups cannot be made: %v", err)
		}
		t.Cleanup(func() { removeGroup(t, g) })
	}
	var said bytes.Buffer
	cmd := exec.Command("bash", append([]string{"-c", startScript, "start", dir}, groups...)...) //nolint:gosec // this package's script
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = cmd.Wait()
	}()
	t.Cleanup(func() {
		if m.pid > 0 {
			_ = syscall.Kill(m.pid, syscall.SIGKILL) // and the kernel everything below it
		}
		_ = cmd.Process.Kill()
		<-ended
		if t.Failed() {
			t.Logf("systemd said:\n%s", said.String())
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), startTimeout)
	defer cancel()
	for {
		m.pid = childOf(cmd.Process.Pid)
		if m.pid > 0 {
			// "degraded" is up, too.
			if out, _ := m.Output(ctx, "systemctl", "is-system-running"); strings.HasPrefix(out, "running") || strings.HasPrefix(out, "degraded") {
				return m
			}
		}
		select {
		case <-ended:
			m.pid = 0
			t.Skipf("systemd does not run in namespaces of this host: %s", said.String())
		case <-ctx.Done():
			t.Fatalf("systemd has not come up: %s", said.String())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// Command is a command in the namespaces of that systemd.
func (m *Manager) Command(ctx context.Context, argv ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "nsenter", append([]string{"-t", strconv.Itoa(m.pid), "-m", "-p", "-i", "-u", "-C", "--"}, argv...)...) //nolint:gosec // a test's own command
}

// Output is what such a command says.
func (m *Manager) Output(ctx context.Context, argv ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	out, err := m.Command(ctx, argv...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, out)
	}
	return strings.TrimSpace(string(out)), err
}

// HostPID is the number that a process of that systemd has on this host; 0 when there is none.
func (m *Manager) HostPID(inside int) int {
	statuses, _ := filepath.Glob("/proc/[0-9]*/status")
	mine, _ := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", m.pid))
	for _, path := range statuses {
		if space, _ := os.Readlink(filepath.Join(filepath.Dir(path), "ns/pid")); space != mine {
			continue
		}
		data, _ := os.ReadFile(path) //nolint:gosec // of /proc
		for line := range strings.Lines(string(data)) {
			// proc(5): the process's numbers, in this namespace and in those below it.
			if numbers, ok := strings.CutPrefix(line, "NSpid:"); ok {
				fields := strings.Fields(numbers)
				if fields[len(fields)-1] == strconv.Itoa(inside) {
					pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
					return pid
				}
			}
		}
	}
	return 0
}

// controlGroups are folders for groups of a name in each hierarchy that systemd uses.
func controlGroups(name string) []string {
	const root = "/sys/fs/cgroup"
	if _, err := os.Stat(filepath.Join(root, "cgroup.controllers")); err == nil {
		return []string{filepath.Join(root, name)}
	}
	var list []string
	for _, h := range []string{"systemd", "unified"} {
		if _, err := os.Stat(filepath.Join(root, h, "cgroup.procs")); err == nil {
			list = append(list, filepath.Join(root, h, name))
		}
	}
	return list
}

// removeGroup removes a group and those below it, when their processes have ended.
func removeGroup(t testing.TB, group string) {
	var err error
	for range 100 {
		var dirs []string
		_ = filepath.WalkDir(group, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
		err = nil
		for i := len(dirs) - 1; i >= 0; i-- {
			err = errors.Join(err, syscall.Rmdir(dirs[i]))
		}
		if err == nil {
			return
		}
		time.Sleep(20 * time.Millisecond) //nolint:forbidigo // the kernel does not tell when the last of them is gone
	}
	t.Logf("control group is left: %v", err)
}

// childOf is the process that unshare made.
func childOf(pid int) int {
	data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid)) //nolint:gosec // of /proc
	fields := strings.Fields(string(data))
	if len(fields) == 0 {
		return 0
	}
	child, _ := strconv.Atoi(fields[0])
	return child
}
