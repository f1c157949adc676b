// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"

	"github.com/vk-firkin/vk-firkin/vm"
)

// FormatVersion is the version of the layout of a set and of its manifest. A set
// of another version has another key and is never read.
const FormatVersion = 1

// Kind tells what a snapshot holds.
type Kind string

// The kinds.
const (
	// KindBase is kernel and agent up and nothing else: any pod can start from it.
	KindBase Kind = "base"
	// KindTemplate is a base with images in its slots and a template's commands carried
	// out: pods that use those images can start from it. A macOS guest has no base: it is
	// booted from its installation.
	KindTemplate Kind = "template"
)

// Spec is what a snapshot is to be made of.
type Spec struct {
	Kind  Kind
	Shape vm.Shape
	// Kit of a Linux guest.
	Kit vm.Kit
	// GuestOS is Linux when empty. A macOS guest is of KindTemplate, boots MacOS, and has
	// one image, which is that.
	GuestOS vm.GuestOS
	MacOS   *vm.MacOS
	// Template is there for KindTemplate only.
	Template *TemplateSpec
}

// Validate checks the spec against a driver's features without touching the disk.
// The error is vm.ErrInvalidConfig.
func (s Spec) Validate(f vm.Features) error {
	switch {
	case s.Kind == KindBase && s.Template == nil:
	case s.Kind == KindTemplate && s.Template != nil:
		if err := s.Template.validate(); err != nil {
			return err
		}
	default:
		return fmt.Errorf("%w: snapshot kind %q, want %q, or %q with a template", vm.ErrInvalidConfig, s.Kind, KindBase, KindTemplate)
	}
	if s.GuestOS == vm.GuestMacOS && (s.Template == nil || len(s.Template.Images) != 1 || s.MacOS == nil || s.MacOS.Digest != s.Template.Images[0].Digest) {
		return fmt.Errorf("%w: a snapshot of a macOS guest is of a template whose only image is the installation", vm.ErrInvalidConfig)
	}
	return s.config().Validate(f)
}

func (s Spec) config() vm.Config {
	if s.GuestOS == vm.GuestMacOS {
		return vm.Config{Shape: s.Shape, GuestOS: s.GuestOS, MacOS: s.MacOS}
	}
	return vm.Config{Shape: s.Shape, Kit: s.Kit, Images: s.Template.paths()}
}

// base is the spec of the snapshot that this one begins with; ok is false for one that
// begins with a boot.
func (s Spec) base() (base Spec, ok bool) {
	if s.Kind != KindTemplate || s.GuestOS == vm.GuestMacOS {
		return Spec{}, false
	}
	return Spec{Kind: KindBase, Shape: s.Shape, Kit: s.Kit}, true
}

// arch is the architecture of the guest.
func (s Spec) arch(f vm.Features) string {
	if s.GuestOS == vm.GuestMacOS {
		return f.Arch
	}
	return s.Kit.Arch
}

// macOSDigest identifies the installation in a configuration; empty for a Linux guest.
func macOSDigest(m *vm.MacOS) string {
	if m == nil {
		return ""
	}
	return m.Digest
}

// disksOf are the files whose content a restored machine remembers.
func disksOf(cfg vm.Config) []string {
	if cfg.MacOS != nil {
		return []string{cfg.MacOS.Disk}
	}
	return cfg.Images
}

// about begins an event about the snapshot.
func (s Spec) about(key string) Event {
	e := Event{Key: key, Kind: s.Kind, Shape: s.Shape}
	if s.Template != nil {
		e.Template = s.Template.ID()
	}
	return e
}

// String names the spec for people.
func (s Spec) String() string {
	if s.Template != nil {
		return fmt.Sprintf("template %s/%s", s.Template.Namespace, s.Template.Name)
	}
	return fmt.Sprintf("%s snapshot of shape %s", s.Kind, s.Shape)
}

// keyInput is everything that must be equal at restore. The order of the fields
// is part of the key: new ones go to the end, with omitempty.
type keyInput struct {
	Format        int    `json:"format"`
	Kind          Kind   `json:"kind"`
	Arch          string `json:"arch"`
	Compatibility string `json:"compatibility"`
	ImageSlots    int    `json:"imageSlots"`
	SlotBytes     int64  `json:"slotBytes"`
	ScratchBytes  int64  `json:"scratchBytes"`
	KitDigest     string `json:"kitDigest"`
	VCPUs         int    `json:"vcpus"`
	MemoryBytes   int64  `json:"memoryBytes"`

	Template string   `json:"template,omitempty"`
	Revision string   `json:"revision,omitempty"`
	Images   []string `json:"images,omitempty"`

	MacOSDigest string `json:"macOSDigest,omitempty"`
}

// Key is the name of the snapshot that this spec leads to on a driver with these
// features: 64 hex digits, a SHA-256 over everything that must be equal when it is
// restored. Two hosts, two hypervisor versions or two guest kits never share one.
// Pure.
func Key(s Spec, f vm.Features) string {
	in := keyInput{
		Format:        FormatVersion,
		Kind:          s.Kind,
		Arch:          s.arch(f),
		Compatibility: f.Compatibility,
		ImageSlots:    f.ImageSlots,
		SlotBytes:     f.SlotBytes,
		ScratchBytes:  f.ScratchBytes,
		KitDigest:     s.Kit.Digest,
		VCPUs:         s.Shape.VCPUs,
		MemoryBytes:   s.Shape.MemoryBytes,
		MacOSDigest:   macOSDigest(s.MacOS),
	}
	if t := s.Template; t != nil {
		in.Template, in.Revision = t.Namespace+"/"+t.Name, t.Revision
		for _, i := range t.Images {
			in.Images = append(in.Images, i.Digest)
		}
	}
	data, err := json.Marshal(in)
	if err != nil { // strings and numbers only: cannot happen
		panic(err)
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// keyLength is the number of hex digits of a key.
const keyLength = 2 * sha256.Size

// isHex tells whether s is n lower-case hex digits.
func isHex(s string, n int) bool {
	if len(s) != n {
		return false
	}
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}
