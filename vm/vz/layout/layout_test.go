// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package layout

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/durable"
	"github.com/vk-firkin/vk-firkin/vm/machinedir"
)

const host = "sha256:this host"

func linux() vm.Config {
	return vm.Config{Shape: vm.Shape{VCPUs: 2, MemoryBytes: 256 << 20}, Kit: vm.Kit{Digest: "sha256:kit"}}
}

func macOS() vm.Config {
	return vm.Config{Shape: vm.Shape{VCPUs: 2, MemoryBytes: 4 << 30}, GuestOS: vm.GuestMacOS, MacOS: &vm.MacOS{Digest: "sha256:macos"}}
}

// snapshot writes a snapshot of a machine of cfg, its record changed by change.
func snapshot(t *testing.T, cfg vm.Config, change func(*Snapshot)) (dir string) {
	t.Helper()
	dir = t.TempDir()
	s := NewSnapshot(Record{Config: cfg, Compatibility: host}, Identity{[]byte("id")}, "sha256:devices")
	for _, name := range append([]string{StateFile}, Disks(cfg)...) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
		s.Sizes[name] = int64(len(name))
	}
	if change != nil {
		change(&s)
	}
	s.Digest = s.Sum()
	if err := machinedir.WriteJSON(durable.Host, dir, SnapshotFile, s); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestReadSnapshot(t *testing.T) {
	explicit := linux()
	explicit.GuestOS = vm.GuestLinux
	for name, cfg := range map[string]vm.Config{"linux": linux(), "macos": macOS()} {
		s, err := ReadSnapshot(snapshot(t, cfg, nil), cfg, host)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if string(s.Identity.MachineIdentifier) != "id" || s.Configuration != "sha256:devices" {
			t.Errorf("%s: read %+v", name, s)
		}
	}
	if _, err := ReadSnapshot(snapshot(t, linux(), nil), explicit, host); err != nil {
		t.Errorf("a guest that is Linux by default and one that is so by name: %v", err)
	}
}

// What differs from the machine that is wanted is named.
func TestReadSnapshotNames(t *testing.T) {
	smaller := linux()
	smaller.Shape.MemoryBytes = 128 << 20
	fewer := linux()
	fewer.Shape.VCPUs = 1
	kit := linux()
	kit.Kit.Digest = "sha256:other"
	for name, c := range map[string]struct {
		change func(*Snapshot)
		cfg    vm.Config
		host   string
		says   string
	}{
		"version":            {change: func(s *Snapshot) { s.Version++ }, says: "version 2"},
		"version 0":          {change: func(s *Snapshot) { s.Version = 0 }, says: "version 0"},
		"host":               {host: "sha256:another", says: "another host"},
		"compatibility":      {change: func(s *Snapshot) { s.Compatibility = "" }, says: "another host"},
		"devices":            {change: func(s *Snapshot) { s.DeviceVersion++ }, says: "devices of version"},
		"memory":             {cfg: smaller, says: "shape 2x256Mi, want 2x128Mi"},
		"vCPUs":              {cfg: fewer, says: "shape 2x256Mi, want 1x256Mi"},
		"guest":              {cfg: vm.Config{Shape: linux().Shape, GuestOS: vm.GuestMacOS, MacOS: macOS().MacOS}, says: "its guest is linux, want macos"},
		"kit":                {cfg: kit, says: "sha256:kit, want sha256:other"},
		"identifier":         {change: func(s *Snapshot) { s.Identity = Identity{} }, says: "no machine identifier"},
		"size of the state":  {change: func(s *Snapshot) { s.Sizes[StateFile]++ }, says: StateFile},
		"size of the disk":   {change: func(s *Snapshot) { s.Sizes[ScratchFile]-- }, says: ScratchFile},
		"no size of a file":  {change: func(s *Snapshot) { delete(s.Sizes, StateFile) }, says: StateFile},
		"no size of a disk":  {change: func(s *Snapshot) { delete(s.Sizes, ScratchFile) }, says: ScratchFile},
		"no sizes whatever":  {change: func(s *Snapshot) { s.Sizes = nil }, says: StateFile},
		"record of a memory": {change: func(s *Snapshot) { s.Shape.MemoryBytes *= 2 }, says: "shape 2x512Mi"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg, on := c.cfg, c.host
			if cfg.Shape == (vm.Shape{}) {
				cfg = linux()
			}
			if on == "" {
				on = host
			}
			_, err := ReadSnapshot(snapshot(t, linux(), c.change), cfg, on)
			if !errors.Is(err, vm.ErrSnapshotInvalid) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("error is %v, want ErrSnapshotInvalid that says %q", err, c.says)
			}
		})
	}
}

