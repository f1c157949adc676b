// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package linux

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/vk-firkin/vk-firkin/vm/guest/agent/linux/layout"
)

const (
	scratchDir = "/scratch"
	imagesDir  = "/run/firkin/images"
	cgroupDir  = "/sys/fs/cgroup"
)

// maxOpenFiles is what container runtimes give their containers where nothing else is
// said; the kernel's default for PID 1, 1024, is too little for a database.
const maxOpenFiles = 1 << 20

// Boot turns the bare kernel that started the agent into a machine. It is called once,
// by PID 1 of an initramfs, before anything else.
func Boot() (*System, error) {
	if os.Getpid() != 1 {
		return nil, errors.New("not PID 1: the agent runs only as the init of a guest kit")
	}
	if err := os.Setenv("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"); err != nil {
		return nil, err
	}
	if err := switchRoot(); err != nil {
		return nil, err
	}
	for _, m := range []struct {
		fs, dir string
		flags   uintptr
		data    string
	}{
		{"proc", "/proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"sysfs", "/sys", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
		{"devtmpfs", "/dev", unix.MS_NOSUID | unix.MS_NOEXEC, "mode=0755"},
		{"devpts", "/dev/pts", unix.MS_NOSUID | unix.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5"},
		{"tmpfs", "/dev/shm", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
		{"tmpfs", "/run", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755"},
		{"tmpfs", "/tmp", unix.MS_NOSUID | unix.MS_NODEV, "mode=1777"},
		{"cgroup2", cgroupDir, unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, "nsdelegate"},
	} {
		if err := os.MkdirAll(m.dir, 0o755); err != nil {
			return nil, fmt.Errorf("mount %s: %w", m.dir, err)
		}
		if err := unix.Mount(m.fs, m.dir, m.fs, m.flags, m.data); err != nil {
			return nil, fmt.Errorf("mount %s on %s: %w", m.fs, m.dir, err)
		}
	}
	for name, target := range map[string]string{"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2"} {
		if err := os.Symlink(target, filepath.Join("/dev", name)); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("make device links: %w", err)
		}
	}
	if err := enableControllers(); err != nil {
		return nil, err
	}
	limit := syscall.Rlimit{Cur: maxOpenFiles, Max: maxOpenFiles}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return nil, fmt.Errorf("raise the limit of open files: %w", err)
	}
	if err := loadModules(); err != nil {
		return nil, err
	}
	version, err := os.ReadFile(layout.Version)
	if err != nil {
		return nil, fmt.Errorf("read the agent's version: %w", err)
	}
	s := &System{version: strings.TrimSpace(string(version)), images: map[int]string{}}
	if s.disks, err = findDisks(); err != nil {
		return nil, err
	}
	if err := s.mountScratch(); err != nil {
		return nil, err
	}
	// A pod's processes may bind low ports and ping without privilege, as containerd and
	// CRI-O allow them.
	for key, value := range map[string]string{
		"net/ipv4/ip_unprivileged_port_start": "0",
		"net/ipv4/ping_group_range":           "0 2147483647",
	} {
		if err := os.WriteFile("/proc/sys/"+key, []byte(value), 0); err != nil {
			return nil, fmt.Errorf("set sysctl: %w", err)
		}
	}
	if err := loopbackUp(); err != nil {
		return nil, err
	}
	return s, nil
}

// switchRoot makes the root a mount on top of the initramfs instead of the initramfs
// itself, which has no parent mount, so that pivot_root(2) would refuse it. A bind
// mount of the initramfs does; the agent's binary need not be copied.
func switchRoot() error {
	if err := unix.Mount("/", "/root", "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("switch root: bind: %w", err)
	}
	if err := os.Chdir("/root"); err != nil {
		return fmt.Errorf("switch root: %w", err)
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("switch root: move: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("switch root: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return fmt.Errorf("switch root: %w", err)
	}
	return nil
}

// enableControllers lets the children of the root cgroup use every controller.
func enableControllers() error {
	b, err := os.ReadFile(filepath.Join(cgroupDir, "cgroup.controllers"))
	if err != nil {
		return fmt.Errorf("enable cgroup controllers: %w", err)
	}
	var all strings.Builder
	for c := range strings.FieldsSeq(string(b)) {
		all.WriteString("+" + c + " ")
	}
	if err := os.WriteFile(filepath.Join(cgroupDir, "cgroup.subtree_control"), []byte(all.String()), 0); err != nil {
		return fmt.Errorf("enable cgroup controllers: %w", err)
	}
	return nil
}

// loadModules loads what the devices of this machine need and deletes the module files,
// whose pages would only be carried along in snapshots.
func loadModules() error {
	list, err := os.ReadFile(layout.ModuleList)
	if err != nil {
		return fmt.Errorf("load modules: %w", err)
	}
	table, loaded := parseModuleList(string(list)), map[string]bool{}
	load := func(names []string) error {
		order, err := table.order(names, loaded)
		if err != nil {
			return err
		}
		for _, name := range order {
			if err := loadModule(filepath.Join(layout.Modules, name+".ko"), moduleParameters[name]); err != nil {
				return err
			}
			loaded[name] = true
		}
		return nil
	}
	if err := load(busModules); err != nil {
		return fmt.Errorf("load modules: %w", err)
	}
	ids, err := filepath.Glob("/sys/bus/virtio/devices/*/device")
	if err != nil {
		return fmt.Errorf("load modules: %w", err)
	}
	wanted := alwaysModules[:len(alwaysModules):len(alwaysModules)]
	for _, path := range ids {
		id, err := os.ReadFile(path)
		if err != nil {
			return fmt.Errorf("load modules: %w", err)
		}
		if name, ok := deviceModules[strings.TrimSpace(string(id))]; ok {
			wanted = append(wanted, name)
		}
	}
	if err := load(wanted); err != nil {
		return fmt.Errorf("load modules: %w", err)
	}
	if err := os.RemoveAll(layout.Modules); err != nil {
		return fmt.Errorf("load modules: %w", err)
	}
	return nil
}

func loadModule(path, parameters string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), parameters, 0); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("load %s: %w", path, err)
	}
	return nil
}
