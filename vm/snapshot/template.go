// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package snapshot

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vk-firkin/vk-firkin/vm"
	"github.com/vk-firkin/vk-firkin/vm/guest"
)

// TemplateSpec is what a template snapshot is made of beside its base.
type TemplateSpec struct {
	Namespace, Name string
	// Revision is a digest of what the user wrote: equal revisions of a template make equal
	// snapshots.
	Revision string
	// Images are in the machine's slots, in this order.
	Images []TemplateImage
	// Prepare does what is to be done in the machine before it is saved. The machine was
	// restored from the base and refreshed, and its images can be mounted. ctx ends, with
	// a cause, when the machine does. What it fails with is in the BuildError. nil is nothing.
	Prepare func(ctx context.Context, client *guest.Client) error
}

// TemplateImage is the image in a slot.
type TemplateImage struct {
	// Ref as the template has it, and Digest of the image that it meant.
	Ref, Digest string
	// Path of the image's disk on this host.
	Path string
}

// ID is "namespace/name".
func (t *TemplateSpec) ID() string { return t.Namespace + "/" + t.Name }

func (t *TemplateSpec) paths() []string {
	if t == nil {
		return nil
	}
	var out []string
	for _, i := range t.Images {
		out = append(out, i.Path)
	}
	return out
}

func (t *TemplateSpec) validate() error {
	fail := func(format string, args ...any) error {
		return fmt.Errorf("%w: template %.64q: "+format, append([]any{vm.ErrInvalidConfig, t.ID()}, args...)...)
	}
	for _, text := range []string{t.Namespace, t.Name, t.Revision} {
		if !validText(text) {
			return fail("namespace, name or revision is %.80q", text)
		}
	}
	if len(t.Images) == 0 {
		return fail("it has no image")
	}
	for i, image := range t.Images {
		if !validText(image.Ref) || !validText(image.Digest) || !filepath.IsAbs(image.Path) {
			return fail("image %d is %.100q, digest %.100q, disk %.100q", i, image.Ref, image.Digest, image.Path)
		}
	}
	return nil
}

// Template is what a manifest says about a template.
type Template struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Revision  string `json:"revision"`
	// Images in the order of the slots.
	Images []ManifestImage `json:"images"`
}

// ID is "namespace/name".
func (t Template) ID() string { return t.Namespace + "/" + t.Name }

// ManifestImage is the image that was in a slot when the machine was saved.
type ManifestImage struct {
	Ref    string `json:"ref"`
	Digest string `json:"digest"`
	// Disk is what the disk made of the image was: a restored machine remembers parts
	// of it, so that it must find the same one again.
	Disk DiskIdentity `json:"disk"`
}

// DiskIdentity tells disks apart that were made of one image.
type DiskIdentity struct {
	Size int64 `json:"size"`
	// Head is the SHA-256 of the first 64 KiB, where a file system describes itself: its
	// identity and size, and where in each group of blocks what is.
	Head string `json:"head"`
}

const diskHeadBytes = 64 << 10

// IdentifyDisk reads the identity of a disk. Errors are those of the file.
func IdentifyDisk(path string) (DiskIdentity, error) {
	f, err := os.Open(path)
	if err != nil {
		return DiskIdentity{}, fmt.Errorf("identify disk: %w", err)
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return DiskIdentity{}, fmt.Errorf("identify disk: %w", err)
	}
	h := sha256.New()
	if _, err := io.Copy(h, io.LimitReader(f, diskHeadBytes)); err != nil {
		return DiskIdentity{}, fmt.Errorf("identify disk: %w", err)
	}
	return DiskIdentity{Size: info.Size(), Head: hex.EncodeToString(h.Sum(nil))}, nil
}

