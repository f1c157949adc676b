// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package kit

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Version is the version of the kit format that this code writes and reads.
const Version = 1

// Names of the files in a kit.
const (
	KernelName    = "kernel"
	InitramfsName = "initramfs.cpio"
	ScratchName   = "scratch.ext4"
	ManifestName  = "kit.json"
	// NoticesName has the licences of what is in the kit. No machine is made of it, so it is no part of the digest.
	NoticesName = "NOTICES.txt"
)

// ScratchBytes is the size of scratch.ext4, and so of every scratch disk.
const ScratchBytes int64 = 16 << 30

// Bounds of what a manifest may claim; they only keep absurd input away.
const (
	maxManifestBytes = 64 << 10
	maxTextBytes     = 128
	maxCmdlineBytes  = 1024 // x86 allows 2048, and a driver may add to it
	maxBootBytes     = 1 << 30
)

// ErrInvalid means that the directory is not a complete, undamaged guest kit of this format.
// The remedy is to build it again: make guest.
var ErrInvalid = errors.New("invalid guest kit")

// Manifest is the content of kit.json.
type Manifest struct {
	Version       int    `json:"version"`
	Arch          string `json:"arch"`
	KernelRelease string `json:"kernelRelease"`
	AgentVersion  string `json:"agentVersion"`
	// Cmdline is the kernel command line that the kit was made for.
	Cmdline string `json:"cmdline"`
	// Inputs is a digest over what the kit was built from: the builder skips its
	// work when it would be the same.
	Inputs string `json:"inputs"`
	// Files are the kit's files in lexical order.
	Files []File `json:"files"`
	// Digest is [Manifest.ComputeDigest] of the fields above.
	Digest string `json:"digest"`
}

// File is one member of a kit.
type File struct {
	Name string `json:"name"`
	Size int64  `json:"size"`
	// SHA256 is in hexadecimal. Of a sparse file it is the digest that
	// [SparseDigest] defines, so that 16 GiB of holes need not be read.
	SHA256 string `json:"sha256"`
	Sparse bool   `json:"sparse,omitempty"`
}

// Decode reads a manifest and checks everything that can be checked without the
// kit's files. Every error is ErrInvalid.
func Decode(r io.Reader) (Manifest, error) {
	var m Manifest
	b, err := io.ReadAll(io.LimitReader(r, maxManifestBytes+1))
	if err != nil {
		return m, fmt.Errorf("%w: read manifest: %w", ErrInvalid, err)
	}
	if len(b) > maxManifestBytes {
		return m, fmt.Errorf("%w: manifest has more than %d bytes", ErrInvalid, maxManifestBytes)
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&m); err != nil {
		return m, fmt.Errorf("%w: decode manifest: %w", ErrInvalid, err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return m, fmt.Errorf("%w: manifest has something after its end", ErrInvalid)
	}
	return m, m.validate()
}

// Encode returns the manifest as kit.json holds it, with its digest set.
func (m Manifest) Encode() ([]byte, error) {
	m.Digest = m.ComputeDigest()
	if err := m.validate(); err != nil {
		return nil, err
	}
	b, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode manifest: %w", err)
	}
	return append(b, '\n'), nil
}

// ComputeDigest is the SHA-256 of the compact JSON of the manifest with an empty
// digest, as "sha256:" and 64 hex digits.
func (m Manifest) ComputeDigest() string {
	m.Digest = ""
	b, err := json.Marshal(m)
	if err != nil { // strings, integers and booleans always encode
		panic(err)
	}
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func (m Manifest) validate() error {
	if m.Version != Version {
		return fmt.Errorf("%w: format version %d, want %d: build the kit again", ErrInvalid, m.Version, Version)
	}
	if m.Arch != "amd64" && m.Arch != "arm64" {
		return fmt.Errorf("%w: architecture %q", ErrInvalid, m.Arch)
	}
	for _, text := range []string{m.KernelRelease, m.AgentVersion} {
		if text == "" || len(text) > maxTextBytes || !printable(text) || strings.Contains(text, " ") {
			return fmt.Errorf("%w: kernel release or agent version %q", ErrInvalid, text)
		}
	}
	if len(m.Cmdline) > maxCmdlineBytes || !printable(m.Cmdline) {
		return fmt.Errorf("%w: kernel command line %.80q", ErrInvalid, m.Cmdline)
	}
	if !isHex(m.Inputs) {
		return fmt.Errorf("%w: inputs %.80q", ErrInvalid, m.Inputs)
	}
	want := []string{InitramfsName, KernelName, ScratchName}
	if len(m.Files) != len(want) {
		return fmt.Errorf("%w: %d files, want %d", ErrInvalid, len(m.Files), len(want))
	}
	for i, f := range m.Files {
		if f.Name != want[i] {
			return fmt.Errorf("%w: file %.80q, want %q", ErrInvalid, f.Name, want[i])
		}
		if !isHex(f.SHA256) {
			return fmt.Errorf("%w: digest of %s is not SHA-256 in hexadecimal", ErrInvalid, f.Name)
		}
		if sparse := f.Name == ScratchName; f.Sparse != sparse {
			return fmt.Errorf("%w: %s: sparse is %t", ErrInvalid, f.Name, f.Sparse)
		}
		switch {
		case f.Name == ScratchName && f.Size != ScratchBytes:
			return fmt.Errorf("%w: %s has %d bytes, want %d", ErrInvalid, f.Name, f.Size, ScratchBytes)
		case f.Name != ScratchName && (f.Size <= 0 || f.Size > maxBootBytes):
			return fmt.Errorf("%w: %s has %d bytes, want 1 to %d", ErrInvalid, f.Name, f.Size, maxBootBytes)
		}
	}
	if want := m.ComputeDigest(); m.Digest != want {
		return fmt.Errorf("%w: digest %.80q, want %s", ErrInvalid, m.Digest, want)
	}
	return nil
}

func printable(s string) bool {
	for _, c := range []byte(s) {
		if c < ' ' || c > '~' {
			return false
		}
	}
	return true
}

func isHex(s string) bool {
	if len(s) != hex.EncodedLen(sha256.Size) {
		return false
	}
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}
