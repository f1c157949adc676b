// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package runc

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/exeseal"
	"golang.org/x/sys/unix"

	"github.com/vk-firkin/vk-firkin/vm/guest/agent"
)

// Prepared containers.
//
// To make a container costs namespaces, a dozen mounts, a cgroup and two starts of a Go
// program: more than half a second in an emulated guest, and nothing of it depends on
// what the pod says. So a machine that is to be saved makes one beforehand, with this
// program as its first process, which waits for an order. What the pod says is bound
// when it comes: volumes are moved into the container's mount namespace, limits are
// written to its cgroup, and the waiting process takes on standard streams, user,
// directory and environment, and executes the pod's program. It stays the process that
// libcontainer made, so everything else about the container is as always.
//
// The waiting process has all capabilities: which of them the pod's program may have, and the
// seccomp filter that only an administrator may set, are part of the order. There is nothing of
// the image's in it before it has given them up.

const (
	// releaseTimeout bounds each exchange with a waiting process that has no limits yet.
	releaseTimeout = 20 * time.Second
	// executeTimeout bounds what it does with its order. It has the container's limits by
	// then, and may have to make a seccomp filter with a hundredth of a processor.
	executeTimeout = 100 * time.Second
)

// prepared is a container that waits for what it is to run.
type prepared struct {
	*container
	layers []string
	socket *os.File // the agent's end
}

// Prepare implements agent.Runtime.
func (r *Runtime) Prepare(_ context.Context, spec agent.PreparedSpec) (err error) {
	r.mu.Lock()
	r.count++
	id := fmt.Sprintf("prepared-%d", r.count)
	r.mu.Unlock()
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return err
	}
	p := &prepared{layers: slices.Clone(spec.LowerLayers)}
	p.container = &container{
		r: r, name: id, dir: filepath.Join(r.opts.ScratchDir, "containers", id),
		spec: agent.ContainerSpec{ID: id, Lower: spec.Lower, LowerLayers: p.layers, Pod: agent.Pod{Hostname: unix.ByteSliceToString(uts.Nodename[:])}},
	}
	defer func() {
		if err != nil {
			if p.socket != nil {
				_ = p.socket.Close()
			}
			err = errors.Join(err, p.cleanUp())
		}
	}()
	if err := r.preparePod(p.spec.Pod); err != nil {
		return err
	}
	if err := p.mountRoot(); err != nil {
		return err
	}
	cfg, err := p.config()
	if err != nil {
		return err
	}
	cfg.Capabilities = capabilities(agent.KnownCapabilities())
	if p.lib, err = libcontainer.Create(filepath.Join(r.opts.StateDir, "runc"), id, cfg); err != nil {
		return fmt.Errorf("create with libcontainer: %w", err)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("make socket: %w", err)
	}
	p.socket = os.NewFile(uintptr(pair[0]), "release")
	theirs := os.NewFile(uintptr(pair[1]), "await")
	defer func() { _ = theirs.Close() }()
	timeout := unix.NsecToTimeval(releaseTimeout.Nanoseconds())
	for _, option := range []int{unix.SO_RCVTIMEO, unix.SO_SNDTIMEO} {
		if err := unix.SetsockoptTimeval(pair[0], unix.SOL_SOCKET, option, &timeout); err != nil {
			return fmt.Errorf("bound socket: %w", err)
		}
	}
	self, err := exeseal.CloneSelfExe(r.opts.StateDir)
	if err != nil {
		return fmt.Errorf("open this program for the container: %w", err)
	}
	defer func() { _ = self.Close() }()
	process := &process{
		// Arguments, environment and descriptors as await expects them.
		lib: &libcontainer.Process{
			Init: true, Args: []string{fmt.Sprintf("/proc/self/fd/%d", awaitSelf), argAwait},
			Env: []string{awaitEnv + "=1", "GOMAXPROCS=1", "GOGC=off"}, Cwd: "/", ExtraFiles: []*os.File{theirs, self},
		},
		done: make(chan struct{}),
	}
	if err := p.lib.Start(process.lib); err != nil {
		return fmt.Errorf("start waiting process: %w", err)
	}
	go process.await(p.container)
	p.process = process
	if process.pid, err = process.lib.Pid(); err == nil {
		err = p.lib.Exec()
	}
	if err == nil {
		// Its first word says that it waits, and that it will be saved waiting.
		_, err = io.ReadFull(p.socket, make([]byte, 1))
	}
	if err != nil {
		_ = p.lib.Signal(unix.SIGKILL)
		<-process.done
		return fmt.Errorf("wait for waiting process: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.prepared = append(r.prepared, p)
	return nil
}

// Prepared implements agent.Runtime.
func (r *Runtime) Prepared() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.prepared)
}

// bindable tells whether a prepared container can become what spec says. Terminals,
// read-only roots, shared PID namespaces, and what is masked and mounted for all but the privileged are decided earlier in a container's life than
// where a prepared one stands, and what lies over the kernel's own file systems is left
// to libcontainer's judgement; files below /dev, where a container's last words go, are as
// any other. Pure.
func bindable(spec agent.ContainerSpec) bool {
	if spec.TTY || spec.ReadOnlyRoot || spec.Pod.SharePIDs || spec.Target != nil || spec.Upper != "" || spec.Security.Privileged || spec.Security.UnmaskedProc {
		return false
	}
	for _, m := range spec.Mounts {
		top, below, _ := strings.Cut(strings.TrimPrefix(path.Clean(m.Target), "/"), "/")
		if slices.Contains([]string{"", "proc", "sys"}, top) || top == "dev" && below == "" {
			return false
		}
	}
	return true
}

