// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package runc

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"

	libcaps "github.com/opencontainers/runc/libcontainer/capabilities"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/seccomp"
	"golang.org/x/sys/unix"
)

// What the waiting process of a prepared container is started with.
const (
	// argAwait is its one argument.
	argAwait = "await-release"
	// awaitEnv tells it from an agent whose command line has the same word.
	awaitEnv = "_FIRKIN_AWAIT_RELEASE"
	// awaitSocket and awaitSelf are its descriptors: the way to the agent, and the agent's
	// program that it was started from.
	awaitSocket = 3
	awaitSelf   = 4
)

// maxOrder bounds an order: what the kernel takes as arguments and environment of a
// program is less.
const maxOrder = 8 << 20

// maxFault bounds what the process says when it cannot execute the program.
const maxFault = 4 << 10

// order is what a prepared container is to run.
type order struct {
	Args   []string `json:"args"`
	Env    []string `json:"env"`
	Dir    string   `json:"dir"`
	UID    int      `json:"uid"`
	GID    int      `json:"gid"`
	Groups []int    `json:"groups"`
	// Capabilities are all that the program may have.
	Capabilities    []string         `json:"capabilities"`
	NoNewPrivileges bool             `json:"noNewPrivileges"`
	Seccomp         *configs.Seccomp `json:"seccomp"` // nil: none
}

// await is the first process of a prepared container until it is released. It does not
// return.
func await() {
	// Groups belong to a thread, and the thread that has them must be the one that executes.
	runtime.LockOSThread()
	unix.CloseOnExec(awaitSocket)
	_ = unix.Close(awaitSelf)
	if _, err := unix.Write(awaitSocket, []byte{1}); err != nil {
		os.Exit(1)
	}
	err := obey()
	if err != nil {
		text := err.Error()
		_, _ = unix.Write(awaitSocket, []byte(text[:min(len(text), maxFault)]))
	}
	os.Exit(1)
}

// obey receives the order and executes it.
func obey() error {
	head, oob := make([]byte, 4), make([]byte, unix.CmsgSpace(3*4))
	n, oobn, _, _, err := unix.Recvmsg(awaitSocket, head, oob, unix.MSG_CMSG_CLOEXEC|unix.MSG_WAITALL)
	if err != nil || n != len(head) {
		os.Exit(0) // nobody is there any more
	}
	size := binary.BigEndian.Uint32(head)
	if size > maxOrder {
		return fmt.Errorf("order of %d bytes", size)
	}
	data := make([]byte, size)
	if _, err := io.ReadFull(os.NewFile(awaitSocket, "release"), data); err != nil {
		return fmt.Errorf("read order: %w", err)
	}
	var o order
	if err := json.Unmarshal(data, &o); err != nil {
		return fmt.Errorf("decode order: %w", err)
	}
	streams, err := receivedFiles(oob[:oobn])
	if err != nil {
		return err
	}
	return o.execute(streams)
}

func receivedFiles(oob []byte) ([]int, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil || len(messages) != 1 {
		return nil, fmt.Errorf("standard streams are missing: %w", err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 3 {
		return nil, fmt.Errorf("standard streams are missing: %w", err)
	}
	return fds, nil
}

// execute becomes the program. The order of the steps is libcontainer's: streams belong to
// the user, the directory is entered as root first, then as the user.
func (o order) execute(streams []int) error {
	for i, fd := range streams {
		if err := unix.Dup3(fd, i, 0); err != nil {
			return fmt.Errorf("take standard streams: %w", err)
		}
		if err := own(i, o.UID); err != nil {
			return fmt.Errorf("take standard streams: %w", err)
		}
	}
	if err := os.MkdirAll(o.Dir, 0o755); err != nil {
		return fmt.Errorf("make working directory: %w", err)
	}
	inside := unix.Chdir(o.Dir)
	if inside != nil && !errors.Is(inside, unix.EACCES) {
		return fmt.Errorf("enter working directory %q: %w", o.Dir, inside)
	}
	if err := o.becomeUser(); err != nil {
		return err
	}
	if inside != nil {
		if err := unix.Chdir(o.Dir); err != nil {
			return fmt.Errorf("enter working directory %q: %w", o.Dir, err)
		}
	}
	for _, e := range o.Env {
		if value, ok := strings.CutPrefix(e, "PATH="); ok {
			if err := os.Setenv("PATH", value); err != nil {
				return err
			}
		}
	}
	name, err := exec.LookPath(o.Args[0])
	if err != nil {
		return err
	}
	// With no_new_privs anybody may set a filter, and the later it is the fewer calls it has to allow.
	if o.Seccomp != nil && o.NoNewPrivileges {
		if _, err := seccomp.InitSeccomp(o.Seccomp); err != nil {
			return fmt.Errorf("set seccomp filter: %w", err)
		}
	}
	if err := syscall.Exec(name, o.Args, o.Env); err != nil {
		return &os.PathError{Op: "exec", Path: name, Err: err}
	}
	return nil
}

// becomeUser gives up all that the program must not have. Each step needs what a later one
// takes away.
func (o order) becomeUser() error {
	if o.NoNewPrivileges {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return fmt.Errorf("set no_new_privs: %w", err)
		}
	}
	if o.Seccomp != nil && !o.NoNewPrivileges {
		if _, err := seccomp.InitSeccomp(o.Seccomp); err != nil {
			return fmt.Errorf("set seccomp filter: %w", err)
		}
	}
	caps, err := libcaps.New(capabilities(o.Capabilities))
	if err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	if err := caps.ApplyBoundingSet(); err != nil {
		return fmt.Errorf("bound capabilities: %w", err)
	}
	// A change of the user takes capabilities away, and the next step sets them.
	if err := unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("keep capabilities: %w", err)
	}
	if err := unix.Setgroups(o.Groups); err != nil {
		return fmt.Errorf("set groups: %w", err)
	}
	if err := unix.Setgid(o.GID); err != nil {
		return fmt.Errorf("set group: %w", err)
	}
	if err := unix.Setuid(o.UID); err != nil {
		return fmt.Errorf("set user: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_KEEPCAPS, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("keep capabilities: %w", err)
	}
	if err := caps.ApplyCaps(); err != nil {
		return fmt.Errorf("set capabilities: %w", err)
	}
	return nil
}

// own gives a standard stream to the user, so that a program may open /dev/stderr.
func own(fd, uid int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	null := st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == unix.Mkdev(1, 3)
	if int(st.Uid) == uid || null {
		return nil
	}
	if err := unix.Fchown(fd, uid, -1); err != nil && !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EROFS) {
		return err
	}
	return nil
}
