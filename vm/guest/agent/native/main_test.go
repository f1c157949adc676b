// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build linux || darwin

package native_test

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// leaveSession makes this test a program that starts another one in a session of its own,
// prints its number and waits.
const leaveSession = "FIRKIN_TEST_LEAVE_SESSION"

func TestMain(m *testing.M) {
	if os.Getenv(leaveSession) == "" {
		os.Exit(m.Run())
	}
	cmd := exec.Command("sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(cmd.Process.Pid)
	_ = cmd.Wait()
}

func signal(pid, number int) error { return syscall.Kill(pid, syscall.Signal(number)) }

// zombie tells whether a process is dead and not waited for: whoever inherited it may be
// slow.
func zombie(pid int) bool {
	out, err := exec.Command("ps", "-o", "stat=", "-p", fmt.Sprint(pid)).Output()
	return err != nil || strings.HasPrefix(strings.TrimSpace(string(out)), "Z")
}
