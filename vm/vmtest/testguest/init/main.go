// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build linux

package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vk-firkin/vk-firkin/vm/guest/agent/linux"
	"github.com/vk-firkin/vk-firkin/vm/vmtest/testguest"
)

func main() {
	for _, m := range []struct{ kind, at string }{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}} {
		_ = os.MkdirAll(m.at, 0o755)
		_ = unix.Mount(m.kind, m.at, m.kind, 0, "")
	}
	console, err := os.OpenFile("/dev/console", os.O_WRONLY, 0)
	if err != nil {
		console = os.Stderr
	}
	if err := run(console); err != nil {
		fmt.Fprintln(console, "init:", err)
	}
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func run(console *os.File) error {
	loadModules()
	boot := make([]byte, 16)
	_, _ = rand.Read(boot) // never fails
	m := &machine{boot: hex.EncodeToString(boot), values: map[string]string{}}
	port, err := openPort("firkin.agent")
	if err != nil {
		return err
	}
	go powerKey(console)
	fmt.Fprintln(console, "firkin-agent: ready")
	for {
		// Ends when the host's end of the port closes; a port without a host reads as
		// empty.
		_ = testguest.Serve(port, m)
		time.Sleep(10 * time.Millisecond)
	}
}

// loadModules loads every module, again and again until no further one loads:
// dependencies sort themselves out.
func loadModules() {
	var todo []string
	for _, root := range []string{"/lib/modules", "/modules"} {
		_ = filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
			if err == nil && strings.HasSuffix(path, ".ko") {
				todo = append(todo, path)
			}
			return nil
		})
	}
	for progress := true; progress; {
		progress = false
		var failed []string
		for _, path := range todo {
			f, err := os.Open(path)
			if err != nil {
				continue
			}
			err = unix.FinitModule(int(f.Fd()), "", 0)
			_ = f.Close()
			switch {
			case err == nil:
				progress = true
			case !errors.Is(err, unix.EEXIST):
				failed = append(failed, path)
			}
		}
		todo = failed
	}
}

// openPort waits for the named virtio-serial port.
func openPort(name string) (*os.File, error) {
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		names, _ := filepath.Glob("/sys/class/virtio-ports/*/name")
		for _, path := range names {
			if b, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(b)) == name {
				return os.OpenFile("/dev/"+filepath.Base(filepath.Dir(path)), os.O_RDWR, 0)
			}
		}
	}
	return nil, fmt.Errorf("no virtio-serial port %q", name)
}

// powerKey powers off when the host presses the power key: as the agent does, since the
// key is another device on each architecture.
func powerKey(console *os.File) {
	err := linux.PowerKey(context.Background(), func() { _ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF) })
	if err != nil {
		fmt.Fprintln(console, "init:", err)
	}
}

// machine is the real machine.
type machine struct {
	boot string

	mu     sync.Mutex
	id     string
	values map[string]string
}

func (m *machine) Info() (testguest.Info, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	b := make([]byte, 16)
	if _, err := unix.Getrandom(b, 0); err != nil {
		return testguest.Info{}, err
	}
	return testguest.Info{Boot: m.boot, MachineID: m.id, Time: time.Now(), Random: b}, nil
}

// Numbers from linux/random.h.
const (
	rndAddEntropy = 0x40085203
	rndReseedCRNG = 0x5207
)

func (m *machine) Refresh(r testguest.Refresh) error {
	tv := unix.NsecToTimeval(r.Time.UnixNano())
	if err := unix.Settimeofday(&tv); err != nil {
		return fmt.Errorf("set the clock: %w", err)
	}
	f, err := os.OpenFile("/dev/random", os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	// struct rand_pool_info: bits, bytes, data.
	info := binary.NativeEndian.AppendUint32(nil, uint32(len(r.Entropy)*8))
	info = binary.NativeEndian.AppendUint32(info, uint32(len(r.Entropy)))
	info = append(info, r.Entropy...)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), rndAddEntropy, uintptr(unsafe.Pointer(&info[0]))); errno != 0 {
		return fmt.Errorf("add entropy: %w", errno)
	}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), rndReseedCRNG, 0); errno != 0 {
		return fmt.Errorf("reseed: %w", errno)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.id = r.MachineID
	return nil
}

func (m *machine) Put(key, value string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.values[key] = value
	return nil
}

func (m *machine) Get(key string) (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.values[key], nil
}

// disk finds the virtio disk with this serial.
func disk(serial string) (string, error) {
	names, _ := filepath.Glob("/sys/block/*/serial")
	for _, path := range names {
		if b, err := os.ReadFile(path); err == nil && string(bytes.TrimSpace(b)) == serial {
			return "/dev/" + filepath.Base(filepath.Dir(path)), nil
		}
	}
	return "", fmt.Errorf("no disk with serial %q", serial)
}

// directBytes is the unit of direct access.
const directBytes = 4096

// aligned allocates n bytes as direct access wants them.
func aligned(n int) ([]byte, error) {
	return unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
}

// access reads or writes one unit of a disk past the page cache.
func access(serial string, at int64, write []byte) ([]byte, error) {
	path, err := disk(serial)
	if err != nil {
		return nil, err
	}
	flags := unix.O_RDONLY | unix.O_DIRECT
	if write != nil {
		flags = unix.O_RDWR | unix.O_DIRECT | unix.O_SYNC
	}
	fd, err := unix.Open(path, flags, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	defer unix.Close(fd)
	b, err := aligned(directBytes)
	if err != nil {
		return nil, err
	}
	defer func() { _ = unix.Munmap(b) }()
	if write != nil {
		copy(b, write)
		_, err = unix.Pwrite(fd, b, at)
	} else {
		_, err = unix.Pread(fd, b, at)
	}
	return bytes.Clone(b), err
}

func (m *machine) ReadSlot(slot, n int) ([]byte, error) {
	b, err := access(fmt.Sprintf("slot%d", slot), 0, nil)
	if err != nil {
		return nil, err
	}
	return b[:min(n, len(b))], nil
}

func (m *machine) WriteScratch(at int64, data []byte) error {
	_, err := access("scratch", at, data[:min(len(data), directBytes)])
	return err
}

func (m *machine) ReadScratch(at int64, n int) ([]byte, error) {
	b, err := access("scratch", at, nil)
	if err != nil {
		return nil, err
	}
	return b[:min(n, len(b))], nil
}

func (m *machine) PowerOff() error {
	return unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func (m *machine) Panic() error {
	return os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0)
}
