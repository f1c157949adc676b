// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A terminal has a size, and keeps following the user's window.
func TestExecTerminal(t *testing.T) {
	ns := namespace(t)
	apply(t, podManifest(ns, "tty", served.Busybox, "sleep", "3600"))
	waitRunning(t, ns, "tty")

	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	terminal := openTerminal(t)
	terminal.resize(t, 100, 30)
	cmd := plane.Kubectl(ctx, "exec", "-n", ns, "tty", "-it", "--", "sh")
	terminal.attach(t, cmd)

	terminal.send(t, "stty size\n")
	terminal.expect(t, "30 100")
	terminal.resize(t, 81, 41)
	terminal.send(t, "sleep 1; stty size\n")
	terminal.expect(t, "41 81")
	terminal.resize(t, 90, 20)
	terminal.send(t, "sleep 1; stty size\n")
	terminal.expect(t, "20 90")
	terminal.send(t, "exit 5\n")
	if code := terminal.wait(t); code != 5 {
		t.Errorf("the shell's exit code is %d, want 5", code)
	}
}

// terminal is a pseudo terminal with a program on it.
type terminal struct {
	master, slave *os.File
	cmd           *exec.Cmd

	mu     sync.Mutex
	output strings.Builder // guarded by mu
	read   int             // guarded by mu; what expect has consumed
}

func openTerminal(t *testing.T) *terminal {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = master.Close() })
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	return &terminal{master: master, slave: slave}
}

func (p *terminal) resize(t *testing.T, cols, rows uint16) {
	t.Helper()
	if err := unix.IoctlSetWinsize(int(p.master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: cols, Row: rows}); err != nil {
		t.Fatal(err)
	}
}

// attach starts the program with the terminal as its controlling terminal, so that
// the kernel tells it of every new size.
func (p *terminal) attach(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	cmd.Stdin, cmd.Stdout, cmd.Stderr = p.slave, p.slave, p.slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p.cmd = cmd
	_ = p.slave.Close()
	done := make(chan struct{})
	t.Cleanup(func() { <-done })
	go func() {
		defer close(done)
		buf := make([]byte, 4096)
		for {
			n, err := p.master.Read(buf)
			p.mu.Lock()
			p.output.Write(buf[:n])
			p.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
}

func (p *terminal) send(t *testing.T, text string) {
	t.Helper()
	if _, err := p.master.WriteString(text); err != nil {
		t.Fatal(err)
	}
}

// expect waits for text after what was expected before.
func (p *terminal) expect(t *testing.T, text string) {
	t.Helper()
	eventually(t, waitShort, fmt.Sprintf("%q on the terminal", text), func() error {
		p.mu.Lock()
		defer p.mu.Unlock()
		rest := p.output.String()[p.read:]
		i := strings.Index(rest, text)
		if i < 0 {
			return fmt.Errorf("it shows %q", rest)
		}
		p.read += i + len(text)
		return nil
	})
}

func (p *terminal) wait(t *testing.T) int {
	t.Helper()
	exited := make(chan struct{})
	go func() {
		defer close(exited)
		_ = p.cmd.Wait()
	}()
	select {
	case <-exited:
	case <-time.After(waitShort):
		_ = p.cmd.Process.Kill()
		<-exited
		t.Error("the program did not end")
	}
	return p.cmd.ProcessState.ExitCode()
}
