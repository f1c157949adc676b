// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package runc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/opencontainers/runc/libcontainer"
	"golang.org/x/sys/unix"

	"github.com/vk-firkin/vk-firkin/vm/guest/agent"
)

// shmBytes is the size of /dev/shm, which a pod's containers share: the kubelet's.
const shmBytes = 64 << 20

// Options of a runtime.
type Options struct {
	// ScratchDir is on the scratch disk: writable layers go there.
	ScratchDir string
	// StateDir is on a tmpfs: what libcontainer remembers of its containers.
	StateDir string
	// CgroupParent is the cgroup that the containers' are made in, from the root of
	// the hierarchy. Empty: "/containers".
	CgroupParent string
}

// Runtime runs containers with libcontainer.
type Runtime struct {
	opts Options

	mu   sync.Mutex
	shm  bool      // guarded by mu: the pod's /dev/shm is mounted
	hold *exec.Cmd // guarded by mu: holder of the shared PID namespace
}

var _ agent.Runtime = (*Runtime)(nil)

// New makes a runtime. It touches nothing yet: a machine that is saved has not paid
// for what only a container needs.
func New(o Options) (*Runtime, error) {
	if !haveNsenter {
		return nil, errors.New("runc: this program was built without cgo")
	}
	if !filepath.IsAbs(o.ScratchDir) || !filepath.IsAbs(o.StateDir) {
		return nil, fmt.Errorf("runc: scratch directory %q and state directory %q must be absolute", o.ScratchDir, o.StateDir)
	}
	if o.CgroupParent == "" {
		o.CgroupParent = "/containers"
	}
	// libcontainer hands this one variable on to the copy of the agent that begins a
	// container: one thread is enough for it, and each costs it time.
	if err := os.Setenv("GOMAXPROCS", "1"); err != nil {
		return nil, err
	}
	return &Runtime{opts: o}, nil
}

// MountTmpfs implements agent.Runtime.
func (r *Runtime) MountTmpfs(dir string, sizeBytes int64) error {
	data := "mode=0777"
	if sizeBytes > 0 {
		data += fmt.Sprintf(",size=%d", sizeBytes)
	}
	return mount("tmpfs", dir, "tmpfs", 0, data)
}

// Unmount implements agent.Runtime.
func (r *Runtime) Unmount(dir string) error { return unmount(dir) }

// Create implements agent.Runtime.
func (r *Runtime) Create(_ context.Context, spec agent.ContainerSpec) (_ agent.Container, err error) {
	u, err := resolveUser(roots(spec), spec.User)
	if err != nil {
		return nil, err
	}
	c := &container{r: r, dir: filepath.Join(r.opts.ScratchDir, "containers", spec.ID), spec: spec, user: u}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.cleanUp())
		}
	}()
	if err := r.preparePod(spec.Pod); err != nil {
		return nil, err
	}
	if err := c.mountRoot(); err != nil {
		return nil, err
	}
	cfg, err := c.config()
	if err != nil {
		return nil, err
	}
	if c.lib, err = libcontainer.Create(filepath.Join(r.opts.StateDir, "runc"), spec.ID, cfg); err != nil {
		return nil, fmt.Errorf("create with libcontainer: %w", err)
	}
	init, err := c.newProcess(processSpec{
		args: spec.Args, env: c.env(nil, spec.TTY), dir: spec.WorkingDir, stdin: spec.Stdin, tty: spec.TTY, init: true,
	})
	if err != nil {
		return nil, err
	}
	c.process = init
	return c, nil
}

// preparePod makes what all containers share.
func (r *Runtime) preparePod(pod agent.Pod) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.writePodFiles(pod); err != nil {
		return fmt.Errorf("write the pod's files: %w", err)
	}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil || unix.ByteSliceToString(uts.Nodename[:]) != pod.Hostname {
		if err := unix.Sethostname([]byte(pod.Hostname)); err != nil {
			return fmt.Errorf("set the pod's hostname: %w", err)
		}
	}
	if !r.shm {
		if err := os.MkdirAll(r.shmDir(), 0o711); err != nil {
			return fmt.Errorf("make the pod's shared memory: %w", err)
		}
		if err := mount("shm", r.shmDir(), "tmpfs", unix.MS_NODEV|unix.MS_NOSUID|unix.MS_NOEXEC, fmt.Sprintf("mode=1777,size=%d", shmBytes)); err != nil {
			return fmt.Errorf("make the pod's shared memory: %w", err)
		}
		r.shm = true
	}
	if pod.SharePIDs && r.hold == nil {
		if err := r.holdPIDs(); err != nil {
			return fmt.Errorf("make the pod's PID namespace: %w", err)
		}
	}
	return nil
}

func (r *Runtime) shmDir() string { return filepath.Join(r.opts.StateDir, "shm") }
func (r *Runtime) podFile(name string) string {
	return filepath.Join(r.opts.StateDir, "pod", name)
}

// writePodFiles writes what is mounted over the images' files. A file that is mounted
// already is changed in place, so that running containers see it.
func (r *Runtime) writePodFiles(pod agent.Pod) error {
	if err := os.MkdirAll(r.podFile(""), 0o711); err != nil {
		return err
	}
	for name, data := range map[string][]byte{"hosts": pod.Hosts, "resolv.conf": pod.ResolvConf, "hostname": []byte(pod.Hostname + "\n")} {
		if have, err := os.ReadFile(r.podFile(name)); err == nil && bytes.Equal(have, data) {
			continue
		}
		if err := os.WriteFile(r.podFile(name), data, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// holdPIDs starts the holder of the shared PID namespace. It lives as long as the
// machine. mu is held.
func (r *Runtime) holdPIDs() error {
	cmd := exec.Command("/proc/self/exe", argHold) //nolint:noctx // it lives as long as the machine
	cmd.Env = []string{holdEnv + "=1"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID}
	if err := cmd.Start(); err != nil {
		return err
	}
	r.hold = cmd
	go func() { _ = cmd.Wait() }()
	return nil
}

// pidNamespace is the path of the shared PID namespace, or "".
func (r *Runtime) pidNamespace() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.hold == nil {
		return ""
	}
	return fmt.Sprintf("/proc/%d/ns/pid", r.hold.Process.Pid)
}

func mount(source, target, fstype string, flags uintptr, data string) error {
	if err := unix.Mount(source, target, fstype, flags, data); err != nil {
		return &os.PathError{Op: "mount", Path: target, Err: err}
	}
	return nil
}

// unmount unmounts target, lazily when something still uses it. What is not mounted
// is no error.
func unmount(target string) error {
	err := unix.Unmount(target, unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EBUSY) {
		err = unix.Unmount(target, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
	}
	if err == nil || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return &os.PathError{Op: "unmount", Path: target, Err: err}
}
