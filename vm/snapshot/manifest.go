// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/durable"
)

// Names inside a set.
const (
	manifestName = "manifest.json"
	sealKeyName  = "seal.key"
	machineDir   = "machine"
)

// Bounds of a manifest, generous against what drivers write (QEMU: 3 files) and
// small against what a decoder could be made to hold.
const (
	maxManifestBytes = 1 << 20
	maxMembers       = 256
	maxNameBytes     = 255     // of the common file systems
	maxMemberBytes   = 1 << 46 // 64 TiB
	maxTextBytes     = 1 << 10

	maxTemplateImages = 64 // more than any driver has slots
)

// Manifest describes one set: what it was made from and every file in it.
type Manifest struct {
	Version  int    `json:"version"`
	Kind     Kind   `json:"kind"`
	Key      string `json:"key"`
	Instance string `json:"instance"`
	// Created is when the machine was saved, UTC.
	Created       time.Time `json:"created"`
	Driver        string    `json:"driver"`
	Arch          string    `json:"arch"`
	Compatibility string    `json:"compatibility"`
	KitDigest     string    `json:"kitDigest"`
	// MacOSDigest identifies the installation that a macOS guest was booted from, which has
	// no kit.
	MacOSDigest string   `json:"macOSDigest,omitempty"`
	Shape       vm.Shape `json:"shape"`
	// Template is there for KindTemplate only.
	Template *Template `json:"template,omitempty"`
	// Members are all files of the set but the manifest, sorted by name.
	Members []Member `json:"members"`
}

// Member is one file of a set.
type Member struct {
	// Name is the path inside the set, with slashes.
	Name string `json:"name"`
	Size int64  `json:"size"`
	// SHA256 is over the content, or with Sparse over its blocks that are not all
	// zero and their places, as kit.SparseDigest defines it: the file is mostly holes.
	SHA256 string `json:"sha256"`
	Sparse bool   `json:"sparse,omitempty"`
}

// ErrManifest means that a manifest is damaged or of a version this program cannot read.
var ErrManifest = errors.New("invalid snapshot manifest")

// Bytes is the sum of the sizes of all members.
func (m Manifest) Bytes() int64 {
	var n int64
	for _, f := range m.Members {
		n += f.Size
	}
	return n
}

// about begins an event about the snapshot.
func (m Manifest) about(key string) Event {
	e := Event{Key: key, Kind: m.Kind, Shape: m.Shape}
	if m.Template != nil {
		e.Template = m.Template.ID()
	}
	return e
}

// encodeManifest gives the manifest's bytes on disk.
func encodeManifest(m Manifest) ([]byte, error) {
	if err := m.validate(); err != nil {
		return nil, err
	}
	data, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode manifest: %w", err)
	}
	return append(data, '\n'), nil
}

// DecodeManifest reads a manifest of at most 1 MiB and checks every field. It
// accepts no unknown field, no other version and no name that leaves the set. The
// error is ErrManifest, with a
// *durable.VersionError when another vk-firkin wrote it, or that of r.
func DecodeManifest(r io.Reader) (Manifest, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxManifestBytes+1))
	if err != nil {
		return Manifest{}, fmt.Errorf("read manifest: %w", err)
	}
	if len(data) > maxManifestBytes {
		return Manifest{}, fmt.Errorf("%w: more than %d bytes", ErrManifest, maxManifestBytes)
	}
	// The version first: the fields of another one need not be known here.
	var head struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(data, &head); err != nil {
		return Manifest{}, fmt.Errorf("%w: %v", ErrManifest, err) //nolint:errorlint // the kind is ErrManifest
	}
	switch {
	case head.Version < 1:
		return Manifest{}, fmt.Errorf("%w: version %d", ErrManifest, head.Version)
	case head.Version != FormatVersion:
		return Manifest{}, fmt.Errorf("%w: %w", ErrManifest, &durable.VersionError{Kind: "snapshot", Version: head.Version, Oldest: FormatVersion, Newest: FormatVersion})
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	var m Manifest
	if err := dec.Decode(&m); err != nil {
		return Manifest{}, fmt.Errorf("%w: %v", ErrManifest, err) //nolint:errorlint // the kind is ErrManifest
	}
	if err := m.validate(); err != nil {
		return Manifest{}, err
	}
	return m, nil
}

