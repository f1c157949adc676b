// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// lifelineVariable tells a component that its standard input is the lifeline: see FollowLifeline.
const lifelineVariable = "FIRKIN_CONTROLPLANE_LIFELINE"

// FollowLifeline ends this process when its standard input ends, if `up` started it. `up` holds the other
// end of that pipe and never writes, so it ends when `up` is gone, however that happened, on any
// system. It returns at once; the goroutine it starts lives as long as the process.
func FollowLifeline() {
	if os.Getenv(lifelineVariable) == "" {
		return
	}
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(1)
	}()
}

// spawner starts processes from one thread that lives until close. Linux sends the signal of the parent's
// death when the *thread* ends that started the child, and Go ends threads as it likes.
type spawner struct {
	requests chan func()
	done     chan struct{}
}

func newSpawner() *spawner {
	s := &spawner{requests: make(chan func()), done: make(chan struct{})}
	go func() {
		defer close(s.done)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		for f := range s.requests {
			f()
		}
	}()
	return s
}

func (s *spawner) start(cmd *exec.Cmd) error {
	result := make(chan error, 1)
	s.requests <- func() { result <- cmd.Start() }
	return <-result
}

// close ends the thread. No child may run any more.
func (s *spawner) close() {
	close(s.requests)
	<-s.done
}

// child is one running component.
type child struct {
	component

	logPath string
	cmd     *exec.Cmd
	exited  chan struct{}
	err     error // of cmd.Wait, valid once exited is closed
}

// startChild starts a component with its output in its log. The log of the run before is kept beside it.
func startChild(s *spawner, l Layout, c component) (*child, error) {
	path := l.Log(c.name)
	if err := os.Rename(path, path+".previous"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("start %s: %w", c.name, err)
	}
	log, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", c.name, err)
	}
	defer func() { _ = log.Close() }() // the child has its own descriptor
	cmd := exec.Command(l.Bin(c.name), c.args...)
	cmd.Dir = string(l)
	cmd.Env = append(environment(os.LookupEnv), lifelineVariable+"=stdin")
	cmd.Stdout, cmd.Stderr = log, log
	// A group of its own: Ctrl-C in a terminal goes to `up` alone, which stops the rest in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	dieWithParent(cmd.SysProcAttr)
	if _, err := cmd.StdinPipe(); err != nil { // the lifeline; Wait closes it
		return nil, fmt.Errorf("start %s: %w", c.name, err)
	}
	if err := s.start(cmd); err != nil {
		return nil, fmt.Errorf("start %s: %w", c.name, err)
	}
	ch := &child{component: c, logPath: path, cmd: cmd, exited: make(chan struct{})}
	go func() {
		defer close(ch.exited)
		ch.err = cmd.Wait()
	}()
	return ch, nil
}

// stop ends the child and returns once it is gone: first politely, after its grace by force.
func (c *child) stop(log *slog.Logger) {
	log.Debug("Stopping", "component", c.name)
	_ = c.cmd.Process.Signal(syscall.SIGTERM) // fails only when it has exited
	grace := time.NewTimer(c.grace)
	defer grace.Stop()
	select {
	case <-c.exited:
		return
	case <-grace.C:
	}
	log.Warn("Killing a component that did not stop in time", "component", c.name, "grace", c.grace)
	_ = c.cmd.Process.Kill()
	<-c.exited
}

// diedError tells which component exited on its own, and shows the end of its log.
type diedError struct{ child *child }

func (e *diedError) Error() string {
	state := "exit status 0"
	if e.child.err != nil {
		state = e.child.err.Error()
	}
	return fmt.Sprintf("%s died (%s); the end of %s:\n%s", e.child.name, state, e.child.logPath, tail(e.child.logPath, 20))
}

// tail returns the last lines of a file, indented, from at most its last 16 KiB.
func tail(path string, lines int) string {
	const most = 16 << 10
	f, err := os.Open(path)
	if err != nil {
		return "  (" + err.Error() + ")"
	}
	defer func() { _ = f.Close() }()
	if size, err := f.Seek(0, io.SeekEnd); err == nil {
		_, _ = f.Seek(max(0, size-most), io.SeekStart)
	}
	data, err := io.ReadAll(io.LimitReader(f, most))
	if err != nil {
		return "  (" + err.Error() + ")"
	}
	if len(bytes.TrimSpace(data)) == 0 {
		return "  (empty)"
	}
	all := strings.Split(strings.TrimRight(string(data), "\n"), "\n")
	return "  " + strings.Join(all[max(0, len(all)-lines):], "\n  ")
}
