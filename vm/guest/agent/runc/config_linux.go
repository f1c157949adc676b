// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package runc

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cyphar/filepath-securejoin/pathrs-lite"
	sysdevices "github.com/moby/sys/devices"
	"github.com/opencontainers/cgroups"
	_ "github.com/opencontainers/cgroups/devices" // device rules of cgroup v2
	devices "github.com/opencontainers/cgroups/devices/config"
	"github.com/opencontainers/runc/libcontainer/configs"
	"golang.org/x/sys/unix"

	"github.com/vk-firkin/vk-firkin/vm/guest/agent"
)

const cpuPeriod = 100000 // microseconds; the kernel's default and the protocol's

// config is what libcontainer is told about the container. It mounts the parts of
// volumes that the container gets.
func (c *container) config() (*configs.Config, error) {
	const plain = unix.MS_NOEXEC | unix.MS_NOSUID | unix.MS_NODEV
	security := c.spec.Security
	readOnly := unix.MS_RDONLY
	if security.Privileged {
		readOnly = 0
	}
	mounts := []*configs.Mount{
		{Source: "proc", Destination: "/proc", Device: "proc", Flags: plain},
		{Source: "tmpfs", Destination: "/dev", Device: "tmpfs", Flags: unix.MS_NOSUID | unix.MS_STRICTATIME, Data: "mode=755,size=65536k"},
		{Source: "devpts", Destination: "/dev/pts", Device: "devpts", Flags: unix.MS_NOSUID | unix.MS_NOEXEC, Data: "newinstance,ptmxmode=0666,mode=0620,gid=5"},
		{Source: "mqueue", Destination: "/dev/mqueue", Device: "mqueue", Flags: plain},
		bind(c.r.shmDir(), "/dev/shm", false, unix.MS_NOEXEC|unix.MS_NOSUID|unix.MS_NODEV),
		{Source: "sysfs", Destination: "/sys", Device: "sysfs", Flags: plain | readOnly},
		{Source: "cgroup", Destination: "/sys/fs/cgroup", Device: "cgroup", Flags: plain | readOnly},
	}
	for _, name := range []string{"hosts", "hostname", "resolv.conf"} {
		mounts = append(mounts, bind(c.r.podFile(name), "/etc/"+name, c.spec.ReadOnlyRoot, 0))
	}
	volumes, err := c.volumeMounts()
	if err != nil {
		return nil, err
	}
	nodes := defaultDevices()
	if security.Privileged {
		if nodes, err = machineDevices(); err != nil {
			return nil, fmt.Errorf("list the machine's devices: %w", err)
		}
	}
	pids := configs.Namespace{Type: configs.NEWPID}
	switch {
	case c.spec.Target != nil:
		pids.Path = fmt.Sprintf("/proc/%d/ns/pid", c.spec.Target.Pid())
	case c.spec.Pod.SharePIDs:
		pids.Path = c.r.pidNamespace()
	}
	cfg := &configs.Config{
		Rootfs:       c.root(),
		Readonlyfs:   c.spec.ReadOnlyRoot,
		Mounts:       append(mounts, volumes...),
		Devices:      nodes,
		Namespaces:   configs.Namespaces{{Type: configs.NEWNS}, pids, {Type: configs.NEWCGROUP}},
		Cgroups:      &cgroups.Cgroup{Path: path.Join(c.r.opts.CgroupParent, c.name), Resources: c.resources(c.spec.Resources)},
		NoNewKeyring: true, // one pod is one machine: there is no other's to keep out of
		Version:      "1.2.0",
	}
	if !security.Privileged && !security.UnmaskedProc {
		cfg.MaskPaths = []string{
			"/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
			"/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap",
		}
		cfg.ReadonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
	}
	return cfg, c.secure(cfg)
}

// resources are the container's limits.
func (c *container) resources(r agent.Resources) *cgroups.Resources {
	resources := &cgroups.Resources{Devices: deviceRules(c.spec.Security.Privileged)}
	if m := r.MemoryMaxBytes; m > 0 {
		resources.Memory, resources.MemorySwap = m, m
		// As the kubelet does on cgroup v2: a container dies whole, not piece by piece.
		resources.Unified = map[string]string{"memory.oom.group": "1"}
	}
	if q := r.CPUQuota; q > 0 {
		resources.CpuQuota, resources.CpuPeriod = q.Microseconds(), cpuPeriod
	}
	resources.CpuWeight = uint64(r.CPUWeight)
	if n := r.PIDsMax; n > 0 {
		resources.PidsLimit = &n
	}
	return resources
}

func bind(source, target string, readOnly bool, flags int) *configs.Mount {
	if readOnly {
		flags |= unix.MS_RDONLY
	}
	return &configs.Mount{Source: source, Destination: target, Device: "bind", Flags: unix.MS_BIND | unix.MS_REC | flags, PropagationFlags: []int{unix.MS_PRIVATE | unix.MS_REC}}
}