// validate reports every fault, joined, as ErrManifest.
func (m Manifest) validate() error {
	var errs []error
	bad := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("%w: "+format, append([]any{ErrManifest}, args...)...))
	}
	if m.Version != FormatVersion {
		bad("version %d, want %d", m.Version, FormatVersion)
	}
	switch {
	case m.Kind == KindBase && m.Template == nil:
	case m.Kind == KindTemplate && m.Template != nil:
		if err := m.Template.validate(); err != nil {
			errs = append(errs, err)
		}
	default:
		bad("kind %.64q", m.Kind)
	}
	if !isHex(m.Key, keyLength) {
		bad("key %.80q", m.Key)
	}
	if !isHex(m.Instance, instanceLength) {
		bad("instance %.80q", m.Instance)
	}
	if m.Created.IsZero() {
		bad("no creation time")
	}
	for _, t := range []string{m.Driver, m.Arch, m.KitDigest, m.MacOSDigest, m.Compatibility} {
		if len(t) > maxTextBytes {
			bad("a text of %d bytes", len(t))
		}
	}
	if err := m.Shape.Validate(); err != nil {
		bad("shape: %v", err)
	}
	if len(m.Members) > maxMembers {
		bad("%d members, at most %d", len(m.Members), maxMembers)
		return errors.Join(errs...)
	}
	for i, f := range m.Members {
		if !validMemberName(f.Name) {
			bad("member name %.300q", f.Name)
		}
		if f.Size < 0 || f.Size > maxMemberBytes {
			bad("member %.300q has %d bytes", f.Name, f.Size)
		}
		if !isHex(f.SHA256, keyLength) {
			bad("member %.300q has digest %.80q", f.Name, f.SHA256)
		}
		if i > 0 && m.Members[i-1].Name >= f.Name {
			bad("member %.300q is out of order", f.Name)
		}
	}
	if !slices.ContainsFunc(m.Members, func(f Member) bool { return f.Name == sealKeyName && f.Size == sealKeyBytes }) {
		bad("no %s of %d bytes", sealKeyName, sealKeyBytes)
	}
	return errors.Join(errs...)
}

// validMemberName allows exactly seal.key and plain names in machine/.
func validMemberName(name string) bool {
	if name == sealKeyName {
		return true
	}
	dir, base := path.Split(name)
	return dir == machineDir+"/" && validFileName(base)
}

// validFileName allows a plain, visible file name.
func validFileName(name string) bool {
	return name != "" && len(name) <= maxNameBytes && name[0] != '.' && !strings.ContainsFunc(name, func(r rune) bool {
		return r == '/' || r == '\\' || r < 0x20 || r > 0x7e
	})
}

// matches tells whether the set was made for this spec on this driver, as an
// error that names the first difference.
func (m Manifest) matches(key string, s Spec, driver string, f vm.Features) error {
	differs := func(what string, got, want any) error {
		return fmt.Errorf("%w: made for %s %v, wanted %v", ErrManifest, what, got, want)
	}
	switch {
	case m.Key != key:
		return differs("key", m.Key, key)
	case m.Kind != s.Kind:
		return differs("kind", m.Kind, s.Kind)
	case m.Driver != driver:
		return differs("driver", m.Driver, driver)
	case m.Arch != s.arch(f):
		return differs("architecture", m.Arch, s.arch(f))
	case m.Compatibility != f.Compatibility:
		return differs("host", m.Compatibility, f.Compatibility)
	case m.KitDigest != s.Kit.Digest:
		return differs("guest kit", m.KitDigest, s.Kit.Digest)
	case m.MacOSDigest != macOSDigest(s.MacOS):
		return differs("macOS installation", m.MacOSDigest, macOSDigest(s.MacOS))
	case m.Shape != s.Shape:
		return differs("shape", m.Shape, s.Shape)
	case !m.Template.same(s.Template):
		return differs("template", m.Template, s.Template)
	}
	return nil
}
