// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package kit_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vk-firkin/vk-firkin/vm/guest/kit"
)

// writeKit makes a small kit that is valid in every respect.
func writeKit(t *testing.T, arch string) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{kit.KernelName, kit.InitramfsName} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("content of "+name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.Create(filepath.Join(dir, kit.ScratchName))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(kit.ScratchBytes); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("superblock"), 1024); err != nil {
		t.Fatal(err)
	}
	m := kit.Manifest{Version: kit.Version, Arch: arch, KernelRelease: "6.1.0", AgentVersion: "abc", Cmdline: kit.Cmdline(arch), Inputs: strings.Repeat("0a", 32)}
	for _, name := range []string{kit.InitramfsName, kit.KernelName, kit.ScratchName} {
		d, err := kit.Describe(dir, name)
		if err != nil {
			t.Fatal(err)
		}
		m.Files = append(m.Files, d)
	}
	writeManifest(t, dir, m)
	return dir
}

func writeManifest(t *testing.T, dir string, m kit.Manifest) {
	t.Helper()
	b, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, kit.ManifestName), b, 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestLoad(t *testing.T) {
	for _, arch := range []string{"amd64", "arm64"} {
		dir := writeKit(t, arch)
		k, err := kit.Load(dir)
		if err != nil {
			t.Fatal(err)
		}
		if k.Arch != arch || !strings.HasPrefix(k.Digest, "sha256:") || k.Kernel != filepath.Join(dir, "kernel") ||
			k.Initramfs != filepath.Join(dir, "initramfs.cpio") || k.Scratch != filepath.Join(dir, "scratch.ext4") || !strings.Contains(k.Cmdline, "panic=-1") {
			t.Errorf("%+v", k)
		}
		if err := kit.Verify(dir); err != nil {
			t.Error(err)
		}
	}
}

func TestLoadRelative(t *testing.T) {
	dir := writeKit(t, "amd64")
	t.Chdir(filepath.Dir(dir))
	k, err := kit.Load(filepath.Base(dir))
	if err != nil || !filepath.IsAbs(k.Kernel) {
		t.Errorf("%+v, %v: paths are to be absolute", k, err)
	}
}

func TestDamaged(t *testing.T) {
	for _, test := range []struct {
		name   string
		damage func(dir string) error
		quick  bool // Load notices it as well
	}{
		{"no manifest", func(dir string) error { return os.Remove(filepath.Join(dir, kit.ManifestName)) }, true},
		{"no kernel", func(dir string) error { return os.Remove(filepath.Join(dir, kit.KernelName)) }, true},
		{"truncated initramfs", func(dir string) error { return os.Truncate(filepath.Join(dir, kit.InitramfsName), 3) }, true},
		{"truncated scratch disk", func(dir string) error { return os.Truncate(filepath.Join(dir, kit.ScratchName), 4096) }, true},
		{"kernel is a directory", func(dir string) error {
			path := filepath.Join(dir, kit.KernelName)
			return errors.Join(os.Remove(path), os.Mkdir(path, 0o755))
		}, true},
		{"kernel is a symlink", func(dir string) error {
			path := filepath.Join(dir, kit.KernelName)
			return errors.Join(os.Rename(path, path+".real"), os.Symlink(path+".real", path))
		}, true},
		{"bit flipped in the kernel", func(dir string) error { return flip(filepath.Join(dir, kit.KernelName), 3) }, false},
		{"bit flipped in the scratch disk", func(dir string) error { return flip(filepath.Join(dir, kit.ScratchName), 1030) }, false},
		{"bit flipped in a hole", func(dir string) error { return flip(filepath.Join(dir, kit.ScratchName), 5<<30) }, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := writeKit(t, "amd64")
			if err := test.damage(dir); err != nil {
				t.Fatal(err)
			}
			if err := kit.Verify(dir); !errors.Is(err, kit.ErrInvalid) {
				t.Errorf("verify: %v, want ErrInvalid", err)
			}
			if _, err := kit.Load(dir); errors.Is(err, kit.ErrInvalid) != test.quick {
				t.Errorf("load: %v, want it to notice: %t", err, test.quick)
			}
		})
	}
	if _, err := kit.ReadManifest(t.TempDir()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing manifest is %v", err)
	}
}