// volumeMounts are the mounts of the volumes. A part of a volume is resolved here and
// mounted in the container's own directory: the path cannot be changed any more, by
// a container that writes to the volume, between this look and libcontainer's.
func (c *container) volumeMounts() ([]*configs.Mount, error) {
	var out []*configs.Mount
	for i, m := range c.spec.Mounts {
		source := m.Dir
		if m.SubPath != "" {
			source = filepath.Join(c.dir, "sub", fmt.Sprint(i))
			if err := c.mountSubPath(m, source); err != nil {
				return nil, fmt.Errorf("mount %q of a volume: %w", m.SubPath, err)
			}
			c.mounted = append(c.mounted, source)
		}
		flags := 0
		if m.Image {
			flags = unix.MS_NOEXEC
		}
		mnt := bind(source, m.Target, m.ReadOnly, flags)
		if m.RecursiveReadOnly {
			mnt.RecAttr = &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
		}
		out = append(out, mnt)
	}
	// What lies in another mount comes after it.
	slices.SortStableFunc(out, func(a, b *configs.Mount) int {
		return cmp.Compare(strings.Count(path.Clean(a.Destination), "/"), strings.Count(path.Clean(b.Destination), "/"))
	})
	return out, nil
}

// mountSubPath binds a part of a volume to target, which it makes. A path that does
// not exist becomes a directory, as in the kubelet.
func (c *container) mountSubPath(m agent.Mount, target string) error {
	root, err := os.OpenFile(m.Dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	f, err := pathrs.OpenatInRoot(root, m.SubPath)
	switch {
	case errors.Is(err, os.ErrNotExist) && m.Image:
		err = fmt.Errorf("%w: the image has no such path", agent.ErrPrecondition)
	case errors.Is(err, os.ErrNotExist):
		f, err = pathrs.MkdirAllHandle(root, m.SubPath, 0o750)
	}
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		err = os.Mkdir(target, 0o700)
	case unix.S_IFREG:
		err = os.WriteFile(target, nil, 0o600)
	default:
		err = fmt.Errorf("%w: it is neither a directory nor a file", agent.ErrPrecondition)
	}
	if err != nil {
		return err
	}
	return mount(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), target, "", unix.MS_BIND, "")
}

// defaultDevices are the device files that the OCI runtime specification demands.
func defaultDevices() []*devices.Device {
	var out []*devices.Device
	for _, d := range []struct {
		path         string
		major, minor int64
	}{
		{"/dev/null", 1, 3},
		{"/dev/zero", 1, 5},
		{"/dev/full", 1, 7},
		{"/dev/random", 1, 8},
		{"/dev/urandom", 1, 9},
		{"/dev/tty", 5, 0},
	} {
		out = append(out, &devices.Device{
			Rule: devices.Rule{Type: devices.CharDevice, Major: d.major, Minor: d.minor, Permissions: "rwm", Allow: true},
			Path: d.path, FileMode: 0o666,
		})
	}
	return out
}

// machineDevices are the default ones and all others that the machine has.
func machineDevices() ([]*devices.Device, error) {
	out := defaultDevices()
	all, err := sysdevices.HostDevices()
	if err != nil {
		return nil, err
	}
	for _, d := range all {
		if !slices.ContainsFunc(out, func(o *devices.Device) bool { return o.Path == d.Path }) {
			out = append(out, d)
		}
	}
	return out, nil
}

// deviceRules let a container make any device file and open only the default ones and
// terminals: never the machine's disks, unless it is privileged.
func deviceRules(privileged bool) []*devices.Rule {
	if privileged {
		return []*devices.Rule{{Type: devices.WildcardDevice, Major: devices.Wildcard, Minor: devices.Wildcard, Permissions: "rwm", Allow: true}}
	}
	rules := []*devices.Rule{
		{Type: devices.WildcardDevice, Major: devices.Wildcard, Minor: devices.Wildcard, Permissions: "rwm", Allow: false},
		{Type: devices.CharDevice, Major: devices.Wildcard, Minor: devices.Wildcard, Permissions: "m", Allow: true},
		{Type: devices.BlockDevice, Major: devices.Wildcard, Minor: devices.Wildcard, Permissions: "m", Allow: true},
		{Type: devices.CharDevice, Major: 5, Minor: 1, Permissions: "rwm", Allow: true},                  // console
		{Type: devices.CharDevice, Major: 136, Minor: devices.Wildcard, Permissions: "rwm", Allow: true}, // terminals
		{Type: devices.CharDevice, Major: 5, Minor: 2, Permissions: "rwm", Allow: true},                  // ptmx
	}
	for _, d := range defaultDevices() {
		rules = append(rules, &d.Rule)
	}
	return rules
}