// manifestOf is the part of the manifest about the template; nil without one.
func (t *TemplateSpec) manifestOf() (*Template, error) {
	if t == nil {
		return nil, nil //nolint:nilnil // a base has none
	}
	m := &Template{Namespace: t.Namespace, Name: t.Name, Revision: t.Revision}
	for _, i := range t.Images {
		id, err := IdentifyDisk(i.Path)
		if err != nil {
			return nil, err
		}
		m.Images = append(m.Images, ManifestImage{Ref: i.Ref, Digest: i.Digest, Disk: id})
	}
	return m, nil
}

// checkDisks compares the disks that a machine is to be restored with to those that the
// template was saved with.
func (t *Template) checkDisks(paths []string) error {
	if t == nil {
		return nil
	}
	if len(paths) != len(t.Images) {
		return fmt.Errorf("%w: %d images, the template has %d", vm.ErrInvalidConfig, len(paths), len(t.Images))
	}
	for i, want := range t.Images {
		got, err := IdentifyDisk(paths[i])
		if err != nil {
			return err
		}
		if got != want.Disk {
			return fmt.Errorf("%w: the disk of image %.100q in slot %d is not the one that the template was saved with: the image was converted again and came out otherwise", vm.ErrSnapshotInvalid, want.Ref, i)
		}
	}
	return nil
}

// FindTemplate returns the manifests of the snapshots of a template that can be used,
// the newest first; an empty revision is any. They tell which images a tag meant when
// a snapshot was made. It reads the manifests on disk.
func (s *Store) FindTemplate(ctx context.Context, namespace, name, revision string) ([]Manifest, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil && !isNotExist(err) {
		return nil, fmt.Errorf("find template %s/%s: %w", namespace, name, err)
	}
	var found []Manifest
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if !isHex(e.Name(), keyLength) {
			continue
		}
		dir := filepath.Join(s.dir, e.Name())
		m, err := readManifest(dir)
		if err != nil || m.Key != e.Name() || m.Template == nil {
			continue // not one that can be used: Ensure says so
		}
		t := m.Template
		if t.Namespace == namespace && t.Name == name && (revision == "" || t.Revision == revision) && checkSizes(dir, m) == nil {
			found = append(found, m)
		}
	}
	slices.SortStableFunc(found, func(a, b Manifest) int {
		return cmp.Or(b.Created.Compare(a.Created), cmp.Compare(a.Key, b.Key))
	})
	return found, nil
}

// validText is a name in a manifest.
func validText(s string) bool {
	return s != "" && len(s) <= maxTextBytes && !strings.ContainsFunc(s, func(r rune) bool { return r < 0x20 || r > 0x7e })
}

// validate reports every fault.
func (t *Template) validate() error {
	var errs []error
	bad := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("%w: "+format, append([]any{ErrManifest}, args...)...))
	}
	if !validText(t.Namespace) || !validText(t.Name) || !validText(t.Revision) {
		bad("template %.64q %.64q, revision %.80q", t.Namespace, t.Name, t.Revision)
	}
	if len(t.Images) == 0 || len(t.Images) > maxTemplateImages {
		bad("template has %d images", len(t.Images))
		return errors.Join(errs...)
	}
	for i, image := range t.Images {
		if !validText(image.Ref) || !validText(image.Digest) {
			bad("image %d of the template is %.80q, digest %.80q", i, image.Ref, image.Digest)
		}
		if image.Disk.Size < 0 || !isHex(image.Disk.Head, keyLength) {
			bad("image %d of the template has a disk of %d bytes that begins with %.80q", i, image.Disk.Size, image.Disk.Head)
		}
	}
	return errors.Join(errs...)
}

// same tells whether the manifest's template is the spec's; disks are looked at when a
// machine is restored.
func (t *Template) same(s *TemplateSpec) bool {
	if t == nil || s == nil {
		return t == nil && s == nil
	}
	return t.Namespace == s.Namespace && t.Name == s.Name && t.Revision == s.Revision &&
		slices.EqualFunc(t.Images, s.Images, func(a ManifestImage, b TemplateImage) bool { return a.Digest == b.Digest })
}