func flip(path string, off int64) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, off); err != nil {
		return err
	}
	b[0] ^= 1
	_, err = f.WriteAt(b, off)
	return err
}

// TestDecode changes one thing of a valid manifest each.
func TestDecode(t *testing.T) {
	valid, err := kit.ReadManifest(writeKit(t, "amd64"))
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(m *kit.Manifest){
		"version":              func(m *kit.Manifest) { m.Version = 2 },
		"architecture":         func(m *kit.Manifest) { m.Arch = "riscv64" },
		"release":              func(m *kit.Manifest) { m.KernelRelease = "" },
		"agent with a newline": func(m *kit.Manifest) { m.AgentVersion = "a\nb" },
		"long command line":    func(m *kit.Manifest) { m.Cmdline = strings.Repeat("a", 5000) },
		"command line":         func(m *kit.Manifest) { m.Cmdline = "a\x00b" },
		"inputs":               func(m *kit.Manifest) { m.Inputs = "x" },
		"a file too few":       func(m *kit.Manifest) { m.Files = m.Files[:2] },
		"file elsewhere":       func(m *kit.Manifest) { m.Files[1].Name = "../kernel" },
		"negative size":        func(m *kit.Manifest) { m.Files[1].Size = -1 },
		"absurd size":          func(m *kit.Manifest) { m.Files[1].Size = 1 << 40 },
		"scratch size":         func(m *kit.Manifest) { m.Files[2].Size = 4096 },
		"sparse kernel":        func(m *kit.Manifest) { m.Files[1].Sparse = true },
		"digest of a file":     func(m *kit.Manifest) { m.Files[1].SHA256 = strings.ToUpper(m.Files[1].SHA256) },
	} {
		m := valid
		m.Files = append([]kit.File(nil), valid.Files...)
		change(&m)
		m.Digest = m.ComputeDigest()
		b, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := kit.Decode(bytes.NewReader(b)); !errors.Is(err, kit.ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
		}
		if _, err := m.Encode(); err == nil {
			t.Errorf("%s: it can be written", name)
		}
	}
	b, err := valid.Encode()
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"empty":         "",
		"unknown field": strings.Replace(string(b), "{", `{"more": 1,`, 1),
		"tail":          string(b) + "{}",
		"other digest":  strings.Replace(string(b), `"digest": "sha256:`, `"digest": "sha256:0`, 1),
		"huge":          string(b) + strings.Repeat(" ", 1<<20),
	} {
		if _, err := kit.Decode(strings.NewReader(text)); !errors.Is(err, kit.ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"version":1,"arch":"amd64","files":[{"name":"kernel","size":1}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := kit.Decode(bytes.NewReader(b))
		if err != nil {
			if !errors.Is(err, kit.ErrInvalid) {
				t.Errorf("%v is not ErrInvalid", err)
			}
			return
		}
		if _, err := m.Encode(); err != nil {
			t.Errorf("what was read cannot be written: %v", err)
		}
	})
}

// TestSparseDigest: holes and written zeros are the same, place and size are not.
func TestSparseDigest(t *testing.T) {
	digest := func(size int64, write map[int64]string) string {
		t.Helper()
		f, err := os.Create(filepath.Join(t.TempDir(), "f"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if err := f.Truncate(size); err != nil {
			t.Fatal(err)
		}
		for off, s := range write {
			if _, err := f.WriteAt([]byte(s), off); err != nil {
				t.Fatal(err)
			}
		}
		d, err := kit.SparseDigest(f, size)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	const size = 32<<20 + 5
	base := digest(size, map[int64]string{9 << 20: "data"})
	if zeros := digest(size, map[int64]string{9 << 20: "data", 17 << 20: strings.Repeat("\x00", 1<<20)}); zeros != base {
		t.Error("written zeros change the digest")
	}
	for name, other := range map[string]string{
		"moved":   digest(size, map[int64]string{10 << 20: "data"}),
		"longer":  digest(size+4096, map[int64]string{9 << 20: "data"}),
		"at end":  digest(size, map[int64]string{9 << 20: "data", size - 1: "x"}),
		"nothing": digest(size, nil),
	} {
		if other == base {
			t.Errorf("%s: the same digest", name)
		}
	}
}