// Every byte of the record counts, also those that JSON does not care for.
func TestReadSnapshotEveryByte(t *testing.T) {
	dir := snapshot(t, linux(), nil)
	path := filepath.Join(dir, SnapshotFile)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	try := func(what string, text []byte) {
		t.Helper()
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadSnapshot(dir, linux(), host); !errors.Is(err, vm.ErrSnapshotInvalid) {
			t.Errorf("%s: %v, want ErrSnapshotInvalid", what, err)
		}
	}
	for at := range whole {
		for _, flip := range []byte{1, 0x20, 0x80, '\n' ^ ' '} {
			text := bytes.Clone(whole)
			text[at] ^= flip
			try(fmt.Sprintf("byte %d, %q, is %q", at, whole[at], text[at]), text)
		}
	}
	try("cut", whole[:len(whole)-1])
	try("empty", nil)
	try("more", append(bytes.Clone(whole), ' '))
	try("too much", append(bytes.Clone(whole), make([]byte, machinedir.MaxRecordBytes)...))
}

func TestReadSnapshotFiles(t *testing.T) {
	for _, cfg := range []vm.Config{linux(), macOS()} {
		for _, name := range append([]string{SnapshotFile, StateFile}, Disks(cfg)...) {
			for what, damage := range map[string]func(path string) error{
				"missing":     os.Remove,
				"empty":       func(path string) error { return os.Truncate(path, 0) },
				"longer":      func(path string) error { return os.Truncate(path, 10_000) },
				"a directory": func(path string) error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o700)) },
			} {
				dir := snapshot(t, cfg, nil)
				if err := damage(filepath.Join(dir, name)); err != nil {
					t.Fatal(err)
				}
				_, err := ReadSnapshot(dir, cfg, host)
				if !errors.Is(err, vm.ErrSnapshotInvalid) || !strings.Contains(err.Error(), name) {
					t.Errorf("%s is %s: %v, want ErrSnapshotInvalid that names it", name, what, err)
				}
			}
		}
	}
	if _, err := ReadSnapshot(filepath.Join(t.TempDir(), "none"), linux(), host); !errors.Is(err, vm.ErrSnapshotInvalid) {
		t.Errorf("no directory: %v, want ErrSnapshotInvalid", err)
	}
}

// A host that cannot read says nothing about the snapshot, which would be thrown away.
func TestBlame(t *testing.T) {
	for errno, want := range map[syscall.Errno]error{
		syscall.EMFILE: vm.ErrUnavailable, syscall.ENFILE: vm.ErrUnavailable, syscall.ENOMEM: vm.ErrUnavailable,
		syscall.EACCES: vm.ErrUnavailable, syscall.EPERM: vm.ErrUnavailable,
		syscall.ENOENT: vm.ErrSnapshotInvalid, syscall.ENOTDIR: vm.ErrSnapshotInvalid, syscall.EISDIR: vm.ErrSnapshotInvalid,
		syscall.EIO: vm.ErrSnapshotInvalid, syscall.ELOOP: vm.ErrSnapshotInvalid,
	} {
		if got := blame(&os.PathError{Op: "open", Path: SnapshotFile, Err: errno}); !errors.Is(got, want) {
			t.Errorf("%v: %v, want %v", errno, got, want)
		}
	}
}

// A process without descriptors left is one such host.
func TestReadSnapshotWithoutDescriptors(t *testing.T) {
	dir := snapshot(t, linux(), nil)
	var was syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	none := was
	none.Cur = 0
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &none); err != nil {
		t.Fatal(err)
	}
	_, err := ReadSnapshot(dir, linux(), host)
	if rerr := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &was); rerr != nil {
		t.Fatal(rerr)
	}
	if !errors.Is(err, vm.ErrUnavailable) || errors.Is(err, vm.ErrSnapshotInvalid) {
		t.Errorf("error is %v, want ErrUnavailable only", err)
	}
}
