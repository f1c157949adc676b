// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package runc

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/opencontainers/runc/libcontainer"
	"golang.org/x/sys/unix"

	"github.com/vk-firkin/vk-firkin/vm/guest/agent"
)

const (
	defaultPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	defaultTerm = "TERM=xterm"
	// maxWalk bounds the files that are counted for the size of a writable layer.
	maxWalk = 20000
)

// container is one container of libcontainer. Its directory holds the writable layer
// (upper, work), the root file system (root) and the mounts of parts of volumes (sub).
type container struct {
	*process

	r *Runtime
	// name is its name for libcontainer and its cgroup.
	name string
	dir  string
	spec agent.ContainerSpec
	user user
	lib  *libcontainer.Container
	// waiting is set between bind and release of a prepared container.
	waiting *waiting

	removing sync.Mutex
	mounted  []string // guarded by removing once Create is over
}

var _ agent.Container = (*container)(nil)

func (c *container) root() string { return filepath.Join(c.dir, "root") }

// mountRoot mounts the root file system.
func (c *container) mountRoot() error {
	for _, d := range []struct {
		name string
		mode os.FileMode
	}{{"", 0o711}, {"upper", 0o755}, {"work", 0o711}, {"root", 0o755}, {"sub", 0o711}} {
		if err := os.MkdirAll(filepath.Join(c.dir, d.name), d.mode); err != nil {
			return fmt.Errorf("make root file system: %w", err)
		}
	}
	upper := c.spec.Upper
	if upper == "" {
		upper = filepath.Join(c.dir, "upper")
	}
	var lower []string
	for _, dir := range append(slices.Clone(c.spec.LowerLayers), c.spec.Lower) {
		lower = append(lower, escape(dir))
	}
	// volatile: nothing is synced to the upper layer for the overlay's sake. The
	// scratch disk is not meant to survive the machine. The mark that volatile leaves lies
	// in the work directory, which is each container's own, so that a named upper layer can be
	// mounted again.
	data := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s,volatile", strings.Join(lower, ":"), escape(upper), escape(filepath.Join(c.dir, "work")))
	if err := mount("overlay", c.root(), "overlay", 0, data); err != nil {
		return fmt.Errorf("mount root file system: %w", err)
	}
	c.mounted = append(c.mounted, c.root())
	return nil
}

// escape makes a path fit for overlay's options.
func escape(p string) string {
	return strings.NewReplacer(`\`, `\\`, ",", `\,`, ":", `\:`).Replace(p)
}

// env is the environment of a process, less what the caller adds later in the list.
func (c *container) env(more []string, tty bool) []string {
	env := append(slices.Clone(c.spec.Env), more...)
	has := func(name string) bool {
		return slices.ContainsFunc(env, func(e string) bool { return strings.HasPrefix(e, name+"=") })
	}
	if !has("PATH") {
		env = append(env, defaultPath)
	}
	if tty && !has("TERM") {
		env = append(env, defaultTerm)
	}
	return env
}

// Start implements agent.Container, like the methods below.
func (c *container) Start(context.Context) error {
	if c.waiting != nil {
		return c.release()
	}
	if err := c.lib.Exec(); err != nil {
		return &agent.StartError{Err: err}
	}
	return nil
}

func (c *container) Exec(_ context.Context, spec agent.ExecSpec) (agent.Process, error) {
	dir := spec.WorkingDir
	if dir == "" {
		dir = c.spec.WorkingDir
	}
	p, err := c.newProcess(processSpec{
		args: spec.Args, env: c.env(spec.Env, spec.TTY), dir: dir, stdin: spec.Stdin, tty: spec.TTY, cols: spec.Cols, rows: spec.Rows,
	})
	if err != nil {
		select {
		case <-c.done:
			return nil, fmt.Errorf("%w: container %q is not running", agent.ErrPrecondition, c.spec.ID)
		default:
			return nil, err
		}
	}
	return p, nil
}

func (c *container) SignalAll(signal int) error {
	if syscall.Signal(signal) == unix.SIGKILL {
		// With the first process of a PID namespace die all.
		return ignoreStopped(c.lib.Signal(unix.SIGKILL))
	}
	pids, err := c.lib.Processes()
	if err != nil {
		return ignoreStopped(err)
	}
	var errs []error
	for _, pid := range pids {
		if err := unix.Kill(pid, syscall.Signal(signal)); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func ignoreStopped(err error) error {
	if errors.Is(err, libcontainer.ErrNotRunning) || errors.Is(err, unix.ESRCH) || errors.Is(err, os.ErrProcessDone) || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func (c *container) Stats() (agent.ContainerStats, error) {
	st, err := c.lib.Stats()
	if err != nil {
		return agent.ContainerStats{}, err
	}
	var out agent.ContainerStats
	if cg := st.CgroupStats; cg != nil {
		out = agent.ContainerStats{
			CPUTime:         time.Duration(cg.CpuStats.CpuUsage.TotalUsage),
			MemoryBytes:     int64(cg.MemoryStats.Usage.Usage),
			WorkingSetBytes: workingSet(cg),
			PIDs:            int64(cg.PidsStats.Current),
			RSSBytes:        int64(cg.MemoryStats.Stats["anon"]),
			PageFaults:      int64(cg.MemoryStats.Stats["pgfault"]),
			MajorPageFaults: int64(cg.MemoryStats.Stats["pgmajfault"]),
		}
	}
	out.WritableLayerBytes, _ = agent.DiskUsage(filepath.Join(c.dir, "upper"), maxWalk)
	return out, nil
}

func (c *container) Remove(ctx context.Context) error {
	c.removing.Lock()
	defer c.removing.Unlock()
	if c.lib == nil {
		return nil
	}
	if err := c.SignalAll(int(unix.SIGKILL)); err != nil {
		return fmt.Errorf("kill container: %w", err)
	}
	select {
	case <-c.done:
	case <-ctx.Done():
		return fmt.Errorf("wait for killed container: %w", ctx.Err())
	}
	return c.cleanUp()
}

// cleanUp undoes Create. Processes are gone. It may be called again after an error.
func (c *container) cleanUp() error {
	if c.waiting != nil { // was never started
		c.waiting.close()
		c.waiting = nil
	}
	if c.lib != nil {
		if err := c.lib.Destroy(); err != nil {
			return err
		}
		c.lib = nil
	}
	for len(c.mounted) > 0 {
		last := len(c.mounted) - 1
		if err := unmount(c.mounted[last]); err != nil {
			return err
		}
		c.mounted = c.mounted[:last]
	}
	return os.RemoveAll(c.dir)
}

// oomKills is how often the kernel killed in the container for want of memory.
func (c *container) oomKills() uint64 {
	data, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", c.r.opts.CgroupParent, c.name, "memory.events"))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(data)) {
		var n uint64
		if _, err := fmt.Sscanf(line, "oom_kill %d", &n); err == nil {
			return n
		}
	}
	return 0
}
