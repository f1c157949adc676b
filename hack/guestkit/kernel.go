// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/zstd"
)

// kernel is what a kernel package holds.
type kernel struct {
	release string
	image   string // path of vmlinuz
	modules string // path of lib/modules/RELEASE
}

// findKernel looks into an unpacked kernel package.
func findKernel(tree string) (kernel, error) {
	images, err := filepath.Glob(filepath.Join(tree, "boot", "vmlinuz-*"))
	if err != nil || len(images) != 1 {
		return kernel{}, fmt.Errorf("the kernel package has %d kernels, want one", len(images))
	}
	release := strings.TrimPrefix(filepath.Base(images[0]), "vmlinuz-")
	for _, lib := range []string{"lib", "usr/lib"} { // newer packages have the merged /usr in them
		dir := filepath.Join(tree, lib, "modules", release)
		if st, err := os.Stat(dir); err == nil && st.IsDir() {
			return kernel{release: release, image: images[0], modules: dir}, nil
		}
	}
	return kernel{}, fmt.Errorf("the kernel package has no modules for %s", release)
}

func writeKernel(arch, from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	switch arch {
	case "amd64":
		err = checkBzImage(b)
	case "arm64":
		b, err = arm64Image(b)
	}
	if err != nil {
		return fmt.Errorf("kernel image of %s: %w", arch, err)
	}
	return os.WriteFile(to, b, 0o644)
}

// checkBzImage looks for the mark of the x86 boot protocol
// (Documentation/arch/x86/boot.rst: "HdrS" at 0x202).
func checkBzImage(b []byte) error {
	if len(b) < 0x206 || string(b[0x202:0x206]) != "HdrS" {
		return errors.New("not a bzImage")
	}
	return nil
}

// maxImage bounds what a compressed kernel may unpack to.
const maxImage = 256 << 20

// arm64Image returns the uncompressed Image in b, which may be one already, be
// compressed by gzip, or be an EFI application that carries it (zboot). The mark is in
// Documentation/arch/arm64/booting.rst, the layout of zboot in the kernel's
// drivers/firmware/efi/libstub/zboot-header.S: "MZ", 0, "zimg", offset and size of the
// payload, and the name of the compression at 24.
func arm64Image(b []byte) ([]byte, error) {
	for range 3 { // at most one compression inside one zboot
		switch {
		case len(b) >= 64 && string(b[56:60]) == "ARM\x64":
			return b, nil
		case bytes.HasPrefix(b, []byte{0x1f, 0x8b}):
			r, err := gzip.NewReader(bytes.NewReader(b))
			if err != nil {
				return nil, err
			}
			// Zboot pads its payload and gzip would take the padding for another member.
			r.Multistream(false)
			if b, err = readImage(r); err != nil {
				return nil, err
			}
		case bytes.HasPrefix(b, []byte{0x28, 0xb5, 0x2f, 0xfd}):
			r, err := zstd.NewReader(bytes.NewReader(b))
			if err != nil {
				return nil, err
			}
			b, err = readImage(r)
			r.Close()
			if err != nil {
				return nil, err
			}
		case len(b) >= 64 && string(b[:2]) == "MZ" && string(b[4:8]) == "zimg":
			off, size := uint64(binary.LittleEndian.Uint32(b[8:])), uint64(binary.LittleEndian.Uint32(b[12:]))
			if off+size > uint64(len(b)) {
				return nil, errors.New("payload of the EFI image lies outside of it")
			}
			b = b[off : off+size]
		default:
			return nil, errors.New("neither an Image, nor gzip, nor zstd, nor an EFI zboot image")
		}
	}
	return nil, errors.New("compressed too many times")
}

func readImage(r io.Reader) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxImage+1))
	if err != nil {
		return nil, fmt.Errorf("unpack: %w", err)
	}
	if len(b) > maxImage {
		return nil, fmt.Errorf("unpacks to more than %d bytes", maxImage)
	}
	return b, nil
}
