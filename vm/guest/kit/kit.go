// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package kit

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/vk-firkin/vk-firkin/vm"
)

// Load reads the kit in dir and checks that its files are there, are regular and
// have the sizes of the manifest, which is quick. Every error is ErrInvalid.
func Load(dir string) (vm.Kit, error) {
	m, dir, err := open(dir)
	if err != nil {
		return vm.Kit{}, err
	}
	return vm.Kit{
		Arch:      m.Arch,
		Digest:    m.Digest,
		Kernel:    filepath.Join(dir, KernelName),
		Initramfs: filepath.Join(dir, InitramfsName),
		Scratch:   filepath.Join(dir, ScratchName),
		Cmdline:   m.Cmdline,
	}, nil
}

// Verify reads the kit in dir whole and compares every file with its digest, which
// takes about as long as reading 60 MB. Every error is ErrInvalid.
func Verify(dir string) error {
	m, dir, err := open(dir)
	if err != nil {
		return err
	}
	for _, want := range m.Files {
		got, err := Describe(dir, want.Name)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrInvalid, err)
		}
		if got != want {
			return fmt.Errorf("%w: %s does not have the content that the manifest names: build the kit again", ErrInvalid, filepath.Join(dir, want.Name))
		}
	}
	return nil
}

// ReadManifest reads the manifest of the kit in dir and nothing else. Every error is
// ErrInvalid; a missing manifest is fs.ErrNotExist as well.
func ReadManifest(dir string) (Manifest, error) {
	path := filepath.Join(dir, ManifestName)
	if err := regular(path); err != nil {
		return Manifest{}, fmt.Errorf("%w: %w: build it by make guest", ErrInvalid, err)
	}
	f, err := os.Open(path)
	if err != nil {
		return Manifest{}, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	defer f.Close()
	m, err := Decode(f)
	if err != nil {
		return Manifest{}, fmt.Errorf("%s: %w", path, err)
	}
	return m, nil
}

func open(dir string) (Manifest, string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return Manifest{}, "", fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	m, err := ReadManifest(dir)
	if err != nil {
		return Manifest{}, "", err
	}
	for _, f := range m.Files {
		path := filepath.Join(dir, f.Name)
		if err := regular(path); err != nil {
			return Manifest{}, "", fmt.Errorf("%w: %w: build the kit again", ErrInvalid, err)
		}
		st, err := os.Lstat(path)
		if err != nil {
			return Manifest{}, "", fmt.Errorf("%w: %w", ErrInvalid, err)
		}
		if st.Size() != f.Size {
			return Manifest{}, "", fmt.Errorf("%w: %s has %d bytes, want %d: build the kit again", ErrInvalid, path, st.Size(), f.Size)
		}
	}
	return m, dir, nil
}

// regular refuses what could block on open or lead out of the kit.
func regular(path string) error {
	st, err := os.Lstat(path)
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() {
		return fmt.Errorf("%s is not a regular file", path)
	}
	return nil
}

// Describe measures the file called name in dir.
func Describe(dir, name string) (File, error) {
	f, err := os.Open(filepath.Join(dir, name))
	if err != nil {
		return File{}, fmt.Errorf("describe kit file: %w", err)
	}
	defer f.Close()
	out := File{Name: name, Sparse: name == ScratchName}
	if out.Sparse {
		st, err := f.Stat()
		if err != nil {
			return File{}, fmt.Errorf("describe kit file: %w", err)
		}
		out.Size = st.Size()
		out.SHA256, err = SparseDigest(f, out.Size)
		if err != nil {
			return File{}, fmt.Errorf("describe kit file %s: %w", f.Name(), err)
		}
		return out, nil
	}
	h := sha256.New()
	if out.Size, err = io.Copy(h, f); err != nil {
		return File{}, fmt.Errorf("describe kit file: %w", err)
	}
	out.SHA256 = hex.EncodeToString(h.Sum(nil))
	return out, nil
}