// takePrepared takes a prepared container for spec, nil when there is none.
func (r *Runtime) takePrepared(spec agent.ContainerSpec) *prepared {
	if !bindable(spec) {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, p := range r.prepared {
		if p.spec.Lower == spec.Lower && slices.Equal(p.layers, spec.LowerLayers) {
			r.prepared = slices.Delete(r.prepared, i, i+1)
			return p
		}
	}
	return nil
}

// bind makes the container what spec says, up to its program. On error it is gone.
func (p *prepared) bind(spec agent.ContainerSpec, u user) (_ *container, err error) {
	c := p.container
	defer func() {
		if err != nil {
			err = errors.Join(err, p.discard())
		}
	}()
	select {
	case <-c.done:
		return nil, fmt.Errorf("the waiting process has ended: %+v", c.exit)
	default:
	}
	c.spec, c.user = spec, u
	if err := c.r.preparePod(spec.Pod); err != nil {
		return nil, err
	}
	mounts, err := c.volumeMounts()
	if err != nil {
		return nil, err
	}
	if len(mounts) > 0 {
		if err := attach(fmt.Sprintf("/proc/%d/ns/mnt", c.pid), mounts); err != nil {
			return nil, fmt.Errorf("mount volumes: %w", err)
		}
	}
	// Whatever is executed in it later gets the same.
	cfg := c.lib.Config()
	if err := c.secure(&cfg); err != nil {
		return nil, err
	}
	cfg.Cgroups.Resources = c.resources(spec.Resources)
	if err := c.lib.Set(cfg); err != nil {
		return nil, fmt.Errorf("set limits: %w", err)
	}
	if cfg.OomScoreAdj != nil {
		if err := os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", c.pid), []byte(strconv.Itoa(*cfg.OomScoreAdj)), 0); err != nil {
			return nil, fmt.Errorf("set oom_score_adj: %w", err)
		}
	}
	theirs, err := c.openStreams(spec.Stdin)
	if err != nil {
		return nil, err
	}
	c.waiting = &waiting{socket: p.socket, streams: theirs, seccomp: cfg.Seccomp}
	return c, nil
}

// discard ends a prepared container that nobody will run.
func (p *prepared) discard() error {
	_ = p.socket.Close() // the end of the conversation ends the process
	_ = p.lib.Signal(unix.SIGKILL)
	select {
	case <-p.done:
	case <-time.After(releaseTimeout):
		return fmt.Errorf("the waiting process of container %q does not end", p.name)
	}
	return p.cleanUp()
}

// waiting is the way to the process of a container that was bound and not started.
type waiting struct {
	socket  *os.File
	streams [3]*os.File // standard input, output and error of the process
	seccomp *configs.Seccomp
}

func (w *waiting) close() {
	_ = w.socket.Close()
	for _, f := range w.streams {
		_ = f.Close()
	}
}

// release lets the waiting process execute the program. Errors: *agent.StartError.
func (c *container) release() error {
	w := c.waiting
	executed := false
	defer func() {
		// When it failed, the streams stay open until the container is removed: the end of its
		// output would tell the end of a process that has not begun, before this error is known.
		if executed {
			c.waiting = nil
			w.close()
		}
	}()
	data, err := json.Marshal(order{
		Args: c.spec.Args, Env: withHome(c.env(nil, false), c.user.home), Dir: c.spec.WorkingDir,
		UID: c.user.uid, GID: c.user.gid, Groups: c.user.groups,
		Capabilities: c.spec.Security.Capabilities(), NoNewPrivileges: c.spec.Security.NoNewPrivileges, Seccomp: w.seccomp,
	})
	if err != nil {
		return fmt.Errorf("encode order: %w", err)
	}
	head := binary.BigEndian.AppendUint32(nil, uint32(len(data)))
	rights := unix.UnixRights(int(w.streams[0].Fd()), int(w.streams[1].Fd()), int(w.streams[2].Fd()))
	if err := unix.Sendmsg(int(w.socket.Fd()), head, rights, nil, 0); err != nil {
		return fmt.Errorf("send order: %w", err)
	}
	if _, err := w.socket.Write(data); err != nil {
		return fmt.Errorf("send order: %w", err)
	}
	timeout := unix.NsecToTimeval(executeTimeout.Nanoseconds())
	if err := unix.SetsockoptTimeval(int(w.socket.Fd()), unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
		return fmt.Errorf("bound socket: %w", err)
	}
	// The other end is closed when the program is executed, or says why it cannot be.
	fault, err := io.ReadAll(io.LimitReader(w.socket, maxFault))
	switch {
	case err != nil:
		return fmt.Errorf("wait for program: %w", err)
	case len(fault) > 0:
		return &agent.StartError{Err: errors.New(string(fault))}
	}
	executed = true
	return nil
}

// withHome adds the user's home where the environment says nothing about it.
func withHome(env []string, home string) []string {
	env = slices.DeleteFunc(slices.Clone(env), func(e string) bool { return e == "HOME=" })
	if slices.ContainsFunc(env, func(e string) bool { return strings.HasPrefix(e, "HOME=") }) {
		return env
	}
	return append(env, "HOME="+home)
}
